//! `forethought-trainer calibrate`: from a bundle's margins to probabilities.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use forethought_core::guard::bundle::{Bundle, Calibrations, Manifest};

use crate::calibrate::{self, Fit};
use crate::results::{Results, Way};

/// Flags of `calibrate`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct CalibrateArgs {
    /// The bundle's folder
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// What `forethought eval --mode reason` wrote with this bundle on labelled rows that were not learnt
    #[arg(long, value_name = "FILE", required = true)]
    results: Vec<PathBuf>,
    /// Write the calibration into the bundle's guard.toml
    #[arg(long)]
    write: bool,
    /// Print the fits as one JSON object
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Quality after calibration is that of ten folds, each scored by a fit to the other nine. With --write the bundle is another
one, with another hash: results of the old one can't be used to calibrate it again.";

/// Runs `calibrate`.
///
/// # Errors
/// When the results are of another bundle, or can't be calibrated.
pub fn run(args: &CalibrateArgs) -> Result<ExitCode> {
    let bundle = Bundle::open(&args.bundle.to_string_lossy())?;
    let results = of_bundle(&bundle, &args.bundle, &args.results)?;
    let old = bundle.manifest.calibration;
    let fit = |way: Way| -> Result<Option<Fit>> {
        let calibration = if way == Way::Reason { old.reason } else { old.direct };
        let rows = results.iter().flat_map(|result| &result.rows);
        let pairs: Vec<_> = rows
            .filter_map(|row| Some((calibrate::margin(row.score(way)?, calibration), row.label)))
            .collect();
        Ok(if pairs.is_empty() { None } else { Some(calibrate::fit(&pairs)?) })
    };
    let fits = [(Way::Direct, fit(Way::Direct)?), (Way::Reason, fit(Way::Reason)?)];
    ensure!(fits.iter().any(|(_, fit)| fit.is_some()), "the results hold no scores");
    if args.json {
        let fits: serde_json::Map<_, _> = fits
            .iter()
            .map(|(way, fit)| Ok((way.name().to_owned(), serde_json::to_value(fit)?)))
            .collect::<Result<_>>()?;
        println!("{}", serde_json::to_string_pretty(&fits)?);
    } else {
        for (way, fit) in fits.iter().filter_map(|(way, fit)| Some((way, fit.as_ref()?))) {
            let Fit { calibration: c, rows, before, after } = fit;
            println!(
                "{:6} {rows} rows: temperature {:.3}, bias {:+.3}; ECE {:.3} -> {:.3}, Brier {:.3} -> {:.3}",
                way.name(),
                c.temperature,
                c.bias,
                before.ece,
                after.ece,
                before.brier,
                after.brier
            );
        }
    }
    if args.write {
        let [direct, reason] = fits.map(|(_, fit)| fit.map(|fit| fit.calibration));
        let calibration =
            Calibrations { direct: direct.unwrap_or(old.direct), reason: reason.unwrap_or(old.reason) };
        write(&args.bundle, Manifest { calibration, ..bundle.manifest })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads results that must be those of `bundle`, whose folder is `folder`.
pub(super) fn of_bundle(bundle: &Bundle, folder: &Path, paths: &[PathBuf]) -> Result<Vec<Results>> {
    let results = paths.iter().map(|path| Results::read(path)).collect::<crate::Result<Vec<_>>>()?;
    for result in &results {
        ensure!(
            result.guard.bundle_sha256 == bundle.sha256,
            "{} was made with another bundle ({}, {:.12}) than {} is now ({:.12}): score the rows with this one",
            result.path.display(),
            result.guard.bundle,
            result.guard.bundle_sha256,
            folder.display(),
            bundle.sha256
        );
    }
    Ok(results)
}

/// Replaces the bundle's manifest, whole or not at all.
pub(super) fn write(bundle: &Path, manifest: Manifest) -> Result<()> {
    let partial = bundle.join("guard.toml.partial");
    std::fs::write(&partial, toml::to_string_pretty(&manifest)?)?;
    Ok(std::fs::rename(partial, bundle.join("guard.toml"))?)
}
