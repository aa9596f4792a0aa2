//! The order `parallel`: the upstream is asked at once, nothing of its answer is released before the decision, and what is
//! refused is cancelled.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use forethought_core::guard::GuardError;
use forethought_tests::{
    FORMATS, FakeGuard, FakeModel, FakeUpstream, Hold, Respond, TestProxy, chat, evidence, json_headers,
};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PARALLEL: &str = "policy.order = \"parallel\"\n";

/// An upstream that has answered in whole before the guard has, or never comes to an end.
async fn upstream(ends: bool) -> FakeUpstream {
    FakeUpstream::start(move |_| {
        let (sender, pieces) = mpsc::unbounded_channel();
        sender.send(Ok(Bytes::from_static(b"data: {\"early\": true}\n\n"))).unwrap();
        if !ends {
            tokio::spawn(async move { sender.closed().await });
        }
        Respond::Pieces(Response::builder().header("content-type", "text/event-stream"), pieces)
    })
    .await
}

#[tokio::test]
async fn an_allowed_answer_waits_for_the_decision() {
    for format in FORMATS {
        for stream in [false, true] {
            let hold = Hold::new();
            let guard = FakeGuard::reading().held(&hold);
            let upstream = upstream(true).await;
            let proxy = TestProxy::start(&guard, &upstream.url(), PARALLEL).await;
            let client = proxy.client();
            let body = format.ask("hi", stream).to_string();
            let asking = tokio::spawn(async move {
                client.send(Method::POST, format.target(stream), json_headers(), body).await
            });
            guard.begun(1).await;
            upstream.arrived(1).await;
            assert!(!asking.is_finished(), "{}", format.name);
            hold.release();
            let reply = asking.await.unwrap();
            assert_eq!(reply.header("x-forethought-decision"), "allow", "{}", format.name);
            assert_eq!(reply.body, "data: {\"early\": true}\n\n");
            assert_eq!(upstream.seen().len(), 1, "{}", format.name);
            let [record] = proxy.records().await.try_into().unwrap();
            assert_eq!(record["upstream_contacted"], true);
            assert!(record["timings"]["upstream_ms"].is_number(), "{record}");
        }
    }
}

#[tokio::test]
async fn nothing_of_a_refused_answer_is_released() {
    for format in FORMATS {
        for stream in [false, true] {
            let hold = Hold::new();
            let guard = FakeGuard::reading().held(&hold);
            let upstream = upstream(false).await;
            let proxy = TestProxy::start(&guard, &upstream.url(), PARALLEL).await;
            let client = proxy.client();
            let body = format.ask("harm", stream).to_string();
            let asking = tokio::spawn(async move {
                client.send(Method::POST, format.target(stream), json_headers(), body).await
            });
            guard.begun(1).await;
            upstream.arrived(1).await;
            hold.release();
            let reply = asking.await.unwrap();
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert_eq!(
                (reply.status, reply.header("x-forethought-decision")),
                (StatusCode::OK, "refuse"),
                "{}",
                format.name
            );
            assert!(!text.contains("early") && text.contains("I can't help"), "{}: {text}", format.name);
            upstream.left(1).await;
            let [record] = proxy.records().await.try_into().unwrap();
            assert_eq!(
                (&record["decision"], &record["upstream_contacted"]),
                (&json!("refuse"), &json!(true))
            );
        }
    }
}

#[tokio::test]
async fn a_refusal_cancels_an_upstream_that_has_not_answered() {
    let hold = Hold::new();
    let guard = FakeGuard::scoring(1.0).held(&hold);
    let upstream = FakeUpstream::start(|_| Respond::Hang).await;
    let proxy = TestProxy::start(&guard, &upstream.url(), PARALLEL).await;
    let client = proxy.client();
    let asking = tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await });
    upstream.arrived(1).await;
    hold.release();
    assert_eq!(asking.await.unwrap().header("x-forethought-decision"), "refuse");
    upstream.left(1).await;
}

#[tokio::test]
async fn errors_wait_for_the_decision_too() {
    async fn check(guard: FakeGuard, toml: &str, expected: (u16, &str, &str)) {
        let hold = Hold::new();
        let guard = guard.held(&hold);
        let upstream = FakeUpstream::start(|_| {
            let response = Response::builder().status(418).header("content-type", "application/json");
            Respond::Whole(response.body(Bytes::from_static(b"{\"error\": {\"code\": \"teapot\"}}")).unwrap())
        })
        .await;
        let proxy = TestProxy::start(&guard, &upstream.url(), &format!("{PARALLEL}{toml}")).await;
        let client = proxy.client();
        let asking = tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await });
        upstream.arrived(1).await;
        assert!(!asking.is_finished());
        hold.release();
        let reply = asking.await.unwrap();
        let code = reply.code();
        let decision = reply.header("x-forethought-decision");
        assert_eq!((reply.status.as_u16(), code.as_str(), decision), expected, "{toml}");
        let [record] = proxy.records().await.try_into().unwrap();
        assert_eq!(record["upstream_contacted"], true);
    }
    let failing = || FakeGuard::failing(GuardError::Model("broken".to_owned()));
    check(FakeGuard::scoring(0.0), "", (418, "teapot", "allow")).await;
    check(FakeGuard::scoring(1.0), "", (200, "", "refuse")).await;
    check(FakeGuard::scoring(1.0), "policy.mode = \"monitor\"", (418, "teapot", "allow-monitored")).await;
    check(failing(), "", (403, "guard_failed", "deny")).await;
    check(failing(), "policy.on_failure = \"open\"", (418, "teapot", "allow-unguarded")).await;
    check(failing(), "policy.mode = \"monitor\"", (418, "teapot", "allow-monitored")).await;
}

#[tokio::test]
async fn what_is_denied_unread_is_not_sent() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), PARALLEL).await;
    let image = json!({"model": "m", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]});
    for (body, code) in [(image, "unreadable_content"), (json!({"messages": 1}), "bad_shape")] {
        let reply = proxy.client().chat(&body).await;
        assert_eq!(reply.code(), code);
    }
    assert!(upstream.seen().is_empty());
    assert!(proxy.records().await.iter().all(|record| record["upstream_contacted"] == false));
}

#[tokio::test]
async fn modes() {
    for (mode, decision, read) in [("monitor", "allow-monitored", 1), ("off", "allow-unguarded", 0)] {
        let guard = FakeGuard::scoring(1.0);
        let upstream = FakeUpstream::answering("{\"choices\": []}").await;
        let toml = format!("policy = {{ order = \"parallel\", mode = \"{mode}\" }}");
        let proxy = TestProxy::start(&guard, &upstream.url(), &toml).await;
        let reply = proxy.client().chat(&chat("hi", json!({}))).await;
        assert_eq!((reply.status.as_u16(), reply.header("x-forethought-decision")), (200, decision));
        assert_eq!((guard.seen().len(), upstream.seen().len()), (read, 1), "{mode}");
    }
}

#[tokio::test]
async fn what_a_policy_changes_is_sent_anew() {
    async fn check(sample: &str, config: &str, expected: (&str, usize, usize)) {
        let usual = FakeUpstream::answering("{\"from\": \"usual\"}").await;
        let other = FakeUpstream::answering("{\"from\": \"other\"}").await;
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/policies/built");
        let path = built.join(format!("{sample}.wasm"));
        let toml = format!(
            "{PARALLEL}[upstreams.other]\nurl = \"{}\"\n[[policy.plugins]]\npath = \"{}\"\nconfig = {config}\n",
            other.url(),
            path.display()
        );
        let hold = Hold::new();
        let guard = FakeGuard::scoring(0.4).held(&hold);
        let proxy = TestProxy::start(&guard, &usual.url(), &toml).await;
        let client = proxy.client();
        let body = chat("Write to ann@example.org", json!({}));
        let sent = body.to_string();
        let asking = tokio::spawn(async move { client.chat(&body).await });
        usual.arrived(1).await;
        hold.release();
        let reply = asking.await.unwrap();
        let (first, last) = (usual.seen()[0].clone(), usual.seen().last().unwrap().clone());
        assert_eq!(
            (reply.header("x-forethought-decision"), usual.seen().len(), other.seen().len()),
            expected
        );
        assert_eq!(first.body, sent.as_bytes());
        match expected.0 {
            "redirect" => {
                assert_eq!(
                    (reply.json()["from"].as_str(), &other.seen()[0].body),
                    (Some("other"), &first.body)
                );
            }
            decision => assert_ne!(last.body, first.body, "{decision}"),
        }
        assert_eq!(reply.status, 200);
        assert_eq!(proxy.records().await.len(), 1);
    }
    check("pii_redact", "{ below = 0.9 }", ("rewrite", 2, 0)).await;
    check("annotate", "{ from = 0.2, below = 0.9 }", ("annotate", 2, 0)).await;
    check("escalate", "{ upstream = \"other\", from = 0.3, to = 0.5 }", ("redirect", 1, 1)).await;
}

#[tokio::test]
async fn a_caller_that_leaves_frees_guard_and_upstream() {
    let guard = FakeGuard::hanging();
    let upstream = FakeUpstream::start(|_| Respond::Hang).await;
    let proxy = TestProxy::start(&guard, &upstream.url(), PARALLEL).await;
    let body = chat("hi", json!({})).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = proxy.connect(request.as_bytes()).await;
    guard.begun(1).await;
    upstream.arrived(1).await;
    drop(stream);
    guard.left(1).await;
    upstream.left(1).await;
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(
        (&record["decision"], &record["outcome"], &record["upstream_contacted"]),
        (&json!("none"), &json!("disconnected"), &json!(true))
    );
}

#[tokio::test]
async fn the_response_guard_reads_an_early_answer_too() {
    let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let upstream = FakeUpstream::start({
        let seen = seen.clone();
        move |request| {
            seen.lock().unwrap().push(request.headers.clone());
            let answer =
                json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "harm"}}]});
            let response = Response::builder().header("content-type", "application/json");
            Respond::Whole(response.body(Bytes::from(answer.to_string())).unwrap())
        }
    })
    .await;
    let hold = Hold::new();
    let guard = FakeGuard::reading().held(&hold);
    let toml = format!("{PARALLEL}response_guard.enabled = true");
    let proxy = TestProxy::start(&guard, &upstream.url(), &toml).await;
    let client = proxy.client();
    let asking = tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await });
    upstream.arrived(1).await;
    hold.release();
    let reply = asking.await.unwrap();
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "I can't help with that.");
    assert_eq!(seen.lock().unwrap()[0]["accept-encoding"], "identity");
}

#[tokio::test]
async fn the_embedded_model_begins_early_and_stops() {
    let hold = Hold::new();
    let guard = FakeGuard::finding(|_| Ok(evidence(1.0))).held(&hold);
    let model = FakeModel::telling(vec![forethought_core::generate::ChatEvent::Text("Well".to_owned())]);
    let proxy = TestProxy::embedded(&guard, &model, PARALLEL).await;
    let client = proxy.client();
    let body: Value = chat("hi", json!({"model": "embedded", "stream": true}));
    let asking = tokio::spawn(async move { client.chat(&body).await });
    while model.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    hold.release();
    let reply = asking.await.unwrap();
    assert!(!String::from_utf8_lossy(&reply.body).contains("Well"));
    model.left(1).await;
}

#[tokio::test]
async fn guard_first_sends_nothing_before_the_decision() {
    let hold = Hold::new();
    let guard = FakeGuard::scoring(1.0).held(&hold);
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    let client = proxy.client();
    let asking = tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await });
    guard.begun(1).await;
    hold.release();
    assert_eq!(asking.await.unwrap().header("x-forethought-decision"), "refuse");
    assert!(upstream.seen().is_empty());
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(record["upstream_contacted"], false);
}

#[tokio::test]
async fn a_slow_reader_of_an_early_answer_gets_all_of_it() {
    // More than any buffer on the way holds, sent long before the decision.
    let upstream = FakeUpstream::start(|_| {
        let (sender, pieces) = mpsc::unbounded_channel();
        (0..256).for_each(|_| sender.send(Ok(Bytes::from(vec![b'x'; 64 * 1024]))).unwrap());
        Respond::Pieces(Response::builder().header("content-type", "text/plain"), pieces)
    })
    .await;
    let hold = Hold::new();
    let guard = FakeGuard::scoring(0.0).held(&hold);
    let proxy = TestProxy::start(&guard, &upstream.url(), PARALLEL).await;
    let client = proxy.client();
    let asking = tokio::spawn(async move {
        let body = chat("hi", json!({})).to_string();
        client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap()
    });
    upstream.arrived(1).await;
    hold.release();
    let body = asking.await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 256 * 64 * 1024);
}
