//! The verdict cache: what the guard found of a conversation, for when the same one comes again.
//!
//! It holds evidence, not decisions: the policies decide anew each time. An entry is found again only by the same tenant
//! (unless configured otherwise), for the same conversation, guard and policies. Equal requests at once are one
//! examination. Evidence that was hurried, or is none, is not kept.

mod redis;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use forethought_core::{
    conversation::Conversation,
    evidence::{Evidence, GuardVersion, Path, PhaseEnd, Step, Timings},
    guard::GuardError,
};
use moka::{Expiry, future::Cache as Store};
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
    redis: Option<Arc<Redis>>,
    ttl: Duration,
    across_tenants: bool,
}

struct Kept {
    evidence: Evidence,
    bytes: u32,
    /// The time that it holds from now on: what comes from Redis is older.
    left: Duration,
}

/// Ends each entry after its own time.
struct Ends;

impl Expiry<Key, Arc<Kept>> for Ends {
    fn expire_after_create(&self, _: &Key, kept: &Arc<Kept>, _: Instant) -> Option<Duration> {
        Some(kept.left)
    }
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
            .expire_after(Ends)
            .build();
        let redis = config.redis.as_ref().map(|redis| Arc::new(Redis::new(redis, config.ttl)));
        Self { store, redis, ttl: config.ttl, across_tenants: config.across_tenants }
    }

    /// The key of a conversation; `None` where it has none, and must be examined. `policies` stands for all that is
    /// configured of guard and policies.
    pub(crate) fn key(
        &self,
        tenant: Option<&str>,
        guard: &GuardVersion,
        policies: &str,
        conversation: &Conversation,
    ) -> Option<Key> {
        let guard = serde_json::to_vec(guard).ok()?;
        let conversation = serde_json::to_vec(conversation).ok()?;
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
        add(&guard);
        add(policies.as_bytes());
        add(&conversation);
        Some(Key(hash.finalize().into()))
    }

    /// The evidence under `key`, by `examine` where there is none yet. `guard` is the one that the key is of.
    pub(crate) async fn find(
        &self,
        key: Key,
        guard: &GuardVersion,
        examine: impl Future<Output = Result<Evidence, Failed>>,
    ) -> Result<(Evidence, Origin), Failed> {
        if let Some(kept) = self.store.get(&key).await {
            return Ok((again(&kept.evidence), Origin::Hit));
        }
        // What it cost is the first request's to count.
        let own = OnceLock::new();
        let begin = async {
            if let Some(redis) = &self.redis
                && let Some(kept) = redis.get(&key).await
                && is_sound(&kept.evidence, guard)
            {
                let _ = own.set(Origin::Redis);
                return Ok(Arc::new(kept));
            }
            let _ = own.set(Origin::Miss);
            let evidence = examine.await.map_err(Not::Found)?;
            if !is_lasting(&evidence) || evidence.guard != *guard {
                return Err(Not::Kept(Box::new(evidence)));
            }
            let Ok(json) = serde_json::to_vec(&evidence) else { return Err(Not::Kept(Box::new(evidence))) };
            let bytes = size(&json);
            if let Some(redis) = &self.redis {
                redis.set(key, json);
            }
            Ok(Arc::new(Kept { evidence, bytes, left: self.ttl }))
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

fn size(json: &[u8]) -> u32 {
    u32::try_from(json.len() + OVERHEAD).unwrap_or(u32::MAX)
}

/// Evidence of before: it cost nothing this time, and nobody was asked.
fn again(evidence: &Evidence) -> Evidence {
    Evidence { timings: Timings::default(), steps: vec![], ..evidence.clone() }
}

/// Whether evidence from elsewhere is what this guard could have found and this cache would have kept.
fn is_sound(evidence: &Evidence, guard: &GuardVersion) -> bool {
    let scores = [Some(evidence.score), evidence.direct_score, evidence.probe_score, evidence.combined_score];
    let written = evidence.assessment.as_ref().map(|written| written.score);
    let probes = evidence.probes.iter().map(|probe| probe.score);
    let mut scores = scores.into_iter().flatten().chain(written).chain(probes);
    scores.all(|score| (0.0..=1.0).contains(&score)) && evidence.guard == *guard && is_lasting(evidence)
}

/// Whether the same would be found again: a guard that was hurried might say more the next time, and so might one whose
/// servers failed. A hazard that was not named would spare a conversation the thresholds of its hazard.
fn is_lasting(evidence: &Evidence) -> bool {
    let hurried =
        evidence.assessment.as_ref().is_some_and(|written| written.ends.contains(&PhaseEnd::Deadline));
    let answered = evidence.steps.iter().all(|step| step.outcome == Step::ANSWERED);
    !hurried && !evidence.partial && answered && evidence.path != Path::Unassessed
}

#[cfg(test)]
mod tests;
