//! Policy plugins, and the header that tells them who asks.

use std::{path::PathBuf, time::Duration};

use forethought_core::policy::OnPolicyFailure;
use forethought_plugins::{Limits, PluginOptions};
use http::HeaderName;
use serde_json::Value;

use super::{Check, named};
use crate::config::{OnFailure, PluginConfig, RawPlugin, RawPolicy};

const KEY: &str = "policy.plugins";

impl Check<'_> {
    pub(super) fn plugins(&mut self, raw: &RawPolicy) -> Vec<PluginConfig> {
        let plugins: Vec<_> = raw.plugins.iter().map(|plugin| self.plugin(plugin)).collect();
        let names: Vec<&str> = raw.plugins.iter().filter_map(|plugin| plugin.name.as_deref()).collect();
        for (index, name) in names.iter().enumerate() {
            self.require(KEY, !names[..index].contains(name), || {
                format!("two plugins have the name `{name}`")
            });
        }
        plugins
    }

    fn plugin(&mut self, raw: &RawPlugin) -> PluginConfig {
        let path = raw.path.as_str();
        self.require(KEY, !path.is_empty(), || "a plugin's `path` must not be empty".to_owned());
        let usual = Limits::default();
        let limits = Limits {
            time: raw.time_ms.map_or(usual.time, Duration::from_millis),
            memory_bytes: raw.memory_bytes.unwrap_or(usual.memory_bytes),
            output_bytes: raw.output_bytes.unwrap_or(usual.output_bytes),
            log_bytes: raw.log_bytes.unwrap_or(usual.log_bytes),
        };
        let time = limits.time.as_millis();
        self.require(KEY, (1..=60_000).contains(&time), || {
            format!("`time_ms` of {path} must be from 1 to 60000, not {time}")
        });
        let memory = limits.memory_bytes;
        self.require(KEY, (1 << 16..=Limits::MOST_MEMORY).contains(&memory), || {
            format!("`memory_bytes` of {path} must be from 65536 to {}, not {memory}", Limits::MOST_MEMORY)
        });
        let output = limits.output_bytes;
        self.require(KEY, (1_024..=64 << 20).contains(&output), || {
            format!("`output_bytes` of {path} must be from 1024 to 67108864, not {output}")
        });
        let word = raw.name.as_deref().is_none_or(named);
        self.require(KEY, word, || {
            format!("the name of {path} must be at most 64 characters of visible ASCII without blanks")
        });
        PluginConfig {
            path: PathBuf::from(path),
            options: PluginOptions {
                name: raw.name.clone(),
                config: Value::Object(raw.config.clone()),
                grants: raw.grants.clone(),
                limits,
                on_failure: match raw.on_failure {
                    OnFailure::Closed => OnPolicyFailure::Closed,
                    OnFailure::Open => OnPolicyFailure::Open,
                },
            },
        }
    }

    pub(super) fn tenant_header(&mut self, name: Option<&str>) -> Option<HeaderName> {
        let parsed = HeaderName::try_from(name?).map_err(|_| "is not the name of a header".to_owned());
        self.parsed("policy.tenant_header", parsed)
    }
}
