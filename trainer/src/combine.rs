//! One score out of a guard's signals: logistic regression over their log-odds, kept only where rows that it was not
//! fitted to rank better by it than by the best signal alone.

use std::collections::BTreeMap;

use forethought_core::evidence::Verdict;
use forethought_core::guard::bundle::Band;
use forethought_core::guard::combine::{self, Combination, logit};
use forethought_core::metrics::Scored;
use serde::Serialize;

use crate::error::{Result, TrainError};
use crate::probe::lbfgs::minimise;

/// Folds of neighbouring rows: neighbours are often a pair that differs in one point, and must not be parted.
const FOLDS: usize = 10;
/// Weight of the squared weights' sum beside the mean loss: signals agree with each other, and a few hundred rows don't
/// tell their weights apart.
const PENALTY: f64 = 1e-3;

/// A row's signals by name, and the truth.
#[derive(Clone, Debug)]
pub struct Signals {
    /// P(harmful) by each signal.
    pub scores: BTreeMap<String, f64>,
    /// The truth.
    pub label: Verdict,
}

/// A combination and what it is worth.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// Fitted to all rows.
    pub combination: Combination,
    /// Rows it was fitted to: those that have all its signals.
    pub rows: usize,
    /// AUROC of scores out of fold.
    pub auroc: f64,
    /// AUROC of the best signal alone on the same rows, and its name.
    pub best: (String, f64),
    /// Expected calibration error of scores out of fold, over ten bins.
    pub ece: f64,
    /// Scores out of fold, in the rows' order.
    #[serde(skip)]
    pub scores: Vec<(f64, Verdict)>,
}

impl Fit {
    /// Whether it ranks better than the best signal alone.
    pub fn is_better(&self) -> bool {
        self.auroc > self.best.1
    }
}

/// Fits a combination of the signals `names` to the rows that have all of them. A signal whose weight would be below zero is
/// left out: what says harmful must never make a conversation look more benign.
///
/// # Errors
/// When those rows lack one label, in all or in what is left without one of the folds, or no signal goes with harm.
pub fn fit(rows: &[Signals], names: &[String]) -> Result<Fit> {
    let whole: Vec<&Signals> =
        rows.iter().filter(|row| names.iter().all(|name| row.scores.contains_key(name))).collect();
    let mut names = names.to_vec();
    loop {
        let logits = |row: &&Signals| {
            let of = |name: &String| row.scores.get(name).map_or(0.0, |score| logit(*score));
            (names.iter().map(of).collect(), row.label)
        };
        let rows: Vec<(Vec<f64>, Verdict)> = whole.iter().map(logits).collect();
        let combination = solve(&rows, &names)?;
        let lowest = combination.weights.iter().min_by(|a, b| a.1.total_cmp(b.1));
        match lowest {
            Some((name, weight)) if *weight < 0.0 => names.retain(|other| other != name),
            Some(_) => return judged(combination, &rows, &names),
            None => return Err(TrainError::Calibration("no signal goes with harm".into())),
        }
    }
}

/// What a combination fitted to all `rows` is worth on each tenth of them when it is fitted to the others.
fn judged(combination: Combination, rows: &[(Vec<f64>, Verdict)], names: &[String]) -> Result<Fit> {
    let undefined = || TrainError::Calibration("rows of both labels are needed".into());
    let auroc = |pairs: &[(f64, Verdict)]| -> Result<f64> {
        Scored::new(pairs.iter().copied())?.auroc().ok_or_else(undefined)
    };
    let mut scores = Vec::new();
    for fold in 0..FOLDS {
        let part = fold * rows.len() / FOLDS..(fold + 1) * rows.len() / FOLDS;
        let rest = [&rows[..part.start], &rows[part.end..]].concat();
        let combination = solve(&rest, names)?;
        scores.extend(rows[part].iter().map(|(logits, label)| (score(&combination, names, logits), *label)));
    }
    let mut best: Option<(String, f64)> = None;
    for (i, name) in names.iter().enumerate() {
        let alone: Vec<_> = rows.iter().map(|(logits, label)| (logits[i], *label)).collect();
        let auroc = auroc(&alone)?;
        if best.as_ref().is_none_or(|(_, value)| auroc > *value) {
            best = Some((name.clone(), auroc));
        }
    }
    Ok(Fit {
        combination,
        rows: rows.len(),
        auroc: auroc(&scores)?,
        best: best.ok_or_else(|| TrainError::Calibration("there are no signals".into()))?,
        ece: Scored::new(scores.iter().copied())?.calibration_error(10).ok_or_else(undefined)?,
        scores,
    })
}

fn score(combination: &Combination, names: &[String], logits: &[f64]) -> f64 {
    let signals: Vec<_> =
        names.iter().zip(logits).map(|(name, z)| (name.as_str(), 1.0 / (1.0 + (-z).exp()))).collect();
    combine::combine([combination], &signals).map_or(f64::NAN, |(score, _)| score)
}

/// The weights with the highest penalised likelihood.
fn solve(rows: &[(Vec<f64>, Verdict)], names: &[String]) -> Result<Combination> {
    let harmful = rows.iter().filter(|(_, label)| *label == Verdict::Harmful).count();
    if harmful == 0 || harmful == rows.len() {
        return Err(TrainError::Calibration("rows of both labels are needed".into()));
    }
    let loss = |x: &[f64], gradient: &mut [f64]| -> f64 {
        let (bias, weights) = (x[0], &x[1..]);
        gradient[0] = 0.0;
        gradient[1..].iter_mut().zip(weights).for_each(|(g, w)| *g = 2.0 * PENALTY * w);
        let mut sum = PENALTY * weights.iter().map(|w| w * w).sum::<f64>();
        for (logits, label) in rows {
            let z = bias + logits.iter().zip(weights).map(|(z, w)| z * w).sum::<f64>();
            let target = f64::from(u8::from(*label == Verdict::Harmful));
            // log(1 + e^z) - t z, without overflow.
            sum += (z.max(0.0) + (-z.abs()).exp().ln_1p() - target * z) / rows.len() as f64;
            let error = (1.0 / (1.0 + (-z).exp()) - target) / rows.len() as f64;
            gradient[0] += error;
            gradient[1..].iter_mut().zip(logits).for_each(|(g, z)| *g += error * z);
        }
        sum
    };
    let found = minimise(loss, vec![0.0; names.len() + 1], 500, 1e-9);
    Ok(Combination {
        bias: found[0],
        weights: names.iter().cloned().zip(found[1..].iter().copied()).collect(),
    })
}

/// The widest parts of the scale that are clear: below the band at most the share `missed` of the harmful rows, from its
/// end on at most the share `flagged` of the benign.
pub fn band(scores: &[(f64, Verdict)], missed: f64, flagged: f64) -> Band {
    let of = |label: Verdict| -> Vec<f64> {
        let mut scores: Vec<f64> = scores.iter().filter(|(_, l)| *l == label).map(|(s, _)| *s).collect();
        scores.sort_by(f64::total_cmp);
        scores
    };
    let (harmful, benign) = (of(Verdict::Harmful), of(Verdict::Benign));
    let may_miss = (missed * harmful.len() as f64) as usize;
    let may_flag = (flagged * benign.len() as f64) as usize;
    // Strictly above the highest benign score that must not be flagged.
    let highest = benign.len().checked_sub(may_flag + 1).map_or(0.0, |i| benign[i].next_up());
    let harmful_from = highest.max(0.5);
    let benign_below = harmful.get(may_miss).copied().unwrap_or(1.0).min(harmful_from);
    Band { benign_below, harmful_from }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// Rows with two signals of their own noise, and one that is noise alone.
    fn rows() -> Vec<Signals> {
        let mut random = StdRng::seed_from_u64(7);
        let mut noisy = |truth: f64, noise: f64| {
            let sum: f64 = (0..12).map(|_| random.random::<f64>()).sum();
            1.0 / (1.0 + (-(truth + noise * (sum - 6.0))).exp())
        };
        let row = |i: usize| {
            let label = if i.is_multiple_of(2) { Verdict::Harmful } else { Verdict::Benign };
            let truth = if label == Verdict::Harmful { 1.0 } else { -1.0 };
            let scores = [("a", noisy(truth, 1.5)), ("b", noisy(truth, 1.5)), ("c", noisy(0.0, 1.0))];
            Signals { scores: scores.map(|(name, s)| (name.to_owned(), s)).into(), label }
        };
        (0..4000).map(row).collect()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn two_signals_are_better_than_one() {
        let fit = fit(&rows(), &names(&["a", "b"])).unwrap();
        assert!(fit.is_better() && fit.auroc > fit.best.1 + 0.03, "{:?}", fit.combination);
        let weights = &fit.combination.weights;
        // For such noise the best weights are 2 / 1.5^2 each.
        assert!((weights["a"] - 0.89).abs() < 0.2 && (weights["b"] - 0.89).abs() < 0.2, "{weights:?}");
        assert!(fit.ece < 0.06, "{:?}", fit.combination);
    }

    #[test]
    fn noise_adds_nothing() {
        let fit = fit(&rows(), &names(&["a", "c"])).unwrap();
        assert!(fit.combination.weights.get("c").is_none_or(|w| *w < 0.15), "{:?}", fit.combination);
        assert!((fit.auroc - fit.best.1).abs() < 0.01, "{:?}", fit.combination);
    }

    #[test]
    fn what_says_harmful_never_counts_as_benign() {
        let mut rows = rows();
        for row in &mut rows {
            let turned = row.scores["b"];
            row.scores.insert("b".into(), 1.0 - turned);
        }
        let fit = fit(&rows, &names(&["a", "b"])).unwrap();
        assert_eq!(fit.combination.weights.keys().collect::<Vec<_>>(), ["a"]);
        rows.iter_mut().for_each(|row| _ = row.scores.remove("a"));
        assert!(super::fit(&rows, &names(&["b"])).unwrap_err().to_string().contains("no signal"));
    }

    #[test]
    fn rows_without_a_signal_are_left_out() {
        let mut rows = rows();
        rows[..100].iter_mut().for_each(|row| _ = row.scores.remove("b"));
        assert_eq!(fit(&rows, &names(&["a", "b"])).unwrap().rows, 3900);
        rows.retain(|row| row.label == Verdict::Benign);
        assert!(fit(&rows, &names(&["a"])).unwrap_err().to_string().contains("both labels"));
    }

    #[test]
    fn bands_keep_to_their_shares() {
        let scores: Vec<(f64, Verdict)> = (0..100)
            .map(|i| {
                let label = if (i * 37) % 100 < i { Verdict::Harmful } else { Verdict::Benign };
                (f64::from(i) / 100.0, label)
            })
            .collect();
        let share = |label: Verdict, keep: &dyn Fn(f64) -> bool| {
            let all = scores.iter().filter(|(_, l)| *l == label).count() as f64;
            scores.iter().filter(|(s, l)| *l == label && keep(*s)).count() as f64 / all
        };
        for (missed, flagged) in [(0.0, 0.0), (0.05, 0.02), (0.2, 0.1)] {
            let band = band(&scores, missed, flagged);
            assert!(share(Verdict::Harmful, &|s| s < band.benign_below) <= missed, "{band:?}");
            assert!(share(Verdict::Benign, &|s| s >= band.harmful_from) <= flagged, "{band:?}");
            assert!(band.benign_below <= band.harmful_from);
        }
        let loose = band(&scores, 0.2, 0.1);
        let strict = band(&scores, 0.0, 0.0);
        assert!(loose.benign_below > strict.benign_below && loose.harmful_from < strict.harmful_from);
    }
}
