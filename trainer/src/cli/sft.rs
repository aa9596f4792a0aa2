//! `forethought-trainer sft`: tune an adapter.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use forethought_core::store::{Console, Store};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use super::INTERRUPTED;
use crate::config::SftConfig;
use crate::data::Example;
use crate::sft::{self, Base, Observer, Until, evaluation::Evaluation};
use crate::source::{Prepared, SourceReport};
use crate::train::{StepReport, Trainer};

/// Flags of `sft`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct SftArgs {
    /// The run's settings
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder of the run's results [default: the setting `out`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Length of the run in steps, instead of `train.epochs`
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Overrides one value, such as `train.rate=2e-4`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on from the last checkpoint of this run's folder, as if it had never stopped
    #[arg(long)]
    resume: bool,
    /// Stop after this many steps of the run, with a checkpoint to resume from
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    /// Read everything, count tokens, show examples with what is learnt in colour, and estimate the time; train nothing
    #[arg(long)]
    dry_run: bool,
    /// Examples that --dry-run shows
    #[arg(long, value_name = "N", default_value_t = 2)]
    show: usize,
}

const HELP: &str = "\
Values come from R1-Act's recipe, then the file, then the environment (FORETHOUGHT_TRAINER__TRAIN__RATE=2e-4), then flags.
Exit codes: 0 the run is over, 1 it failed, 2 wrong flags, 130 stopped by Ctrl-C (--resume goes on).";

/// Runs `sft`; the exit codes are those of its help.
///
/// # Errors
/// As [`sft::run`], and whatever keeps the base model from being found.
pub fn run(args: &SftArgs) -> Result<ExitCode> {
    let mut set = args.set.clone();
    set.extend(args.steps.map(|steps| format!("train.steps={steps}")));
    let mut config = SftConfig::read(&args.config, &set)?;
    if let Some(out) = &args.out {
        config.out.clone_from(out);
    }
    let model = Store::open_default()?.resolve(&config.base.model.parse()?, &Console::stderr())?;
    let base = Base::open(&config, &model.path)?;
    let prepared = base.prepare(&config)?;
    for report in &prepared.reports {
        say(&describe(report));
    }
    if args.dry_run {
        dry_run(&config, &base, prepared, args.show)?;
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(!config.out.as_os_str().is_empty(), "nowhere to write to: give --out, or set `out`");

    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into()); // asked twice
        }
        say("stopping after this step; once more to stop at once");
    })
    .context("can't watch for Ctrl-C")?;
    let until = Until { step: args.stop_after, stop: Some(&stop) };
    let outcome = sft::run(&config, &base, prepared, args.resume, until, &mut Progress::new())?;
    if let Some(best) = &outcome.best {
        say(&format!("best: {}", line(best)));
    }
    let out = config.out.display();
    if outcome.stopped {
        say(&format!("stopped after {} of {} steps; --resume goes on: {out}", outcome.step, outcome.steps));
        return Ok(if stop.load(Ordering::Relaxed) { INTERRUPTED.into() } else { ExitCode::SUCCESS });
    }
    say(&format!("done after {} steps: {out}", outcome.steps));
    Ok(ExitCode::SUCCESS)
}

/// A line on standard error. A closed one must not end a run.
fn say(message: &str) {
    let _ = writeln!(anstream::stderr(), "{message}");
}

fn describe(report: &SourceReport) -> String {
    let SourceReport { path, rows, sequences, tokens, targets, held_out, too_long, bad } = report;
    let mut text = format!("{path}: ");
    if *rows > 0 {
        let (tokens, targets) = (HumanCount(*tokens as u64), HumanCount(*targets as u64));
        text += &format!("{rows} rows, {sequences} sequences, {tokens} tokens, {targets} of them learnt");
    }
    if *held_out > 0 {
        text += &format!("{}{held_out} rows scored", if *rows > 0 { "; " } else { "" });
    }
    for (line, tokens) in too_long {
        text += &format!("\n  line {line} is left out: {tokens} tokens (`train.max_tokens`)");
    }
    for (line, problem) in bad {
        text += &format!("\n  line {line} is left out: {problem}");
    }
    text
}

/// Shows examples and measures two steps.
fn dry_run(config: &SftConfig, base: &Base, prepared: Prepared, show: usize) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let items: Vec<&Vec<Example>> = prepared.sources.iter().flat_map(|source| &source.items).collect();
    // Evenly spread, since files are often in some order.
    for index in (0..show).map(|i| i * items.len() / show.max(1)) {
        for example in items[index] {
            writeln!(out, "{}\n", coloured(example, base)?)?;
        }
    }
    let lengths = items.iter().flat_map(|item| item.iter()).map(|example| example.tokens.len());
    let longest = lengths.max().unwrap_or(0);
    let tokens: usize = prepared
        .sources
        .iter()
        .map(|s| {
            let all: usize = s.items.iter().flatten().map(Example::positions).sum();
            all * s.draws / s.items.len().max(1)
        })
        .sum();
    drop(items);
    let mut trainer = Trainer::new(base.weights(config)?, prepared.sources, sft::train_config(config))?;
    let (steps, epoch) = (trainer.steps(), trainer.steps_an_epoch());
    // The first step fills caches and buffers; the second is like those to come.
    trainer.step()?;
    let began = Instant::now();
    let report = trainer.step()?;
    let speed = report.map_or(0.0, |r| r.batch.tokens as f64) / began.elapsed().as_secs_f64();
    let total = tokens as f64 * steps as f64 / epoch as f64;
    writeln!(
        out,
        "{steps} steps, {epoch} an epoch of {} tokens; the longest example has {longest}",
        HumanCount(tokens as u64)
    )?;
    if speed > 0.0 {
        let time = Duration::from_secs_f64(total / speed);
        writeln!(out, "about {speed:.0} tokens a second here: {} without evaluations", HumanDuration(time))?;
    }
    Ok(())
}

/// The example's text: the prompt dim, what is learnt green, the brighter the more it weighs.
fn coloured(example: &Example, base: &Base) -> Result<String> {
    let highest = example.weights.iter().copied().fold(0.0, f32::max);
    let style = |weight: f32| match weight {
        0.0 => Style::new().dimmed(),
        w if w < 0.5 * highest => Style::new().fg_color(Some(AnsiColor::Green.into())),
        _ => Style::new().bold().fg_color(Some(AnsiColor::BrightGreen.into())),
    };
    let mut text = String::new();
    let pairs: Vec<(u32, f32)> =
        example.tokens.iter().copied().zip(example.weights.iter().copied()).collect();
    for stretch in pairs.chunk_by(|a, b| a.1 == b.1) {
        let ids: Vec<u32> = stretch.iter().map(|(id, _)| *id).collect();
        let style = style(stretch[0].1);
        text += &format!("{style}{}{style:#}", base.tokenizer.decode(&ids)?);
    }
    Ok(text)
}

/// A bar on a terminal, else a line now and then.
struct Progress {
    bar: Option<ProgressBar>,
    steps: usize,
    began: Instant,
    first: usize,
    tokens: usize,
    spent: Duration,
    last_line: Instant,
}

const LINE_EVERY: Duration = Duration::from_secs(20);

impl Progress {
    fn new() -> Self {
        let now = Instant::now();
        Self { bar: None, steps: 0, began: now, first: 0, tokens: 0, spent: Duration::ZERO, last_line: now }
    }
}

impl Observer for Progress {
    fn start(&mut self, step: usize, steps: usize) {
        (self.steps, self.first, self.began) = (steps, step, Instant::now());
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} {msg}, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar()) // the template is a constant
                .progress_chars("=> ");
            let bar = ProgressBar::new(steps as u64).with_style(style).with_position(step as u64);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, report: &StepReport, took: Duration) {
        self.tokens += report.batch.tokens;
        self.spent += took;
        let speed = self.tokens as f64 / self.spent.as_secs_f64().max(1e-9);
        let done = report.step + 1;
        let message = format!("loss {:.4}, {speed:.0} tokens/s", report.batch.loss);
        match &self.bar {
            Some(bar) => {
                bar.set_message(message);
                bar.set_position(done as u64);
            }
            None if self.last_line.elapsed() >= LINE_EVERY || done == self.steps => {
                self.last_line = Instant::now();
                let each = self.began.elapsed().as_secs_f64() / (done - self.first) as f64;
                let left = Duration::from_secs_f64(each * (self.steps - done) as f64);
                say(&format!("step {done} of {}: {message}, {} left", self.steps, HumanDuration(left)));
            }
            None => {}
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation, best: bool) {
        let text = format!("{}{}", line(evaluation), if best { " (best so far)" } else { "" });
        match &self.bar {
            Some(bar) => bar.suspend(|| say(&text)),
            None => say(&text),
        }
    }
}

fn line(evaluation: &Evaluation) -> String {
    let mut text = format!("after step {}:", evaluation.step);
    for (name, scores) in &evaluation.sets {
        text += &format!(" {name}: loss {:.4}", scores.loss);
        for (what, value) in [
            ("accuracy", scores.accuracy),
            ("recall", scores.recall),
            ("false positives", scores.false_positive_rate),
            ("AUROC", scores.auroc),
        ] {
            if let Some(value) = value {
                text += &format!(", {what} {value:.3}");
            }
        }
        text.push(';');
    }
    text.pop();
    text
}
