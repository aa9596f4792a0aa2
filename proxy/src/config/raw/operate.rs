//! What operators watch a proxy by: the admin listener and traces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The listener for those who operate the proxy: metrics, health, reload. It is apart from the one that callers use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// Address and port, such as `127.0.0.1:9464`; there is no such listener where it is not set. One that other machines
    /// can reach needs a token.
    pub listen: Option<String>,
    /// Name of an environment variable that holds the token, which every path but `/healthz` and `/readyz` then asks for
    /// (`authorization: Bearer TOKEN`).
    pub token_env: Option<String>,
    /// File that holds the token, instead of `token_env`.
    pub token_file: Option<String>,
}

/// Traces by OpenTelemetry (OTLP over HTTP, protobuf). They hold no text of prompts or answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTelemetry {
    /// Base URL of a collector, such as `http://127.0.0.1:4318`; nothing is traced where it is not set. Headers, a
    /// collector's key among them, come from the environment variable `OTEL_EXPORTER_OTLP_HEADERS`.
    pub otlp: Option<String>,
    /// The name that spans carry as `service.name`.
    pub service_name: String,
    /// Share of requests that are traced, from 0 to 1, where a caller's `traceparent` does not say it.
    pub sample_ratio: f64,
}

impl Default for RawTelemetry {
    fn default() -> Self {
        Self { otlp: None, service_name: "forethought".to_owned(), sample_ratio: 1.0 }
    }
}
