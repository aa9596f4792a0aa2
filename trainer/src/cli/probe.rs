//! `forethought-trainer probe`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use forethought_core::store::Console;

use crate::probe::{
    self,
    config::{Config, ScoreSet},
    report::MARKDOWN_FILE,
    rows::DataFile,
};

/// Flags of `probe`.
#[derive(clap::Args, Debug)]
pub struct ProbeArgs {
    /// The run's settings (see examples/training/probes.toml)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The guard bundle, instead of the setting `bundle`
    #[arg(long, value_name = "FOLDER")]
    pub bundle: Option<String>,
    /// Where the probes and their report go, instead of the setting `out`
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Overrides one value, such as `threshold.target_fpr=0.01`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// More rows to score: `FILE`, or `NAME=FILE,FILE` for several together; may be repeated
    #[arg(long, value_name = "[NAME=]FILE")]
    pub score: Vec<String>,
}

/// Runs `probe`.
///
/// # Errors
/// As [`probe::run()`].
pub fn run(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::read(&args.config, &args.set)?;
    if let Some(bundle) = &args.bundle {
        config.bundle.clone_from(bundle);
    }
    if let Some(out) = &args.out {
        config.out.clone_from(out);
    }
    config.score.extend(args.score.iter().map(|text| score_set(text)));
    config.check().context("a setting or flag is wrong")?;
    // An error means that a pool is running already, as in tests; that one is kept.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(config.threads).build_global();
    let mut lines = Lines::default();
    let report =
        probe::run(&config, &Console::stderr(), &mut |what, done, total| lines.hear(what, done, total))?;
    let mut out = io::stdout().lock();
    for probe in &report.probes {
        writeln!(out, "{}  AUROC {:.3}", config.out.join(&probe.file).display(), probe.chosen_by)?;
    }
    writeln!(out, "{}", config.out.join(MARKDOWN_FILE).display())?;
    Ok(ExitCode::SUCCESS)
}

fn score_set(text: &str) -> ScoreSet {
    let (name, files) = text.split_once('=').unwrap_or(("", text));
    let files: Vec<DataFile> = files.split(',').map(DataFile::all).collect();
    let name = match name {
        "" => files.iter().map(DataFile::stem).collect::<Vec<_>>().join(" + "),
        name => name.to_owned(),
    };
    ScoreSet { name, files }
}

/// Says on standard error how far a run is, once every few seconds and at each end.
#[derive(Default)]
struct Lines {
    last: Option<Instant>,
}

impl Lines {
    const EVERY: Duration = Duration::from_secs(5);

    fn hear(&mut self, what: &str, done: usize, total: usize) {
        if done == total || self.last.is_none_or(|last| last.elapsed() >= Self::EVERY) {
            self.last = Some(Instant::now());
            // A closed standard error must not end the run.
            let _ = writeln!(io::stderr(), "{what}: {done} of {total}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_sets_by_flag() {
        fn check(text: &str, name: &str, files: &[&str]) {
            let set = score_set(text);
            assert_eq!(set.name, name);
            assert_eq!(set.files, files.iter().map(DataFile::all).collect::<Vec<_>>());
        }
        check("a/b.jsonl", "b", &["a/b.jsonl"]);
        check("a.jsonl,b.jsonl", "a + b", &["a.jsonl", "b.jsonl"]);
        check("both=a.jsonl,b.jsonl", "both", &["a.jsonl", "b.jsonl"]);
    }
}
