//! The verdict cache.

use std::{fmt, time::Duration};

use redis::{ConnectionInfo, IntoConnectionInfo};

use super::Check;
use crate::config::RawCache;

/// The verdict cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Most memory, in bytes.
    pub max_bytes: u64,
    /// Time that an entry holds.
    pub ttl: Duration,
    /// Whether an entry serves all tenants.
    pub across_tenants: bool,
    /// What replicas share.
    pub redis: Option<RedisConfig>,
}

/// A Redis that replicas share.
#[derive(Clone)]
pub struct RedisConfig {
    /// Where it is, and its password.
    pub info: ConnectionInfo,
    /// Time for its answer.
    pub timeout: Duration,
}

impl fmt::Debug for RedisConfig {
    /// Leaves the password out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Check<'_> {
    pub(super) fn cache(&mut self, raw: &RawCache) -> Option<CacheConfig> {
        let max_bytes = self.at_least("cache.max_bytes", raw.max_bytes, 65_536);
        let ttl = self.time("cache.ttl_ms", raw.ttl_ms);
        let timeout = self.time("cache.redis_timeout_ms", raw.redis_timeout_ms);
        let (env, file) = (raw.redis_password_env.as_deref(), raw.redis_password_file.as_deref());
        let password = self.secret("cache.redis_password", env, file);
        let redis = raw.redis.as_deref().and_then(|url| {
            let info = self.parsed("cache.redis", redis_url(url))?;
            let settings = match &password {
                Some(password) => info.redis_settings().clone().set_password(password),
                None => info.redis_settings().clone(),
            };
            Some(RedisConfig { info: info.set_redis_settings(settings), timeout })
        });
        let checked = CacheConfig { max_bytes, ttl, across_tenants: raw.across_tenants, redis };
        raw.enabled.then_some(checked)
    }
}

/// Messages never hold the URL, which may hold a password.
fn redis_url(url: &str) -> Result<ConnectionInfo, String> {
    if url.contains('@') {
        return Err(
            "holds a user or a password; use `cache.redis_password_env` or `cache.redis_password_file`"
                .to_owned(),
        );
    }
    let is_known = ["redis://", "unix://", "redis+unix://"].iter().any(|scheme| url.starts_with(scheme));
    url.into_connection_info().ok().filter(|_| is_known).ok_or_else(|| {
        "must be the URL of a Redis, such as redis://10.0.0.7:6379/0 or unix:///run/redis.sock; TLS is not spoken to it"
            .to_owned()
    })
}
