//! Refused requests are answered in the caller's own format, and never reach the upstream.

#![allow(clippy::unwrap_used)] // helpers of tests

use forethought_tests::{FakeGuard, FakeUpstream, Reply, TestProxy, chat};
use http::StatusCode;
use serde_json::{Value, json};

/// A refused request's answer under a configuration.
async fn refused(toml: &str, more: Value) -> Reply {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.9), &upstream.url(), toml).await;
    let reply = proxy.client().chat(&chat("hi", more)).await;
    assert_eq!(reply.header("x-forethought-decision"), "refuse");
    assert!(upstream.seen().is_empty());
    reply
}

#[tokio::test]
async fn a_whole_refusal() {
    let reply = refused("policy.message = \"Not that.\"", json!({})).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-type"), "application/json");
    let mut body = reply.json();
    assert_eq!(body["id"], format!("chatcmpl-{}", reply.header("x-forethought-id")));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    body["id"].take();
    body["created"].take();
    assert_eq!(
        body,
        json!({
            "id": null, "object": "chat.completion", "created": null, "model": "some-model",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Not that.", "refusal": null},
                "logprobs": null,
                "finish_reason": "content_filter",
            }],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        })
    );
}

#[tokio::test]
async fn a_refusal_for_each_answer_asked_for() {
    let body = refused("", json!({"n": 3})).await.json();
    let indices: Vec<_> = body["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);

    let events = refused("", json!({"n": 2, "stream": true})).await.events();
    let shown = |event: &Value| match event["choices"][0]["index"].as_u64() {
        Some(index) => format!("{index} {}", event["choices"][0]["finish_reason"]),
        None => event.to_string(),
    };
    let shown: Vec<_> = events.iter().map(shown).collect();
    let (null, end) = ("null", "\"content_filter\"");
    assert_eq!(
        shown,
        [
            format!("0 {null}"),
            format!("0 {null}"),
            format!("0 {end}"),
            format!("1 {null}"),
            format!("1 {null}"),
            format!("1 {end}"),
            "\"[DONE]\"".to_owned(),
        ]
    );
}

/// The raw answer to a refused stream, as recorded in `golden/`. Set `UPDATE_GOLDEN` to record it anew.
#[tokio::test]
async fn a_streamed_refusal_equals_its_transcript() {
    for (name, more) in [
        ("refused_stream", json!({"stream": true})),
        ("refused_stream_with_usage", json!({"stream": true, "stream_options": {"include_usage": true}})),
    ] {
        let proxy = TestProxy::start(&FakeGuard::scoring(0.9), "http://127.0.0.1:9/v1", "").await;
        let body = chat("hi", more).to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = normalised(&proxy.raw(request.as_bytes()).await);
        let path = format!("{}/golden/{name}.http", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &answer).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        assert!(answer == golden, "the answer differs from {path}:\n{answer}");
    }
}

/// Takes out what differs from run to run: ids, times, and the length that follows from neither.
fn normalised(answer: &str) -> String {
    let id = answer.split("x-forethought-id: ").nth(1).and_then(|rest| rest.get(..36)).unwrap();
    let answer = answer.replace(id, "00000000-0000-7000-8000-000000000000");
    let mut lines: Vec<String> = answer.split("\r\n").map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("date: ") {
            *line = "date: Thu, 01 Jan 1970 00:00:00 GMT".to_owned();
        }
    }
    let answer = lines.join("\r\n");
    let created = answer.split("\"created\":").nth(1).and_then(|rest| rest.get(..10)).unwrap().to_owned();
    answer.replace(&created, "1000000000")
}

#[tokio::test]
async fn refusals_as_configured() {
    let reply = refused("refusal.field = \"refusal\"\nrefusal.finish_reason = \"stop\"", json!({})).await;
    let choice = &reply.json()["choices"][0];
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["refusal"], "I can't help with that.");
    assert_eq!(choice["finish_reason"], "stop");

    let events = refused("refusal.field = \"refusal\"", json!({"stream": true})).await.events();
    assert_eq!(events[1]["choices"][0]["delta"], json!({"refusal": "I can't help with that."}));

    let reply = refused("refusal.status = 403", json!({"stream": true})).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert_eq!(reply.header("x-should-retry"), "false");
    assert_eq!(
        reply.json(),
        json!({"error": {
            "message": "I can't help with that.",
            "type": "permission_error",
            "param": "messages",
            "code": "content_filter",
        }})
    );
}

#[tokio::test]
async fn the_assessment_is_shown_only_where_configured() {
    let expected = json!({
        "score": 0.9, "verdict": "harmful", "hazard": "cyber",
        "understanding": "The user wants something.", "assessment": "Someone would be hurt.",
    });
    let toml = "refusal.expose_assessment = true";
    assert_eq!(refused(toml, json!({})).await.json()["forethought"], expected);
    assert_eq!(
        refused(&format!("{toml}\nrefusal.status = 403"), json!({})).await.json()["forethought"],
        expected
    );
    let events = refused(toml, json!({"stream": true})).await.events();
    assert_eq!(events[2]["forethought"], expected);
    assert!(events[0].get("forethought").is_none());
    for more in [json!({}), json!({"stream": true})] {
        let body = refused("", more).await.body;
        assert!(!String::from_utf8_lossy(&body).contains("forethought"));
    }
}

#[tokio::test]
async fn thresholds_of_hazards_count() {
    let upstream = FakeUpstream::answering("{}").await;
    let toml = "[policy]\nthreshold = 0.1\nhazards = { cyber = 0.95 }";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.9), &upstream.url(), toml).await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!(reply.header("x-forethought-decision"), "allow");
}
