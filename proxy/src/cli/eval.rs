//! `forethought eval`: scores labelled prompts and says how well the guard tells harmful from benign.
//!
//! Read in this order: [`evaluate`] (the run), [`results`] (the file that it can go on from), [`report`] (the numbers),
//! `page` (the same as a page, for one mode or several).

mod page;
pub mod report;
pub mod results;

use std::{
    collections::HashMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Result, bail, ensure};
use clap::Args;
use forethought_core::{
    dataset::{Dataset, Row},
    evidence::Verdict,
    guard::{Guard, GuardError, Mode, Options},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::Value;

use self::{
    report::{Counts, Group, NamedBadRow, Report},
    results::{Key, Meta, ResultRow, ResultsFile, Scored, fingerprint},
};
use super::{
    INCOMPLETE, INTERRUPTED,
    config::{ConfigArgs, flag},
    models, print_json,
    progress::{Progress, say},
    runtime,
    serve::Signals,
};
use crate::{config::Flag, log};

/// Flags of `forethought eval`.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub struct EvalArgs {
    /// File of JSON lines with `id`, `prompt` (or `instruction`) and `label` (`harmful` or `benign`); may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    pub data: Vec<PathBuf>,
    /// Where the scored rows go, as JSON lines; an interrupted run goes on from there
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Take only this many rows of each file, evenly spread over it
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// `reason` writes the two phases before the verdict, `direct` asks for it at once, `probe` reads the hidden states,
    /// `cascade` does that and reasons where it is not clear; `all` runs one after the other, each with a file of its own
    /// (`results.probe.jsonl` ...), and sets them side by side
    #[arg(long, value_name = "MODE", value_parser = ["reason", "direct", "probe", "cascade", ALL])]
    pub mode: Option<String>,
    /// Write a page with curves, tables and the worst mistakes; it holds prompts
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Score from which on a row counts as harmful
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub threshold: Option<f64>,
    /// Rows in work at once [default: the setting guard.batch]
    #[arg(long, value_name = "N")]
    pub concurrency: Option<usize>,
    /// Print the numbers as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The value of `--mode` for each after the other.
const ALL: &str = "all";

const HELP: &str = "\
Exit codes: 0 all rows are scored, 1 the run failed, 2 wrong flags, 4 rows failed or were not usable (they are named, and
left out of the numbers), 130 interrupted. The same command goes on where a run ended, and tries failed rows again.";

impl EvalArgs {
    fn flags(&self) -> impl Iterator<Item = Flag> {
        // All modes need what the cascade needs.
        let mode = self.mode.as_deref().map(|mode| if mode == ALL { Mode::Cascade.as_str() } else { mode });
        let mode = mode.map(|mode| flag("--mode", "guard.mode", mode));
        let threshold = self.threshold.map(|score| flag("--threshold", "policy.threshold", score));
        mode.into_iter().chain(threshold)
    }
}

/// Runs `forethought eval`; the exit codes are those of its help.
///
/// # Errors
/// As [`evaluate`], and whatever keeps the guard from starting.
pub fn run(args: &EvalArgs, config: &ConfigArgs) -> Result<ExitCode> {
    let config = config.load(args.flags().chain([config.quiet_log()]))?;
    log::init(&config.log);
    let (guard, concurrency) = (&config.guard, args.concurrency.unwrap_or(config.guard.batch));
    ensure!(
        concurrency <= guard.batch + guard.queue,
        "--concurrency {concurrency} is more than the guard takes: `guard.batch` + `guard.queue` are {}",
        guard.batch + guard.queue
    );
    let plan = Plan {
        data: args.data.iter().cloned().map(Into::into).collect(),
        limit: args.limit,
        mode: guard.mode,
        out: args.out.clone(),
        threshold: config.policy.thresholds.score,
        concurrency,
        settings: models::finding_settings(guard),
    };
    let all = args.mode.as_deref() == Some(ALL);
    let plans: Vec<Plan> = if all { Mode::ALL.map(|mode| plan.in_mode(mode)).into() } else { vec![plan] };
    let (guard, _) = models::load_any(guard)?;
    let reports = runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut reports = Vec::new();
        for plan in &plans {
            let report = evaluate(guard.clone(), plan, signals.next()).await?;
            let interrupted = report.interrupted;
            reports.push(report);
            if interrupted {
                break;
            }
        }
        anyhow::Ok(reports)
    })?;
    if let Some(path) = &args.report {
        write_page(path, &guard.version().bundle, &plans[..reports.len()])?;
    }
    match (&reports[..], args.json) {
        ([report], true) if !all => print_json(report)?,
        (reports, true) => print_json(&reports)?,
        (reports, false) => {
            let tables: Vec<String> = reports.iter().map(Report::table).collect();
            let mut out = io::stdout().lock();
            write!(out, "{}", tables.join("\n"))?;
            if all {
                write!(out, "\n{}", report::side_by_side(reports))?;
            }
        }
    }
    Ok(if reports.iter().any(|report| report.interrupted) {
        INTERRUPTED.into()
    } else if !reports.iter().all(Report::is_complete) {
        INCOMPLETE.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// Writes the page of plans that were run.
fn write_page(path: &Path, guard: &str, plans: &[Plan]) -> Result<()> {
    let Some(first) = plans.first() else { return Ok(()) };
    let sources = read_sources(first)?;
    let fingerprints: HashMap<Key, String> = sources.iter().flat_map(Source::fingerprints).collect();
    let read = |plan: &Plan| -> Result<page::ModeRows> {
        let rows = results::read(&plan.out)?.into_iter();
        let wanted = |row: &ResultRow| {
            let key = (row.file.clone(), row.id.clone());
            fingerprints.get(&key) == Some(&row.fingerprint) && row.score.is_some()
        };
        Ok(page::ModeRows { mode: plan.mode, rows: rows.filter(wanted).collect() })
    };
    let modes = plans.iter().map(read).collect::<Result<Vec<_>>>()?;
    page::write(path, guard, first.threshold, &modes, &sources)
}

/// What to evaluate, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Files of prompts.
    pub data: Vec<DataFile>,
    /// Rows taken of each file, evenly spread over it; all where it is not set.
    pub limit: Option<usize>,
    /// How the guard is asked.
    pub mode: Mode,
    /// Where the rows go.
    pub out: PathBuf,
    /// The score from which on the metrics count a row as harmful.
    pub threshold: f64,
    /// Rows in work at once: best the size of the guard's batch.
    pub concurrency: usize,
    /// Settings that change what the guard finds; kept beside the results.
    pub settings: Value,
}

/// A file of prompts.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// The label of all its rows, which then need none of their own.
    pub label: Option<Verdict>,
}

impl From<PathBuf> for DataFile {
    /// A file whose rows have labels.
    fn from(path: PathBuf) -> Self {
        Self { path, label: None }
    }
}

impl Plan {
    /// The same rows in `mode`, with results of their own: `results.jsonl` becomes `results.MODE.jsonl`.
    fn in_mode(&self, mode: Mode) -> Self {
        let extension =
            self.out.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy()));
        let out = self.out.with_extension(format!("{}{extension}", mode.as_str()));
        Self { mode, out, ..self.clone() }
    }
}

/// Runs `plan`, from where an earlier run ended. Ends early, with what there is, when `stop` does.
///
/// # Errors
/// Files that can't be read or written, results of another guard or mode in `plan.out`, a guard that has stopped. Rows
/// that fail one by one are no error: they are in the report.
pub async fn evaluate(guard: Arc<dyn Guard>, plan: &Plan, stop: impl Future<Output = ()>) -> Result<Report> {
    ensure!(plan.concurrency > 0, "--concurrency must be at least 1");
    ensure!(plan.threshold.is_finite(), "--threshold must be a number");
    let sources = read_sources(plan)?;
    for bad in sources.iter().flat_map(Source::bad_rows) {
        say(&format!("bad row: {bad}"));
    }
    let meta = Meta::new(plan.mode, guard.version(), plan.settings.clone());
    let fingerprints = sources.iter().flat_map(Source::fingerprints).collect();
    let mut results = ResultsFile::open(&plan.out, &meta, &fingerprints)?;
    if !results.done.is_empty() || results.again > 0 {
        let (done, again, out) = (results.done.len(), results.again, plan.out.display());
        say(&format!("{out}: {done} done already, {again} to be done again"));
    }
    let interrupted = score(&*guard, plan, &sources, &mut results, stop).await?;
    report(&*guard, plan, &sources, &results, interrupted)
}

/// Scores what is not done yet; whether it was stopped before the end.
async fn score(
    guard: &dyn Guard,
    plan: &Plan,
    sources: &[Source],
    results: &mut ResultsFile,
    stop: impl Future<Output = ()>,
) -> Result<bool> {
    let rows = sources.iter().flat_map(|source| source.dataset.rows.iter().map(move |row| (source, row)));
    let mut queue: Vec<_> =
        rows.filter(|(source, row)| !results.done.contains_key(&source.key(row))).collect();
    // Neighbours in a batch should be alike in length, or the short ones wait for the long. The long ones come first
    // (the queue is read from its end): if memory is too small for them, that is known at once.
    queue.sort_by_key(|(_, row)| row.conversation.text_len());

    let progress = Progress::new("eval", queue.len());
    let options = Options { mode: plan.mode, deadline: None };
    let mut running = FuturesUnordered::new();
    let mut stop = pin!(stop);
    loop {
        while running.len() < plan.concurrency
            && let Some((source, row)) = queue.pop()
        {
            let examination = guard.examine(Arc::new(row.conversation.clone()), options);
            running.push(async move { (source, row, examination.evidence().await) });
        }
        let next = tokio::select! {
            next = running.next() => next,
            () = &mut stop => return Ok(true),
        };
        let Some((source, row, found)) = next else { return Ok(false) };
        if matches!(found, Err(GuardError::Stopped)) {
            bail!("the guard has stopped; the same command goes on from here");
        }
        let result = ResultRow::new(&source.name, row, found);
        if let Some(error) = &result.error {
            progress.note(&format!("failed: {}:{}: {error}", source.path, row.line));
        }
        results.append(result)?;
        progress.advance();
    }
}

/// A data file, and the rows of it that this run wants.
struct Source {
    /// As given.
    path: String,
    /// Without folders; unique in a run.
    name: String,
    dataset: Dataset,
}

impl Source {
    fn key(&self, row: &Row) -> Key {
        (self.name.clone(), row.id.clone())
    }

    fn fingerprints(&self) -> impl Iterator<Item = (Key, String)> {
        self.dataset.rows.iter().map(|row| (self.key(row), fingerprint(row)))
    }

    fn bad_rows(&self) -> impl Iterator<Item = NamedBadRow> {
        let named = |bad: &forethought_core::dataset::BadRow| NamedBadRow {
            file: self.path.clone(),
            line: bad.line,
            problem: bad.problem.clone(),
        };
        self.dataset.bad.iter().map(named)
    }
}

fn read_sources(plan: &Plan) -> Result<Vec<Source>> {
    let mut paths_by_name: HashMap<String, String> = HashMap::new();
    let mut sources = Vec::new();
    for DataFile { path, label } in &plan.data {
        let mut dataset = Dataset::read_as(path, *label)?;
        if let Some(limit) = plan.limit {
            spread(&mut dataset.rows, limit);
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let path = path.display().to_string();
        if let Some(other) = paths_by_name.insert(name.clone(), path.clone()) {
            bail!("{other} and {path} have the same name, and results go by file name: rename one");
        }
        ensure!(
            !dataset.rows.is_empty() || !dataset.bad.is_empty() || plan.limit == Some(0),
            "{path} holds no rows"
        );
        sources.push(Source { path, name, dataset });
    }
    Ok(sources)
}

/// Keeps `limit` rows, evenly spread: files are often sorted by label, and the first rows then hold one only.
fn spread(rows: &mut Vec<Row>, limit: usize) {
    let count = rows.len();
    if limit >= count {
        return;
    }
    let mut index = 0;
    // `index * limit / count` steps up `limit` times; the rows where it does are kept.
    rows.retain(|_| {
        index += 1;
        index * limit / count > (index - 1) * limit / count
    });
}

fn report(
    guard: &dyn Guard,
    plan: &Plan,
    sources: &[Source],
    results: &ResultsFile,
    interrupted: bool,
) -> Result<Report> {
    let mut all: Vec<Scored> = Vec::new();
    let mut files = Vec::new();
    let mut sum = Counts::default();
    for source in sources {
        let rows = &source.dataset.rows;
        let done: Vec<Scored> =
            rows.iter().filter_map(|row| results.done.get(&source.key(row)).copied()).collect();
        let failed = rows.iter().filter(|row| results.failed.contains(&source.key(row))).count();
        let missing = rows.len() - done.len() - failed;
        let counts = Counts { failed, missing, bad: source.dataset.bad.len() };
        files.push(Group::new(&source.name, &done, counts, plan.threshold)?);
        all.extend(done);
        sum += counts;
    }
    Ok(Report {
        mode: plan.mode,
        threshold: plan.threshold,
        concurrency: plan.concurrency,
        guard: guard.version(),
        total: Group::new("total", &all, sum, plan.threshold)?,
        files,
        bad_rows: sources.iter().flat_map(Source::bad_rows).collect(),
        interrupted,
    })
}
