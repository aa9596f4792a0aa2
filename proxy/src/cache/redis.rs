//! Redis, for replicas that share what their guards found. It is a help and no more: whatever fails in it is a miss.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use forethought_core::evidence::Evidence;
use redis::{
    AsyncCommands, Client, ConnectionInfo, SetExpiry, SetOptions,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Key, OVERHEAD};
use crate::{config::RedisConfig, guards::Breaker};

/// Failures in a row after which it is left alone, and for how long.
const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Redis {
    info: ConnectionInfo,
    /// Made when it is first asked: that needs a runtime.
    manager: OnceLock<Option<ConnectionManager>>,
    time: Duration,
    ttl: Duration,
    breaker: Breaker,
}

impl Redis {
    pub(super) fn new(config: &RedisConfig, ttl: Duration) -> Self {
        let breaker = Breaker::new(FAILURES, PAUSE);
        Self { info: config.info.clone(), manager: OnceLock::new(), time: config.timeout, ttl, breaker }
    }

    /// Evidence under `key`, and the bytes it takes.
    pub(super) async fn get(&self, key: &Key) -> Option<(Evidence, u32)> {
        let json: Option<Vec<u8>> =
            self.with(|mut redis| async move { redis.get(name(key)).await }).await.flatten();
        let json = json?;
        // What another version wrote is no use.
        let evidence = serde_json::from_slice(&json).ok()?;
        Some((evidence, u32::try_from(json.len() + OVERHEAD).unwrap_or(u32::MAX)))
    }

    pub(super) async fn set(&self, key: &Key, json: Vec<u8>) {
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let options = SetOptions::default().with_expiration(SetExpiry::PX(ttl));
        let _: Option<()> =
            self.with(|mut redis| async move { redis.set_options(name(key), json, options).await }).await;
    }

    /// What `work` gives; `None` where Redis fails, is too slow, or did so again and again.
    async fn with<T, F>(&self, work: impl FnOnce(ConnectionManager) -> F) -> Option<T>
    where
        F: Future<Output = redis::RedisResult<T>>,
    {
        if !self.breaker.admits(Instant::now()) {
            return None;
        }
        let manager = self.manager.get_or_init(|| {
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(0)
                .set_connection_timeout(Some(self.time))
                .set_response_timeout(Some(self.time));
            let client = Client::open(self.info.clone()).ok()?;
            ConnectionManager::new_lazy_with_config(client, config).ok()
        });
        let asked = timeout(self.time, work(manager.clone()?));
        let problem = match asked.await {
            Ok(Ok(done)) => {
                if self.breaker.succeeded() {
                    info!("the verdict cache shares Redis again");
                }
                return Some(done);
            }
            // The kind alone: a message might hold what was sent.
            Ok(Err(error)) => error.category().to_owned(),
            Err(_) => format!("no answer within {} ms", self.time.as_millis()),
        };
        if self.breaker.failed(Instant::now()) {
            warn!("the verdict cache goes without Redis (`cache.redis`): {problem}");
        }
        None
    }
}

fn name(key: &Key) -> String {
    format!("forethought:verdict:{}", hex::encode(key.0))
}
