//! Allowed requests and all answers go through byte for byte.

#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::Bytes;
use forethought_tests::{Client, FakeGuard, FakeUpstream, Respond, TestProxy, chat, json_headers};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::mpsc;

/// JSON that no serialiser would write this way, with fields that nobody knows.
const ODD_REQUEST: &str = "{ \"model\" :\"m\",\n\t\"messages\":[ {\"role\":\"user\" , \"content\":\"h\\u0069\"}],\"x\":1.50,\"y\":1e2 }\n";
const ODD_ANSWER: &str = "{\"choices\" : [],\r\n \"unknown\":  1.0 }  ";

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = json_headers();
    for (name, value) in pairs {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

#[tokio::test]
async fn bytes_are_untouched_both_ways() {
    let upstream = FakeUpstream::answering(ODD_ANSWER).await;
    let guard = FakeGuard::scoring(0.1);
    let proxy = TestProxy::start(&guard, &upstream.url(), "").await;
    let sent = headers(&[("authorization", "Bearer caller"), ("x-custom", "a"), ("x-custom", "b")]);
    let reply = proxy.client().send(Method::POST, "/v1/chat/completions?a=%20b", sent, ODD_REQUEST).await;

    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.body, ODD_ANSWER);
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("x-forethought-decision"), "allow");
    assert_eq!(reply.header("x-forethought-id").len(), 36);

    let [seen] = upstream.seen().try_into().unwrap();
    assert_eq!(seen.method, Method::POST);
    assert_eq!(seen.uri, "/v1/chat/completions?a=%20b");
    assert_eq!(seen.body, ODD_REQUEST);
    assert_eq!(seen.headers["authorization"], "Bearer caller");
    assert_eq!(seen.headers.get_all("x-custom").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(guard.seen()[0].text_len(), 2);
}

#[tokio::test]
async fn streams_pass_whatever_their_pieces() {
    const STREAM: &str = ": comment\r\n\r\ndata: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"é😀\"}}]}\r\n\r\n\
                          data: {\"choices\":[]}\n\nevent: x\ndata: y\n\ndata: [DONE]\n\n";
    // Split at every byte, and at some larger sizes.
    for size in [1, 7, 64, STREAM.len()] {
        let upstream = FakeUpstream::start(move |_| {
            let (sender, pieces) = mpsc::unbounded_channel();
            for piece in STREAM.as_bytes().chunks(size) {
                sender.send(Ok(Bytes::copy_from_slice(piece))).unwrap();
            }
            Respond::Pieces(Response::builder().header("content-type", "text/event-stream"), pieces)
        })
        .await;
        let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "").await;
        let reply = proxy.client().chat(&chat("hi", json!({"stream": true}))).await;
        assert_eq!(reply.body, STREAM);
        assert_eq!(reply.header("content-type"), "text/event-stream");
    }
}

#[tokio::test]
async fn a_piece_is_passed_on_when_it_comes() {
    let (sender, pieces) = mpsc::unbounded_channel();
    let pieces = std::sync::Mutex::new(Some(pieces));
    let upstream = FakeUpstream::start(move |_| {
        Respond::Pieces(Response::builder(), pieces.lock().unwrap().take().unwrap())
    })
    .await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "").await;
    let body = chat("hi", json!({"stream": true})).to_string();
    let answer =
        proxy.client().open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
    let mut body = answer.into_body();
    for piece in ["data: 1\n\n", "data: 2\n\n"] {
        // The second is sent only after the first has arrived.
        sender.send(Ok(Bytes::from_static(piece.as_bytes()))).unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn the_upstreams_errors_are_the_callers() {
    let upstream = FakeUpstream::start(|_| {
        let response =
            Response::builder().status(429).header("retry-after", "7").header("x-request-id", "r1");
        Respond::Whole(response.body(Bytes::from_static(b"{\"error\": \"slow down\"}")).unwrap())
    })
    .await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "").await;
    let reply = proxy.client().chat(&chat("hi", json!({}))).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((reply.header("retry-after"), reply.header("x-request-id")), ("7", "r1"));
    assert_eq!(reply.body, "{\"error\": \"slow down\"}");
    assert_eq!(reply.header("x-forethought-decision"), "allow");
}

#[tokio::test]
async fn headers_of_one_connection_stay_there() {
    let upstream = FakeUpstream::start(|_| {
        let response = Response::builder()
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("keep-alive", "timeout=5")
            .header("proxy-authenticate", "Basic")
            .header("x-forethought-decision", "allow-everything")
            .header("content-encoding", "gzip")
            .header("server", "fake");
        Respond::Whole(response.body(Bytes::from_static(b"\x1f\x8bnot touched")).unwrap())
    })
    .await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "").await;
    let sent = headers(&[
        ("connection", "X-Mine, close"),
        ("x-mine", "1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "keep-alive"),
        ("x-forethought-decision", "allow"),
        ("x-http-method-override", "DELETE"),
        ("x-original-url", "/v1/files"),
        ("accept-encoding", "gzip, br"),
        ("host", "caller.example"),
    ]);
    let reply = proxy
        .client()
        .send(Method::POST, "/v1/chat/completions", sent, chat("hi", json!({})).to_string())
        .await;
    for name in ["x-hop", "keep-alive", "proxy-authenticate"] {
        assert!(!reply.headers.contains_key(name), "{name}");
    }
    assert_eq!(reply.header("x-forethought-decision"), "allow");
    assert_eq!((reply.header("content-encoding"), reply.header("server")), ("gzip", "fake"));
    assert_eq!(reply.body, b"\x1f\x8bnot touched".as_slice());

    let [seen] = upstream.seen().try_into().unwrap();
    for name in [
        "connection",
        "x-mine",
        "te",
        "upgrade",
        "proxy-authorization",
        "proxy-connection",
        "x-forethought-decision",
        "x-http-method-override",
        "x-original-url",
    ] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
    assert_eq!(seen.headers["accept-encoding"], "gzip, br");
    assert_eq!(seen.headers["host"], upstream.host());
}

#[tokio::test]
async fn the_proxys_own_key_takes_the_callers_place() {
    let upstream = FakeUpstream::answering("{}").await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "upstream-key\n").unwrap();
    let toml = format!("upstream.api_key_file = {:?}", key.display().to_string());
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), &toml).await;
    let sent = headers(&[("authorization", "Bearer caller"), ("authorization", "Bearer second")]);
    proxy.client().send(Method::POST, "/v1/chat/completions", sent, chat("hi", json!({})).to_string()).await;
    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers.get_all("authorization").iter().collect::<Vec<_>>(), ["Bearer upstream-key"]);

    // Each API takes it in a header of its own, and gets no other.
    for (path, body, name) in [
        ("/v1/messages", json!({"messages": []}), "x-api-key"),
        ("/v1/messages/count_tokens", json!({}), "x-api-key"),
        ("/v1beta/models/m:generateContent", json!({"contents": []}), "x-goog-api-key"),
    ] {
        let sent = headers(&[
            ("authorization", "Bearer caller"),
            ("x-api-key", "caller"),
            ("x-goog-api-key", "caller"),
        ]);
        proxy.client().send(Method::POST, path, sent, body.to_string()).await;
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.headers[name], "upstream-key", "{path}");
        for other in ["authorization", "x-api-key", "x-goog-api-key"] {
            assert!(other == name || !seen.headers.contains_key(other), "{path} {other}");
        }
    }
}

#[tokio::test]
async fn paths_with_a_rule_pass_unread() {
    let upstream = FakeUpstream::answering("{\"data\": []}").await;
    let guard = FakeGuard::scoring(1.0);
    let toml = "paths.pass = [\"GET /v1/models\", \"POST /v1/embeddings\"]";
    let proxy = TestProxy::start(&guard, &upstream.url(), toml).await;
    let client = proxy.client();
    let reply = client.send(Method::GET, "/v1/models?limit=2", HeaderMap::new(), "").await;
    assert_eq!((reply.status, reply.header("x-forethought-decision")), (StatusCode::OK, "pass"));
    let reply = client.send(Method::POST, "/v1/embeddings", headers(&[]), "{\"input\": \"x\"}").await;
    assert_eq!((reply.status, reply.header("x-forethought-decision")), (StatusCode::OK, "pass"));

    let seen = upstream.seen();
    assert_eq!(seen[0].uri, "/v1/models?limit=2");
    assert!(
        !seen[0].headers.contains_key("transfer-encoding") && !seen[0].headers.contains_key("content-length")
    );
    assert_eq!(seen[1].body, "{\"input\": \"x\"}");
    assert!(guard.seen().is_empty());
}

#[tokio::test]
async fn http2_is_spoken() {
    let upstream = FakeUpstream::answering(ODD_ANSWER).await;
    let proxy = TestProxy::start(&FakeGuard::reading(), &upstream.url(), "").await;
    let client = Client::http2(proxy.url());
    let (good, bad) = (chat("hi", json!({})), chat("harm", json!({})));
    // On one connection, at once.
    let (good, bad) = tokio::join!(client.chat(&good), client.chat(&bad));
    assert_eq!((good.header("x-forethought-decision"), good.body.as_ref()), ("allow", ODD_ANSWER.as_bytes()));
    assert_eq!(bad.header("x-forethought-decision"), "refuse");
    assert_eq!(bad.json()["choices"][0]["finish_reason"], "content_filter");
}

#[tokio::test]
async fn a_caller_that_asks_before_it_sends_is_told_to_go_on() {
    let upstream = FakeUpstream::answering("{}").await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.1), &upstream.url(), "").await;
    let body = chat("hi", json!({})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = proxy.connect(head.as_bytes()).await;
    let mut buffer = vec![0; 25];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut buffer).await.unwrap();
    assert_eq!(buffer, b"HTTP/1.1 100 Continue\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, body.as_bytes()).await.unwrap();
    let mut rest = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
    assert!(!upstream.seen()[0].headers.contains_key("expect"));
}
