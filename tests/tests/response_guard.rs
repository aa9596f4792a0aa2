//! The response guard: what a model wrote is read before it is sent on, and cut in the answer's own format.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use forethought_core::{conversation::Part, guard::GuardError};
use forethought_tests::{
    FORMATS, FakeGuard, FakeModel, FakeUpstream, Reply, Respond, TestProxy, chat, evidence, json_headers,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const ON: &str = "[response_guard]\nenabled = true\nhold_bytes = 5\noverlap_bytes = 4\n";
const REFUSAL: &str = "I can't help with that.";

/// An upstream that answers with a stream of these events.
async fn streaming(events: Vec<Value>) -> FakeUpstream {
    FakeUpstream::start(move |_| {
        let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        let response = Response::builder().header("content-type", "text/event-stream");
        Respond::Whole(response.body(Bytes::from(body + "data: [DONE]\n\n")).unwrap())
    })
    .await
}

/// An upstream that answers with this.
async fn answering(content_type: &'static str, encoding: &'static str, body: &'static str) -> FakeUpstream {
    FakeUpstream::start(move |_| {
        let response =
            Response::builder().header("content-type", content_type).header("content-encoding", encoding);
        Respond::Whole(response.body(Bytes::from_static(body.as_bytes())).unwrap())
    })
    .await
}

fn delta(index: usize, delta: Value) -> Value {
    json!({"id": "chatcmpl-up", "created": 7, "model": "up",
        "choices": [{"index": index, "delta": delta, "finish_reason": null}]})
}

fn finish(index: usize) -> Value {
    json!({"id": "chatcmpl-up", "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
}

async fn ask(upstream: &FakeUpstream, guard: &FakeGuard, toml: &str, more: Value) -> Reply {
    let proxy = TestProxy::start(guard, &upstream.url(), toml).await;
    proxy.client().chat(&chat("hi", more)).await
}

/// What choices say in a stream, and how each ends.
fn told(reply: &Reply) -> Vec<(String, Vec<String>)> {
    let mut told: Vec<(String, Vec<String>)> = vec![];
    for event in reply.events().iter().filter(|event| event.is_object()) {
        for choice in event["choices"].as_array().unwrap() {
            let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
            told.resize(told.len().max(index + 1), Default::default());
            told[index].0 += choice["delta"]["content"].as_str().unwrap_or_default();
            told[index].1.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
    }
    told
}

#[tokio::test]
async fn replies_are_read_and_cut_in_every_format() {
    let model = FakeModel::saying(&["Hello", " there,", " now comes", " harm", " and more."]);
    let proxy = TestProxy::embedded(&FakeGuard::reading(), &model, ON).await;
    let client = proxy.client();
    for format in &FORMATS {
        let post = async |stream| {
            let body = format.ask("hi", stream).to_string();
            client.send(Method::POST, format.target(stream), json_headers(), body).await
        };
        let reply = post(false).await;
        assert_eq!(reply.header("x-forethought-decision"), "refuse", "{}", format.name);
        assert_eq!(format.text(&reply.json()), REFUSAL, "{}", format.name);

        let text = String::from_utf8(post(true).await.body.to_vec()).unwrap();
        assert!(text.contains(" there,") && text.contains(REFUSAL), "{}: {text}", format.name);
        for held in ["now comes", "harm", "and more"] {
            assert!(!text.contains(held), "{}: {text}", format.name);
        }
    }
    for record in proxy.records().await {
        assert_eq!(record["reply"]["decision"], "refuse", "{record}");
        assert_eq!(record["outcome"], "finished", "{record}");
    }
}

#[tokio::test]
async fn harmless_replies_go_through_byte_for_byte() {
    let model = FakeModel::saying(&["Hello", " there,", " and more."]);
    let guarded = TestProxy::embedded(&FakeGuard::reading(), &model, ON).await;
    let plain = TestProxy::embedded(&FakeGuard::reading(), &model, "").await;
    for format in &FORMATS {
        for stream in [false, true] {
            let body = format.ask("hi", stream).to_string();
            let target = format.target(stream);
            let send = async |proxy: &TestProxy| {
                let reply = proxy.client().send(Method::POST, target, json_headers(), body.clone()).await;
                String::from_utf8(reply.body.to_vec()).unwrap()
            };
            // Ids and times differ from answer to answer; their lengths don't.
            let (guarded, plain) = (send(&guarded).await, send(&plain).await);
            assert_eq!(guarded.len(), plain.len(), "{}: {guarded}\n{plain}", format.name);
        }
    }
}

#[tokio::test]
async fn an_upstreams_own_bytes_are_sent_on() {
    const STREAM: &str = ": hi\r\n\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well \"}}],  \"x\":1}\r\n\r\n\
                          event: odd\ndata: [1, 2]\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n";
    for size in [1, 7, STREAM.len()] {
        let upstream = FakeUpstream::start(move |_| {
            let (sender, pieces) = mpsc::unbounded_channel();
            for piece in STREAM.as_bytes().chunks(size) {
                sender.send(Ok(Bytes::copy_from_slice(piece))).unwrap();
            }
            Respond::Pieces(Response::builder().header("content-type", "text/event-stream"), pieces)
        })
        .await;
        let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({"stream": true})).await;
        assert_eq!(reply.body, STREAM);
        // What is compressed could not be read.
        assert_eq!(upstream.seen()[0].headers["accept-encoding"], "identity");
    }
}

#[tokio::test]
async fn every_answer_is_ended() {
    // The first is complete before the second does harm; the third was not begun.
    let upstream = streaming(vec![
        delta(0, json!({"role": "assistant", "content": "All is well."})),
        finish(0),
        delta(1, json!({"content": "Well then."})),
        delta(1, json!({"content": " Some more."})),
        delta(1, json!({"content": " harm"})),
    ])
    .await;
    let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({"stream": true, "n": 3})).await;
    let told = told(&reply);
    assert_eq!(told[0], ("All is well.".to_owned(), vec!["stop".to_owned()]));
    assert_eq!(told[1], (format!("Well then.{REFUSAL}"), vec!["content_filter".to_owned()]));
    assert_eq!(told[2], (REFUSAL.to_owned(), vec!["content_filter".to_owned()]));
    let events = reply.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    // The end is known by the same name.
    assert!(events.iter().filter(|e| e.is_object()).all(|e| e["id"] == "chatcmpl-up"), "{events:?}");
}

#[tokio::test]
async fn calls_and_reasoning_are_read_too() {
    for harm in [
        json!({"reasoning_content": "to do harm"}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\": \"harm\"}"}}]}),
        json!({"function_call": {"arguments": "harm"}}),
        json!({"refusal": "harm"}),
        json!({"something_new": {"says": "harm"}}),
    ] {
        let upstream = streaming(vec![delta(0, harm.clone()), finish(0)]).await;
        let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({"stream": true})).await;
        assert_eq!(told(&reply), [(REFUSAL.to_owned(), vec!["content_filter".to_owned()])], "{harm}");
    }
    // In pieces, as arguments come.
    let piece = |text: &str| delta(0, json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}));
    let upstream = streaming(["{\"x\"", ":\"ha", "r", "m\"}"].map(piece).to_vec()).await;
    let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({"stream": true})).await;
    assert!(!String::from_utf8_lossy(&reply.body).contains(":\\\"ha"), "{:?}", reply.body);
}

#[tokio::test]
async fn the_guard_reads_the_reply_in_its_context() {
    let upstream = streaming(vec![delta(0, json!({"content": "Hello there."})), finish(0)]).await;
    let guard = FakeGuard::reading();
    ask(&upstream, &guard, ON, json!({"stream": true})).await;
    let seen = guard.seen();
    let texts: Vec<_> =
        seen[1].parts().map(|(role, part)| (role.label(), Part::text(part).unwrap())).collect();
    assert_eq!(texts, [("User", "hi"), ("Assistant", "Hello there.")]);
}

#[tokio::test]
async fn a_reply_that_cannot_be_judged() {
    let failing = || {
        FakeGuard::finding(|conversation| {
            let replied = conversation.parts().any(|(role, _)| role.label() == "Assistant");
            if replied { Err(GuardError::Model("broken".to_owned())) } else { Ok(evidence(0.0)) }
        })
    };
    let events = vec![delta(0, json!({"content": "Hello there."})), finish(0)];
    let upstream = streaming(events.clone()).await;
    let reply = ask(&upstream, &failing(), ON, json!({"stream": true})).await;
    assert_eq!(reply.events().last().unwrap()["error"]["code"], "guard_failed");
    assert!(!String::from_utf8_lossy(&reply.body).contains("Hello"));
    let toml = format!("policy.on_failure = \"open\"\n{ON}");
    let reply = ask(&upstream, &failing(), &toml, json!({"stream": true})).await;
    assert_eq!(told(&reply)[0].0, "Hello there.");

    let whole = "{\"choices\": [{\"index\": 0, \"message\": {\"content\": \"Hello there.\"}}]}";
    let upstream = answering("application/json", "identity", whole).await;
    let reply = ask(&upstream, &failing(), ON, json!({})).await;
    assert_eq!((reply.status, reply.code().as_str()), (StatusCode::FORBIDDEN, "guard_failed"));
    assert_eq!(ask(&upstream, &failing(), &toml, json!({})).await.body, whole);
}

#[tokio::test]
async fn an_answer_that_cannot_be_read() {
    for (content_type, encoding, body) in [
        ("application/json", "gzip", "{}"),
        ("text/html", "identity", "<p>harm</p>"),
        ("application/octet-stream", "identity", "{}"),
    ] {
        let upstream = answering(content_type, encoding, body).await;
        let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({})).await;
        assert_eq!((reply.status, reply.code().as_str()), (StatusCode::FORBIDDEN, "unreadable_answer"));
        assert_eq!(reply.header("x-forethought-decision"), "deny");
        let toml = format!("policy.on_unreadable = \"allow\"\n{ON}");
        assert_eq!(ask(&upstream, &FakeGuard::reading(), &toml, json!({})).await.body, body);
    }
    // Text in a stream that is no JSON is read as text.
    let upstream = answering("text/event-stream", "identity", "data: harm\n\n").await;
    let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({"stream": true})).await;
    assert!(!String::from_utf8_lossy(&reply.body).contains("harm"));
    // Longer than may be held.
    let upstream = answering("application/json", "identity", "{\"choices\": []}").await;
    let toml = format!("{ON}max_bytes = 5");
    assert_eq!(ask(&upstream, &FakeGuard::reading(), &toml, json!({})).await.code(), "unreadable_answer");
    // A stream of many small pieces, none of which says enough to be judged.
    let events = std::iter::repeat_n(delta(0, json!({})), 100).chain([finish(0)]);
    let upstream = streaming([delta(0, json!({"content": "Hm"}))].into_iter().chain(events).collect()).await;
    let toml = format!("{ON}max_bytes = 2000");
    let reply = ask(&upstream, &FakeGuard::reading(), &toml, json!({"stream": true})).await;
    assert_eq!(reply.events().last().unwrap()["error"]["code"], "unreadable_answer");
    assert!(!String::from_utf8_lossy(&reply.body).contains("Hm"));
}

#[tokio::test]
async fn an_upstreams_errors_are_the_callers() {
    let upstream = FakeUpstream::start(|_| {
        let response = Response::builder().status(429).header("content-type", "text/plain");
        Respond::Whole(response.body(Bytes::from_static(b"harm")).unwrap())
    })
    .await;
    let reply = ask(&upstream, &FakeGuard::reading(), ON, json!({})).await;
    assert_eq!((reply.status, &reply.body[..]), (StatusCode::TOO_MANY_REQUESTS, b"harm".as_slice()));
}

#[tokio::test]
async fn monitoring_reads_and_records_only() {
    let upstream = streaming(vec![delta(0, json!({"content": "some harm"})), finish(0)]).await;
    let toml = format!("policy.mode = \"monitor\"\n{ON}");
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &toml).await;
    let reply = proxy.client().chat(&chat("hi", json!({"stream": true}))).await;
    assert_eq!(told(&reply), [("some harm".to_owned(), vec!["stop".to_owned()])]);
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(
        (&record["decision"], &record["reply"]["decision"]),
        (&json!("allow-monitored"), &json!("refuse"))
    );
}

#[tokio::test]
async fn what_is_held_back_of_a_broken_stream_stays_back() {
    let (sender, pieces) = mpsc::unbounded_channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = FakeUpstream::start(move |_| {
        let head = Response::builder().header("content-type", "text/event-stream");
        Respond::Pieces(head, pieces.lock().unwrap().take().unwrap())
    })
    .await;
    let toml = "[response_guard]\nenabled = true\nkeepalive_ms = 20";
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), toml).await;
    let headers =
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let body = chat("hi", json!({"stream": true})).to_string();
    let answer = proxy.client().open(Method::POST, "/v1/chat/completions", headers, body).await.unwrap();
    let mut body = answer.into_body();
    sender.send(Ok(format!("data: {}\n\n", delta(0, json!({"content": "Hello"}))).into())).unwrap();
    // There is a sign of life while it is held back.
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), ": still reading\n\n");
    sender.send(Err(std::io::ErrorKind::ConnectionReset.into())).unwrap();
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        rest.extend_from_slice(&frame.into_data().unwrap());
    }
    assert!(!String::from_utf8_lossy(&rest).contains("Hello"), "{rest:?}");
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!(record["outcome"], "aborted");
}
