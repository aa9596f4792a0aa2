//! A probe from its cell: fitted on everything, calibrated, with a threshold.

use std::collections::BTreeMap;

use forethought_core::{
    evidence::Verdict,
    metrics::{Interval, binomial_interval},
};
use serde::Serialize;
use serde_json::json;

use super::{
    classifier::{Classifier, Problem, platt, sigmoid},
    config::Config,
    error::Result,
    folds::Folds,
    inputs::Inputs,
    onnx::{self, Metadata},
    search::{Cell, Judge, auroc, fold_aurocs},
    sets::Set,
};

/// Confidence of all exact intervals.
pub const LEVEL: f64 = 0.95;

/// A finished probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its cell.
    pub cell: Cell,
    /// Ready for use: its outputs are calibrated.
    pub classifier: Classifier,
    /// What was done to its logits for that: slope and shift.
    pub calibration: (f64, f64),
    /// Logits of the rows that it is fitted on, each by a fit that has not seen it, calibrated alike.
    pub logits: Vec<f64>,
    /// Where it begins to say harmful.
    pub threshold: SetThreshold,
}

/// A threshold and what it was set on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SetThreshold {
    /// The probability.
    pub value: f32,
    /// The share of benign rows that was allowed to be at or above it.
    pub target_fpr: f64,
    /// Benign rows it was set on.
    pub rows: usize,
    /// Those of them at or above it.
    pub flagged: usize,
    /// Where their share would be on other rows of the kind.
    pub interval: Option<Interval>,
}

impl SetThreshold {
    /// The lowest threshold that a share of at most `target_fpr` of the benign `scores` reaches, half-way to the next
    /// score below it.
    pub fn new(mut scores: Vec<f32>, target_fpr: f64) -> Self {
        scores.sort_by(|a, b| b.total_cmp(a));
        let allowed = (target_fpr * scores.len() as f64 + 1e-9) as usize;
        let value = match (allowed.checked_sub(1).and_then(|i| scores.get(i)), scores.get(allowed)) {
            (Some(&above), Some(&below)) => {
                let middle = f32::midpoint(above, below);
                if middle > below { middle } else { below.next_up() }
            }
            (None, Some(&highest)) => highest.next_up(),
            (_, None) => 0.5,
        };
        let flagged = scores.iter().filter(|&&score| score >= value).count();
        let interval = binomial_interval(flagged as u64, scores.len() as u64, LEVEL);
        Self { value, target_fpr, rows: scores.len(), flagged, interval }
    }
}

impl Probe {
    /// Fits a cell's settings on all rows, calibrates it by the judge's rows, and sets its threshold.
    ///
    /// # Errors
    /// States can't be read.
    pub fn make(
        inputs: &mut Inputs,
        judge: &Judge<'_>,
        folds: &Folds,
        cell: Cell,
        config: &Config,
    ) -> Result<Self> {
        let labels = inputs.fit.labels();
        let judged = judge.labels(&inputs.fit);
        let place = judge.place(&mut inputs.reader, &inputs.fit, cell.layer, cell.position)?;
        let (slope, shift) = platt(&cell.logits, &judged);
        let calibrated = |logits: &[f64]| -> Vec<f64> { logits.iter().map(|z| slope * z + shift).collect() };
        let classifier = Problem::new(&place.fit, &labels).fit(&cell.settings).calibrated(slope, shift);
        let benign: Vec<f64> = match &inputs.threshold {
            Some(set) => set.logits(&set.states(&mut inputs.reader, cell.layer, cell.position)?, &classifier),
            None => calibrated(&cell.logits),
        };
        let truths = inputs.threshold.as_ref().map_or(judged, Set::labels);
        let benign = benign.into_iter().zip(truths).filter(|(_, label)| *label == Verdict::Benign);
        let benign = benign.map(|(z, _)| sigmoid(z) as f32).collect();
        let threshold = SetThreshold::new(benign, config.threshold.target_fpr);
        let out_of_fold = match judge {
            Judge::Folds(_) => cell.logits.clone(),
            Judge::Unseen(_) => {
                let mut cells = Judge::Folds(folds).judge(&place, &labels, &[cell.settings]);
                cells.pop().map(|cell| cell.logits).unwrap_or_default()
            }
        };
        let logits = calibrated(&out_of_fold);
        Ok(Self { cell, classifier, calibration: (slope, shift), logits, threshold })
    }

    /// The probe's file.
    ///
    /// # Errors
    /// A fact can't be written as JSON.
    pub fn encode(&self, inputs: &Inputs, folds: &Folds, config: &Config) -> Result<Vec<u8>> {
        let sources = inputs.fit.examples.iter().map(|e| e.source.as_str());
        let sources = sources.fold(BTreeMap::<&str, usize>::new(), |mut counts, source| {
            *counts.entry(source).or_default() += 1;
            counts
        });
        let judged_by = inputs.unseen.as_ref().map(|set| &set.files);
        let training = json!({
            "files": inputs.fit.files,
            "rows": inputs.fit.examples.len(),
            "sources": sources,
            "kind": self.cell.settings.kind(),
            "hidden": self.cell.settings.hidden,
            "c": self.cell.settings.c,
            "seed": config.seed,
            "cross_validation": {
                "folds": config.search.folds,
                "block": config.search.block,
                "gap": config.search.gap,
                "auroc": auroc(&self.logits, &inputs.fit.labels()),
                "fold_aurocs": fold_aurocs(folds, &self.logits, &inputs.fit.labels()),
            },
            "chosen_by": judged_by.map(|files| json!({ "files": files, "auroc": self.cell.auroc })),
            "threshold": self.threshold,
            "threshold_files": inputs.threshold.as_ref().map(|set| &set.files).or(judged_by),
        });
        let metadata = Metadata {
            name: self.cell.name(),
            layer: self.cell.layer,
            position: self.cell.position,
            made_for: inputs.reader.identity().clone(),
            threshold: self.threshold.value,
            training: serde_json::to_string(&training)?,
        };
        Ok(onnx::encode(&self.classifier, &metadata))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_keep_to_the_rate() {
        fn check(scores: &[f32], target: f64, value: f32, flagged: usize) {
            let threshold = SetThreshold::new(scores.to_vec(), target);
            assert_eq!((threshold.value, threshold.flagged), (value, flagged), "{scores:?} {target}");
        }
        check(&[0.1, 0.9, 0.5, 0.3], 0.25, 0.7, 1);
        check(&[0.1, 0.9, 0.5, 0.3], 0.5, 0.4, 2);
        // Too few to allow any: nothing that was seen is flagged.
        check(&[0.1, 0.9, 0.5, 0.3], 0.1, 0.9f32.next_up(), 0);
        // Equal scores stand or fall together.
        check(&[0.9, 0.5, 0.5, 0.3], 0.5, 0.5f32.next_up(), 1);
        check(&[], 0.1, 0.5, 0);
        let many: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        let threshold = SetThreshold::new(many, 0.02);
        assert_eq!((threshold.flagged, threshold.value), (20, 0.9795));
    }
}
