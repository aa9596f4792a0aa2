//! Which states to probe, and how: layers, positions and strengths of the penalty, judged by rows that a fit has not
//! seen.

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

/// By what a fit is judged.
pub enum Judge<'a> {
    /// By cross-validation.
    Folds(&'a Folds),
    /// By other rows.
    Unseen(&'a Set),
}

/// States at one layer and position.
pub struct Place {
    /// The layer.
    pub layer: usize,
    /// The position.
    pub position: Position,
    /// Those that are fitted on, `[rows, width]`.
    pub fit: Vec<f32>,
    /// Those of the judge's windows, `[windows, width]`, if it has any of its own.
    pub judge: Vec<f32>,
}

/// What a layer and position is good for.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The layer.
    pub layer: usize,
    /// The position.
    pub position: Position,
    /// The best settings.
    pub settings: FitSettings,
    /// AUROC over all of the judge's rows.
    pub auroc: f64,
    /// AUROC within each fold, if the judge has folds.
    pub folds: Vec<Option<f64>>,
    /// AUROC on each scored set with both classes, of a fit on all rows.
    pub sets: Vec<(String, f64)>,
    /// Logits of the judge's rows.
    #[serde(skip)]
    pub logits: Vec<f64>,
}

impl Judge<'_> {
    /// Labels of the rows it judges by.
    pub fn labels(&self, fit: &Set) -> Vec<Verdict> {
        match self {
            Self::Folds(_) => fit.labels(),
            Self::Unseen(set) => set.labels(),
        }
    }

    /// Reads what is needed at a layer and position.
    ///
    /// # Errors
    /// States can't be read.
    pub fn place(&self, reader: &mut Reader, fit: &Set, layer: usize, position: Position) -> Result<Place> {
        let judge = match self {
            Self::Folds(_) => Vec::new(),
            Self::Unseen(set) => set.states(reader, layer, position)?,
        };
        Ok(Place { layer, position, fit: fit.states(reader, layer, position)?, judge })
    }

    /// Judges each of `settings` there; `labels` are those of the rows that are fitted on.
    pub fn judge(&self, place: &Place, labels: &[Verdict], settings: &[FitSettings]) -> Vec<Cell> {
        let width = place.fit.len() / labels.len().max(1);
        // For each of the settings the logits of the judge's rows.
        let (logits, judged): (Vec<Vec<f64>>, Vec<Verdict>) = match self {
            Self::Folds(folds) => {
                let by_fold: Vec<Vec<Vec<f64>>> = (0..folds.count())
                    .into_par_iter()
                    .map(|fold| {
                        let (fitted, tested) = (folds.fitted(fold), folds.tested(fold));
                        let problem =
                            Problem::new(&pick(&place.fit, width, &fitted), &pick_labels(labels, &fitted));
                        let tested = pick(&place.fit, width, &tested);
                        problem.fits(settings).iter().map(|c| wide_logits(c, &tested)).collect()
                    })
                    .collect();
                let of = |k: usize| scatter(folds, by_fold.iter().map(|fold| &fold[k]));
                ((0..settings.len()).map(of).collect(), labels.to_vec())
            }
            Self::Unseen(set) => {
                let fits = Problem::new(&place.fit, labels).fits(settings);
                (fits.iter().map(|c| set.logits(&place.judge, c)).collect(), set.labels())
            }
        };
        let cells = settings.iter().zip(logits).map(|(&settings, logits)| Cell {
            layer: place.layer,
            position: place.position,
            settings,
            auroc: auroc(&logits, &judged).unwrap_or(0.5),
            folds: match self {
                Self::Folds(folds) => fold_aurocs(folds, &logits, &judged),
                Self::Unseen(_) => Vec::new(),
            },
            sets: Vec::new(),
            logits,
        });
        cells.collect()
    }
}

/// Judges logistic regression at every layer and position, telling `progress` how many layers are done. The best
/// strength of the penalty counts.
///
/// # Errors
/// States can't be read.
pub fn screen(
    reader: &mut Reader,
    fit: &Set,
    judge: &Judge<'_>,
    positions: &[Position],
    search: &Search,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Cell>> {
    let labels = fit.labels();
    let settings = linear(&search.c);
    let layers = reader.layers().to_vec();
    let mut cells = Vec::new();
    for (i, &layer) in layers.iter().enumerate() {
        let places = positions.iter().map(|&position| judge.place(reader, fit, layer, position));
        let places: Vec<Place> = places.collect::<Result<_>>()?;
        let judged = places.par_iter().map(|place| best(judge.judge(place, &labels, &settings)));
        cells.extend(judged.collect::<Vec<_>>().into_iter().flatten());
        progress(i + 1, layers.len());
    }
    Ok(cells)
}

/// Fits each cell on all rows of `fit` and notes its AUROC on each set with both classes.
///
/// # Errors
/// States can't be read.
pub fn transfer(reader: &mut Reader, fit: &Set, sets: &[Set], cells: &mut [Cell]) -> Result<()> {
    let labels = fit.labels();
    for cells in cells.chunks_mut(rayon::current_num_threads()) {
        let read = |cell: &Cell| fit.states(reader, cell.layer, cell.position);
        let states: Vec<Vec<f32>> = cells.iter().map(read).collect::<Result<_>>()?;
        let fits = cells.par_iter().zip(&states);
        let classifiers: Vec<Classifier> =
            fits.map(|(cell, states)| Problem::new(states, &labels).fit(&cell.settings)).collect();
        for (cell, classifier) in cells.iter_mut().zip(&classifiers) {
            for set in sets {
                let logits = set.logits(&set.states(reader, cell.layer, cell.position)?, classifier);
                cell.sets.extend(auroc(&logits, &set.labels()).map(|auroc| (set.name.clone(), auroc)));
            }
        }
    }
    Ok(())
}

/// Picks up to `count` cells that do well together: the best one, then again and again the one that raises the AUROC of
/// the mean of their calibrated logits the most, as long as one raises it. `labels` are those of the judge's rows.
pub fn choose(cells: &[Cell], labels: &[Verdict], count: usize) -> Vec<usize> {
    let calibrated: Vec<Vec<f64>> = cells
        .iter()
        .map(|cell| {
            let (slope, shift) = platt(&cell.logits, labels);
            cell.logits.iter().map(|z| slope * z + shift).collect()
        })
        .collect();
    let mut chosen: Vec<usize> = Vec::new();
    let (mut sum, mut reached) = (vec![0.0; labels.len()], 0.0);
    while chosen.len() < count {
        let with = |i: usize| -> Vec<f64> { sum.iter().zip(&calibrated[i]).map(|(a, b)| a + b).collect() };
        let left: Vec<usize> = (0..cells.len()).filter(|i| !chosen.contains(i)).collect();
        let together: Vec<(f64, usize)> =
            left.into_par_iter().map(|i| (auroc(&with(i), labels).unwrap_or(0.5), i)).collect();
        let higher = |best: (f64, usize), next: (f64, usize)| if next.0 > best.0 { next } else { best };
        match together.into_iter().reduce(higher) {
            Some((auroc, next)) if auroc > reached => {
                (sum, reached) = (with(next), auroc);
                chosen.push(next);
            }
            _ => break,
        }
    }
    chosen
}

/// The small network's best result at a place, if one is wanted, and whether it is to be preferred to `linear`.
pub fn network(
    judge: &Judge<'_>,
    place: &Place,
    labels: &[Verdict],
    linear: &Cell,
    search: &Search,
    seed: u64,
) -> Option<(Cell, bool)> {
    if search.hidden == 0 {
        return None;
    }
    let settings = search.hidden_c.iter().map(|&c| FitSettings { hidden: search.hidden, c, seed });
    let best = best(judge.judge(place, labels, &settings.collect::<Vec<_>>()))?;
    let preferred = best.auroc > linear.auroc + MARGIN;
    Some((best, preferred))
}

/// Logistic regression with each of `cs`.
pub fn linear(cs: &[f64]) -> Vec<FitSettings> {
    cs.iter().map(|&c| FitSettings { hidden: 0, c, seed: 0 }).collect()
}

/// Of equals the first, which is the most strongly penalised.
pub fn best(cells: Vec<Cell>) -> Option<Cell> {
    cells.into_iter().reduce(|best, next| if next.auroc > best.auroc { next } else { best })
}

/// AUROC; `None` where a class is missing.
pub fn auroc(scores: &[f64], labels: &[Verdict]) -> Option<f64> {
    Scored::new(scores.iter().copied().zip(labels.iter().copied())).ok()?.auroc()
}

/// AUROC within each fold.
pub fn fold_aurocs(folds: &Folds, logits: &[f64], labels: &[Verdict]) -> Vec<Option<f64>> {
    let within = |fold| {
        let rows = folds.tested(fold);
        let scores: Vec<f64> = rows.iter().map(|&row| logits[row]).collect();
        auroc(&scores, &pick_labels(labels, &rows))
    };
    (0..folds.count()).map(within).collect()
}

/// Puts each fold's results back at their rows.
fn scatter<'a>(folds: &Folds, by_fold: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let rows =
        by_fold.enumerate().flat_map(|(fold, z)| folds.tested(fold).into_iter().zip(z.iter().copied()));
    let mut all: Vec<(usize, f64)> = rows.collect();
    all.sort_unstable_by_key(|&(row, _)| row);
    all.into_iter().map(|(_, z)| z).collect()
}

/// A classifier's logits, for sums in double precision.
pub fn wide_logits(classifier: &Classifier, states: &[f32]) -> Vec<f64> {
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
