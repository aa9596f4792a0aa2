//! `EVAL.md`: how a bundle was made and what it scores, from the run's folder and the results of `forethought eval`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use forethought_core::dataset::Dataset;
use forethought_core::evidence::Verdict;
use forethought_core::guard::bundle::{Bundle, Calibration};
use forethought_core::metrics::{Bootstrap, Interval, Scored, binomial_interval, quantile};

use crate::error::Result;
use crate::probe::report::MARKDOWN_FILE;
use crate::results::{Judged, Results, Way};
use crate::sft::recorder::{self, Line, METRICS};

/// What a report is made of.
pub struct Sources {
    /// The bundle.
    pub bundle: Bundle,
    /// Folders of the runs that made it, in order.
    pub runs: Vec<PathBuf>,
    /// Folder of the run that fitted its probes.
    pub probes: Option<PathBuf>,
    /// Results of the bundle, in one mode or several.
    pub results: Vec<Results>,
    /// Results of another bundle, such as the untuned one, to be set beside them.
    pub against: Vec<Results>,
    /// Data files whose styles and categories the mistakes are counted by.
    pub data: Vec<PathBuf>,
    /// Score from which on a row counts as harmful.
    pub threshold: f64,
}

/// By data file, the rows of each of [`Way::ALL`].
type Sets<'a> = BTreeMap<&'a str, [Vec<&'a Judged>; Way::ALL.len()]>;

/// Where [`Way::Reason`] stands in [`Way::ALL`].
const REASON: usize = Way::Reason as usize;

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
    costs(&mut text, &sources.results);
    phases(&mut text, &own);
    mistakes(&mut text, sources, &own)?;
    if let Some(folder) = &sources.probes {
        let report = recorder::read_text(&folder.join(MARKDOWN_FILE))?;
        text.push('\n');
        report.lines().for_each(|text_| line(&mut text, &demoted(text_)));
    }
    Ok(text)
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A heading one level further down; other lines as they are.
fn demoted(line: &str) -> String {
    if line.starts_with('#') { format!("#{line}") } else { line.to_owned() }
}

/// A way's rows are those of results in that mode; where there are none, those of reasoning, which tells the probes' and the
/// direct score as well.
fn by_file(results: &[Results]) -> Sets<'_> {
    let mut sets = Sets::new();
    for (i, way) in Way::ALL.into_iter().enumerate() {
        let in_mode = |mode: &str| -> BTreeMap<&str, Vec<&Judged>> {
            let mut rows: BTreeMap<&str, Vec<&Judged>> = BTreeMap::new();
            let results = results.iter().filter(|results| results.mode.as_str() == mode);
            for row in results.flat_map(|results| &results.rows).filter(|row| row.score(way).is_some()) {
                rows.entry(row.file.as_str()).or_default().push(row);
            }
            rows
        };
        let mut rows = in_mode(way.name());
        if way != Way::Cascade {
            in_mode(Way::Reason.name()).into_iter().for_each(|(file, more)| {
                rows.entry(file).or_insert(more);
            });
        }
        rows.into_iter().for_each(|(file, rows)| sets.entry(file).or_default()[i] = rows);
    }
    sets
}

/// The plots of a run.
pub const PLOTS: [&str; 2] = ["loss.svg", "eval.svg"];

/// The name of a run's plot beside the report, which may be of several runs.
pub fn plot_name(run: &Path, plot: &str) -> String {
    format!("{}-{plot}", run.file_name().unwrap_or_default().to_string_lossy())
}

/// Data, recipe, speed and course of a run.
fn of_run(text: &mut String, folder: &Path) -> Result<()> {
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
    let [loss, eval] = PLOTS.map(|plot| plot_name(folder, plot));
    let _ = writeln!(text, "\n![loss]({loss}) ![direct verdict]({eval})\n");
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
    for (file, ways) in by_file(&sources.results) {
        for (way, rows) in Way::ALL.into_iter().zip(&ways) {
            let calibration = match way {
                Way::Direct => calibrations.direct,
                Way::Reason => calibrations.reason,
                Way::Probe | Way::Cascade => continue,
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
    for (file, ways) in sets {
        for (way, rows) in Way::ALL.into_iter().zip(ways) {
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

/// What each mode costs: rows reasoned about, and time.
fn costs(text: &mut String, results: &[Results]) {
    if results.iter().all(|results| results.mode.as_str() == Way::Reason.name()) {
        return;
    }
    line(
        text,
        "\n## Cost by mode\n\nMilliseconds of work a row, waiting left out, several rows being in work at once.\n",
    );
    line(text, "| set | mode | rows | reasoned about | p50 ms | p95 ms |");
    line(text, "| --- | --- | ---: | ---: | ---: | ---: |");
    let mut cells: BTreeMap<(&str, &str), (usize, usize, Vec<f64>)> = BTreeMap::new();
    for results in results {
        for row in &results.rows {
            let (rows, reasoned, ms) = cells.entry((row.file.as_str(), results.mode.as_str())).or_default();
            *rows += 1;
            *reasoned += usize::from(row.assessment.is_some());
            ms.extend(row.ms);
        }
    }
    for ((file, mode), (rows, reasoned, mut ms)) in cells {
        let share = 100.0 * reasoned as f64 / rows as f64;
        let mut at = |q: f64| quantile(&mut ms, q).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        let (p50, p95) = (at(0.5), at(0.95));
        let _ = writeln!(text, "| `{file}` | {mode} | {rows} | {share:.1}% | {p50} | {p95} |");
    }
}

fn phases(text: &mut String, sets: &Sets<'_>) {
    let rows: Vec<&Judged> = sets.values().flat_map(|ways| &ways[REASON]).copied().collect();
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
        let Some(ways) = sets.get(file.as_str()) else { continue };
        let ways: Vec<(Way, BTreeMap<&str, &Judged>)> = Way::ALL
            .into_iter()
            .zip(ways)
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(way, rows)| (way, rows.iter().map(|row| (row.id.as_str(), *row)).collect()))
            .collect();
        let dataset = Dataset::read(path)?;
        for (title, key) in [("style", 0), ("category", 1)] {
            // For each way, hits and rows of the harmful, then of the benign.
            let mut groups: BTreeMap<&str, Vec<[[usize; 2]; 2]>> = BTreeMap::new();
            for row in &dataset.rows {
                let Some(group) = (if key == 0 { row.style.as_deref() } else { row.category.as_deref() })
                else {
                    continue;
                };
                let counts = groups.entry(group).or_insert_with(|| vec![Default::default(); ways.len()]);
                for ((way, judged), counts) in ways.iter().zip(counts) {
                    let score = judged.get(row.id.as_str()).and_then(|judged| judged.score(*way));
                    let Some(score) = score else { continue };
                    let slot = &mut counts[usize::from(row.label == Verdict::Benign)];
                    slot[0] += usize::from(score >= sources.threshold);
                    slot[1] += 1;
                }
            }
            if groups.is_empty() {
                continue;
            }
            let _ = write!(text, "\n## `{file}` by {title}\n\nHeld to be harmful, of all.\n\n");
            let columns = ways
                .iter()
                .flat_map(|(way, _)| ["harmful", "benign"].map(|l| format!("{}: {l}", way.name())));
            let _ = writeln!(text, "| {title} | {} |", columns.collect::<Vec<_>>().join(" | "));
            let _ = writeln!(text, "| --- |{}", " ---: |".repeat(2 * ways.len()));
            for (group, counts) in groups {
                let cells = counts.concat().into_iter().map(|[hits, all]| match all {
                    0 => "-".to_owned(),
                    _ => format!("{hits} of {all}"),
                });
                let _ = writeln!(text, "| {group} | {} |", cells.collect::<Vec<_>>().join(" | "));
            }
        }
    }
    Ok(())
}
