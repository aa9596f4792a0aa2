//! One call's side of the host: its limits, its log lines and what it may ask for.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use forethought_core::policy::{LazyFacts, TokenScore};
use tracing::{debug, error, info, warn};

use crate::{
    error::Failure,
    limits::{Limiter, Limits},
};

/// How much a line of a plugin's log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// A line that a plugin logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// The line.
    pub message: String,
}

/// What a store holds: the state of the call that runs in it.
pub(crate) struct Call {
    pub(crate) limiter: Limiter,
    time: Duration,
    deadline: Instant,
    log_left: usize,
    log: Vec<LogLine>,
    dropped: usize,
    lazy: Option<Arc<dyn LazyFacts>>,
    /// State of the fixed random numbers that an empty WASI gives.
    pub(crate) random: u64,
}

impl Call {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            limiter: Limiter::new(limits),
            time: limits.time,
            deadline: Instant::now(),
            log_left: 0,
            log: vec![],
            dropped: 0,
            lazy: None,
            random: 0,
        }
    }

    /// Begins a call that has until `deadline`.
    pub(crate) fn begin(&mut self, limits: &Limits, deadline: Instant, lazy: Option<&Arc<dyn LazyFacts>>) {
        (self.time, self.deadline) = (limits.time, deadline);
        (self.log_left, self.dropped) = (limits.log_bytes, 0);
        self.lazy = lazy.cloned();
    }

    pub(crate) fn log(&mut self, level: LogLevel, message: String) {
        match self.log_left.checked_sub(message.len().max(1)) {
            Some(left) => {
                self.log_left = left;
                self.log.push(LogLine { level, message });
            }
            None => {
                self.log_left = 0;
                self.dropped += 1;
            }
        }
    }

    /// Ends a call: its lines go to the log, and are given back.
    pub(crate) fn end(&mut self, policy: &str) -> Vec<LogLine> {
        for LogLine { level, message } in &self.log {
            // The text is the plugin's own: `Debug` escapes what could pass for other lines.
            match level {
                LogLevel::Debug => debug!(policy, "plugin: {message:?}"),
                LogLevel::Info => info!(policy, "plugin: {message:?}"),
                LogLevel::Warn => warn!(policy, "plugin: {message:?}"),
                LogLevel::Error => error!(policy, "plugin: {message:?}"),
            }
        }
        if self.dropped > 0 {
            warn!(
                policy,
                "{} more lines of the plugin's log were dropped (its setting `log_bytes`)", self.dropped
            );
        }
        self.lazy = None;
        std::mem::take(&mut self.log)
    }

    /// What a probe says token by token. Waits until the call's deadline and no longer, whatever the source does.
    pub(crate) fn probe_trace(&self, probe: String) -> Result<Option<Vec<TokenScore>>, Failure> {
        let Some(lazy) = self.lazy.clone() else { return Ok(None) };
        let deadline = self.deadline;
        let (sender, receiver) = mpsc::sync_channel(1);
        let ask = move || drop(sender.send(lazy.probe_trace(&probe, deadline)));
        thread::Builder::new()
            .name("plugin-facts".to_owned())
            .spawn(ask)
            .map_err(|_| Failure::Host("no thread could be started".to_owned()))?;
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(trace) => Ok(trace),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Failure::Deadline { after: self.time }),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Failure::Host("its facts failed".to_owned())),
        }
    }
}
