//! The embedded model behind the OpenAI chat API.

#![allow(clippy::unwrap_used)] // helpers of tests

use forethought_core::generate::{ChatEvent, Finish, GenerateError};
use forethought_tests::{FakeGuard, FakeModel, TestProxy, chat};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

fn request(more: Value) -> Value {
    let mut body = chat("hi", more);
    body["model"] = "embedded".into();
    body
}

#[tokio::test]
async fn a_whole_answer() {
    let model = FakeModel::saying(&["Hel", "lo."]);
    let proxy =
        TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "upstream.embedded.max_tokens = 9").await;
    let reply = proxy.client().chat(&request(json!({"seed": 3, "stop": ["x"]}))).await;
    assert_eq!((reply.status, reply.header("x-forethought-decision")), (StatusCode::OK, "allow"));
    let body = reply.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "embedded");
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": "Hello.", "refusal": null})
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"], json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}));
    let [seen] = model.seen().try_into().unwrap_or_else(|_| panic!("one request"));
    assert_eq!((seen.max_tokens, seen.sampling.seed, seen.stop), (9, 3, vec!["x".to_owned()]));
    assert_eq!((seen.messages[0].role.as_str(), seen.messages[0].content.as_str()), ("user", "hi"));
}

#[tokio::test]
async fn a_streamed_answer() {
    let model = FakeModel::saying(&["Hel", "lo."]);
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
    let client = proxy.client();
    let reply = client.chat(&request(json!({"stream": true}))).await;
    assert_eq!(reply.header("content-type"), "text/event-stream; charset=utf-8");
    let events = reply.events();
    let deltas: Vec<_> = events.iter().map(|e| e["choices"][0]["delta"].clone()).collect();
    assert_eq!(
        deltas,
        [
            json!({"role": "assistant", "content": "", "refusal": null}),
            json!({"content": "Hel"}),
            json!({"content": "lo."}),
            json!({}),
            Value::Null,
        ]
    );
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[4], "[DONE]");
    assert!(events[..4].iter().all(|e| e["id"] == events[0]["id"] && e.get("usage").is_none()));

    let reply =
        client.chat(&request(json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    let events = reply.events();
    assert!(events[..4].iter().all(|e| e["usage"].is_null() && e.get("usage").is_some()));
    assert_eq!(events[4]["choices"], json!([]));
    assert_eq!(events[4]["usage"], json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}));
    assert_eq!(events[5], "[DONE]");
}

#[tokio::test]
async fn failures_have_their_status() {
    async fn check(error: GenerateError, status: u16, code: &str) {
        for stream in [false, true] {
            let model = FakeModel::telling(vec![ChatEvent::Failed(error.clone())]);
            let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
            let reply = proxy.client().chat(&request(json!({"stream": stream}))).await;
            assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{error}");
        }
    }
    check(GenerateError::Overloaded { waiting: 16 }, 503, "model_overloaded").await;
    check(GenerateError::TooLong { tokens: 9, context: 8 }, 400, "context_length_exceeded").await;
    check(GenerateError::Template("x".to_owned()), 400, "bad_messages").await;
    check(GenerateError::Model("x".to_owned()), 500, "model_failed").await;
    check(GenerateError::Stopped, 503, "shutting_down").await;
}

#[tokio::test]
async fn a_failure_in_the_middle_of_a_stream_is_an_event() {
    let failed = ChatEvent::Failed(GenerateError::Model("x".to_owned()));
    let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned()), failed]);
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
    let events = proxy.client().chat(&request(json!({"stream": true}))).await.events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "model_failed"); // and no [DONE] after it
}

#[tokio::test]
async fn the_answer_that_met_the_limit_says_so() {
    let done = ChatEvent::Done { finish: Finish::Length, prompt_tokens: 1, completion_tokens: 1 };
    let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned()), done]);
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
    let body = proxy.client().chat(&request(json!({}))).await.json();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn other_requests() {
    let proxy =
        TestProxy::embedded(&FakeGuard::scoring(0.0), &FakeModel::saying(&[]), "paths.pass = [\"* /**\"]")
            .await;
    let client = proxy.client();
    let get = async |path| client.send(Method::GET, path, HeaderMap::new(), "").await;
    assert_eq!(get("/v1/models").await.json()["data"][0]["id"], "embedded");
    assert_eq!(get("/v1/models/embedded").await.json()["id"], "embedded");
    assert_eq!(get("/v1/models/gpt-4").await.code(), "model_not_found");
    assert_eq!(get("/v1/files").await.code(), "not_found");
    let reply = client.chat(&chat("hi", json!({}))).await; // names another model
    assert_eq!((reply.status, reply.code().as_str()), (StatusCode::NOT_FOUND, "model_not_found"));
    let reply = client.chat(&request(json!({"n": 2}))).await;
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (StatusCode::BAD_REQUEST, Some("n")));
}
