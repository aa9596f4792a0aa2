//! Upstreams: what answers, how long it may take, and how its health is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where allowed requests go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawUpstream {
    /// `embedded`, or the base URL of an OpenAI-compatible API as its clients take it, such as
    /// `https://llm.example/v1`. A URL without a path means `/v1`.
    pub url: String,
    /// Path of a unix socket to connect to, in place of the URL's host and port.
    pub socket: Option<String>,
    /// Name of an environment variable that holds the upstream's API key. It takes the place of the caller's,
    /// which is passed on otherwise, in the header of the API that is asked: `authorization`, `x-api-key` or
    /// `x-goog-api-key`.
    pub api_key_env: Option<String>,
    /// File that holds the upstream's API key, instead of `api_key_env`.
    pub api_key_file: Option<String>,
    /// Time allowed for opening a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Time allowed from sending a request to the head of its answer, in milliseconds.
    pub response_timeout_ms: u64,
    /// Time allowed between two pieces of an answer, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Time allowed from sending a request to the end of its answer, in milliseconds; as long as it takes where it is not
    /// set.
    pub total_timeout_ms: Option<u64>,
    /// The version of HTTP.
    pub http: Http,
    /// TLS of an https URL.
    pub tls: RawClientTls,
    /// When it counts as down.
    pub health: RawHealth,
    /// The small model that answers where `url` is `embedded`.
    pub embedded: RawEmbedded,
}

impl Default for RawUpstream {
    fn default() -> Self {
        Self {
            url: "embedded".to_owned(),
            socket: None,
            api_key_env: None,
            api_key_file: None,
            connect_timeout_ms: 10_000,
            response_timeout_ms: 600_000,
            idle_timeout_ms: 300_000,
            total_timeout_ms: None,
            http: Http::Auto,
            tls: RawClientTls::default(),
            health: RawHealth::default(),
            embedded: RawEmbedded::default(),
        }
    }
}

/// The version of HTTP that an upstream is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Http {
    /// What is agreed on over TLS, else 1.1.
    #[serde(rename = "auto")]
    Auto,
    /// 1.1.
    #[serde(rename = "1")]
    One,
    /// 2, without TLS too (prior knowledge).
    #[serde(rename = "2")]
    Two,
}

/// TLS of an https upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawClientTls {
    /// PEM file with the certificates to trust, in place of the system's.
    pub ca_file: Option<String>,
    /// PEM file with a certificate to show, and those that signed it; needs `key_file`.
    pub cert_file: Option<String>,
    /// PEM file with that certificate's key.
    pub key_file: Option<String>,
}

/// When an upstream counts as down: it is asked last then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHealth {
    /// Path to ask for now and then, such as `/v1/models`; a status below 400 is good. Where it is not set, only requests
    /// tell.
    pub path: Option<String>,
    /// How often it is asked for, in milliseconds.
    pub interval_ms: u64,
    /// Time allowed for the answer, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row, of checks or of requests, after which an upstream is down.
    pub fall: u32,
    /// Good checks in a row after which it is up again.
    pub rise: u32,
    /// Time after which an upstream that is down by its requests is tried again, in milliseconds.
    pub cooldown_ms: u64,
}

impl Default for RawHealth {
    fn default() -> Self {
        Self { path: None, interval_ms: 5_000, timeout_ms: 2_000, fall: 3, rise: 2, cooldown_ms: 10_000 }
    }
}

/// The small model that answers where `upstream.url` is `embedded`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawEmbedded {
    /// The model's name in the model store.
    pub model: String,
    /// Requests that may wait for the model; more are answered with 503.
    pub queue: usize,
    /// Most tokens of an answer where the request names no limit.
    pub max_tokens: usize,
    /// Temperature where the request names none. 0 makes answers repeatable.
    pub temperature: f64,
    /// Top-p where the request names none.
    pub top_p: f64,
}

impl Default for RawEmbedded {
    fn default() -> Self {
        Self {
            model: "smollm2-135m-instruct".to_owned(),
            queue: 16,
            max_tokens: 512,
            temperature: 0.0,
            top_p: 1.0,
        }
    }
}

/// An upstream with a name, which routes use and policies may choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawNamedUpstream {
    /// The base URL of an OpenAI-compatible API, as in `upstream.url`.
    pub url: String,
    /// As `upstream.socket`.
    pub socket: Option<String>,
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
    /// As `upstream.total_timeout_ms`.
    pub total_timeout_ms: Option<u64>,
    /// As `upstream.http`.
    pub http: Option<Http>,
    /// As `upstream.tls`.
    #[serde(default)]
    pub tls: RawClientTls,
    /// As `upstream.health`.
    #[serde(default)]
    pub health: RawHealth,
}

impl RawNamedUpstream {
    /// The same as an upstream without a name; what is not set is as it is by default.
    pub(in crate::config) fn plain(&self) -> RawUpstream {
        let usual = RawUpstream::default();
        RawUpstream {
            url: self.url.clone(),
            socket: self.socket.clone(),
            api_key_env: self.api_key_env.clone(),
            api_key_file: self.api_key_file.clone(),
            connect_timeout_ms: self.connect_timeout_ms.unwrap_or(usual.connect_timeout_ms),
            response_timeout_ms: self.response_timeout_ms.unwrap_or(usual.response_timeout_ms),
            idle_timeout_ms: self.idle_timeout_ms.unwrap_or(usual.idle_timeout_ms),
            total_timeout_ms: self.total_timeout_ms,
            http: self.http.unwrap_or(usual.http),
            tls: self.tls.clone(),
            health: self.health.clone(),
            embedded: usual.embedded,
        }
    }
}
