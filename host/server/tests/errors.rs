//! Every failure is an error in OpenAI's shape, with the right status.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use http::Method;
use serde_json::Value;
use support::{Client, Served, plain, post, serve};

const CHAT: &str = "/v1/chat/completions";
const JSON: &str = "application/json";

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_has_openais_shape() {
    let served = Served::start("[server]\nmax-body = \"2KiB\"", Duration::ZERO).await;
    let valid = r#"{"model":"fixed","messages":[{"role":"user","content":"hi"}]}"#;
    let unknown = valid.replace("fixed", "nobody");
    let cases = [
        (plain(Method::GET, "/nowhere"), 404),
        (plain(Method::GET, "/v1/models/nobody"), 404),
        (
            plain(
                Method::GET,
                "/api/v1/traces/00000000000000000000000000000000",
            ),
            404,
        ),
        (plain(Method::GET, "/api/v1/traces/xyz"), 400),
        (plain(Method::GET, "/api/v1/traces?colour=red"), 400),
        (plain(Method::GET, CHAT), 405),
        (plain(Method::DELETE, "/v1/models"), 405),
        (plain(Method::POST, "/healthz"), 405),
        (post(CHAT, "text/plain", valid), 415),
        (post(CHAT, JSON, "{"), 400),
        (post(CHAT, JSON, ""), 400),
        (post(CHAT, JSON, "[]"), 400),
        (post(CHAT, JSON, &b"\xff\xfe"[..]), 400),
        (post(CHAT, JSON, r#"{"model":"fixed"}"#), 400),
        (post(CHAT, JSON, r#"{"model":"fixed","messages":[]}"#), 400),
        (post(CHAT, JSON, r#"{"model":7,"messages":[]}"#), 400),
        (post(CHAT, JSON, unknown), 404),
        (post("/v1/completions", JSON, r#"{"model":"fixed"}"#), 400),
        (post(CHAT, JSON, "x".repeat(3 << 10)), 413),
    ];
    for (request, status) in cases {
        let what = format!("{} {}", request.method(), request.uri());
        // A connection each: after a body that was not read the server closes it.
        let (head, body) = served.client().await.json(request).await;
        assert_eq!(head.status(), status, "{what}: {body}");
        assert_eq!(head.headers()["content-type"], JSON, "{what}");
        assert!(head.headers().contains_key("x-millgate-trace"), "{what}");
        let error = body["error"]
            .as_object()
            .unwrap_or_else(|| panic!("{what}: {body}"));
        let mut keys: Vec<&str> = error.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["code", "message", "param", "type"], "{what}");
        assert!(!error["message"].as_str().unwrap().is_empty(), "{what}");
        assert!(
            error["code"].is_string() && error["type"].is_string(),
            "{what}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_names_the_right_one() {
    let served = Served::start("", Duration::ZERO).await;
    let mut client = served.client().await;
    let (head, _) = client.json(plain(Method::GET, CHAT)).await;
    assert_eq!(head.headers()["allow"], "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_models_are_loaded_it_is_alive_and_not_ready() {
    let (address, _handle, _stop, _task) = serve(Duration::ZERO).await;
    let mut client = Client::connect(address).await;
    let (head, _) = client.json(plain(Method::GET, "/healthz")).await;
    assert_eq!(head.status(), 200);
    let (head, body) = client.json(plain(Method::GET, "/readyz")).await;
    assert_eq!(
        (head.status().as_u16(), &body["status"]),
        (503, &Value::from("loading"))
    );
    let (head, body) = client.json(support::chat("hi", false)).await;
    assert_eq!(
        (head.status().as_u16(), &body["error"]["code"]),
        (503, &Value::from("loading"))
    );
    assert_eq!(head.headers()["retry-after"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_gone_is_a_bad_gateway() {
    let served = Served::start("", Duration::ZERO).await;
    // A listener that was closed again: nobody answers there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let platform = served.platform.clone();
    let config = support::config(gone, "");
    tokio::task::spawn_blocking(move || platform.reload(config, "test"))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = served.client().await.json(support::chat("hi", false)).await;
    assert_eq!(head.status(), 502, "{body}");
    assert_eq!(body["error"]["type"], "upstream_error");
}
