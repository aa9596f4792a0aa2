//! Upstreams: URLs, keys, times, and health.

use std::{collections::BTreeMap, path::PathBuf};

use super::Check;
use crate::{
    config::{
        DEFAULT_UPSTREAM, EmbeddedConfig, HealthConfig, RawHealth, RawNamedUpstream, RawUpstream, Secret,
        UpstreamConfig, UrlUpstream, is_plain,
    },
    upstream::BaseUrl,
};

impl Check<'_> {
    pub(super) fn upstream(&mut self, raw: &RawUpstream) -> Option<UpstreamConfig> {
        let embedded = EmbeddedConfig {
            model: raw.embedded.model.clone(),
            queue: self.at_least("upstream.embedded.queue", raw.embedded.queue, 1),
            max_tokens: self.at_least("upstream.embedded.max_tokens", raw.embedded.max_tokens, 1),
            temperature: raw.embedded.temperature,
            top_p: raw.embedded.top_p,
        };
        self.require("upstream.embedded.temperature", (0.0..=2.0).contains(&embedded.temperature), || {
            format!("must be from 0 to 2, not {}", embedded.temperature)
        });
        self.require("upstream.embedded.top_p", embedded.top_p > 0.0 && embedded.top_p <= 1.0, || {
            format!("must be above 0 and at most 1, not {}", embedded.top_p)
        });
        let url = self.url_upstream("upstream", raw);
        if raw.url == "embedded" {
            Some(UpstreamConfig::Embedded(embedded))
        } else {
            url.map(|url| UpstreamConfig::Url(Box::new(url)))
        }
    }

    pub(super) fn upstreams(
        &mut self,
        raw: &BTreeMap<String, RawNamedUpstream>,
    ) -> BTreeMap<String, UrlUpstream> {
        let named = raw.iter().filter_map(|(name, raw)| {
            let at = format!("upstreams.{name}");
            self.require(&at, name != DEFAULT_UPSTREAM, || {
                "this name stands for the section `upstream`; choose another".to_owned()
            });
            self.require(&at, raw.url != "embedded", || {
                "must be a URL: `embedded` can only be `upstream.url`".to_owned()
            });
            Some((name.clone(), self.url_upstream(&at, &raw.plain())?))
        });
        named.collect()
    }

    /// The section `at`, but for what only `upstream` has. `embedded` as URL is left to the caller.
    fn url_upstream(&mut self, at: &str, raw: &RawUpstream) -> Option<UrlUpstream> {
        let connect_timeout = self.time(&format!("{at}.connect_timeout_ms"), raw.connect_timeout_ms);
        let response_timeout = self.time(&format!("{at}.response_timeout_ms"), raw.response_timeout_ms);
        let idle_timeout = self.time(&format!("{at}.idle_timeout_ms"), raw.idle_timeout_ms);
        let total_timeout = raw.total_timeout_ms.map(|ms| self.time(&format!("{at}.total_timeout_ms"), ms));
        let health = self.health(at, &raw.health);
        let key = self.api_key(at, raw);
        let tls = self.client_tls(at, &raw.tls);
        let socket = raw.socket.as_ref().map(PathBuf::from);
        self.require(&format!("{at}.socket"), cfg!(unix) || socket.is_none(), || {
            "this system has no unix sockets".to_owned()
        });
        if raw.url == "embedded" {
            return None;
        }
        let base = self.parsed(&format!("{at}.url"), BaseUrl::parse(&raw.url))?;
        Some(UrlUpstream {
            base,
            socket,
            key,
            connect_timeout,
            response_timeout,
            idle_timeout,
            total_timeout,
            http: raw.http,
            tls,
            health,
        })
    }

    fn health(&mut self, at: &str, raw: &RawHealth) -> HealthConfig {
        let at = format!("{at}.health");
        if let Some(path) = &raw.path {
            self.require(&format!("{at}.path"), is_plain(path), || {
                format!("must be a path such as /v1/models, not `{path}`")
            });
        }
        HealthConfig {
            path: raw.path.clone(),
            interval: self.time(&format!("{at}.interval_ms"), raw.interval_ms),
            timeout: self.time(&format!("{at}.timeout_ms"), raw.timeout_ms),
            fall: self.at_least(&format!("{at}.fall"), raw.fall, 1),
            rise: self.at_least(&format!("{at}.rise"), raw.rise, 1),
            cooldown: self.time(&format!("{at}.cooldown_ms"), raw.cooldown_ms),
        }
    }

    /// The upstream's key. Messages name the variable or the file, never what they hold.
    fn api_key(&mut self, at: &str, raw: &RawUpstream) -> Option<Secret> {
        let (setting, key) = match (&raw.api_key_env, &raw.api_key_file) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                self.note(&format!("{at}.api_key_file"), format!("`{at}.api_key_env` is set too; keep one"));
                return None;
            }
            (Some(name), None) => {
                let key = std::env::var(name)
                    .map_err(|_| format!("the environment variable `{name}` is not set, or is not UTF-8"));
                ("api_key_env", key)
            }
            (None, Some(path)) => {
                let key =
                    std::fs::read_to_string(path).map_err(|error| format!("can't read `{path}`: {error}"));
                ("api_key_file", key)
            }
        };
        let secret = key.and_then(|key| match key.trim() {
            "" => Err("the key is empty".to_owned()),
            key => Secret::new(key).ok_or_else(|| "the key holds characters that a header can't".to_owned()),
        });
        self.parsed(&format!("{at}.{setting}"), secret)
    }
}
