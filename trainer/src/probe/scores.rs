//! What a probe's scores are worth: on rows it has not seen, from sources it has seen and from others.

use std::collections::BTreeMap;

use forethought_core::{
    evidence::Verdict,
    metrics::{Bootstrap, Interval, Scored, binomial_interval},
};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    classifier::{Problem, sigmoid},
    error::Result,
    inputs::Inputs,
    made::{LEVEL, Probe},
    search::{auroc, pick, pick_labels, wide_logits},
    sets::{Example, Set},
};

/// A number and how far it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// The number.
    pub value: f64,
    /// Its 95% interval.
    pub interval: Option<Interval>,
}

/// A set's scores in numbers; what the set can't define is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct SetScore {
    /// The set.
    pub name: String,
    /// Harmful rows.
    pub harmful: usize,
    /// Benign rows.
    pub benign: usize,
    /// Rows left out, because they are fitted on.
    pub left_out: usize,
    /// Area under the ROC curve, with a bootstrap interval.
    pub auroc: Option<Measure>,
    /// Share of the harmful at or above the threshold, with an exact interval.
    pub recall: Option<Measure>,
    /// Share of the benign at or above the threshold, with an exact interval.
    pub fpr: Option<Measure>,
}

impl SetScore {
    /// For logits of a set's rows and a threshold on their probabilities.
    ///
    /// # Errors
    /// A logit is no number.
    pub fn new(set: &Set, logits: &[f64], threshold: f32) -> Result<Self> {
        // A logit keeps apart what rounds to the same probability.
        let at = logit(threshold);
        let scored = Scored::new(logits.iter().copied().zip(set.labels()))?;
        let confusion = scored.confusion(at);
        let share = |hits: u64, misses: u64| {
            let interval = binomial_interval(hits, hits + misses, LEVEL);
            (hits + misses > 0).then(|| Measure { value: hits as f64 / (hits + misses) as f64, interval })
        };
        let auroc = scored
            .auroc()
            .map(|value| Measure { value, interval: Bootstrap::default().intervals(&scored, at).auroc });
        Ok(Self {
            name: set.name.clone(),
            harmful: scored.harmful(),
            benign: scored.len() - scored.harmful(),
            left_out: set.left_out,
            auroc,
            recall: share(confusion.true_positives, confusion.false_negatives),
            fpr: share(confusion.false_positives, confusion.true_negatives),
        })
    }
}

fn logit(probability: f32) -> f64 {
    let p = f64::from(probability);
    (p / (1.0 - p)).ln()
}

/// Scores of the rows of one source, style or category: by fits that have seen others of the kind, and by one that has
/// not.
#[derive(Clone, Debug, Serialize)]
pub struct GroupScore {
    /// Its name.
    pub name: String,
    /// Harmful rows.
    pub harmful: usize,
    /// Benign rows.
    pub benign: usize,
    /// Scored out of fold.
    pub seen: Rates,
    /// Scored by a fit without any row of the group.
    pub unseen: Rates,
}

/// Numbers without intervals; groups are small.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Area under the ROC curve.
    pub auroc: Option<f64>,
    /// Share of the harmful at or above the threshold.
    pub recall: Option<f64>,
    /// Share of the benign at or above the threshold.
    pub fpr: Option<f64>,
}

impl Rates {
    fn new(logits: &[f64], labels: &[Verdict], threshold: f32) -> Self {
        let share = |verdict: Verdict| {
            let of_class: Vec<f64> =
                logits.iter().zip(labels).filter(|(_, l)| **l == verdict).map(|(&z, _)| z).collect();
            let hits = of_class.iter().filter(|&&z| sigmoid(z) as f32 >= threshold).count();
            (!of_class.is_empty()).then(|| hits as f64 / of_class.len() as f64)
        };
        Self { auroc: auroc(logits, labels), recall: share(Verdict::Harmful), fpr: share(Verdict::Benign) }
    }
}

/// A probe's scores when each group in turn is left out of the fit.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// What the groups are.
    pub by: &'static str,
    /// The groups.
    pub groups: Vec<GroupScore>,
    /// All rows together, out of fold.
    pub seen: Rates,
    /// All rows together, each scored by the fit without its group.
    pub unseen: Rates,
}

/// What an example is grouped by.
pub type Grouping = fn(&Example) -> Option<&str>;

/// By what rows are grouped.
pub const GROUPINGS: [(&str, Grouping); 3] = [
    ("source", |e| Some(&e.source)),
    ("style", |e| e.style.as_deref()),
    ("category", |e| e.category.as_deref()),
];

/// Leaves out each group of rows in turn; `None` where there are fewer than two.
///
/// # Errors
/// States can't be read.
pub fn leave_out(
    inputs: &mut Inputs,
    probe: &Probe,
    (by, group): (&'static str, Grouping),
) -> Result<Option<LeftOut>> {
    let cell = &probe.cell;
    let states = inputs.fit.states(&mut inputs.reader, cell.layer, cell.position)?;
    let labels = inputs.fit.labels();
    let width = inputs.reader.identity().width;
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, example) in inputs.fit.examples.iter().enumerate() {
        groups.entry(group(example).unwrap_or("none given")).or_default().push(row);
    }
    if groups.len() < 2 {
        return Ok(None);
    }
    let (slope, shift) = probe.calibration;
    let threshold = probe.threshold.value;
    let scored: Vec<(GroupScore, Vec<(usize, f64)>)> = groups
        .into_par_iter()
        .map(|(name, rows)| {
            let others: Vec<usize> =
                (0..labels.len()).filter(|row| rows.binary_search(row).is_err()).collect();
            let problem = Problem::new(&pick(&states, width, &others), &pick_labels(&labels, &others));
            let classifier = problem.fit(&cell.settings).calibrated(slope, shift);
            let unseen = wide_logits(&classifier, &pick(&states, width, &rows));
            let seen: Vec<f64> = rows.iter().map(|&row| probe.logits[row]).collect();
            let own = pick_labels(&labels, &rows);
            let harmful = own.iter().filter(|&&l| l == Verdict::Harmful).count();
            let score = GroupScore {
                name: name.to_owned(),
                harmful,
                benign: own.len() - harmful,
                seen: Rates::new(&seen, &own, threshold),
                unseen: Rates::new(&unseen, &own, threshold),
            };
            (score, rows.into_iter().zip(unseen).collect())
        })
        .collect();
    let mut unseen = vec![0.0; labels.len()];
    for &(row, logit) in scored.iter().flat_map(|(_, rows)| rows) {
        unseen[row] = logit;
    }
    Ok(Some(LeftOut {
        by,
        seen: Rates::new(&probe.logits, &labels, threshold),
        unseen: Rates::new(&unseen, &labels, threshold),
        groups: scored.into_iter().map(|(score, _)| score).collect(),
    }))
}
