//! Policy plugins in the proxy: what they decide is done, what goes wrong in them is contained, and they are swapped while
//! requests are served.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "../../plugins/tests/support/guest.rs"]
mod guest;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use forethought_core::evidence::{Evidence, Hazard};
use forethought_tests::{Client, FORMATS, FakeGuard, FakeUpstream, TestProxy, chat, evidence, json_headers};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::guest::{Guest, hostile};

/// Far more than a request takes beyond a plugin's deadline, on however busy a machine.
const MARGIN: Duration = Duration::from_secs(10);

/// A committed sample.
fn sample(name: &str) -> String {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/policies/built");
    built.join(format!("{name}.wasm")).display().to_string()
}

fn write(folder: &TempDir, name: &str, guest: &Guest) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, guest.component()).unwrap();
    path
}

fn plugin(path: impl std::fmt::Display, more: &str) -> String {
    format!("[[policy.plugins]]\npath = \"{path}\"\n{more}\n")
}

/// Sends a chat request with headers of its own.
async fn send(client: &Client, body: &Value, headers: &[(&'static str, &str)]) -> forethought_tests::Reply {
    let mut all = json_headers();
    for (name, value) in headers {
        all.insert(*name, HeaderValue::from_str(value).unwrap());
    }
    client.send(Method::POST, "/v1/chat/completions", all, body.to_string()).await
}

fn content(reply: &forethought_tests::Reply) -> String {
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_format_is_rewritten_and_annotated() {
    let upstream = FakeUpstream::answering("{\"choices\": []}").await;
    for (sample_of, score, decision) in [("pii_redact", 0.0, "rewrite"), ("annotate", 0.3, "annotate")] {
        let proxy =
            TestProxy::start(&FakeGuard::scoring(score), &upstream.url(), &plugin(sample(sample_of), ""))
                .await;
        for format in FORMATS {
            let body = |text: &str| {
                let mut body = format.ask(text, false);
                body["seed"] = json!(1.5);
                body.to_string()
            };
            let asked = body("Write to jane@mail.example.com, please.");
            let reply = proxy.client().send(Method::POST, format.path, json_headers(), asked.clone()).await;
            assert_eq!(reply.header("x-forethought-decision"), decision, "{}: {}", format.name, reply.code());
            let sent = String::from_utf8(upstream.seen().last().unwrap().body.to_vec()).unwrap();
            if decision == "rewrite" {
                assert_eq!(sent, body("Write to [EMAIL], please."), "{}", format.name);
            } else {
                assert!(sent.contains("Someone would be hurt."), "{}: {sent}", format.name);
                assert!(sent.contains("please.") && sent.contains("\"seed\":1.5"), "{}: {sent}", format.name);
            }
        }
        assert!(proxy.records().await.iter().all(|record| record["decision"] == decision));
    }
}

#[tokio::test]
async fn hostile_plugins_deny_in_time_and_hold_nobody_up() {
    let upstream = FakeUpstream::answering("{\"choices\": []}").await;
    let folder = tempfile::tempdir().unwrap();
    for (index, (name, kind, guest)) in hostile().into_iter().enumerate() {
        if name == "slow host call" {
            continue; // the proxy has no facts that could be slow; the host's own tests have some
        }
        let path = write(&folder, &format!("{index}.wasm"), &guest);
        for (on_failure, status, decision) in [("closed", 403, "deny"), ("open", 200, "allow")] {
            let more = format!("name = \"bad\"\ntime_ms = 100\non_failure = \"{on_failure}\"");
            let toml = plugin(path.display(), &more);
            let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
            let client = proxy.client();
            let begun = Instant::now();
            let body = chat("hi", json!({}));
            let (hit, beside) = tokio::join!(
                client.chat(&body),
                client.send(Method::GET, "/v1/models", HeaderMap::new(), "")
            );
            assert!(begun.elapsed() < MARGIN, "{name}: {:?}", begun.elapsed());
            assert_eq!(hit.status, status, "{name}");
            assert_eq!(beside.status, 200, "{name}");
            // The next request is answered as the first was.
            assert_eq!(client.chat(&body).await.status, status, "{name}");
            let records = proxy.records().await;
            let record = records.iter().find(|record| record["method"] == "POST").unwrap();
            assert_eq!(record["decision"], decision, "{name}");
            if on_failure == "closed" {
                assert_eq!((hit.code().as_str(), &record["by"]), ("policy_failed", &json!("policy.plugins")));
                assert_eq!(hit.header("x-should-retry"), "false");
                assert!(record["reason"].as_str().unwrap().contains("the policy `bad` failed"), "{kind}");
            } else {
                assert_eq!(record["flags"], json!(["failed:bad"]), "{name}");
            }
        }
    }
    let seen = upstream.seen();
    assert_eq!(seen.iter().filter(|seen| seen.method == Method::POST).count(), 2 * (hostile().len() - 1));
}

#[tokio::test]
async fn samples_decide_in_the_proxy() {
    let upstream = FakeUpstream::answering("{\"from\": \"usual\"}").await;
    let careful = FakeUpstream::answering("{\"from\": \"careful\"}").await;
    // The score and the hazard are the message.
    let guard = FakeGuard::finding(|conversation| {
        let text = conversation.messages.last().and_then(|m| m.parts[0].text()).unwrap_or_default();
        let (score, hazard) = text.split_once(' ').unwrap_or((text, "cyber"));
        let hazard = hazard.split(' ').next().map(Hazard::new);
        Ok(Evidence { hazard, ..evidence(score.parse().unwrap_or(0.0)) })
    });
    let toml = [
        "policy.tenant_header = \"x-tenant\"\n".to_owned(),
        format!("[upstreams.careful]\nurl = \"{}\"\n", careful.url()),
        plugin(sample("allowlist"), "config = { tenants = { Red-Team = [\"cyber\"] } }"),
        plugin(sample("safe_completion"), ""),
        plugin(sample("pii_redact"), "config = { below = 0.2 }"),
        plugin(sample("annotate"), "config = { from = 0.2, below = 0.3 }"),
        plugin(sample("escalate"), "config = { upstream = \"careful\", from = 0.3, to = 0.5 }"),
        plugin(sample("thresholds"), "name = \"last\"\nconfig = { message = \"No.\" }"),
    ]
    .concat();
    let proxy = TestProxy::start(&guard, &upstream.url(), &toml).await;
    let client = proxy.client();
    let ask = async |text: &str, headers: &[(&'static str, &str)]| {
        let reply = send(&client, &chat(text, json!({"seed": 1.50})), headers).await;
        (reply.header("x-forethought-decision").to_owned(), reply)
    };
    let (decision, reply) = ask("0.0 cyber", &[]).await;
    assert_eq!((decision.as_str(), &reply.json()["from"]), ("allow", &json!("usual")));
    let (decision, reply) = ask("0.9 cyber", &[]).await;
    assert_eq!((decision.as_str(), content(&reply).as_str()), ("refuse", "No."));
    let (decision, _) = ask("0.9 cyber", &[("x-tenant", "Red-Team")]).await;
    assert_eq!(decision, "allow");
    let (decision, _) = ask("0.9 hate", &[("x-tenant", "Red-Team")]).await;
    assert_eq!(decision, "refuse");
    let (decision, reply) = ask("0.4 self-harm", &[("accept-language", "de-CH;q=0.9, xx")]).await;
    assert_eq!(decision, "refuse");
    assert!(content(&reply).contains("in der Schweiz 143"), "{}", content(&reply));
    let (decision, _) = ask("0.1 privacy mail me@x.example", &[]).await;
    assert_eq!(decision, "rewrite");
    let (decision, _) = ask("0.25 cyber", &[]).await;
    assert_eq!(decision, "annotate");
    let (decision, reply) = ask("0.4 cyber", &[]).await;
    assert_eq!((decision.as_str(), &reply.json()["from"]), ("redirect", &json!("careful")));

    let bodies: Vec<String> =
        upstream.seen().iter().map(|seen| String::from_utf8(seen.body.to_vec()).unwrap()).collect();
    assert_eq!(bodies.len(), 4);
    let sent = |text: &str| chat(text, json!({"seed": 1.50})).to_string();
    assert_eq!(bodies[0], sent("0.0 cyber"));
    assert_eq!(bodies[2], sent("0.1 privacy mail [EMAIL]"));
    let annotated: Value = serde_json::from_str(&bodies[3]).unwrap();
    assert_eq!(annotated["messages"][0]["role"], "system");
    let note = annotated["messages"][0]["content"].as_str().unwrap();
    assert!(note.contains("Harmfulness assessment: Someone would be hurt."), "{note}");
    assert_eq!(annotated["messages"][1]["content"], "0.25 cyber");
    assert_eq!(careful.seen().len(), 1);
    assert_eq!(&careful.seen()[0].body[..], sent("0.4 cyber").as_bytes());

    let records = proxy.records().await;
    let of = |key: &str| records.iter().map(|record| record[key].clone()).collect::<Vec<_>>();
    assert_eq!(
        of("by"),
        ["last", "last", "allowlist", "last", "safe-completion", "pii-redact", "annotate", "escalate"]
    );
    assert_eq!(records[2]["flags"], json!(["allowlisted"]));
    assert_eq!(
        (&records[2]["tenant"], &records[4]["languages"]),
        (&json!("Red-Team"), &json!(["xx", "de-ch"]))
    );
    assert_eq!(records[7]["upstream"], "careful");
    let policies = records[0]["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 6);
    assert_eq!((&policies[5]["name"], &policies[5]["version"]), (&json!("last"), &json!("0.1.0")));
    assert!(policies.iter().all(|policy| policy["sha256"].as_str().unwrap().len() == 64));
    assert!(records[0]["timings"]["policy_ms"].is_number());
}

#[tokio::test]
async fn what_can_not_be_done_is_denied() {
    let upstream = FakeUpstream::answering("{}").await;
    let escalate = plugin(sample("escalate"), "config = { upstream = \"nowhere\", from = 0.0, to = 0.5 }");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &escalate).await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (403, "no_such_upstream"));
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!((&record["decision"], &record["by"]), (&json!("deny"), &json!("escalate")));

    // Personal data in a tool's description has no text of its own to put another in.
    let redact = plugin(sample("pii_redact"), "");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &redact).await;
    let tool = json!({"type": "function", "function": {"name": "f", "description": "Mails me@x.example."}});
    let reply = proxy.client().chat(&chat("hi", json!({"tools": [tool]}))).await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (403, "rewrite_failed"));
    assert!(upstream.seen().is_empty());

    // In monitor mode nothing of it is acted on.
    let monitored = format!("policy.mode = \"monitor\"\n{}", plugin(sample("pii_redact"), ""));
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &monitored).await;
    let body = chat("me@x.example", json!({}));
    assert_eq!(proxy.client().chat(&body).await.status, 200);
    assert_eq!(&upstream.seen()[0].body[..], body.to_string().as_bytes());
    let [record] = proxy.records().await.try_into().unwrap();
    assert_eq!((&record["decision"], &record["ruled"]), (&json!("allow-monitored"), &json!("rewrite")));
}

/// A guest that says its version, "v1" or "v2": as a flag, and passes; or as a refusal and its reason.
fn versioned(version: u8, refuses: bool) -> Guest {
    // "v1" at 300, a list of that one string at 304.
    let decide: &'static str = match (version, refuses) {
        (1, false) => concat!(
            "(i32.store (i32.const 300) (i32.const 0x3176)) (i32.store (i32.const 304) (i32.const 300))",
            "(i32.store (i32.const 308) (i32.const 2)) (i32.store8 (i32.const 64) (i32.const 0))",
            "(i32.store (i32.const 84) (i32.const 304)) (i32.store (i32.const 88) (i32.const 1))"
        ),
        (_, false) => concat!(
            "(i32.store (i32.const 300) (i32.const 0x3276)) (i32.store (i32.const 304) (i32.const 300))",
            "(i32.store (i32.const 308) (i32.const 2)) (i32.store8 (i32.const 64) (i32.const 0))",
            "(i32.store (i32.const 84) (i32.const 304)) (i32.store (i32.const 88) (i32.const 1))"
        ),
        (1, true) => concat!(
            "(i32.store (i32.const 300) (i32.const 0x3176)) (i32.store (i32.const 68) (i32.const 300))",
            "(i32.store (i32.const 76) (i32.const 300)) (i32.store (i32.const 80) (i32.const 2))"
        ),
        (_, true) => concat!(
            "(i32.store (i32.const 300) (i32.const 0x3276)) (i32.store (i32.const 68) (i32.const 300))",
            "(i32.store (i32.const 76) (i32.const 300)) (i32.store (i32.const 80) (i32.const 2))"
        ),
    };
    Guest { decide, ..Guest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_load_is_whole_and_loses_nothing() {
    const REQUESTS: usize = 400;
    let upstream = FakeUpstream::answering("{}").await;
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.wasm"), folder.path().join("second.wasm"));
    let put = |version: u8| {
        // Whole or not at all, as a deployment would.
        for (path, refuses) in [(&first, false), (&second, true)] {
            let new = write(&folder, "new", &versioned(version, refuses));
            std::fs::rename(new, path).unwrap();
        }
    };
    put(1);
    let toml = plugin(first.display(), "name = \"first\"") + &plugin(second.display(), "name = \"second\"");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let reloader = proxy.reloader();
    let client = Arc::new(proxy.client());
    let requests: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await })
        })
        .collect();
    for version in [2, 1, 2, 1, 2] {
        put(version);
        reloader.reload().await.unwrap();
    }
    let mut texts = Vec::new();
    for request in requests {
        let reply = request.await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.header("x-forethought-decision")), (200, "refuse"));
        texts.push(content(&reply));
    }
    assert_eq!(content(&client.chat(&chat("hi", json!({}))).await), "v2");
    let records = proxy.records().await;
    assert_eq!(records.len(), REQUESTS + 1);
    for record in &records {
        assert_eq!(record["flags"], json!([record["reason"]]), "a mixed chain");
        let versions = record["policies"].as_array().unwrap();
        assert_eq!(versions.len(), 2);
    }
    let count = |text: &str| texts.iter().filter(|found| *found == text).count();
    println!("{REQUESTS} requests: {} by the first version, {} by the second", count("v1"), count("v2"));
    assert_eq!(count("v1") + count("v2"), REQUESTS);
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing() {
    let upstream = FakeUpstream::answering("{}").await;
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "x.wasm", &versioned(1, true));
    let toml = plugin(path.display(), "");
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let reloader = proxy.reloader();
    assert!(!reloader.is_changed());
    let client = proxy.client();
    let says = async || content(&client.chat(&chat("hi", json!({}))).await);
    assert_eq!(says().await, "v1");

    // Each is seen, does not load, and is not tried again until something else changes.
    let two = toml.clone() + &plugin("nowhere.wasm", "");
    for (bytes, config) in [
        (Some(&b"half a file"[..]), None),
        (None, Some("policy.threshhold = 0.1")),
        (None, Some(two.as_str())),
    ] {
        bytes.inspect(|bytes| std::fs::write(&path, bytes).unwrap());
        config.inspect(|config| proxy.rewrite_config(config));
        tokio::time::sleep(Duration::from_millis(100)).await; // until it counts as written
        assert!(reloader.is_changed());
        assert!(reloader.reload().await.is_err());
        assert!(!reloader.is_changed());
        assert_eq!(says().await, "v1");
    }
    write(&folder, "x.wasm", &versioned(2, true));
    proxy.rewrite_config(&toml);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reloader.is_changed());
    reloader.reload().await.unwrap();
    assert_eq!(says().await, "v2");
    let records = proxy.records().await;
    assert_ne!(records[0]["policies"][0]["sha256"], records.last().unwrap()["policies"][0]["sha256"]);
}
