//! The order `parallel`: a request goes upstream while it is still being judged, and its answer waits.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either, FutureExt, select};
use http::{HeaderMap, Request, Response, header, request};

use crate::{
    Body,
    audit::Exit,
    live::Route,
    reply::Error,
    server::Cutoff,
    tenants::OwnKey,
    upstream::{App, Sent, Trail, Upstream},
};

/// A request on its way out.
pub(super) struct Outgoing<'a> {
    pub(super) body: Sent,
    pub(super) upstream: &'a Upstream,
    /// The same request, where it was sent before it was decided on.
    pub(super) early: Option<Early<'a>>,
}

/// The head of an upstream's answer, and how long it took.
pub(super) struct Answered {
    answer: Result<Response<Body>, Error>,
    after: Duration,
}

/// A request that was sent before it was decided on. To drop it is to cancel it.
pub(super) enum Early<'a> {
    Running(BoxFuture<'a, Answered>),
    /// Nothing of the answer's body is taken before the decision, so the upstream waits too.
    Arrived(Answered),
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(body: Sent, upstream: &'a Upstream) -> Self {
        Self { body, upstream, early: None }
    }
}

impl Early<'_> {
    /// What `work` gives; the request goes on beside it.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Self::Running(sent) = self {
            match select(sent, work.as_mut()).await {
                Either::Left((answered, _)) => *self = Self::Arrived(answered),
                Either::Right((done, _)) => return done,
            }
        }
        work.await
    }

    async fn answered(self) -> Answered {
        match self {
            Self::Running(sent) => sent.await,
            Self::Arrived(answered) => answered,
        }
    }
}

impl Route {
    /// Sends a request before it is decided on.
    pub(super) fn early<'a>(
        &'a self,
        exit: &mut Exit,
        head: &'a request::Parts,
        body: Sent,
        upstream: &'a Upstream,
    ) -> Early<'a> {
        exit.record.upstream_contacted = true;
        let traced = exit.forwarded();
        Early::Running(self.send(head, traced, body, upstream).boxed())
    }

    /// Sends the request on, unless that was done before, and gives back what the upstream answers.
    pub(super) async fn forward(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        outgoing: Outgoing<'_>,
    ) -> Result<Response<Body>, Error> {
        exit.record.upstream_contacted = true;
        let Outgoing { body, upstream, early } = outgoing;
        let Answered { answer, after } = match early {
            Some(early) => early.answered().await,
            None => self.send(head, exit.forwarded(), body, upstream).await,
        };
        exit.record.timings.upstream_ms = Some(after.as_secs_f64() * 1e3);
        answer
    }

    /// `traced` are headers that make the upstream's work a part of this request's trace.
    async fn send(
        &self,
        head: &request::Parts,
        traced: HeaderMap,
        body: Sent,
        upstream: &Upstream,
    ) -> Answered {
        let since = Instant::now();
        let read = matches!(body, Sent::Read(_));
        let mut request = Request::new(body);
        request.method_mut().clone_from(&head.method);
        request.uri_mut().clone_from(&head.uri);
        request.headers_mut().clone_from(&head.headers);
        request.headers_mut().extend(traced);
        if let Some(trail) = head.extensions.get::<Trail>() {
            request.extensions_mut().insert(trail.clone());
        }
        if head.extensions.get::<App>().is_some() {
            // What the service within wants to know of a request travels with it too.
            request.extensions_mut().clone_from(&head.extensions);
        }
        if let Some(own) = head.extensions.get::<OwnKey>() {
            request.extensions_mut().insert(*own);
        }
        // What is compressed can't be read.
        if read && self.config.response_guard.is_some() {
            let plain = header::HeaderValue::from_static("identity");
            request.headers_mut().insert(header::ACCEPT_ENCODING, plain);
        }
        let answer = upstream.send(request, Cutoff::new(&self.cut)).await;
        Answered { answer, after: since.elapsed() }
    }
}
