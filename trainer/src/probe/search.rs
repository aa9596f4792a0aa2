//! Which states to probe, and how: cross-validation over layers, positions and strengths of the penalty.

use forethought_core::{evidence::Verdict, metrics::Scored, probe::Position};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    classifier::{Classifier, FitSettings, Kind, Problem, platt},
    config::Search,
    error::Result,
    folds::Folds,
    reader::Reader,
    sets::Set,
};

/// By how much a network's AUROC must exceed that of logistic regression to be preferred: less is noise.
const MARGIN: f64 = 0.005;

/// What cross-validation says of one layer and position.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The layer.
    pub layer: usize,
    /// The position.
    pub position: Position,
    /// The best settings.
    pub settings: FitSettings,
    /// AUROC over all rows, each scored by a fit that has not seen it.
    pub auroc: f64,
    /// AUROC within each fold.
    pub folds: Vec<Option<f64>>,
    /// Those scores, as logits.
    #[serde(skip)]
    pub logits: Vec<f64>,
}

/// Cross-validates every layer and position with logistic regression, telling `progress` how many are done.
///
/// # Errors
/// States can't be read.
pub fn screen(
    reader: &mut Reader,
    set: &Set,
    folds: &Folds,
    positions: &[Position],
    search: &Search,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Cell>> {
    let labels = set.labels();
    let layers = reader.layers().to_vec();
    let mut cells = Vec::new();
    for (i, &layer) in layers.iter().enumerate() {
        let read = |&position: &Position| Ok((position, set.first_states(reader, layer, position)?));
        let states: Vec<(Position, Vec<f32>)> = positions.iter().map(read).collect::<Result<_>>()?;
        let jobs: Vec<(usize, usize)> =
            (0..states.len()).flat_map(|state| (0..folds.count()).map(move |fold| (state, fold))).collect();
        let mut fitted: Vec<Vec<Vec<f64>>> = jobs
            .par_iter()
            .map(|&(state, fold)| fold_path(&states[state].1, &labels, folds, fold, &search.c))
            .collect();
        for (position, _) in &states {
            let rest = fitted.split_off(folds.count());
            let by_fold = std::mem::replace(&mut fitted, rest);
            let tried = search.c.iter().enumerate().map(|(k, &c)| {
                let logits = scatter(folds, by_fold.iter().map(|fold| &fold[k]));
                let settings = FitSettings { hidden: 0, c, seed: 0 };
                cell(layer, *position, settings, logits, &labels, folds)
            });
            cells.extend(best(tried));
        }
        progress(i + 1, layers.len());
    }
    Ok(cells)
}

/// Logits of a fold's tested rows for each of `cs`.
fn fold_path(states: &[f32], labels: &[Verdict], folds: &Folds, fold: usize, cs: &[f64]) -> Vec<Vec<f64>> {
    let width = states.len() / labels.len().max(1);
    let (fitted, tested) = (folds.fitted(fold), folds.tested(fold));
    let problem = Problem::new(&pick(states, width, &fitted), &pick_labels(labels, &fitted));
    let tested = pick(states, width, &tested);
    problem.path(cs).iter().map(|classifier| logits(classifier, &tested)).collect()
}

/// Cross-validates one setting; the result's logits are out of fold.
pub fn validate(
    states: &[f32],
    labels: &[Verdict],
    folds: &Folds,
    (layer, position): (usize, Position),
    settings: FitSettings,
) -> Cell {
    let width = states.len() / labels.len().max(1);
    let by_fold: Vec<Vec<f64>> = (0..folds.count())
        .into_par_iter()
        .map(|fold| {
            let (fitted, tested) = (folds.fitted(fold), folds.tested(fold));
            let problem = Problem::new(&pick(states, width, &fitted), &pick_labels(labels, &fitted));
            logits(&problem.fit(&settings), &pick(states, width, &tested))
        })
        .collect();
    cell(layer, position, settings, scatter(folds, by_fold.iter()), labels, folds)
}

/// The best logistic regression of `cs`, by cross-validation.
pub fn best_c(states: &[f32], labels: &[Verdict], folds: &Folds, cs: &[f64]) -> f64 {
    let by_fold: Vec<Vec<Vec<f64>>> =
        (0..folds.count()).map(|fold| fold_path(states, labels, folds, fold, cs)).collect();
    let tried = cs.iter().enumerate().map(|(k, &c)| {
        let scores = scatter(folds, by_fold.iter().map(|fold| &fold[k]));
        (c, auroc(&scores, labels).unwrap_or(0.5))
    });
    // The first of equals is the most strongly penalised.
    tried.reduce(|best, next| if next.1 > best.1 { next } else { best }).map_or(1e-3, |(c, _)| c)
}

/// Picks `count` cells that do well together: the best one, then again and again the one that raises the AUROC of the
/// mean of their calibrated logits the most. Of equals the better one alone.
pub fn choose(cells: &[Cell], labels: &[Verdict], count: usize) -> Vec<usize> {
    let calibrated: Vec<Vec<f64>> = cells
        .iter()
        .map(|cell| {
            let (slope, shift) = platt(&cell.logits, labels);
            cell.logits.iter().map(|z| slope * z + shift).collect()
        })
        .collect();
    let mut chosen: Vec<usize> = Vec::new();
    let mut sum = vec![0.0; labels.len()];
    while chosen.len() < count.min(cells.len()) {
        let with = |i: usize| -> Vec<f64> { sum.iter().zip(&calibrated[i]).map(|(a, b)| a + b).collect() };
        let value = |i: usize| (auroc(&with(i), labels).unwrap_or(0.5), cells[i].auroc);
        let left: Vec<usize> = (0..cells.len()).filter(|i| !chosen.contains(i)).collect();
        let values: Vec<((f64, f64), usize)> = left.into_par_iter().map(|i| (value(i), i)).collect();
        let Some((_, next)) = values.into_iter().reduce(|best, next| if next.0 > best.0 { next } else { best })
        else {
            break;
        };
        sum = with(next);
        chosen.push(next);
    }
    chosen
}

/// The small network's best result at a cell's layer and position, and whether it is to be preferred.
pub fn network(
    states: &[f32],
    labels: &[Verdict],
    folds: &Folds,
    linear: &Cell,
    search: &Search,
    seed: u64,
) -> Option<(Cell, bool)> {
    let tried = search.hidden_c.iter().map(|&c| {
        let settings = FitSettings { hidden: search.hidden, c, seed };
        validate(states, labels, folds, (linear.layer, linear.position), settings)
    });
    let best = if search.hidden > 0 { best(tried) } else { None }?;
    let preferred = best.auroc > linear.auroc + MARGIN;
    Some((best, preferred))
}

fn cell(
    layer: usize,
    position: Position,
    settings: FitSettings,
    logits: Vec<f64>,
    labels: &[Verdict],
    folds: &Folds,
) -> Cell {
    let within = |fold| {
        let rows = folds.tested(fold);
        let scores: Vec<f64> = rows.iter().map(|&row| logits[row]).collect();
        auroc(&scores, &pick_labels(labels, &rows))
    };
    let folds = (0..folds.count()).map(within).collect();
    Cell { layer, position, settings, auroc: auroc(&logits, labels).unwrap_or(0.5), folds, logits }
}

/// The first of equals is the most strongly penalised.
fn best(cells: impl Iterator<Item = Cell>) -> Option<Cell> {
    cells.reduce(|best, next| if next.auroc > best.auroc { next } else { best })
}

/// AUROC; `None` where a class is missing.
pub fn auroc(scores: &[f64], labels: &[Verdict]) -> Option<f64> {
    Scored::new(scores.iter().copied().zip(labels.iter().copied())).ok()?.auroc()
}

/// Puts each fold's results back at their rows.
fn scatter<'a>(folds: &Folds, by_fold: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut all: Vec<(usize, f64)> = by_fold
        .enumerate()
        .flat_map(|(fold, z)| folds.tested(fold).into_iter().zip(z.iter().copied()))
        .collect();
    all.sort_unstable_by_key(|&(row, _)| row);
    all.into_iter().map(|(_, z)| z).collect()
}

fn logits(classifier: &Classifier, states: &[f32]) -> Vec<f64> {
    classifier.logits(states).into_iter().map(f64::from).collect()
}

/// Some rows of `states` `[rows, width]`.
pub fn pick(states: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| &states[row * width..(row + 1) * width]).copied().collect()
}

/// Some of the labels.
pub fn pick_labels(labels: &[Verdict], rows: &[usize]) -> Vec<Verdict> {
    rows.iter().map(|&row| labels[row]).collect()
}

impl Cell {
    /// Its name: position and layer, and the kind if it is no logistic regression.
    pub fn name(&self) -> String {
        let kind = if self.settings.kind() == Kind::Mlp { "-mlp" } else { "" };
        format!("{}-{}{kind}", self.position, self.layer)
    }
}
