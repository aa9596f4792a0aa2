//! One score out of several signals: a logistic model over their logits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A combination of the signals that it has weights for:
/// `P(harmful) = sigmoid(bias + sum of weight * logit(signal))`.
///
/// Signals are the guard's probes by name, `direct` and `reason` (the verdicts before and after the phases).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Combination {
    /// Added to the sum.
    pub bias: f64,
    /// By signal.
    pub weights: BTreeMap<String, f64>,
}

/// The verdict with no phases.
pub const DIRECT: &str = "direct";
/// The verdict after the phases.
pub const REASON: &str = "reason";

/// A signal's name and P(harmful).
pub type Signal<'a> = (&'a str, f64);

/// P(harmful) by the combination that uses most of `signals`, and that combination; `None` where each of them needs one
/// that is not there. Of two that use equally many, the earlier counts.
pub fn combine<'a>(
    combinations: impl IntoIterator<Item = &'a Combination>,
    signals: &[Signal<'_>],
) -> Option<(f64, &'a Combination)> {
    let value = |name: &str| signals.iter().find(|(signal, _)| *signal == name).map(|(_, score)| *score);
    let usable = combinations.into_iter().filter(|c| c.weights.keys().all(|name| value(name).is_some()));
    let best =
        usable.reduce(|best, next| if next.weights.len() > best.weights.len() { next } else { best })?;
    let term = |(name, weight): (&String, &f64)| weight * value(name).map_or(0.0, logit);
    let sum: f64 = best.bias + best.weights.iter().map(term).sum::<f64>();
    Some((1.0 / (1.0 + (-sum).exp()), best))
}

/// The log-odds of a probability, kept finite: a signal that is certain is not more certain than one in a million.
pub fn logit(probability: f64) -> f64 {
    let p = probability.clamp(1e-6, 1.0 - 1e-6);
    (p / (1.0 - p)).ln()
}

/// What is wrong with a bundle's combinations, if anything.
pub(super) fn problem(combinations: &[Combination]) -> Option<String> {
    for (index, one) in combinations.iter().enumerate() {
        if one.weights.is_empty() {
            return Some("an entry has no weights".to_owned());
        }
        if !one.bias.is_finite() || one.weights.values().any(|weight| !weight.is_finite()) {
            return Some("a number is not finite".to_owned());
        }
        if combinations[..index].iter().any(|other| other.weights.keys().eq(one.weights.keys())) {
            let names: Vec<&str> = one.weights.keys().map(String::as_str).collect();
            return Some(format!("two entries are for the signals {}", names.join(", ")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bias: f64, weights: &[(&str, f64)]) -> Combination {
        Combination { bias, weights: weights.iter().map(|&(name, w)| (name.to_owned(), w)).collect() }
    }

    #[test]
    fn the_combination_with_most_signals_counts() {
        let all = [
            one(0.0, &[("a", 1.0)]),
            one(0.5, &[("a", 2.0), ("b", -1.0)]),
            one(0.0, &[("a", 1.0), (DIRECT, 1.0), (REASON, 1.0)]),
        ];
        #[track_caller]
        fn check(all: &[Combination], signals: &[Signal<'_>], expected: Option<(f64, usize)>) {
            let found = combine(all, signals);
            assert_eq!(found.map(|(_, c)| c.weights.len()), expected.map(|(_, n)| n));
            if let Some(((score, _), (wanted, _))) = found.zip(expected) {
                assert!((score - wanted).abs() < 1e-9, "{score} {wanted}");
            }
        }
        check(&all, &[(DIRECT, 0.9)], None);
        check(&[], &[("a", 0.9)], None);
        check(&all, &[("a", 0.8), (DIRECT, 0.1)], Some((0.8, 1)));
        // logit(0.8) = ln 4, logit(0.5) = 0: sigmoid(0.5 + 2 ln 4) = 16 e^0.5 / (1 + 16 e^0.5).
        let odds = 16.0 * 0.5f64.exp();
        check(&all, &[("b", 0.5), ("a", 0.8)], Some((odds / (1.0 + odds), 2)));
        // Odds multiply: 4 * 1/4 * 9 = 9.
        check(&all, &[("a", 0.8), ("b", 0.5), (DIRECT, 0.2), (REASON, 0.9)], Some((0.9, 3)));
        // Certainty has its limits, and they cancel.
        check(&all, &[("a", 1.0), (DIRECT, 0.0), (REASON, 0.5)], Some((0.5, 3)));
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(all: &[Combination], expected: Option<&str>) {
            assert_eq!(problem(all).as_deref(), expected);
        }
        check(&[one(0.0, &[("a", 1.0)]), one(0.0, &[("b", 1.0)])], None);
        check(&[one(0.0, &[])], Some("an entry has no weights"));
        check(&[one(f64::NAN, &[("a", 1.0)])], Some("a number is not finite"));
        check(
            &[one(0.0, &[("a", 1.0), ("b", 0.0)]), one(1.0, &[("b", 2.0), ("a", 1.0)])],
            Some("two entries are for the signals a, b"),
        );
    }
}
