//! `forethought calibrate`: a threshold for the caller's own traffic, with what it promises.
//!
//! The threshold lies just above the `k + 1`-th highest score of `n` benign rows, where `k` is the most that an exact
//! (Clopper-Pearson) bound allows: with the confidence asked for, the share of benign requests that it refuses is then at
//! most the target. That holds for traffic like the rows given, whatever the scores' distribution.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use forethought_core::{
    dataset::Dataset,
    evidence::Verdict,
    metrics::{Interval, binomial_interval, binomial_upper_bound},
};
use uuid::Uuid;

use super::{
    INCOMPLETE, INTERRUPTED,
    config::{ConfigArgs, flag},
    eval::{
        DataFile, Plan, evaluate,
        results::{self, ResultRow},
    },
    models, runtime,
    serve::Signals,
};
use crate::log;

/// Flags of `forethought calibrate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub struct CalibrateArgs {
    /// Requests that must not be refused, as JSON lines with `prompt` (or `instruction`); may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    pub benign: Vec<PathBuf>,
    /// Requests that should be, in the same form; may be repeated
    #[arg(long, value_name = "FILE")]
    pub harmful: Vec<PathBuf>,
    /// Labelled rows to show recall and false positives on; may be repeated
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// The highest share of benign requests that may be refused
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    pub target_fpr: f64,
    /// How sure that promise is to be
    #[arg(long, value_name = "SHARE", default_value_t = 0.95)]
    pub confidence: f64,
    /// How the guard is asked [default: the setting guard.mode]
    #[arg(long, value_name = "MODE", value_parser = ["reason", "direct", "probe", "cascade"])]
    pub mode: Option<String>,
    /// Keep the scored rows here; an interrupted run goes on from there
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,
    /// Write the settings here instead of printing them
    #[arg(long, value_name = "FILE.toml")]
    pub out: Option<PathBuf>,
}

const HELP: &str = "\
Exit codes: 0 a threshold was found, 1 none that keeps the promise, or the run failed, 2 wrong flags, 4 some rows failed or
were not usable, 130 interrupted. The rows should be drawn from the traffic that the guard will see, and should not be those
that it was tuned on.";

/// Runs `forethought calibrate`; the exit codes are those of its help.
///
/// # Errors
/// Too few rows for the promise, files that can't be read or written, or a guard that can't start.
pub fn run(args: &CalibrateArgs, config: &ConfigArgs) -> Result<ExitCode> {
    for (name, share) in [("--target-fpr", args.target_fpr), ("--confidence", args.confidence)] {
        ensure!(share > 0.0 && share < 1.0, "{name} must lie between 0 and 1");
    }
    if let Some(out) = &args.out {
        ensure!(!out.exists(), "{} is there already: move it away, or give another --out", out.display());
    }
    // Before hours of scoring, not after.
    let mut rows = 0;
    for path in &args.benign {
        rows += Dataset::read_as(path, Some(Verdict::Benign))?.rows.len() as u64;
    }
    hits(rows, args.target_fpr, args.confidence)?;
    let mode = args.mode.as_ref().map(|mode| flag("--mode", "guard.mode", mode));
    let config = config.load(mode.into_iter().chain([config.quiet_log()]))?;
    log::init(&config.log);
    let guard = &config.guard;
    let files = |paths: &[PathBuf], label| -> Vec<DataFile> {
        paths.iter().map(|path| DataFile { path: path.clone(), label }).collect()
    };
    let benign = files(&args.benign, Some(Verdict::Benign));
    let kept = args.results.clone();
    let plan = Plan {
        data: [benign, files(&args.harmful, Some(Verdict::Harmful)), files(&args.data, None)].concat(),
        limit: None,
        mode: guard.mode,
        out: kept.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("{}.jsonl", Uuid::now_v7()))),
        threshold: config.policy.thresholds.score,
        concurrency: guard.batch,
        settings: models::finding_settings(guard),
    };
    let _cleanup = kept.is_none().then(|| Temporary(&plan));
    let guard = models::load_guard(guard)?.guard;
    let report = runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        evaluate(guard, &plan, signals.next()).await
    })?;
    if report.interrupted {
        return Ok(INTERRUPTED.into());
    }
    let rows = results::read(&plan.out)?;
    let found = Calibrated::new(&rows, args)?;
    let mode = plan.mode.as_str();
    let bundle = &report.guard.bundle;
    let mut out = io::stdout().lock();
    write!(out, "{}", found.table(&rows, args))?;
    let settings = found.settings(mode, bundle);
    match &args.out {
        None => write!(out, "\n{settings}")?,
        Some(path) => {
            fs::write(path, settings).with_context(|| format!("can't write {}", path.display()))?;
            writeln!(out, "{}", path.display())?;
        }
    }
    Ok(if report.is_complete() { ExitCode::SUCCESS } else { INCOMPLETE.into() })
}

/// Removes a results file that nobody asked for, and what lies beside it.
struct Temporary<'a>(&'a Plan);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let mut beside = self.0.out.clone().into_os_string();
        beside.push(".meta.json");
        for path in [self.0.out.clone(), beside.into()] {
            let _ = fs::remove_file(path); // it may never have been made
        }
    }
}

/// The most of `rows` benign rows that may lie above a threshold so that, with `confidence`, at most the share `target` of
/// all benign requests does; `None` where not even none is enough.
fn allowed(rows: u64, target: f64, confidence: f64) -> Option<u64> {
    let holds = |hits: u64| binomial_upper_bound(hits, rows, confidence).is_some_and(|bound| bound <= target);
    if !holds(0) {
        return None;
    }
    // The bound rises with the hits.
    let (mut low, mut high) = (0, rows);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

/// The same, or what it would take.
fn hits(rows: u64, target: f64, confidence: f64) -> Result<u64> {
    let Some(hits) = allowed(rows, target, confidence) else {
        bail!(
            "{rows} benign rows can't show that at most {} of benign requests are refused, with {} confidence: that takes at \
             least {} rows. Give more rows, a higher --target-fpr or a lower --confidence",
            percent(target),
            percent(confidence),
            needed(target, confidence)
        );
    };
    Ok(hits)
}

/// The fewest rows for which [`allowed`] allows none: `(1 - target)^n <= 1 - confidence`.
fn needed(target: f64, confidence: f64) -> u64 {
    ((1.0 - confidence).ln() / (1.0 - target).ln()).ceil() as u64
}

/// A threshold and what was seen at it.
struct Calibrated {
    threshold: f64,
    /// Benign rows.
    rows: u64,
    /// Those of them that lie at or above the threshold.
    flagged: u64,
    target: f64,
    confidence: f64,
    files: Vec<String>,
    probes: Vec<(String, f64)>,
}

impl Calibrated {
    fn new(rows: &[ResultRow], args: &CalibrateArgs) -> Result<Self> {
        let CalibrateArgs { target_fpr: target, confidence, .. } = *args;
        let files: Vec<String> = args
            .benign
            .iter()
            .map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned())
            .collect();
        let benign: Vec<&ResultRow> =
            rows.iter().filter(|row| files.contains(&row.file) && row.score.is_some()).collect();
        let count = benign.len() as u64;
        let hits = hits(count, target, confidence)?;
        let above = |scores: Vec<f64>| -> Option<f64> {
            let mut scores = scores;
            scores.sort_by(|a, b| b.total_cmp(a));
            // Strictly above the first that must not be refused, in digits that a person can read.
            let score = *scores.get(hits as usize)?;
            let rounded = (score * 1e4).ceil() / 1e4;
            Some(if rounded > score { rounded } else { rounded + 1e-4 })
        };
        let scores = benign.iter().filter_map(|row| row.score).collect();
        let threshold = above(scores).with_context(|| "the benign rows have no scores")?;
        let mut names: Vec<&String> = benign.iter().flat_map(|row| row.probes.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let of_probe = |name: &String| {
            let scores: Vec<f64> = benign.iter().filter_map(|row| row.probes.get(name).copied()).collect();
            // A probe that did not read all rows has no threshold with this promise.
            (scores.len() == benign.len()).then(|| Some((name.clone(), above(scores)?)))?
        };
        let probes = names.into_iter().filter_map(of_probe).collect();
        let flagged = benign.iter().filter(|row| row.score.is_some_and(|score| score >= threshold)).count();
        Ok(Self { threshold, rows: count, flagged: flagged as u64, target, confidence, files, probes })
    }

    fn table(&self, rows: &[ResultRow], args: &CalibrateArgs) -> String {
        let Self { threshold, rows: count, flagged, target, confidence, .. } = self;
        let mut text = format!(
            "threshold {threshold:.4}: refuses {flagged} of {count} benign rows ({}); at most {} of all such requests, with {} \
             confidence\n",
            share(*flagged, *count),
            percent(*target),
            percent(*confidence)
        );
        if *threshold > 1.0 {
            text.push_str(
                "note: it lies above 1, so nothing is refused: the highest benign scores leave no room\n",
            );
        }
        for (name, threshold) in &self.probes {
            let _ = writeln!(text, "probe {name}: harmful from {threshold:.4} on keeps the same promise");
        }
        let names = |paths: &[PathBuf]| -> Vec<String> {
            let name = |p: &PathBuf| p.file_name().unwrap_or(p.as_os_str()).to_string_lossy().into_owned();
            paths.iter().map(name).collect()
        };
        for file in [names(&args.harmful), names(&args.data)].concat() {
            for (label, what) in [(Verdict::Harmful, "recall"), (Verdict::Benign, "false positive rate")] {
                let scores: Vec<f64> = rows
                    .iter()
                    .filter(|row| row.file == file && row.label == label)
                    .filter_map(|row| row.score)
                    .collect();
                let hits = scores.iter().filter(|score| **score >= *threshold).count() as u64;
                let count = scores.len() as u64;
                if let Some(Interval { low, high }) = binomial_interval(hits, count, 0.95) {
                    let _ = writeln!(
                        text,
                        "{file}: {what} {} ({} to {}), {hits} of {count} rows",
                        share(hits, count),
                        percent(low),
                        percent(high)
                    );
                }
            }
        }
        text
    }

    /// The settings that the promise is about.
    fn settings(&self, mode: &str, bundle: &str) -> String {
        format!(
            "# At most {} of benign requests refused, with {} confidence, by {} rows of {}; guard {bundle}.\n\
             # Another bundle or mode needs another threshold.\n\
             [guard]\nmode = \"{mode}\"\n\n[policy]\nthreshold = {:.4}\n",
            percent(self.target),
            percent(self.confidence),
            self.rows,
            // A line end in a file's name must not end the comment.
            self.files.join(", ").escape_debug(),
            self.threshold
        )
    }
}

fn share(hits: u64, count: u64) -> String {
    percent(hits as f64 / count.max(1) as f64)
}

/// A share as a percentage with at most two decimals.
fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sample_decides_what_can_be_promised() {
        fn check(rows: u64, target: f64, confidence: f64, expected: Option<u64>) {
            assert_eq!(allowed(rows, target, confidence), expected, "{rows} {target} {confidence}");
        }
        // 0.99^299 < 0.05 < 0.99^298.
        check(298, 0.01, 0.95, None);
        check(299, 0.01, 0.95, Some(0));
        assert_eq!(needed(0.01, 0.95), 299);
        // One-sided 95% bounds, by the binomial distribution: P(X <= 4 | 1000, 0.01) = 0.0287, P(X <= 5) = 0.0661.
        check(1000, 0.01, 0.95, Some(4));
        check(10, 0.5, 0.95, Some(1));
        check(0, 0.5, 0.95, None);
        check(2, 0.5, 0.5, Some(0));
        for (target, confidence) in [(0.02, 0.9), (0.001, 0.99), (0.3, 0.6), (0.2, 0.4)] {
            let needed = needed(target, confidence);
            assert!(allowed(needed, target, confidence).is_some(), "{target} {confidence}");
            assert!(
                needed == 1 || allowed(needed - 1, target, confidence).is_none(),
                "{target} {confidence}"
            );
        }
    }

    fn args(target_fpr: f64) -> CalibrateArgs {
        CalibrateArgs {
            benign: vec!["x/traffic.jsonl".into()],
            harmful: vec!["y/bad.jsonl".into()],
            data: vec![],
            target_fpr,
            confidence: 0.95,
            mode: None,
            results: None,
            out: None,
        }
    }

    /// 100 benign rows with scores 0, 0.005, ... and two harmful ones.
    fn rows() -> Vec<ResultRow> {
        let row = |file: &str, label: &str, id: usize, score: f64| -> ResultRow {
            serde_json::from_value(json!({
                "id": id.to_string(), "file": file, "label": label, "score": score, "fingerprint": "",
                "probes": {"p": score / 2.0},
            }))
            .unwrap()
        };
        let benign = (0..100).map(|i| row("traffic.jsonl", "benign", i, i as f64 / 200.0));
        let harmful = [0.4, 0.9].into_iter().enumerate().map(|(i, s)| row("bad.jsonl", "harmful", i, s));
        benign.chain(harmful).collect()
    }

    #[test]
    fn a_threshold_and_its_promise() {
        // P(X <= 4 | 100, 0.1) = 0.0237, P(X <= 5) = 0.0576: four may lie above.
        let (rows, args) = (rows(), args(0.1));
        let found = Calibrated::new(&rows, &args).unwrap();
        assert_eq!((found.flagged, found.rows), (4, 100));
        assert!(found.threshold > 0.475 && found.threshold <= 0.48, "{}", found.threshold);
        let table = found.table(&rows, &args);
        for part in [
            "threshold 0.4751: refuses 4 of 100 benign rows (4%); at most 10% of all such requests, with 95% confidence",
            "probe p: harmful from 0.2376 on",
            "bad.jsonl: recall 50% (1.26% to 98.74%), 1 of 2 rows",
        ] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
        let settings: toml::Table = found.settings("cascade", "b 1").parse().unwrap();
        assert_eq!(settings["policy"]["threshold"].as_float(), Some(0.4751));
        assert_eq!(settings["guard"]["mode"].as_str(), Some("cascade"));
    }

    #[test]
    fn too_few_rows_are_refused() {
        let Err(error) = Calibrated::new(&rows(), &args(0.01)) else { panic!("100 rows can't show 1%") };
        let error = error.to_string();
        assert!(
            error.contains("100 benign rows can't show that at most 1%")
                && error.contains("at least 299 rows"),
            "{error}"
        );
    }
}
