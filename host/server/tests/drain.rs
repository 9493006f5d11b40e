//! An orderly end: streams finish, nothing new begins, and it does not last for ever.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use support::{Served, chat, event, last_event, next_text, send, text_of};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_flight_finishes_and_no_connection_is_accepted() {
    let mut served = Served::start("", Duration::from_secs(30)).await;
    let mut client = served.client().await;
    let idle = served.client().await;
    let pieces = served.upstream.next_stream();
    let (response, pieces) = tokio::join!(client.send(chat("hi", true)), pieces);
    let mut pieces = pieces.unwrap();
    send(&mut pieces, event("The beginning ")).await;
    let stopping = served.stop();
    // The listener goes at once.
    let mut refused = false;
    for _ in 0..500 {
        refused = TcpStream::connect(served.address).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused, "connections are still accepted");
    send(&mut pieces, event("and the end.")).await;
    send(&mut pieces, last_event()).await;
    drop(pieces);
    let mut body = response.into_body();
    let mut whole = String::new();
    while let Some(text) = next_text(&mut body).await {
        whole.push_str(&text);
    }
    assert_eq!(text_of(&whole), "The beginning and the end.");
    assert_eq!(stopping.await.unwrap().cut, 0);
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_in_time_is_cut_and_counted() {
    let mut served = Served::start("", Duration::from_millis(100)).await;
    let mut client = served.client().await;
    let pieces = served.upstream.next_stream();
    let (response, pieces) = tokio::join!(client.send(chat("hi", true)), pieces);
    let _never_ends = pieces.unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(20), served.stop()).await;
    assert_eq!(drained.unwrap().unwrap().cut, 1);
    drop(response);
}
