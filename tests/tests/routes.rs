//! Routes: which request goes where, and what happens when an upstream fails.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use forethought_proxy::config::KeyHash;
use forethought_tests::{Client, FakeGuard, FakeUpstream, Reply, Respond, TestProxy, chat, json_headers};
use http::{Method, Response};
use serde_json::{Value, json};

/// An upstream that answers with its name.
async fn named(name: &'static str) -> FakeUpstream {
    FakeUpstream::start(move |_| whole(200, name)).await
}

fn whole(status: u16, name: &str) -> Respond {
    let response = Response::builder().status(status).header("content-type", "application/json");
    Respond::Whole(response.body(Bytes::from(json!({"from": name}).to_string())).unwrap())
}

fn from(reply: &Reply) -> String {
    reply.json()["from"].as_str().unwrap_or_default().to_owned()
}

async fn post(client: &Client, path: &str, headers: &[(&'static str, &str)], body: &Value) -> Reply {
    let mut all = json_headers();
    all.extend(headers.iter().map(|(name, value)| (Some(name.parse().unwrap()), value.parse().unwrap())));
    client.send(Method::POST, path, all, body.to_string()).await
}

#[tokio::test]
async fn the_first_route_that_takes_a_request_counts() {
    let (usual, a, b) = (named("usual").await, named("a").await, named("b").await);
    let toml = format!(
        r#"
        upstreams.a.url = "{}"
        upstreams.b.url = "{}"
        [[routes]]
        name = "prefix"
        path_prefix = "/team/"
        upstreams = ["a"]
        policy = {{ threshold = 2.0 }}
        [[routes]]
        name = "header"
        headers = {{ x-team = "b*" }}
        upstreams = ["b"]
        policy = {{ mode = "off" }}
        [[routes]]
        name = "model"
        models = ["big-*", "gemini-2"]
        upstreams = ["b"]
        policy = {{ message = "Not here." }}
        [[routes]]
        name = "rest"
        "#,
        a.url(),
        b.url()
    );
    let proxy = TestProxy::start(&FakeGuard::reading(), &usual.url(), &toml).await;
    let client = proxy.client();
    let ask = |text: &str, model: &str| chat(text, json!({"model": model}));
    let chat_path = "/v1/chat/completions";
    let gemini = json!({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]});
    for (path, headers, body, expected) in [
        (chat_path, &[][..], ask("hi", "m"), "usual"),
        ("/team/v1/chat/completions", &[], ask("hi", "m"), "a"),
        ("/team/v1/chat/completions", &[], ask("harm", "m"), "a"),
        (chat_path, &[("x-team", "blue")], ask("harm", "m"), "b"),
        (chat_path, &[("x-team", "red")], ask("hi", "m"), "usual"),
        (chat_path, &[], ask("hi", "big-one"), "b"),
        ("/v1beta/models/gemini-2:generateContent", &[], gemini.clone(), "b"),
        ("/v1beta/models/gemini-3:generateContent", &[], gemini, "usual"),
        // No guard reads it, so its model is not known.
        ("/v1/embeddings", &[], ask("hi", "big-one"), "usual"),
    ] {
        let reply = post(&client, path, headers, &body).await;
        assert_eq!(from(&reply), expected, "{path} {headers:?}");
    }
    // The upstream sees the path without the prefix, and the body as it was sent, received or not.
    assert!(a.seen().iter().all(|seen| seen.uri.path() == chat_path));
    assert_eq!(b.seen()[0].body, ask("harm", "m").to_string());
    let refused = post(&client, chat_path, &[], &ask("harm", "big-one")).await;
    assert_eq!(refused.json()["choices"][0]["message"]["content"], "Not here.");
    // What can't be read at all has no route of its own to slip through.
    let twice = r#"{"model": "m", "model": "big-one", "messages": []}"#;
    let reply = client.send(Method::POST, chat_path, json_headers(), twice).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "bad_json"));
    for path in ["/team/../v1/chat/completions", "/team//v1/chat/completions", "/teams/v1/chat/completions"] {
        assert_eq!(post(&client, path, &[], &ask("hi", "m")).await.status, 403, "{path}");
    }

    let records = proxy.records().await;
    let seen: Vec<_> = records.iter().map(|r| (r["route"].as_str(), r["upstream"].as_str())).collect();
    assert_eq!(
        seen[..4],
        [
            (Some("rest"), Some("default")),
            (Some("prefix"), Some("a")),
            (Some("prefix"), Some("a")),
            (Some("header"), Some("b"))
        ]
    );
    assert_eq!(
        (records[3]["mode"].as_str(), records[3]["decision"].as_str()),
        (Some("off"), Some("allow-unguarded"))
    );
    assert_eq!(records[1]["path"], "/team/v1/chat/completions");
}

#[tokio::test]
async fn without_a_route_there_is_no_answer() {
    let upstream = named("x").await;
    let toml = "[[routes]]\nname = \"a\"\npath_prefix = \"/a\"";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (404, "no_route"));
    assert!(upstream.seen().is_empty());
    assert_eq!(proxy.records().await[0]["error"], "no_route");
}

/// A route over `a` and `b` with more `settings`, and health that forgets nothing.
fn pool(a: &str, b: &str, settings: &str) -> String {
    format!(
        "upstreams.a = {{ url = \"{a}\", connect_timeout_ms = 500, response_timeout_ms = 200, health = {{ fall = 2, \
         cooldown_ms = 60000 }} }}\nupstreams.b.url = \"{b}\"\n[[routes]]\nname = \"r\"\n{settings}\n"
    )
}

#[tokio::test]
async fn requests_are_shared_by_weight_and_priority() {
    let (a, b) = (named("a").await, named("b").await);
    for (upstreams, expected) in [
        (r#"[{ name = "a", weight = 3 }, "b"]"#, (30, 10)),
        (r#"["a", "b"]"#, (20, 20)),
        (r#"[{ name = "a", priority = 1 }, "b"]"#, (0, 40)),
    ] {
        let toml = pool(&a.url(), &b.url(), &format!("upstreams = {upstreams}"));
        let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
        let client = proxy.client();
        let mut counts = (0, 0);
        for _ in 0..40 {
            let by_a = from(&client.chat(&chat("hi", json!({}))).await) == "a";
            counts = (counts.0 + usize::from(by_a), counts.1 + usize::from(!by_a));
        }
        assert_eq!(counts, expected, "{upstreams}");
    }
}

#[tokio::test]
async fn only_what_nobody_worked_on_is_sent_again() {
    let status = Arc::new(AtomicU16::new(0));
    let a = FakeUpstream::start({
        let status = status.clone();
        move |_| match status.load(Relaxed) {
            0 => Respond::Hang,
            status => whole(status, "a"),
        }
    })
    .await;
    let b = named("b").await;
    let upstreams = "upstreams = [\"a\", { name = \"b\", priority = 1 }]\n";
    for (answer, settings, expected, retries) in [
        (429, "", (200, "b"), Some(1)),
        (503, "", (200, "b"), Some(1)),
        (503, "tries = 1", (503, "a"), None),
        (500, "", (500, "a"), None),
        (400, "", (400, "a"), None),
        // It may have been worked on.
        (0, "", (504, ""), None),
        (0, "retry_unanswered = true", (200, "b"), Some(1)),
    ] {
        status.store(answer, Relaxed);
        let toml = pool(&a.url(), &b.url(), &format!("{upstreams}{settings}"));
        let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
        let reply = proxy.client().chat(&chat("hi", json!({}))).await;
        assert_eq!((reply.status.as_u16(), from(&reply).as_str()), expected, "{answer} {settings}");
        assert_eq!(proxy.records().await[0]["retries"].as_u64(), retries, "{answer} {settings}");
    }
    // What no guard reads is kept for it.
    let toml = pool(&a.url(), &b.url(), &format!("{upstreams}retry_unanswered = true"));
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
    assert_eq!(from(&post(&proxy.client(), "/v1/embeddings", &[], &json!({"input": "hi"})).await), "b");
    assert_eq!(b.seen().last().unwrap().body, json!({"input": "hi"}).to_string());
    // A `GET` may be sent again whatever has become of it.
    let toml = pool(&a.url(), &b.url(), upstreams);
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
    let reply = proxy.client().send(Method::GET, "/v1/models", json_headers(), "").await;
    assert_eq!(from(&reply), "b");
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_stood_in_for() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/v1", listener.local_addr().unwrap())
    };
    let b = named("b").await;
    let toml = pool(&gone, &b.url(), r#"upstreams = ["a", { name = "b", priority = 1 }]"#);
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
    let client = proxy.client();
    for _ in 0..5 {
        assert_eq!(from(&client.chat(&chat("hi", json!({}))).await), "b");
    }
    // A body that nobody reads on the way is still there when nobody has taken it.
    assert_eq!(from(&post(&client, "/v1/embeddings", &[], &json!({"input": "hi"})).await), "b");
    assert_eq!(b.seen().last().unwrap().body, json!({"input": "hi"}).to_string());
    let status = proxy.proxy.upstreams();
    let [a, b] = &status[..] else { panic!("{status:?}") };
    // Two failures take it down; then it is not asked any more.
    assert_eq!((a.is_up, a.requests, a.failures), (false, 2, 2));
    assert_eq!((b.is_up, b.requests, b.failures), (true, 6, 0));
    let retries: Vec<_> = proxy.records().await.iter().map(|r| r["retries"].as_u64().unwrap_or(0)).collect();
    assert_eq!(retries, [1, 1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn where_all_are_down_all_are_asked() {
    let status = Arc::new(AtomicU16::new(503));
    let answering = |name: &'static str| {
        let status = status.clone();
        FakeUpstream::start(move |_| whole(status.load(Relaxed), name))
    };
    let (a, b) = (answering("a").await, answering("b").await);
    let mut toml = pool(&a.url(), &b.url(), r#"upstreams = ["a", { name = "b", priority = 1 }]"#);
    toml = toml.replace(
        "upstreams.b.url",
        "upstreams.b.health = { fall = 1, cooldown_ms = 60000 }\nupstreams.b.url",
    );
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
    let client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.chat(&chat("hi", json!({}))).await.status, 503);
    }
    assert!(proxy.proxy.upstreams().iter().all(|upstream| !upstream.is_up));
    status.store(200, Relaxed);
    assert_eq!(from(&client.chat(&chat("hi", json!({}))).await), "a");
    assert!(proxy.proxy.upstreams()[0].is_up);
}

#[tokio::test]
async fn checks_tell_before_requests_do() {
    let status = Arc::new(AtomicU16::new(500));
    let a = FakeUpstream::start({
        let status = status.clone();
        move |seen| whole(if seen.uri.path() == "/v1/health" { status.load(Relaxed) } else { 200 }, "a")
    })
    .await;
    let b = named("b").await;
    let toml = pool(&a.url(), &b.url(), r#"upstreams = ["a", { name = "b", priority = 1 }]"#)
        .replace("health = {", "health = { path = \"/v1/health\", interval_ms = 10, rise = 1,");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml).await;
    let is_up = async |expected: bool| {
        while proxy.proxy.upstreams()[0].is_up != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    is_up(false).await;
    assert_eq!(from(&proxy.client().chat(&chat("hi", json!({}))).await), "b");
    status.store(204, Relaxed);
    is_up(true).await;
    assert_eq!(from(&proxy.client().chat(&chat("hi", json!({}))).await), "a");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_as_a_whole_is_cut() {
    let upstream = FakeUpstream::start(|_| {
        let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            // Never idle.
            while sender.send(Ok(Bytes::from_static(b"data: {}\n\n"))).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Respond::Pieces(Response::builder().header("content-type", "text/event-stream"), pieces)
    })
    .await;
    let toml = "upstream.total_timeout_ms = 100";
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), toml).await;
    let body = chat("hi", json!({"stream": true})).to_string();
    let answer =
        proxy.client().open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    assert!(http_body_util::BodyExt::collect(answer.into_body()).await.is_err());
    upstream.left(1).await;
    assert_eq!(proxy.records().await[0]["outcome"], "aborted");
}

/// Two tenants, a route each, over the same two upstreams. One is killed under load.
#[test]
fn an_upstream_that_is_killed_under_load_costs_what_it_was_working_on_at_most() {
    const CALLERS: usize = 8;
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for unanswered in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let tenant = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, KeyHash::of(name).to_string()).unwrap();
            format!("[tenants.{name}]\nkeys_file = \"{}\"\n", path.display())
        };
        let (killed, lives) = (runtime(), runtime());
        let a = killed.block_on(slow("a"));
        let (proxy, counts) = lives.block_on(async {
            let b = slow("b").await;
            let upstreams = |name: &str| {
                let url = if name == "a" { a.url() } else { b.url() };
                format!("[upstreams.{name}]\nurl = \"{url}\"\nhealth = {{ fall = 2, cooldown_ms = 60000 }}\n")
            };
            let route = |name: &str, order: &str| {
                format!(
                    "[[routes]]\nname = \"{name}\"\ntenants = [\"{name}\"]\nupstreams = {order}\nretry_unanswered = {unanswered}\n"
                )
            };
            let toml = [
                upstreams("a"),
                upstreams("b"),
                route("even", "[\"a\", \"b\"]"),
                route("first", "[\"a\", { name = \"b\", priority = 1 }]"),
                tenant("even"),
                tenant("first"),
            ];
            let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &toml.concat()).await;
            let stop = Arc::new(AtomicBool::new(false));
            let callers: Vec<_> = (0..CALLERS)
                .map(|index| {
                    let (client, stop) = (proxy.client(), stop.clone());
                    tokio::spawn(async move {
                        let mut counts = BTreeMap::<(u16, String), usize>::new();
                        let key = ["even", "first"][index % 2];
                        while !stop.load(Relaxed) {
                            let body = chat("hi", json!({}));
                            let reply = post(&client, "/v1/chat/completions", &[("x-api-key", key)], &body).await;
                            let what = if reply.status == 200 { from(&reply) } else { reply.code() };
                            *counts.entry((reply.status.as_u16(), what)).or_default() += 1;
                        }
                        counts
                    })
                })
                .collect();
            a.arrived(100).await;
            killed.shutdown_background();
            let before = b.seen().len();
            b.arrived(before + 100).await;
            stop.store(true, Relaxed);
            let mut all = BTreeMap::<(u16, String), usize>::new();
            for caller in callers {
                caller.await.unwrap().into_iter().for_each(|(what, count)| *all.entry(what).or_default() += count);
            }
            (proxy, all)
        });
        let status = proxy.proxy.upstreams();
        let records = lives.block_on(proxy.records());
        let retries: u64 = records.iter().filter_map(|record| record["retries"].as_u64()).sum();
        println!(
            "retry_unanswered = {unanswered}: {counts:?}, {retries} retries, {} failures",
            status[0].failures
        );
        let answered = |what: &str| counts.get(&(200, what.to_owned())).copied().unwrap_or(0);
        let broken = counts.get(&(502, "upstream_broken".to_owned())).copied().unwrap_or(0);
        assert!(answered("a") > 0 && answered("b") >= 100);
        assert_eq!(answered("a") + answered("b") + broken, records.len(), "{counts:?}");
        assert!(!status[0].is_up && status[1].is_up);
        // No more than were on their way; where they may be sent again, none.
        assert!(broken <= if unanswered { 0 } else { CALLERS }, "{counts:?}");
        assert!(retries + broken as u64 >= 2, "two failures take it down: {retries} {broken}");
    }
}

/// An upstream that takes a moment before it answers, one request at a time.
async fn slow(name: &'static str) -> FakeUpstream {
    FakeUpstream::start(move |_| {
        std::thread::sleep(Duration::from_millis(1));
        whole(200, name)
    })
    .await
}
