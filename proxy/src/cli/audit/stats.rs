//! Decisions, counted and plotted over time.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::{Entry, say_plainly};

/// Width of the longest bar, in characters.
const WIDTH: u64 = 50;

/// What to count by, beside the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli::audit) enum By {
    /// The kind of harm
    #[default]
    Hazard,
    /// Who asked
    Tenant,
    /// The model that was asked for
    Model,
    /// The route
    Route,
    /// Where the score comes from
    Signal,
    /// The error that callers got
    Error,
}

impl By {
    fn of(self, entry: &Entry) -> Option<&String> {
        match self {
            Self::Hazard => entry.hazard.as_ref(),
            Self::Tenant => entry.tenant.as_ref(),
            Self::Model => entry.model.as_ref(),
            Self::Route => entry.route.as_ref(),
            Self::Signal => entry.signal.as_ref(),
            Self::Error => entry.error.as_ref(),
        }
    }
}

/// Records by decision.
type Counts = BTreeMap<String, u64>;

/// What records say together.
#[derive(Debug, Default, Serialize)]
pub(super) struct Stats {
    requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    decisions: Counts,
    by: BTreeMap<String, Counts>,
    /// Milliseconds.
    times: BTreeMap<&'static str, Quantiles>,
    seconds_a_row: u64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    from: String,
    decisions: Counts,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p95: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut times: Vec<f64>) -> Option<Self> {
        times.sort_by(f64::total_cmp);
        // The nearest rank.
        let rank = |q: f64| times.get(((q * times.len() as f64).ceil() as usize).saturating_sub(1)).copied();
        Some(Self { p50: rank(0.5)?, p95: rank(0.95)?, p99: rank(0.99)? })
    }
}

impl Stats {
    /// Counts `entries`; the plot has at most `rows` rows.
    ///
    /// # Errors
    /// A file that can't be read.
    pub(super) fn of(entries: impl Iterator<Item = Result<Entry>>, by: By, rows: usize) -> Result<Self> {
        let mut stats = Self::default();
        let mut seen: Vec<(SystemTime, String)> = Vec::new();
        let mut times: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            stats.requests += 1;
            *stats.decisions.entry(entry.decision.clone()).or_default() += 1;
            if let Some(key) = by.of(&entry) {
                *stats.by.entry(key.clone()).or_default().entry(entry.decision.clone()).or_default() += 1;
            }
            let timings = entry.timings;
            for (stage, ms) in
                [("guard", timings.guard_ms), ("upstream", timings.upstream_ms), ("total", timings.total_ms)]
            {
                times.entry(stage).or_default().extend(ms);
            }
            seen.push((entry.time, entry.decision));
        }
        stats.times =
            times.into_iter().filter_map(|(stage, times)| Some((stage, Quantiles::of(times)?))).collect();
        // Records are written when requests end, so they are not quite in the order of their times.
        seen.sort();
        let (Some((first, _)), Some((last, _))) = (seen.first(), seen.last()) else { return Ok(stats) };
        let (first, last) = (*first, *last);
        let shown = |time| humantime::format_rfc3339_seconds(time).to_string();
        (stats.from, stats.to) = (Some(shown(first)), Some(shown(last)));
        let span = last.duration_since(first).unwrap_or_default();
        let step = step(span, rows);
        stats.seconds_a_row = step.as_secs();
        let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let index = |time| since_epoch(time).as_secs() / step.as_secs();
        let begin = index(first);
        let count = (index(last) - begin + 1) as usize;
        let start = |row: u64| SystemTime::UNIX_EPOCH + step * u32::try_from(row).unwrap_or(u32::MAX);
        stats.rows = (0..count as u64)
            .map(|row| Row { from: shown(start(begin + row)), decisions: Counts::new() })
            .collect();
        for (time, decision) in seen {
            let row = &mut stats.rows[(index(time) - begin) as usize];
            *row.decisions.entry(decision).or_default() += 1;
        }
        Ok(stats)
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let Some((from, to)) = self.from.as_ref().zip(self.to.as_ref()) else {
            return writeln!(out, "no records");
        };
        writeln!(out, "{} requests, {from} to {to}\n", self.requests)?;
        for (decision, count) in &self.decisions {
            let share = 100.0 * *count as f64 / self.requests as f64;
            let (symbol, style) = look(decision);
            writeln!(out, "{style}{symbol}{style:#} {decision:<16} {count:>9} {share:>6.1} %")?;
        }
        if !self.by.is_empty() {
            writeln!(out)?;
            for (key, counts) in &self.by {
                writeln!(out, "{:<24} {}", say_plainly(key), listed(counts))?;
            }
        }
        writeln!(out, "\n{:<10} {:>9} {:>9} {:>9}", "ms", "p50", "p95", "p99")?;
        for (stage, Quantiles { p50, p95, p99 }) in &self.times {
            writeln!(out, "{stage:<10} {p50:>9.1} {p95:>9.1} {p99:>9.1}")?;
        }
        let most = self.rows.iter().map(|row| row.decisions.values().sum()).max().unwrap_or(0).max(1);
        let step = humantime::format_duration(Duration::from_secs(self.seconds_a_row));
        writeln!(out, "\na row is {step}, a full bar {most} requests")?;
        self.rows.iter().try_for_each(|row| row.write(most, out))
    }
}

impl Row {
    fn write(&self, most: u64, out: &mut dyn io::Write) -> io::Result<()> {
        let mut bar = Vec::new();
        let (mut sum, mut drawn) = (0, 0);
        for (decision, count) in &self.decisions {
            sum += count;
            // Rounded up, so that one refusal among thousands is seen.
            let end = (sum * WIDTH).div_ceil(most);
            let (symbol, style) = look(decision);
            let length = end.saturating_sub(drawn).max(1) as usize;
            write!(bar, "{style}{}{style:#}", symbol.to_string().repeat(length))?;
            drawn += length as u64;
        }
        let pad = " ".repeat(WIDTH.saturating_sub(drawn) as usize);
        writeln!(out, "{} {}{pad} {}", self.from, String::from_utf8_lossy(&bar), listed(&self.decisions))
    }
}

fn listed(counts: &Counts) -> String {
    counts.iter().map(|(decision, count)| format!("{decision} {count}")).collect::<Vec<_>>().join(", ")
}

/// How a decision is drawn: told apart without colours too.
fn look(decision: &str) -> (char, Style) {
    let (symbol, colour) = match decision {
        "allow" | "pass" => ('█', AnsiColor::Green),
        "refuse" => ('▓', AnsiColor::Red),
        "deny" => ('░', AnsiColor::Yellow),
        "none" => ('·', AnsiColor::BrightBlack),
        _ => ('▒', AnsiColor::Cyan),
    };
    (symbol, colour.on_default())
}

/// The time of a row: the least of these steps that needs at most `rows` rows.
fn step(span: Duration, rows: usize) -> Duration {
    const STEPS: [u64; 15] = [
        1,
        5,
        10,
        30,
        60,
        300,
        600,
        1_800,
        3_600,
        3 * 3_600,
        6 * 3_600,
        12 * 3_600,
        86_400,
        7 * 86_400,
        30 * 86_400,
    ];
    let most = rows.max(1) as u64;
    // One more row than whole steps, as a row begins at a round time.
    let fits = |step: &&u64| span.as_secs() / **step + 2 <= most.max(2);
    Duration::from_secs(*STEPS.iter().find(fits).unwrap_or(&STEPS[STEPS.len() - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_and_begin_at_round_times() {
        #[track_caller]
        fn check(seconds: u64, rows: usize, expected: u64) {
            assert_eq!(step(Duration::from_secs(seconds), rows).as_secs(), expected);
        }
        check(0, 20, 1);
        check(18, 20, 1);
        check(19, 20, 5);
        check(3_600, 20, 300);
        check(86_400, 24, 3 * 3_600);
        check(10 * 365 * 86_400, 5, 30 * 86_400);
        check(50, 1, 60);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let times = (1..=100).rev().map(f64::from).collect();
        let Quantiles { p50, p95, p99 } = Quantiles::of(times).unwrap();
        assert_eq!((p50, p95, p99), (50.0, 95.0, 99.0));
        assert!(Quantiles::of(vec![]).is_none());
    }
}
