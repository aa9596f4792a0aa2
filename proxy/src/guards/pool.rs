//! Servers of one model: who is asked, who is asked too when the first is slow, and who is left alone.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
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
/// How long something holds that was found out of a server.
const HOLDS: Duration = Duration::from_secs(300);
/// What is noted of servers that were still asked when the time was over.
const LATE: &str = "did not answer in time";

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

/// One of the servers.
pub(super) struct Server {
    /// Host and port: how it is named in evidence.
    name: String,
    uri: Uri,
    client: Client,
    key: Option<HeaderValue>,
    breaker: Breaker,
    /// It answers without log-probabilities.
    pub(super) tells_nothing: Learnt,
    /// It does what `logit_bias` says.
    pub(super) follows_bias: Learnt,
}

/// What was found out of a server. It holds for a while: another one may come to listen at its address.
#[derive(Default)]
pub(super) struct Learnt(Mutex<Option<Instant>>);

impl Learnt {
    pub(super) fn learn(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub(super) fn holds(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() < HOLDS)
    }
}

/// Why no server gave an answer; the steps say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// A server does not take this request, and the next one would not either.
    Rejected,
    /// The time is over.
    Late,
    /// All failed, or are left alone.
    Failed,
}

/// What is wrong with one server's answer.
enum Problem {
    /// It is well, but does not take this request.
    Rejected(String),
    Failed(String),
}

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
                tells_nothing: Learnt::default(),
                follows_bias: Learnt::default(),
            })
        };
        let servers = options.urls.iter().map(server).collect::<std::io::Result<_>>()?;
        Ok(Self { servers, hedge_after: options.hedge_after, turn: AtomicUsize::new(0) })
    }

    /// Whether some server is such.
    pub(super) fn any(&self, which: impl Fn(&Server) -> bool) -> bool {
        self.servers.iter().any(which)
    }

    /// The first good answer to `body` of any such server, by `until`, and whose it is. Notes in `steps` who failed, and
    /// who answered.
    ///
    /// A server that says nothing is given up in time for the next one: each has an equal share of what is left.
    pub(super) async fn ask(
        &self,
        body: &Value,
        until: Instant,
        which: impl Fn(&Server) -> bool,
        steps: &mut Vec<Step>,
    ) -> Result<(&Server, Value), NoAnswer> {
        if Instant::now() >= until {
            return Err(NoAnswer::Late);
        }
        let first = self.turn.fetch_add(1, Relaxed);
        let turn = (0..self.servers.len()).map(|i| &self.servers[(first + i) % self.servers.len()]);
        let mut race = Race {
            untried: turn.filter(|server| which(server)).collect(),
            running: Vec::new(),
            body: Bytes::from(body.to_string()),
            until,
            steps,
        };
        let mut asked = FuturesUnordered::new();
        asked.extend(race.start());
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
                biased;
                answer = asked.next() => match answer {
                    None if Instant::now() >= until => return Err(NoAnswer::Late),
                    None => return Err(NoAnswer::Failed),
                    Some((server, Ok(answer))) => {
                        server.breaker.succeeded();
                        note(race.steps, &server.name, Step::ANSWERED);
                        return Ok((server, answer));
                    }
                    Some((server, Err(Problem::Rejected(problem)))) => {
                        server.breaker.succeeded();
                        note(race.steps, &server.name, &problem);
                        return Err(NoAnswer::Rejected);
                    }
                    Some((server, Err(Problem::Failed(problem)))) => {
                        race.failed(server, &problem);
                        asked.extend(race.start());
                    }
                },
                () = &mut hedge, if !hedged => {
                    hedged = true;
                    asked.extend(race.start());
                }
                () = sleep_until(until.into()) => {
                    for server in std::mem::take(&mut race.running) {
                        race.failed(server, LATE);
                    }
                    return Err(NoAnswer::Late);
                }
            }
        }
    }
}

type Asked<'a> = BoxFuture<'a, (&'a Server, Result<Value, Problem>)>;

/// One request, and who has it.
struct Race<'a, 's> {
    untried: VecDeque<&'a Server>,
    running: Vec<&'a Server>,
    body: Bytes,
    until: Instant,
    steps: &'s mut Vec<Step>,
}

impl<'a> Race<'a, '_> {
    /// Asks the next server that is not to be left alone.
    fn start(&mut self) -> Option<Asked<'a>> {
        let server = loop {
            let server = self.untried.pop_front()?;
            if server.breaker.admits(Instant::now()) {
                break server;
            }
            note(self.steps, &server.name, "is left alone, because it failed before");
        };
        self.running.push(server);
        let others = self.untried.iter().filter(|server| server.breaker.is_closed()).count();
        let left = self.until.saturating_duration_since(Instant::now());
        let time = left / u32::try_from(1 + others).unwrap_or(u32::MAX);
        let body = self.body.clone();
        Some(async move { (server, server.ask(body, time).await) }.boxed())
    }

    fn failed(&mut self, server: &'a Server, problem: &str) {
        self.running.retain(|running| !std::ptr::eq(*running, server));
        note(self.steps, &server.name, problem);
        if server.breaker.failed(Instant::now()) {
            warn!("the guard server {} {problem}; it is left alone for a while", server.name);
        }
    }
}

impl Server {
    async fn ask(&self, body: Bytes, time: Duration) -> Result<Value, Problem> {
        let failed = |problem: &str| Problem::Failed(problem.to_owned());
        let mut request = Request::post(self.uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| failed("has an address that can't be asked"))?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        let answer = self.client.send(request, ANSWER, time).await;
        let answer = answer.map_err(|error| Problem::Failed(error.to_string()))?;
        let said = |status: StatusCode| format!("answered with status {}", status.as_u16());
        match answer.status() {
            StatusCode::OK => {
                serde_json::from_slice(answer.body()).map_err(|_| failed("did not answer in JSON"))
            }
            // That is about this conversation, which a caller chose: others must not suffer from it.
            status @ (StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY) => Err(Problem::Rejected(said(status))),
            status => Err(Problem::Failed(said(status))),
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
