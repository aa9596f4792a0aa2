//! The record of every request: one JSON object a line, written by a thread of its own.
//!
//! A request takes a `Slot` before any work is done on it, so a record always has a place to go and is never dropped
//! because of a slow disk: requests wait instead. The record itself is sent by `Exit`'s drop, so no way out of a
//! request escapes it, the caller's leaving included.

mod exit;
mod file;
mod record;
mod writer;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use forethought_core::conversation::Conversation;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

pub(crate) use self::{
    exit::{Exit, Tracked},
    file::files,
    record::{Disposition, Found, Outcome, Record, Reply, Stage},
};
use self::{record::Prompt, writer::Entry};
use crate::config::{AuditConfig, AuditPrompt, OnAuditError};

/// How long the end of the server waits for the records of requests that were cut.
const SETTLE: Duration = Duration::from_secs(2);

/// Where audit records go. Clones share one file.
#[derive(Clone)]
pub struct AuditLog(Option<Arc<Open>>);

struct Open {
    config: AuditConfig,
    entries: mpsc::Sender<Entry>,
    slots: Arc<Semaphore>,
    health: Arc<Health>,
    /// Random, and forgotten with the process.
    key: [u8; 32],
}

/// A place in the queue to the disk; `None` where no records are kept.
#[derive(Default)]
pub(crate) struct Slot(Option<(Arc<Open>, OwnedSemaphorePermit)>);

/// How the writing goes.
#[derive(Debug, Default)]
struct Health {
    failing: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
}

/// How many records were written and lost, and whether the last attempt to write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHealth {
    /// Whether records can't be written right now.
    pub failing: bool,
    /// Records written.
    pub written: u64,
    /// Records lost, because too many waited for a disk that failed.
    pub lost: u64,
}

impl AuditLog {
    /// A log that keeps nothing.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Opens the file, for this user alone, and starts the writer.
    ///
    /// # Errors
    /// If the file or its folder can't be made or opened.
    pub fn open(config: AuditConfig) -> io::Result<Self> {
        let file = file::RotatingFile::open(&config.path, config.max_bytes, config.keep, config.compress)?;
        let (entries, receiver) = mpsc::channel();
        let health = Arc::new(Health::default());
        let writer = writer::Writer::new(file, config.queue, health.clone());
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&receiver))?;
        let slots = Arc::new(Semaphore::new(config.queue));
        Ok(Self(Some(Arc::new(Open { config, entries, slots, health, key: rand::random() }))))
    }

    /// Waits until all records so far are written or the disk has failed; returns whether they are written.
    pub async fn flush(&self) -> bool {
        let Some(open) = &self.0 else { return true };
        let (done, flushed) = oneshot::channel();
        open.entries.send(Entry::Flush(done)).is_ok() && flushed.await.unwrap_or(false)
    }

    /// Waits until requests that were cut have sent their records, then flushes.
    pub(crate) async fn finish(&self) -> bool {
        if let Some(open) = &self.0 {
            // A record gives its slot back: when all are there, all records are.
            let all = u32::try_from(open.config.queue).unwrap_or(u32::MAX);
            drop(timeout(SETTLE, open.slots.acquire_many(all)).await);
        }
        self.flush().await
    }

    /// How the writing goes.
    pub fn health(&self) -> AuditHealth {
        let health = self.0.as_ref().map(|open| &open.health);
        let count = |of: fn(&Health) -> &AtomicU64| health.map_or(0, |health| of(health).load(Relaxed));
        AuditHealth {
            failing: health.is_some_and(|health| health.failing.load(Relaxed)),
            written: count(|health| &health.written),
            lost: count(|health| &health.lost),
        }
    }

    /// Whether requests must be denied because records can't be written.
    pub(crate) fn denies(&self) -> bool {
        self.0.as_ref().is_some_and(|open| {
            open.config.on_error == OnAuditError::Deny && open.health.failing.load(Relaxed)
        })
    }

    /// A place in the queue, if there is one now.
    pub(crate) fn try_slot(&self) -> Slot {
        let permit = |open: &Arc<Open>| open.slots.clone().try_acquire_owned().ok();
        Slot(self.0.as_ref().and_then(|open| Some((open.clone(), permit(open)?))))
    }

    /// Waits for a place in the queue.
    pub(crate) async fn slot(&self) -> Slot {
        let Some(open) = &self.0 else { return Slot(None) };
        // The semaphore is never closed.
        let permit = open.slots.clone().acquire_owned().await.ok();
        Slot(permit.map(|permit| (open.clone(), permit)))
    }
}

impl Slot {
    /// Whether there is a place; where no records are kept, none is ever needed.
    fn is_taken(&self) -> bool {
        self.0.is_some()
    }

    /// The prompt as the record may hold it.
    fn prompt(&self, conversation: &Conversation) -> Option<Prompt> {
        let (open, _) = self.0.as_ref()?;
        let bytes = conversation.text_len();
        Some(match open.config.prompt {
            AuditPrompt::Full => Prompt::Full { bytes, conversation: conversation.clone() },
            AuditPrompt::Hash => {
                let mut mac = Hmac::<Sha256>::new_from_slice(&open.key).ok()?; // takes keys of any length
                mac.update(&serde_json::to_vec(conversation).unwrap_or_default());
                Prompt::Hash { bytes, hmac_sha256: hex::encode(mac.finalize().into_bytes()) }
            }
        })
    }

    /// Whether the record may hold what the guard wrote.
    fn text(&self) -> bool {
        self.0.as_ref().is_some_and(|(open, _)| open.config.text)
    }

    fn send(self, record: Box<Record>) {
        if let Some((open, permit)) = self.0 {
            // Fails only when the writer's thread is gone, which nothing but a panic in it can do.
            let _ = open.entries.send(Entry::Record(record, permit));
        }
    }
}
