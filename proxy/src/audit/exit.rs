//! One request's way out: its record, its log line, and the answer's body that carries both to the end.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use forethought_core::{conversation::Conversation, evidence::Evidence, policy::RequestFacts};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, request};
use http_body::{Body as _, Frame, SizeHint};
use tracing::{Span, info, warn};
use uuid::Uuid;

use super::{
    AuditLog, Slot,
    record::{Disposition, Found, Outcome, Record, Reply, Stage},
};
use crate::{
    Body, BoxError, CheckedConfig, cache::Origin, live::Route, metrics::Metrics, reply::Error,
    server::Cutoff, telemetry::Trace, tenants::Admitted, upstream::Trail,
};

const ID: HeaderName = HeaderName::from_static("x-forethought-id");
const DECISION: HeaderName = HeaderName::from_static("x-forethought-decision");

/// A request under way. Dropping it writes its record and its log line, so that every way out is recorded once.
pub(crate) struct Exit {
    pub(crate) id: Uuid,
    pub(crate) record: Box<Record>,
    /// What is found of the answer while it is on its way.
    pub(crate) reply: Arc<Mutex<Option<Reply>>>,
    /// Where it was sent.
    pub(crate) trail: Trail,
    admitted: Option<Admitted>,
    started: Instant,
    slot: Slot,
    cutoff: Cutoff,
    span: Span,
    metrics: Arc<Metrics>,
    /// What is traced of it; `None` where nothing is.
    trace: Option<Trace>,
}

impl Exit {
    pub(crate) fn new(
        head: &request::Parts,
        id: Uuid,
        slot: Slot,
        cutoff: Cutoff,
        config: &CheckedConfig,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.begin();
        let record = Box::new(Record {
            id: id.to_string(),
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            method: clean(head.method.as_str()),
            path: clean(head.uri.path()),
            mode: config.policy.mode.as_str(),
            version: env!("CARGO_PKG_VERSION"),
            config_sha256: config.sha256.to_string(),
            ..Record::default()
        });
        let (reply, trail) = (Arc::default(), Trail::default());
        let (started, span) = (Instant::now(), Span::current());
        Self { id, record, reply, trail, admitted: None, started, slot, cutoff, span, metrics, trace: None }
    }

    /// Has the request traced.
    pub(crate) fn traced(&mut self, trace: Option<Trace>) {
        self.trace = trace;
    }

    /// The request goes upstream: headers that make what comes of it there a part of its trace.
    pub(crate) fn forwarded(&mut self) -> HeaderMap {
        self.trace.as_mut().map(Trace::forward).unwrap_or_default()
    }

    /// Notes who asks, and keeps its place to the end.
    pub(crate) fn admitted(&mut self, admitted: Admitted) {
        self.record.tenant = Some(clean(&admitted.tenant));
        self.record.is_admitted = true;
        self.admitted = Some(admitted);
    }

    /// Notes which route has taken it.
    pub(crate) fn taken(&mut self, route: &Route) {
        self.record.route = Some(route.route.name.clone());
        self.record.mode = route.config.policy.mode.as_str();
    }

    /// Waits for a place for the record, where there was none at the beginning.
    pub(crate) async fn settle(&mut self, log: &AuditLog) {
        if !self.slot.is_taken() {
            self.slot = log.slot().await;
        }
    }

    /// Notes what was asked.
    pub(crate) fn asked(&mut self, conversation: &Conversation, facts: &RequestFacts) {
        let record = &mut *self.record;
        record.model = Some(clean(&facts.model));
        record.stream = Some(facts.stream);
        record.tenant = facts.tenant.as_deref().map(clean);
        record.languages.clone_from(&facts.languages);
        record.prompt = self.slot.prompt(conversation);
    }

    /// Marks the request.
    pub(crate) fn flag(&mut self, flag: impl Into<std::borrow::Cow<'static, str>>) {
        self.record.flags.push(flag.into());
    }

    /// Notes what the guard found.
    pub(crate) fn found(&mut self, evidence: &Evidence) {
        self.record.found = Some(Found::new(evidence, self.slot.text()));
        self.record.steps.clone_from(&evidence.steps);
        // What was found before has cost nothing now.
        let worked = self.record.cache.is_none_or(|origin| origin == Origin::Miss.as_str());
        self.record.timings.guard = worked.then_some(evidence.timings);
        self.metrics.found(evidence, worked);
    }

    /// Notes where the evidence comes from.
    pub(crate) fn cached(&mut self, origin: Origin) {
        self.record.cache = Some(origin.as_str());
        self.metrics.cached(origin);
    }

    /// Notes what is done, who decided it, and why.
    pub(crate) fn decided(&mut self, decision: Disposition, by: &str, reason: impl Into<String>) {
        self.record.decision = decision;
        self.record.by = Some(by.to_owned());
        self.record.reason = Some(reason.into());
    }

    /// Notes the error that the caller gets.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.record.error = Some(error.code());
        if self.record.decision == Disposition::None && !matches!(error, Error::Stopping) {
            self.record.decision = Disposition::Deny;
        }
    }

    /// Notes the time of a stage that began at `since`.
    pub(crate) fn stage(&mut self, stage: Stage, since: Instant) {
        let timings = &mut self.record.timings;
        let time = match stage {
            Stage::Body => &mut timings.body_ms,
            Stage::Guard => &mut timings.guard_ms,
            Stage::Policy => &mut timings.policy_ms,
        };
        *time = Some(ms(since));
        if let Some(trace) = &mut self.trace {
            trace.stage(stage, since);
        }
    }

    /// Marks the answer with our headers, and follows it to its end.
    pub(crate) fn follow(mut self, response: Response<Body>) -> Response<Tracked> {
        let (mut parts, inner) = response.into_parts();
        self.record.status = Some(parts.status.as_u16());
        if let Ok(id) = HeaderValue::try_from(&self.record.id) {
            parts.headers.insert(ID, id);
        }
        if self.record.method == Method::HEAD.as_str() {
            self.record.outcome = Outcome::Finished; // its body is never asked for
        }
        parts.headers.insert(DECISION, HeaderValue::from_static(self.record.decision.as_str()));
        Response::from_parts(parts, Tracked { inner, exit: self })
    }

    fn log(&self) {
        let Record {
            method,
            path,
            model,
            decision,
            by,
            reason,
            error,
            found,
            status,
            bytes,
            outcome,
            flags,
            reply,
            upstream,
            retries,
            ..
        } = &*self.record;
        let status = status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        let line = format!("{method} {path} {status} {}", decision.as_str());
        let timings = &self.record.timings;
        let round = |ms: Option<f64>| ms.map(|ms| ms.round() as u64);
        macro_rules! emit {
            ($level:ident) => {
                $level!(
                    model = model.as_deref(),
                    score = found.as_ref().map(|f| (f.score * 1e3).round() / 1e3),
                    hazard = found.as_ref().and_then(|f| f.hazard.as_ref()).map(tracing::field::display),
                    by = by.as_deref(),
                    reason = reason.as_deref().map(tracing::field::display),
                    flags = (!flags.is_empty()).then(|| flags.join(",")),
                    reply = reply.as_ref().map(|reply| reply.decision),
                    error = *error,
                    upstream = upstream.as_deref(),
                    retries = (*retries > 0).then_some(*retries),
                    outcome = (*outcome != Outcome::Finished).then(|| tracing::field::debug(outcome)),
                    bytes,
                    guard_ms = round(timings.guard_ms),
                    upstream_ms = round(timings.upstream_ms),
                    ms = round(timings.total_ms),
                    "{line}"
                )
            };
        }
        // Whatever went through unread must not look like an ordinary line.
        if *decision == Disposition::AllowUnguarded || !flags.is_empty() || *outcome == Outcome::Aborted {
            emit!(warn);
        } else {
            emit!(info);
        }
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        self.record.timings.total_ms = Some(ms(self.started));
        if self.record.outcome == Outcome::Disconnected && self.cutoff.is_reached() {
            self.record.outcome = Outcome::Stopped;
        }
        let (upstream, retries) = self.trail.get();
        self.record.upstream = upstream.map(|name| name.to_string());
        self.record.retries = retries;
        self.record.reply = self.reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        let span = self.span.clone();
        span.in_scope(|| self.log());
        self.metrics.end(&self.record);
        if let Some(trace) = self.trace.take() {
            trace.end(&self.record);
        }
        std::mem::take(&mut self.slot).send(std::mem::take(&mut self.record));
    }
}

/// An answer's body that notes how far it got.
pub(crate) struct Tracked {
    inner: Body,
    exit: Exit,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let finished = self.inner.is_end_stream();
        let record = &mut self.exit.record;
        match &frame {
            None => record.outcome = Outcome::Finished,
            Some(Err(_)) => record.outcome = Outcome::Aborted,
            Some(Ok(frame)) => {
                record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if finished {
                    record.outcome = Outcome::Finished;
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // A body of no bytes is never polled.
        if self.inner.is_end_stream() && self.exit.record.outcome == Outcome::Disconnected {
            self.exit.record.outcome = Outcome::Finished;
        }
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A caller's word, made safe for a log: short, and of visible ASCII only.
fn clean(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}
