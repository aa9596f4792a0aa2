//! The verdict cache: what is asked once, what is asked again, and who shares.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use forethought_core::{
    evidence::{Evidence, Path, PhaseEnd, Step},
    guard::GuardError,
};
use forethought_tests::{FakeGuard, FakeUpstream, Hold, TestProxy, chat, evidence, json_headers};
use http::Method;
use serde_json::json;

const CACHE: &str =
    "admin.listen = \"127.0.0.1:0\"\n[policy]\ntenant_header = \"x-tenant\"\n[cache]\nenabled = true\n";

async fn ask(proxy: &TestProxy, text: &str, tenant: &str) {
    let mut headers = json_headers();
    if !tenant.is_empty() {
        headers.insert("x-tenant", tenant.parse().unwrap());
    }
    let body = chat(text, json!({})).to_string();
    let reply = proxy.client().send(Method::POST, "/v1/chat/completions", headers, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_asked_once_for_each_tenant() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::reading();
    let proxy = TestProxy::start(&guard, &upstream.url(), CACHE).await;
    let check = async |text: &str, tenant: &str, asked: usize| {
        ask(&proxy, text, tenant).await;
        assert_eq!(guard.seen().len(), asked, "{text} {tenant}");
    };
    check("hello", "a", 1).await;
    check("hello", "a", 1).await;
    check("hello", "b", 2).await;
    check("hello", "", 3).await;
    check("hello", "", 3).await;
    check("hello ", "a", 4).await;
    check("harm", "a", 5).await;
    check("harm", "a", 5).await;
    let metrics = proxy.operator().send(Method::GET, "/metrics", json_headers(), "").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        "forethought_cache_requests_total{result=\"hit\"} 3",
        "forethought_cache_requests_total{result=\"miss\"} 5",
        "forethought_guard_tokens_total{kind=\"read\"} 50",
        "forethought_coverage_tokens_total{state=\"read\"} 50",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let records = proxy.records().await;
    let found: Vec<_> =
        records.iter().map(|r| (r["cache"].as_str().unwrap(), r["decision"].as_str().unwrap())).collect();
    assert_eq!(found[0], ("miss", "allow"));
    assert_eq!(found[1], ("hit", "allow"));
    assert!(records[0]["timings"]["guard"].is_object());
    assert!(records[1]["timings"]["guard"].is_null(), "a hit has cost nothing");
    // What is kept is what was found; the policy decides anew.
    assert_eq!(found[6..], [("miss", "refuse"), ("hit", "refuse")]);
    assert_eq!(records[7]["score"], json!(0.97));
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_where_that_is_allowed() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::reading();
    let proxy = TestProxy::start(&guard, &upstream.url(), &format!("{CACHE}across_tenants = true\n")).await;
    for tenant in ["a", "b", ""] {
        ask(&proxy, "hello", tenant).await;
    }
    assert_eq!(guard.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_at_once_are_one_examination() {
    let upstream = FakeUpstream::answering("{}").await;
    let hold = Hold::new();
    let guard = FakeGuard::reading().held(&hold);
    let proxy = Arc::new(TestProxy::start(&guard, &upstream.url(), CACHE).await);
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { ask(&proxy, "hello", "a").await })
        })
        .collect();
    guard.begun(1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    hold.release();
    for one in asked {
        one.await.unwrap();
    }
    assert_eq!(guard.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_outlives_who_leaves() {
    let upstream = FakeUpstream::answering("{}").await;
    let hold = Hold::new();
    let guard = FakeGuard::reading().held(&hold);
    let proxy = Arc::new(TestProxy::start(&guard, &upstream.url(), CACHE).await);
    let (one, other) = (proxy.clone(), proxy.clone());
    let leader = tokio::spawn(async move { ask(&one, "hello", "a").await });
    guard.begun(1).await;
    let follower = tokio::spawn(async move { ask(&other, "hello", "a").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(guard.seen().len(), 1, "the second waits for the first one's examination");
    leader.abort();
    guard.begun(2).await;
    hold.release();
    follower.await.unwrap();
    assert_eq!(guard.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_has_a_deadline() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::hanging();
    let toml = format!("{CACHE}[guard]\ndeadline_ms = 200\n");
    let proxy = Arc::new(TestProxy::start(&guard, &upstream.url(), &toml).await);
    let asked: Vec<_> = (0..3)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(
                async move { proxy.client().chat(&chat("hello", json!({}))).await.code().to_owned() },
            )
        })
        .collect();
    for one in asked {
        let code = tokio::time::timeout(Duration::from_secs(20), one).await.expect("in time").unwrap();
        assert_eq!(code, "guard_deadline");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_end_and_failures_are_not_kept() {
    let upstream = FakeUpstream::answering("{}").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let guard = FakeGuard::finding(move |conversation| {
        let nth = count.fetch_add(1, SeqCst);
        let text = format!("{:?}", conversation.parts().filter_map(|(_, p)| p.text()).collect::<Vec<_>>());
        match nth {
            0 => Err(GuardError::Model("broken".to_owned())),
            _ if text.contains("hurried") => {
                let mut found: Evidence = evidence(0.01);
                found.assessment.as_mut().unwrap().ends[1] = PhaseEnd::Deadline;
                Ok(found)
            }
            _ => Ok(evidence(0.01)),
        }
    });
    let proxy = TestProxy::start(&guard, &upstream.url(), &format!("{CACHE}ttl_ms = 300\n")).await;
    let failed = proxy.client().chat(&chat("hello", json!({}))).await;
    assert_eq!(failed.code(), "guard_failed");
    ask(&proxy, "hello", "").await;
    assert_eq!(asked.load(SeqCst), 2, "a failure is not kept");
    ask(&proxy, "hello", "").await;
    assert_eq!(asked.load(SeqCst), 2);
    for _ in 0..2 {
        ask(&proxy, "hurried", "").await;
    }
    assert_eq!(asked.load(SeqCst), 4, "what was hurried is not kept");
    tokio::time::sleep(Duration::from_millis(400)).await;
    ask(&proxy, "hello", "").await;
    assert_eq!(asked.load(SeqCst), 5, "an entry ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_whole_is_not_kept() {
    let upstream = FakeUpstream::answering("{}").await;
    let check = async |change: fn(&mut Evidence), examinations: usize| {
        let guard = FakeGuard::finding(move |_| {
            let mut found = evidence(0.4);
            change(&mut found);
            Ok(found)
        });
        let proxy = TestProxy::start(&guard, &upstream.url(), CACHE).await;
        for _ in 0..2 {
            ask(&proxy, "hello", "").await;
        }
        assert_eq!(guard.seen().len(), examinations);
    };
    check(|_| {}, 1).await;
    check(|found| found.steps.push(Step::new("remote", Step::ANSWERED)), 1).await;
    // The hazard was not named: a threshold for it would hold the next time.
    check(|found| found.partial = true, 2).await;
    check(|found| found.steps.push(Step::new("remote", "did not answer in time")), 2).await;
    check(|found| found.path = Path::Unassessed, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_the_policies_begins_anew() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::reading();
    let proxy = TestProxy::start(&guard, &upstream.url(), CACHE).await;
    ask(&proxy, "hello", "").await;
    proxy.rewrite_config(&CACHE.replace("[policy]\n", "[policy]\nthreshold = 0.4\n"));
    proxy.reloader().reload().await.unwrap();
    ask(&proxy, "hello", "").await;
    assert_eq!(guard.seen().len(), 2);
}

/// A Redis of this test's own; `None` where none is installed.
struct RedisServer {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl RedisServer {
    fn start(password: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; Redis takes no listener from elsewhere.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", password])
            .args(["--port", &port.to_string(), "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Self { child, port, _folder: folder });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("redis-server does not listen");
    }

    fn config(&self, password_file: &std::path::Path) -> String {
        format!(
            "{CACHE}redis = \"redis://127.0.0.1:{}/0\"\nredis_password_file = \"{}\"\nredis_timeout_ms = 2000\n",
            self.port,
            password_file.display()
        )
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two replicas that share a Redis, and what they need.
struct Replicas {
    first: TestProxy,
    second: TestProxy,
    guards: [FakeGuard; 2],
    /// The configuration of both.
    toml: String,
    redis: RedisServer,
    _upstream: FakeUpstream,
}

/// `None` where no Redis is installed.
async fn replicas(folder: &std::path::Path) -> Option<Replicas> {
    let password = "a password of this test";
    let Some(redis) = RedisServer::start(password) else {
        println!("skipped: redis-server is not installed (Debian's package `redis-server` has it)");
        return None;
    };
    let file = folder.join("password");
    std::fs::write(&file, password).unwrap();
    let toml = redis.config(&file);
    let upstream = FakeUpstream::answering("{}").await;
    let guards = [FakeGuard::reading(), FakeGuard::reading()];
    let first = TestProxy::start(&guards[0], &upstream.url(), &toml).await;
    let second = TestProxy::start(&guards[1], &upstream.url(), &toml).await;
    Some(Replicas { first, second, guards, toml, redis, _upstream: upstream })
}

/// Evidence is written to Redis beside the request.
async fn let_it_be_written() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_with_those_of_the_same_policies() {
    let folder = tempfile::tempdir().unwrap();
    let Some(Replicas { first, second, guards, toml, redis: _redis, _upstream }) =
        replicas(folder.path()).await
    else {
        return;
    };
    let asked = || [guards[0].seen().len(), guards[1].seen().len()];
    ask(&first, "harm", "a").await;
    let_it_be_written().await;
    let new = toml.replace("[policy]\n", "[policy]\nthreshold = 0.4\n");
    first.rewrite_config(&new);
    first.reloader().reload().await.unwrap();
    ask(&first, "harm", "a").await;
    assert_eq!(asked(), [2, 0], "what was found under other policies does not count");
    let_it_be_written().await;
    ask(&second, "harm", "a").await;
    assert_eq!(asked(), [2, 0], "the replica that was not reloaded has the first one's");
    second.rewrite_config(&new);
    second.reloader().reload().await.unwrap();
    ask(&second, "harm", "a").await;
    assert_eq!(asked(), [2, 0], "now it has the second one's");
    let records = second.records().await;
    assert_eq!(records.iter().map(|record| &record["cache"]).collect::<Vec<_>>(), ["redis", "redis"]);
    assert_ne!(records[0]["config_sha256"], records[1]["config_sha256"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_by_redis_and_live_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(Replicas { first, second, guards, redis, _upstream, .. }) = replicas(folder.path()).await else {
        return;
    };
    let asked = || [guards[0].seen().len(), guards[1].seen().len()];
    ask(&first, "harm", "a").await;
    let_it_be_written().await;
    ask(&second, "harm", "a").await;
    assert_eq!(asked(), [1, 0], "the second replica has it from Redis");
    ask(&second, "harm", "b").await;
    assert_eq!(asked(), [1, 1], "another tenant does not");

    // Redis dies: nobody gets an error.
    drop(redis);
    for text in ["one", "two", "three", "four", "harm"] {
        ask(&second, text, "a").await;
    }
    assert_eq!(asked(), [1, 5], "what is in memory is still found");
    let records = second.records().await;
    let cached: Vec<_> = records.iter().map(|record| record["cache"].as_str().unwrap()).collect();
    assert_eq!(cached, ["redis", "miss", "miss", "miss", "miss", "miss", "hit"]);
    assert_eq!(records[0]["decision"], "refuse");
}
