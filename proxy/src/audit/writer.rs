//! The thread that writes audit records, and what it does when the disk fails.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{error, info};

use super::{Health, Record, file::RotatingFile};

/// How long to wait before a failed write is tried again, if no record comes before.
const RETRY: Duration = Duration::from_secs(1);
/// How long records are left to gather once all are written: waking this thread for each costs a request more than the
/// rest of its record.
const GATHER: Duration = Duration::from_millis(2);
/// How often a lasting failure is reported.
const REPORT: Duration = Duration::from_secs(30);

pub(super) enum Entry {
    /// A record, and the place in the queue that it holds until it is written or waits in memory.
    Record(Box<Record>, OwnedSemaphorePermit),
    /// Answered with whether everything before it is written.
    Flush(oneshot::Sender<bool>),
}

pub(super) struct Writer {
    file: RotatingFile,
    /// Lines that wait for a disk that failed, oldest first.
    waiting: VecDeque<Vec<u8>>,
    most: usize,
    health: Arc<Health>,
    reported: Option<Instant>,
}

impl Writer {
    /// A writer that keeps at most `most` lines in memory while the disk fails.
    pub(super) fn new(file: RotatingFile, most: usize, health: Arc<Health>) -> Self {
        Self { file, waiting: VecDeque::new(), most, health, reported: None }
    }

    /// Writes until all senders are gone.
    pub(super) fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            let entry = match entries.try_recv() {
                Ok(entry) => Ok(entry),
                Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {
                    thread::sleep(GATHER);
                    if self.waiting.is_empty() {
                        entries.recv().map_err(|_| RecvTimeoutError::Disconnected)
                    } else {
                        entries.recv_timeout(RETRY)
                    }
                }
            };
            match entry {
                Ok(Entry::Record(record, place)) => {
                    self.accept(&record);
                    self.write();
                    drop(place);
                }
                Ok(Entry::Flush(done)) => {
                    self.write();
                    self.file.sync();
                    let _ = done.send(self.waiting.is_empty());
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.write();
                    return self.file.sync();
                }
            }
        }
    }

    fn accept(&mut self, record: &Record) {
        let mut line = serde_json::to_vec(record).unwrap_or_default();
        line.push(b'\n');
        self.waiting.push_back(line);
        if self.waiting.len() > self.most {
            // Not the front line: part of it may be on disk already.
            self.waiting.remove(1);
            self.health.lost.fetch_add(1, Relaxed);
        }
    }

    fn write(&mut self) {
        while let Some(line) = self.waiting.front() {
            match self.file.write_line(line) {
                Ok(()) => {
                    self.waiting.pop_front();
                    self.health.written.fetch_add(1, Relaxed);
                    if self.health.failing.swap(false, Relaxed) {
                        self.reported = None;
                        info!(lost = self.health.lost.load(Relaxed), "audit records are written again");
                    }
                }
                Err(error) => return self.failed(&error),
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.health.failing.store(true, Relaxed);
        if self.reported.is_none_or(|last| last.elapsed() >= REPORT) {
            self.reported = Some(Instant::now());
            let lost = self.health.lost.load(Relaxed);
            error!(waiting = self.waiting.len(), lost, "audit records can't be written: {error}");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_full_disk_keeps_what_it_may_and_counts_the_rest() {
        let file = RotatingFile::open(Path::new("/dev/full"), u64::MAX, 1, false).unwrap();
        let health = Arc::new(Health::default());
        let mut writer = Writer::new(file, 3, health.clone());
        for _ in 0..5 {
            writer.accept(&Record::default());
            writer.write();
        }
        assert!(health.failing.load(Relaxed));
        assert_eq!((writer.waiting.len(), health.lost.load(Relaxed)), (3, 2));

        // The disk has room again: nothing that waited is lost.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        writer.file = RotatingFile::open(&path, u64::MAX, 1, false).unwrap();
        writer.write();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert!(!health.failing.load(Relaxed));
        assert_eq!(health.written.load(Relaxed), 3);
    }
}
