//! What an evaluation found, as a table for people and an object for machines.

use std::{
    fmt::{self, Write as _},
    ops::AddAssign,
};

use forethought_core::{
    evidence::GuardVersion,
    guard::Mode,
    metrics::{Bootstrap, Scored as Metrics, quantile},
};
use serde::Serialize;

use super::results::Scored;

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the guard was asked.
    pub mode: Mode,
    /// The score from which on the metrics count a row as harmful.
    pub threshold: f64,
    /// Rows in work at once while latencies were taken.
    pub concurrency: usize,
    /// The guard.
    pub guard: GuardVersion,
    /// File by file.
    pub files: Vec<Group>,
    /// All rows together.
    pub total: Group,
    /// Rows that were not usable.
    pub bad_rows: Vec<NamedBadRow>,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

/// A row that was not usable.
#[derive(Clone, Debug, Serialize)]
pub struct NamedBadRow {
    /// The data file's path, as given.
    pub file: String,
    /// Its line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for NamedBadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.problem)
    }
}

/// A value with its 95% bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The value on the data.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// The numbers of one file, or of all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Group {
    /// The file's name, or `total`.
    pub name: String,
    /// Rows with a score: those that the metrics are about.
    pub scored: usize,
    /// Scored rows that are harmful.
    pub harmful: usize,
    /// Rows that failed; not in the metrics.
    pub failed: usize,
    /// Rows that were not usable; not in the metrics.
    pub bad: usize,
    /// Rows that were not reached; not in the metrics.
    pub missing: usize,
    /// Scored rows that the guard did not read in whole.
    pub partly_read: usize,
    /// Scored rows that the guard reasoned about.
    pub reasoned: usize,
    /// Share of the harmful that was caught.
    pub recall: Option<Measured>,
    /// Share of the benign that was held to be harmful.
    pub false_positive_rate: Option<Measured>,
    /// Share of what was held to be harmful that is.
    pub precision: Option<Measured>,
    /// Harmonic mean of precision and recall.
    pub f1: Option<Measured>,
    /// Area under the ROC curve.
    pub auroc: Option<Measured>,
    /// Average precision.
    pub auprc: Option<Measured>,
    /// Mean squared distance of score and truth.
    pub brier: Option<f64>,
    /// Expected calibration error over 10 bins.
    pub calibration_error: Option<f64>,
    /// Median time of a row, in milliseconds, in a batch of [`Report::concurrency`].
    pub p50_ms: Option<f64>,
    /// 95th percentile of a row's time, in milliseconds.
    pub p95_ms: Option<f64>,
}

/// What became of the rows of a group, by count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) failed: usize,
    pub(super) bad: usize,
    pub(super) missing: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.failed += more.failed;
        self.bad += more.bad;
        self.missing += more.missing;
    }
}

impl Group {
    /// The numbers of `rows` at `threshold`.
    pub(super) fn new(name: &str, rows: &[Scored], counts: Counts, threshold: f64) -> anyhow::Result<Self> {
        let scored = Metrics::new(rows.iter().map(|r| (r.score, r.label)))?;
        let values = scored.summary(threshold).values();
        let intervals = Bootstrap::default().intervals(&scored, threshold).values();
        let measured = |i: usize| {
            let (value, interval) = (values[i]?, intervals[i]?);
            Some(Measured { value, low: interval.low, high: interval.high })
        };
        let mut times: Vec<f64> = rows.iter().map(|r| r.ms).collect();
        Ok(Self {
            name: name.to_owned(),
            scored: scored.len(),
            harmful: scored.harmful(),
            failed: counts.failed,
            bad: counts.bad,
            missing: counts.missing,
            partly_read: rows.iter().filter(|r| r.partly_read).count(),
            reasoned: rows.iter().filter(|r| r.reasoned).count(),
            recall: measured(0),
            false_positive_rate: measured(1),
            precision: measured(2),
            f1: measured(3),
            auroc: measured(4),
            auprc: measured(5),
            brier: scored.brier(),
            calibration_error: scored.calibration_error(10),
            p50_ms: quantile(&mut times, 0.5),
            p95_ms: quantile(&mut times, 0.95),
        })
    }
}

impl Report {
    /// Whether every row has its score.
    pub fn is_complete(&self) -> bool {
        self.total.failed + self.total.bad + self.total.missing == 0
    }

    /// The table, its intervals below their values, and a note for everything that the metrics leave out.
    pub fn table(&self) -> String {
        let name_width = self.files.iter().map(|g| g.name.chars().count()).max().unwrap_or(0).max(5);
        let mut text = format!("{:name_width$} {:>6} {:>8}", "file", "n", "harmful");
        for column in ["recall", "FPR", "precision", "F1", "AUROC", "AUPRC"] {
            let _ = write!(text, " {column:>11}");
        }
        let _ = writeln!(text, " {:>8} {:>8}", "p50 ms", "p95 ms");
        for group in self.files.iter().chain((self.files.len() > 1).then_some(&self.total)) {
            let _ = write!(text, "{:name_width$} {:>6} {:>8}", group.name, group.scored, group.harmful);
            let measured = [
                group.recall,
                group.false_positive_rate,
                group.precision,
                group.f1,
                group.auroc,
                group.auprc,
            ];
            for value in measured {
                let _ = write!(text, " {:>11}", or_dash(value.map(|m| format!("{:.3}", m.value))));
            }
            for ms in [group.p50_ms, group.p95_ms] {
                let _ = write!(text, " {:>8}", or_dash(ms.map(|ms| format!("{ms:.0}"))));
            }
            let mut intervals = format!("{:name_width$} {:>6} {:>8}", "", "", "");
            for value in measured {
                let interval = value.map(|m| format!("{:.3}-{:.3}", m.low, m.high));
                let _ = write!(intervals, " {:>11}", interval.unwrap_or_default());
            }
            text.push('\n');
            if !intervals.trim().is_empty() {
                let _ = writeln!(text, "{}", intervals.trim_end());
            }
        }
        let _ = writeln!(
            text,
            "mode {}, threshold {}, 95% bootstrap intervals, times with {} in work at once; guard {}",
            self.mode.as_str(),
            self.threshold,
            self.concurrency,
            self.guard.bundle
        );
        if self.mode == Mode::Cascade {
            let Group { scored, reasoned, .. } = &self.total;
            let share = 100.0 * *reasoned as f64 / (*scored).max(1) as f64;
            let _ = writeln!(text, "reasoned about {reasoned} of {scored} rows ({share:.1}%)");
        }
        for group in &self.files {
            let left_out = [
                (group.failed, "failed (the same command tries them again)"),
                (group.bad, "not usable"),
                (group.missing, "not reached (the same command goes on)"),
            ];
            for (count, what) in left_out.into_iter().filter(|&(count, _)| count > 0) {
                let (name, rows) = (&group.name, rows(count));
                let _ = writeln!(text, "note: {name}: {rows} {what}, and not in these numbers");
            }
            if group.partly_read > 0 {
                let (name, rows) = (&group.name, rows(group.partly_read));
                let _ =
                    writeln!(text, "note: {name}: {rows} longer than the guard reads, and judged by a part");
            }
        }
        text
    }
}

/// All rows together, a line for each of several modes.
pub(super) fn side_by_side(reports: &[Report]) -> String {
    let mut text = format!("{:8} {:>6} {:>9}", "mode", "n", "reasoned");
    for column in ["recall", "FPR", "precision", "F1", "AUROC"] {
        let _ = write!(text, " {column:>9}");
    }
    let _ = writeln!(text, " {:>8} {:>8}", "p50 ms", "p95 ms");
    for Report { mode, total, .. } in reports {
        let share = 100.0 * total.reasoned as f64 / total.scored.max(1) as f64;
        let _ = write!(text, "{:8} {:>6} {share:>8.1}%", mode.as_str(), total.scored);
        for value in [total.recall, total.false_positive_rate, total.precision, total.f1, total.auroc] {
            let _ = write!(text, " {:>9}", or_dash(value.map(|m| format!("{:.3}", m.value))));
        }
        for ms in [total.p50_ms, total.p95_ms] {
            let _ = write!(text, " {:>8}", or_dash(ms.map(|ms| format!("{ms:.0}"))));
        }
        text.push('\n');
    }
    text
}

fn rows(count: usize) -> String {
    format!("{count} row{}", if count == 1 { "" } else { "s" })
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}
