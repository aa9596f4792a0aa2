//! Requests that two servers might take for different ones, as `docs/smuggling.md` says it: each is rejected or forwarded
//! in a form that can be read in one way only, and what a request hides never becomes a request of its own unjudged.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use forethought_core::conversation::Part;
use forethought_tests::{FakeGuard, RawRequest, RawUpstream, Step, TestProxy, is_written};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, time::timeout};

/// Connections that wait for more are closed soon.
const TOML: &str = "limits.header_timeout_ms = 400\nlimits.body_timeout_ms = 400\n";

fn body(text: &str) -> String {
    json!({"messages": [{"role": "user", "content": text}]}).to_string()
}

/// A request with these headers beside the usual ones, and this after them.
fn post(headers: &str, rest: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n{rest}"
    )
}

/// A request that is right, but must not be served: a guard that sees it refuses it.
fn hidden() -> String {
    let body = body("harm");
    post(&format!("x-hidden: yes\r\ncontent-length: {}\r\n", body.len()), &body)
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// A right body in chunks, with these headers.
fn chunked(headers: &str) -> String {
    post(headers, &(chunk(&body("hi")) + "0\r\n\r\n"))
}

/// A right body of a known length, with these headers.
fn sized(headers: &str) -> String {
    let body = body("hi");
    post(&format!("content-length: {}\r\n{headers}", body.len()), &body)
}

/// A right request but for its first line and host.
fn aimed(line: &str, host: &str) -> String {
    let body = body("hi");
    let length = body.len();
    format!("{line}\r\n{host}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

const TE: &str = "transfer-encoding: chunked\r\n";

fn shapes() -> Vec<(&'static str, String)> {
    let hi = body("hi");
    let n = hi.len();
    let hidden = hidden();
    let all = n + hidden.len();
    vec![
        ("an ordinary request", sized("")),
        ("an ordinary request in chunks", chunked(TE)),
        ("two requests, the second one harmful", sized("") + &hidden),
        (
            "a length and chunks; a request follows",
            post(&format!("content-length: {all}\r\n{TE}"), &format!("{}0\r\n\r\n{hidden}", chunk(&hi))),
        ),
        (
            "chunks and a length; a request follows",
            post(&format!("{TE}content-length: {all}\r\n"), &format!("{}0\r\n\r\n{hidden}", chunk(&hi))),
        ),
        (
            "a length of the chunks' first line",
            post(&format!("content-length: 4\r\n{TE}"), &format!("{}0\r\n\r\n", chunk(&hidden))),
        ),
        (
            "two lengths that differ",
            post(&format!("content-length: {n}\r\ncontent-length: {all}\r\n"), &format!("{hi}{hidden}")),
        ),
        (
            "two lengths that differ, the longer one first",
            post(&format!("content-length: {all}\r\ncontent-length: {n}\r\n"), &format!("{hi}{hidden}")),
        ),
        ("the same length twice", sized(&format!("content-length: {n}\r\n"))),
        ("the same length twice in one line", post(&format!("content-length: {n}, {n}\r\n"), &hi)),
        ("a length with a sign", post(&format!("content-length: +{n}\r\n"), &hi)),
        ("a length below zero", post("content-length: -1\r\n", &hi)),
        ("a length in hexadecimal", post(&format!("content-length: 0x{n:x}\r\n"), &hi)),
        ("an empty length", post("content-length:\r\n", &hi)),
        ("a length beyond all numbers", post("content-length: 99999999999999999999999\r\n", &hi)),
        (
            "a length that ends before the body",
            post(&format!("content-length: {n}\r\n"), &format!("{hi}{hidden}")),
        ),
        ("a length in a name with a blank", post(&format!("content-length : {n}\r\n"), &hi)),
        (
            "a length whose name begins the folded line before",
            post(&format!("x-a: b\r\n content-length: {n}\r\n"), &hi),
        ),
        ("no length at all; a request follows", post("", &hidden)),
        ("a header in two lines", sized("x-a: b\r\n c\r\n")),
        ("`transfer-encoding` in two lines", chunked("transfer-encoding:\r\n chunked\r\n")),
        ("`transfer-encoding` with a blank before its colon", chunked("transfer-encoding : chunked\r\n")),
        ("`transfer-encoding` after a tab", chunked("transfer-encoding:\tchunked\r\n")),
        ("`Transfer-Encoding: CHUNKED`", chunked("Transfer-Encoding: CHUNKED\r\n")),
        ("`transfer-encoding: xchunked`", chunked("transfer-encoding: xchunked\r\n")),
        (
            "`transfer-encoding: xchunked`, with a length",
            post(&format!("content-length: {n}\r\ntransfer-encoding: xchunked\r\n"), &hi),
        ),
        ("`transfer-encoding: chunked, identity`", chunked("transfer-encoding: chunked, identity\r\n")),
        ("`transfer-encoding: identity`", chunked("transfer-encoding: identity\r\n")),
        ("`transfer-encoding: gzip, chunked`", chunked("transfer-encoding: gzip, chunked\r\n")),
        ("`transfer-encoding: chunked` twice", chunked(&TE.repeat(2))),
        (
            "`transfer-encoding` chunked, then identity",
            chunked(&format!("{TE}transfer-encoding: identity\r\n")),
        ),
        ("`transfer-encoding: \"chunked\"`", chunked("transfer-encoding: \"chunked\"\r\n")),
        ("`transfer-encoding` with a vertical tab", chunked("transfer-encoding: chunked\x0b\r\n")),
        ("`transfer_encoding: chunked`, with a length", sized("transfer_encoding: chunked\r\n")),
        ("chunks in HTTP/1.0", chunked(TE).replace("HTTP/1.1", "HTTP/1.0")),
        ("a chunk's size in no digits", post(TE, &format!("zz\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk's size with a sign", post(TE, &format!("+{n:x}\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk's size below zero", post(TE, &format!("-{n:x}\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk's size with `0x`", post(TE, &format!("0x{n:x}\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk's size beyond all numbers", post(TE, &format!("1{n:016x}\r\n{hi}\r\n0\r\n\r\n{hidden}"))),
        ("a chunk's size with leading zeros", post(TE, &format!("000{n:x}\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk with an extension", post(TE, &format!("{n:x};a=b\r\n{hi}\r\n0\r\n\r\n"))),
        (
            "a chunk with an extension that ends in a bare LF",
            post(TE, &format!("{n:x};a\n{hi}\r\n0\r\n\r\n{hidden}")),
        ),
        ("a chunk's size before a bare LF", post(TE, &format!("{n:x}\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk that is longer than its size", post(TE, &format!("2\r\n{hi}\r\n0\r\n\r\n"))),
        ("a chunk without an end", post(TE, &format!("{n:x}\r\n{hi}0\r\n\r\n"))),
        ("a last chunk `00`", post(TE, &format!("{}00\r\n\r\n", chunk(&hi)))),
        ("no last chunk", post(TE, &chunk(&hi))),
        ("a length as trailer", post(TE, &format!("{}0\r\ncontent-length: {all}\r\n\r\n", chunk(&hi)))),
        ("a request after the last chunk", post(TE, &format!("{}0\r\n\r\n{hidden}", chunk(&hi)))),
        ("a head with bare LFs", sized("").replacen("\r\n", "\n", 5)),
        ("a head with a bare CR", sized("x-a: b\rtransfer-encoding: chunked\r\n")),
        ("a NUL in a header", sized("x-a: \0\r\n")),
        ("a header without a name", sized(": x\r\n")),
        ("a header without a colon", sized("x-a\r\n")),
        ("a line that begins with a blank", sized("").replacen("host:", " host:", 1)),
        (
            "another host in the target",
            aimed("POST http://elsewhere/v1/chat/completions HTTP/1.1", "host: x\r\n"),
        ),
        (
            "another scheme in the target",
            aimed("POST ftp://elsewhere/v1/chat/completions HTTP/1.1", "host: x\r\n"),
        ),
        ("two hosts", aimed("POST /v1/chat/completions HTTP/1.1", "host: x\r\nhost: elsewhere\r\n")),
        ("no host", aimed("POST /v1/chat/completions HTTP/1.1", "")),
        ("a host that is none", aimed("POST /v1/chat/completions HTTP/1.1", "host: a b/c@d\r\n")),
        ("`CONNECT`", "CONNECT elsewhere:80 HTTP/1.1\r\nhost: elsewhere\r\n\r\n".to_owned() + &hidden),
        ("two blanks in the first line", aimed("POST  /v1/chat/completions HTTP/1.1", "host: x\r\n")),
        (
            "another request in the first line",
            aimed("POST /v1/chat/completions HTTP/1.1 HTTP/1.1", "host: x\r\n"),
        ),
        ("HTTP/1.2", aimed("POST /v1/chat/completions HTTP/1.2", "host: x\r\n")),
        ("HTTP/0.9", "GET /v1/models\r\n".to_owned()),
        (
            "an upgrade to h2c",
            sized(
                "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
            ),
        ),
        (
            "an upgrade to a web socket",
            format!(
                "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{hidden}"
            ),
        ),
        ("`connection: content-length`", sized("connection: content-length\r\n")),
        ("`connection: transfer-encoding`", chunked(&format!("{TE}connection: transfer-encoding\r\n"))),
        ("`connection: host, content-type`", sized("connection: host, content-type\r\n")),
        (
            "a `GET` with a request as body",
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        ),
        (
            "a `GET` with a request in chunks",
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{TE}\r\n{}0\r\n\r\n", chunk(&hidden)),
        ),
        ("`expect` what nobody knows", sized("expect: the-unexpected\r\n")),
        ("`x-http-method-override`", sized("x-http-method-override: DELETE\r\n")),
    ]
}

/// What became of a request: the answers' statuses and how many requests reached the upstream.
async fn send(bytes: &[u8]) -> (Vec<u16>, usize) {
    let seen: Arc<Mutex<Vec<RawRequest>>> = Arc::default();
    let upstream = RawUpstream::start({
        let seen = seen.clone();
        move |request| {
            seen.lock().unwrap().push(request.clone());
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            vec![Step::Send(Bytes::from_static(answer.as_bytes()))]
        }
    })
    .await;
    let guard = FakeGuard::reading();
    let proxy = TestProxy::start(&guard, &upstream.url(), TOML).await;
    let mut stream = proxy.connect(bytes).await;
    let mut answer = Vec::new();
    // The proxy closes connections that wait for more; those over HTTP/2 stay.
    let _ = timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let seen = seen.lock().unwrap().clone();
    for request in &seen {
        let RawRequest { head, body } = request;
        let lower = head.to_ascii_lowercase();
        let body = String::from_utf8_lossy(body);
        assert!(!lower.contains("x-hidden") && !body.contains("harm"), "{head}{body}");
        for header in ["upgrade:", "http2-settings:", "connection:", "x-http-method-override:", "expect:"] {
            assert!(!lower.contains(header), "{head}");
        }
        // One framing, and one host: our own.
        let lengths = lower.matches("\r\ncontent-length:").count();
        assert_eq!(
            lengths + lower.matches("\r\ntransfer-encoding:").count(),
            usize::from(!body.is_empty()),
            "{head}"
        );
        assert_eq!(lower.matches("\r\nhost: 127.0.0.1:").count(), 1, "{head}");
        assert_eq!(lower.matches("\r\nhost:").count(), 1, "{head}");
        if lower.starts_with("get ") {
            assert!(body.is_empty(), "{head}{body}");
            continue;
        }
        // What went up is what a guard has read.
        let sent: Value = serde_json::from_str(&body).unwrap();
        let text = sent["messages"][0]["content"].as_str().unwrap();
        let read = |part: &Part| part.text() == Some(text);
        assert!(guard.seen().iter().any(|conversation| conversation.parts().any(|(_, part)| read(part))));
    }
    let statuses: Vec<u16> =
        answer.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)?.parse().ok()).collect();
    drop(stream);
    // Whatever a head was read of is recorded.
    let records = proxy.records().await;
    assert!(records.len() >= seen.len() && records.len() <= 2, "{records:?}");
    (statuses, upstream.requests())
}

#[tokio::test]
async fn the_table_says_what_becomes_of_odd_requests() {
    let shapes = shapes();
    let outcomes = join_all(shapes.iter().map(|(_, request)| send(request.as_bytes()))).await;
    let mut text = "# Requests that can be read in two ways\n\n\
        Written by `tests/tests/smuggling.rs`, which sends each of these over a connection of its own; after some of them\n\
        a harmful request follows, or hides in the body. The upstream sees every forwarded request in one form: written anew,\n\
        with one length and one host, and only if the guard has read it or it has no body. A harmful one never arrives.\n\n\
        | request | answers | requests that reach the upstream |\n| --- | --- | --- |\n"
        .to_owned();
    for ((name, _), (statuses, reached)) in shapes.iter().zip(outcomes) {
        let told: Vec<String> = statuses.iter().map(u16::to_string).collect();
        let told = if told.is_empty() { "closed".to_owned() } else { told.join(", ") };
        // An answer of 200 is the upstream's or a refusal; everything else reached nobody.
        let good = statuses.iter().filter(|status| **status == 200).count();
        assert!(reached <= good && reached <= 1, "{name}: {told}, {reached}");
        text += &format!("| {name} | {told} | {reached} |\n");
    }
    is_written("smuggling.md", &text);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A request over HTTP/2 with these header fields, written as they are.
fn http2(fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let own = |name| fields.iter().any(|(own, _)| *own == name);
    let method = if own(":method") { &[][..] } else { &[(":method", "POST")] };
    let usual = [method, &[(":scheme", "http"), ("content-type", "application/json")]].concat();
    let field = |(name, value): &(&str, &str)| {
        let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], string(name), string(value)].concat()
    };
    let pseudo = |(name, _): &&(&str, &str)| name.starts_with(':');
    let all: Vec<&(&str, &str)> = usual.iter().chain(fields).collect();
    let ordered = all.iter().filter(|field| pseudo(field)).chain(all.iter().filter(|field| !pseudo(field)));
    let block: Vec<u8> = ordered.flat_map(|own| field(own)).collect();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 1, 1, body.as_bytes()),
    ]
    .concat()
}

#[tokio::test]
async fn http2_does_not_become_two_requests_of_http1() {
    const PATH: (&str, &str) = (":path", "/v1/chat/completions");
    let hi = body("hi");
    let length = hi.len().to_string();
    let authority = (":authority", "x");
    let cases: &[(&[(&str, &str)], usize)] = &[
        (&[PATH, authority], 1),
        (&[PATH, authority, ("content-length", &length)], 1),
        (&[PATH, authority, ("host", "elsewhere")], 1),
        (&[PATH, authority, ("content-length", "2")], 0),
        (&[PATH, authority, ("content-length", "9999")], 0),
        (&[PATH, authority, ("transfer-encoding", "chunked")], 0),
        (&[PATH, authority, ("connection", "x")], 0),
        (&[PATH, authority, ("x-a", "b\r\nx-hidden: yes")], 0),
        (&[PATH, authority, ("x-a\r\nx-hidden", "yes")], 0),
        (&[PATH, authority, ("X-A", "b")], 0),
        (&[(":path", "/v1/chat/completions HTTP/1.1\r\nx-hidden: yes"), authority], 0),
        (&[PATH, PATH, authority], 0),
        (&[(":path", "http://elsewhere/v1/chat/completions"), authority], 0),
    ];
    join_all(cases.iter().map(async |(fields, reached)| {
        assert_eq!(send(&http2(fields, &hi)).await.1, *reached, "{fields:?}");
    }))
    .await;
    // That there is no body may be said after the head.
    let get = [(":method", "GET"), (":path", "/v1/models"), authority];
    assert_eq!(send(&http2(&get, "")).await.1, 1);
    assert_eq!(send(&http2(&get, &hidden())).await.1, 0);
}
