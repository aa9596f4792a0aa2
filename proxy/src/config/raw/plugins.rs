//! Policy plugins.

use forethought_plugins::Grant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::OnFailure;

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
