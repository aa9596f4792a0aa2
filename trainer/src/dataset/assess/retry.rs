//! Asking until the server answers: exponential backoff with jitter, or as long as the server says.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Reply, Teacher};
use super::status::Failure;

/// How a server that does not answer is asked again.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// How many times more.
    pub retries: u32,
    /// The first pause; each one after it is twice as long.
    pub base: Duration,
    /// The longest pause of our own choosing.
    pub cap: Duration,
    /// The longest pause that a server may ask for; for a longer one the row fails.
    pub patience: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let [base, cap, patience] = [1, 60, 600].map(Duration::from_secs);
        Self { retries: 5, base, cap, patience }
    }
}

impl Retry {
    /// The pause after `attempt` (from 0); `chance` in `[0, 1)` spreads callers over its second half, so that they do
    /// not all come back at once.
    fn pause(&self, attempt: u32, chance: f64) -> Duration {
        let full = self.base.saturating_mul(2_u32.saturating_pow(attempt)).min(self.cap);
        full.mul_f64(0.5 + chance / 2.0)
    }
}

/// Asks, and asks again where that may help.
///
/// # Errors
/// What the last attempt met.
pub(super) fn ask(
    teacher: &Teacher,
    messages: &[Value],
    retry: &Retry,
    stop: &Stop,
) -> Result<Reply, Failure> {
    let mut attempt = 0;
    loop {
        let (reason, after) = match teacher.ask(messages) {
            Err(Failure::Again { reason, after }) => (reason, after),
            other => return other,
        };
        if stop.is_set() {
            return Err(Failure::Stopped);
        }
        if attempt == retry.retries || after.is_some_and(|after| after > retry.patience) {
            return Err(Failure::Row(format!("{reason} (attempt {})", attempt + 1)));
        }
        let pause = after.unwrap_or_default().max(retry.pause(attempt, rand::random()));
        if stop.pause(pause) {
            return Err(Failure::Stopped);
        }
        attempt += 1;
    }
}

/// Tells a run to end; pauses end with it.
#[derive(Debug, Default)]
pub struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Ends the run.
    pub fn set(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Whether the run is to end.
    pub fn is_set(&self) -> bool {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long, or until the run is to end; whether it is.
    pub fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        while !*set {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            set = self.changed.wait_timeout(set, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        fn check(attempt: u32, chance: f64, expected_ms: u64) {
            let retry = Retry { cap: Duration::from_secs(10), ..Retry::default() };
            assert_eq!(retry.pause(attempt, chance), Duration::from_millis(expected_ms));
        }
        check(0, 0.0, 500);
        check(1, 0.0, 1000);
        check(1, 0.5, 1500);
        check(5, 0.0, 5000);
        check(u32::MAX, 0.0, 5000);
    }

    #[test]
    fn a_set_stop_ends_every_pause() {
        let stop = Stop::default();
        assert!(!stop.pause(Duration::ZERO));
        std::thread::scope(|scope| {
            scope.spawn(|| stop.set());
            assert!(stop.pause(Duration::from_secs(3600)));
        });
    }
}
