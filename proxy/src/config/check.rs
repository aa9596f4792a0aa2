//! From what is written to what is meant: ranges, formats, files and keys that must be there.

mod cache;
mod operate;
mod plugins;
mod remote;
mod routes;
mod tenants;
mod tls;
mod upstreams;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use directories::ProjectDirs;
use forethought_core::{
    evidence::Hazard,
    guard::{Cascade, Mode as GuardMode},
    policy::Thresholds,
    probe::{Made, RuntimeOptions},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tracing_subscriber::EnvFilter;

pub use self::{
    cache::{CacheConfig, RedisConfig},
    operate::{AdminConfig, TelemetryConfig, Token},
    remote::RemoteConfig,
};
use super::{
    AuditConfig, CheckedConfig, GuardConfig, Limits, Listen, LogConfig, Origins, PathRule, PathRules,
    PolicyConfig, ProbeConfig, Problem, Problems, Raw, RawAudit, RawCascade, RawGuard, RawLimits, RawPolicy,
    RawProbe, RawRefusal, RawResponseGuard, RefusalConfig, ResponseGuardConfig,
};

/// Checks `raw`; `problems` are those that were seen before.
pub(super) fn check(raw: &Raw, origins: &Origins, problems: Vec<Problem>) -> Result<CheckedConfig, Problems> {
    let mut check = Check { origins, problems };
    // Everything is looked at before anything is given up, so that all mistakes are reported at once.
    let listen = check.parsed("listen", listen(&raw.listen));
    let admin = check.admin(&raw.admin);
    let tls = check.server_tls(&raw.tls);
    let upstream = check.upstream(&raw.upstream);
    let upstreams = check.upstreams(&raw.upstreams);
    let tenants = check.tenants(&raw.tenants);
    check.require(
        "policy.tenant_header",
        raw.policy.tenant_header.is_none() || raw.tenants.is_empty(),
        || "can't be set beside `tenants`: their keys tell who asks; take one of them out".to_owned(),
    );
    let guard = check.guard(&raw.guard);
    let cache = check.cache(&raw.cache);
    let policy = check.policy(&raw.policy);
    let paths = PathRules {
        pass: check.rules("paths.pass", &raw.paths.pass),
        deny: check.rules("paths.deny", &raw.paths.deny),
    };
    let limits = check.limits(&raw.limits);
    let response_guard = check.response_guard(&raw.response_guard);
    let refusal = check.refusal(&raw.refusal);
    let audit = check.audit(&raw.audit);
    let telemetry = check.telemetry(&raw.telemetry);
    // Last, so that what is wrong everywhere is told where it was set.
    let routes = check.routes(raw);
    check.require("log.level", EnvFilter::try_new(&raw.log.level).is_ok(), || {
        format!("`{}` is neither a level nor filter directives", raw.log.level)
    });
    match (listen, upstream) {
        (Some(listen), Some(upstream)) if check.problems.is_empty() => Ok(CheckedConfig {
            listen,
            admin,
            tls,
            upstream,
            upstreams,
            routes,
            tenants,
            guard,
            cache,
            policy,
            paths,
            limits,
            response_guard,
            refusal,
            audit,
            log: LogConfig { format: raw.log.format, level: raw.log.level.clone() },
            telemetry,
            files: files(raw),
            sha256: sha256(raw).into(),
            guard_sha256: sha256(&RawGuard {
                mode: GuardMode::default(),
                deadline_ms: 0,
                ..raw.guard.clone()
            })
            .into(),
            fixed: vec![
                ("listen", sha256(&raw.listen)),
                ("admin", sha256(&raw.admin)),
                ("cache", sha256(&raw.cache)),
                ("audit", sha256(&raw.audit)),
                ("log", sha256(&raw.log)),
                ("telemetry", sha256(&raw.telemetry)),
                ("limits.connections", sha256(&raw.limits.connections)),
                ("guard.threads", sha256(&raw.guard.threads)),
            ],
            judging_sha256: sha256(&(&raw.guard, &raw.policy)).into(),
        }),
        _ => Err(Problems(check.problems)),
    }
}

struct Check<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn note(&mut self, key: &str, message: String) {
        // A key inside a value that was read as a whole comes from where that did.
        let sections = key.rmatch_indices(['.', '[']).map(|(end, _)| &key[..end]);
        let origin = [key].into_iter().chain(sections).find_map(|key| self.origins.get(key));
        let origin = origin.map_or("default", String::as_str).to_owned();
        self.problems.push(Problem { key: key.to_owned(), origin, message });
    }

    fn require(&mut self, key: &str, good: bool, message: impl FnOnce() -> String) {
        if !good {
            self.note(key, message());
        }
    }

    fn parsed<T>(&mut self, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.note(key, message)).ok()
    }

    fn at_least<T: PartialOrd + std::fmt::Display>(&mut self, key: &str, value: T, least: T) -> T {
        self.require(key, value >= least, || format!("must be at least {least}, not {value}"));
        value
    }

    /// A positive time. A day is more than any of them needs, and keeps sums of times far from overflow.
    fn time(&mut self, key: &str, ms: u64) -> Duration {
        const MOST: u64 = 24 * 60 * 60 * 1_000;
        self.require(key, (1..=MOST).contains(&ms), || {
            format!("must be from 1 to {MOST} milliseconds, not {ms}")
        });
        Duration::from_millis(ms.min(MOST))
    }

    fn rules(&mut self, key: &str, rules: &[String]) -> Vec<PathRule> {
        let parsed =
            rules.iter().map(|rule| PathRule::parse(rule).map_err(|e| format!("the rule `{rule}` {e}")));
        parsed.collect::<Vec<_>>().into_iter().filter_map(|rule| self.parsed(key, rule)).collect()
    }

    fn guard(&mut self, raw: &RawGuard) -> GuardConfig {
        self.require("guard.window_overlap", raw.window_overlap < raw.window_tokens, || {
            format!("must be less than `guard.window_tokens` ({})", raw.window_tokens)
        });
        for (key, value) in [
            ("guard.threads", raw.threads),
            ("guard.understanding_tokens", raw.understanding_tokens),
            ("guard.assessment_tokens", raw.assessment_tokens),
        ] {
            value.map(|value| self.at_least(key, value, 1));
        }
        GuardConfig {
            bundle: raw.bundle.clone(),
            mode: raw.mode,
            deadline: self.time("guard.deadline_ms", raw.deadline_ms),
            queue: self.at_least("guard.queue", raw.queue, 1),
            batch: self.at_least("guard.batch", raw.batch, 1),
            max_tokens: self.at_least("guard.max_tokens", raw.max_tokens, 64),
            window_tokens: self.at_least("guard.window_tokens", raw.window_tokens, 64),
            window_overlap: raw.window_overlap,
            understanding_tokens: raw.understanding_tokens,
            assessment_tokens: raw.assessment_tokens,
            threads: raw.threads,
            device: raw.device,
            cascade: self.cascade(&raw.cascade),
            probes: raw.probes.iter().map(|probe| self.probe(probe)).collect(),
            runtime: RuntimeOptions {
                library: raw.onnxruntime.as_ref().map(PathBuf::from),
                providers: raw.execution_providers.clone(),
            },
            remote: self.remote(raw),
            key_file: raw.remote.api_key_file.as_ref().map(PathBuf::from),
        }
    }

    fn cascade(&mut self, raw: &RawCascade) -> Cascade {
        let RawCascade { benign_below, harmful_from, reason_on_refuse } = *raw;
        for (key, bound) in [("benign_below", benign_below), ("harmful_from", harmful_from)] {
            // Written so that a value that is not a number fails.
            let right = bound.is_none_or(|bound| bound >= 0.0 && bound.is_finite());
            self.require(&format!("guard.cascade.{key}"), right, || {
                format!("must be a probability, not {}", bound.unwrap_or_default())
            });
        }
        if let Some((low, high)) = benign_below.zip(harmful_from)
            && low > high
        {
            let problem = format!("must be at most `guard.cascade.harmful_from`, which is {high}, not {low}");
            self.note("guard.cascade.benign_below", problem);
        }
        Cascade { benign_below, harmful_from, reason_on_refuse }
    }

    fn probe(&mut self, raw: &RawProbe) -> ProbeConfig {
        let RawProbe { file, name, threshold, layer, position } = raw.clone();
        self.require("guard.probes", !file.is_empty(), || "a probe's `file` must not be empty".to_owned());
        let right = threshold.is_none_or(|threshold| (0.0..=1.0).contains(&threshold));
        self.require("guard.probes", right, || {
            format!("the threshold of {file} must be a probability, not {}", threshold.unwrap_or_default())
        });
        ProbeConfig { file: file.into(), made: Made { name, layer, position, threshold } }
    }

    fn policy(&mut self, raw: &RawPolicy) -> PolicyConfig {
        let mut hazards = BTreeMap::new();
        let own = raw.hazards.iter().map(|(name, &value)| (format!("policy.hazards.{name}"), value));
        for (key, value) in own.chain([("policy.threshold".to_owned(), raw.threshold)]) {
            // Written so that a value that is not a number fails.
            self.require(&key, value >= 0.0 && value.is_finite(), || {
                format!("must be a probability (0 refuses everything, above 1 nothing), not {value}")
            });
        }
        for (name, &value) in &raw.hazards {
            // Environment variables can't hold dashes. Bundles may name hazards of their own, so any name will do.
            hazards.insert(Hazard::new(name.replace('_', "-")), value);
        }
        self.require("policy.message", !raw.message.trim().is_empty(), || {
            "must not be empty: clients retry or fail on an empty answer".to_owned()
        });
        self.require(
            "policy.disagreement_gap",
            raw.disagreement_gap > 0.0 && raw.disagreement_gap <= 1.0,
            || format!("must be above 0 and at most 1, not {}", raw.disagreement_gap),
        );
        PolicyConfig {
            mode: raw.mode,
            order: raw.order,
            thresholds: Thresholds { score: raw.threshold, hazards, message: raw.message.clone() },
            on_failure: raw.on_failure,
            on_unreadable: raw.on_unreadable,
            on_truncated: raw.on_truncated,
            on_disagreement: raw.on_disagreement,
            disagreement_gap: raw.disagreement_gap,
            plugins: self.plugins(raw),
            tenant_header: self.tenant_header(raw.tenant_header.as_deref()),
            watch: (raw.watch_ms > 0).then(|| self.time("policy.watch_ms", raw.watch_ms)),
        }
    }

    fn limits(&mut self, raw: &RawLimits) -> Limits {
        Limits {
            body_bytes: self.at_least("limits.body_bytes", raw.body_bytes, 1),
            header_timeout: self.time("limits.header_timeout_ms", raw.header_timeout_ms),
            body_timeout: self.time("limits.body_timeout_ms", raw.body_timeout_ms),
            connections: self.at_least("limits.connections", raw.connections, 1),
            drain_timeout: self.time("limits.drain_timeout_ms", raw.drain_timeout_ms),
        }
    }

    fn response_guard(&mut self, raw: &RawResponseGuard) -> Option<ResponseGuardConfig> {
        let checked = ResponseGuardConfig {
            hold_bytes: self.at_least("response_guard.hold_bytes", raw.hold_bytes, 1),
            overlap_bytes: raw.overlap_bytes,
            max_bytes: self.at_least("response_guard.max_bytes", raw.max_bytes, 1),
            keepalive: self.time("response_guard.keepalive_ms", raw.keepalive_ms),
        };
        raw.enabled.then_some(checked)
    }

    fn refusal(&mut self, raw: &RawRefusal) -> RefusalConfig {
        self.require("refusal.status", matches!(raw.status, 200 | 403), || {
            format!("must be 200 or 403, not {}", raw.status)
        });
        RefusalConfig {
            as_error: raw.status == 403,
            finish_reason: raw.finish_reason,
            field: raw.field,
            expose_assessment: raw.expose_assessment,
        }
    }

    fn audit(&mut self, raw: &RawAudit) -> Option<AuditConfig> {
        let queue = self.at_least("audit.queue", raw.queue, 1);
        self.require("audit.queue", raw.queue <= 1_000_000, || "must be at most 1000000".to_owned());
        let max_bytes = self.at_least("audit.max_bytes", raw.max_bytes, 4_096);
        if !raw.enabled {
            return None;
        }
        let path = raw.path.as_ref().map(PathBuf::from).or_else(usual_audit_file);
        let path = self
            .parsed("audit.path", path.ok_or_else(|| "is not set, and there is no home folder".to_owned()))?;
        Some(AuditConfig {
            path,
            text: raw.text,
            prompt: raw.prompt,
            max_bytes,
            keep: raw.keep,
            compress: raw.compress,
            queue,
            on_error: raw.on_error,
        })
    }
}

/// Whether this is fit for a name in logs and records.
fn named(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return if cfg!(unix) {
            Ok(Listen::Unix(path.into()))
        } else {
            Err("this system has no unix sockets".to_owned())
        };
    }
    address(text).map(Listen::Tcp).map_err(|message| format!("{message}; or unix:/run/forethought.sock"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("must be an IP address and a port, such as 127.0.0.1:8080, not `{text}`"))
}

/// `audit/audit.jsonl` in `$FORETHOUGHT_HOME`, else in the platform's folder for a program's state.
fn usual_audit_file() -> Option<PathBuf> {
    let home = std::env::var_os("FORETHOUGHT_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let state = || {
        let dirs = ProjectDirs::from("", "", "forethought")?;
        Some(dirs.state_dir().unwrap_or(dirs.data_local_dir()).to_owned())
    };
    Some(home.or_else(state)?.join(Path::new("audit/audit.jsonl")))
}

/// Files with keys and certificates.
fn files(raw: &Raw) -> Vec<PathBuf> {
    let named = raw.upstreams.values().map(|upstream| (&upstream.tls, &upstream.api_key_file));
    let upstreams = named.chain([(&raw.upstream.tls, &raw.upstream.api_key_file)]);
    let upstreams = upstreams.flat_map(|(tls, key)| [&tls.ca_file, &tls.cert_file, &tls.key_file, key]);
    let callers = [&raw.tls.cert_file, &raw.tls.key_file, &raw.tls.client_ca_file];
    let tenants = raw.tenants.values().map(|tenant| &tenant.keys_file);
    let remote = [&raw.guard.remote.api_key_file];
    upstreams.chain(callers).chain(tenants).chain(remote).flatten().map(PathBuf::from).collect()
}

fn sha256(raw: &impl Serialize) -> String {
    // Secrets are not in it: it holds names of variables and files only.
    hex::encode(Sha256::digest(serde_json::to_vec(raw).unwrap_or_default()))
}
