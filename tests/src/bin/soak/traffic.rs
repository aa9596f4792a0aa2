//! The traffic of a soak that wrk does not make: an upstream that fails now and then, and callers that leave.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use forethought_tests::{FORMATS, RawRequest, RawUpstream, Step};
use rand::RngExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

/// How often each id has reached the upstream.
pub(crate) type Arrived = Arc<Mutex<HashMap<String, usize>>>;

pub(crate) async fn upstream(arrived: Arrived) -> RawUpstream {
    RawUpstream::start(move |request| {
        let (id, steps) = answer(request).unwrap_or_else(|| ("unknown".to_owned(), vec![Step::Close]));
        *arrived.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
        steps
    })
    .await
}

/// Who asks, and what is done.
fn answer(request: &RawRequest) -> Option<(String, Vec<Step>)> {
    let target = request.head.split(' ').nth(1)?;
    let body: Value = serde_json::from_slice(&request.body).ok()?;
    let gemini = target.strip_prefix("/v1beta/models/").and_then(|rest| rest.split_once(':'));
    let (id, stream) = match gemini {
        Some((id, method)) => (id, method.starts_with("stream")),
        None => (body["model"].as_str()?, body["stream"] == true),
    };
    let format = match gemini {
        Some(_) => FORMATS.iter().find(|format| format.name == "gemini"),
        None => FORMATS.iter().find(|format| format.path == target),
    }?;
    let (kind, body) = format.answer("A llama is an animal of the Andes. It is kept for its wool.", stream);
    let text = String::from_utf8_lossy(&request.body);
    let fault = text.split("fault: ").nth(1).and_then(|rest| rest.split('"').next());
    Some((id.to_owned(), steps(fault, kind, &body)))
}

fn steps(fault: Option<&str>, kind: &str, body: &str) -> Vec<Step> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n");
    let sized = |body: &str, length: usize| {
        Step::Send(format!("{head}content-length: {length}\r\n\r\n{body}").into())
    };
    let chunked = |body: &str| {
        Step::Send(format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len()).into())
    };
    let half = &body[..body.len() / 2];
    match fault {
        Some("reset before the head") => vec![Step::Reset],
        Some("reset in the body") => vec![sized(half, body.len()), Step::Reset],
        Some("closed before the last chunk") => vec![chunked(body), Step::Close],
        Some("slow") => {
            let pause = Step::Wait(Duration::from_millis(5));
            let pieces = body.as_bytes().chunks(40).map(|piece| Step::Send(piece.to_vec().into()));
            [sized("", body.len())]
                .into_iter()
                .chain(pieces.flat_map(|piece| [pause.clone(), piece]))
                .collect()
        }
        Some("silent") => vec![chunked(half), Step::Hang],
        Some("an error") => {
            let error = "HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            vec![Step::Send(error.into())]
        }
        _ => vec![sized(body, body.len())],
    }
}

/// What callers that leave have done.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// By how far they got; only what ends in the middle of the head is no request.
    pub(crate) stages: Mutex<BTreeMap<&'static str, usize>>,
}

/// Sends requests and leaves, until it is told to stop.
pub(crate) async fn leave(address: SocketAddr, caller: usize, left: Arc<Left>, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Relaxed) {
        round += 1;
        let (stage, cut, pause) = {
            let mut random = rand::rng();
            let stage = ["in the head", "in the body", "at once", "while waiting", "in the answer"]
                [random.random_range(0..5)];
            (stage, random.random_range(0.1..0.9), random.random_range(0..200))
        };
        let format = &FORMATS[round % FORMATS.len()];
        let stream = round % 2 == 0;
        let id = format!("cut-{caller}-{round}");
        let slow = if stage == "in the answer" { "fault: slow" } else { "What is a llama?" };
        let body = format.ask(slow, stream).to_string().replace("embedded", &id);
        let target = format.target(stream).replace("embedded", &id);
        let head = format!(
            "POST {target} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let part = |text: &str| (text.len() as f64 * cut) as usize;
        let sent = match stage {
            "in the head" => head[..part(&head)].to_owned(),
            "in the body" => format!("{head}{}", &body[..part(&body)]),
            _ => head + &body,
        };
        let went = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(sent.as_bytes()).await?;
            match stage {
                "while waiting" => sleep(Duration::from_micros(pause * 5)).await,
                "in the answer" => drop(stream.read(&mut [0; 64]).await?),
                _ => {}
            }
            std::io::Result::Ok(())
        };
        if went.await.is_ok() {
            *left.stages.lock().unwrap_or_else(PoisonError::into_inner).entry(stage).or_default() += 1;
        }
        sleep(Duration::from_millis(pause)).await;
    }
}
