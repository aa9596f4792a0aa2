//! `forethought serve` as a process: flags, environment, signals, exit codes.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::process::Stdio;

use forethought_tests::{Client, chat, json_headers};
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

/// A server on a free port, with its audit file in `folder`.
fn command(folder: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake-serve"));
    command
        .current_dir(folder)
        .env("FORETHOUGHT_HOME", folder)
        .env("FORETHOUGHT__LISTEN", "127.0.0.1:0")
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Starts it and waits until it listens.
async fn start(command: &mut Command) -> (Child, Lines<BufReader<ChildStderr>>, Client) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = log.next_line().await.unwrap().expect("it listens");
        if let Some((_, url)) = line.split_once("listening on ") {
            return (child, log, Client::new(url.trim().to_owned()));
        }
    }
}

#[cfg(unix)]
async fn signal(child: &Child, name: &str) {
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
}

#[cfg(unix)]
#[tokio::test]
async fn signals_end_streams_properly() {
    for (name, flags) in [("TERM", &["--set", "limits.drain_timeout_ms=20"][..]), ("INT", &[])] {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, mut log, client) = start(command(folder.path()).args(flags)).await;
        let body = chat("hi", json!({"model": "embedded", "stream": true})).to_string();
        let answer = client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
        signal(&child, name).await;
        if flags.is_empty() {
            // The drain time is long: the second signal ends it.
            while !log.next_line().await.unwrap().unwrap().contains("stopping") {}
            signal(&child, name).await;
        }
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("Well") && text.ends_with("data: [DONE]\n\n"), "{text}");
        // The log is read to its end, so that the server never waits for its reader.
        while log.next_line().await.unwrap().is_some() {}
        assert_eq!(child.wait().await.unwrap().code(), Some(0));

        let records = std::fs::read_to_string(folder.path().join("audit/audit.jsonl")).unwrap();
        let [record] = records.lines().collect::<Vec<_>>().try_into().unwrap();
        let record: Value = serde_json::from_str(record).unwrap();
        assert_eq!(
            (record["decision"].as_str(), record["outcome"].as_str()),
            (Some("allow"), Some("finished"))
        );
    }
}

/// Waits until the log says this.
async fn said(log: &mut Lines<BufReader<ChildStderr>>, words: &str) {
    while !log.next_line().await.unwrap().expect("it runs").contains(words) {}
}

#[cfg(unix)]
#[tokio::test]
async fn policies_are_reloaded_on_a_signal_and_on_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let write = |policy: &str| std::fs::write(folder.path().join("forethought.toml"), policy).unwrap();
    for (watch, by_signal) in [("policy.watch_ms = 0", true), ("policy.watch_ms = 20", false)] {
        write(watch);
        let mut command = command(folder.path());
        command.args(["--config", "forethought.toml"]);
        let (child, mut log, client) = start(&mut command).await;
        let decision = async || {
            // Streamed: the model's answer has no end.
            let body = chat("harm", json!({"model": "embedded", "stream": true})).to_string();
            let answer =
                client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
            answer.headers()["x-forethought-decision"].to_str().unwrap().to_owned()
        };
        assert_eq!(decision().await, "refuse");
        // A mistake changes nothing, and is told.
        write(&format!("{watch}\npolicy.threshhold = 2.0"));
        if by_signal {
            signal(&child, "HUP").await;
        }
        said(&mut log, "did you mean `policy.threshold`?").await;
        assert_eq!(decision().await, "refuse");
        write(&format!("{watch}\npolicy.threshold = 2.0"));
        if by_signal {
            signal(&child, "HUP").await;
        }
        said(&mut log, "the configuration was reloaded").await;
        assert_eq!(decision().await, "allow");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_and_a_wrong_key_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    for (flags, expected) in [
        (vec!["--listen".to_owned(), taken.to_string()], "can't listen on"),
        (vec!["--set".to_owned(), "gard.queue=1".to_owned()], "did you mean `guard`?"),
        (vec!["--upstream".to_owned(), "nonsense".to_owned()], "`upstream.url` (flag --upstream)"),
        (
            vec!["--set".to_owned(), "audit.path=/dev/null/x".to_owned()],
            "can't open the audit file /dev/null/x",
        ),
    ] {
        let mut child = command(folder.path()).args(&flags).spawn().unwrap();
        let mut log = String::new();
        child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(1), "{flags:?}");
        assert!(log.contains(expected), "{flags:?}: {log}");
    }
}

#[tokio::test]
async fn a_json_log_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path()).args(["--set", "log.format=json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next =
        async || -> Value { serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap() };
    let listening = next().await["message"].as_str().unwrap().to_owned();
    let client = Client::new(listening.rsplit(' ').next().unwrap().to_owned());
    client.chat(&chat("harm", json!({}))).await;
    let line = next().await;
    assert_eq!(line["message"], "POST /v1/chat/completions 200 refuse");
    assert_eq!((line["score"].as_f64(), line["hazard"].as_str()), (Some(0.97), Some("cyber")));
}
