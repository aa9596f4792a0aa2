//! Servers of one model: who is asked, who is asked too when the first is slow, and who is left alone.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use forethought_core::evidence::Step;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::time::{sleep, sleep_until};
use tracing::warn;

use super::breaker::Breaker;
use crate::{client::Client, config::Secret, upstream::BaseUrl};

/// Most of an answer that is read: logits of a few tokens, and two phases of text.
const ANSWER: usize = 1 << 20;

/// How servers are asked.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Base URLs of OpenAI-compatible APIs that serve the same model.
    pub urls: Vec<BaseUrl>,
    /// The servers' key.
    pub key: Option<Secret>,
    /// Time after which a second server is asked the same; `None` is never.
    pub hedge_after: Option<Duration>,
    /// Failures in a row after which a server is left alone.
    pub breaker_failures: u32,
    /// For how long.
    pub breaker_pause: Duration,
    /// Time for opening a connection.
    pub connect_timeout: Duration,
}

pub(super) struct Pool {
    servers: Vec<Server>,
    hedge_after: Option<Duration>,
    /// Where the next request begins, so that all servers have work.
    turn: AtomicUsize,
}

struct Server {
    /// Host and port: how it is named in evidence.
    name: String,
    uri: Uri,
    client: Client,
    key: Option<HeaderValue>,
    breaker: Breaker,
}

/// No server gave an answer; the steps say why.
#[derive(Debug)]
pub(super) struct NoAnswer;

impl Pool {
    pub(super) fn new(options: &PoolOptions) -> std::io::Result<Self> {
        let server = |url: &BaseUrl| {
            let uri =
                url.join(&Uri::from_static("/v1/completions")).ok_or(std::io::ErrorKind::InvalidInput)?;
            Ok(Server {
                name: uri.authority().map(ToString::to_string).unwrap_or_default(),
                client: Client::new(url.is_https(), options.connect_timeout)?,
                uri,
                key: options.key.as_ref().map(Secret::bearer),
                breaker: Breaker::new(options.breaker_failures, options.breaker_pause),
            })
        };
        let servers = options.urls.iter().map(server).collect::<std::io::Result<_>>()?;
        Ok(Self { servers, hedge_after: options.hedge_after, turn: AtomicUsize::new(0) })
    }

    /// The first good answer to `body` of any server, by `until`. Notes in `steps` who failed, and who answered.
    pub(super) async fn ask(
        &self,
        body: &Value,
        until: Instant,
        steps: &mut Vec<Step>,
    ) -> Result<Value, NoAnswer> {
        let body = Bytes::from(body.to_string());
        let first = self.turn.fetch_add(1, Relaxed);
        let mut next = (0..self.servers.len()).map(|i| &self.servers[(first + i) % self.servers.len()]);
        let mut asked = FuturesUnordered::new();
        asked.extend(start(&mut next, &body, until, steps));
        let hedge = async {
            match self.hedge_after {
                Some(after) => sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let mut hedge = std::pin::pin!(hedge);
        let mut hedged = false;
        loop {
            tokio::select! {
                answer = asked.next() => match answer {
                    None => return Err(NoAnswer),
                    Some((server, Ok(answer))) => {
                        server.breaker.succeeded();
                        note(steps, &server.name, Step::ANSWERED);
                        return Ok(answer);
                    }
                    Some((server, Err(problem))) => {
                        note(steps, &server.name, &problem);
                        if server.breaker.failed(Instant::now()) {
                            warn!("the guard server {} {problem}; it is left alone for a while", server.name);
                        }
                        asked.extend(start(&mut next, &body, until, steps));
                    }
                },
                () = &mut hedge, if !hedged => {
                    hedged = true;
                    asked.extend(start(&mut next, &body, until, steps));
                }
                () = sleep_until(until.into()) => {
                    note(steps, "remote", "ran out of time");
                    return Err(NoAnswer);
                }
            }
        }
    }
}

type Asked<'a> = BoxFuture<'a, (&'a Server, Result<Value, String>)>;

/// Asks the next server that is not to be left alone.
fn start<'a>(
    servers: &mut impl Iterator<Item = &'a Server>,
    body: &Bytes,
    until: Instant,
    steps: &mut Vec<Step>,
) -> Option<Asked<'a>> {
    let server = servers.find(|server| {
        let admits = server.breaker.admits(Instant::now());
        if !admits {
            note(steps, &server.name, "is left alone, because it failed before");
        }
        admits
    })?;
    let body = body.clone();
    Some(async move { (server, server.ask(body, until).await) }.boxed())
}

impl Server {
    async fn ask(&self, body: Bytes, until: Instant) -> Result<Value, String> {
        let mut request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| "has an address that can't be asked".to_owned())?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        let time = until.saturating_duration_since(Instant::now());
        let answer = self.client.send(request, ANSWER, time).await.map_err(|error| error.to_string())?;
        match answer.status() {
            StatusCode::OK => {
                serde_json::from_slice(answer.body()).map_err(|_| "did not answer in JSON".into())
            }
            status => Err(format!("answered with status {}", status.as_u16())),
        }
    }
}

/// One request of an examination is like the next: a server that does the same again is noted once.
fn note(steps: &mut Vec<Step>, server: &str, outcome: &str) {
    let step = Step::new(server, outcome);
    if !steps.contains(&step) {
        steps.push(step);
    }
}
