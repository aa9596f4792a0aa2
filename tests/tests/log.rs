//! The log names what happened, and never what was said.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use forethought_tests::{FakeGuard, FakeUpstream, TestProxy, chat, json_headers};
use http::{HeaderValue, Method, header};
use serde_json::json;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn log_lines_hold_no_prompts_and_no_keys() {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let upstream = FakeUpstream::answering("{\"answer\": \"sesame\"}").await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), "").await;
    let client = proxy.client();
    let mut headers = json_headers();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer sesame"));
    for body in [
        chat("sesame", json!({})).to_string(),
        chat("harm sesame", json!({"stream": true})).to_string(),
        "{\"sesame\": sesame".to_owned(),
        json!({"messages": "sesame"}).to_string(),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "sesame"}}]}]})
            .to_string(),
    ] {
        client.send(Method::POST, "/v1/chat/completions?key=sesame", headers.clone(), body).await;
    }
    proxy.records().await;
    let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    for expected in [
        "POST /v1/chat/completions 200 allow",
        "POST /v1/chat/completions 200 refuse",
        "POST /v1/chat/completions 400 deny",
        "POST /v1/chat/completions 403 deny",
        "score=0.97",
        "hazard=cyber",
        "request{id=",
    ] {
        assert!(log.contains(expected), "{expected}\n{log}");
    }
    let ours: Vec<_> = log.lines().filter(|line| line.contains("forethought")).collect();
    assert!(!ours.is_empty());
    assert!(!ours.iter().any(|line| line.contains("sesame")), "{ours:#?}");
}
