//! One upstream, with a name, its health and what became of its requests.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use forethought_core::generate::ChatModel;
use http::{Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Sent, embedded::Embedded, health::Health, url::Url};
use crate::{
    Body,
    config::{EmbeddedConfig, HealthConfig, UpstreamConfig, UrlUpstream},
    reply::Error,
    server::Cutoff,
};

/// One upstream.
pub(crate) struct Endpoint {
    pub(super) name: Arc<str>,
    /// What it was made of; one of equal parts can stand in for it.
    config: UpstreamConfig,
    server: Server,
    pub(super) health: Health,
    requests: AtomicU64,
    failures: AtomicU64,
    running: AtomicUsize,
    checks: Mutex<Option<JoinHandle<()>>>,
}

enum Server {
    Url(Box<Url>),
    Embedded(Embedded),
}

/// How an upstream does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Whether requests go there.
    pub is_up: bool,
    /// Requests that it was sent.
    pub requests: u64,
    /// Those of them that failed: no connection, no answer in time, or the status of a server that is not well.
    pub failures: u64,
    /// Requests that wait for the head of its answer.
    pub running: usize,
}

impl Endpoint {
    /// An OpenAI-compatible API, over pooled connections.
    ///
    /// # Errors
    /// If the system's certificate roots can't be loaded for an https URL.
    pub(crate) fn url(name: &str, config: &UrlUpstream) -> std::io::Result<Arc<Self>> {
        let server = Server::Url(Box::new(Url::new(config.clone())?));
        let made_of = UpstreamConfig::Url(Box::new(config.clone()));
        Ok(Self::new(name, made_of, server, Health::new(config.health.clone())))
    }

    /// A model in process, behind the OpenAI chat API, under the model name `embedded`.
    pub(crate) fn embedded(name: &str, model: Arc<dyn ChatModel>, config: &EmbeddedConfig) -> Arc<Self> {
        let server = Server::Embedded(Embedded::new(model, config.clone()));
        let health = Health::new(HealthConfig::unchecked());
        Self::new(name, UpstreamConfig::Embedded(config.clone()), server, health)
    }

    fn new(name: &str, config: UpstreamConfig, server: Server, health: Health) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            config,
            server,
            health,
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            checks: Mutex::new(None),
        })
    }

    /// Whether it was made of this.
    pub(crate) fn is_of(&self, config: &UpstreamConfig) -> bool {
        self.config == *config
    }

    pub(crate) fn status(&self) -> UpstreamStatus {
        UpstreamStatus {
            name: self.name.clone(),
            is_up: self.health.is_up(Instant::now()),
            requests: self.requests.load(Relaxed),
            failures: self.failures.load(Relaxed),
            running: self.running.load(Relaxed),
        }
    }

    pub(super) async fn send(&self, request: Request<Sent>, cutoff: Cutoff) -> Result<Response<Body>, Error> {
        self.requests.fetch_add(1, Relaxed);
        let _running = Running::new(&self.running);
        let answer = match &self.server {
            Server::Url(url) => url.send(request).await,
            Server::Embedded(embedded) => embedded.send(request, cutoff).await,
        };
        let good = match &answer {
            Ok(response) => !is_unwell(response.status()),
            Err(error) => !matches!(
                error,
                Error::UpstreamUnreachable | Error::UpstreamTimeout { .. } | Error::UpstreamBroken
            ),
        };
        if !good {
            self.failures.fetch_add(1, Relaxed);
        }
        if self.health.asked(good, Instant::now()) {
            self.tell("its requests");
        }
        answer
    }

    /// Has it checked now and then, if its configuration says so, for as long as it is used.
    pub(crate) fn watch(self: &Arc<Self>) {
        let Server::Url(url) = &self.server else { return };
        let health = self.health.config();
        let Some(probe) = health.path.as_deref().and_then(|path| url.probe(path)) else { return };
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.is_none() {
            *checks = Some(tokio::spawn(check(Arc::downgrade(self), probe)));
        }
    }

    fn tell(&self, by: &str) {
        if self.health.is_up(Instant::now()) {
            info!(upstream = &*self.name, "the upstream is up again, as {by} tell");
        } else {
            warn!(upstream = &*self.name, "the upstream is down, as {by} tell");
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let checks = self.checks.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(checks) = checks {
            checks.abort();
        }
    }
}

async fn check(endpoint: Weak<Endpoint>, probe: super::url::Probe) {
    loop {
        // Not held over the pause, so that it ends with its last user.
        let Some(pause) = endpoint.upgrade().map(|endpoint| endpoint.health.config().interval) else {
            return;
        };
        tokio::time::sleep(pause).await;
        let Some(timeout) = endpoint.upgrade().map(|endpoint| endpoint.health.config().timeout) else {
            return;
        };
        let good = tokio::time::timeout(timeout, probe.is_good()).await.unwrap_or(false);
        let Some(endpoint) = endpoint.upgrade() else { return };
        if endpoint.health.checked(good, Instant::now()) {
            endpoint.tell("its checks");
        }
    }
}

/// Whether a server with this status can't do its work right now.
fn is_unwell(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Counts a request for as long as it lives.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
