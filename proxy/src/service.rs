//! The life of a request.

mod admit;
mod decide;
mod early;
mod examine;
mod facts;
mod inbound;
mod reading;
mod replied;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use forethought_core::{
    conversation::Conversation,
    evidence::Evidence,
    guard::Load,
    policy::{Decision, RequestFacts, Ruling},
};
use http::{HeaderMap, Method, Request, Response, header, request};
use tokio::sync::watch;
use tracing::{Instrument, info_span};
use uuid::Uuid;

pub(crate) use self::decide::Gate;
use self::{
    decide::{languages, tenant},
    early::Outgoing,
    inbound::Inbound,
    reading::{Reading, reading},
};
use crate::{
    Body,
    api::{self, WireFormat},
    audit::{AuditLog, Disposition, Exit, Stage, Tracked},
    cache::Cache,
    config::{CheckedConfig, Mode, OnFailure, OnUnread, Order},
    live::{BuildError, Lasting, Live, Models, Route},
    metrics::Metrics,
    reply::Error,
    server::Cutoff,
    telemetry::Telemetry,
    upstream::{Sent, UpstreamStatus},
};

/// A guarded reverse proxy.
pub struct Proxy {
    /// Swapped as a whole; a request keeps what it began with.
    pub(crate) live: ArcSwap<Live>,
    /// What no reload swaps.
    pub(crate) lasting: Lasting,
    pub(crate) audit: AuditLog,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) stopping: AtomicBool,
    /// Set to true when the time to end requests properly is over.
    pub(crate) cut: watch::Sender<bool>,
}

/// A request as it was asked.
struct Asked {
    format: &'static dyn WireFormat,
    request: api::Request,
    facts: RequestFacts,
}

/// A request that the guard has read, and what the policy says to it.
struct Judged {
    format: &'static dyn WireFormat,
    request: api::Request,
    conversation: Arc<Conversation>,
    facts: RequestFacts,
    evidence: Evidence,
    ruling: Ruling,
}

impl Proxy {
    /// A proxy that does what `config` describes, measured in `metrics`.
    ///
    /// # Errors
    /// Something that the configuration names can't be loaded or read.
    pub fn new(
        config: CheckedConfig,
        models: Models,
        audit: AuditLog,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BuildError> {
        let cache = config.cache.as_ref().map(|cache| Arc::new(Cache::new(cache)));
        let lasting = Lasting { cut: watch::Sender::new(false), metrics: metrics.clone(), cache };
        let live = Live::build(config, models, &lasting, None)?;
        live.start();
        Ok(Self {
            live: ArcSwap::from_pointee(live),
            audit,
            metrics,
            telemetry: None,
            stopping: AtomicBool::new(false),
            cut: lasting.cut.clone(),
            lasting,
        })
    }

    /// How its upstreams do.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.live.load().endpoints().map(|endpoint| endpoint.status()).collect()
    }

    /// Has requests traced.
    pub fn with_telemetry(self, telemetry: Option<Telemetry>) -> Self {
        Self { telemetry, ..self }
    }

    /// Its metrics, in Prometheus's text format.
    ///
    /// # Errors
    /// Those of [`Metrics::render`].
    pub fn render_metrics(&self) -> Result<Vec<u8>, prometheus::Error> {
        let cache = self.lasting.cache.as_ref().map(|cache| cache.size());
        let guard = &self.live.load().models.guard;
        self.metrics.render(&guard.version(), guard.load(), self.audit.health(), cache, &self.upstreams())
    }

    pub(crate) fn guard_load(&self) -> Load {
        self.live.load().models.guard.load()
    }

    /// Whether no new requests are taken any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Where its audit records go.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Answers one request, and records how it went. Its record is begun here and not when the answer is first waited for:
    /// a caller may have left by then.
    pub(crate) fn call(self: Arc<Self>, request: Request<Body>) -> impl Future<Output = Response<Tracked>> {
        let (head, body) = request.into_parts();
        let id = Uuid::now_v7();
        let span = info_span!("request", %id);
        let (live, cutoff) = (self.live.load_full(), Cutoff::new(&self.cut));
        let begin = || {
            let metrics = self.metrics.clone();
            let slot = self.audit.try_slot();
            let mut exit = Exit::new(&head, id, slot, cutoff, &live.config, metrics);
            exit.traced(self.telemetry.as_ref().map(|telemetry| telemetry.begin(&head)));
            exit
        };
        let exit = span.in_scope(begin);
        async move { self.follow(exit, head, body, live).await }.instrument(span)
    }

    async fn follow(
        &self,
        mut exit: Exit,
        mut head: request::Parts,
        body: Body,
        live: Arc<Live>,
    ) -> Response<Tracked> {
        let mut body = Inbound::new(body);
        let cutoff = Cutoff::new(&self.cut);
        exit.settle(&self.audit).await;
        head.extensions.insert(exit.trail.clone());
        let answer = cutoff.or(self.answer(&mut exit, &mut head, &mut body, &live)).await;
        let response = match answer.unwrap_or(Err(Error::Stopping)) {
            Ok(response) => response,
            Err(error) => {
                exit.failed(&error);
                // What did not come in time is not waited for again.
                if !matches!(error, Error::BodyTimeout { .. } | Error::Stopping) {
                    body.discard(&head, live.config.limits.body_bytes).await;
                }
                error.response(api::Voice::of(&head))
            }
        };
        exit.follow(response)
    }

    async fn answer(
        &self,
        exit: &mut Exit,
        head: &mut request::Parts,
        body: &mut Inbound,
        live: &Live,
    ) -> Result<Response<Body>, Error> {
        if self.audit.denies() {
            return Err(Error::Audit);
        }
        live.admit(exit, head)?;
        let route = live.route(exit, head, body).await?;
        exit.taken(&route);
        if let Some(shortened) = route.route.rules.shorten(&head.uri) {
            head.uri = shortened;
        }
        route.answer(exit, head, body).await
    }
}

impl Route {
    async fn answer(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        body: &mut Inbound,
    ) -> Result<Response<Body>, Error> {
        let reading = reading(&self.config.paths, &head.method, head.uri.path());
        match reading.inspect_err(|error| exit.decided(Disposition::Deny, "paths", error.code()))? {
            Reading::Pass => {
                let outgoing = Outgoing::new(self.unread(exit, head, body).await?, &self.upstream);
                exit.decided(Disposition::Pass, "paths", "a rule in `paths.pass`");
                self.forward(exit, head, outgoing).await
            }
            Reading::Guarded(format) if self.config.policy.mode == Mode::Off => {
                exit.record.format = Some(format.name());
                let outgoing = Outgoing::new(self.unread(exit, head, body).await?, &self.upstream);
                exit.decided(Disposition::AllowUnguarded, "policy.mode", "off");
                self.forward(exit, head, outgoing).await
            }
            Reading::Guarded(format) => {
                exit.record.format = Some(format.name());
                let bytes = body.receive(exit, &head.headers, &self.config.limits).await?;
                let asked = self.read(exit, head, format, &bytes);
                let parallel = self.config.policy.order == Order::Parallel && asked.is_ok();
                let body = || Sent::Read(bytes.clone());
                let mut early = parallel.then(|| self.early(exit, head, body(), &self.upstream));
                let judged = async { self.judge(exit, asked?).await };
                let judged = match &mut early {
                    Some(early) => early.beside(judged).await,
                    None => judged.await,
                };
                let outgoing = Outgoing { early, ..Outgoing::new(body(), &self.upstream) };
                self.act(exit, head, &bytes, outgoing, judged).await
            }
        }
    }

    /// The body of a request that nobody reads on the way; held in memory where it may be sent again.
    async fn unread(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        body: &mut Inbound,
    ) -> Result<Sent, Error> {
        let limits = &self.config.limits;
        if self.route.retry_unanswered && !matches!(head.method, Method::GET | Method::HEAD) {
            return Ok(Sent::Read(body.receive(exit, &head.headers, limits).await?));
        }
        body.unread(head, limits).await
    }

    /// Decodes the request.
    fn read(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        format: &'static dyn WireFormat,
        body: &Bytes,
    ) -> Result<Asked, Error> {
        check_encoding(&head.headers)?;
        let request = format.decode(&head.uri, body)?;
        let header = self.config.policy.tenant_header.as_ref();
        let facts = RequestFacts {
            model: request.model.clone(),
            path: head.uri.path().to_owned(),
            api: format.name().to_owned(),
            stream: request.stream,
            tenant: exit.record.tenant.clone().or_else(|| tenant(&head.headers, header)),
            languages: languages(&head.headers),
        };
        exit.asked(&request.conversation, &facts);
        exit.record.policies = self.policies.chain.versions().clone();
        let kinds: Vec<&str> = request.conversation.unread().collect();
        self.unread_is(exit, "unreadable", self.config.policy.on_unreadable, kinds.is_empty(), || {
            Error::Unreadable { kinds: counted(&kinds) }
        })?;
        Ok(Asked { format, request, facts })
    }

    /// Has the guard read the request and the policy decide.
    async fn judge(&self, exit: &mut Exit, asked: Asked) -> Result<Judged, Error> {
        let Asked { format, mut request, facts } = asked;
        let since = Instant::now();
        let conversation = Arc::new(std::mem::take(&mut request.conversation));
        let examined = self.examine(exit, conversation.clone(), &facts).await;
        exit.stage(Stage::Guard, since);
        let evidence = examined?;
        exit.found(&evidence);
        if self.config.policy.flags(&evidence) {
            exit.flag("disagreement");
        }

        let since = Instant::now();
        let decided =
            self.gate.decide(self.policies.clone(), facts.clone(), conversation.clone(), evidence).await;
        exit.stage(Stage::Policy, since);
        let (ruling, evidence) = decided?;
        ruling.flags.iter().for_each(|flag| exit.flag(flag.clone()));
        Ok(Judged { format, request, conversation, facts, evidence, ruling })
    }

    /// Applies the setting for what was not read.
    fn unread_is(
        &self,
        exit: &mut Exit,
        flag: &'static str,
        setting: OnUnread,
        all_read: bool,
        error: impl FnOnce() -> Error,
    ) -> Result<(), Error> {
        match setting {
            _ if all_read => {}
            OnUnread::Deny => return Err(error()),
            OnUnread::Flag => exit.flag(flag),
            OnUnread::Allow => {}
        }
        Ok(())
    }

    /// Does what was decided.
    async fn act(
        &self,
        exit: &mut Exit,
        head: &request::Parts,
        body: &Bytes,
        mut outgoing: Outgoing<'_>,
        judged: Result<Judged, Error>,
    ) -> Result<Response<Body>, Error> {
        let monitor = self.config.policy.mode == Mode::Monitor;
        match judged {
            Ok(judged) if monitor => {
                exit.decided(Disposition::AllowMonitored, &judged.ruling.by, &*judged.ruling.reason);
                exit.record.ruled = Some(judged.ruling.decision.as_str());
                return self.read_reply(exit, head, outgoing, judged).await;
            }
            Ok(judged) => {
                let Judged { format, request, evidence, ruling: Ruling { decision, by, reason, .. }, .. } =
                    &judged;
                let denied = |exit: &mut Exit, error: Error| {
                    exit.decided(Disposition::Deny, by, error.to_string());
                    error
                };
                let disposition = match decision {
                    Decision::Refuse { message } => {
                        exit.decided(Disposition::Refuse, by, reason.as_str());
                        let config = &self.config.refusal;
                        return Ok(api::refusal::refuse(
                            *format, request, exit.id, message, evidence, config,
                        ));
                    }
                    Decision::Allow => Disposition::Allow,
                    Decision::Rewrite { edits } => {
                        let body = api::edit::rewrite(*format, &head.uri, body, edits);
                        let body = body.map_err(|error| denied(exit, error))?;
                        outgoing = Outgoing::new(Sent::Read(body), outgoing.upstream);
                        Disposition::Rewrite
                    }
                    Decision::Annotate { text } => {
                        let body = api::edit::annotate(*format, &head.uri, body, text);
                        let body = body.map_err(|error| denied(exit, error))?;
                        outgoing = Outgoing::new(Sent::Read(body), outgoing.upstream);
                        Disposition::Annotate
                    }
                    Decision::Redirect { upstream: name } => {
                        let Some(other) = self.others.get(name) else {
                            return Err(denied(exit, Error::NoUpstream { policy: by.clone() }));
                        };
                        outgoing = Outgoing::new(outgoing.body, other);
                        Disposition::Redirect
                    }
                };
                exit.decided(disposition, by, reason.as_str());
                return self.read_reply(exit, head, outgoing, judged).await;
            }
            Err(error) if monitor => {
                exit.decided(Disposition::AllowMonitored, "policy.mode", error.to_string());
                exit.record.ruled = Some(error.code());
            }
            Err(error @ Error::Guard(_)) if self.config.policy.on_failure == OnFailure::Open => {
                exit.decided(Disposition::AllowUnguarded, "policy.on_failure", error.to_string());
            }
            Err(error) => {
                exit.decided(Disposition::Deny, decider(&error), error.to_string());
                return Err(error);
            }
        }
        self.forward(exit, head, outgoing).await
    }
}

/// The setting that denies a request with this error.
fn decider(error: &Error) -> &'static str {
    match error {
        Error::Guard(_) => "policy.on_failure",
        Error::Policy(_) | Error::PolicyOverloaded | Error::PolicyPanicked => "policy.plugins",
        Error::Unreadable { .. } => "policy.on_unreadable",
        Error::Truncated { .. } => "policy.on_truncated",
        _ => "request",
    }
}

/// Rejects what the guard would read differently from the upstream: anything but plain JSON in UTF-8.
fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|encoding| encoding != "identity") {
        return Err(Error::ContentEncoding);
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (types.next(), types.next()) else { return Err(Error::ContentType) };
    let kind = kind.to_str().map_err(|_| Error::ContentType)?.to_ascii_lowercase();
    let (kind, parameters) = kind.split_once(';').unwrap_or((&kind, ""));
    let utf8 =
        parameters.split(';').map(str::trim).all(|parameter| match parameter.strip_prefix("charset=") {
            Some(charset) => matches!(charset.trim_matches('"'), "utf-8" | "utf8"),
            None => true,
        });
    if kind.trim() == "application/json" && utf8 { Ok(()) } else { Err(Error::ContentType) }
}

/// `image_url (2), file`.
fn counted(kinds: &[&str]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    kinds.iter().for_each(|kind| *counts.entry(kind).or_default() += 1);
    let shown = counts.iter().map(|(kind, &count)| match count {
        1 => (*kind).to_owned(),
        count => format!("{kind} ({count})"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        fn check(types: &[&str], good: bool) {
            let headers = types.iter().map(|kind| (header::CONTENT_TYPE, kind.parse().unwrap())).collect();
            assert_eq!(check_encoding(&headers).is_ok(), good, "{types:?}");
        }
        check(&["application/json"], true);
        check(&["Application/JSON; charset=UTF-8"], true);
        check(&["application/json; charset=\"utf-8\"; x=y"], true);
        check(&["application/json; charset=utf-16"], false);
        check(&["text/plain"], false);
        check(&["application/json", "application/json"], false);
        check(&[], false);
    }

    #[test]
    fn kinds_are_counted() {
        assert_eq!(counted(&["image_url", "file", "image_url"]), "file, image_url (2)");
    }
}
