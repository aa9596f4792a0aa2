//! Configuration: defaults, then a TOML file, then the environment, then flags; checked as a whole before anything
//! starts.
//!
//! [`Sources`] names the layers, [`Merged`] holds what they say and where each value came from, [`CheckedConfig`] is
//! what the rest of the program takes. Every mistake is reported at once, with its key and its origin.

mod check;
mod layers;
mod paths;
mod raw;
mod routes;
mod tenants;
mod tls;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use forethought_core::{
    evidence::Evidence,
    guard::{Cascade, Mode as GuardMode},
    policy::{Policy, PolicyChain, RefuseDisagreement, Thresholds, disagreement},
    probe::{Made, RuntimeOptions},
};
use forethought_plugins::PluginOptions;
use http::{HeaderName, HeaderValue};

pub(crate) use self::paths::is_plain;
pub use self::{
    check::{AdminConfig, CacheConfig, RedisConfig, RemoteConfig, TelemetryConfig, Token},
    layers::{Flag, Merged, Setting, Sources},
    paths::{PathRule, PathRules},
    raw::{
        AuditPrompt, ClientAuth, Device, FinishReason, Http, LogFormat, Mode, OnAuditError, OnDisagreement,
        OnFailure, OnUnread, Order, Raw, RawAdmin, RawAudit, RawCache, RawCascade, RawClientTls, RawEmbedded,
        RawGuard, RawHealth, RawLimits, RawLog, RawNamedUpstream, RawPaths, RawPlugin, RawPolicy, RawProbe,
        RawRefusal, RawRemote, RawResponseGuard, RawRoute, RawRouteGuard, RawRoutePolicy, RawRouteUpstream,
        RawTelemetry, RawTenant, RawTls, RawUpstream, RefusalField, RemoteFallback, RemoteVerdict,
    },
    routes::{DEFAULT_UPSTREAM, Glob, RouteConfig, RouteRules, Target},
    tenants::{KeyHash, Rate, TenantConfig},
    tls::{ClientTls, ServerTls},
};
use crate::upstream::BaseUrl;

/// A configuration without mistakes.
#[derive(Clone, Debug)]
pub struct CheckedConfig {
    /// Where to listen.
    pub listen: Listen,
    /// TLS for callers; `None` speaks plain HTTP.
    pub tls: Option<ServerTls>,
    /// The listener for those who operate the proxy; `None` where there is none.
    pub admin: Option<AdminConfig>,
    /// Where allowed requests go.
    pub upstream: UpstreamConfig,
    /// Other upstreams that routes use and policies may choose, by name.
    pub upstreams: BTreeMap<String, UrlUpstream>,
    /// What is done with which requests; at least one. The first that takes a request counts.
    pub routes: Vec<RouteConfig>,
    /// Who may ask, by name; without any, everybody may.
    pub tenants: BTreeMap<String, TenantConfig>,
    /// The guard.
    pub guard: GuardConfig,
    /// What the guard found, kept; `None` where nothing is.
    pub cache: Option<CacheConfig>,
    /// What is done with what the guard finds.
    pub policy: PolicyConfig,
    /// What happens to paths that no guard reads.
    pub paths: PathRules,
    /// Bounds on what a caller may take up.
    pub limits: Limits,
    /// Whether and how the guard reads answers; `None` where it doesn't.
    pub response_guard: Option<ResponseGuardConfig>,
    /// The shape of refusals.
    pub refusal: RefusalConfig,
    /// The record of every request; `None` keeps none.
    pub audit: Option<AuditConfig>,
    /// The log.
    pub log: LogConfig,
    /// Where traces go; `None` where nothing is traced.
    pub telemetry: Option<TelemetryConfig>,
    /// Files with keys and certificates that were read.
    pub files: Vec<PathBuf>,
    /// sha256 of the configuration's values, hexadecimal; audit records name it.
    pub sha256: Arc<str>,
    /// sha256 of what the guard is loaded from, hexadecimal.
    pub guard_sha256: Arc<str>,
    /// What a running server can't change: keys, and the sha256 of their values.
    pub fixed: Vec<(&'static str, String)>,
    /// sha256 of the sections that say what is found and decided, hexadecimal.
    pub judging_sha256: Arc<str>,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At a port.
    Tcp(SocketAddr),
    /// At a unix socket with this path.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where allowed requests go.
#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamConfig {
    /// To an OpenAI-compatible API.
    Url(Box<UrlUpstream>),
    /// To a small model in process.
    Embedded(EmbeddedConfig),
}

/// An OpenAI-compatible API.
#[derive(Clone, Debug, PartialEq)]
pub struct UrlUpstream {
    /// Its base URL.
    pub base: BaseUrl,
    /// A unix socket to connect to, in place of the URL's host and port.
    pub socket: Option<PathBuf>,
    /// Its key, in place of the caller's.
    pub key: Option<Secret>,
    /// Time allowed for opening a connection.
    pub connect_timeout: Duration,
    /// Time allowed from sending a request to the head of its answer.
    pub response_timeout: Duration,
    /// Time allowed between two pieces of an answer.
    pub idle_timeout: Duration,
    /// Time allowed from sending a request to the end of its answer.
    pub total_timeout: Option<Duration>,
    /// The version of HTTP.
    pub http: Http,
    /// TLS of an https URL.
    pub tls: ClientTls,
    /// When it counts as down.
    pub health: HealthConfig,
}

/// When an upstream counts as down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// What is asked for now and then; `None` leaves it to the requests to tell.
    pub path: Option<String>,
    /// How often.
    pub interval: Duration,
    /// Time allowed for the answer.
    pub timeout: Duration,
    /// Failures in a row after which it is down.
    pub fall: u32,
    /// Good checks in a row after which it is up again.
    pub rise: u32,
    /// Time after which one that is down by its requests is tried again.
    pub cooldown: Duration,
}

impl HealthConfig {
    /// That of a model in process, which is never checked.
    pub(crate) fn unchecked() -> Self {
        let RawHealth { fall, rise, .. } = RawHealth::default();
        Self {
            path: None,
            interval: Duration::MAX,
            timeout: Duration::MAX,
            fall,
            rise,
            cooldown: Duration::ZERO,
        }
    }
}

/// The small model that answers in process.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddedConfig {
    /// Its name in the model store.
    pub model: String,
    /// Requests that may wait for it.
    pub queue: usize,
    /// Most tokens of an answer where the request names no limit.
    pub max_tokens: usize,
    /// Temperature where the request names none.
    pub temperature: f64,
    /// Top-p where the request names none.
    pub top_p: f64,
}

/// The guard. The proxy itself uses only [`Self::mode`] and [`Self::deadline`]; the rest is for whoever builds the guard.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// `default`, or a bundle's folder.
    pub bundle: String,
    /// How the guard comes to its score.
    pub mode: GuardMode,
    /// Time allowed for one request, waiting included.
    pub deadline: Duration,
    /// Requests that may wait.
    pub queue: usize,
    /// Requests worked on at once.
    pub batch: usize,
    /// Most tokens of one request that are read, overlaps included.
    pub max_tokens: usize,
    /// Tokens of a window.
    pub window_tokens: usize,
    /// Tokens that two neighbouring windows share; less than [`Self::window_tokens`].
    pub window_overlap: usize,
    /// Most tokens of the first phase; `None` is the bundle's own limit.
    pub understanding_tokens: Option<usize>,
    /// Most tokens of the second phase; `None` is the bundle's own limit.
    pub assessment_tokens: Option<usize>,
    /// Threads to compute with; `None` is all cores.
    pub threads: Option<usize>,
    /// Where to compute.
    pub device: Device,
    /// What is clear without reasoning.
    pub cascade: Cascade,
    /// Probes beside the bundle's.
    pub probes: Vec<ProbeConfig>,
    /// What runs probes, and where.
    pub runtime: RuntimeOptions,
    /// A guard on a server, in place of the one in this process.
    pub remote: Option<RemoteConfig>,
    /// File with that server's key: another key asks for another guard.
    pub key_file: Option<PathBuf>,
}

/// A probe beside the bundle's.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeConfig {
    /// The ONNX file.
    pub file: PathBuf,
    /// What is said of it here.
    pub made: Made,
}

/// What is done with what the guard finds.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Whether decisions are acted on.
    pub mode: Mode,
    /// Whether the upstream is asked before the decision.
    pub order: Order,
    /// The built-in thresholds, which end every policy chain.
    pub thresholds: Thresholds,
    /// What happens to a request that the guard fails on.
    pub on_failure: OnFailure,
    /// What happens to a request with unreadable parts.
    pub on_unreadable: OnUnread,
    /// What happens to a request longer than the guard reads.
    pub on_truncated: OnUnread,
    /// What happens to a request of which probes and verdict say different things.
    pub on_disagreement: OnDisagreement,
    /// How far they must be apart for that.
    pub disagreement_gap: f64,
    /// WebAssembly plugins, in order.
    pub plugins: Vec<PluginConfig>,
    /// The header that tells who asks.
    pub tenant_header: Option<HeaderName>,
    /// How often files are looked at for changes; `None` is never.
    pub watch: Option<Duration>,
}

/// A WebAssembly plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig {
    /// Its file.
    pub path: PathBuf,
    /// What is said of it here.
    pub options: PluginOptions,
}

impl PolicyConfig {
    /// `plugins`, then the built-in policies.
    pub fn chain(&self, plugins: Vec<Box<dyn Policy>>) -> PolicyChain {
        let mut policies = plugins;
        if self.on_disagreement == OnDisagreement::Refuse {
            let (gap, message) = (self.disagreement_gap, self.thresholds.message.clone());
            policies.push(Box::new(RefuseDisagreement { gap, message }));
        }
        PolicyChain::new(policies, self.thresholds.clone())
    }

    /// Whether a request is to be marked for what probes and verdict say of it.
    pub fn flags(&self, evidence: &Evidence) -> bool {
        self.on_disagreement == OnDisagreement::Flag
            && disagreement(evidence, self.disagreement_gap).is_some()
    }
}

/// Bounds on what a caller may take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub body_bytes: usize,
    /// Time allowed for a request's head, and for an idle connection.
    pub header_timeout: Duration,
    /// Time allowed for a request's whole body.
    pub body_timeout: Duration,
    /// Connections served at once.
    pub connections: usize,
    /// Time that running requests have to end after a stop signal.
    pub drain_timeout: Duration,
}

/// How the guard reads answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseGuardConfig {
    /// New text that a judgement waits for, in bytes.
    pub hold_bytes: usize,
    /// Text that is still held back once it was read, in bytes.
    pub overlap_bytes: usize,
    /// Most of an answer that is held in memory, in bytes.
    pub max_bytes: usize,
    /// Time after which a stream that is held back gets a sign of life.
    pub keepalive: Duration,
}

/// The shape of refusals.
#[derive(Clone, Debug)]
pub struct RefusalConfig {
    /// Whether a refusal is an error with status 403 instead of an answer with 200.
    pub as_error: bool,
    /// The `finish_reason` of a refusal.
    pub finish_reason: FinishReason,
    /// The message's field that holds the text.
    pub field: RefusalField,
    /// Whether the caller sees what the guard found.
    pub expose_assessment: bool,
}

/// The record of every request.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditConfig {
    /// The file.
    pub path: PathBuf,
    /// Whether records hold the text that the guard wrote.
    pub text: bool,
    /// How records hold the prompt.
    pub prompt: AuditPrompt,
    /// Size at which a new file is begun, in bytes.
    pub max_bytes: u64,
    /// Older files that are kept.
    pub keep: usize,
    /// Whether older files are compressed.
    pub compress: bool,
    /// Records that may wait for the disk.
    pub queue: usize,
    /// What happens to requests while records can't be written.
    pub on_error: OnAuditError,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level or filter directives.
    pub level: String,
}

impl CheckedConfig {
    /// The same with what differs for `route`.
    pub(crate) fn for_route(&self, route: &RouteConfig) -> Self {
        let mut own = self.clone();
        (own.guard.mode, own.guard.deadline) = (route.guard_mode, route.guard_deadline);
        own.policy = route.policy.clone();
        own.judging_sha256 = route.judging_sha256.clone();
        own.response_guard = route.response_guard;
        own
    }

    /// Whether some route sends to the upstream of the section `upstream`.
    pub fn uses_default_upstream(&self) -> bool {
        let targets = self.routes.iter().flat_map(|route| &route.upstreams);
        targets.into_iter().any(|target| target.name == DEFAULT_UPSTREAM)
    }

    /// Reads, merges and checks all layers.
    ///
    /// # Errors
    /// Every mistake there is, at once.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        Merged::read(sources).check()
    }
}

/// A key that no log shows.
#[derive(Clone, PartialEq)]
pub struct Secret {
    plain: HeaderValue,
    bearer: HeaderValue,
}

impl Secret {
    /// The key, or `None` where it can't stand in a header.
    pub fn new(key: &str) -> Option<Self> {
        let value = |text: String| {
            let mut value = HeaderValue::try_from(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        Some(Self { plain: value(key.to_owned())?, bearer: value(format!("Bearer {key}"))? })
    }

    /// A header's value: the key.
    pub fn plain(&self) -> HeaderValue {
        self.plain.clone()
    }

    /// A header's value: `Bearer` and the key.
    pub fn bearer(&self) -> HeaderValue {
        self.bearer.clone()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, such as `guard.deadline_ms`; empty where a whole layer can't be read.
    pub key: String,
    /// Where the value came from.
    pub origin: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.origin, self.message),
            key => write!(f, "`{key}` ({}): {}", self.origin, self.message),
        }
    }
}

/// All mistakes in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "the configuration has a mistake: {one}"),
            all => {
                write!(f, "the configuration has {} mistakes:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Where values came from, by key.
type Origins = BTreeMap<String, String>;
