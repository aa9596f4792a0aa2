//! `forethought audit`: what it says of files that a proxy wrote, rotated and compressed ones included.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    io::{self, Write},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use clap::Parser;
use forethought_proxy::cli::{audit, config::ConfigArgs};
use forethought_tests::{FakeGuard, FakeUpstream, TestProxy, chat};
use serde_json::{Value, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    audit: audit::AuditArgs,
}

fn run(file: &Path, args: &[&str]) -> String {
    let file = file.to_str().unwrap();
    let cli = [&["audit", args[0], "--file", file], &args[1..]].concat();
    let cli = Cli::try_parse_from(cli).unwrap_or_else(|error| panic!("{error}"));
    let mut out = Vec::new();
    audit::run(&cli.audit, &ConfigArgs::default(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_found_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let upstream = FakeUpstream::answering("{}").await;
    let toml = format!("audit = {{ path = \"{}\", max_bytes = 4096, compress = true }}\n", file.display());
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &toml).await;
    for number in 0..30 {
        let text = if number % 3 == 0 { "harm" } else { "hello" };
        proxy.client().chat(&chat(text, json!({}))).await;
    }
    proxy.proxy.audit().flush().await;
    proxy.records().await;
    let names = || {
        let names = std::fs::read_dir(folder.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    // The latest one may still be at it.
    while names().iter().any(|name| name.ends_with(".tmp")) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(names().iter().any(|name| name.ends_with(".gz")), "{:?}", names());

    assert_eq!(run(&file, &["grep", "--count"]), "30\n");
    assert_eq!(run(&file, &["grep", "--count", "--decision", "refuse"]), "10\n");
    assert_eq!(run(&file, &["grep", "--count", "--hazard", "cyber", "--min-score", "0.9"]), "10\n");
    assert_eq!(run(&file, &["grep", "--count", "--since", "1h", "--decision", "allow"]), "20\n");
    assert_eq!(run(&file, &["grep", "--count", "--until", "1h"]), "0\n");
    assert_eq!(run(&file, &["grep", "--count", "--tenant", "nobody"]), "0\n");
    assert_eq!(run(&file, &["grep", "openai-chat", "--count"]), "30\n");
    let refused = run(&file, &["grep", "--decision", "refuse"]);
    let line = refused.lines().next().unwrap();
    for words in
        [" refuse ", " 200 POST /v1/chat/completions ", "score=0.970", "hazard=cyber", "by=thresholds"]
    {
        assert!(line.contains(words), "{line}");
    }

    // The latest ones, in order.
    let all = run(&file, &["grep", "--json"]);
    let tail = run(&file, &["tail", "-n", "7", "--json"]);
    assert_eq!(tail.lines().collect::<Vec<_>>(), all.lines().skip(23).collect::<Vec<_>>());
    let ids: Vec<Value> =
        all.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect();
    assert_eq!(ids.len(), 30);
    let id = ids[4].as_str().unwrap();
    assert_eq!(run(&file, &["grep", "--id", id, "--count"]), "1\n");

    let stats: Value = serde_json::from_str(&run(&file, &["stats", "--json"])).unwrap();
    assert_eq!(stats["requests"], 30);
    assert_eq!(stats["decisions"], json!({"allow": 20, "refuse": 10}));
    assert_eq!(stats["by"], json!({"cyber": {"refuse": 10}}));
    let plotted =
        stats["rows"].as_array().unwrap().iter().flat_map(|row| row["decisions"].as_object().unwrap());
    assert_eq!(plotted.map(|(_, count)| count.as_u64().unwrap()).sum::<u64>(), 30);
    let shown = run(&file, &["stats", "--by", "signal"]);
    for words in ["30 requests", "66.7 %", "reason", "p95", "a full bar", "█", "▓"] {
        assert!(shown.contains(words), "{words}\n{shown}");
    }

    // A line that was not finished is not an error, and one that is no record is.
    let mut open = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
    open.write_all(b"{\"id\": \"unfin").unwrap();
    assert_eq!(run(&file, &["grep", "--count"]), "30\n");
    open.write_all(b"ished\"}\n").unwrap();
    let cli = Cli::try_parse_from(["audit", "grep", "--file", file.to_str().unwrap()]).unwrap();
    let error = audit::run(&cli.audit, &ConfigArgs::default(), &mut Vec::new()).unwrap_err();
    assert!(format!("{error:#}").contains("no audit record"), "{error:#}");
}

/// Somebody who reads lines until they have seen enough.
struct Reader(mpsc::Sender<String>, Vec<u8>);

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(bytes);
        while let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.1.drain(..=end).collect();
            let sent = self.0.send(String::from_utf8(line).unwrap());
            sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_to_come_are_followed_through_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let upstream = FakeUpstream::answering("{}").await;
    // A file holds about four records, so that many are begun and ended between two looks.
    let toml = format!(
        "audit = {{ path = \"{}\", max_bytes = 4096, keep = 50, compress = true }}\n",
        file.display()
    );
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), &toml).await;
    let ask = async |times| {
        for _ in 0..times {
            proxy.client().chat(&chat("hello", json!({}))).await;
        }
        proxy.proxy.audit().flush().await;
    };
    ask(3).await;
    let args = ["audit", "tail", "--file", file.to_str().unwrap(), "-n", "2", "--follow", "--json"];
    let (cli, (sender, lines)) = (Cli::try_parse_from(args).unwrap(), mpsc::channel());
    let following = std::thread::spawn(move || {
        audit::run(&cli.audit, &ConfigArgs::default(), &mut Reader(sender, vec![]))
    });
    let mut seen = Vec::new();
    let mut read = |count: usize| {
        while seen.len() < count {
            let line = lines.recv_timeout(Duration::from_secs(20)).expect("a record");
            seen.push(serde_json::from_str::<Value>(&line).unwrap()["id"].clone());
        }
    };
    read(2);
    for round in 1..=3 {
        ask(20).await;
        read(2 + 20 * round);
    }
    drop(lines);
    ask(1).await;
    let error = following.join().unwrap().unwrap_err();
    assert!(error.is::<io::Error>(), "{error:#}");

    let all = run(&file, &["grep", "--json"]);
    let ids = all.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone());
    assert_eq!(seen, ids.skip(1).take(62).collect::<Vec<_>>());
}
