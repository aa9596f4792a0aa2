//! A guard on a server.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::list;

/// A guard on a server: any OpenAI-compatible API that serves the bundle's tuned model and takes prompts as token ids, as
/// vLLM and llama.cpp's server do. Used where `urls` are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRemote {
    /// Base URLs of servers that serve the same model. One after the other is asked; where one fails, the next.
    #[serde(deserialize_with = "list")]
    pub urls: Vec<String>,
    /// The name that they know the model by.
    pub model: String,
    /// Name of an environment variable that holds the servers' key.
    pub api_key_env: Option<String>,
    /// File that holds the key, instead of `api_key_env`.
    pub api_key_file: Option<String>,
    /// How the verdict is read.
    pub verdict: RemoteVerdict,
    /// Time for one examination, in milliseconds, the last third of it for the verdict; what of `guard.deadline_ms` is left is the fallback's.
    pub timeout_ms: u64,
    /// Time for opening a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Time after which a second server is asked the same, and the first answer counts, in milliseconds; never where it is
    /// not set.
    pub hedge_after_ms: Option<u64>,
    /// Failures in a row after which a server is left alone.
    pub breaker_failures: u32,
    /// For how long a server is left alone before it is tried again, in milliseconds.
    pub breaker_pause_ms: u64,
    /// What is done where no server answers, in order: `local` asks the guard in this process, `policy` has the policies
    /// decide without an assessment, on a score of 1. Where that is not enough, `policy.on_failure` holds.
    #[serde(deserialize_with = "list")]
    pub fallback: Vec<RemoteFallback>,
}

impl Default for RawRemote {
    fn default() -> Self {
        Self {
            urls: vec![],
            model: "forethought-guard".to_owned(),
            api_key_env: None,
            api_key_file: None,
            verdict: RemoteVerdict::Auto,
            timeout_ms: 10_000,
            connect_timeout_ms: 1_000,
            hedge_after_ms: None,
            breaker_failures: 5,
            breaker_pause_ms: 10_000,
            fallback: vec![RemoteFallback::Local],
        }
    }
}

/// How a server's verdict is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RemoteVerdict {
    /// By log-probabilities; by text where the server gives none.
    Auto,
    /// By log-probabilities.
    Logprobs,
    /// By which label is written under a bias (`logit_bias`), asked eight times.
    Text,
}

/// What is done where no server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RemoteFallback {
    /// The guard in this process.
    Local,
    /// The policies, without an assessment.
    Policy,
}
