//! The guard as a layer around an axum app: what reaches the app, and what does not.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, extract::Extension, routing::post};
use bytes::Bytes;
use forethought_core::guard::{Guard, GuardError};
use forethought_proxy::{
    CheckedConfig,
    config::{Flag, Sources},
    layer::GuardLayer,
};
use forethought_tests::{FakeGuard, chat};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// What reached the app.
type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

fn layer(guard: impl Guard, audit: &str, more: &[(&str, &str)]) -> GuardLayer {
    let settings = [("audit.path", audit), ("paths.pass", "* /**")];
    let flag = |&(key, value): &(&str, &str)| Flag {
        name: "test".to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let flags = settings.iter().chain(more).map(flag).collect();
    let config = CheckedConfig::load(&Sources { flags, ..Sources::default() }).unwrap();
    GuardLayer::new(config, Arc::new(guard)).unwrap()
}

/// An app of its own, with a chat API and another path.
fn app(layer: GuardLayer) -> (Router, Seen) {
    let seen = Seen::default();
    let keep = seen.clone();
    let answer = move |Extension(who): Extension<&'static str>, headers: HeaderMap, body: Bytes| {
        keep.lock().unwrap().push((headers, body));
        async move {
            let answer = json!({"choices": [{"message": {"role": "assistant", "content": who}}]});
            ([(header::CONTENT_TYPE, "application/json")], answer.to_string())
        }
    };
    let router = Router::new()
        .route("/v1/chat/completions", post(answer))
        .route("/hello", post(|body: String| async move { body }))
        .layer(layer)
        .layer(Extension("the app"));
    (router, seen)
}

async fn ask(app: &Router, path: &str, body: &Value) -> (Response<()>, Bytes) {
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, "application/json")
        .header("x-own", "kept")
        .body(Body::from(body.to_string()))
        .unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    (Response::from_parts(head, ()), body.collect().await.unwrap().to_bytes())
}

fn decision(response: &Response<()>) -> &str {
    response.headers().get("x-forethought-decision").map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_what_is_allowed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.jsonl").display().to_string();
    let layer = layer(FakeGuard::reading(), &audit, &[]);
    let (app, seen) = app(layer.clone());

    let body = chat("hello", json!({}));
    let (response, answer) = ask(&app, "/v1/chat/completions", &body).await;
    assert_eq!((response.status(), decision(&response)), (StatusCode::OK, "allow"));
    // The request is whole: its extensions, its headers, its body byte for byte.
    assert!(String::from_utf8_lossy(&answer).contains("the app"));
    let (headers, received) = seen.lock().unwrap().remove(0);
    assert_eq!((headers["x-own"].to_str().unwrap(), received), ("kept", Bytes::from(body.to_string())));

    let (response, answer) = ask(&app, "/v1/chat/completions", &chat("do harm", json!({}))).await;
    assert_eq!((response.status(), decision(&response)), (StatusCode::OK, "refuse"));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "content_filter");
    assert!(seen.lock().unwrap().is_empty());

    let (response, answer) = ask(&app, "/hello", &json!("you")).await;
    assert_eq!((decision(&response), &answer[..]), ("pass", &b"\"you\""[..]));
    // The app's own answer, and a path that a server might take for a guarded one.
    assert_eq!(ask(&app, "/nothing", &json!({})).await.0.status(), StatusCode::NOT_FOUND);

    layer.proxy().audit().flush().await;
    let records = std::fs::read_to_string(&audit).unwrap();
    let decisions: Vec<String> = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["decision"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(decisions[..3], ["allow", "refuse", "pass"]);
    let metrics = String::from_utf8(layer.proxy().render_metrics().unwrap()).unwrap();
    assert!(metrics.contains("decision=\"refuse\",format=\"openai-chat\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fails_closed_and_reads_answers_too() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit.jsonl").display().to_string();
    let broken = FakeGuard::failing(GuardError::Model("broken".to_owned()));
    let (app_of_broken, seen) = app(layer(broken, &audit, &[]));
    let (response, _) = ask(&app_of_broken, "/v1/chat/completions", &chat("hello", json!({}))).await;
    assert_eq!((response.status(), decision(&response)), (StatusCode::FORBIDDEN, "deny"));
    assert!(seen.lock().unwrap().is_empty());

    // A guard that finds harm in the answer alone.
    let guard = FakeGuard::finding(|conversation| {
        let text = format!("{:?}", conversation.parts().filter_map(|(_, p)| p.text()).collect::<Vec<_>>());
        Ok(forethought_tests::evidence(if text.contains("the app") { 0.97 } else { 0.01 }))
    });
    let (reading, seen) = app(layer(guard, &audit, &[("response_guard.enabled", "true")]));
    let (response, answer) = ask(&reading, "/v1/chat/completions", &chat("hello", json!({}))).await;
    assert_eq!(decision(&response), "refuse");
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert!(!String::from_utf8_lossy(&answer).contains("the app"));
}
