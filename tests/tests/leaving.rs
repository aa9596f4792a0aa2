//! Callers that leave, and a server that stops.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use forethought_core::generate::ChatEvent;
use forethought_tests::{Client, FakeGuard, FakeModel, FakeUpstream, Respond, TestProxy, chat, json_headers};
use http::{Method, Response};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::mpsc;

fn post(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An upstream that says one thing and then nothing more.
async fn endless() -> FakeUpstream {
    FakeUpstream::start(|_| {
        let (sender, pieces) = mpsc::unbounded_channel();
        sender.send(Ok(Bytes::from_static(b"data: 1\n\n"))).unwrap();
        tokio::spawn(async move { sender.closed().await });
        Respond::Pieces(Response::builder(), pieces)
    })
    .await
}

#[tokio::test]
async fn a_caller_that_leaves_frees_the_guard() {
    let guard = FakeGuard::hanging();
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    let stream = proxy.connect(post(&chat("hi", json!({})).to_string()).as_bytes()).await;
    guard.begun(1).await;
    drop(stream);
    guard.left(1).await;
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(
        (record["decision"].as_str(), record["outcome"].as_str()),
        (Some("none"), Some("disconnected"))
    );
    assert!(record.get("status").is_none());
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_upstream() {
    // While it waits for the head of the answer.
    let upstream = FakeUpstream::start(|_| Respond::Hang).await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    let stream = proxy.connect(post(&chat("hi", json!({})).to_string()).as_bytes()).await;
    upstream.arrived(1).await;
    drop(stream);
    upstream.left(1).await;

    // In the middle of a stream.
    let upstream = endless().await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    let body = chat("hi", json!({"stream": true})).to_string();
    let client = proxy.client();
    let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    let mut body = answer.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    drop(body);
    upstream.left(1).await;
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!((record["outcome"].as_str(), record["bytes"].as_u64()), (Some("disconnected"), Some(9)));
}

#[tokio::test]
async fn a_caller_that_leaves_stops_the_embedded_model() {
    let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned())]);
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
    let body = chat("hi", json!({"model": "embedded", "stream": true})).to_string();
    let client = proxy.client();
    let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    let mut body = answer.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    model.left(1).await;
}

#[tokio::test]
async fn running_streams_end_properly_when_the_server_stops() {
    let (sender, pieces) = mpsc::unbounded_channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = FakeUpstream::start(move |_| {
        Respond::Pieces(Response::builder(), pieces.lock().unwrap().take().unwrap())
    })
    .await;
    let mut proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    // A connection that is only open must not hold the server up.
    let idle = proxy.connect(b"").await;
    let body = chat("hi", json!({"stream": true})).to_string();
    let client = proxy.client();
    sender.send(Ok(Bytes::from_static(b"data: 1\n\n"))).unwrap();
    let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    proxy.stop();
    // From now on nobody is let in.
    while tokio::net::TcpStream::connect(proxy.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    sender.send(Ok(Bytes::from_static(b"data: [DONE]\n\n"))).unwrap();
    drop(sender);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "data: 1\n\ndata: [DONE]\n\n");
    drop(idle);
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!((record["outcome"].as_str(), record["status"].as_u64()), (Some("finished"), Some(200)));
}

#[tokio::test]
async fn what_outlasts_the_drain_time_is_cut() {
    let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned())]);
    let toml = "limits.drain_timeout_ms = 20";
    let mut proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, toml).await;
    let client = proxy.client();
    // One streamed answer under way, and one that is still to come.
    let body = chat("hi", json!({"model": "embedded", "stream": true})).to_string();
    let streamed = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    let waiting = tokio::spawn(async move { client.chat(&chat("hi", json!({"model": "embedded"}))).await });
    while model.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    proxy.stop();
    let streamed = streamed.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&streamed).unwrap();
    assert!(text.contains("\"finish_reason\":\"length\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    let waiting = waiting.await.unwrap();
    assert_eq!((waiting.status.as_u16(), waiting.code().as_str()), (503, "shutting_down"));
    let records = proxy.records().await;
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn an_upstreams_stream_that_outlasts_the_drain_time_breaks_off() {
    let upstream = endless().await;
    let mut proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    let body = chat("hi", json!({"stream": true})).to_string();
    let client = proxy.client();
    let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    proxy.stop();
    proxy.proxy.hurry(); // as a second signal does
    // What is not ours can't be ended for the upstream: it must not look whole.
    assert!(answer.into_body().collect().await.is_err());
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(record["outcome"], "stopped");
}

#[tokio::test]
async fn requests_over_http2_that_are_cut_are_recorded_too() {
    let guard = FakeGuard::hanging();
    let mut proxy = TestProxy::start(&guard, "http://127.0.0.1:9/v1", "").await;
    let client = Client::http2(proxy.url());
    let requests: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await })
        })
        .collect();
    guard.begun(3).await;
    proxy.stop();
    proxy.proxy.hurry();
    for request in requests {
        assert_eq!(request.await.unwrap().code(), "shutting_down");
    }
    let records = proxy.records().await;
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|record| record["error"] == "shutting_down" && record["decision"] == "none"));
}

#[tokio::test]
async fn callers_that_leave_at_once_are_recorded_too() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    for _ in 0..100 {
        drop(proxy.connect(post(&chat("hi", json!({})).to_string()).as_bytes()).await);
    }
    let log = proxy.proxy.audit();
    for _ in 0..500 {
        if log.health().written == 100 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let records = proxy.records().await;
    assert_eq!(records.len(), 100);
    assert!(records.iter().all(|record| record["outcome"] == "disconnected"));
}
