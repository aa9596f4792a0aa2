//! Reloads: everything at once, or nothing, and what runs goes on.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use forethought_proxy::{Models, Reloader};
use forethought_tests::{FakeGuard, FakeUpstream, Reply, Respond, TestProxy, chat, json_headers};
use http::{Method, Response};
use http_body_util::BodyExt;
use serde_json::json;

async fn named(name: &'static str) -> FakeUpstream {
    FakeUpstream::start(move |_| {
        let response = Response::builder().header("content-type", "application/json");
        Respond::Whole(response.body(Bytes::from(json!({"from": name}).to_string())).unwrap())
    })
    .await
}

fn from(reply: &Reply) -> String {
    reply.json()["from"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_are_swapped_under_load_and_nothing_is_lost() {
    let (a, b) = (named("a").await, named("b").await);
    let to = |url: String, message: &str| {
        format!(
            "upstreams.x.url = \"{url}\"\n[[routes]]\nname = \"{message}\"\nupstreams = [\"x\"]\npolicy = {{ message = \"{message}\" }}\n"
        )
    };
    let (first, second) = (to(a.url(), "a"), to(b.url(), "b"));
    let proxy = TestProxy::start(&FakeGuard::reading(), "embedded", &first).await;
    let reloader = proxy.reloader();
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop, asked) = (proxy.client(), stop.clone(), asked.clone());
            tokio::spawn(async move {
                while !stop.load(Relaxed) {
                    let reply = client.chat(&chat("hi", json!({}))).await;
                    assert!(["a", "b"].contains(&from(&reply).as_str()), "{reply:?}");
                    assert_eq!(
                        client.chat(&chat("harm", json!({}))).await.header("x-forethought-decision"),
                        "refuse"
                    );
                    asked.fetch_add(2, Relaxed);
                }
            })
        })
        .collect();
    for round in 0..10 {
        for bad in
            ["policy.threshhold = 1", "[[routes]]\nname = \"x\"\nupstreams = [\"nowhere\"]", "not toml ["]
        {
            proxy.rewrite_config(bad);
            assert!(reloader.reload().await.is_err());
        }
        proxy.rewrite_config(if round % 2 == 0 { &second } else { &first });
        reloader.reload().await.unwrap();
    }
    stop.store(true, Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let records = proxy.records().await;
    assert_eq!(records.len(), asked.load(Relaxed));
    // Each went by one configuration: its route, its upstream and its message are of the same.
    for record in records {
        assert_eq!(record["status"], 200, "{record}");
        assert!(["a", "b"].contains(&record["route"].as_str().unwrap()));
    }
    assert!(!a.seen().is_empty() && !b.seen().is_empty());
}

#[tokio::test]
async fn what_runs_ends_on_what_it_began_with() {
    let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = FakeUpstream::start(move |_| {
        let head = Response::builder().header("content-type", "text/event-stream");
        Respond::Pieces(head, pieces.lock().unwrap().take().unwrap())
    })
    .await;
    let other = named("other").await;
    let config =
        |url: String| format!("upstreams.x.url = \"{url}\"\n[[routes]]\nname = \"r\"\nupstreams = [\"x\"]\n");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "embedded", &config(upstream.url())).await;
    let client = proxy.client();
    let body = chat("hi", json!({"stream": true})).to_string();
    let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"data: one\n\n"))).unwrap();
    proxy.rewrite_config(&config(other.url()));
    proxy.reloader().reload().await.unwrap();
    assert_eq!(from(&client.chat(&chat("hi", json!({}))).await), "other");
    sender.send(Ok(Bytes::from_static(b"data: two\n\n"))).unwrap();
    drop(sender);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "data: one\n\ndata: two\n\n");
}

#[tokio::test]
async fn what_did_not_change_is_kept() {
    let upstream = named("a").await;
    let config = |more: &str| {
        format!(
            "upstreams.x.url = \"{}\"\n[[routes]]\nname = \"r\"\nupstreams = [\"x\"]\n{more}",
            upstream.url()
        )
    };
    let guard = FakeGuard::scoring(0.1);
    let proxy = TestProxy::start(&guard, "embedded", &config("")).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let models = Models { guard: Arc::new(FakeGuard::scoring(0.9)), chat: None };
    let load = {
        let loads = loads.clone();
        move |config: &forethought_proxy::CheckedConfig| {
            loads.fetch_add(1, Relaxed);
            if config.guard.bundle == "nowhere" {
                Err("there is no bundle".into())
            } else {
                Ok(models.clone())
            }
        }
    };
    let reloader = Reloader::new(proxy.proxy.clone(), proxy.sources.clone(), Box::new(load));
    let client = proxy.client();
    client.chat(&chat("hi", json!({}))).await;

    // Another policy: neither guard nor upstream is made anew.
    proxy.rewrite_config(&config("[policy]\nthreshold = 0.2\n[limits]\nconnections = 7\n"));
    let done = reloader.reload().await.unwrap();
    assert_eq!((done.guard, done.at_next_start), (false, vec!["limits.connections"]));
    assert_eq!((loads.load(Relaxed), proxy.proxy.upstreams()[0].requests), (0, 1));

    // A guard that can't be loaded leaves all as it is.
    proxy.rewrite_config(&config("[guard]\nbundle = \"nowhere\"\n[policy]\nmessage = \"No.\"\n"));
    let error = reloader.reload().await.unwrap_err().to_string();
    assert_eq!(error, "can't load the models: there is no bundle");
    assert_eq!(client.chat(&chat("hi", json!({}))).await.header("x-forethought-decision"), "allow");

    proxy.rewrite_config(&config("[guard]\nqueue = 3\n"));
    assert!(reloader.reload().await.unwrap().guard);
    assert_eq!(client.chat(&chat("hi", json!({}))).await.header("x-forethought-decision"), "refuse");
    assert!(!reloader.reload().await.unwrap().guard, "loaded once");
    assert_eq!(loads.load(Relaxed), 2);
    assert_eq!(guard.seen().len(), 2);
}

#[tokio::test]
async fn keys_are_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("t.keys");
    let write =
        |key: &str| std::fs::write(&keys, forethought_proxy::config::KeyHash::of(key).to_string()).unwrap();
    write("old");
    let upstream = named("a").await;
    let toml = format!("tenants.t.keys_file = \"{}\"", keys.display());
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let reloader = proxy.reloader();
    let ask = async |key: &str| {
        let mut headers = json_headers();
        headers.insert("x-api-key", key.parse().unwrap());
        let body = chat("hi", json!({})).to_string();
        proxy.client().send(Method::POST, "/v1/chat/completions", headers, body).await.status.as_u16()
    };
    assert_eq!((ask("old").await, ask("new").await), (200, 401));
    assert!(!reloader.is_changed());
    write("new");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await; // until it counts as written
    assert!(reloader.is_changed());
    reloader.reload().await.unwrap();
    assert_eq!((ask("old").await, ask("new").await), (401, 200));
    std::fs::write(&keys, "not a hash").unwrap();
    assert!(reloader.reload().await.is_err());
    assert_eq!(ask("new").await, 200);
}
