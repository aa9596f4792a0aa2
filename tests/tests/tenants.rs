//! Tenants: who is let in, how much each may, and that no key shows anywhere.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::time::Duration;

use forethought_proxy::config::{CheckedConfig, KeyHash, Merged, Sources};
use forethought_tests::{FORMATS, FakeGuard, FakeUpstream, Reply, Respond, TestProxy, chat, json_headers};
use http::Method;
use serde_json::{Value, json};

const KEYS: [&str; 2] = ["ft-hunter2-of-acme", "ft-hunter2-of-beta"];

/// Two tenants with a key each, and `more` of the first.
fn toml(folder: &tempfile::TempDir, more: &str) -> String {
    let names = ["acme", "beta"].map(|name| folder.path().join(format!("{name}.keys")));
    for (path, key) in names.iter().zip(KEYS) {
        std::fs::write(path, format!("# a comment\n{} # Ann's\n\n", KeyHash::of(key))).unwrap();
    }
    let [acme, beta] = names.map(|path| path.display().to_string());
    format!("[tenants.acme]\nkeys_file = \"{acme}\"\n{more}\n[tenants.beta]\nkeys_file = \"{beta}\"\n")
}

async fn ask(proxy: &TestProxy, path: &str, key: Option<(&'static str, String)>, body: &Value) -> Reply {
    let mut headers = json_headers();
    headers.extend(key.map(|(name, value)| (Some(name.parse().unwrap()), value.parse().unwrap())));
    proxy.client().send(Method::POST, path, headers, body.to_string()).await
}

fn bearer(key: &str) -> Option<(&'static str, String)> {
    Some(("authorization", format!("Bearer {key}")))
}

#[tokio::test]
async fn a_known_key_names_its_tenant_and_goes_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = FakeUpstream::answering("{}").await;
    let toml = toml(&folder, "") + "[audit]\nprompt = \"full\"\n";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let body = chat("hi", json!({}));
    let path = "/v1/chat/completions";
    for key in [
        bearer(KEYS[0]),
        Some(("x-api-key", KEYS[1].to_owned())),
        Some(("x-goog-api-key", KEYS[1].to_owned())),
    ] {
        assert_eq!(ask(&proxy, path, key, &body).await.status, 200);
    }
    // A path that no guard reads needs a key too.
    assert_eq!(ask(&proxy, "/v1/embeddings", bearer(KEYS[0]), &json!({})).await.status, 200);
    for key in [None, bearer("ft-hunter2-of-nobody"), Some(("authorization", KEYS[0].to_owned()))] {
        let reply = ask(&proxy, path, key.clone(), &body).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (401, "invalid_api_key"), "{key:?}");
        assert_eq!((reply.header("www-authenticate"), reply.header("x-should-retry")), ("Bearer", "false"));
        assert_eq!(ask(&proxy, "/v1/embeddings", key, &json!({})).await.status, 401);
    }
    for seen in upstream.seen() {
        for name in ["authorization", "x-api-key", "x-goog-api-key"] {
            assert!(!seen.headers.contains_key(name), "{name}");
        }
    }
    assert_eq!(upstream.seen().len(), 4);
    assert!(!format!("{:?}", CheckedConfig::load(&proxy.sources).unwrap()).contains("hunter2"));
    let records = proxy.records().await;
    let tenants: Vec<_> = records.iter().filter_map(|record| record["tenant"].as_str()).collect();
    assert_eq!(tenants, ["acme", "beta", "beta", "acme"]);
    let denied = &records[4];
    assert_eq!((denied["decision"].as_str(), denied["by"].as_str()), (Some("deny"), Some("tenants")));
    assert!(!Value::from(records).to_string().contains("hunter2"));
}

#[tokio::test]
async fn who_is_not_known_is_told_so_in_the_callers_format() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml(&folder, "")).await;
    for format in FORMATS {
        let reply = ask(&proxy, format.path, None, &format.ask("hi", false)).await;
        assert_eq!(reply.status, 401, "{}", format.name);
        assert!(format.error(&reply.json()).contains("must show a key"), "{}", format.name);
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn the_upstreams_own_key_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = FakeUpstream::answering("{}").await;
    let key = folder.path().join("upstream.key");
    std::fs::write(&key, "sk-upstream\n").unwrap();
    let toml = format!("upstream.api_key_file = \"{}\"\n{}", key.display(), toml(&folder, ""));
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    ask(&proxy, "/v1/chat/completions", Some(("x-api-key", KEYS[0].to_owned())), &chat("hi", json!({})))
        .await;
    let headers = &upstream.seen()[0].headers;
    assert_eq!(headers["authorization"], "Bearer sk-upstream");
    assert!(!headers.contains_key("x-api-key"));
}

#[tokio::test]
async fn each_tenant_has_a_rate_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = FakeUpstream::answering("{}").await;
    let toml = toml(&folder, "requests_per_minute = 2\nburst = 3");
    let guard = FakeGuard::scoring(0.1);
    let proxy = TestProxy::start(&guard, &upstream.url(), &toml).await;
    let body = chat("hi", json!({}));
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let reply = ask(&proxy, "/v1/chat/completions", bearer(KEYS[0]), &body).await;
        statuses.push(reply.status.as_u16());
        if reply.status == 429 {
            assert_eq!(reply.code(), "rate_limited");
            let after: u64 = reply.header("retry-after").parse().unwrap();
            assert!((1..=30).contains(&after), "{after}");
        }
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(ask(&proxy, "/v1/chat/completions", bearer(KEYS[1]), &body).await.status, 200);
    // A reload gives nothing back.
    proxy.reloader().reload().await.unwrap();
    assert_eq!(ask(&proxy, "/v1/chat/completions", bearer(KEYS[0]), &body).await.status, 429);
    assert_eq!(guard.seen().len(), 4, "the guard reads nothing that is not let in");
}

#[tokio::test]
async fn a_place_is_free_again_when_the_answer_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = FakeUpstream::start(move |_| {
        let head = http::Response::builder().header("content-type", "text/event-stream");
        match pieces.lock().unwrap().take() {
            Some(pieces) => Respond::Pieces(head, pieces),
            None => Respond::Whole(head.body(bytes::Bytes::new()).unwrap()),
        }
    })
    .await;
    let toml = toml(&folder, "concurrency = 1");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let body = chat("hi", json!({"stream": true}));
    let mut headers = json_headers();
    headers.insert("authorization", bearer(KEYS[0]).unwrap().1.parse().unwrap());
    let path = "/v1/chat/completions";
    let client = proxy.client();
    let running = client.open(Method::POST, path, headers, body.to_string()).await.unwrap();
    let reply = ask(&proxy, path, bearer(KEYS[0]), &body).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (429, "too_many_running"));
    assert_eq!(ask(&proxy, path, bearer(KEYS[1]), &body).await.status, 200);
    drop(sender);
    http_body_util::BodyExt::collect(running.into_body()).await.unwrap();
    while ask(&proxy, path, bearer(KEYS[0]), &body).await.status != 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn routes_are_for_tenants() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = FakeUpstream::answering("{}").await;
    let toml = "[[routes]]\nname = \"a\"\ntenants = [\"acme\"]\n".to_owned() + &toml(&folder, "");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let body = chat("hi", json!({}));
    assert_eq!(ask(&proxy, "/v1/chat/completions", bearer(KEYS[0]), &body).await.status, 200);
    assert_eq!(ask(&proxy, "/v1/chat/completions", bearer(KEYS[1]), &body).await.code(), "no_route");
}

#[test]
fn mistakes_are_named_without_what_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        let file = folder.path().join("forethought.toml");
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(file), ..Sources::default() };
        (CheckedConfig::load(&sources).map(drop), Merged::read(&sources).settings())
    };
    let keys = folder.path().join("x.keys");
    let hash = KeyHash::of(KEYS[0]);
    std::fs::write(&keys, format!("{hash}\n{}\n", KEYS[0])).unwrap();
    let tenant = |name: &str| format!("[tenants.{name}]\nkeys_file = \"{}\"\n", keys.display());
    for (text, expected) in [
        (tenant("a"), "line 2 of"),
        ("[tenants.a]\n".to_owned(), "has no keys: set `tenants.a.keys_file` or `tenants.a.keys_env`"),
        ("[tenants.a]\nkeys_file = \"/nowhere\"".to_owned(), "can't read `/nowhere`"),
        ("[tenants.a]\nkeys_env = \"FORETHOUGHT_TEST_NO_SUCH_VARIABLE\"".to_owned(), "is not set"),
        (tenant("a") + "burst = 1", "means nothing without `tenants.a.requests_per_minute`"),
        (tenant("a") + "requests_per_minute = 0", "must be at least 1, not 0"),
        (tenant("a") + "[policy]\ntenant_header = \"x-t\"", "can't be set beside `tenants`"),
    ] {
        let (problems, settings) = load(&text);
        let problems = problems.unwrap_err().to_string();
        assert!(problems.contains(expected), "{expected}\n{problems}");
        assert!(!problems.contains("hunter2") && !format!("{settings:?}").contains("hunter2"));
    }
    std::fs::write(&keys, format!("{hash}\n")).unwrap();
    let (problems, settings) = load(&(tenant("a") + &tenant("b")));
    assert!(problems.unwrap_err().to_string().contains("has a key that `tenants.a` has too"));
    assert!(!format!("{settings:?}").contains(&hash.to_string()));
}

#[test]
fn the_example_of_routes_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/configs/routes.toml");
    let mut text = std::fs::read_to_string(example).unwrap();
    for (index, (written, name)) in
        [("keys_file = \"research.keys\"", "a"), ("keys_env = \"SUPPORT_KEYS\"", "b")].into_iter().enumerate()
    {
        let path = folder.path().join(name);
        std::fs::write(&path, KeyHash::of(KEYS[index]).to_string()).unwrap();
        assert!(text.contains(written));
        text = text.replace(written, &format!("keys_file = \"{}\"", path.display()));
    }
    let file = folder.path().join("routes.toml");
    std::fs::write(&file, text).unwrap();
    let config = CheckedConfig::load(&Sources { file: Some(file), ..Sources::default() }).unwrap();
    let routes: Vec<_> =
        config.routes.iter().map(|route| (route.name.as_str(), route.upstreams.len())).collect();
    assert_eq!(routes, [("research", 2), ("support", 2)]);
    assert!(config.routes[1].response_guard.is_some() && config.routes[0].response_guard.is_none());
}
