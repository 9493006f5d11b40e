//! What clients and operators get when all goes well.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use serde_json::Value;
use support::{Served, chat, event, last_event, next_text, plain, send, text_of};

const CARD: &str = "4111 1111 1111 1111";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_carries_its_trace_and_the_trace_what_each_stage_did() {
    let served = Served::start("", Duration::ZERO).await;
    let mut client = served.client().await;
    let (head, body) = client
        .json(chat(&format!("my card is {CARD}, ok?"), false))
        .await;
    assert_eq!(head.status(), 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "Hello there.");
    assert_eq!(body["usage"]["total_tokens"], 12);
    let seen = served.upstream.bodies.lock().unwrap()[0].to_string();
    assert!(!seen.contains(CARD), "{seen}");

    let id = head.headers()["x-millgate-trace"].to_str().unwrap();
    let (head, trace) = client
        .json(plain(Method::GET, &format!("/api/v1/traces/{id}")))
        .await;
    assert_eq!(head.status(), 200, "{trace}");
    let stage = &trace["stages"][0];
    assert_eq!(
        (&stage["stage"], &stage["verdict"]),
        (&"pii".into(), &"edit".into())
    );
    assert_eq!(stage["given"], stage["passed"]);

    let (_, page) = client
        .json(plain(Method::GET, "/api/v1/traces?verdict=edit&limit=5"))
        .await;
    assert_eq!(page["traces"][0]["id"], id);
    let (_, page) = client
        .json(plain(Method::GET, "/api/v1/traces?verdict=block"))
        .await;
    assert_eq!(page["traces"].as_array().map(Vec::len), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_health_and_metrics_answer() {
    let served = Served::start("", Duration::ZERO).await;
    let mut client = served.client().await;
    let (_, models) = client.json(plain(Method::GET, "/v1/models")).await;
    assert_eq!(models["data"][0]["id"], "fixed");
    let (_, model) = client.json(plain(Method::GET, "/v1/models/fixed")).await;
    assert_eq!(model["object"], "model");
    let (head, _) = client.json(plain(Method::GET, "/readyz")).await;
    assert_eq!(head.status(), 200);
    client.json(chat("hi", false)).await;
    let metrics = client.send(plain(Method::GET, "/metrics")).await;
    let text = metrics.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&text).unwrap();
    let line = "millgate_http_responses_total{route=\"chat\",status=\"2xx\"} 1";
    assert!(text.contains(line), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_piece_of_a_stream_leaves_before_the_next_one_comes() {
    let served = Served::start("", Duration::ZERO).await;
    let mut client = served.client().await;
    let pieces = served.upstream.next_stream();
    let (response, pieces) = tokio::join!(client.send(chat("hi", true)), pieces);
    let mut pieces = pieces.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let mut body = response.into_body();
    let mut whole = String::new();
    for word in ["Once ", "upon ", "a ", "time. "] {
        send(&mut pieces, event(word)).await;
        // The upstream says nothing more until this has arrived; `pii` may hold back a last word.
        let mut seen = text_of(&whole);
        while seen.len() + word.len() < "Once upon a time. ".find(word).unwrap() + word.len() {
            whole.push_str(&next_text(&mut body).await.unwrap());
            seen = text_of(&whole);
        }
    }
    send(&mut pieces, last_event()).await;
    drop(pieces);
    while let Some(text) = next_text(&mut body).await {
        whole.push_str(&text);
    }
    assert_eq!(text_of(&whole), "Once upon a time. ");
    assert!(whole.ends_with("data: [DONE]\n\n"), "{whole}");
    assert!(
        whole
            .split_terminator("\n\n")
            .all(|block| block.starts_with("data: ")),
        "{whole}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_a_stream_leaves_masked_however_it_is_cut() {
    let served = Served::start("", Duration::ZERO).await;
    for size in [1, 2, 5, 100] {
        let mut client = served.client().await;
        let pieces = served.upstream.next_stream();
        let (response, pieces) = tokio::join!(client.send(chat("hi", true)), pieces);
        let mut pieces = pieces.unwrap();
        let feed = tokio::spawn(async move {
            let text = "Write to ann.smith@example.com today.";
            for piece in text.as_bytes().chunks(size) {
                send(&mut pieces, event(std::str::from_utf8(piece).unwrap())).await;
            }
            send(&mut pieces, last_event()).await;
        });
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        feed.await.unwrap();
        let text = text_of(std::str::from_utf8(&bytes).unwrap());
        assert!(
            !text.contains("ann.smith") && !text.contains("example.com"),
            "{text}"
        );
        assert!(
            text.starts_with("Write to ") && text.ends_with(" today."),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_cancels_its_request() {
    let served = Served::start("", Duration::ZERO).await;
    let mut client = served.client().await;
    let pieces = served.upstream.next_stream();
    let (response, pieces) = tokio::join!(client.send(chat("hi", true)), pieces);
    let mut pieces = pieces.unwrap();
    send(&mut pieces, event("Once upon a time. There was. ")).await;
    drop(response);
    client.vanish();
    // The upstream's connection closes: sending to it fails after a moment.
    use futures::SinkExt as _;
    let gone = async {
        while pieces.send(event("more ")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap();
    let filter = millgate_ops::TraceFilter::default();
    for _ in 0..500 {
        let page = served.platform.traces().list(&filter).unwrap();
        if let Some(trace) = page.traces.first() {
            assert_eq!(trace.finish.name(), "cancelled");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("a cancelled request leaves no trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_config_leaves_the_last_good_one_in_place() {
    let served = Served::start("", Duration::ZERO).await;
    let platform = served.platform.clone();
    let (good, generation) = platform.config();
    let mut bad = (*good).clone();
    bad.stages.get_mut("pii").unwrap().plugin = Some("nothing".to_owned());
    let reload = platform.clone();
    let result = tokio::task::spawn_blocking(move || reload.reload(bad, "test"))
        .await
        .unwrap();
    assert!(result.unwrap_err().to_string().contains("nothing"));
    assert_eq!(platform.config().1, generation);
    let (head, body): (_, Value) = served.client().await.json(chat("hi", false)).await;
    assert_eq!(head.status(), 200, "{body}");
}
