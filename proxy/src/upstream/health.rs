//! Whether an upstream is up, as its requests and its checks tell.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::config::HealthConfig;

pub(super) struct Health {
    config: HealthConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests that failed in a row.
    failures: u32,
    /// Until when it is down by its requests.
    out_until: Option<Instant>,
    /// Checks in a row that went as the latest did.
    checks: u32,
    latest_check: bool,
    down_by_checks: bool,
}

impl Health {
    pub(super) fn new(config: HealthConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    pub(super) fn config(&self) -> &HealthConfig {
        &self.config
    }

    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.state().is_up(now)
    }

    /// Notes how a request went. Whether that has changed what [`Self::is_up`] says.
    pub(super) fn asked(&self, good: bool, now: Instant) -> bool {
        let mut state = self.state();
        let was_up = state.is_up(now);
        if good {
            (state.failures, state.out_until) = (0, None);
        } else {
            state.failures = state.failures.saturating_add(1);
            // Once it is out, each failure after the pause has it pause again.
            if state.failures >= self.config.fall {
                state.out_until = now.checked_add(self.config.cooldown);
            }
        }
        was_up != state.is_up(now)
    }

    /// Notes how a check went. Whether that has changed what [`Self::is_up`] says.
    pub(super) fn checked(&self, good: bool, now: Instant) -> bool {
        let mut state = self.state();
        let was_up = state.is_up(now);
        state.checks = if state.latest_check == good { state.checks.saturating_add(1) } else { 1 };
        state.latest_check = good;
        let enough = if good { self.config.rise } else { self.config.fall };
        if state.checks >= enough {
            state.down_by_checks = !good;
        }
        was_up != state.is_up(now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_up(&self, now: Instant) -> bool {
        !self.down_by_checks && self.out_until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn health() -> Health {
        let config =
            HealthConfig { fall: 3, rise: 2, cooldown: Duration::from_secs(10), ..HealthConfig::unchecked() };
        Health::new(config)
    }

    #[test]
    fn failures_in_a_row_put_it_out_for_a_while() {
        let (health, now) = (health(), Instant::now());
        for good in [false, false, true, false, false] {
            assert!(!health.asked(good, now));
        }
        assert!(health.is_up(now));
        assert!(health.asked(false, now));
        assert!(!health.is_up(now));
        let later = now + Duration::from_secs(10);
        assert!(health.is_up(later));
        // One failure is enough now, and one success ends it.
        assert!(health.asked(false, later));
        assert!(!health.is_up(later));
        assert!(health.asked(true, later));
        assert!(health.is_up(later) && !health.asked(false, later));
    }

    #[test]
    fn checks_take_it_down_and_up() {
        let (health, now) = (health(), Instant::now());
        for (good, changes, up) in [
            (true, false, true),
            (false, false, true),
            (false, false, true),
            (false, true, false),
            (true, false, false),
            (false, false, false),
            (true, false, false),
            (true, true, true),
        ] {
            assert_eq!((health.checked(good, now), health.is_up(now)), (changes, up), "{good}");
        }
    }
}
