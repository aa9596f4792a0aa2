//! `forethought-trainer report`: write a bundle's `EVAL.md`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use forethought_core::guard::bundle::Bundle;

use crate::probe::report::{CURVE_PLOT, LAYERS_PLOT};
use crate::report::{PLOTS, Sources, markdown, plot_name};
use crate::results::Results;

/// Flags of `report`.
#[derive(clap::Args, Debug)]
pub struct ReportArgs {
    /// The bundle's folder; the report is written into it as EVAL.md, with the runs' plots
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Folder of a run that made it; may be repeated
    #[arg(long, value_name = "DIR")]
    run: Vec<PathBuf>,
    /// Folder of the run of `probe` that fitted its probes
    #[arg(long, value_name = "DIR")]
    probes: Option<PathBuf>,
    /// What `forethought eval` wrote with this bundle, in any mode; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    results: Vec<PathBuf>,
    /// The same with another bundle, to be set beside it
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Data files with styles and categories, by which mistakes are counted
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Score from which on a row counts as harmful
    #[arg(long, value_name = "SCORE", default_value_t = 0.5)]
    threshold: f64,
}

/// Runs `report`.
///
/// # Errors
/// When a file can't be read or written, or results are of another bundle.
pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let read = |paths: &[PathBuf]| -> crate::Result<Vec<Results>> {
        paths.iter().map(|path| Results::read(path)).collect()
    };
    let bundle = Bundle::open(&args.bundle.to_string_lossy())?;
    let sources = Sources {
        runs: args.run.clone(),
        probes: args.probes.clone(),
        results: read(&args.results)?,
        against: read(&args.against)?,
        data: args.data.clone(),
        threshold: args.threshold,
        bundle,
    };
    for results in &sources.results {
        ensure!(
            results.guard.bundle_sha256 == sources.bundle.sha256,
            "{} was made with another bundle: {}",
            results.path.display(),
            results.guard.bundle
        );
        if results.failed > 0 {
            eprintln!("{}: {} rows failed and are left out", results.path.display(), results.failed);
        }
    }
    let text = markdown(&sources)?;
    let out = args.bundle.join("EVAL.md");
    std::fs::write(&out, text)?;
    let of_runs = args.run.iter().flat_map(|run| PLOTS.map(|plot| (run.join(plot), plot_name(run, plot))));
    let of_probes = args
        .probes
        .iter()
        .flat_map(|run| [LAYERS_PLOT, CURVE_PLOT].map(|plot| (run.join(plot), plot.to_owned())));
    for (plot, name) in of_runs.chain(of_probes).filter(|(plot, _)| plot.exists()) {
        std::fs::copy(plot, args.bundle.join(name))?;
    }
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}
