//! A circuit breaker: a server that fails again and again is left alone for a while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Opens after a number of failures in a row; then one request at a time is let through to see whether it is well again.
pub(crate) struct Breaker {
    most: u32,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures since the last success.
    failures: u32,
    /// Where it is open: when the next request may try.
    next: Option<Instant>,
}

impl Breaker {
    /// A breaker that opens for `pause` after `most` failures in a row.
    pub(crate) fn new(most: u32, pause: Duration) -> Self {
        Self { most, pause, state: Mutex::default() }
    }

    /// Whether a request may be sent now. Where this is a trial, no other is for the time of a pause: one that is given up
    /// half way blocks nothing.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.next {
            None => true,
            Some(next) if now >= next => {
                state.next = Some(now + self.pause);
                true
            }
            Some(_) => false,
        }
    }

    /// Whether nothing speaks against the one that it guards.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().next.is_none()
    }

    /// Returns whether it closes by this success.
    pub(crate) fn succeeded(&self) -> bool {
        std::mem::take(&mut *self.lock()).next.is_some()
    }

    /// Returns whether it opens by this failure.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        let opens = state.failures >= self.most;
        let was_open = state.next.is_some();
        if opens {
            state.next = Some(now + self.pause);
        }
        opens && !was_open
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_tries_and_closes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let breaker = Breaker::new(2, Duration::from_secs(10));
        assert!(!breaker.failed(at(0)));
        assert!(breaker.admits(at(0)));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(at(1)));
        assert!(breaker.failed(at(1)), "two in a row");
        assert!(!breaker.admits(at(2)));
        // One trial, and no second one beside it.
        assert!(breaker.admits(at(11)));
        assert!(!breaker.admits(at(11)));
        assert!(!breaker.failed(at(12)), "it was open before");
        assert!(!breaker.admits(at(21)));
        assert!(breaker.admits(at(22)));
        assert!(breaker.succeeded());
        assert!(breaker.admits(at(22)) && breaker.admits(at(22)));
    }
}
