//! The verdict cache.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The verdict cache: what the guard found, kept for when the same conversation comes again. Policies decide anew each
/// time. An entry holds for the same tenant, guard and settings of guard and policies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCache {
    /// Whether evidence is kept.
    pub enabled: bool,
    /// Most memory for it, in bytes; then the entries go that are used least.
    pub max_bytes: u64,
    /// Time that an entry holds, in milliseconds.
    pub ttl_ms: u64,
    /// Whether an entry serves all tenants. How long an answer takes then tells a tenant what others asked.
    pub across_tenants: bool,
    /// URL of a Redis that replicas share, such as `redis://10.0.0.7:6379/0`. It holds what the guard wrote, which may quote
    /// prompts, and whoever writes to it decides what is allowed: keep it as close as the proxy.
    pub redis: Option<String>,
    /// Name of an environment variable that holds Redis's password.
    pub redis_password_env: Option<String>,
    /// File that holds the password, instead of `redis_password_env`.
    pub redis_password_file: Option<String>,
    /// Time for Redis's answer, in milliseconds; after that the guard is asked.
    pub redis_timeout_ms: u64,
}

impl Default for RawCache {
    fn default() -> Self {
        Self {
            enabled: false,
            max_bytes: 64 * 1024 * 1024,
            ttl_ms: 600_000,
            across_tenants: false,
            redis: None,
            redis_password_env: None,
            redis_password_file: None,
            redis_timeout_ms: 50,
        }
    }
}
