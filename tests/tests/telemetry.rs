//! Traces, as a collector gets them.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;

use bytes::Bytes;
use forethought_tests::{FakeGuard, FakeUpstream, Respond, TestProxy, chat, json_headers};
use http::{HeaderMap, Method, Response};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;
use serde_json::json;

/// A collector that takes all it gets.
async fn collector() -> FakeUpstream {
    FakeUpstream::start(|_| Respond::Whole(Response::new(Bytes::new()))).await
}

fn telemetry(collector: &FakeUpstream, ratio: f64) -> String {
    format!("[telemetry]\notlp = \"http://{}\"\nsample_ratio = {ratio:?}\n", collector.host())
}

/// All spans that were exported.
fn spans(collector: &FakeUpstream) -> Vec<Span> {
    let mut spans = Vec::new();
    for seen in collector.seen() {
        assert_eq!((seen.method, seen.uri.path()), (Method::POST, "/v1/traces"));
        assert_eq!(seen.headers["content-type"], "application/x-protobuf");
        for resource in ExportTraceServiceRequest::decode(seen.body).unwrap().resource_spans {
            let about = resource.resource.unwrap().attributes;
            assert_eq!(attributes(&about)["service.name"], json!("forethought"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    spans
}

fn attributes(all: &[KeyValue]) -> BTreeMap<&str, serde_json::Value> {
    let value = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => json!(text),
        Value::IntValue(number) => json!(number),
        Value::DoubleValue(number) => json!(number),
        Value::BoolValue(truth) => json!(truth),
        other => panic!("{other:?}"),
    };
    all.iter().map(|attribute| (attribute.key.as_str(), value(attribute))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_from_its_caller_to_the_upstream() {
    let upstream =
        FakeUpstream::answering(r#"{"choices":[{"message":{"role":"assistant","content":"hi"}}]}"#).await;
    let collector = collector().await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &telemetry(&collector, 1.0)).await;
    let mut headers = json_headers();
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    headers.insert("traceparent", format!("00-{trace}-{parent}-01").parse().unwrap());
    let secret = "a very private question";
    let body = chat(secret, json!({})).to_string();
    let reply = proxy.client().send(Method::POST, "/v1/chat/completions", headers, body).await;
    let id = reply.header("x-forethought-id").to_owned();
    let sent = upstream.seen().remove(0);
    proxy.records().await;

    let spans = spans(&collector);
    let find = |name: &str| {
        let found = spans.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| panic!("{name}: {:?}", spans.iter().map(|s| &s.name).collect::<Vec<_>>()))
    };
    assert!(spans.iter().all(|span| hex(&span.trace_id) == trace));
    let root = find("POST openai-chat");
    assert_eq!((hex(&root.parent_span_id).as_str(), root.kind), (parent, 2));
    let about = attributes(&root.attributes);
    assert_eq!(about["forethought.id"], json!(id));
    assert_eq!(about["forethought.decision"], json!("allow"));
    assert_eq!(about["http.response.status_code"], json!(200));

    let asked = find("chat some-model");
    assert_eq!((&asked.parent_span_id, asked.kind), (&root.span_id, 3));
    let about = attributes(&asked.attributes);
    assert_eq!(about["gen_ai.operation.name"], json!("chat"));
    assert_eq!(about["gen_ai.provider.name"], json!("openai"));
    assert_eq!(about["gen_ai.request.model"], json!("some-model"));
    // The upstream's own trace goes on from there.
    assert_eq!(
        sent.headers["traceparent"].to_str().unwrap(),
        format!("00-{trace}-{}-01", hex(&asked.span_id))
    );

    let guard = spans.iter().find(|span| !span.events.is_empty()).unwrap();
    assert_eq!(guard.parent_span_id, root.span_id);
    let about = attributes(&guard.attributes);
    assert_eq!(about["gen_ai.usage.input_tokens"], json!(10));
    assert_eq!(about["gen_ai.usage.output_tokens"], json!(5));
    assert_eq!(guard.events[0].name, "gen_ai.evaluation.result");
    let about = attributes(&guard.events[0].attributes);
    assert_eq!(about["gen_ai.evaluation.name"], json!("harmfulness"));
    assert_eq!(about["gen_ai.evaluation.score.label"], json!("benign"));
    assert_eq!(about["gen_ai.evaluation.score.value"], json!(0.01));
    for span in [root, asked, guard, find("body"), find("policy")] {
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{}", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", span.name);
    }
    let exported: Vec<u8> = collector.seen().iter().flat_map(|seen| seen.body.to_vec()).collect();
    for words in [secret, "The user wants something", "Someone would be hurt"] {
        assert!(!exported.windows(words.len()).any(|window| window == words.as_bytes()), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_fails_says_so() {
    let collector = collector().await;
    let guard = FakeGuard::reading();
    let proxy = TestProxy::start(&guard, "http://127.0.0.1:1/v1", &telemetry(&collector, 1.0)).await;
    proxy.client().chat(&chat("harm", json!({}))).await;
    proxy.client().chat(&chat("hello", json!({}))).await;
    proxy.records().await;
    let spans = spans(&collector);
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "POST openai-chat").collect();
    let decision = |span: &Span| attributes(&span.attributes)["forethought.decision"].clone();
    let refused = roots.iter().find(|span| decision(span) == json!("refuse")).unwrap();
    assert!(refused.status.as_ref().is_none_or(|status| status.code() == StatusCode::Unset));
    assert!(!spans.iter().any(|span| span.kind == 3 && span.parent_span_id == refused.span_id));
    let failed = roots.iter().find(|span| decision(span) == json!("allow")).unwrap();
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(attributes(&failed.attributes)["error.type"], json!("upstream_unreachable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_and_the_ratio_choose_what_is_traced() {
    let upstream = FakeUpstream::answering("{}").await;
    let collector = collector().await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &telemetry(&collector, 0.0)).await;
    let send = async |flags: &str| {
        let mut headers = json_headers();
        if !flags.is_empty() {
            let parent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            headers.insert("traceparent", parent.parse().unwrap());
        }
        let body = chat("hello", json!({})).to_string();
        proxy.client().send(Method::POST, "/v1/chat/completions", headers, body).await;
    };
    send("").await;
    send("00").await;
    send("01").await;
    proxy.records().await;
    let roots = spans(&collector).iter().filter(|span| span.kind == 2).count();
    assert_eq!(roots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_costs_no_answer() {
    let upstream = FakeUpstream::answering("{}").await;
    let toml = "[telemetry]\notlp = \"http://127.0.0.1:1\"\n";
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), toml).await;
    assert_eq!(proxy.client().chat(&chat("hello", json!({}))).await.status, 200);
    assert_eq!(proxy.records().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_nothing_is_added() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), "").await;
    let mut headers: HeaderMap = json_headers();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    headers.insert("traceparent", parent.parse().unwrap());
    let body = chat("hello", json!({})).to_string();
    proxy.client().send(Method::POST, "/v1/chat/completions", headers, body).await;
    assert_eq!(upstream.seen()[0].headers["traceparent"], parent);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
