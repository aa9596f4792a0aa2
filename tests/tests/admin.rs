//! The operators' side: metrics that add up, health, and who may see them.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{collections::BTreeMap, io::Write, process::Command, time::Duration};

use forethought_core::guard::GuardError;
use forethought_proxy::{
    admin::Admin,
    config::{CheckedConfig, Flag, Sources},
};
use forethought_tests::{Client, FakeGuard, FakeUpstream, TestProxy, chat, evidence, json_headers};
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::json;
use tokio::io::AsyncWriteExt;

const ADMIN: &str = "admin.listen = \"127.0.0.1:0\"\n";
const ANSWER: &str = r#"{"choices":[{"message":{"role":"assistant","content":"hello"}}]}"#;

async fn get(client: &Client, path: &str) -> forethought_tests::Reply {
    client.send(Method::GET, path, HeaderMap::new(), "").await
}

/// The samples of a scrape, by name and labels.
async fn scrape(proxy: &TestProxy) -> BTreeMap<String, f64> {
    let reply = get(&proxy.operator(), "/metrics").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(reply.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", reply.headers);
    let text = std::str::from_utf8(&reply.body).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    samples.map(sample).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_keep_operators_out() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), ADMIN).await;
    let address = proxy.admin.unwrap();
    let mut silent = Vec::new();
    for nth in 0..70 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // Some say nothing at all, some begin and stop.
        if nth % 2 == 1 {
            stream.write_all(b"GET /healthz HT").await.unwrap();
        }
        silent.push(stream);
    }
    let asked = tokio::time::timeout(Duration::from_secs(60), get(&proxy.operator(), "/healthz")).await;
    assert_eq!(asked.expect("an answer").status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let guard = FakeGuard::finding(|conversation| {
        let text = format!("{:?}", conversation.parts().filter_map(|(_, p)| p.text()).collect::<Vec<_>>());
        match () {
            () if text.contains("overload") => Err(GuardError::Overloaded { waiting: 3 }),
            () if text.contains("harm") => Ok(evidence(0.97)),
            () => Ok(evidence(0.01)),
        }
    });
    let proxy = TestProxy::start(&guard, &upstream.url(), ADMIN).await;
    for text in ["hello", "do harm", "hello again", "overload"] {
        proxy.client().chat(&chat(text, json!({}))).await;
    }
    proxy.client().send(Method::POST, "/v1/nothing", json_headers(), "{}").await;
    // An answer may be read before it is over for the proxy.
    let samples = loop {
        let samples = scrape(&proxy).await;
        if samples["forethought_requests_in_flight"] == 0.0 {
            break samples;
        }
    };
    let check = |name: &str, expected: f64| {
        assert_eq!(samples.get(name), Some(&expected), "{name}\n{samples:#?}");
    };
    let requests = |format: &str, decision: &str, hazard: &str, signal: &str| {
        format!(
            "forethought_requests_total{{decision=\"{decision}\",format=\"{format}\",hazard=\"{hazard}\",\
             route=\"default\",signal=\"{signal}\"}}"
        )
    };
    check(&requests("openai-chat", "allow", "none", "reason"), 2.0);
    check(&requests("openai-chat", "refuse", "cyber", "reason"), 1.0);
    check(&requests("openai-chat", "deny", "none", "none"), 1.0);
    check(&requests("none", "deny", "none", "none"), 1.0);
    check("forethought_errors_total{code=\"guard_overloaded\",route=\"default\"}", 1.0);
    check("forethought_errors_total{code=\"path_denied\",route=\"default\"}", 1.0);
    check("forethought_upstream_requests_total{answer=\"2xx\",upstream=\"default\"}", 2.0);
    check("forethought_stage_duration_seconds_count{route=\"default\",stage=\"guard\"}", 4.0);
    check("forethought_stage_duration_seconds_count{route=\"default\",stage=\"upstream\"}", 2.0);
    check("forethought_score_count{signal=\"reason\"}", 3.0);
    check("forethought_guard_tokens_total{kind=\"read\"}", 30.0);
    check("forethought_guard_tokens_total{kind=\"written\"}", 15.0);
    check("forethought_coverage_tokens_total{state=\"read\"}", 30.0);
    check("forethought_requests_in_flight", 0.0);
    // A scrape does not count twice what is read off.
    proxy.proxy.audit().flush().await;
    for _ in 0..2 {
        assert_eq!(scrape(&proxy).await["forethought_audit_records_total"], 5.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_to_say() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), ADMIN).await;
    proxy.client().chat(&chat("hello", json!({}))).await;
    let text = get(&proxy.operator(), "/metrics").await.body;
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        return println!("skipped: promtool is not installed (Debian's package `prometheus` has it)");
    };
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_queue_and_the_end() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let guard = FakeGuard::reading();
    let mut proxy = TestProxy::start(&guard, &upstream.url(), ADMIN).await;
    let operator = proxy.operator();
    assert_eq!(get(&operator, "/healthz").await.body, "ok");
    let ready = get(&operator, "/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (StatusCode::OK, &json!(true)));

    guard.loaded(2, 2);
    let full = get(&operator, "/readyz").await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(full.json()["checks"]["queue"], "full: 2 conversations wait");
    guard.loaded(1, 2);
    assert_eq!(get(&operator, "/readyz").await.status, StatusCode::OK);
    assert_eq!(scrape(&proxy).await["forethought_guard_queue_length"], 1.0);

    proxy.stop();
    while get(&operator, "/readyz").await.status == StatusCode::OK {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(get(&operator, "/healthz").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_loads_is_healthy_and_not_ready() {
    let flag = |key: &str, value: &str| Flag {
        name: "test".to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let sources = Sources { flags: vec![flag("admin.listen", "127.0.0.1:0")], ..Sources::default() };
    let config = CheckedConfig::load(&sources).unwrap().admin.unwrap();
    let listener = tokio::net::TcpListener::bind(config.listen).await.unwrap();
    let client = Client::new(format!("http://{}", listener.local_addr().unwrap()));
    tokio::spawn(Admin::new(config).serve(listener));
    assert_eq!(get(&client, "/healthz").await.status, StatusCode::OK);
    let ready = get(&client, "/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json()["checks"]["model"], "being loaded");
    assert_eq!(get(&client, "/metrics").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let toml = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{}\"\n", file.display());
    let upstream = FakeUpstream::answering(ANSWER).await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &toml).await;
    let check = async |path: &str, token: &[&str], expected: StatusCode| {
        let values = token.iter().map(|token| (header::AUTHORIZATION, token.parse().unwrap()));
        let reply = proxy.operator().send(Method::GET, path, values.collect(), "").await;
        assert_eq!(reply.status, expected, "{path} {token:?}");
        reply
    };
    check("/metrics", &[], StatusCode::UNAUTHORIZED).await;
    check("/metrics", &["Bearer s3cre"], StatusCode::UNAUTHORIZED).await;
    check("/metrics", &["Basic s3cret"], StatusCode::UNAUTHORIZED).await;
    check("/metrics", &["Bearer s3cret", "Bearer s3cret"], StatusCode::UNAUTHORIZED).await;
    check("/metrics", &["bearer s3cret"], StatusCode::OK).await;
    check("/other", &[], StatusCode::UNAUTHORIZED).await;
    check("/other", &["Bearer s3cret"], StatusCode::NOT_FOUND).await;
    check("/healthz", &[], StatusCode::OK).await;
    // Without the token, a word and no more.
    let ready = check("/readyz", &[], StatusCode::OK).await;
    assert_eq!(ready.json(), json!({"ready": true}));
}

#[test]
fn what_others_can_reach_needs_a_token() {
    let load = |settings: &[(&str, &str)]| {
        let flag = |&(key, value): &(&str, &str)| Flag {
            name: "test".to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        };
        CheckedConfig::load(&Sources { flags: settings.iter().map(flag).collect(), ..Sources::default() })
    };
    let check = |settings: &[(&str, &str)], expected: Option<&str>| match (load(settings), expected) {
        (Ok(_), None) => {}
        (Err(problems), Some(words)) => {
            let text = problems.to_string();
            assert!(text.contains(words), "{text}");
        }
        (found, _) => panic!("{settings:?}: {:?}", found.map(|config| config.admin)),
    };
    check(&[("admin.listen", "127.0.0.1:1")], None);
    check(&[("admin.listen", "[::1]:1")], None);
    check(&[("admin.listen", "0.0.0.0:1")], Some("set `admin.token_file` or `admin.token_env`"));
    check(&[("admin.listen", "[::]:1")], Some("can be reached from other machines"));
    // PATH is set everywhere.
    check(&[("admin.listen", "0.0.0.0:1"), ("admin.token_env", "PATH")], None);
    check(&[("admin.listen", "0.0.0.0:1"), ("admin.token_env", "FORETHOUGHT_NO_SUCH")], Some("is not set"));
    check(
        &[("admin.token_env", "PATH"), ("admin.token_file", "/x")],
        Some("`admin.token_env` is set too; keep one"),
    );
    check(&[("admin.listen", "somewhere")], Some("must be an IP address and a port"));
    check(&[("telemetry.otlp", "collector:4318")], Some("must be the URL of a collector"));
    check(&[("telemetry.otlp", "http://u:p@collector:4318")], Some("without user and password"));
    check(&[("telemetry.sample_ratio", "1.5")], Some("must be from 0 to 1"));
    let shown = format!("{:?}", load(&[("admin.listen", "[::]:1"), ("admin.token_env", "PATH")]).unwrap());
    assert!(!shown.contains(&std::env::var("PATH").unwrap()));
}

#[tokio::test]
async fn operators_reload_and_are_told_what_came_of_it() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.4), &upstream.url(), ADMIN).await;
    let reload = async || {
        let reply = proxy.operator().send(Method::POST, "/reload", HeaderMap::new(), "").await;
        (reply.status.as_u16(), reply.json())
    };
    let decision = async || {
        proxy.client().chat(&chat("hi", json!({}))).await.header("x-forethought-decision").to_owned()
    };
    assert_eq!(get(&proxy.operator(), "/reload").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(decision().await, "allow");

    proxy.rewrite_config(&format!("{ADMIN}[policy]\nthreshhold = 0.3\n"));
    let (status, body) = reload().await;
    assert_eq!(status, 422);
    assert!(body["error"].as_str().unwrap().contains("did you mean `policy.threshold`?"), "{body}");
    assert_eq!(decision().await, "allow");

    proxy.rewrite_config(&format!("{ADMIN}[policy]\nthreshold = 0.3\n[limits]\nconnections = 9\n"));
    let (status, body) = reload().await;
    assert_eq!(
        (status, &body["guard"], &body["at_next_start"]),
        (200, &json!(false), &json!(["limits.connections"]))
    );
    assert_eq!(decision().await, "refuse");
}

#[tokio::test]
async fn a_reload_needs_the_token() {
    let upstream = FakeUpstream::answering(ANSWER).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "sesame").unwrap();
    let toml = format!("{ADMIN}admin.token_file = \"{}\"\n", token.display());
    let proxy = TestProxy::start(&FakeGuard::scoring(0.4), &upstream.url(), &toml).await;
    let mut headers = HeaderMap::new();
    let ask = async |headers: HeaderMap| {
        proxy.operator().send(Method::POST, "/reload", headers, "").await.status.as_u16()
    };
    assert_eq!(ask(headers.clone()).await, 401);
    headers.insert(header::AUTHORIZATION, "Bearer sesame".parse().unwrap());
    assert_eq!(ask(headers).await, 200);
}
