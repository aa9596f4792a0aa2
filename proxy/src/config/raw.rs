//! The configuration as it is written: every key, its default, and what it means.
//!
//! The doc comments here are what `forethought config schema` prints. Nothing is judged in this file beyond types;
//! [`check`](super::check) turns it into [`Settings`](super::Settings).

mod cache;
mod operate;
mod plugins;
mod remote;
mod routes;
mod tenants;
mod tls;
mod upstreams;

use std::{collections::BTreeMap, marker::PhantomData};

use forethought_core::{
    guard::Mode as GuardMode,
    probe::{ExecutionProvider, Position},
};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, IntoDeserializer as _},
};

pub use self::{
    cache::RawCache,
    operate::{RawAdmin, RawTelemetry},
    plugins::RawPlugin,
    remote::{RawRemote, RemoteFallback, RemoteVerdict},
    routes::{RawRoute, RawRouteGuard, RawRoutePolicy, RawRouteUpstream},
    tenants::RawTenant,
    tls::{ClientAuth, RawTls},
    upstreams::{Http, RawClientTls, RawEmbedded, RawHealth, RawNamedUpstream, RawUpstream},
};

/// Configuration of the Forethought proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Forethought")]
pub struct Raw {
    /// Address and port to listen on, or `unix:` and the path of a socket. Callers are authenticated only where there are
    /// `tenants`, or where `tls.client_ca_file` is set: otherwise keep it on loopback, or put something in front of it that
    /// does.
    pub listen: String,
    /// The listener for those who operate the proxy.
    pub admin: RawAdmin,
    /// TLS for callers.
    pub tls: RawTls,
    /// Where allowed requests go.
    pub upstream: RawUpstream,
    /// Other upstreams, by name, that routes use and policies may choose.
    pub upstreams: BTreeMap<String, RawNamedUpstream>,
    /// What is done with which requests: the first route that takes a request counts. Without any, there is one route that
    /// takes all, to `upstream`.
    pub routes: Vec<RawRoute>,
    /// Who may ask, by name. Without any, callers are not authenticated, and their keys go through to the upstream.
    pub tenants: BTreeMap<String, RawTenant>,
    /// The model that reads requests.
    pub guard: RawGuard,
    /// What the guard found, kept for when the same comes again.
    pub cache: RawCache,
    /// What is done with what the guard finds.
    pub policy: RawPolicy,
    /// What happens to paths that no guard reads.
    pub paths: RawPaths,
    /// Bounds on what a caller may take up.
    pub limits: RawLimits,
    /// The guard on the upstream's answers.
    pub response_guard: RawResponseGuard,
    /// The shape of refusals.
    pub refusal: RawRefusal,
    /// The record of every request.
    pub audit: RawAudit,
    /// The log on standard error.
    pub log: RawLog,
    /// Traces by OpenTelemetry.
    pub telemetry: RawTelemetry,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            admin: RawAdmin::default(),
            tls: RawTls::default(),
            upstream: RawUpstream::default(),
            upstreams: BTreeMap::new(),
            routes: vec![],
            tenants: BTreeMap::new(),
            guard: RawGuard::default(),
            cache: RawCache::default(),
            policy: RawPolicy::default(),
            paths: RawPaths::default(),
            limits: RawLimits::default(),
            response_guard: RawResponseGuard::default(),
            refusal: RawRefusal::default(),
            audit: RawAudit::default(),
            log: RawLog::default(),
            telemetry: RawTelemetry::default(),
        }
    }
}

/// The model that reads requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawGuard {
    /// The guard bundle: `default`, or a bundle's folder.
    pub bundle: String,
    /// `reason` writes R1-Act's two phases before the verdict; `direct` asks for the verdict at once; `probe` reads the
    /// model's hidden states with the bundle's probes; `cascade` does that first, and reasons where it is not clear.
    #[schemars(with = "GuardModeSchema")]
    pub mode: GuardMode,
    /// Time allowed for one request, waiting included, in milliseconds. At the deadline an open phase is closed and the
    /// verdict scored; a request that was not even read by then is a failure (see `policy.on_failure`).
    pub deadline_ms: u64,
    /// Requests that may wait for the guard; more are a failure: 503.
    pub queue: usize,
    /// Requests that the guard works on at once.
    pub batch: usize,
    /// Most tokens of one request that are read, overlaps included; a longer one is treated as `policy.on_truncated` says.
    pub max_tokens: usize,
    /// Tokens of a window. A longer request is read in overlapping windows.
    pub window_tokens: usize,
    /// Tokens that two neighbouring windows share.
    pub window_overlap: usize,
    /// Most tokens of the first phase, problem understanding; the bundle's own limit where it is not set.
    pub understanding_tokens: Option<usize>,
    /// Most tokens of the second phase, harmfulness assessment; the bundle's own limit where it is not set.
    pub assessment_tokens: Option<usize>,
    /// Threads the guard computes with; all cores where it is not set.
    pub threads: Option<usize>,
    /// Where the guard computes.
    pub device: Device,
    /// What is clear to `mode = "cascade"` without reasoning.
    pub cascade: RawCascade,
    /// Probes of your own beside the bundle's: ONNX files with an input `hidden` and an output `probability`.
    pub probes: Vec<RawProbe>,
    /// The library of ONNX Runtime (1.17 or newer), which runs probes. Where it is not set: the one that the system has,
    /// else one that is fetched like a model. The environment variable `ORT_DYLIB_PATH` comes before it.
    pub onnxruntime: Option<String>,
    /// Where probes compute, in order of preference. All but `cpu` need a library that was built for it.
    #[serde(deserialize_with = "list")]
    #[schemars(with = "Vec<ExecutionProviderSchema>")]
    pub execution_providers: Vec<ExecutionProvider>,
    /// A guard on a server, in place of the one in this process.
    pub remote: RawRemote,
}

impl Default for RawGuard {
    fn default() -> Self {
        Self {
            bundle: "default".to_owned(),
            mode: GuardMode::Reason,
            deadline_ms: 30_000,
            queue: 64,
            batch: 8,
            max_tokens: 16_384,
            window_tokens: 1_024,
            window_overlap: 128,
            understanding_tokens: None,
            assessment_tokens: None,
            threads: None,
            device: Device::Cpu,
            cascade: RawCascade::default(),
            probes: vec![],
            onnxruntime: None,
            execution_providers: vec![ExecutionProvider::Cpu],
            remote: RawRemote::default(),
        }
    }
}

/// What is clear to `mode = "cascade"` without reasoning: scores below `benign_below`, and those from `harmful_from` on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCascade {
    /// Below this a request is clearly benign; the bundle's own bound where it is not set.
    pub benign_below: Option<f64>,
    /// From this on a request is clearly harmful, above 1 none is; the bundle's own bound where it is not set.
    pub harmful_from: Option<f64>,
    /// Write the two phases for clearly harmful requests too, so that every refusal has a written assessment. The score
    /// remains that of the probes.
    pub reason_on_refuse: bool,
}

/// A probe of your own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawProbe {
    /// The ONNX file.
    pub file: String,
    /// Its name, in place of the one in the file.
    pub name: Option<String>,
    /// The score from which on it says harmful, in place of the one in the file.
    pub threshold: Option<f64>,
    /// The layer it reads, where the file does not say: 0 is the embedding, `k` the output of block `k`.
    pub layer: Option<usize>,
    /// The state it reads, where the file does not say: that of the `last` token, or the `mean` or `max` over the request's
    /// tokens.
    #[schemars(with = "Option<PositionSchema>")]
    pub position: Option<Position>,
}

// The schemas of core's types, which know nothing of schemas.

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)] // only its schema is used
enum GuardModeSchema {
    Reason,
    Direct,
    Probe,
    Cascade,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)]
enum PositionSchema {
    Last,
    Mean,
    Max,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)]
enum ExecutionProviderSchema {
    Cpu,
    Coreml,
    Cuda,
    Directml,
    Openvino,
    Tensorrt,
}

/// Where a model computes. `cuda` and `metal` need a build with the feature of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// What is done with what the guard finds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    /// `enforce` acts on decisions, `monitor` only records them, `off` does not read requests at all.
    pub mode: Mode,
    /// `guard-first` sends nothing upstream before the decision; `parallel` sends the request at once, and releases nothing
    /// of the answer before the decision.
    pub order: Order,
    /// Refuse where P(harmful) is at least this: 0 refuses everything, anything above 1 nothing.
    pub threshold: f64,
    /// Thresholds of single hazards in place of `threshold`, such as `self-harm = 0.2`.
    pub hazards: BTreeMap<String, f64>,
    /// The text of a refusal.
    pub message: String,
    /// What happens to a request that the guard fails on: `closed` answers with an error, `open` passes it on, marked.
    pub on_failure: OnFailure,
    /// What happens to a request with parts that the guard can't read, such as images.
    pub on_unreadable: OnUnread,
    /// What happens to a request longer than the guard reads (`guard.max_tokens`).
    pub on_truncated: OnUnread,
    /// What happens to a request of which the guard's probes and its verdict say different things.
    pub on_disagreement: OnDisagreement,
    /// How far probes and verdict must be apart for that, either way.
    pub disagreement_gap: f64,
    /// WebAssembly plugins, asked in this order, before the settings above: the first that does not pass decides.
    pub plugins: Vec<RawPlugin>,
    /// The request header that tells plugins who asks. Whatever stands before the proxy must set it, or take it out: the
    /// proxy believes it.
    pub tenant_header: Option<String>,
    /// How often the configuration file and the plugins' files are looked at for changes, in milliseconds; 0 is never.
    pub watch_ms: u64,
}

impl Default for RawPolicy {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            order: Order::GuardFirst,
            threshold: 0.5,
            hazards: BTreeMap::new(),
            message: "I can't help with that.".to_owned(),
            on_failure: OnFailure::Closed,
            on_unreadable: OnUnread::Deny,
            on_truncated: OnUnread::Deny,
            on_disagreement: OnDisagreement::Allow,
            disagreement_gap: 0.5,
            plugins: vec![],
            tenant_header: None,
            watch_ms: 1_000,
        }
    }
}

/// Whether decisions are acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Decide, act, record.
    Enforce,
    /// Decide and record; every request goes on.
    Monitor,
    /// Read nothing.
    Off,
}

impl Mode {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
            Self::Off => "off",
        }
    }
}

/// Whether the upstream is asked before the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Nothing goes upstream before the decision.
    GuardFirst,
    /// The request goes upstream as soon as it was received, and nothing of the answer is released before the decision.
    /// This hides the guard's time behind the upstream's; but what is refused was sent, may have been begun on, and may be
    /// billed: it is cancelled. A request that the policy rewrites, annotates or redirects is sent a second time.
    Parallel,
}

/// What happens to a request that can't be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Answer with an error.
    Closed,
    /// Pass it on, marked in the answer's header, the audit record and the log.
    Open,
}

/// What happens to a request that was not read in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnUnread {
    /// Answer with an error.
    Deny,
    /// Judge it by what was read, and mark it in the audit record and the log.
    Flag,
    /// Judge it by what was read.
    Allow,
}

/// What happens to a request of which probes and verdict say different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisagreement {
    /// Refuse it.
    Refuse,
    /// Judge it by its score, and mark it in the audit record and the log.
    Flag,
    /// Judge it by its score.
    Allow,
}

/// What happens to paths that no guard reads. A rule is a method (or `*`) and a path, such as `GET /v1/models/*`;
/// in a path, `*` stands for one segment, `*:end` for one that ends so, and a final `**` for any number. What no rule names is
/// denied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPaths {
    /// Requests that go upstream unread. By default those that have no model write: lists of models, embeddings, counts of
    /// tokens, and files (whose contents can't be read where a request names them). Callers that share the upstream's
    /// key share its files too.
    #[serde(deserialize_with = "list")]
    pub pass: Vec<String>,
    /// Requests that are denied even where `pass` matches.
    #[serde(deserialize_with = "list")]
    pub deny: Vec<String>,
}

impl Default for RawPaths {
    fn default() -> Self {
        Self { pass: super::paths::WRITES_NOTHING.map(str::to_owned).to_vec(), deny: vec![] }
    }
}

/// Bounds on what a caller may take up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// Largest request body, in bytes.
    pub body_bytes: usize,
    /// Time allowed for a request's head, and for an idle connection, in milliseconds.
    pub header_timeout_ms: u64,
    /// Time allowed for a request's whole body, in milliseconds.
    pub body_timeout_ms: u64,
    /// Connections that are served at once; more wait.
    pub connections: usize,
    /// Time that running requests have to end after a stop signal, in milliseconds.
    pub drain_timeout_ms: u64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            body_bytes: 8 * 1024 * 1024,
            header_timeout_ms: 15_000,
            body_timeout_ms: 60_000,
            connections: 1_024,
            drain_timeout_ms: 30_000,
        }
    }
}

/// The guard on the upstream's answers: it reads each reply after what was asked, and what it refuses is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawResponseGuard {
    /// Whether answers are read.
    pub enabled: bool,
    /// New text of a stream that a judgement waits for, in bytes. Less reads more often.
    pub hold_bytes: usize,
    /// Text of a stream that is still held back once it was read, in bytes: what begins in it is read with what follows
    /// before any of it is sent on.
    pub overlap_bytes: usize,
    /// Most of an answer that is held in memory, in bytes; a longer one can't be read.
    pub max_bytes: usize,
    /// Time after which a stream that is held back gets a sign of life, where the format has one, in milliseconds.
    pub keepalive_ms: u64,
}

impl Default for RawResponseGuard {
    fn default() -> Self {
        Self {
            enabled: false,
            hold_bytes: 400,
            overlap_bytes: 100,
            max_bytes: 8 * 1024 * 1024,
            keepalive_ms: 10_000,
        }
    }
}

/// The shape of refusals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRefusal {
    /// HTTP status: 200 answers as the model would, 403 with an error.
    pub status: u64,
    /// The `finish_reason` of a refusal.
    pub finish_reason: FinishReason,
    /// The message's field that holds the text.
    pub field: RefusalField,
    /// Whether the caller sees the guard's score, hazard and reasoning, as an object `forethought` in the refusal.
    pub expose_assessment: bool,
}

impl Default for RawRefusal {
    fn default() -> Self {
        Self {
            status: 200,
            finish_reason: FinishReason::ContentFilter,
            field: RefusalField::Content,
            expose_assessment: false,
        }
    }
}

/// The `finish_reason` of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// Content was filtered; clients that ask for structured output raise an error of their own for it.
    ContentFilter,
    /// An ordinary end.
    Stop,
}

/// The message's field that holds a refusal's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RefusalField {
    /// `content`, which every client shows.
    Content,
    /// `refusal`, which only newer clients know.
    Refusal,
}

/// The record of every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAudit {
    /// Whether records are kept.
    pub enabled: bool,
    /// The file, one JSON object a line. Where it is not set: `audit/audit.jsonl` in `$FORETHOUGHT_HOME`, or in the
    /// platform's folder for a program's state.
    pub path: Option<String>,
    /// Whether records hold the text that the guard wrote, which may quote the prompt.
    pub text: bool,
    /// How records hold the prompt.
    pub prompt: AuditPrompt,
    /// Size at which a new file is begun, in bytes.
    pub max_bytes: u64,
    /// Older files that are kept, as `audit.jsonl.1` (the newest) and so on.
    pub keep: usize,
    /// Whether older files are compressed (gzip), as `audit.jsonl.1.gz` and so on.
    pub compress: bool,
    /// Records, of running requests included, that may wait for the disk; then requests wait too.
    pub queue: usize,
    /// What happens to requests while records can't be written.
    pub on_error: OnAuditError,
}

impl Default for RawAudit {
    fn default() -> Self {
        Self {
            enabled: true,
            path: None,
            text: false,
            prompt: AuditPrompt::Hash,
            max_bytes: 100 * 1024 * 1024,
            keep: 10,
            compress: false,
            queue: 4_096,
            on_error: OnAuditError::Continue,
        }
    }
}

/// How an audit record holds the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuditPrompt {
    /// Its length and its HMAC-SHA256 under a random key that is forgotten when the process ends: equal prompts of one
    /// run can be told, and nothing can be guessed back.
    Hash,
    /// The whole conversation.
    Full,
}

/// What happens to requests while audit records can't be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnAuditError {
    /// They are served. Records wait in memory; when too many wait, the oldest are lost, and counted in the log.
    Continue,
    /// They are answered with 503.
    Deny,
}

/// The log on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// `text` for people, `json` for machines.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`, or filter directives such as `info,hyper=debug`.
    pub level: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// The log's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line that a person reads.
    Text,
    /// A JSON object a line.
    Json,
}

/// A list, or (so that an environment variable can hold one) a string with commas.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for List<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of strings")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| T::deserialize(item.to_owned().into_deserializer())).collect()
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(List(PhantomData))
}
