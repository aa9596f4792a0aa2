//! A guard on a server.

use std::time::Duration;

use forethought_core::guard::Windows;

use super::Check;
use crate::{
    config::{RawGuard, RawRemote, RemoteFallback, RemoteVerdict, Secret},
    guards::{Last, RemoteOptions, Verdicts, remote::PoolOptions},
    upstream::BaseUrl,
};

/// A guard on a server, and what takes its place.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// How it is asked.
    pub options: RemoteOptions,
    /// Whether the guard in this process is asked where no server answers.
    pub local: bool,
    /// What becomes of a request on which all guards fail.
    pub last: Last,
}

impl Check<'_> {
    pub(super) fn remote(&mut self, guard: &RawGuard) -> Option<RemoteConfig> {
        let raw = &guard.remote;
        let key =
            self.secret("guard.remote.api_key", raw.api_key_env.as_deref(), raw.api_key_file.as_deref());
        let key = key.and_then(|key| {
            let key =
                Secret::new(&key).ok_or_else(|| "the key holds characters that a header can't".to_owned());
            self.parsed("guard.remote", key)
        });
        let urls: Vec<_> = raw.urls.iter().filter_map(|url| self.server(url)).collect();
        let timeout = self.time("guard.remote.timeout_ms", raw.timeout_ms);
        let pool = PoolOptions {
            urls,
            key,
            hedge_after: raw.hedge_after_ms.map(|ms| self.time("guard.remote.hedge_after_ms", ms)),
            breaker_failures: self.at_least("guard.remote.breaker_failures", raw.breaker_failures, 1),
            breaker_pause: self.time("guard.remote.breaker_pause_ms", raw.breaker_pause_ms),
            connect_timeout: self.time("guard.remote.connect_timeout_ms", raw.connect_timeout_ms),
        };
        let RawRemote { fallback, .. } = raw;
        let local = fallback.contains(&RemoteFallback::Local);
        let policy = fallback.iter().position(|step| *step == RemoteFallback::Policy);
        self.require("guard.remote.fallback", policy.is_none_or(|at| at + 1 == fallback.len()), || {
            "`policy` always decides, so nothing comes after it".to_owned()
        });
        if raw.urls.is_empty() {
            return None;
        }
        self.require("guard.mode", !guard.mode.needs_probes(), || {
            format!(
                "is `{}`, but servers tell nothing that probes could read: choose `reason` or `direct`, or take \
                 `guard.remote.urls` out",
                guard.mode.as_str()
            )
        });
        let has_time = !local || timeout < Duration::from_millis(guard.deadline_ms);
        self.require("guard.remote.timeout_ms", has_time, || {
            format!(
                "must be less than `guard.deadline_ms` ({}), or no time is left for the guard in this process",
                guard.deadline_ms
            )
        });
        Some(RemoteConfig {
            options: RemoteOptions {
                pool,
                model: raw.model.clone(),
                verdicts: match raw.verdict {
                    RemoteVerdict::Auto => Verdicts::Auto,
                    RemoteVerdict::Logprobs => Verdicts::Logprobs,
                    RemoteVerdict::Text => Verdicts::Text,
                },
                timeout,
                batch: guard.batch,
                queue: guard.queue,
                windows: Windows {
                    window: guard.window_tokens,
                    overlap: guard.window_overlap,
                    max: guard.max_tokens,
                },
            },
            local,
            last: if policy.is_some() { Last::Policy } else { Last::Fail },
        })
    }

    fn server(&mut self, url: &str) -> Option<BaseUrl> {
        let parsed = BaseUrl::parse(url).map_err(|_| {
            "each must be a URL such as http://10.0.0.5:8000/v1, without user, password and query".to_owned()
        });
        self.parsed("guard.remote.urls", parsed)
    }
}
