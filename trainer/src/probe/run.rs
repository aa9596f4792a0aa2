//! A whole run: search, fit, score, report, write.

use forethought_core::store;

use super::{
    Progress,
    classifier::Kind,
    config::Config,
    curve::learning_curve,
    error::{ProbeError, Result},
    folds::Folds,
    inputs::Inputs,
    made::Probe,
    report::{ProbeReport, Report},
    scores::{GROUPINGS, SetScore, leave_out},
    search::{Cell, Judge, auroc, choose, network, screen, transfer},
};

/// Folder of the probes' files, inside of the output folder as in a bundle.
const PROBES: &str = "probes";

/// Does all that `config` says, and returns what is in the report.
///
/// # Errors
/// Data, bundle or cache can't be read, the model fails, or the output can't be written.
pub fn run(config: &Config, fetch: &dyn store::Progress, progress: Progress<'_>) -> Result<Report> {
    let mut inputs = Inputs::read(config, fetch, progress)?;
    let search = &config.search;
    let folds = Folds::new(&inputs.fit.file_numbers(), search.folds, search.block, search.gap, config.seed);
    let unseen = inputs.unseen.clone();
    let judge = unseen.as_ref().map_or(Judge::Folds(&folds), Judge::Unseen);
    let mut cells =
        screen(&mut inputs.reader, &inputs.fit, &judge, &config.positions, search, &mut |done, total| {
            progress("layers", done, total);
        })?;
    transfer(&mut inputs.reader, &inputs.fit, &inputs.score, &mut cells)?;

    let folder = config.out.join(PROBES);
    std::fs::create_dir_all(&folder).map_err(ProbeError::file(&folder))?;
    let chosen = choose(&cells, &judge.labels(&inputs.fit), search.probes);
    let (mut probes, mut reports) = (Vec::new(), Vec::new());
    for (i, &cell) in chosen.iter().enumerate() {
        let (cell, kinds) = choose_kind(&mut inputs, &judge, cells[cell].clone(), config)?;
        let probe = Probe::make(&mut inputs, &judge, &folds, cell, config)?;
        let path = folder.join(file_name(&probe));
        let bytes = probe.encode(&inputs, &folds, config)?;
        std::fs::write(&path, bytes).map_err(ProbeError::file(&path))?;
        reports.push(describe(&mut inputs, &probe, kinds)?);
        probes.push(probe);
        progress("probes", i + 1, chosen.len());
    }

    let learning_curve = match (&config.learning_curve, probes.first()) {
        (Some(curve), Some(probe)) => Some(learning_curve(&mut inputs, probe, config, curve)?),
        _ => None,
    };
    let together = together(&mut inputs, &probes)?;
    let (identity, manifest) = (inputs.reader.identity(), inputs.reader.manifest());
    let report = Report {
        bundle: format!("{} {}", manifest.name, manifest.version),
        base_model: manifest.base.model.clone(),
        base_sha256: identity.base_sha256.clone(),
        adapter_sha256: identity.adapter_sha256.clone(),
        left_out: inputs.fit.left_out,
        threshold: inputs.threshold.as_ref().map(|set| set.files.clone()),
        score: inputs.score.iter().map(|set| (set.name.clone(), set.files.clone())).collect(),
        chosen_by: inputs.parts,
        fit: inputs.fit.files,
        folds: search.folds,
        seed: config.seed,
        cells,
        probes: reports,
        together,
        learning_curve,
    };
    report.write(&config.out)?;
    Ok(report)
}

/// Logistic regression or a small network at a cell's place, and the AUROC of each.
fn choose_kind(
    inputs: &mut Inputs,
    judge: &Judge<'_>,
    linear: Cell,
    config: &Config,
) -> Result<(Cell, Vec<(Kind, f64)>)> {
    let place = judge.place(&mut inputs.reader, &inputs.fit, linear.layer, linear.position)?;
    let mut kinds = vec![(Kind::Linear, linear.auroc)];
    let found = network(judge, &place, &inputs.fit.labels(), &linear, &config.search, config.seed);
    let Some((network, is_preferred)) = found else { return Ok((linear, kinds)) };
    kinds.push((Kind::Mlp, network.auroc));
    Ok((if is_preferred { network } else { linear }, kinds))
}

fn file_name(probe: &Probe) -> String {
    format!("{}.onnx", probe.cell.name())
}

fn describe(inputs: &mut Inputs, probe: &Probe, kinds: Vec<(Kind, f64)>) -> Result<ProbeReport> {
    let cell = &probe.cell;
    let mut sets = Vec::new();
    for set in &inputs.score {
        let states = set.states(&mut inputs.reader, cell.layer, cell.position)?;
        sets.push(SetScore::new(set, &set.logits(&states, &probe.classifier), probe.threshold.value)?);
    }
    let mut left_out = Vec::new();
    for grouping in GROUPINGS {
        left_out.extend(leave_out(inputs, probe, grouping)?);
    }
    Ok(ProbeReport {
        name: cell.name(),
        file: format!("{PROBES}/{}", file_name(probe)),
        layer: cell.layer,
        position: cell.position,
        kind: cell.settings.kind(),
        c: cell.settings.c,
        chosen_by: cell.auroc,
        auroc: auroc(&probe.logits, &inputs.fit.labels()),
        kinds,
        threshold: probe.threshold,
        sets,
        left_out,
    })
}

/// AUROC of the mean of all probes' logits: out of fold, then on each set with both classes.
fn together(inputs: &mut Inputs, probes: &[Probe]) -> Result<Vec<(String, f64)>> {
    let add =
        |sum: Vec<f64>, more: &[f64]| -> Vec<f64> { sum.iter().zip(more).map(|(a, b)| a + b).collect() };
    let labels = inputs.fit.labels();
    let sum = probes.iter().fold(vec![0.0; labels.len()], |sum, probe| add(sum, &probe.logits));
    let out_of_fold = auroc(&sum, &labels).map(|auroc| ("out of fold".into(), auroc));
    let mut found: Vec<(String, f64)> = out_of_fold.into_iter().collect();
    for set in &inputs.score {
        let labels = set.labels();
        let mut sum = vec![0.0; labels.len()];
        for Probe { cell, classifier, .. } in probes {
            let states = set.states(&mut inputs.reader, cell.layer, cell.position)?;
            sum = add(sum, &set.logits(&states, classifier));
        }
        found.extend(auroc(&sum, &labels).map(|auroc| (set.name.clone(), auroc)));
    }
    Ok(found)
}
