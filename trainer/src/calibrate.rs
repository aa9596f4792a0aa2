//! Platt scaling of a guard's verdicts (Platt 1999): `P(harmful) = sigmoid(margin / temperature + bias)`, with both numbers
//! fitted to labelled rows by maximum likelihood.

use forethought_core::evidence::Verdict;
use forethought_core::guard::bundle::Calibration;
use forethought_core::metrics::Scored;
use serde::Serialize;

use crate::error::{Result, TrainError};

/// How well scores are calibrated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Expected calibration error over ten bins.
    pub ece: f64,
    /// Mean squared distance of score and truth.
    pub brier: f64,
}

/// A fitted calibration and what it changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The calibration.
    pub calibration: Calibration,
    /// Rows it was fitted to.
    pub rows: usize,
    /// With a temperature of 1 and no bias.
    pub before: Quality,
    /// With the calibration, on rows that it was not fitted to: ten folds of neighbouring rows, each scored by a fit to the
    /// other nine.
    pub after: Quality,
}

/// Undoes a calibration.
pub fn margin(score: f64, calibration: Calibration) -> f64 {
    // A score that was rounded to 0 or 1 has no margin; the nearest that has one stands for it.
    let score = score.clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON);
    ((score / (1.0 - score)).ln() - calibration.bias) * calibration.temperature
}

/// Folds of the quality after calibration.
const FOLDS: usize = 10;

/// Fits `(margin, label)` pairs.
///
/// # Errors
/// When one label is missing, or higher margins are no sign of harm: then no temperature makes probabilities of them.
pub fn fit(pairs: &[(f64, Verdict)]) -> Result<Fit> {
    let calibration = maximise(pairs)?;
    let quality = |scores: &[(f64, Verdict)]| -> Result<Quality> {
        let scored = Scored::new(scores.iter().copied())?;
        let undefined = || TrainError::Calibration("there are no rows".into());
        Ok(Quality {
            ece: scored.calibration_error(10).ok_or_else(undefined)?,
            brier: scored.brier().ok_or_else(undefined)?,
        })
    };
    let scores = |pairs: &[(f64, Verdict)], calibration: Calibration| -> Vec<(f64, Verdict)> {
        pairs.iter().map(|&(margin, label)| (calibration.probability(margin), label)).collect()
    };
    let mut held_out = Vec::new();
    for fold in 0..FOLDS {
        let part = fold * pairs.len() / FOLDS..(fold + 1) * pairs.len() / FOLDS;
        let rest = [&pairs[..part.start], &pairs[part.end..]].concat();
        held_out.extend(scores(&pairs[part], maximise(&rest)?));
    }
    let before = quality(&scores(pairs, Calibration::default()))?;
    Ok(Fit { calibration, rows: pairs.len(), before, after: quality(&held_out)? })
}

/// Newton's method on the two parameters, with Platt's targets, which keep separable data finite.
fn maximise(pairs: &[(f64, Verdict)]) -> Result<Calibration> {
    let harmful = pairs.iter().filter(|(_, label)| *label == Verdict::Harmful).count() as f64;
    let benign = pairs.len() as f64 - harmful;
    if harmful == 0.0 || benign == 0.0 {
        return Err(TrainError::Calibration("rows of both labels are needed".into()));
    }
    let target = |label| match label {
        Verdict::Harmful => (harmful + 1.0) / (harmful + 2.0),
        Verdict::Benign => 1.0 / (benign + 2.0),
    };
    let loss = |a: f64, b: f64| -> f64 {
        let nll = |&(margin, label): &(f64, Verdict)| {
            let z = a * margin + b;
            // log(1 + e^z) - t z, without overflow.
            z.max(0.0) + (-z.abs()).exp().ln_1p() - target(label) * z
        };
        pairs.iter().map(nll).sum()
    };
    let (mut a, mut b) = (0.0, ((harmful + 1.0) / (benign + 1.0)).ln());
    for _ in 0..100 {
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 1e-12, 0.0, 1e-12);
        for &(margin, label) in pairs {
            let p = 1.0 / (1.0 + (-(a * margin + b)).exp());
            let (error, curve) = (p - target(label), p * (1.0 - p));
            ga += error * margin;
            gb += error;
            haa += curve * margin * margin;
            hab += curve * margin;
            hbb += curve;
        }
        let determinant = haa * hbb - hab * hab;
        if ga.abs().max(gb.abs()) < 1e-9 || determinant <= 0.0 {
            break;
        }
        let (da, db) = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        let now = loss(a, b);
        let step = std::iter::successors(Some(1.0), |step| (*step > 1e-10).then_some(step / 2.0));
        match step.map(|step| (a - step * da, b - step * db)).find(|&(a, b)| loss(a, b) < now) {
            Some(next) => (a, b) = next,
            None => break,
        }
    }
    if a <= 0.0 || !a.is_finite() || !b.is_finite() {
        return Err(TrainError::Calibration("higher margins do not go with harmful rows".into()));
    }
    Ok(Calibration { temperature: 1.0 / a, bias: b })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs whose share of harmful rows at a margin is what `calibration` says.
    fn pairs(calibration: Calibration) -> Vec<(f64, Verdict)> {
        let mut pairs = Vec::new();
        for i in -20..=20 {
            let margin = f64::from(i) / 2.0;
            let harmful = (calibration.probability(margin) * 200.0).round() as usize;
            // Mixed, so that every fold holds both.
            pairs.extend((0..200).map(|k| {
                let label = if (k * 77) % 200 < harmful { Verdict::Harmful } else { Verdict::Benign };
                (k, margin, label)
            }));
        }
        pairs.sort_by_key(|&(k, ..)| k);
        pairs.into_iter().map(|(_, margin, label)| (margin, label)).collect()
    }

    #[test]
    fn a_known_calibration_is_found() {
        for expected in [
            Calibration { temperature: 2.0, bias: -1.0 },
            Calibration { temperature: 0.7, bias: 0.5 },
            Calibration::default(),
        ] {
            let fit = fit(&pairs(expected)).unwrap();
            assert!((fit.calibration.temperature / expected.temperature - 1.0).abs() < 0.02, "{fit:?}");
            assert!((fit.calibration.bias - expected.bias).abs() < 0.02, "{fit:?}");
            assert!(fit.after.ece < 0.02 && fit.after.ece <= fit.before.ece + 0.01, "{fit:?}");
            assert!((margin(expected.probability(3.0), expected) - 3.0).abs() < 1e-9);
        }
    }

    #[test]
    fn separable_rows_stay_finite() {
        let rows: Vec<_> = (0..40)
            .map(|i| if i % 2 == 0 { (5.0, Verdict::Harmful) } else { (-5.0, Verdict::Benign) })
            .collect();
        let found = fit(&rows).unwrap().calibration;
        assert!(found.probability(5.0) > 0.9 && found.probability(5.0) < 1.0);
        assert!(margin(1.0, found).is_finite() && margin(0.0, found).is_finite());
    }

    #[test]
    fn what_can_not_be_calibrated_is_said() {
        let error = |rows: &[(f64, Verdict)]| fit(rows).unwrap_err().to_string();
        assert!(error(&[(1.0, Verdict::Harmful)]).contains("both labels"));
        let wrong: Vec<_> = pairs(Calibration::default()).into_iter().map(|(m, l)| (-m, l)).collect();
        assert!(error(&wrong).contains("do not go with"));
    }
}
