//! `forethought-trainer data assess`.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::PROBLEMS;
use crate::cli::INTERRUPTED;
use crate::dataset::assess::answer::Bounds;
use crate::dataset::assess::budget::Prices;
use crate::dataset::assess::client::{Server, Teacher};
use crate::dataset::assess::prompt::TeacherPrompt;
use crate::dataset::assess::retry::{Retry, Stop};
use crate::dataset::assess::{Ended, Estimate, Event, Plan, Summary, assess, estimate};

const HELP: &str = "\
Exit codes: 0 all rows have phases (or --max-rows of them), 1 the run failed, 2 wrong flags, 4 rows failed, were not \
usable, or were left for the money, 130 interrupted. The same command goes on where a run ended and tries failed rows \
again. Rows that failed are in OUT.failed.jsonl, with the reason.

The first Ctrl-C waits for the answers under way, which are paid for; the second ends at once. Either way what is \
written stays.";

/// Flags of `data assess`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct AssessArgs {
    /// Labelled instructions, as JSON lines; rows with both phases are copied as they are
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Where the rows go, as they are answered; a run goes on from there
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The root of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL")]
    url: String,
    /// The teacher's name there
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Environment variable that holds the key
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key_env")]
    api_key_file: Option<PathBuf>,
    /// Rows asked about at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    concurrency: usize,
    /// How often a request is sent again after a timeout, a lost connection, or status 408, 409, 429 or 5xx
    #[arg(long, value_name = "N", default_value_t = Retry::default().retries)]
    retries: u32,
    /// How often a row is asked about in all, if the answers will not do
    #[arg(long, value_name = "N", default_value_t = 3)]
    tries: usize,
    /// Time for one answer
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Most tokens of one answer; models that think before they write need more
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_tokens: u64,
    /// Ask about this many rows and no more
    #[arg(long, value_name = "N")]
    max_rows: Option<usize>,
    /// Ask no more once another row might cost more than this in all
    #[arg(long, value_name = "USD", requires = "price_in")]
    max_cost: Option<f64>,
    /// USD for a million tokens sent
    #[arg(long, value_name = "USD", requires = "price_out")]
    price_in: Option<f64>,
    /// USD for a million tokens received
    #[arg(long, value_name = "USD", requires = "price_in")]
    price_out: Option<f64>,
    /// Text for the teacher in place of the built-in one, with {instruction}, {label} and perhaps {category} in it
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Say what would be done and what it would cost, and ask nobody
    #[arg(long)]
    dry_run: bool,
}

/// Runs `data assess`.
///
/// # Errors
/// A file can't be read or written, or the teacher can't be asked.
pub(super) fn run(args: &AssessArgs) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    let key = key(args)?;
    let has_key = key.is_some();
    let teacher = Teacher::new(Server {
        url: args.url.clone(),
        model: args.model.clone(),
        key,
        timeout: args.timeout,
        max_tokens: args.max_tokens,
    })?;
    if has_key && args.url.starts_with("http://") && !is_local(&args.url) {
        eprintln!("warning: the key goes to {} unencrypted", args.url);
    }
    let before = estimate(&plan)?;
    say_estimate(&before, &args.input);
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let stop = Arc::new(Stop::default());
    let handle = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if handle.is_set() {
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("ending: waiting for the answers under way (again to end at once)");
        handle.set();
    })
    .context("can't listen for Ctrl-C")?;

    let progress = Progress::new(before.to_ask);
    let summary = assess(&plan, &teacher, &stop, &mut |event| progress.show(event))?;
    drop(progress);
    say_summary(&summary);
    Ok(match summary.ended {
        Some(Ended::Stopped) => INTERRUPTED.into(),
        Some(Ended::OverBudget) => PROBLEMS.into(),
        _ if summary.failed > 0 || before.bad > 0 => PROBLEMS.into(),
        _ => ExitCode::SUCCESS,
    })
}

fn plan(args: &AssessArgs) -> anyhow::Result<Plan> {
    ensure!(args.concurrency > 0, "--concurrency must be at least 1");
    ensure!(args.tries > 0, "--tries must be at least 1");
    ensure!(!args.timeout.is_zero(), "--timeout must be above zero");
    for (name, value) in
        [("--max-cost", args.max_cost), ("--price-in", args.price_in), ("--price-out", args.price_out)]
    {
        ensure!(value.is_none_or(|value| value.is_finite() && value >= 0.0), "{name} must be 0 or more");
    }
    let prompt = match &args.prompt {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            let text = text.with_context(|| format!("can't read {}", path.display()))?;
            TeacherPrompt::new(&text).map_err(|problem| anyhow!("--prompt {}: {problem}", path.display()))?
        }
        None => TeacherPrompt::default(),
    };
    Ok(Plan {
        input: args.input.clone(),
        out: args.out.clone(),
        concurrency: args.concurrency,
        retry: Retry { retries: args.retries, ..Retry::default() },
        tries: args.tries,
        max_rows: args.max_rows,
        prices: args.price_in.zip(args.price_out).map(|(input, output)| Prices { input, output }),
        max_cost: args.max_cost,
        prompt,
        bounds: Bounds::default(),
    })
}

fn key(args: &AssessArgs) -> anyhow::Result<Option<String>> {
    if let Some(name) = &args.api_key_env {
        return match std::env::var(name) {
            Ok(key) if !key.trim().is_empty() => Ok(Some(key.trim().to_owned())),
            _ => bail!("the environment variable {name} holds no key"),
        };
    }
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("can't read the key file {}", path.display()))?;
        Ok(text.trim().to_owned())
    };
    args.api_key_file.as_ref().map(read).transpose()
}

fn is_local(url: &str) -> bool {
    let host = url.trim_start_matches("http://");
    ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local))
}

fn say_estimate(estimate: &Estimate, input: &Path) {
    let Estimate { rows, bad, done, ready, to_ask, tokens_in, tokens_out, cost } = estimate;
    eprintln!(
        "{}: {rows} rows; {done} done already, {ready} have phases, {to_ask} to ask about, {bad} not usable",
        input.display()
    );
    let cost =
        cost.map_or_else(|| "unknown (--price-in, --price-out)".to_owned(), |cost| format!("${cost:.2}"));
    eprintln!(
        "about {tokens_in} tokens to send and {tokens_out} to get; cost, if first answers will do: {cost}"
    );
}

fn say_summary(summary: &Summary) {
    let Summary { copied, written, failed, left, tokens_in, tokens_out, cost, ended } = summary;
    let cost = cost.map_or_else(String::new, |cost| format!(", ${cost:.2}"));
    eprintln!(
        "{written} written, {copied} copied, {failed} failed, {left} left; {tokens_in} tokens sent, {tokens_out} got{cost}"
    );
    match ended {
        Some(Ended::Stopped) => eprintln!("stopped; the same command goes on from here"),
        Some(Ended::OverBudget) => eprintln!("--max-cost is used up; the same command goes on from here"),
        Some(Ended::MaxRows) => eprintln!("--max-rows is reached; the same command takes the next ones"),
        None => {}
    }
}

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A bar on a terminal, else a line every few seconds.
struct Progress {
    bar: Option<ProgressBar>,
    total: usize,
    last_line: std::cell::Cell<Instant>,
}

impl Progress {
    fn new(total: usize) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("assess [{bar:24}] {pos}/{len}, {eta} left, {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()); // the template is a constant
            ProgressBar::new(total as u64).with_style(style.progress_chars("=> "))
        });
        Self { bar, total, last_line: std::cell::Cell::new(Instant::now()) }
    }

    fn show(&self, event: Event) {
        let (summary, failed) = match event {
            Event::Written(summary) => (summary, None),
            Event::Failed(row, summary) => (summary, Some(row)),
        };
        let done = summary.written + summary.failed;
        let cost = summary.cost.map_or_else(String::new, |cost| format!(", ${cost:.2}"));
        let state =
            format!("{} failed, {} tokens{cost}", summary.failed, summary.tokens_in + summary.tokens_out);
        let failed = failed.map(|row| format!("failed: line {} ({}): {}", row.line, row.id, row.reason));
        match &self.bar {
            Some(bar) => {
                bar.set_position(done as u64);
                bar.set_message(state);
                if let Some(failed) = failed {
                    bar.suspend(|| eprintln!("{failed}"));
                }
            }
            None => {
                if let Some(failed) = failed {
                    eprintln!("{failed}");
                }
                if self.last_line.get().elapsed() >= LINE_EVERY {
                    self.last_line.set(Instant::now());
                    eprintln!("assess: {done} of {}, {state}", self.total);
                }
            }
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
