//! Unix sockets on both sides, and HTTP/2 without TLS.

#![cfg(unix)]
#![allow(clippy::unwrap_used)] // helpers of tests

use std::{process::Stdio, sync::Arc};

use bytes::Bytes;
use forethought_proxy::{
    cli::serve::build,
    config::{CheckedConfig, Flag, Sources},
    server::Listener,
};
use forethought_tests::{FakeGuard, FakeUpstream, Respond, TestProxy, chat};
use http::{Response, Version};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixListener, UnixStream},
    process::Command,
};

/// Copies between a unix socket and a server at a port.
fn bridge(listener: UnixListener, to: String) {
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
}

#[tokio::test]
async fn an_upstream_behind_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("llm.sock");
    let upstream = FakeUpstream::answering("{\"from\": \"socket\"}").await;
    bridge(UnixListener::bind(&socket).unwrap(), upstream.host());
    let toml = format!("upstream.socket = \"{}\"", socket.display());
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "http://llm.example/v1", &toml).await;
    let client = proxy.client();
    for _ in 0..2 {
        assert_eq!(client.chat(&chat("hi", json!({}))).await.json()["from"], "socket");
    }
    assert_eq!(upstream.seen()[0].headers["host"], "llm.example");
    std::fs::remove_file(&socket).unwrap();
    let toml = format!("upstream.socket = \"{}\"", socket.display());
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), "http://llm.example/v1", &toml).await;
    assert_eq!(proxy.client().chat(&chat("hi", json!({}))).await.code(), "upstream_unreachable");
}

#[tokio::test]
async fn an_upstream_over_http_2_without_tls() {
    let upstream = FakeUpstream::start(|seen| {
        // HTTP/2 says where it goes in the request's target.
        let version = if seen.uri.authority().is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
        Respond::Whole(Response::new(Bytes::from(json!({"version": format!("{version:?}")}).to_string())))
    })
    .await;
    for (http, expected) in [("auto", "HTTP/1.1"), ("1", "HTTP/1.1"), ("2", "HTTP/2.0")] {
        let toml = format!("upstream.http = \"{http}\"");
        let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
        assert_eq!(proxy.client().chat(&chat("hi", json!({}))).await.json()["version"], expected, "{http}");
    }
}

#[tokio::test]
async fn callers_come_through_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("forethought.sock");
    let flag = |(key, value): (&str, String)| Flag { name: "test".to_owned(), key: key.to_owned(), value };
    let upstream = FakeUpstream::answering("{\"from\": \"upstream\"}").await;
    let flags = [
        ("listen", format!("unix:{}", socket.display())),
        ("upstream.url", upstream.url()),
        ("audit.enabled", "false".to_owned()),
    ];
    let sources = Sources { flags: flags.map(flag).to_vec(), ..Sources::default() };
    // A file that a server has left behind is in nobody's way; one that is in use is.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let config = CheckedConfig::load(&sources).unwrap();
    let listener = Listener::bind(&config.listen).await.unwrap();
    assert!(Listener::bind(&config.listen).await.is_err());
    let models = forethought_proxy::Models { guard: Arc::new(FakeGuard::scoring(0.1)), chat: None };
    let proxy = build(config, models).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(proxy.serve(listener, async {
        let _ = stopped.await;
    }));
    let body = chat("hi", json!({})).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close";
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    stream
        .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("{\"from\": \"upstream\"}"), "{answer}");
    drop(stop);
    server.await.unwrap().unwrap();
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_server_says_which_socket_it_listens_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_fake-serve"))
        .current_dir(folder.path())
        .env("FORETHOUGHT_HOME", folder.path())
        .args(["--listen", &format!("unix:{}", socket.display())])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let line = BufReader::new(child.stderr.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    assert!(line.contains(&format!("listening on unix:{}", socket.display())), "{line}");
    // A file that is no socket is nobody's to take away.
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(Listener::bind(&forethought_proxy::config::Listen::Unix(file.clone())).await.is_err());
    assert!(file.exists());
}
