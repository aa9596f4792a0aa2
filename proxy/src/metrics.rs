//! What is measured. Every metric's name stands in this file, once; labels take few values, and never a caller's words.

mod policy;

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use forethought_core::{
    evidence::{Evidence, GuardVersion},
    guard::Load,
};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

use crate::{
    audit::{AuditHealth, Disposition, Record},
    cache::Origin,
    upstream::UpstreamStatus,
};

/// The media type of what [`Metrics::render`] writes.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Seconds: from a cache hit to a model that writes for a minute.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Probabilities.
const SCORES: &[f64] = &[0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
/// How far probes and verdict are apart, signed.
const GAPS: &[f64] = &[-0.75, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0];
/// What stands in a label where there is nothing to say.
const NONE: &str = "none";

/// The metrics of one proxy.
pub struct Metrics {
    registry: Registry,
    names: Vec<String>,
    requests: IntCounterVec,
    tenants: IntCounterVec,
    retries: IntCounter,
    errors: IntCounterVec,
    flags: IntCounterVec,
    duration: HistogramVec,
    stages: HistogramVec,
    in_flight: IntGauge,
    bytes: IntCounter,
    scores: HistogramVec,
    gaps: Histogram,
    probes: HistogramVec,
    probes_harmful: IntCounterVec,
    tokens: IntCounterVec,
    coverage: IntCounterVec,
    unread: IntCounterVec,
    windows: IntCounter,
    replies: IntCounterVec,
    upstreams: IntCounterVec,
    upstream_time: HistogramVec,
    policies: IntCounterVec,
    policy_time: HistogramVec,
    cache: IntCounterVec,
    gauges: Gauges,
}

/// What is read off at every scrape.
struct Gauges {
    /// So that two scrapes do not count the same twice.
    turn: Mutex<()>,
    info: IntGaugeVec,
    waiting: IntGauge,
    queue: IntGauge,
    running: IntGauge,
    steps: IntCounter,
    lanes: IntCounter,
    upstream_up: IntGaugeVec,
    upstream_running: IntGaugeVec,
    audit_written: IntCounter,
    audit_lost: IntCounter,
    audit_failing: IntGauge,
    cache_entries: IntGauge,
    cache_bytes: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics, all at zero.
    pub fn new() -> Self {
        let registrar = Registrar::default();
        let r = &registrar;
        Self {
            requests: counters(
                r,
                "forethought_requests_total",
                "Requests, by what was decided and on which signal.",
                &["route", "format", "decision", "hazard", "signal"],
            ),
            tenants: counters(
                r,
                "forethought_tenant_requests_total",
                "Requests of the tenants that the configuration names, by what was decided.",
                &["tenant", "decision"],
            ),
            retries: counter(
                r,
                "forethought_upstream_retries_total",
                "Requests sent to another upstream after one did not answer.",
            ),
            errors: counters(r, "forethought_errors_total", "Errors that callers got.", &["route", "code"]),
            flags: counters(
                r,
                "forethought_flags_total",
                "Requests marked for what was let through by a setting.",
                &["route", "flag"],
            ),
            duration: histograms(
                r,
                "forethought_request_duration_seconds",
                "From a request's head to the end of its answer.",
                &["route", "decision"],
                SECONDS,
            ),
            stages: histograms(
                r,
                "forethought_stage_duration_seconds",
                "The stages of a request: body, guard (of it: queue, prefill, probe, decode), policy, upstream.",
                &["route", "stage"],
                SECONDS,
            ),
            in_flight: gauge(r, "forethought_requests_in_flight", "Requests under way."),
            bytes: counter(r, "forethought_answer_bytes_total", "Bytes of answers sent to callers."),
            scores: histograms(
                r,
                "forethought_score",
                "P(harmful), by the signal that gave it.",
                &["signal"],
                SCORES,
            ),
            gaps: histogram(
                r,
                "forethought_activation_gap",
                "The probes' P(harmful) minus the verdict's.",
                GAPS,
            ),
            probes: histograms(
                r,
                "forethought_probe_score",
                "P(harmful), by probe.",
                &["probe", "layer"],
                SCORES,
            ),
            probes_harmful: counters(
                r,
                "forethought_probe_harmful_total",
                "Readings at or above the probe's threshold.",
                &["probe", "layer"],
            ),
            tokens: counters(
                r,
                "forethought_guard_tokens_total",
                "Tokens that the guard read and wrote.",
                &["kind"],
            ),
            coverage: counters(
                r,
                "forethought_coverage_tokens_total",
                "Tokens of requests, by whether the guard read them.",
                &["state"],
            ),
            unread: counters(
                r,
                "forethought_coverage_unread_parts_total",
                "Parts of requests that no guard can read, such as images.",
                &["kind"],
            ),
            windows: counter(r, "forethought_coverage_windows_total", "Windows in which requests were read."),
            replies: counters(
                r,
                "forethought_replies_total",
                "Answers that the guard read, by what was decided in the end.",
                &["route", "decision"],
            ),
            upstreams: counters(
                r,
                "forethought_upstream_requests_total",
                "Requests sent on, by how the upstream answered: a class of status, or an error.",
                &["upstream", "answer"],
            ),
            upstream_time: histograms(
                r,
                "forethought_upstream_duration_seconds",
                "From sending a request on to the head of its answer.",
                &["upstream"],
                SECONDS,
            ),
            policies: counters(
                r,
                "forethought_plugin_decisions_total",
                "What plugins said: a decision, pass, or a kind of failure.",
                &["plugin", "said"],
            ),
            policy_time: histograms(
                r,
                "forethought_plugin_duration_seconds",
                "Time that plugins took.",
                &["plugin"],
                SECONDS,
            ),
            cache: counters(
                r,
                "forethought_cache_requests_total",
                "Conversations, by whether what the guard found was kept: hit, shared, redis, miss.",
                &["result"],
            ),
            gauges: Gauges::new(r),
            registry: registrar.registry,
            names: registrar.names.into_inner(),
        }
    }

    /// A request has begun.
    pub(crate) fn begin(&self) {
        self.in_flight.inc();
    }

    /// A request is over, as `record` has it.
    pub(crate) fn end(&self, record: &Record) {
        self.in_flight.dec();
        let found = record.found.as_ref();
        let hazard = found.and_then(|found| found.hazard.as_ref()).map_or(NONE, |hazard| hazard.as_str());
        let signal = found.map_or(NONE, |found| found.signal.as_str());
        let (route, decision) = (record.route(), record.decision.as_str());
        let format = record.format.unwrap_or(NONE);
        self.requests.with_label_values(&[route, format, decision, hazard, signal]).inc();
        if let Some(tenant) = record.tenant.as_deref().filter(|_| record.is_admitted) {
            self.tenants.with_label_values(&[tenant, decision]).inc();
        }
        self.retries.inc_by(record.retries.into());
        if let Some(code) = record.error {
            self.errors.with_label_values(&[route, code]).inc();
        }
        for flag in &record.flags {
            // Plugins mark requests with words of their own, of which there may be any number.
            let flag = match &**flag {
                "unreadable" | "truncated" | "disagreement" => flag,
                flag if flag.starts_with("failed:") => "failed",
                _ => "other",
            };
            self.flags.with_label_values(&[route, flag]).inc();
        }
        let timings = &record.timings;
        let seconds = |ms: Option<f64>| ms.map(|ms| ms / 1e3);
        if let Some(total) = seconds(timings.total_ms) {
            self.duration.with_label_values(&[route, decision]).observe(total);
        }
        // What came from the cache took the guard no time.
        let guard = timings.guard.as_ref().filter(|timings| timings.total_ms > 0.0);
        let stages = [
            ("body", timings.body_ms),
            ("guard", timings.guard_ms),
            ("queue", guard.map(|t| t.queue_ms)),
            ("prefill", guard.map(|t| t.prefill_ms)),
            ("probe", guard.map(|t| t.probe_ms)),
            ("decode", guard.map(|t| t.decode_ms)),
            ("policy", timings.policy_ms),
            ("upstream", timings.upstream_ms),
        ];
        // A stage that did not run took no time.
        for (stage, time) in stages {
            if let Some(time) = seconds(time).filter(|time| *time > 0.0) {
                self.stages.with_label_values(&[route, stage]).observe(time);
            }
        }
        self.bytes.inc_by(record.bytes);
        if let Some(reply) = &record.reply {
            self.replies.with_label_values(&[route, reply.decision]).inc();
        }
        if let Some(time) = seconds(timings.upstream_ms) {
            let upstream = record.upstream.as_deref().unwrap_or("default");
            self.upstream_time.with_label_values(&[upstream]).observe(time);
            let answer = match (record.error, record.status) {
                (Some(code), _) => code,
                // A refused reply has a status of our own.
                (None, _) if record.decision == Disposition::Refuse => "2xx",
                (None, Some(200..300)) => "2xx",
                (None, Some(300..400)) => "3xx",
                (None, Some(400..500)) => "4xx",
                (None, Some(_)) => "5xx",
                (None, None) => NONE,
            };
            self.upstreams.with_label_values(&[upstream, answer]).inc();
        }
    }

    /// Evidence was kept, or not.
    pub(crate) fn cached(&self, origin: Origin) {
        self.cache.with_label_values(&[origin.as_str()]).inc();
    }

    /// There is evidence on a conversation, for which the guard has `worked` now or before.
    pub(crate) fn found(&self, evidence: &Evidence, worked: bool) {
        self.scores.with_label_values(&[evidence.path.as_str()]).observe(evidence.score);
        if let Some(gap) = evidence.activation_gap() {
            self.gaps.observe(gap);
        }
        for probe in &evidence.probes {
            let labels = [probe.name.as_str(), &probe.layer.to_string()];
            self.probes.with_label_values(&labels).observe(probe.score);
            self.probes_harmful.with_label_values(&labels).inc_by(probe.is_harmful().into());
        }
        if !worked {
            return;
        }
        let count = |count: usize| count as u64;
        let timings = &evidence.timings;
        self.tokens.with_label_values(&["read"]).inc_by(count(timings.prompt_tokens));
        self.tokens.with_label_values(&["written"]).inc_by(count(timings.generated_tokens));
        let coverage = &evidence.coverage;
        self.coverage.with_label_values(&["read"]).inc_by(count(coverage.tokens_read));
        self.coverage.with_label_values(&["unread"]).inc_by(count(coverage.tokens_unread()));
        self.windows.inc_by(count(coverage.windows));
        for (kind, parts) in &coverage.unread {
            // Kinds come from requests; only those that the formats know are told apart.
            let kind = match kind.as_str() {
                kind @ ("image_url" | "image" | "input_image" | "file" | "input_file" | "input_audio"
                | "document" | "inline_data" | "file_data") => kind,
                _ => "other",
            };
            self.unread.with_label_values(&[kind]).inc_by(count(*parts));
        }
    }

    fn said(&self, plugin: &str, said: &str, time: Duration) {
        self.policies.with_label_values(&[plugin, said]).inc();
        self.policy_time.with_label_values(&[plugin]).observe(time.as_secs_f64());
    }

    /// The names of all metrics, those that have no value yet included.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// All of them in Prometheus's text format, with what is read off now; `cache` are its entries and bytes.
    ///
    /// # Errors
    /// Never for metrics of these kinds; said instead of shown in part.
    pub fn render(
        &self,
        guard: &GuardVersion,
        load: Load,
        audit: AuditHealth,
        cache: Option<(u64, u64)>,
        upstreams: &[UpstreamStatus],
    ) -> Result<Vec<u8>, prometheus::Error> {
        self.gauges.read(guard, load, audit, cache);
        self.gauges.upstreams(upstreams);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl Gauges {
    fn new(r: &Registrar) -> Self {
        Self {
            turn: Mutex::new(()),
            info: register(
                r,
                IntGaugeVec::new(
                    Opts::new("forethought_build_info", "The program and its guard; always 1."),
                    &["version", "bundle", "base_model"],
                ),
            ),
            waiting: gauge(r, "forethought_guard_queue_length", "Conversations that wait for the guard."),
            queue: gauge(r, "forethought_guard_queue_limit", "Most conversations that may wait."),
            running: gauge(r, "forethought_guard_running", "Conversations that the guard works on."),
            steps: counter(r, "forethought_guard_steps_total", "Forward passes of the guard's model."),
            lanes: counter(
                r,
                "forethought_guard_step_conversations_total",
                "Conversations read in forward passes; by the number of passes, the mean batch.",
            ),
            upstream_up: register(
                r,
                IntGaugeVec::new(
                    Opts::new("forethought_upstream_up", "Whether requests go to an upstream."),
                    &["upstream"],
                ),
            ),
            upstream_running: register(
                r,
                IntGaugeVec::new(
                    Opts::new("forethought_upstream_running", "Requests that wait for an upstream's answer."),
                    &["upstream"],
                ),
            ),
            audit_written: counter(r, "forethought_audit_records_total", "Audit records written."),
            audit_lost: counter(
                r,
                "forethought_audit_records_lost_total",
                "Audit records lost to a disk that failed.",
            ),
            cache_entries: gauge(r, "forethought_cache_entries", "Entries of the verdict cache."),
            cache_bytes: gauge(r, "forethought_cache_bytes", "Bytes of the verdict cache."),
            audit_failing: gauge(r, "forethought_audit_failing", "Whether audit records can't be written."),
        }
    }

    fn read(&self, guard: &GuardVersion, load: Load, audit: AuditHealth, cache: Option<(u64, u64)>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.info.reset();
        let labels = [env!("CARGO_PKG_VERSION"), &guard.bundle, &guard.base_model];
        self.info.with_label_values(&labels).set(1);
        let set = |gauge: &IntGauge, value: usize| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.waiting, load.waiting);
        set(&self.running, load.running);
        set(&self.queue, load.queue);
        let advance = |counter: &IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        advance(&self.steps, load.steps);
        advance(&self.lanes, load.lanes);
        advance(&self.audit_written, audit.written);
        advance(&self.audit_lost, audit.lost);
        self.audit_failing.set(audit.failing.into());
        let (entries, bytes) = cache.unwrap_or_default();
        self.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn upstreams(&self, upstreams: &[UpstreamStatus]) {
        // A reload may have taken some away.
        self.upstream_up.reset();
        self.upstream_running.reset();
        for upstream in upstreams {
            self.upstream_up.with_label_values(&[&*upstream.name]).set(upstream.is_up.into());
            let running = i64::try_from(upstream.running).unwrap_or(i64::MAX);
            self.upstream_running.with_label_values(&[&*upstream.name]).set(running);
        }
    }
}

/// Metrics as they are made.
#[derive(Default)]
struct Registrar {
    registry: Registry,
    names: RefCell<Vec<String>>,
}

fn register<C: Collector + Clone + 'static>(r: &Registrar, metric: prometheus::Result<C>) -> C {
    // Wrong only where a name or a label in this file is: every test would see it.
    let metric = metric.expect("a metric's name and labels are right");
    r.names.borrow_mut().extend(metric.desc().into_iter().map(|desc| desc.fq_name.clone()));
    r.registry.register(Box::new(metric.clone())).expect("a metric's name is there once");
    metric
}

fn counters(r: &Registrar, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(r, IntCounterVec::new(Opts::new(name, help), labels))
}

fn counter(r: &Registrar, name: &str, help: &str) -> IntCounter {
    register(r, IntCounter::new(name, help))
}

fn gauge(r: &Registrar, name: &str, help: &str) -> IntGauge {
    register(r, IntGauge::new(name, help))
}

fn histograms(r: &Registrar, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    register(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

fn histogram(r: &Registrar, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}
