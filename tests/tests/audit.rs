//! One audit record for every way out of a request.

#![allow(clippy::unwrap_used)] // helpers of tests

use forethought_core::{
    evidence::{Evidence, ProbeReading},
    guard::GuardError,
    probe::Position,
};
use forethought_tests::{FakeGuard, FakeUpstream, TestProxy, chat, json_headers};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test]
async fn every_exit_is_recorded_once() {
    let upstream = FakeUpstream::answering("{\"choices\": []}").await;
    let guard = FakeGuard::finding(|conversation| match conversation.text_len() {
        4 => Ok(forethought_tests::evidence(0.9)),
        5 => Err(GuardError::Overloaded { waiting: 1 }),
        _ => Ok(forethought_tests::evidence(0.1)),
    });
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    let client = proxy.client();
    let mut ids = Vec::new();
    for reply in [
        client.chat(&chat("hi", json!({}))).await,
        client.chat(&chat("harm", json!({"stream": true}))).await,
        client.chat(&chat("other", json!({}))).await,
        client.send(Method::GET, "/v1/models", HeaderMap::new(), "").await,
        client.send(Method::POST, "/v1/batches", json_headers(), "{}").await,
        client.send(Method::POST, "/v1/chat/completions", json_headers(), "{").await,
        client.send(Method::HEAD, "/v1/nothing", HeaderMap::new(), "").await,
    ] {
        ids.push(reply.header("x-forethought-id").to_owned());
    }
    let records = proxy.records().await;
    let of = |key: &'static str| records.iter().map(|record| record[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), ids);
    assert_eq!(of("decision"), ["allow", "refuse", "deny", "pass", "deny", "deny", "deny"]);
    assert_eq!(of("status"), [200, 200, 503, 200, 403, 400, 403]);
    assert_eq!(of("outcome"), ["finished"; 7]);
    assert_eq!(
        of("error"),
        [
            Value::Null,
            Value::Null,
            "guard_overloaded".into(),
            Value::Null,
            "path_denied".into(),
            "bad_json".into(),
            "path_denied".into()
        ]
    );
    assert_eq!(
        of("by"),
        ["thresholds", "thresholds", "policy.on_failure", "paths", "paths", "request", "paths"]
    );

    let allowed = &records[0];
    assert_eq!(allowed["model"], "some-model");
    assert_eq!(
        (allowed["method"].as_str(), allowed["path"].as_str()),
        (Some("POST"), Some("/v1/chat/completions"))
    );
    assert_eq!((allowed["score"].as_f64(), allowed["verdict"].as_str()), (Some(0.1), Some("benign")));
    assert_eq!(allowed["bytes"], 15);
    assert_eq!(allowed["coverage"]["tokens_read"], 10);
    assert_eq!(allowed["guard"]["bundle"], "fake 1");
    assert_eq!(allowed["config_sha256"].as_str().unwrap().len(), 64);
    assert!(allowed["time"].as_str().unwrap().ends_with('Z'));
    for stage in ["body_ms", "guard_ms", "upstream_ms", "total_ms"] {
        assert!(allowed["timings"][stage].is_number(), "{stage}");
    }
    assert_eq!(allowed["timings"]["guard"]["generated_tokens"], 5);
    assert_eq!(records[1]["hazard"], "cyber");
    assert_eq!((records[1]["stream"].as_bool(), records[0]["stream"].as_bool()), (Some(true), Some(false)));
    assert!(records[1]["timings"].get("upstream_ms").is_none());
}

/// The records of two equal prompts and one other, under a configuration.
async fn prompts(toml: &str) -> Vec<Value> {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    for text in ["my secret", "my secret", "my sacred"] {
        proxy.client().chat(&chat(text, json!({}))).await;
    }
    proxy.records().await
}

#[tokio::test]
async fn prompts_are_hashed_unless_asked_for() {
    let records = prompts("").await;
    let hash = |index: usize| records[index]["prompt"]["hmac_sha256"].as_str().unwrap();
    assert_eq!(hash(0).len(), 64);
    assert_eq!(hash(0), hash(1));
    assert_ne!(hash(0), hash(2));
    assert_eq!(records[0]["prompt"]["bytes"], 9);
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("secret") && !text.contains("The user wants"));
    // Another run has another key.
    assert_ne!(prompts("").await[0]["prompt"]["hmac_sha256"], hash(0));

    let records = prompts("audit.prompt = \"full\"\naudit.text = true").await;
    assert_eq!(records[0]["prompt"]["conversation"]["messages"][0]["parts"][0]["text"], "my secret");
    assert_eq!(records[0]["understanding"], "The user wants something.");
    assert_eq!(records[0]["assessment"], "Someone would be hurt.");
}

#[tokio::test]
async fn what_went_through_unjudged_says_so() {
    let image = json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]});
    let upstream = FakeUpstream::answering("{}").await;
    let record = async |guard: FakeGuard, toml: &str| {
        let proxy = TestProxy::start(&guard, &upstream.url(), toml).await;
        proxy.client().chat(&image).await;
        let [record] = proxy.records().await.try_into().unwrap();
        record
    };
    let flagged = record(FakeGuard::scoring(0.1), "policy.on_unreadable = \"flag\"").await;
    assert_eq!((flagged["decision"].as_str(), &flagged["flags"]), (Some("allow"), &json!(["unreadable"])));
    let failing = FakeGuard::failing(GuardError::Model("broken".to_owned()));
    let open = record(failing, "policy.on_unreadable = \"allow\"\npolicy.on_failure = \"open\"").await;
    assert_eq!(
        (open["decision"].as_str(), open["by"].as_str()),
        (Some("allow-unguarded"), Some("policy.on_failure"))
    );
    assert!(open["reason"].as_str().unwrap().contains("the guard model failed"));
    let monitored =
        record(FakeGuard::scoring(0.9), "policy.on_unreadable = \"allow\"\npolicy.mode = \"monitor\"").await;
    assert_eq!(
        (monitored["decision"].as_str(), monitored["ruled"].as_str()),
        (Some("allow-monitored"), Some("refuse"))
    );
    let unread = record(FakeGuard::scoring(0.9), "policy.mode = \"monitor\"").await;
    assert_eq!(unread["ruled"], "unreadable_content");
}

#[tokio::test]
async fn disagreement_of_probes_and_verdict_is_as_configured() {
    let guard = FakeGuard::finding(|_| {
        let reading = ProbeReading {
            name: "one".to_owned(),
            layer: 18,
            position: Position::Last,
            score: 0.75,
            threshold: 0.5,
        };
        let probes = vec![reading];
        Ok(Evidence { probe_score: Some(0.75), probes, ..forethought_tests::evidence(0.125) })
    });
    let upstream = FakeUpstream::answering("{}").await;
    let record = async |toml: &str| {
        let proxy = TestProxy::start(&guard, &upstream.url(), toml).await;
        proxy.client().chat(&chat("hi", json!({}))).await;
        let [record] = proxy.records().await.try_into().unwrap();
        record
    };
    let allowed = record("").await;
    assert_eq!((allowed["decision"].as_str(), allowed.get("flags")), (Some("allow"), None));
    assert_eq!(
        (allowed["activation_gap"].as_f64(), allowed["probe_score"].as_f64()),
        (Some(0.625), Some(0.75))
    );
    let reading = json!({"name": "one", "layer": 18, "position": "last", "score": 0.75, "threshold": 0.5});
    assert_eq!(allowed["probes"], json!([reading]));
    let flagged = record("policy.on_disagreement = \"flag\"").await;
    assert_eq!((flagged["decision"].as_str(), &flagged["flags"]), (Some("allow"), &json!(["disagreement"])));
    let quiet = record("policy = { on_disagreement = \"flag\", disagreement_gap = 0.7 }").await;
    assert_eq!(quiet.get("flags"), None);
    let refused = record("policy.on_disagreement = \"refuse\"").await;
    assert_eq!(
        (refused["decision"].as_str(), refused["by"].as_str()),
        (Some("refuse"), Some("disagreement"))
    );
    assert_eq!(refused["reason"], "probes and verdict are +0.625 apart, at least 0.5");
    let quiet = record("policy = { on_disagreement = \"refuse\", disagreement_gap = 0.7 }").await;
    assert_eq!(quiet["by"], "thresholds");
}

#[tokio::test]
async fn files_are_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.jsonl");
    let toml = format!("audit = {{ path = {:?}, max_bytes = 4096, keep = 2 }}", path.display().to_string());
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let client = proxy.client();
    for _ in 0..30 {
        client.chat(&chat("hi", json!({}))).await;
    }
    proxy.records().await;
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["records.jsonl", "records.jsonl.1", "records.jsonl.2"]);
    for name in names {
        let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(text.len() <= 4096 && text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_survived_and_seen() {
    let upstream = FakeUpstream::answering("{}").await;
    let toml = "audit = { path = \"/dev/full\", queue = 4 }";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    let client = proxy.client();
    // More than may wait.
    for _ in 0..10 {
        assert_eq!(client.chat(&chat("hi", json!({}))).await.status, StatusCode::OK);
    }
    let audit = proxy.proxy.audit().clone();
    assert!(!audit.flush().await);
    let health = audit.health();
    assert!(health.failing);
    assert_eq!((health.written, health.lost), (0, 6));
    proxy.records().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_can_stop_requests() {
    let upstream = FakeUpstream::answering("{}").await;
    let toml = "audit = { path = \"/dev/full\", on_error = \"deny\" }";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    let client = proxy.client();
    client.chat(&chat("hi", json!({}))).await; // the first one finds out
    proxy.proxy.audit().flush().await;
    let reply = client.chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "audit_unavailable"));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn no_records_where_none_are_wanted() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "audit.enabled = false").await;
    assert_eq!(proxy.client().chat(&chat("hi", json!({}))).await.status, StatusCode::OK);
    assert!(proxy.records().await.is_empty());
}
