//! `forethought-trainer combine`: one score out of a bundle's signals, and the scores that are clear without reasoning.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use forethought_core::guard::bundle::{Band, Bundle, Manifest};
use forethought_core::guard::combine::{DIRECT, REASON};

use super::calibrate::{of_bundle, write};
use crate::combine::{self, Fit, Signals};
use crate::results::{Results, Way};

/// Flags of `combine`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct CombineArgs {
    /// The bundle's folder
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// What `forethought eval --mode reason` wrote with this bundle on labelled rows that were not learnt; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    results: Vec<PathBuf>,
    /// Share of the harmful rows that the cascade may take for clearly benign
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    missed: f64,
    /// Share of the benign rows that the cascade may take for clearly harmful
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    flagged: f64,
    /// A signal that is to count alone: a probe's name, `direct` or `reason`; may be repeated
    #[arg(long, value_name = "SIGNAL")]
    without: Vec<String>,
    /// The scores between which the cascade reasons, instead of what --missed and --flagged give
    #[arg(long, value_name = "LOW,HIGH", value_parser = band, conflicts_with_all = ["missed", "flagged"])]
    band: Option<Band>,
    /// Write what was found into the bundle's guard.toml
    #[arg(long)]
    write: bool,
    /// Print what was found as one JSON object
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Combined are the probes, then these with the direct verdict, then with the verdict after the phases too; a signal whose
weight would be below zero is left out. Scores are those of ten folds, each scored by a fit to the other nine; a combination that ranks no better by them than its best signal alone
is left out. With --write the bundle is another one, with another hash.";

/// Runs `combine`.
///
/// # Errors
/// When the results are of another bundle or hold too few signals, or the bundle can't be written.
pub fn run(args: &CombineArgs) -> Result<ExitCode> {
    for (flag, share) in [("--missed", args.missed), ("--flagged", args.flagged)] {
        ensure!((0.0..1.0).contains(&share), "{flag} is {share}, and must be at least 0 and below 1");
    }
    let bundle = Bundle::open(&args.bundle.to_string_lossy())?;
    let results = of_bundle(&bundle, &args.bundle, &args.results)?;
    let rows: Vec<Signals> = results.iter().flat_map(of_rows).collect();
    ensure!(!rows.is_empty(), "the results hold no scores");

    let known: BTreeSet<&str> = rows.iter().flat_map(|row| row.scores.keys().map(String::as_str)).collect();
    if let Some(name) = args.without.iter().find(|name| !known.contains(name.as_str())) {
        let known: Vec<&str> = known.into_iter().collect();
        bail!("--without {name}: the results have no such signal, only {}", known.join(", "));
    }
    let is_verdict = |name: &&String| [DIRECT, REASON].contains(&name.as_str());
    let probes: BTreeSet<&String> =
        rows.iter().flat_map(|row| row.scores.keys()).filter(|name| !is_verdict(name)).collect();
    let with = |more: &[&str]| -> Vec<String> {
        let names = probes.iter().map(|name| name.as_str()).chain(more.iter().copied());
        names.map(str::to_owned).filter(|name| !args.without.contains(name)).collect()
    };
    let sets = [with(&[]), with(&[DIRECT]), with(&[DIRECT, REASON])];
    let mut fits: Vec<Fit> = Vec::new();
    for names in sets.iter().filter(|names| names.len() > 1) {
        let fit = combine::fit(&rows, names)?;
        let signals = |fit: &Fit| -> Vec<String> { fit.combination.weights.keys().cloned().collect() };
        // A verdict that adds nothing is not in it, and leaves what was there before.
        if fit.combination.weights.len() > 1 && fits.iter().all(|other| signals(other) != signals(&fit)) {
            fits.push(fit);
        }
    }
    // The cascade goes by what is known before the phases.
    let early = fits.iter().rfind(|fit| fit.is_better() && !fit.combination.weights.contains_key(REASON));
    let band =
        early.map(|fit| args.band.unwrap_or_else(|| combine::band(&fit.scores, args.missed, args.flagged)));

    if args.json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({"fits": fits, "cascade": band}))?);
    } else {
        fits.iter().for_each(|fit| println!("{}", shown(fit)));
        match band {
            Some(Band { benign_below, harmful_from }) => {
                println!("cascade: benign below {benign_below:.3}, harmful from {harmful_from:.3}");
            }
            None => println!(
                "cascade: no combination of what is known before the phases is better than its parts"
            ),
        }
    }
    if args.write {
        let combine = fits.into_iter().filter(Fit::is_better).map(|fit| fit.combination).collect();
        let cascade = band.or(bundle.manifest.cascade);
        write(&args.bundle, Manifest { combine, cascade, ..bundle.manifest })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn band(text: &str) -> std::result::Result<Band, String> {
    let numbers = text.split_once(',').and_then(|(low, high)| {
        Some(Band { benign_below: low.trim().parse().ok()?, harmful_from: high.trim().parse().ok()? })
    });
    let band = numbers.filter(|b| (0.0..=1.0).contains(&b.benign_below) && b.benign_below <= b.harmful_from);
    band.ok_or_else(|| "two scores are wanted that rise from 0, as in 0.05,0.98".into())
}

/// The signals of a guard's rows. A user's own probe is none: it is not part of the bundle.
fn of_rows(results: &Results) -> impl Iterator<Item = Signals> {
    results.rows.iter().map(|row| {
        let verdicts = [(DIRECT, Way::Direct), (REASON, Way::Reason)];
        let verdicts =
            verdicts.into_iter().filter_map(|(name, way)| Some((name.to_owned(), row.score(way)?)));
        let probes = row.probes.iter().filter(|(name, _)| !results.guard.own_probes.contains_key(*name));
        let probes = probes.map(|(name, score)| (name.clone(), *score));
        Signals { scores: probes.chain(verdicts).collect(), label: row.label }
    })
}

fn shown(fit: &Fit) -> String {
    let Fit { combination, rows, auroc, best: (name, best), ece, .. } = fit;
    let weights: Vec<String> =
        combination.weights.iter().map(|(name, weight)| format!("{name} {weight:+.3}")).collect();
    let verdict = if fit.is_better() { "kept" } else { "left out" };
    format!(
        "{}: {rows} rows, AUROC {auroc:.4} out of fold (best alone: {name} {best:.4}), ECE {ece:.3}; {verdict}; bias {:+.3}, {}",
        combination.weights.keys().map(String::as_str).collect::<Vec<_>>().join(" + "),
        combination.bias,
        weights.join(", ")
    )
}
