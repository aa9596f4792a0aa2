//! What can't be judged, what can't be read, and what must not pass.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::time::Duration;

use bytes::Bytes;
use forethought_core::{evidence::Coverage, guard::GuardError};
use forethought_tests::{FakeGuard, FakeUpstream, Reply, Respond, TestProxy, chat, evidence, json_headers};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The answer under a configuration, and how many requests reached the upstream.
async fn answer(guard: &FakeGuard, toml: &str, body: &Value) -> (Reply, usize) {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(guard, &upstream.url(), toml).await;
    let reply = proxy.client().chat(body).await;
    (reply, upstream.seen().len())
}

#[tokio::test]
async fn a_guard_that_fails() {
    async fn check(error: GuardError, toml: &str, expected: (u16, &str, &str, usize)) {
        let (reply, reached) = answer(&FakeGuard::failing(error.clone()), toml, &chat("hi", json!({}))).await;
        let code = if reached == 0 { reply.code() } else { String::new() };
        let decision = reply.header("x-forethought-decision").to_owned();
        assert_eq!(
            (reply.status.as_u16(), code.as_str(), decision.as_str(), reached),
            expected,
            "{error} {toml}"
        );
        let (retry_after, should_retry) = (reply.header("retry-after"), reply.header("x-should-retry"));
        match expected.0 {
            503 => assert_eq!((retry_after, should_retry), ("2", "")),
            403 => assert_eq!((retry_after, should_retry), ("", "false")),
            _ => assert_eq!((retry_after, should_retry), ("", "")),
        }
    }
    let overloaded = GuardError::Overloaded { waiting: 64 };
    let deadline = GuardError::Deadline { after: Duration::from_secs(1) };
    let model = GuardError::Model("broken".to_owned());
    check(overloaded.clone(), "", (503, "guard_overloaded", "deny", 0)).await;
    check(deadline, "", (403, "guard_deadline", "deny", 0)).await;
    check(model.clone(), "", (403, "guard_failed", "deny", 0)).await;
    check(GuardError::Stopped, "", (403, "guard_stopped", "deny", 0)).await;
    let open = "policy.on_failure = \"open\"";
    check(overloaded, open, (200, "", "allow-unguarded", 1)).await;
    check(model.clone(), open, (200, "", "allow-unguarded", 1)).await;
    check(model, "policy.mode = \"monitor\"", (200, "", "allow-monitored", 1)).await;
}

#[tokio::test]
async fn a_guard_that_hangs_is_given_up() {
    let guard = FakeGuard::hanging();
    let (reply, reached) = answer(&guard, "guard.deadline_ms = 20", &chat("hi", json!({}))).await;
    assert_eq!((reply.status, reply.code().as_str(), reached), (StatusCode::FORBIDDEN, "guard_deadline", 0));
    guard.left(1).await;
}

#[tokio::test]
async fn modes() {
    let harmful = FakeGuard::scoring(1.0);
    let (reply, reached) = answer(&harmful, "policy.mode = \"monitor\"", &chat("hi", json!({}))).await;
    assert_eq!((reply.header("x-forethought-decision"), reached), ("allow-monitored", 1));
    assert_eq!(harmful.seen().len(), 1);

    let harmful = FakeGuard::scoring(1.0);
    let (reply, reached) = answer(&harmful, "policy.mode = \"off\"", &chat("hi", json!({}))).await;
    assert_eq!((reply.header("x-forethought-decision"), reached), ("allow-unguarded", 1));
    assert!(harmful.seen().is_empty());
}

#[tokio::test]
async fn parts_that_no_guard_reads() {
    let image = json!({"model": "m", "messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]}]});
    let (reply, reached) = answer(&FakeGuard::scoring(0.0), "", &image).await;
    assert_eq!(
        (reply.status, reply.code().as_str(), reached),
        (StatusCode::FORBIDDEN, "unreadable_content", 0)
    );
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("image_url") && message.contains("policy.on_unreadable"), "{message}");
    assert_eq!(reply.header("x-should-retry"), "false");
    for setting in ["flag", "allow"] {
        let toml = format!("policy.on_unreadable = \"{setting}\"");
        let (reply, reached) = answer(&FakeGuard::scoring(0.0), &toml, &image).await;
        assert_eq!((reply.header("x-forethought-decision"), reached), ("allow", 1));
        // What was read still counts.
        let (reply, reached) = answer(&FakeGuard::scoring(1.0), &toml, &image).await;
        assert_eq!((reply.header("x-forethought-decision"), reached), ("refuse", 0));
    }
}

#[tokio::test]
async fn requests_too_long_to_read() {
    let guard = FakeGuard::finding(|_| {
        let coverage = Coverage { tokens: 100, tokens_read: 60, windows: 2, ..Coverage::default() };
        Ok(forethought_core::evidence::Evidence { coverage, ..evidence(0.0) })
    });
    let (reply, reached) = answer(&guard, "", &chat("hi", json!({}))).await;
    assert_eq!(
        (reply.status, reply.code().as_str(), reached),
        (StatusCode::FORBIDDEN, "too_long_to_read", 0)
    );
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("60 of the request's 100 tokens") && message.contains("policy.on_truncated"),
        "{message}"
    );
    let (reply, reached) = answer(&guard, "policy.on_truncated = \"flag\"", &chat("hi", json!({}))).await;
    assert_eq!((reply.header("x-forethought-decision"), reached), ("allow", 1));
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    async fn check(headers: &[(header::HeaderName, &'static str)], body: &str, status: u16, code: &str) {
        let upstream = FakeUpstream::answering("{}").await;
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let reply = proxy.client().send(Method::POST, "/v1/chat/completions", headers, body.to_owned()).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{body}");
        assert!(!String::from_utf8_lossy(&reply.body).contains("secret"), "{body}");
        assert_eq!(reply.header("x-forethought-decision"), "deny");
        assert_eq!(reply.header("x-forethought-id").len(), 36);
        assert!(upstream.seen().is_empty(), "{body}");
    }
    const JSON: &[(header::HeaderName, &str)] = &[(header::CONTENT_TYPE, "application/json")];
    let good = r#"{"messages":[{"role":"user","content":"secret"}]}"#;
    check(JSON, "{\"messages\": [secret]}", 400, "bad_json").await;
    check(JSON, "", 400, "bad_json").await;
    check(JSON, &good.replace("}]}", "}],\"messages\":[]}"), 400, "bad_json").await;
    check(JSON, &good.replace("}]}", "}],\"Messages\":[]}"), 400, "ambiguous_key").await;
    check(JSON, r#"{"prompt":"secret"}"#, 400, "bad_shape").await;
    check(&[], good, 415, "unsupported_content_type").await;
    check(&[(header::CONTENT_TYPE, "text/plain")], good, 415, "unsupported_content_type").await;
    let gzip = [JSON[0].clone(), (header::CONTENT_ENCODING, "gzip")];
    check(&gzip, good, 415, "unsupported_content_encoding").await;
}

#[tokio::test]
async fn bodies_over_the_limit() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "limits.body_bytes = 1000").await;
    let reply = proxy.client().chat(&chat(&"x".repeat(1000), json!({}))).await;
    assert_eq!((reply.status, reply.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("limits.body_bytes"));

    // One that does not say its length.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let chunks = format!("258\r\n{}\r\n", "x".repeat(600)).repeat(2);
    let reply = proxy.raw(format!("{head}{chunks}0\r\n\r\n").as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");

    // One that asks before it sends is refused without sending.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 5000\r\nexpect: 100-continue\r\n\r\n";
    let reply = proxy.raw(head.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_come() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy =
        TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "limits.body_timeout_ms = 20").await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 50\r\n\r\n{\"mess";
    let reply = proxy.raw(head.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("limits.body_timeout_ms"), "{reply}");
}

#[tokio::test]
async fn a_connection_that_sends_nothing_is_closed() {
    let proxy =
        TestProxy::start(&FakeGuard::scoring(0.0), "http://127.0.0.1:9/v1", "limits.header_timeout_ms = 20")
            .await;
    for bytes in ["", "P", "PRI * HTTP/2.0\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost:"] {
        let answer = proxy.raw(bytes.as_bytes()).await; // returns when the proxy has closed the connection
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // Nor does one stay open for ever after its first request.
    let answer = proxy.raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn tricks_with_paths_reach_nothing() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::scoring(0.0);
    let proxy = TestProxy::start(&guard, &upstream.url(), "paths.pass = [\"* /**\"]").await;
    let body = chat("hi", json!({})).to_string();
    for path in [
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/./chat/completions",
        "/v1/models/../chat/completions",
        "/v1/%63hat/completions",
        "/v1/chat%2Fcompletions",
        "/V1/CHAT/COMPLETIONS",
        "/chat/completions",
    ] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = proxy.raw(request.as_bytes()).await;
        assert!(
            reply.starts_with("HTTP/1.1 403 ") && reply.contains("x-forethought-decision: deny"),
            "{path}: {reply}"
        );
    }
    // A whole URI as target is judged by its path all the same.
    let request = format!(
        "POST http://elsewhere/v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(guard.seen().is_empty() && upstream.seen().is_empty());
    let reply = proxy.raw(request.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    assert_eq!((guard.seen().len(), upstream.seen().len()), (1, 1));
}

#[tokio::test]
async fn what_no_rule_names_is_denied() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), "").await;
    let client = proxy.client();
    for (method, path) in [
        (Method::POST, "/v1/batches"),
        (Method::POST, "/v1/images/generations"),
        (Method::POST, "/v1/responses/compact"),
        (Method::POST, "/v1/fine_tuning/jobs"),
        (Method::POST, "/v1/models"),
        (Method::GET, "/v1/chat/completions"),
        (Method::OPTIONS, "/v1/chat/completions"),
        (Method::GET, "/"),
    ] {
        let reply = client.send(method.clone(), path, json_headers(), "{}").await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (StatusCode::FORBIDDEN, "path_denied"),
            "{method} {path}"
        );
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(
            message.contains("`paths.pass`") && message.contains(&format!("`{method} {path}`")),
            "{message}"
        );
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn an_upstream_that_is_not_there() {
    // A port that was free a moment ago.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &format!("http://{free}"), "").await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status, reply.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream_unreachable"));
    assert!(!String::from_utf8_lossy(&reply.body).contains(&free.to_string()));
    assert_eq!(reply.header("x-forethought-decision"), "allow");
}

#[tokio::test]
async fn an_upstream_that_does_not_answer() {
    let upstream = FakeUpstream::start(|_| Respond::Hang).await;
    let toml = "upstream.response_timeout_ms = 20";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), toml).await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status, reply.code().as_str()), (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"));
    upstream.left(1).await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off() {
    for toml in ["", "upstream.idle_timeout_ms = 20"] {
        let quiet = !toml.is_empty();
        let upstream = FakeUpstream::start(move |_| {
            let (sender, pieces) = mpsc::unbounded_channel();
            sender.send(Ok(Bytes::from_static(b"data: 1\n\n"))).unwrap();
            if quiet {
                tokio::spawn(async move { sender.closed().await }); // says no more, and stays
            } else {
                sender.send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
            }
            Respond::Pieces(Response::builder(), pieces)
        })
        .await;
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), toml).await;
        let body = chat("hi", json!({"stream": true})).to_string();
        let answer = proxy.client().open(Method::POST, "/v1/chat/completions", json_headers(), body).await;
        // Whether the head or the first piece gets through before the break is a race; that it does not look whole is not.
        if let Ok(answer) = answer
            && answer.status() == StatusCode::OK
        {
            assert!(answer.into_body().collect().await.is_err());
        }
        let [record] = proxy.records().await.try_into().unwrap();
        assert!(record["outcome"] == "aborted" || record["error"] == "upstream_broken", "{record}");
    }
}
