//! What becomes of requests that can't be judged, as `docs/failure-rules.md` says it: every failure, with its setting both
//! ways, in every format, streamed and not.

#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "../../plugins/tests/support/guest.rs"]
mod guest;

use std::{collections::BTreeSet, thread, time::Duration};

use bytes::Bytes;
use forethought_core::{
    conversation::Role,
    evidence::{Coverage, Evidence},
    guard::GuardError,
};
use forethought_tests::{
    FORMATS, FakeGuard, FakeUpstream, Format, Reply, Respond, TestProxy, chat, evidence, is_written,
    json_headers,
};
use http::{Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use self::guest::{Guest, hostile};

const ON: &str = "response_guard.enabled = true\n";

/// Something that goes wrong.
struct Failure {
    name: &'static str,
    /// The setting that decides, and its two values; both are empty where none does.
    setting: &'static str,
    values: [&'static str; 2],
    /// Other lines of the configuration.
    toml: String,
    guard: FakeGuard,
    /// What is asked.
    ask: fn(&Format, bool) -> Value,
}

impl Failure {
    fn new(name: &'static str, setting: &'static str, guard: FakeGuard) -> Self {
        let values = match setting {
            "" => [""; 2],
            "policy.on_unreadable" | "policy.on_truncated" => ["deny", "allow"],
            _ => ["closed", "open"],
        };
        Self {
            name,
            setting,
            values,
            toml: String::new(),
            guard,
            ask: |format, stream| format.ask("hi", stream),
        }
    }

    fn toml(self, toml: impl Into<String>) -> Self {
        Self { toml: toml.into(), ..self }
    }

    /// The configuration with the setting at this value.
    fn config(&self, value: &str) -> String {
        let Self { setting, toml, .. } = self;
        match *setting {
            "" => toml.clone(),
            // A plugin's own setting stands in its table, the last one.
            "on_failure" => format!("{toml}on_failure = \"{value}\"\n"),
            _ => format!("{setting} = \"{value}\"\n{toml}"),
        }
    }
}

/// A guard that fails on answers only.
fn failing_on_answers(error: GuardError) -> FakeGuard {
    FakeGuard::finding(move |conversation| match conversation.messages.last() {
        Some(last) if last.role == Role::Assistant => Err(error.clone()),
        _ => Ok(evidence(0.0)),
    })
}

fn truncating() -> FakeGuard {
    FakeGuard::finding(|_| {
        let coverage = Coverage { tokens: 100, tokens_read: 60, windows: 2, ..Coverage::default() };
        Ok(Evidence { coverage, ..evidence(0.0) })
    })
}

/// A request with a part that no guard reads.
fn unreadable(format: &Format, stream: bool) -> Value {
    let mut body = format.ask("hi", stream);
    let (at, part) = match format.name {
        "openai-chat" => ("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
        "openai-completions" => ("prompt", json!([1, 2])),
        "openai-responses" => ("input", json!([{"role": "user", "content": [{"type": "input_image"}]}])),
        "anthropic-messages" => ("messages", json!([{"role": "user", "content": [{"type": "image"}]}])),
        "ollama-chat" => ("messages", json!([{"role": "user", "content": "", "images": ["AAAA"]}])),
        "ollama-generate" => ("images", json!(["AAAA"])),
        _ => ("contents", json!([{"role": "user", "parts": [{"inlineData": {}}]}])),
    };
    body[at] = part;
    body
}

/// An upstream that answers in the format that it is asked in.
async fn upstream() -> FakeUpstream {
    FakeUpstream::start(|request| {
        let target = request.uri.path_and_query().unwrap().as_str();
        let asked: Value = serde_json::from_slice(&request.body).unwrap();
        let stream = asked["stream"] == true || target.contains("stream");
        let format = FORMATS.iter().find(|format| format.target(stream) == target).unwrap();
        let (kind, body) = format.answer("Well.", stream);
        Respond::Whole(Response::builder().header("content-type", kind).body(Bytes::from(body)).unwrap())
    })
    .await
}

/// What a caller sees of it: status, the word for the error where the format has one, decision, and what to do.
fn seen(format: &Format, reply: &Reply) -> String {
    let decision = reply.header("x-forethought-decision");
    let text = String::from_utf8_lossy(&reply.body);
    assert!(!text.contains("Authorization") && !text.contains("panicked"), "{text}");
    if reply.status.is_success() {
        let broken = text.contains("\"error\"");
        let error = if broken { ", an error ends the stream" } else { "" };
        return format!("{}, `{decision}`{error}", reply.status.as_u16());
    }
    let json = reply.json();
    let message = format.error(&json);
    assert!(!message.is_empty(), "{}: {text}", format.name);
    let retry = match (reply.header("x-should-retry"), reply.header("retry-after")) {
        ("false", "") => ", not again",
        ("", "2") => ", later",
        ("", "") => "",
        odd => panic!("{odd:?}"),
    };
    format!("{}, `{decision}`{retry}", reply.status.as_u16())
}

/// One cell: what all callers see, and whether the upstream was asked.
async fn cell(failure: &Failure, value: &str, url: Option<&str>) -> String {
    told(failure, &failure.config(value), value, url, url.is_none()).await
}

/// The same in the order `parallel`, in which the upstream may have been asked whatever comes of it.
async fn cell_in_parallel(failure: &Failure, value: &str) -> String {
    let config = format!("policy.order = \"parallel\"\n{}", failure.config(value));
    told(failure, &config, value, None, false).await
}

/// The same where nothing is acted on.
async fn cell_monitored(failure: &Failure) -> String {
    let config = format!("policy.mode = \"monitor\"\n{}", failure.config(failure.values[0]));
    told(failure, &config, "monitor", None, true).await
}

async fn told(failure: &Failure, config: &str, value: &str, url: Option<&str>, counts: bool) -> String {
    let (upstream, guard) = (upstream().await, &failure.guard);
    let own = upstream.url();
    let proxy = TestProxy::start(guard, url.unwrap_or(&own), config).await;
    let mut cells = [BTreeSet::new(), BTreeSet::new()];
    let mut codes = BTreeSet::new();
    let mut requests = 0;
    for format in &FORMATS {
        for stream in [false, true] {
            let body = (failure.ask)(format, stream).to_string();
            let before = upstream.seen().len();
            let reply = proxy.client().send(Method::POST, format.target(stream), json_headers(), body).await;
            requests += 1;
            let asked = match upstream.seen().len() - before {
                _ if !counts => "",
                0 => ", not sent",
                1 => "",
                more => panic!("sent {more} times"),
            };
            cells[usize::from(stream)].insert(seen(format, &reply) + asked);
            if format.name.starts_with("openai") && !reply.status.is_success() {
                codes.insert(reply.code());
            }
        }
    }
    // Every format says the same.
    for cell in &cells {
        assert_eq!(cell.len(), 1, "{} {value}: {cell:?}", failure.name);
    }
    assert!(codes.len() < 2, "{codes:?}");
    let records = proxy.records().await;
    assert_eq!(records.len(), requests, "{}", failure.name);
    // An error says in the record what it was, and what went through has the mark of it.
    for record in &records {
        let marked = match record["decision"].as_str().unwrap() {
            "deny" => record["by"].is_string() && record["reason"].is_string(),
            "allow-unguarded" => record["by"] == "policy.on_failure",
            // The setting `allow` lets through without a mark, and upstreams are no business of the guard.
            _ => true,
        };
        assert!(marked, "{record}");
    }
    let [whole, streamed] = cells.map(|cell| cell.into_iter().next().unwrap());
    let code = codes.pop_first().map(|code| format!(" `{code}`")).unwrap_or_default();
    let with_code = |text: String| text.replacen(',', &format!("{code},"), 1);
    let (whole, streamed) = (whole, streamed);
    if whole == streamed {
        with_code(whole)
    } else if streamed.starts_with("200") {
        format!("{}; streamed: {streamed}", with_code(whole))
    } else {
        format!("{}; streamed: {}", with_code(whole), with_code(streamed))
    }
}

fn plugin(folder: &TempDir, name: &str, guest: &Guest) -> String {
    let path = folder.path().join(format!("{name}.wasm"));
    std::fs::write(&path, guest.component()).unwrap();
    format!("[[policy.plugins]]\nname = \"p\"\ntime_ms = 100\npath = \"{}\"\n", path.display())
}

#[tokio::test]
async fn the_table_says_what_becomes_of_failures() {
    let folder = tempfile::tempdir().unwrap();
    let model = GuardError::Model("broken".to_owned());
    let overloaded = GuardError::Overloaded { waiting: 64 };
    let benign = || FakeGuard::scoring(0.0);
    let on_failure = |name, guard| Failure::new(name, "policy.on_failure", guard);
    let guest = |name: &str| hostile().into_iter().find(|(own, ..)| *own == name).unwrap().2;
    let mut failures = vec![
        on_failure("the guard fails", FakeGuard::failing(model.clone())),
        on_failure("the guard is gone", FakeGuard::failing(GuardError::Stopped)),
        on_failure(
            "the guard's deadline",
            FakeGuard::failing(GuardError::Deadline { after: Duration::from_secs(1) }),
        ),
        on_failure("the guard hangs", FakeGuard::hanging()).toml("guard.deadline_ms = 5\n"),
        on_failure("the guard is overloaded", FakeGuard::failing(overloaded)),
        Failure {
            ask: unreadable,
            ..Failure::new("a part that can't be read", "policy.on_unreadable", benign())
        },
        Failure::new("more than the guard reads", "policy.on_truncated", truncating()),
        Failure::new("a plugin traps", "on_failure", benign()).toml(plugin(&folder, "trap", &guest("trap"))),
        Failure::new("a plugin's deadline", "on_failure", benign()).toml(plugin(
            &folder,
            "loop",
            &guest("infinite loop"),
        )),
        Failure::new("a plugin's memory", "on_failure", benign()).toml(plugin(
            &folder,
            "bomb",
            &guest("memory bomb"),
        )),
        Failure::new("a plugin returns nonsense", "on_failure", benign()).toml(plugin(
            &folder,
            "odd",
            &guest("no such variant"),
        )),
        on_failure("the guard fails on an answer", failing_on_answers(model)).toml(ON),
    ];
    let mut text = "# Failure rules\n\n\
        Written by `tests/tests/failure_rules.rs`, which sends each of these in every wire format, streamed and not; all formats\n\
        give the same. What can't be judged is denied by default, in the shape of the caller's API.\n\n\
        A cell says: status, code of the error (where the format has one), the header `x-forethought-decision`, whether clients are\n\
        told to try again (`x-should-retry`, `retry-after`), and where the request was not sent to the upstream. In the order\n\
        `parallel` callers are told the same, but what the guard or a plugin fails on may have been sent; it is cancelled.\n\n\
        | what fails | setting | `closed` or `deny` | `open` or `allow` |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for failure in &failures {
        let setting = match failure.setting {
            "on_failure" => "the plugin's `on_failure`".to_owned(),
            setting => format!("`{setting}`"),
        };
        let [closed, open] = failure.values;
        let (closed, open) = (cell(failure, closed, None).await, cell(failure, open, None).await);
        assert_ne!(closed, open, "{}", failure.name);
        assert_eq!(cell_monitored(failure).await, "200, `allow-monitored`", "{}", failure.name);
        for (value, cell) in failure.values.iter().zip([&closed, &open]) {
            let parallel = cell_in_parallel(failure, value).await;
            assert_eq!(
                parallel.replace(", not sent", ""),
                cell.replace(", not sent", ""),
                "{}",
                failure.name
            );
        }
        text += &format!("| {} | {setting} | {closed} | {open} |\n", failure.name);
    }

    // No setting makes an answer of these.
    failures.clear();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let resetting = resetting().await;
    let silent = FakeUpstream::start(|_| Respond::Hang).await;
    for (name, toml, url) in [
        ("the upstream can't be reached", "", format!("http://{free}")),
        ("the upstream breaks off before it answers", "", resetting),
        ("the upstream does not answer", "upstream.response_timeout_ms = 20\n", silent.url()),
    ] {
        let failure = Failure::new(name, "", benign()).toml(toml);
        let both = cell(&failure, "", Some(&url)).await;
        for setting in ["closed", "open"] {
            let failure = Failure::new(name, "policy.on_failure", benign()).toml(toml);
            assert_eq!(cell(&failure, setting, Some(&url)).await, both, "{name}");
        }
        text += &format!("| {name} | none | {both} | the same |\n");
    }
    text += &format!(
        "| no place for a plugin to run in time | none | {} | the same |\n",
        crowded(&folder, &guest("infinite loop")).await
    );
    text += "\nWith `policy.mode = \"monitor\"` all of these but the upstream's own go through as `allow-monitored`.\n\
        An upstream that breaks off later is in [chaos.md](chaos.md).\n";
    is_written("failure-rules.md", &text);
}

/// An upstream that closes every connection once it was asked.
async fn resetting() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.readable().await;
                let _ = stream.set_zero_linger(); // a reset, not an end
            });
        }
    });
    url
}

/// What a request sees that finds all places for plugins taken, whatever the guard's setting.
async fn crowded(folder: &TempDir, endless: &Guest) -> String {
    let mut cells = BTreeSet::new();
    for setting in ["on_failure = \"closed\"", "on_failure = \"open\"", "mode = \"monitor\""] {
        let toml = plugin(folder, "crowd", endless).replace("time_ms = 100", "time_ms = 2000");
        let toml = format!("policy.{setting}\nguard.deadline_ms = 50\n{toml}");
        let upstream = upstream().await;
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), &toml).await;
        let places = 2 * thread::available_parallelism().map_or(1, usize::from).max(2);
        let asked = (0..places + 1).map(|_| {
            let client = proxy.client();
            tokio::spawn(async move { client.chat(&chat("hi", json!({}))).await })
        });
        let mut crowded = 0;
        for reply in asked.collect::<Vec<_>>() {
            let reply = reply.await.unwrap();
            if reply.code() == "policy_overloaded" {
                cells.insert(
                    seen(&FORMATS[0], &reply).replacen(',', " `policy_overloaded`,", 1) + ", not sent",
                );
                crowded += 1;
            } else if setting.starts_with("mode") {
                assert_eq!(reply.header("x-forethought-decision"), "allow-monitored");
            }
        }
        let monitored = setting.starts_with("mode");
        assert_eq!((crowded > 0, upstream.seen().is_empty()), (!monitored, !monitored), "{setting}");
        assert_eq!(proxy.records().await.len(), places + 1);
    }
    assert_eq!(cells.len(), 1, "{cells:?}");
    cells.pop_first().unwrap()
}
