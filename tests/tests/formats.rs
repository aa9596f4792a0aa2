//! What holds for every wire format: it is guarded, and answered in its own shape.

#![allow(clippy::unwrap_used)] // helpers of tests

use forethought_core::{
    generate::{ChatEvent, Finish, GenerateError},
    guard::GuardError,
};
use forethought_tests::{
    FORMATS, FakeGuard, FakeModel, FakeUpstream, Format, Reply, TestProxy, json_headers,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

const REFUSAL: &str = "I can't help with that.";

async fn post(proxy: &TestProxy, target: &str, body: &Value) -> Reply {
    proxy.client().send(Method::POST, target, json_headers(), body.to_string()).await
}

async fn ask(proxy: &TestProxy, format: &Format, text: &str, stream: bool) -> Reply {
    post(proxy, format.target(stream), &format.ask(text, stream)).await
}

#[tokio::test]
async fn allowed_requests_go_up_byte_for_byte() {
    let upstream = FakeUpstream::answering("{\"unknown\":  1.0 } ").await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), "").await;
    for (index, format) in FORMATS.iter().enumerate() {
        let body = format!(" {}\n", format.ask("hi", false));
        let reply = proxy.client().send(Method::POST, format.path, json_headers(), body.clone()).await;
        assert_eq!(reply.header("x-forethought-decision"), "allow", "{}", format.name);
        assert_eq!(reply.body, "{\"unknown\":  1.0 } ");
        let seen = &upstream.seen()[index];
        assert_eq!((seen.uri.path(), &seen.body[..]), (format.path, body.as_bytes()));
    }
    let records = proxy.records().await;
    let named: Vec<_> = records.iter().map(|r| r["format"].as_str().unwrap()).collect();
    assert_eq!(named, FORMATS.map(|format| format.name));
}

/// Refusals as they are on the wire, in `golden/formats/`. Set `UPDATE_GOLDEN` to record them anew.
#[tokio::test]
async fn refusals_equal_their_transcripts() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), "").await;
    let array =
        Format { name: "gemini", stream_path: "/v1beta/models/embedded:streamGenerateContent", ..FORMATS[6] };
    let cases = FORMATS.iter().flat_map(|format| {
        [
            (format, false, format!("{}.json", format.name)),
            (format, true, format!("{}-stream.txt", format.name)),
        ]
    });
    for (format, stream, file) in cases.chain([(&array, true, "gemini-array.json".to_owned())]) {
        let reply = ask(&proxy, format, "harm", stream).await;
        assert_eq!(reply.status, StatusCode::OK, "{file}");
        assert_eq!(reply.header("x-forethought-decision"), "refuse", "{file}");
        let transcript = format!("{}\n\n{}", reply.header("content-type"), normalised(&reply));
        let path = format!("{}/golden/formats/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &transcript).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(transcript == golden, "the answer differs from {path}:\n{transcript}");
        if !stream {
            assert_eq!(format.text(&reply.json()), REFUSAL, "{file}");
        }
    }
    assert!(upstream.seen().is_empty());
}

/// Takes out ids and times.
fn normalised(reply: &Reply) -> String {
    let text = std::str::from_utf8(&reply.body).unwrap();
    let text = text.replace(reply.header("x-forethought-id"), "ID");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\"created") {
        let colon = at + rest[at..].find(':').unwrap() + 1;
        out.push_str(&rest[..colon]);
        out.push_str("TIME");
        // What follows is a number or a string without commas.
        rest = &rest[colon..];
        rest = &rest[rest.find([',', '}']).unwrap()..];
    }
    out + rest
}

#[tokio::test]
async fn every_answer_asked_for_is_refused() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(1.0), &upstream.url(), "").await;
    let body = json!({"prompt": ["a", "b"], "n": 2});
    let choices = post(&proxy, "/v1/completions", &body).await.json()["choices"].clone();
    let shown: Vec<_> = choices.as_array().unwrap().iter().map(|c| (&c["index"], &c["text"])).collect();
    let text = json!(REFUSAL);
    assert_eq!(shown, [(&json!(0), &text), (&json!(1), &text), (&json!(2), &text), (&json!(3), &text)]);

    let body = json!({"contents": [], "generationConfig": {"candidateCount": 2}});
    let reply = post(&proxy, "/v1beta/models/m:generateContent", &body).await.json();
    assert_eq!(reply["candidates"][1]["index"], 1);
    let target = "/v1beta/models/m:streamGenerateContent?alt=sse";
    let events = post(&proxy, target, &body).await.events();
    let told: Vec<_> = events.iter().map(|e| &e["candidates"][0]["index"]).collect();
    assert_eq!(told, [&json!(0), &json!(1), &json!(0)]);
    assert_eq!(events[2]["candidates"][1]["finishReason"], "SAFETY");
}

#[tokio::test]
async fn refusals_as_configured() {
    let toml = "refusal.status = 403\nrefusal.expose_assessment = true";
    let denying = TestProxy::start(&FakeGuard::scoring(0.9), "http://127.0.0.1:9/v1", toml).await;
    let toml = "refusal.finish_reason = \"stop\"\nrefusal.expose_assessment = true";
    let stopping = TestProxy::start(&FakeGuard::scoring(0.9), "http://127.0.0.1:9/v1", toml).await;
    for format in &FORMATS {
        for stream in [false, true] {
            let reply = ask(&denying, format, "hi", stream).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{}", format.name);
            assert_eq!(reply.header("x-should-retry"), "false");
            assert_eq!(format.error(&reply.json()), REFUSAL, "{}", format.name);
            assert_eq!(reply.json()["forethought"]["hazard"], "cyber", "{}", format.name);

            let text = String::from_utf8(ask(&stopping, format, "hi", stream).await.body.to_vec()).unwrap();
            assert_eq!(text.matches("\"forethought\":{\"score\":0.9").count(), 1, "{}: {text}", format.name);
            for word in ["content_filter", "\"stop_reason\":\"refusal\"", "SAFETY"] {
                assert!(!text.contains(word), "{}: {text}", format.name);
            }
        }
    }
}

#[tokio::test]
async fn errors_are_told_in_the_callers_own_shape() {
    let guard = FakeGuard::failing(GuardError::Overloaded { waiting: 64 });
    let proxy = TestProxy::start(&guard, "http://127.0.0.1:9/v1", "").await;
    for format in &FORMATS {
        for stream in [false, true] {
            let reply = ask(&proxy, format, "hi", stream).await;
            assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "2"), "{}", format.name);
            let body = reply.json();
            assert!(format.error(&body).contains("overloaded"), "{}: {body}", format.name);
            let kind = match format.name {
                "anthropic-messages" => &body["error"]["type"],
                "gemini" => &body["error"]["status"],
                name if name.starts_with("ollama") => &Value::Null,
                _ => &body["error"]["code"],
            };
            let expected = match format.name {
                "anthropic-messages" => json!("overloaded_error"),
                "gemini" => json!("UNAVAILABLE"),
                name if name.starts_with("ollama") => Value::Null,
                _ => json!("guard_overloaded"),
            };
            assert_eq!(*kind, expected, "{}", format.name);
        }
        // Named by the field of this format.
        let mut body = format.ask("hi", false);
        body[format.input] = json!(5);
        let reply = post(&proxy, format.path, &body).await;
        assert!(matches!(reply.status.as_u16(), 400 | 403), "{}", format.name);
        assert!(!format.error(&reply.json()).is_empty(), "{}", format.name);
    }
    // A path that nobody knows is denied in the shape of the API that seems to be meant.
    let reply = post(&proxy, "/api/pull", &json!({})).await;
    assert!(reply.json()["error"].as_str().unwrap().contains("`POST /api/pull`"), "{:?}", reply.body);
    let reply = post(&proxy, "/v1/messages/batches", &json!({})).await;
    assert_eq!((reply.status, reply.json()["type"].as_str()), (StatusCode::FORBIDDEN, Some("error")));
}

#[tokio::test]
async fn what_no_model_answers_passes_and_is_recorded() {
    let upstream = FakeUpstream::answering("{\"input_tokens\": 3}").await;
    let guard = FakeGuard::scoring(1.0);
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    let paths = [
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/files",
        "/api/embed",
        "/v1beta/models/m:countTokens",
    ];
    for path in paths {
        let reply = post(&proxy, path, &json!({"input": "harm"})).await;
        assert_eq!(
            (reply.status, reply.header("x-forethought-decision")),
            (StatusCode::OK, "pass"),
            "{path}"
        );
    }
    assert!(guard.seen().is_empty());
    let records = proxy.records().await;
    let noted: Vec<_> =
        records.iter().map(|r| (r["path"].as_str().unwrap(), r["decision"].as_str().unwrap())).collect();
    assert_eq!(noted, paths.map(|path| (path, "pass")));
    assert!(records.iter().all(|record| record.get("format").is_none()));
}

#[tokio::test]
async fn the_embedded_model_speaks_every_format() {
    let model = FakeModel::saying(&["Hel", "lo."]);
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
    for format in &FORMATS {
        let reply = ask(&proxy, format, "hi", false).await;
        assert_eq!(reply.status, StatusCode::OK, "{}: {:?}", format.name, reply.body);
        let body = reply.json();
        assert_eq!(format.text(&body), "Hello.", "{}", format.name);
        let counts = match format.name {
            "openai-chat" | "openai-completions" => ["/usage/prompt_tokens", "/usage/completion_tokens"],
            "openai-responses" | "anthropic-messages" => ["/usage/input_tokens", "/usage/output_tokens"],
            "gemini" => ["/usageMetadata/promptTokenCount", "/usageMetadata/candidatesTokenCount"],
            _ => ["/prompt_eval_count", "/eval_count"],
        };
        assert_eq!(
            counts.map(|at| body.pointer(at).cloned()),
            [Some(json!(7)), Some(json!(2))],
            "{}",
            format.name
        );

        let reply = ask(&proxy, format, "hi", true).await;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let (first, second) = (text.find("Hel\"").unwrap(), text.find("lo.\"").unwrap());
        assert!(first < second, "{}: {text}", format.name);
        let end = match format.name {
            "openai-chat" | "openai-completions" => "data: [DONE]\n\n",
            "openai-responses" => "}}\n\n",
            "anthropic-messages" => "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
            "gemini" => "\"responseId\":",
            _ => "\"done\":true",
        };
        let last = &text[text.len().saturating_sub(600)..];
        assert!(last.contains(end), "{}: {text}", format.name);
    }
    assert_eq!(model.seen().len(), 2 * FORMATS.len());
    assert!(model.seen().iter().all(|seen| seen.messages.len() == 1 && seen.messages[0].content == "hi"));
}

#[tokio::test]
async fn what_ends_an_answer_is_said_in_every_format() {
    for (finish, words) in [
        (
            Finish::Stop,
            ["\"stop\"", "\"stop\"", "response.completed", "end_turn", "\"stop\"", "\"stop\"", "STOP"],
        ),
        (
            Finish::Length,
            [
                "\"length\"",
                "\"length\"",
                "response.incomplete",
                "max_tokens",
                "\"length\"",
                "\"length\"",
                "MAX_TOKENS",
            ],
        ),
    ] {
        let done = ChatEvent::Done { finish, prompt_tokens: 1, completion_tokens: 1 };
        let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned()), done]);
        let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
        for (format, word) in FORMATS.iter().zip(words) {
            for stream in [false, true] {
                let text = String::from_utf8(ask(&proxy, format, "hi", stream).await.body.to_vec()).unwrap();
                let word = if stream { word } else { word.trim_start_matches("response.") };
                assert!(text.contains(word), "{} {stream}: {text}", format.name);
            }
        }
    }
}

#[tokio::test]
async fn failures_of_the_embedded_model_are_told_in_every_format() {
    let broken = GenerateError::Model("x".to_owned());
    for events in [
        vec![ChatEvent::Failed(broken.clone())],
        vec![ChatEvent::Text("Well".to_owned()), ChatEvent::Failed(broken)],
    ] {
        let at_once = events.len() == 1;
        let model = FakeModel::telling(events);
        let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &model, "").await;
        for format in &FORMATS {
            let reply = ask(&proxy, format, "hi", false).await;
            assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", format.name);
            assert!(format.error(&reply.json()).contains("failed"), "{}", format.name);
            let reply = ask(&proxy, format, "hi", true).await;
            assert_eq!(reply.status.as_u16(), if at_once { 500 } else { 200 }, "{}", format.name);
            let text = String::from_utf8(reply.body.to_vec()).unwrap();
            let last = text.trim_end().lines().last().unwrap();
            let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).unwrap();
            assert!(format.error(&last).contains("failed"), "{}: {text}", format.name);
            assert!(!text.contains("[DONE]") && !text.contains("completed"), "{}: {text}", format.name);
        }
    }
}

#[tokio::test]
async fn the_embedded_model_is_listed_in_every_api() {
    let proxy = TestProxy::embedded(&FakeGuard::scoring(0.0), &FakeModel::saying(&[]), "").await;
    let get =
        async |path, headers: HeaderMap| proxy.client().send(Method::GET, path, headers, "").await.json();
    let plain = HeaderMap::new;
    let anthropic = || {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("anthropic-version"),
            "2023-06-01".parse().unwrap(),
        )])
    };
    assert_eq!(get("/v1/models", plain()).await["data"][0]["object"], "model");
    assert_eq!(get("/v1/models", anthropic()).await["data"][0]["type"], "model");
    assert_eq!(get("/v1/models/x", anthropic()).await["error"]["type"], "not_found_error");
    assert_eq!(get("/api/tags", plain()).await["models"][0]["name"], "embedded");
    assert_eq!(get("/v1beta/models", plain()).await["models"][0]["name"], "models/embedded");
    assert_eq!(get("/v1beta/models/x", plain()).await["error"]["status"], "NOT_FOUND");
}
