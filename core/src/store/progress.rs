//! How a fetch is shown: a small trait, a silent form, and the console's bar or plain lines.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};

/// Told what a fetch is doing. Calls come from the fetching thread.
pub trait Progress: Send + Sync {
    /// A transfer begins.
    fn begin(&self, what: &str);
    /// `done` bytes of `total` are there; the total may become known late, or never.
    fn update(&self, done: u64, total: Option<u64>);
    /// The transfer is over, well or not.
    fn end(&self);
    /// Something a person should know: waiting for another process, a source that failed.
    fn note(&self, message: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn update(&self, _: u64, _: Option<u64>) {}
    fn end(&self) {}
    fn note(&self, _: &str) {}
}

/// Shows progress on standard error: a bar with size and time left on a terminal, else a line every few seconds.
#[derive(Debug)]
pub struct Console {
    terminal: bool,
    current: Mutex<Option<Transfer>>,
}

#[derive(Debug)]
struct Transfer {
    what: String,
    began: Instant,
    last_line: Instant,
    /// `done` at the first report: what an earlier run had left.
    resumed: Option<u64>,
    latest: (u64, Option<u64>),
    bar: Option<ProgressBar>,
}

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Console {
    /// A console that looks at standard error to choose between bar and lines.
    pub fn stderr() -> Self {
        Console { terminal: io::stderr().is_terminal(), current: Mutex::new(None) }
    }

    fn current(&self) -> MutexGuard<'_, Option<Transfer>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Console {
    fn begin(&self, what: &str) {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::no_length().with_message(what.to_owned());
            bar.set_style(style(false));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say(&format!("{what}: starting"));
        }
        let now = Instant::now();
        *self.current() = Some(Transfer {
            what: what.to_owned(),
            began: now,
            last_line: now,
            resumed: None,
            latest: (0, None),
            bar,
        });
    }

    fn update(&self, done: u64, total: Option<u64>) {
        let mut current = self.current();
        let Some(transfer) = current.as_mut() else { return };
        let resumed = *transfer.resumed.get_or_insert(done);
        match &transfer.bar {
            Some(bar) => {
                if bar.length() != total {
                    bar.set_style(style(total.is_some()));
                    if let Some(total) = total {
                        bar.set_length(total);
                    }
                    bar.reset_eta();
                }
                bar.set_position(done);
            }
            None if transfer.last_line.elapsed() >= LINE_EVERY => {
                transfer.last_line = Instant::now();
                say(&line(
                    &transfer.what,
                    done,
                    total,
                    done.saturating_sub(resumed),
                    transfer.began.elapsed(),
                ));
            }
            None => {}
        }
        transfer.latest = (done, total);
    }

    fn end(&self) {
        let Some(transfer) = self.current().take() else { return };
        match transfer.bar {
            Some(bar) => bar.finish_and_clear(),
            // Of a transfer that never began, its error says more.
            None if transfer.latest.0 == 0 => {}
            None => {
                let (done, elapsed) = (HumanBytes(transfer.latest.0), transfer.began.elapsed().as_secs_f64());
                say(&format!("{}: {done} after {elapsed:.1} s", transfer.what));
            }
        }
    }

    fn note(&self, message: &str) {
        match self.current().as_ref().and_then(|transfer| transfer.bar.as_ref()) {
            Some(bar) => bar.suspend(|| say(message)),
            None => say(message),
        }
    }
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"
    } else {
        "{spinner} {msg} {bytes} {bytes_per_sec}"
    };
    // The templates are constants; should one ever be malformed, the default style still shows progress.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// A closed standard error must not end a download.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// One plain line; `moved` is what this transfer brought in `elapsed`, and gives the time left.
fn line(what: &str, done: u64, total: Option<u64>, moved: u64, elapsed: Duration) -> String {
    let Some(total) = total else { return format!("{what}: {}", HumanBytes(done)) };
    let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
    let mut text = format!("{what}: {} of {} ({percent}%)", HumanBytes(done), HumanBytes(total));
    if moved > 0 && done < total {
        let left = elapsed.mul_f64((total - done) as f64 / moved as f64);
        text += &format!(", about {} left", HumanDuration(Duration::from_secs(left.as_secs().max(1))));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_give_size_share_and_time_left() {
        const MIB: u64 = 1 << 20;
        #[track_caller]
        fn check(done: u64, total: Option<u64>, moved: u64, expected: &str) {
            assert_eq!(
                line("m", done * MIB, total.map(|t| t * MIB), moved * MIB, Duration::from_secs(10)),
                expected
            );
        }
        check(25, Some(100), 25, "m: 25.00 MiB of 100.00 MiB (25%), about 30 seconds left");
        // A resumed transfer is judged by what it moved itself.
        check(75, Some(100), 25, "m: 75.00 MiB of 100.00 MiB (75%), about 10 seconds left");
        check(0, Some(100), 0, "m: 0 B of 100.00 MiB (0%)");
        check(0, Some(0), 0, "m: 0 B of 0 B (100%)");
        check(100, Some(100), 100, "m: 100.00 MiB of 100.00 MiB (100%)");
        check(7, None, 7, "m: 7.00 MiB");
    }
}
