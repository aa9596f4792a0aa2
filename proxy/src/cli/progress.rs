//! Progress of long work on standard error: a bar on a terminal, else a plain line every few seconds.

use std::{
    cell::Cell,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts rows of known number. Cleared when dropped.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    done: Cell<usize>,
    began: Instant,
    last_line: Cell<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{prefix} [{bar:24}] {pos}/{len}, {per_sec}, {eta} left")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()) // the template is a constant
                    .progress_chars("=> ");
            let bar = ProgressBar::new(total as u64).with_style(style).with_prefix(what);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Self { what, total, done: Cell::new(0), began: now, last_line: Cell::new(now), bar }
    }

    /// One more is done.
    pub(super) fn advance(&self) {
        self.done.set(self.done.get() + 1);
        match &self.bar {
            Some(bar) => bar.inc(1),
            None if self.last_line.get().elapsed() >= LINE_EVERY || self.done.get() == self.total => {
                self.last_line.set(Instant::now());
                say(&line(self.what, self.done.get(), self.total, self.began.elapsed()));
            }
            None => {}
        }
    }

    /// Says something in between.
    pub(super) fn note(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(message)),
            None => say(message),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error. A closed one must not end the work.
pub(super) fn say(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

fn line(what: &str, done: usize, total: usize, elapsed: Duration) -> String {
    let percent = (done * 100).checked_div(total).unwrap_or(100);
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-3);
    let mut text = format!("{what}: {done} of {total} ({percent}%), {rate:.2} a second");
    if (1..total).contains(&done) {
        let left = Duration::from_secs_f64((total - done) as f64 / rate);
        text += &format!(", about {} left", HumanDuration(left));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_give_share_rate_and_time_left() {
        fn check(done: usize, total: usize, expected: &str) {
            assert_eq!(line("eval", done, total, Duration::from_secs(50)), expected);
        }
        check(25, 100, "eval: 25 of 100 (25%), 0.50 a second, about 3 minutes left");
        check(100, 100, "eval: 100 of 100 (100%), 2.00 a second");
        check(0, 100, "eval: 0 of 100 (0%), 0.00 a second");
        check(0, 0, "eval: 0 of 0 (100%), 0.00 a second");
    }
}
