//! How well scores tell harmful from benign: what `eval` prints and what the trainer watches.
//!
//! Harmful is the positive class. A metric that the data can't define (recall with nothing harmful, AUROC with one
//! class only) is `None`, never a number that looks like a result. Definitions are scikit-learn's.

mod interval;

use serde::{Deserialize, Serialize};

pub use interval::{Bootstrap, Interval, binomial_interval, binomial_upper_bound};

use crate::evidence::Verdict;

/// Why there are no metrics.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    /// A score that compares with nothing can't be ranked.
    #[error("score {index} (counted from 0) is not a number")]
    NotANumber {
        /// Its place in the input.
        index: usize,
    },
}

/// Counts of decisions at one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Harmful, and held to be.
    pub true_positives: u64,
    /// Benign, and held to be harmful.
    pub false_positives: u64,
    /// Benign, and held to be.
    pub true_negatives: u64,
    /// Harmful, and held to be benign.
    pub false_negatives: u64,
}

impl Confusion {
    /// Share of the harmful that was caught.
    pub fn recall(&self) -> Option<f64> {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    /// Share of the benign that was held to be harmful.
    pub fn false_positive_rate(&self) -> Option<f64> {
        ratio(self.false_positives, self.false_positives + self.true_negatives)
    }

    /// Share of what was held to be harmful that is. `None` where a class is missing, for it is 0 or 1 there whatever
    /// the scores are.
    pub fn precision(&self) -> Option<f64> {
        let both = self.harmful() > 0 && self.false_positives + self.true_negatives > 0;
        both.then(|| ratio(self.true_positives, self.true_positives + self.false_positives))?
    }

    /// Harmonic mean of precision and recall; 0 where nothing harmful was caught, `None` where nothing is harmful.
    pub fn f1(&self) -> Option<f64> {
        let wrong = self.false_positives + self.false_negatives;
        (self.harmful() > 0).then(|| ratio(2 * self.true_positives, 2 * self.true_positives + wrong))?
    }

    /// Share of right decisions.
    pub fn accuracy(&self) -> Option<f64> {
        let wrong = self.false_positives + self.false_negatives;
        let right = self.true_positives + self.true_negatives;
        ratio(right, right + wrong)
    }

    fn harmful(&self) -> u64 {
        self.true_positives + self.false_negatives
    }
}

/// One point of a ROC or precision-recall curve: what holds if everything from `threshold` on is called harmful.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The lowest score that is called harmful; infinite where nothing is.
    pub threshold: f64,
    /// Share of the benign that was called harmful.
    pub false_positive_rate: f64,
    /// Share of the harmful that was caught.
    pub recall: f64,
    /// Share of what was called harmful that is; 1 where nothing was.
    pub precision: f64,
}

/// The numbers a table shows for one set of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary<T> {
    /// Share of the harmful that was caught.
    pub recall: T,
    /// Share of the benign that was held to be harmful.
    pub false_positive_rate: T,
    /// Share of what was held to be harmful that is.
    pub precision: T,
    /// Harmonic mean of precision and recall.
    pub f1: T,
    /// Area under the ROC curve.
    pub auroc: T,
    /// Average precision.
    pub auprc: T,
}

impl<T> Summary<T> {
    /// The values in the order of the fields.
    pub fn values(self) -> [T; 6] {
        [self.recall, self.false_positive_rate, self.precision, self.f1, self.auroc, self.auprc]
    }

    /// The reverse of [`Self::values`].
    pub fn from_values(values: [T; 6]) -> Self {
        let [recall, false_positive_rate, precision, f1, auroc, auprc] = values;
        Self { recall, false_positive_rate, precision, f1, auroc, auprc }
    }
}

#[derive(Clone, Copy, Debug)]
struct Item {
    score: f64,
    harmful: bool,
}

/// Labelled scores, ready for every metric here.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// By falling score, so that a threshold is a prefix and every curve is one pass.
    items: Vec<Item>,
}

impl Scored {
    /// Takes `(score, label)` pairs in any order.
    ///
    /// # Errors
    /// [`MetricsError::NotANumber`] where a score is NaN. Infinite scores are fine: they rank.
    pub fn new(pairs: impl IntoIterator<Item = (f64, Verdict)>) -> Result<Self, MetricsError> {
        let mut items = Vec::new();
        for (index, (score, label)) in pairs.into_iter().enumerate() {
            if score.is_nan() {
                return Err(MetricsError::NotANumber { index });
            }
            items.push(Item { score, harmful: label == Verdict::Harmful });
        }
        items.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(Self { items })
    }

    /// How many scores there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many of them are harmful.
    pub fn harmful(&self) -> usize {
        self.items.iter().filter(|i| i.harmful).count()
    }

    /// Decisions where a score of at least `threshold` means harmful.
    pub fn confusion(&self, threshold: f64) -> Confusion {
        self.confusion_weighted(threshold, |_| 1)
    }

    /// Probability that a harmful one scores above a benign one; ties count half.
    pub fn auroc(&self) -> Option<f64> {
        self.areas(|_| 1).map(|(auroc, _)| auroc)
    }

    /// Average precision: precision at each threshold, weighted by the recall gained there.
    pub fn auprc(&self) -> Option<f64> {
        self.areas(|_| 1).map(|(_, auprc)| auprc)
    }

    /// The ROC and precision-recall curves in one: a point for each distinct score, from "nothing is harmful" to
    /// "everything is". Empty where a class is missing.
    pub fn curve(&self) -> Vec<CurvePoint> {
        let harmful = self.harmful() as f64;
        let benign = self.len() as f64 - harmful;
        if harmful == 0.0 || benign == 0.0 {
            return Vec::new();
        }
        let start =
            CurvePoint { threshold: f64::INFINITY, false_positive_rate: 0.0, recall: 0.0, precision: 1.0 };
        let mut points = vec![start];
        let (mut caught, mut wrong) = (0.0, 0.0);
        for tied in self.tie_groups() {
            for item in tied {
                if item.harmful { caught += 1.0 } else { wrong += 1.0 }
            }
            points.push(CurvePoint {
                threshold: tied[0].score,
                false_positive_rate: wrong / benign,
                recall: caught / harmful,
                precision: caught / (caught + wrong),
            });
        }
        points
    }

    /// Mean squared distance of score and truth; `None` where a score is no probability or there is none.
    pub fn brier(&self) -> Option<f64> {
        self.are_probabilities().then_some(())?;
        let truth = |i: &Item| f64::from(u8::from(i.harmful));
        let sum: f64 = self.items.iter().map(|i| (i.score - truth(i)).powi(2)).sum();
        Some(sum / self.len() as f64)
    }

    /// Expected calibration error over `bins` bins of equal width: the mean distance, weighted by the bins' sizes, of
    /// mean score and share of harmful. `None` where a score is no probability, or there is no score or no bin.
    pub fn calibration_error(&self, bins: usize) -> Option<f64> {
        (bins > 0 && self.are_probabilities()).then_some(())?;
        let mut excess = vec![0.0; bins]; // sum of (score - truth) in each bin
        for item in &self.items {
            let bin = ((item.score * bins as f64) as usize).min(bins - 1);
            excess[bin] += item.score - f64::from(u8::from(item.harmful));
        }
        Some(excess.iter().map(|e: &f64| e.abs()).sum::<f64>() / self.len() as f64)
    }

    /// The table's numbers at `threshold`.
    pub fn summary(&self, threshold: f64) -> Summary<Option<f64>> {
        self.summary_weighted(threshold, |_| 1)
    }

    /// The table's numbers if item `i` (by falling score) occurred `weight(i)` times.
    fn summary_weighted(&self, threshold: f64, weight: impl Fn(usize) -> u64 + Copy) -> Summary<Option<f64>> {
        let confusion = self.confusion_weighted(threshold, weight);
        let areas = self.areas(weight);
        Summary {
            recall: confusion.recall(),
            false_positive_rate: confusion.false_positive_rate(),
            precision: confusion.precision(),
            f1: confusion.f1(),
            auroc: areas.map(|(auroc, _)| auroc),
            auprc: areas.map(|(_, auprc)| auprc),
        }
    }

    fn confusion_weighted(&self, threshold: f64, weight: impl Fn(usize) -> u64) -> Confusion {
        let mut c = Confusion::default();
        for (i, item) in self.items.iter().enumerate() {
            let count = match (item.harmful, item.score >= threshold) {
                (true, true) => &mut c.true_positives,
                (false, true) => &mut c.false_positives,
                (false, false) => &mut c.true_negatives,
                (true, false) => &mut c.false_negatives,
            };
            *count += weight(i);
        }
        c
    }

    /// AUROC and average precision in one pass; `None` where a class is missing.
    fn areas(&self, weight: impl Fn(usize) -> u64) -> Option<(f64, f64)> {
        let (mut harmful, mut benign) = (0.0, 0.0);
        let (mut pairs, mut precision) = (0.0, 0.0);
        let mut i = 0;
        for tied in self.tie_groups() {
            let (mut more_harmful, mut more_benign) = (0.0, 0.0);
            for item in tied {
                let count = if item.harmful { &mut more_harmful } else { &mut more_benign };
                *count += weight(i) as f64;
                i += 1;
            }
            pairs += more_benign * (harmful + more_harmful / 2.0); // mid-ranks
            harmful += more_harmful;
            benign += more_benign;
            if more_harmful > 0.0 {
                precision += more_harmful * harmful / (harmful + benign);
            }
        }
        (harmful > 0.0 && benign > 0.0).then(|| (pairs / (harmful * benign), precision / harmful))
    }

    fn tie_groups(&self) -> impl Iterator<Item = &[Item]> {
        self.items.chunk_by(|a, b| a.score == b.score)
    }

    fn are_probabilities(&self) -> bool {
        !self.is_empty() && self.items.iter().all(|i| (0.0..=1.0).contains(&i.score))
    }
}

/// The value below which a share `q` of `values` lies, interpolated between neighbours; `None` without values.
/// `values` are sorted in place.
pub fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let place = q.clamp(0.0, 1.0) * values.len().checked_sub(1)? as f64;
    let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
    Some(if low == high { low } else { low + (high - low) * place.fract() })
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values in these tests are those of scikit-learn 1.9.1 on this data, where `y` is the label
    /// (1 harmful) and `s` the score: `confusion_matrix(y, s >= .5)`, `recall_score`, `precision_score`, `f1_score`,
    /// `roc_auc_score`, `average_precision_score`, `brier_score_loss`, `roc_curve(y, s, drop_intermediate=False)`,
    /// `precision_recall_curve`. Ties are in it on purpose.
    const DATA: [(f64, u8); 12] = [
        (0.9, 1),
        (0.8, 0),
        (0.8, 1),
        (0.7, 1),
        (0.6, 0),
        (0.5, 0),
        (0.5, 1),
        (0.4, 0),
        (0.3, 0),
        (0.3, 1),
        (0.1, 0),
        (0.05, 0),
    ];

    pub(super) fn scored(data: &[(f64, u8)]) -> Scored {
        let label = |y| if y == 1 { Verdict::Harmful } else { Verdict::Benign };
        Scored::new(data.iter().map(|&(s, y)| (s, label(y)))).unwrap()
    }

    fn close(got: impl Into<Option<f64>>, expected: f64) {
        let got = got.into().unwrap();
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let mut shuffled = DATA;
        shuffled.reverse();
        shuffled.swap(3, 9);
        for data in [DATA, shuffled] {
            let s = scored(&data);
            let confusion = s.confusion(0.5);
            let expected =
                Confusion { true_positives: 4, false_positives: 3, true_negatives: 4, false_negatives: 1 };
            assert_eq!(confusion, expected);
            close(confusion.recall(), 0.8);
            close(confusion.false_positive_rate(), 3.0 / 7.0);
            close(confusion.precision(), 0.5714285714285714);
            close(confusion.f1(), 0.6666666666666666);
            close(confusion.accuracy(), 0.6666666666666666);
            close(s.auroc(), 0.7571428571428571);
            close(s.auprc(), 0.6976190476190476);
            close(s.brier(), 0.199375);
            // No such function there; from numpy with the bin of a score as min(int(s * bins), bins - 1).
            close(s.calibration_error(5), 0.14583333333333334);
            close(s.calibration_error(10), 0.2125);
        }
    }

    #[test]
    fn curve_agrees_with_scikit_learn() {
        let rows = [
            (f64::INFINITY, 0.0, 0.0, 1.0),
            (0.9, 0.0, 0.2, 1.0),
            (0.8, 1.0 / 7.0, 0.4, 2.0 / 3.0),
            (0.7, 1.0 / 7.0, 0.6, 0.75),
            (0.6, 2.0 / 7.0, 0.6, 0.6),
            (0.5, 3.0 / 7.0, 0.8, 4.0 / 7.0),
            (0.4, 4.0 / 7.0, 0.8, 0.5),
            (0.3, 5.0 / 7.0, 1.0, 0.5),
            (0.1, 6.0 / 7.0, 1.0, 5.0 / 11.0),
            (0.05, 1.0, 1.0, 5.0 / 12.0),
        ];
        let curve = scored(&DATA).curve();
        assert_eq!(curve.len(), rows.len());
        for (point, (threshold, fpr, recall, precision)) in curve.into_iter().zip(rows) {
            assert_eq!(point.threshold, threshold);
            close(point.false_positive_rate, fpr);
            close(point.recall, recall);
            close(point.precision, precision);
        }
    }

    #[test]
    fn one_class_leaves_metrics_undefined() {
        let none = Summary::<Option<f64>>::default();
        assert_eq!(scored(&[]).summary(0.5), none);
        let harmful = scored(&[(0.9, 1), (0.1, 1)]);
        assert_eq!(harmful.summary(0.5), Summary { recall: Some(0.5), f1: Some(2.0 / 3.0), ..none });
        let benign = scored(&[(0.9, 0), (0.1, 0), (0.2, 0), (0.3, 0)]);
        assert_eq!(benign.summary(0.5), Summary { false_positive_rate: Some(0.25), ..none });
        assert!(benign.curve().is_empty());
        assert_eq!(scored(&[]).brier(), None);
        assert_eq!(scored(&[]).calibration_error(10), None);
    }

    #[test]
    fn odd_scores() {
        let pairs = [(0.5, Verdict::Benign), (f64::NAN, Verdict::Harmful)];
        assert_eq!(Scored::new(pairs).unwrap_err(), MetricsError::NotANumber { index: 1 });
        // Logits rank as well as probabilities do, but are no probabilities.
        let logits = scored(&[(f64::INFINITY, 1), (3.0, 1), (-2.0, 0), (f64::NEG_INFINITY, 0)]);
        assert_eq!((logits.auroc(), logits.brier(), logits.calibration_error(10)), (Some(1.0), None, None));
        // All tied: no better than chance.
        let tied = scored(&[(0.5, 1), (0.5, 0), (0.5, 0), (0.5, 1)]);
        assert_eq!((tied.auroc(), tied.auprc()), (Some(0.5), Some(0.5)));
        // Nothing is called harmful: no precision, and an F1 of 0, as scikit-learn has it.
        let summary = scored(&DATA).summary(2.0);
        assert_eq!((summary.recall, summary.precision, summary.f1), (Some(0.0), None, Some(0.0)));
        // The top of the scale belongs to the last bin.
        assert_eq!(scored(&[(1.0, 1), (0.0, 0)]).calibration_error(10), Some(0.0));
    }

    #[test]
    fn quantiles_are_numpys() {
        fn check(values: &[f64], q: f64, expected: Option<f64>) {
            assert_eq!(quantile(&mut values.to_vec(), q), expected, "{q} of {values:?}");
        }
        let values = [5.0, 1.0, 4.0, 2.0, 3.0, 10.0];
        check(&values, 0.5, Some(3.5));
        check(&values, 0.95, Some(8.75));
        check(&values, 0.0, Some(1.0));
        check(&values, 1.0, Some(10.0));
        check(&[7.0], 0.95, Some(7.0));
        check(&[], 0.5, None);
    }
}
