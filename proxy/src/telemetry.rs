//! Traces by OpenTelemetry: a span for each request, and in it one for each stage. Made from the audit record, so that
//! they hold what it holds and never text of prompts or answers; names follow the semantic conventions for HTTP and
//! generative AI.

mod export;

use std::time::{Instant, SystemTime};

use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span as _, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tracing::warn;

use self::export::Collector;
use crate::{
    BoxError,
    audit::{Found, Outcome, Record, Stage},
    config::TelemetryConfig,
};
use http::{HeaderMap, request};

/// Where traces go.
pub struct Telemetry {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Telemetry {
    /// Starts to send traces, in batches, from a thread of its own. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the system's certificates can't be read for an https URL.
    pub fn new(config: &TelemetryConfig) -> Result<Self, BoxError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(&config.endpoint)
            .with_http_client(Collector::new(&config.endpoint)?)
            .build()?;
        // A caller's own choice comes first.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let name = config.service_name.clone();
        let resource = Resource::builder().with_service_name(name).with_attribute(version).build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("forethought");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    /// Begins the trace of a request, as a part of its caller's where that has one.
    pub(crate) fn begin(&self, head: &request::Parts) -> Trace {
        let parent = self.propagator.extract_with_context(&Context::new(), &HeaderExtractor(&head.headers));
        let span = self
            .tracer
            .span_builder(head.method.as_str().to_owned())
            .with_kind(SpanKind::Server)
            .start_with_context(&self.tracer, &parent);
        let root = parent.with_span(span);
        let (tracer, propagator) = (self.tracer.clone(), self.propagator.clone());
        Trace { tracer, propagator, root, stages: Vec::new(), upstream: None }
    }

    /// Sends what is still to be sent.
    pub(crate) async fn finish(&self) {
        let provider = self.provider.clone();
        // Waits for the exporter's thread.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || provider.shutdown()).await {
            warn!("the last traces were not sent: {error}");
        }
    }
}

/// The trace of one request.
pub(crate) struct Trace {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    root: Context,
    stages: Vec<(Stage, SystemTime, SystemTime)>,
    upstream: Option<Context>,
}

impl Trace {
    /// A stage that began at `since` is over.
    pub(crate) fn stage(&mut self, stage: Stage, since: Instant) {
        let end = SystemTime::now();
        self.stages.push((stage, end - since.elapsed(), end));
    }

    /// The request goes upstream. With these headers, what comes of it there belongs to this trace.
    pub(crate) fn forward(&mut self) -> HeaderMap {
        let span = self
            .tracer
            .span_builder("upstream")
            .with_kind(SpanKind::Client)
            .start_with_context(&self.tracer, &self.root);
        let context = self.root.with_span(span);
        let mut headers = HeaderMap::new();
        self.propagator.inject_context(&context, &mut HeaderInjector(&mut headers));
        self.upstream = Some(context);
        headers
    }

    /// The request is over.
    pub(crate) fn end(self, record: &Record) {
        let root = self.root.span();
        if root.is_recording() {
            for &(stage, start, end) in &self.stages {
                match stage {
                    Stage::Body => self.child("body", start, end, vec![]),
                    Stage::Guard => self.guard(start, end, record),
                    Stage::Policy => self.child("policy", start, end, policy(record)),
                }
            }
            if let Some(upstream) = &self.upstream {
                let span = upstream.span();
                let (operation, provider) = semantics(record.format);
                let model = record.model.as_deref().unwrap_or_default();
                span.update_name(format!("{operation} {model}").trim_end().to_owned());
                span.set_attributes(generation(operation, provider, model));
                span.set_attribute(KeyValue::new(
                    "forethought.upstream",
                    record.upstream.clone().unwrap_or_else(|| "default".to_owned()),
                ));
                // What a refused reply is answered with is ours.
                if let Some(status) = record.status.filter(|_| record.reply.is_none()) {
                    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
                }
                fail(&span, record);
            }
            root.update_name(name(record));
            root.set_attributes(request_attributes(record));
            fail(&root, record);
        }
        if let Some(upstream) = self.upstream {
            upstream.span().end();
        }
        root.end();
    }

    fn child(&self, name: &'static str, start: SystemTime, end: SystemTime, attributes: Vec<KeyValue>) {
        self.under(&self.root, name.into(), start, end, attributes);
    }

    fn under(
        &self,
        parent: &Context,
        name: String,
        start: SystemTime,
        end: SystemTime,
        attributes: Vec<KeyValue>,
    ) -> Context {
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Internal);
        let mut span = builder
            .with_start_time(start)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, parent);
        span.end_with_timestamp(end);
        parent.with_span(span)
    }

    /// The guard's own work, which is a generation too: a model in this process reads and writes.
    fn guard(&self, start: SystemTime, end: SystemTime, record: &Record) {
        let cache = record.cache.map(|origin| KeyValue::new("forethought.cache", origin));
        let Some(found) = &record.found else {
            return self.child("guard", start, end, vec![]);
        };
        if record.timings.guard.is_none() {
            // Found before: nothing is generated now.
            let score = KeyValue::new("forethought.score", found.score);
            return self.child("guard", start, end, cache.into_iter().chain([score]).collect());
        }
        let builder = self
            .tracer
            .span_builder(format!("chat {}", found.guard.base_model))
            .with_kind(SpanKind::Internal)
            .with_start_time(start)
            .with_attributes(guard(found, record).into_iter().chain(cache));
        let mut span = builder.start_with_context(&self.tracer, &self.root);
        span.add_event_with_timestamp(
            "gen_ai.evaluation.result",
            end,
            vec![
                KeyValue::new("gen_ai.evaluation.name", "harmfulness"),
                KeyValue::new("gen_ai.evaluation.score.value", found.score),
                KeyValue::new("gen_ai.evaluation.score.label", found.verdict.as_str()),
            ],
        );
        span.end_with_timestamp(end);
        let parent = self.root.with_span(span);
        let Some(timings) = &record.timings.guard else { return };
        let mut at = start;
        for (name, ms) in
            [("queue", timings.queue_ms), ("prefill", timings.prefill_ms), ("decode", timings.decode_ms)]
        {
            let next = at + std::time::Duration::from_secs_f64(ms.max(0.0) / 1e3);
            if ms > 0.0 {
                self.under(&parent, name.to_owned(), at, next, vec![]);
            }
            at = next;
        }
    }
}

fn name(record: &Record) -> String {
    let method = &record.method;
    record.format.map_or_else(|| method.clone(), |format| format!("{method} {format}"))
}

fn request_attributes(record: &Record) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", record.method.clone()),
        KeyValue::new("url.path", record.path.clone()),
        KeyValue::new("forethought.id", record.id.clone()),
        KeyValue::new("forethought.route", record.route().to_owned()),
        KeyValue::new("forethought.decision", record.decision.as_str()),
        KeyValue::new("forethought.answer_bytes", i64::try_from(record.bytes).unwrap_or(i64::MAX)),
    ];
    attributes
        .extend(record.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    attributes.extend(record.by.clone().map(|by| KeyValue::new("forethought.by", by)));
    if !record.flags.is_empty() {
        attributes.push(KeyValue::new("forethought.flags", record.flags.join(",")));
    }
    attributes
}

fn policy(record: &Record) -> Vec<KeyValue> {
    let by = record.by.clone().map(|by| KeyValue::new("forethought.by", by));
    by.into_iter().chain([KeyValue::new("forethought.decision", record.decision.as_str())]).collect()
}

fn guard(found: &Found, record: &Record) -> Vec<KeyValue> {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let mut attributes = generation("chat", "forethought", &found.guard.base_model).to_vec();
    attributes.extend([
        KeyValue::new("forethought.guard.bundle", found.guard.bundle.clone()),
        KeyValue::new("forethought.score", found.score),
        KeyValue::new("forethought.signal", found.signal.as_str()),
        KeyValue::new("forethought.coverage.tokens", count(found.coverage.tokens)),
        KeyValue::new("forethought.coverage.tokens_read", count(found.coverage.tokens_read)),
        KeyValue::new("forethought.coverage.windows", count(found.coverage.windows)),
    ]);
    attributes
        .extend(found.hazard.as_ref().map(|hazard| KeyValue::new("forethought.hazard", hazard.to_string())));
    if let Some(timings) = &record.timings.guard {
        attributes.push(KeyValue::new("gen_ai.usage.input_tokens", count(timings.prompt_tokens)));
        attributes.push(KeyValue::new("gen_ai.usage.output_tokens", count(timings.generated_tokens)));
    }
    attributes
}

fn generation(operation: &'static str, provider: &'static str, model: &str) -> [KeyValue; 3] {
    [
        KeyValue::new("gen_ai.operation.name", operation),
        KeyValue::new("gen_ai.provider.name", provider),
        KeyValue::new("gen_ai.request.model", model.to_owned()),
    ]
}

/// The operation and the provider of a wire format, in the convention's words.
fn semantics(format: Option<&str>) -> (&'static str, &'static str) {
    match format {
        Some("openai-completions") => ("text_completion", "openai"),
        Some("anthropic-messages") => ("chat", "anthropic"),
        Some("ollama-chat") => ("chat", "ollama"),
        Some("ollama-generate") => ("text_completion", "ollama"),
        Some("gemini") => ("generate_content", "gcp.gemini"),
        _ => ("chat", "openai"),
    }
}

fn fail(span: &opentelemetry::trace::SpanRef<'_>, record: &Record) {
    let kind = record.error.or(match record.outcome {
        Outcome::Aborted => Some("aborted"),
        Outcome::Disconnected => Some("disconnected"),
        _ => None,
    });
    if let Some(kind) = kind {
        span.set_attribute(KeyValue::new("error.type", kind));
        span.set_status(Status::error(""));
    }
}
