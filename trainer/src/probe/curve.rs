//! How many examples a probe needs.

use forethought_core::evidence::Verdict;
use rayon::prelude::*;
use serde::Serialize;

use super::{
    classifier::Problem,
    config::{Config, Curve},
    error::Result,
    folds::{Folds, shuffled_blocks},
    inputs::Inputs,
    made::Probe,
    search::{Judge, Place, auroc, best, linear, pick, pick_labels},
};

/// Scores of fits on one number of examples.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Examples.
    pub size: usize,
    /// Draws.
    pub draws: usize,
    /// For each set with both classes its AUROC.
    pub sets: Vec<Spread>,
}

/// A set's AUROC over several draws.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The set.
    pub name: String,
    /// Mean over the draws.
    pub mean: f64,
    /// Standard deviation over the draws; 0 for one.
    pub deviation: f64,
}

/// Fits logistic regression at a probe's layer and position on some of the examples. Examples are drawn in blocks of
/// neighbours, and the penalty is chosen anew for each draw by cross-validation within it.
///
/// # Errors
/// States can't be read.
pub fn learning_curve(
    inputs: &mut Inputs,
    probe: &Probe,
    config: &Config,
    curve: &Curve,
) -> Result<Vec<Point>> {
    let (layer, position) = (probe.cell.layer, probe.cell.position);
    let states = inputs.fit.states(&mut inputs.reader, layer, position)?;
    let labels = inputs.fit.labels();
    let width = inputs.reader.identity().width;
    let files = inputs.fit.file_numbers();
    let mut sizes: Vec<usize> = curve.sizes.iter().copied().filter(|&size| size < labels.len()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let draws = sizes.iter().flat_map(|&size| (0..curve.draws as u64).map(move |draw| (size, draw)));
    let jobs: Vec<(usize, u64)> = draws.chain([(labels.len(), 0)]).collect();

    let classifiers: Vec<_> = jobs
        .par_iter()
        .map(|&(size, draw)| {
            let blocks =
                shuffled_blocks(&files, curve.block, config.seed ^ draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let drawn = blocks.into_iter().enumerate().flat_map(|(i, rows)| rows.map(move |row| (row, i)));
            let (rows, blocks): (Vec<usize>, Vec<usize>) = drawn.take(size).unzip();
            let (states, labels) = (pick(&states, width, &rows), pick_labels(&labels, &rows));
            let folds =
                Folds::new(&blocks, config.search.folds.min(size / curve.block).max(2), curve.block, 0, 0);
            let place = Place { layer, position, fit: states, judge: Vec::new() };
            let tried = Judge::Folds(&folds).judge(&place, &labels, &linear(&config.search.c));
            let settings = best(tried).map_or(probe.cell.settings, |cell| cell.settings);
            Problem::new(&place.fit, &labels).fit(&settings)
        })
        .collect();

    let mut points: Vec<Point> = Vec::new();
    let both = |labels: &[Verdict]| labels.contains(&Verdict::Harmful) && labels.contains(&Verdict::Benign);
    for jobs_of_size in jobs.iter().zip(&classifiers).collect::<Vec<_>>().chunk_by(|a, b| a.0.0 == b.0.0) {
        let mut sets = Vec::new();
        for set in inputs.score.iter().filter(|set| both(&set.labels())) {
            let labels = set.labels();
            let states = set.states(&mut inputs.reader, layer, position)?;
            let aurocs = jobs_of_size.iter().map(|(_, c)| auroc(&set.logits(&states, c), &labels));
            let aurocs: Vec<f64> = aurocs.collect::<Option<_>>().unwrap_or_default();
            sets.push(Spread::new(&set.name, &aurocs));
        }
        let size = jobs_of_size.first().map_or(0, |((size, _), _)| *size);
        points.push(Point { size, draws: jobs_of_size.len(), sets });
    }
    Ok(points)
}

impl Spread {
    fn new(name: &str, values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { name: name.to_owned(), mean, deviation: variance.sqrt() }
    }
}
