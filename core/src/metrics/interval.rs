//! How far a measured number can be trusted: bootstrap intervals for any metric, exact ones for a share.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use statrs::function::beta::beta_reg;

use super::{Scored, Summary, quantile};

/// A range that should hold the true value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How to draw a percentile bootstrap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// How many samples are drawn.
    pub samples: usize,
    /// Share of the samples that the interval holds, such as 0.95.
    pub level: f64,
    /// Seed of the draw: the same seed gives the same interval, on any number of threads.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 95% intervals of 1,000 samples.
    fn default() -> Self {
        Self { samples: 1000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The intervals of the table's numbers at `threshold`; `None` where the number itself is undefined.
    ///
    /// The draw is stratified: each sample has as many harmful and as many benign items as the data.
    pub fn intervals(&self, scored: &Scored, threshold: f64) -> Summary<Option<Interval>> {
        let of_class = |harmful| -> Vec<usize> {
            let items = scored.items.iter().enumerate();
            items.filter(|(_, item)| item.harmful == harmful).map(|(i, _)| i).collect()
        };
        let classes = [of_class(true), of_class(false)];
        let samples: Vec<_> = (0..self.samples as u64)
            .into_par_iter()
            .map(|sample| {
                // A generator for each sample, so that the result does not hang on who draws it.
                let mut rng = StdRng::seed_from_u64(self.seed ^ sample.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let mut weights = vec![0; scored.len()];
                for class in classes.iter().filter(|class| !class.is_empty()) {
                    for _ in 0..class.len() {
                        weights[class[rng.random_range(0..class.len())]] += 1;
                    }
                }
                scored.summary_weighted(threshold, |i| weights[i]).values()
            })
            .collect();
        let interval = |metric: usize| {
            let mut values: Vec<f64> = samples.iter().filter_map(|sample| sample[metric]).collect();
            let tail = (1.0 - self.level) / 2.0;
            Some(Interval { low: quantile(&mut values, tail)?, high: quantile(&mut values, 1.0 - tail)? })
        };
        Summary::from_values(std::array::from_fn(interval))
    }
}

/// The exact (Clopper-Pearson) interval of a share of which `hits` in `trials` were seen, at `level` such as 0.95.
/// `None` where nothing was tried, `hits` exceeds `trials`, or `level` is not between 0 and 1.
pub fn binomial_interval(hits: u64, trials: u64, level: f64) -> Option<Interval> {
    if trials == 0 || hits > trials || !(level > 0.0 && level < 1.0) {
        return None;
    }
    let tail = (1.0 - level) / 2.0;
    let (k, n) = (hits as f64, trials as f64);
    let low = if hits == 0 { 0.0 } else { beta_quantile(k, n - k + 1.0, tail) };
    Some(Interval { low, high: binomial_upper_bound(hits, trials, 1.0 - tail)? })
}

/// The exact (Clopper-Pearson) upper bound of a share of which `hits` in `trials` were seen: with this `confidence` it is no
/// higher. `None` as for [`binomial_interval`].
pub fn binomial_upper_bound(hits: u64, trials: u64, confidence: f64) -> Option<f64> {
    if trials == 0 || hits > trials || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let (k, n) = (hits as f64, trials as f64);
    Some(if hits == trials { 1.0 } else { beta_quantile(k + 1.0, n - k, confidence) })
}

/// Where the beta distribution's cumulative probability reaches `p`, by bisection: statrs' own inverse is off for
/// small shares of millions.
fn beta_quantile(a: f64, b: f64, p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    loop {
        let middle = (low + high) / 2.0;
        if middle <= low || middle >= high {
            return middle;
        }
        if beta_reg(a, b, middle) < p { low = middle } else { high = middle }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::scored, *};

    /// Expected: scipy 1.17.1, `beta.ppf(.025, k, n - k + 1)` and `beta.ppf(.975, k + 1, n - k)`.
    #[test]
    fn exact_intervals_agree_with_scipy() {
        fn check(hits: u64, trials: u64, low: f64, high: f64) {
            let got = binomial_interval(hits, trials, 0.95).unwrap();
            let near = (got.low - low).abs() <= 1e-6 * low && (got.high - high).abs() < 1e-6 * high;
            assert!(near, "{hits} of {trials}: {got:?} is not {low}, {high}");
        }
        check(0, 10, 0.0, 0.3084971078187607);
        check(10, 10, 0.6915028921812392, 1.0);
        check(3, 10, 0.06673951117773447, 0.6524528500599973);
        check(1, 1000, 2.531748749129404e-05, 0.005558924279826672);
        check(280, 300, 0.8989143547885917, 0.9588059837861013);
        check(0, 1, 0.0, 0.975);
        check(1, 2, 0.01257911709342505, 0.9874208829065749);
        check(5000, 10000, 0.4901513805899805, 0.5098486194100196);
        check(30, 100_000, 0.00020241760578305196, 0.00042824118644745957);
        check(0, 3_000_000, 0.0, 1.2296257287143092e-06);
        check(2_999_999, 3_000_000, 0.9999981427869514, 0.9999999915607307);
    }

    #[test]
    fn one_sided_bounds() {
        // The two-sided interval's end leaves half of what it leaves out.
        for (hits, trials) in [(0, 10), (3, 10), (30, 100_000)] {
            let two_sided = binomial_interval(hits, trials, 0.9).unwrap().high;
            assert_eq!(binomial_upper_bound(hits, trials, 0.95), Some(two_sided));
        }
        // Of one trial without a hit: the share p for which (1 - p) is 0.3.
        assert!((binomial_upper_bound(0, 1, 0.7).unwrap() - 0.7).abs() < 1e-12);
        assert_eq!(binomial_upper_bound(2, 2, 0.5), Some(1.0));
        assert_eq!(binomial_upper_bound(0, 0, 0.5), None);
    }

    #[test]
    fn no_trials_no_interval() {
        assert_eq!(binomial_interval(0, 0, 0.95), None);
        assert_eq!(binomial_interval(2, 1, 0.95), None);
        assert_eq!(binomial_interval(1, 2, 1.0), None);
        assert_eq!(binomial_interval(1, 2, f64::NAN), None);
    }

    #[test]
    fn bootstrap_covers_the_value_and_repeats() {
        // Two overlapping bands of 100 scores each.
        let band = |from: f64, label| (0..100).map(move |i| (from + f64::from(i) * 0.005, label));
        let scored = scored(&band(0.4, 1).chain(band(0.1, 0)).collect::<Vec<_>>());
        let bootstrap = Bootstrap::default();
        let intervals = bootstrap.intervals(&scored, 0.5);
        for (value, interval) in scored.summary(0.5).values().into_iter().zip(intervals.values()) {
            let (value, interval) = (value.unwrap(), interval.unwrap());
            assert!(interval.low < value && value < interval.high, "{value} {interval:?}");
            assert!(interval.high - interval.low < 0.25, "{interval:?}");
        }
        assert_eq!(bootstrap.intervals(&scored, 0.5), intervals);
        assert_ne!(Bootstrap { seed: 1, ..bootstrap }.intervals(&scored, 0.5), intervals);
        // Recall of 0.8 over 100: the percentile bootstrap is close to the exact interval.
        let (got, exact) = (intervals.recall.unwrap(), binomial_interval(80, 100, 0.95).unwrap());
        assert!(
            (got.low - exact.low).abs() < 0.03 && (got.high - exact.high).abs() < 0.03,
            "{got:?} {exact:?}"
        );
    }

    #[test]
    fn bootstrap_of_one_class() {
        let intervals = Bootstrap::default().intervals(&scored(&[(0.9, 1), (0.2, 1)]), 0.5);
        assert!(
            intervals.recall.is_some()
                && intervals.false_positive_rate.is_none()
                && intervals.auroc.is_none()
        );
    }
}
