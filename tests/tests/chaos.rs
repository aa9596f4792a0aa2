//! Upstreams that misbehave, as `docs/chaos.md` says it: each fault in every format, streamed and not, with the response
//! guard off and on. Whatever happens, the caller gets a proper end or an error, there is one audit record, and the next
//! request is served.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use forethought_tests::{
    FORMATS, FakeGuard, Format, RawRequest, RawUpstream, Step, TestProxy, chat, is_written, json_headers,
};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Far more than any of these takes, on however busy a machine.
const LONG: Duration = Duration::from_secs(30);
/// Of an answer without an end, the caller takes this much.
const ENOUGH: usize = 1_000_000;
/// Few places of every kind, so that one that is lost is missed.
const TOML: &str = "limits.connections = 4\naudit.queue = 4\n\
                    upstream.response_timeout_ms = 300\nupstream.idle_timeout_ms = 300\n";
const ON: &str =
    "[response_guard]\nenabled = true\nmax_bytes = 100000\nhold_bytes = 50\noverlap_bytes = 20\n";

/// A way to go wrong: its name, and what is done with an answer of this content type and body.
type Fault = (&'static str, fn(&str, &[u8]) -> Vec<Step>);

fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(Bytes::copy_from_slice(bytes.as_ref()))
}

/// An answer's head with these headers, and what follows it.
fn answer(kind: &str, headers: &str, body: &[u8]) -> Step {
    send([format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{headers}\r\n").as_bytes(), body].concat())
}

fn sized(kind: &str, length: usize, body: &[u8]) -> Step {
    answer(kind, &format!("content-length: {length}\r\n"), body)
}

fn chunk(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n"].concat()
}

fn chunked(kind: &str, body: &[u8]) -> Step {
    answer(kind, "transfer-encoding: chunked\r\n", body)
}

/// Long enough for what was sent to be passed on.
const A_MOMENT: Step = Step::Wait(Duration::from_millis(20));
const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\n\"evil\"";

const FAULTS: &[Fault] = &[
    ("nothing is wrong", |kind, body| vec![sized(kind, body.len(), body)]),
    ("reset before the head", |_, _| vec![Step::Reset]),
    ("closed before the head", |_, _| vec![Step::Close]),
    ("reset within the head", |_, _| vec![send("HTTP/1.1 200 OK\r\ncontent-ty"), A_MOMENT, Step::Reset]),
    ("reset after the head", |kind, _| vec![chunked(kind, b""), A_MOMENT, Step::Reset]),
    ("reset in the body", |kind, body| {
        vec![sized(kind, body.len(), &body[..body.len() / 2]), A_MOMENT, Step::Reset]
    }),
    ("reset in a chunk", |kind, body| {
        let chunk = chunk(body);
        vec![chunked(kind, &chunk[..chunk.len() / 2]), A_MOMENT, Step::Reset]
    }),
    ("closed in a chunk", |kind, body| {
        let chunk = chunk(body);
        vec![chunked(kind, &chunk[..chunk.len() / 2]), Step::Close]
    }),
    ("closed before the last chunk", |kind, body| vec![chunked(kind, &chunk(body)), Step::Close]),
    ("closed before its length", |kind, body| vec![sized(kind, body.len() + 9, body), Step::Close]),
    ("longer than its length", |kind, body| vec![sized(kind, body.len(), &[body, b"more"].concat())]),
    ("a second answer after the first", |kind, body| {
        vec![sized(kind, body.len(), &[body, EVIL.as_bytes()].concat())]
    }),
    ("two lengths", |kind, body| {
        let headers = format!("content-length: {}\r\ncontent-length: 1\r\n", body.len());
        vec![answer(kind, &headers, body), Step::Close]
    }),
    ("a length and chunks", |kind, body| {
        let chunks = [chunk(body), b"0\r\n\r\n".to_vec()].concat();
        vec![answer(kind, "content-length: 5\r\ntransfer-encoding: chunked\r\n", &chunks), Step::Close]
    }),
    ("a length that is no number", |kind, body| {
        vec![answer(kind, "content-length: -1\r\n", body), Step::Close]
    }),
    ("a chunk's size that is no number", |kind, _| vec![chunked(kind, b"zz\r\nbody\r\n"), Step::Close]),
    ("a chunk's size beyond all numbers", |kind, _| {
        vec![chunked(kind, b"fffffffffffffffff1\r\nbody\r\n"), Step::Close]
    }),
    ("neither length nor chunks", |kind, body| vec![answer(kind, "", body), Step::Close]),
    ("no HTTP", |_, _| vec![send(b"\x16\x03\x01\x00\xff who is there?\r\n\r\n"), Step::Close]),
    ("a NUL in a header", |kind, body| vec![answer(kind, "x-a: \0\r\n", body), Step::Close]),
    ("garbage as body", |kind, _| vec![sized(kind, 8, b"\x00\xff{\"\n\n\xc3[")]),
    ("an empty body", |kind, _| vec![sized(kind, 0, b"")]),
    ("no content", |_, _| vec![send("HTTP/1.1 204 No Content\r\n\r\n")]),
    ("a web page", |_, _| vec![sized("text/html", 13, b"<html></html>")]),
    ("no content type", |_, body| {
        vec![send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())), send(body)]
    }),
    ("compressed with gzip", |kind, _| {
        vec![answer(
            kind,
            "content-encoding: gzip\r\ncontent-length: 12\r\n",
            b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0",
        )]
    }),
    ("compressed with br", |kind, _| {
        vec![answer(kind, "content-encoding: br\r\ncontent-length: 3\r\n", b"\x8b\x00\x80")]
    }),
    ("an error of its own", |_, _| {
        vec![send(
            "HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"own\":1}",
        )]
    }),
    ("a redirect", |_, _| {
        vec![send("HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")]
    }),
    ("another protocol", |_, _| {
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        vec![send(head), send("anything"), Step::Close]
    }),
    ("hints before the answer", |kind, body| {
        vec![send("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(3)), sized(kind, body.len(), body)]
    }),
    ("hints without an end", |_, _| {
        vec![Step::Repeat(Bytes::from_static(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"))]
    }),
    ("a header of a megabyte", |kind, body| {
        vec![answer(kind, &format!("x-a: {}\r\n", "x".repeat(1 << 20)), body), Step::Close]
    }),
    ("a thousand headers", |kind, body| vec![answer(kind, &"x-a: b\r\n".repeat(1_000), body), Step::Close]),
    ("a head without an end", |kind, _| {
        vec![
            send(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n")),
            Step::Repeat(b"x-a: b\r\n".repeat(8_192).into()),
        ]
    }),
    ("a slow drip", |kind, body| {
        let mut steps = vec![sized(kind, body.len(), b"")];
        let pieces = body.chunks(body.len().div_ceil(20));
        steps.extend(pieces.flat_map(|piece| [send(piece), Step::Wait(Duration::from_millis(2))]));
        steps
    }),
    ("silent from the start", |_, _| vec![Step::Hang]),
    ("silent after the head", |kind, _| vec![chunked(kind, b""), Step::Hang]),
    ("silent in the body", |kind, body| vec![chunked(kind, &chunk(&body[..body.len() / 2])), Step::Hang]),
    ("an answer without an end", |kind, body| {
        // More of the same; a whole answer never becomes whole.
        let piece = if kind == "application/json" { chunk(&[b' '; 4_096]) } else { chunk(body) };
        vec![chunked(kind, b""), Step::Repeat(piece.into())]
    }),
    ("a stream without a frame", |kind, _| {
        vec![chunked(kind, b""), Step::Repeat(chunk(&[b'x'; 4_096]).into())]
    }),
];

/// What the upstream does: the last words of what was asked name the fault.
fn act(request: &RawRequest) -> Vec<Step> {
    let target = request.head.split(' ').nth(1).unwrap();
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let stream = body["stream"] == true || target.contains("stream");
    let format = FORMATS.iter().find(|format| format.target(stream) == target).unwrap();
    let text = String::from_utf8_lossy(&request.body);
    let name = text.split("fault: ").nth(1).unwrap().split('"').next().unwrap();
    let (_, steps) = FAULTS.iter().find(|(own, _)| *own == name).unwrap();
    let (kind, body) = format.answer("Well.", stream);
    steps(kind, body.as_bytes())
}

/// What the caller gets.
async fn ask(proxy: &TestProxy, format: &Format, stream: bool, fault: &str) -> String {
    let body = format.ask(&format!("fault: {fault}"), stream).to_string();
    let answer = proxy.client().open(Method::POST, format.target(stream), json_headers(), body).await;
    let Ok(answer) = answer else { return "breaks off".to_owned() };
    let (head, mut body) = answer.into_parts();
    assert_eq!(head.headers["x-forethought-id"].len(), 36);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        // Whether head and first bytes get through before the break is a race; that it does not look whole is not.
        let Ok(frame) = frame else { return "breaks off".to_owned() };
        bytes.extend_from_slice(frame.data_ref().unwrap());
        if bytes.len() > ENOUGH {
            return "goes on until the caller leaves".to_owned();
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let status = head.status.as_u16();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(json) if !head.status.is_success() && json.get("own").is_none() => {
            assert!(!format.error(&json).is_empty(), "{}: {text}", format.name);
            format!("{status}")
        }
        _ if text == format.answer("Well.", stream).1 => "comes through".to_owned(),
        _ if text.contains("\"error\"") && head.status == StatusCode::OK => {
            "an error ends the stream".to_owned()
        }
        _ => format!("{status}, as it is"),
    }
}

/// Waits until this many records were written.
async fn recorded(proxy: &TestProxy, count: u64) {
    let log = proxy.proxy.audit();
    let wait = async {
        while log.health().written < count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, wait).await.expect("every request is recorded");
    assert_eq!(log.health().written, count, "and only once");
}

/// Counts panics, wherever they happen.
fn panics() -> &'static AtomicUsize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Relaxed);
        usual(panic);
    }));
    &PANICS
}

/// For each fault and both ways to answer, what callers of each format get.
type Cells = BTreeMap<(usize, bool), BTreeMap<String, Vec<&'static str>>>;

async fn suffer(guard: FakeGuard, toml: &str) -> Cells {
    let upstream = RawUpstream::start(act).await;
    let proxy = TestProxy::start(&guard, &upstream.url(), toml).await;
    let mut cells = Cells::new();
    let mut asked = Vec::new();
    for (index, (fault, _)) in FAULTS.iter().enumerate() {
        for stream in [false, true] {
            for format in &FORMATS {
                let got = timeout(LONG, ask(&proxy, format, stream, fault)).await.expect("an end");
                asked.push((index, stream, format.name, got));
                recorded(&proxy, asked.len() as u64).await;
            }
            // Nothing is left over for the next.
            let next = timeout(LONG, ask(&proxy, &FORMATS[0], stream, FAULTS[0].0)).await.expect("an end");
            assert_eq!(next, "comes through", "after {fault}");
            asked.push((0, stream, FORMATS[0].name, next));
            recorded(&proxy, asked.len() as u64).await;
        }
    }
    let records = proxy.records().await;
    assert_eq!(records.len(), asked.len());
    for ((index, stream, format, got), record) in asked.into_iter().zip(&records) {
        let outcome = match got.as_str() {
            "breaks off" => "aborted",
            "goes on until the caller leaves" => "disconnected",
            _ => "finished",
        };
        assert_eq!(record["outcome"], outcome, "{}, {got}: {record}", FAULTS[index].0);
        assert_eq!(record["format"], format);
        let code = record["error"].as_str().map(|code| format!(" `{code}`")).unwrap_or_default();
        cells.entry((index, stream)).or_default().entry(got + &code).or_default().push(format);
    }
    cells
}

/// What all get, or who gets what.
fn cell(cells: &Cells, index: usize, stream: bool) -> String {
    let got = &cells[&(index, stream)];
    if got.len() == 1 {
        return got.keys().next().unwrap().clone();
    }
    let parts = got.iter().map(|(got, formats)| format!("{got} ({})", formats.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn the_table_says_what_callers_get() {
    let panics = panics();
    let with_guard = format!("{TOML}{ON}");
    let in_parallel = format!("{TOML}policy.order = \"parallel\"\n");
    let guard = || FakeGuard::scoring(0.0);
    let slow = guard().taking(Duration::from_millis(3));
    let (plain, read, early) =
        tokio::join!(suffer(guard(), TOML), suffer(guard(), &with_guard), suffer(slow, &in_parallel));
    assert_eq!(early, plain, "the order makes no difference");
    let mut text = "# What an upstream can do wrong\n\n\
        Written by `tests/tests/chaos.rs`: an upstream that speaks bytes does each of these to a request of every wire format, and\n\
        after each the next request is served. Every request leaves one audit record, and `policy.order` makes no difference. The\n\
        proxy has four connections and four places for records in these tests, so a lost one would end them.\n\n\
        - *comes through*: byte for byte.\n\
        - *as it is*: the upstream's status and bytes come through; they are no answer that the format knows.\n\
        - *breaks off*: the connection ends in the middle, so no client takes it for a whole answer. The record's `outcome` is\n  \
          `aborted`.\n\
        - a status: an error of our own in the shape of the caller's API, with the code that the record has.\n\n\
        | the upstream's answer | whole | streamed | whole, read by the response guard | streamed, read by it |\n\
        | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (index, (fault, _)) in FAULTS.iter().enumerate() {
        let row = [(&plain, false), (&plain, true), (&read, false), (&read, true)];
        let row = row.map(|(cells, stream)| cell(cells, index, stream));
        text += &format!("| {fault} | {} |\n", row.join(" | "));
    }
    assert_eq!(panics.load(Relaxed), 0);
    is_written("chaos.md", &text);
}

#[tokio::test]
async fn an_answer_before_the_request_was_read() {
    const EARLY: &str = "HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\
                         connection: close\r\n\r\n{\"own\":1}";
    let body = chat(&"long ".repeat(800_000), json!({}));
    for (last, codes) in [(Step::Receive, &[413][..]), (Step::Reset, &[413, 502])] {
        let steps = vec![send(EARLY), last, Step::Close];
        let upstream = RawUpstream::hasty(move |_| steps.clone()).await;
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), TOML).await;
        for _ in 0..8 {
            let reply = timeout(LONG, proxy.client().chat(&body)).await.expect("an end");
            assert!(codes.contains(&reply.status.as_u16()), "{}", reply.status);
            let json = reply.json();
            assert!(json["own"] == 1 || json["error"]["code"] == "upstream_broken", "{json}");
        }
        let records = proxy.records().await;
        assert_eq!(records.len(), 8);
        assert!(records.iter().all(|record| record["outcome"] == "finished"));
    }
}

#[tokio::test]
async fn callers_that_leave_end_answers_without_an_end() {
    let upstream = RawUpstream::start(|_| {
        let event = b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well \"}}]}\n\n";
        vec![chunked("text/event-stream", b""), Step::Repeat(chunk(event).into())]
    })
    .await;
    for (index, more) in ["", ON].into_iter().enumerate() {
        let toml = format!("{TOML}{more}").replace("max_bytes = 100000", "max_bytes = 100000000");
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), &toml).await;
        for round in 1..=8 {
            let body = chat("hi", json!({"stream": true})).to_string();
            let client = proxy.client();
            let answer =
                client.open(Method::POST, "/v1/chat/completions", json_headers(), body).await.unwrap();
            let mut body = answer.into_body();
            let mut taken = 0;
            while taken < 40_000 {
                taken += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            drop((body, client));
            timeout(LONG, upstream.left(8 * index + round)).await.expect("the upstream is let go");
        }
        let records = proxy.records().await;
        assert_eq!(records.len(), 8);
        assert!(records.iter().all(|record| record["outcome"] == "disconnected"));
    }
}

#[tokio::test]
async fn unread_paths_suffer_the_same() {
    // What passes unread goes through the same client, but without a format.
    let upstream = RawUpstream::start(|_| vec![Step::Reset]).await;
    let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), TOML).await;
    for _ in 0..8 {
        let reply = proxy.client().send(Method::GET, "/v1/models", HeaderMap::new(), "").await;
        assert_eq!((reply.status, reply.code().as_str()), (StatusCode::BAD_GATEWAY, "upstream_broken"));
    }
    assert_eq!(proxy.records().await.len(), 8);
}
