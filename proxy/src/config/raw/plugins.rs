//! Policy plugins, and the upstreams that they may choose.

use forethought_plugins::Grant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{OnFailure, RawUpstream};

/// A WebAssembly plugin that decides on requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPlugin {
    /// Its file: a component, or a module that its toolchain made for one.
    pub path: String,
    /// Its name in logs and audit records, in place of its own.
    pub name: Option<String>,
    /// Its configuration: keys of its own.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// What it may import beside what every plugin may: `wasi` gives an empty WASI.
    #[serde(default)]
    #[schemars(with = "Vec<GrantSchema>")]
    pub grants: Vec<Grant>,
    /// Time for one call, in milliseconds.
    pub time_ms: Option<u64>,
    /// Most memory of one instance, in bytes.
    pub memory_bytes: Option<usize>,
    /// Most of what a call may return, in bytes.
    pub output_bytes: Option<usize>,
    /// Most of what a call may write to the log, in bytes; more is dropped.
    pub log_bytes: Option<usize>,
    /// What happens to a request that it fails on: `closed` denies it, `open` takes it to have passed, marked.
    #[serde(default = "closed")]
    pub on_failure: OnFailure,
}

fn closed() -> OnFailure {
    OnFailure::Closed
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)] // only its schema is used
enum GrantSchema {
    Wasi,
}

/// An upstream that policies may choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawNamedUpstream {
    /// The base URL of an OpenAI-compatible API, as in `upstream.url`.
    pub url: String,
    /// As `upstream.api_key_env`.
    pub api_key_env: Option<String>,
    /// As `upstream.api_key_file`.
    pub api_key_file: Option<String>,
    /// As `upstream.connect_timeout_ms`.
    pub connect_timeout_ms: Option<u64>,
    /// As `upstream.response_timeout_ms`.
    pub response_timeout_ms: Option<u64>,
    /// As `upstream.idle_timeout_ms`.
    pub idle_timeout_ms: Option<u64>,
}

impl RawNamedUpstream {
    /// The same as an upstream without a name; what is not set is as it is by default.
    pub(in crate::config) fn plain(&self) -> RawUpstream {
        let usual = RawUpstream::default();
        RawUpstream {
            url: self.url.clone(),
            api_key_env: self.api_key_env.clone(),
            api_key_file: self.api_key_file.clone(),
            connect_timeout_ms: self.connect_timeout_ms.unwrap_or(usual.connect_timeout_ms),
            response_timeout_ms: self.response_timeout_ms.unwrap_or(usual.response_timeout_ms),
            idle_timeout_ms: self.idle_timeout_ms.unwrap_or(usual.idle_timeout_ms),
            embedded: usual.embedded,
        }
    }
}
