//! The verdict cache: what the guard found of a conversation, for when the same one comes again.
//!
//! It holds evidence, not decisions: the policies decide anew each time. An entry is found again only by the same tenant
//! (unless configured otherwise), for the same conversation, guard and policies. Equal requests at once are one
//! examination. Evidence that was hurried, or is none, is not kept.

mod redis;

use std::sync::{Arc, OnceLock};

use forethought_core::{
    conversation::Conversation,
    evidence::{Evidence, GuardVersion, Path, PhaseEnd, Step, Timings},
    guard::GuardError,
};
use moka::future::Cache as Store;
use sha2::{Digest, Sha256};

use self::redis::Redis;
use crate::config::CacheConfig;

/// What an entry is found by: a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

/// Where evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From this process's memory.
    Hit,
    /// From an examination that another request had begun.
    Shared,
    /// From Redis.
    Redis,
    /// From an examination of its own.
    Miss,
}

impl Origin {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Shared => "shared",
            Self::Redis => "redis",
            Self::Miss => "miss",
        }
    }
}

/// Why there is no evidence.
#[derive(Clone, Debug)]
pub(crate) enum Failed {
    /// The guard failed.
    Guard(GuardError),
    /// The conversation is too long to be read in whole, so it was not read.
    Truncated { read: usize, tokens: usize },
}

/// Bounded by bytes and by age.
pub(crate) struct Cache {
    store: Store<Key, Arc<Kept>>,
    redis: Option<Redis>,
    across_tenants: bool,
}

struct Kept {
    evidence: Evidence,
    bytes: u32,
}

/// What `or_try_insert_with` does not keep.
enum Not {
    Found(Failed),
    /// Good for the requests that wait for it, and no others.
    Kept(Box<Evidence>),
}

impl Cache {
    pub(crate) fn new(config: &CacheConfig) -> Self {
        let store = Store::builder()
            .weigher(|_, kept: &Arc<Kept>| kept.bytes)
            .max_capacity(config.max_bytes)
            .time_to_live(config.ttl)
            .build();
        let redis = config.redis.as_ref().map(|redis| Redis::new(redis, config.ttl));
        Self { store, redis, across_tenants: config.across_tenants }
    }

    /// The key of a conversation. `policies` stands for all that is configured of guard and policies.
    pub(crate) fn key(
        &self,
        tenant: Option<&str>,
        guard: &GuardVersion,
        policies: &str,
        conversation: &Conversation,
    ) -> Key {
        let tenant = tenant.filter(|_| !self.across_tenants);
        let mut hash = Sha256::new();
        // Each part with its length, so that none runs into the next.
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(b"forethought verdict 2");
        add(if tenant.is_some() { b"tenant" } else { b"" });
        add(tenant.unwrap_or_default().as_bytes());
        add(&serde_json::to_vec(guard).unwrap_or_default());
        add(policies.as_bytes());
        add(&serde_json::to_vec(conversation).unwrap_or_default());
        Key(hash.finalize().into())
    }

    /// The evidence under `key`, by `examine` where there is none yet.
    pub(crate) async fn find(
        &self,
        key: Key,
        examine: impl Future<Output = Result<Evidence, Failed>>,
    ) -> Result<(Evidence, Origin), Failed> {
        if let Some(kept) = self.store.get(&key).await {
            return Ok((again(&kept.evidence), Origin::Hit));
        }
        // What it cost is the first request's to count.
        let own = OnceLock::new();
        let begin = async {
            if let Some(redis) = &self.redis
                && let Some((evidence, bytes)) = redis.get(&key).await
            {
                let _ = own.set(Origin::Redis);
                return Ok(Arc::new(Kept { evidence, bytes }));
            }
            let _ = own.set(Origin::Miss);
            let evidence = examine.await.map_err(Not::Found)?;
            if !is_lasting(&evidence) {
                return Err(Not::Kept(Box::new(evidence)));
            }
            let json = serde_json::to_vec(&evidence).unwrap_or_default();
            let bytes = u32::try_from(json.len() + OVERHEAD).unwrap_or(u32::MAX);
            if let Some(redis) = &self.redis {
                redis.set(&key, json).await;
            }
            Ok(Arc::new(Kept { evidence, bytes }))
        };
        let kept = self.store.entry(key).or_try_insert_with(begin).await;
        let origin = own.get().copied().unwrap_or(Origin::Shared);
        let found = |evidence: &Evidence| match origin {
            Origin::Miss => evidence.clone(),
            _ => again(evidence),
        };
        match kept {
            Ok(entry) => Ok((found(&entry.value().evidence), origin)),
            Err(not) => match &*not {
                Not::Found(failed) => Err(failed.clone()),
                Not::Kept(evidence) => Ok((found(evidence), origin)),
            },
        }
    }

    /// Entries, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.store.entry_count(), self.store.weighted_size())
    }
}

/// What an entry takes beside its evidence.
const OVERHEAD: usize = 256;

/// Evidence of before: it cost nothing this time.
fn again(evidence: &Evidence) -> Evidence {
    Evidence { timings: Timings::default(), ..evidence.clone() }
}

/// Whether the same would be found again: a guard that was hurried might say more the next time, and so might one whose
/// servers failed. A hazard that was not named would spare a conversation the thresholds of its hazard.
fn is_lasting(evidence: &Evidence) -> bool {
    let hurried =
        evidence.assessment.as_ref().is_some_and(|written| written.ends.contains(&PhaseEnd::Deadline));
    let answered = evidence.steps.iter().all(|step| step.outcome == Step::ANSWERED);
    !hurried && !evidence.partial && answered && evidence.path != Path::Unassessed
}
