//! `EVAL.md`: how a bundle was made and what it scores, from the run's folder and the results of `forethought eval`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use forethought_core::dataset::Dataset;
use forethought_core::evidence::Verdict;
use forethought_core::guard::bundle::{Bundle, Calibration};
use forethought_core::metrics::{Bootstrap, Interval, Scored, binomial_interval};

use crate::error::Result;
use crate::results::{Judged, Results, Way};
use crate::sft::recorder::{self, Line, METRICS};

/// What a report is made of.
pub struct Sources {
    /// The bundle.
    pub bundle: Bundle,
    /// Folders of the runs that made it, in order.
    pub runs: Vec<PathBuf>,
    /// Results of the bundle.
    pub results: Vec<Results>,
    /// Results of another bundle, such as the untuned one, to be set beside them.
    pub against: Vec<Results>,
    /// Data files whose styles and categories the mistakes are counted by.
    pub data: Vec<PathBuf>,
    /// Score from which on a row counts as harmful.
    pub threshold: f64,
}

/// Rows of one data file, scored by one bundle.
type Sets<'a> = BTreeMap<&'a str, Vec<&'a Judged>>;

/// Writes the report as Markdown.
///
/// # Errors
/// When a run's folder or a data file can't be read, or a score is not a number.
pub fn markdown(sources: &Sources) -> Result<String> {
    let manifest = &sources.bundle.manifest;
    let mut text = format!("# {} {}\n\n", manifest.name, manifest.version);
    line(
        &mut text,
        &format!(
            "Base model `{}`, template `{}` {}.",
            manifest.base.model, manifest.template.name, manifest.template.version
        ),
    );
    for run in &sources.runs {
        of_run(&mut text, run)?;
    }
    calibration(&mut text, sources)?;
    let (own, other) = (by_file(&sources.results), by_file(&sources.against));
    scores(&mut text, "Scores", &own, sources.threshold)?;
    if !other.is_empty() {
        let bundle = &sources.against[0].guard.bundle;
        scores(&mut text, &format!("The same with `{bundle}`"), &other, sources.threshold)?;
    }
    phases(&mut text, &own);
    mistakes(&mut text, sources, &own)?;
    Ok(text)
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn by_file(results: &[Results]) -> Sets<'_> {
    let mut sets = Sets::new();
    for row in results.iter().flat_map(|results| &results.rows) {
        sets.entry(row.file.as_str()).or_default().push(row);
    }
    sets
}

/// Data, recipe, speed and course of a run.
fn of_run(text: &mut String, folder: &std::path::Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let read = |file: &str| recorder::read_text(&folder.join(file));
    let _ = write!(text, "\n## Training: {name}\n\n");
    let data: Vec<recorder::DataFile> = recorder::read_data(folder)?;
    line(text, "| file | sha256 | rows | sequences | tokens | learnt | scored |");
    line(text, "| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for file in &data {
        let report = &file.report;
        let base = report.path.rsplit('/').next().unwrap_or(&report.path);
        let cells = [report.rows, report.sequences, report.tokens, report.targets, report.held_out];
        let cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "| `{base}` | `{:.12}` | {} |", file.sha256, cells.join(" | "));
    }
    let lines = recorder::read(&folder.join(METRICS))?;
    let (mut steps, mut tokens, mut seconds) = (0, 0, 0.0);
    for step in lines.iter().filter_map(|line| if let Line::Step(step) = line { Some(step) } else { None }) {
        steps += 1;
        tokens += step.tokens;
        seconds += step.seconds;
    }
    let _ = writeln!(
        text,
        "\n{steps} steps over {tokens} tokens took {:.0} minutes, {:.0} tokens a second, evaluations left out.",
        seconds / 60.0,
        tokens as f64 / seconds.max(1e-9)
    );
    line(text, "\n![loss](loss.svg) ![direct verdict](eval.svg)\n");
    line(text, "| step | set | loss | accuracy | recall | FPR | AUROC |");
    line(text, "| ---: | --- | ---: | ---: | ---: | ---: | ---: |");
    for line_ in &lines {
        let Line::Evaluation(evaluation) = line_ else { continue };
        for (set, s) in &evaluation.sets {
            let cells = [Some(s.loss), s.accuracy, s.recall, s.false_positive_rate, s.auroc].map(number);
            let _ = writeln!(text, "| {} | {set} | {} |", evaluation.step, cells.join(" | "));
        }
    }
    let _ = write!(text, "\nThe settings, every one:\n\n```toml\n{}```\n", read("config.toml")?);
    Ok(())
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn calibration(text: &mut String, sources: &Sources) -> Result<()> {
    let calibrations = sources.bundle.manifest.calibration;
    line(text, "\n## Calibration\n");
    line(
        text,
        "Expected calibration error over ten bins, without the bundle's calibration and with it. Rows that it was fitted to are among them where their file is one of those.\n",
    );
    line(text, "| file | way | ECE before | ECE after |");
    line(text, "| --- | --- | ---: | ---: |");
    for (file, rows) in by_file(&sources.results) {
        for way in Way::ALL {
            let calibration = match way {
                Way::Direct => calibrations.direct,
                Way::Reason => calibrations.reason,
            };
            let plain =
                |score| Calibration::default().probability(crate::calibrate::margin(score, calibration));
            let pairs = |map: &dyn Fn(f64) -> f64| {
                Scored::new(rows.iter().filter_map(|row| Some((map(row.score(way)?), row.label))))
            };
            let (before, after) = (pairs(&plain)?, pairs(&|score| score)?);
            // Of one label alone nothing can be said about calibration.
            if before.auroc().is_some() {
                let ece = |scored: &Scored| number(scored.calibration_error(10));
                let _ = writeln!(text, "| `{file}` | {} | {} | {} |", way.name(), ece(&before), ece(&after));
            }
        }
    }
    Ok(())
}

fn scores(text: &mut String, title: &str, sets: &Sets<'_>, threshold: f64) -> Result<()> {
    let _ = write!(
        text,
        "\n## {title}\n\nA score of {threshold} or more counts as harmful; 95% intervals, exact for shares, bootstrap for the rest.\n\n"
    );
    line(text, "| set | harmful / benign | way | recall | FPR | F1 | AUROC |");
    line(text, "| --- | ---: | --- | ---: | ---: | ---: | ---: |");
    for (file, rows) in sets {
        for way in Way::ALL {
            let scored = Scored::new(rows.iter().filter_map(|row| Some((row.score(way)?, row.label))))?;
            if scored.is_empty() {
                continue;
            }
            let (summary, intervals) =
                (scored.summary(threshold), Bootstrap::default().intervals(&scored, threshold));
            let confusion = scored.confusion(threshold);
            let share = |value: Option<f64>, hits: u64, others: u64| {
                with_interval(value, binomial_interval(hits, hits + others, 0.95))
            };
            let cells = [
                share(summary.recall, confusion.true_positives, confusion.false_negatives),
                share(summary.false_positive_rate, confusion.false_positives, confusion.true_negatives),
                with_interval(summary.f1.filter(|_| summary.auroc.is_some()), intervals.f1),
                with_interval(summary.auroc, intervals.auroc),
            ];
            let harmful = scored.harmful();
            let counts = format!("{harmful} / {}", scored.len() - harmful);
            let _ = writeln!(text, "| `{file}` | {counts} | {} | {} |", way.name(), cells.join(" | "));
        }
    }
    Ok(())
}

fn with_interval(value: Option<f64>, interval: Option<Interval>) -> String {
    match (value, interval) {
        (Some(value), Some(interval)) => format!("{value:.3} ({:.3}-{:.3})", interval.low, interval.high),
        (value, _) => number(value),
    }
}

fn phases(text: &mut String, sets: &Sets<'_>) {
    let rows: Vec<&Judged> = sets.values().flatten().copied().collect();
    let whole: Vec<bool> = rows.iter().filter_map(|row| row.is_whole()).collect();
    if whole.is_empty() {
        return;
    }
    let ended = whole.iter().filter(|whole| **whole).count();
    let written: Vec<usize> = rows.iter().filter_map(|row| row.generated_tokens.filter(|n| *n > 0)).collect();
    let mean = written.iter().sum::<usize>() as f64 / written.len().max(1) as f64;
    let _ = write!(
        text,
        "\n## Phases\n\nOf {} outputs {ended} ({:.3}) hold both phases, each said something and ended by the model itself, not by its token limit; {mean:.0} tokens on average.\n",
        whole.len(),
        ended as f64 / whole.len() as f64
    );
}

/// Recall and false positives by style and category, where the data files have them.
fn mistakes(text: &mut String, sources: &Sources, sets: &Sets<'_>) -> Result<()> {
    for path in &sources.data {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(judged) = sets.get(file.as_str()) else { continue };
        let by_id: BTreeMap<&str, &Judged> = judged.iter().map(|row| (row.id.as_str(), *row)).collect();
        let dataset = Dataset::read(path)?;
        for (title, key) in [("style", 0), ("category", 1)] {
            let mut groups: BTreeMap<&str, [[usize; 2]; 4]> = BTreeMap::new();
            for row in &dataset.rows {
                let group = if key == 0 { row.style.as_deref() } else { row.category.as_deref() };
                let (Some(group), Some(judged)) = (group, by_id.get(row.id.as_str())) else { continue };
                let counts = groups.entry(group).or_default();
                for (i, way) in Way::ALL.into_iter().enumerate() {
                    let Some(score) = judged.score(way) else { continue };
                    let slot = &mut counts[2 * i + usize::from(row.label == Verdict::Benign)];
                    slot[0] += usize::from(score >= sources.threshold);
                    slot[1] += 1;
                }
            }
            if groups.is_empty() {
                continue;
            }
            let _ = write!(text, "\n## `{file}` by {title}\n\nHeld to be harmful, of all.\n\n");
            let _ = writeln!(
                text,
                "| {title} | direct: harmful | direct: benign | reason: harmful | reason: benign |"
            );
            line(text, "| --- | ---: | ---: | ---: | ---: |");
            for (group, counts) in groups {
                let cells = counts
                    .map(|[hits, all]| if all == 0 { "-".to_owned() } else { format!("{hits} of {all}") });
                let _ = writeln!(text, "| {group} | {} |", cells.join(" | "));
            }
        }
    }
    Ok(())
}
