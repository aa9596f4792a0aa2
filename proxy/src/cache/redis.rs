//! Redis, for replicas that share what their guards found. It is a help and no more: whatever fails in it is a miss.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use redis::{
    AsyncCommands, Client, ConnectionInfo, SetExpiry, SetOptions,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{info, warn};

use super::{Kept, Key, size};
use crate::{config::RedisConfig, guards::Breaker};

/// Failures in a row after which it is left alone, and for how long.
const FAILURES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);
/// Most bytes of an entry: a guard's two phases are a few KiB.
const LARGEST: usize = 256 << 10;
/// Most entries that are written at once.
const WRITES: usize = 64;

pub(super) struct Redis {
    info: ConnectionInfo,
    /// Made when it is first asked: that needs a runtime.
    manager: OnceLock<Option<ConnectionManager>>,
    time: Duration,
    ttl: Duration,
    breaker: Breaker,
    /// Places for what is written.
    writes: Arc<Semaphore>,
}

impl Redis {
    pub(super) fn new(config: &RedisConfig, ttl: Duration) -> Self {
        let breaker = Breaker::new(FAILURES, PAUSE);
        Self {
            info: config.info.clone(),
            manager: OnceLock::new(),
            time: config.timeout,
            ttl,
            breaker,
            writes: Arc::new(Semaphore::new(WRITES)),
        }
    }

    /// What is kept under `key`, for the rest of its time. Whoever wrote it may not have been a proxy like this one.
    pub(super) async fn get(&self, key: &Key) -> Option<Kept> {
        let name = name(key);
        let found = self.with(|mut redis| async move {
            redis::pipe().get(&name).pttl(&name).query_async(&mut redis).await
        });
        let (json, left): (Option<Vec<u8>>, i64) = found.await?;
        let json = json.filter(|json| json.len() <= LARGEST)?;
        // What never ends is not ours.
        let left = Duration::from_millis(u64::try_from(left).ok()?).min(self.ttl);
        // What another version wrote is no use.
        let evidence = serde_json::from_slice(&json).ok()?;
        Some(Kept { evidence, bytes: size(&json), left })
    }

    /// Keeps `json` under `key`. Nobody waits for that; where too much is under way already, it is left out.
    pub(super) fn set(self: &Arc<Self>, key: Key, json: Vec<u8>) {
        let Ok(place) = self.writes.clone().try_acquire_owned() else { return };
        if json.len() > LARGEST {
            return;
        }
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let options = SetOptions::default().with_expiration(SetExpiry::PX(ttl));
        let redis = self.clone();
        tokio::spawn(async move {
            let _: Option<()> = redis
                .with(|mut redis| async move { redis.set_options(name(&key), json, options).await })
                .await;
            drop(place);
        });
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
            let manager = Client::open(self.info.clone())
                .and_then(|client| ConnectionManager::new_lazy_with_config(client, config));
            let warn = |error: &redis::RedisError| {
                warn!("the verdict cache can't use Redis (`cache.redis`): {}", error.category());
            };
            manager.inspect_err(warn).ok()
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
