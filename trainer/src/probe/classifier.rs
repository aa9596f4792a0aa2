//! What is fitted: standardise, then logistic regression or a small network with one hidden layer, both with an L2
//! penalty and classes weighted to the same sum.

use forethought_core::evidence::Verdict;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::lbfgs::minimise;
use crate::ops::matmul::{Into, Mat, MatMut, matmul};

/// Stops a fit: the gradient's largest part, where the loss is a mean. f32 products resolve no more.
const TOLERANCE: f64 = 1e-5;

/// The family of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Logistic regression.
    Linear,
    /// One hidden layer with rectifiers.
    Mlp,
}

/// How to fit one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitSettings {
    /// Width of the hidden layer; 0 for logistic regression.
    pub hidden: usize,
    /// Inverse strength of the penalty, as scikit-learn counts it.
    pub c: f64,
    /// Seed of a hidden layer's start.
    pub seed: u64,
}

impl FitSettings {
    /// The family.
    pub fn kind(&self) -> Kind {
        if self.hidden == 0 { Kind::Linear } else { Kind::Mlp }
    }
}

/// A dense layer: `y = x W + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// `[inputs, outputs]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// A fitted classifier: a state's values in, a logit out.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// Subtracted from the state, `[width]`.
    pub mean: Vec<f32>,
    /// Then multiplied with it, `[width]`: the inverse standard deviations, 0 where a value never changes.
    pub scale: Vec<f32>,
    /// The hidden layer, if there is one.
    pub hidden: Option<Dense>,
    /// One output.
    pub output: Dense,
}

impl Classifier {
    /// Logits of states `[rows, width]`.
    pub fn logits(&self, states: &[f32]) -> Vec<f32> {
        let x = standardised(states, &self.mean, &self.scale);
        let Some(hidden) = &self.hidden else { return self.output.forward(&x, self.mean.len()) };
        let mut h = hidden.forward(&x, self.mean.len());
        h.iter_mut().for_each(|v| *v = v.max(0.0));
        self.output.forward(&h, hidden.bias.len())
    }

    /// P(harmful) of states `[rows, width]`.
    pub fn probabilities(&self, states: &[f32]) -> Vec<f32> {
        self.logits(states).into_iter().map(|z| sigmoid(f64::from(z)) as f32).collect()
    }

    /// The same with logits `slope * logit + shift`.
    #[must_use]
    pub fn calibrated(mut self, slope: f64, shift: f64) -> Self {
        let Dense { weight, bias } = &mut self.output;
        weight.iter_mut().for_each(|w| *w = (f64::from(*w) * slope) as f32);
        bias.iter_mut().for_each(|b| *b = (f64::from(*b) * slope + shift) as f32);
        self
    }
}

impl Dense {
    fn forward(&self, x: &[f32], inputs: usize) -> Vec<f32> {
        let outputs = self.bias.len();
        let mut y = self.bias.repeat(x.len() / inputs);
        let (x, weight) = (Mat::new(x, inputs), Mat::new(&self.weight, outputs));
        matmul(MatMut::new(&mut y, outputs), Into::Add, 1.0, x, weight);
        y
    }
}

/// Labelled states, standardised, ready to be fitted with several settings.
pub struct Problem {
    width: usize,
    mean: Vec<f32>,
    scale: Vec<f32>,
    /// `[rows, width]`.
    x: Vec<f32>,
    /// For each row 1 for harmful, 0 for benign, and its share of the loss: each class has one half.
    targets: Vec<(f64, f64)>,
}

impl Problem {
    /// Takes states `[rows, width]` and their labels; both labels must be there.
    pub fn new(states: &[f32], labels: &[Verdict]) -> Self {
        let width = states.len() / labels.len().max(1);
        let (mean, scale) = moments(states, width);
        Self { width, x: standardised(states, &mean, &scale), mean, scale, targets: balanced(labels) }
    }

    /// Fits a classifier.
    pub fn fit(&self, settings: &FitSettings) -> Classifier {
        self.classifier(settings.hidden, &self.solve(settings, None))
    }

    /// Fits several. Logistic regression starts where the one before it ended.
    pub fn fits(&self, settings: &[FitSettings]) -> Vec<Classifier> {
        let mut last: Option<Vec<f64>> = None;
        let fit = |settings: &FitSettings| {
            let solved = self.solve(settings, last.take().filter(|_| settings.kind() == Kind::Linear));
            let classifier = self.classifier(settings.hidden, &solved);
            last = (settings.kind() == Kind::Linear).then_some(solved);
            classifier
        };
        settings.iter().map(fit).collect()
    }

    fn solve(&self, settings: &FitSettings, start: Option<Vec<f64>>) -> Vec<f64> {
        let hidden = settings.hidden;
        let start = start.unwrap_or_else(|| match hidden {
            0 => vec![0.0; self.width + 1],
            _ => self.random_start(settings),
        });
        let penalty = 1.0 / (settings.c * self.targets.len() as f64);
        let mut buffers = Buffers::default();
        let loss = |p: &[f64], g: &mut [f64]| match hidden {
            0 => self.linear_loss(p, g, penalty, &mut buffers),
            _ => self.mlp_loss(p, g, hidden, penalty, &mut buffers),
        };
        minimise(loss, start, if hidden == 0 { 400 } else { 200 }, TOLERANCE)
    }

    /// Parameters `[width, hidden] [hidden] [hidden] [1]`, the weights uniform within He's bound.
    fn random_start(&self, FitSettings { hidden, seed, .. }: &FitSettings) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(*seed);
        let mut draw = |count: usize, inputs: usize| -> Vec<f64> {
            let bound = (6.0 / inputs as f64).sqrt();
            (0..count).map(|_| rng.random_range(-bound..bound)).collect()
        };
        let (first, second) = (draw(self.width * hidden, self.width), draw(*hidden, *hidden));
        [first, vec![0.0; *hidden], second, vec![0.0]].concat()
    }

    /// Parameters `[width] [1]`.
    fn linear_loss(&self, p: &[f64], g: &mut [f64], penalty: f64, b: &mut Buffers) -> f64 {
        let (weight, bias) = p.split_at(self.width);
        b.first = narrow(weight);
        b.logits = vec![bias[0] as f32; self.targets.len()];
        let x = Mat::new(&self.x, self.width);
        matmul(MatMut::new(&mut b.logits, 1), Into::Add, 1.0, x, Mat::new(&b.first, 1));
        let loss = self.logistic_loss(b);
        b.gradient = vec![0.0; self.width];
        matmul(MatMut::new(&mut b.gradient, 1), Into::Replace, 1.0, x.t(), Mat::new(&b.slopes, 1));
        widen(&b.gradient, &mut g[..self.width]);
        g[self.width] = b.slopes.iter().map(|&s| f64::from(s)).sum();
        loss + shrink(weight, &mut g[..self.width], penalty)
    }

    fn mlp_loss(&self, p: &[f64], g: &mut [f64], hidden: usize, penalty: f64, b: &mut Buffers) -> f64 {
        let (first, rest) = p.split_at(self.width * hidden);
        let (first_bias, rest) = rest.split_at(hidden);
        let (second, bias) = rest.split_at(hidden);
        let rows = self.targets.len();
        b.first = narrow(first);
        let second32 = narrow(second);
        let x = Mat::new(&self.x, self.width);
        b.hidden = narrow(first_bias).repeat(rows); // [rows, hidden]
        matmul(MatMut::new(&mut b.hidden, hidden), Into::Add, 1.0, x, Mat::new(&b.first, hidden));
        b.hidden.iter_mut().for_each(|v| *v = v.max(0.0));
        b.logits = vec![bias[0] as f32; rows];
        let h = Mat::new(&b.hidden, hidden);
        matmul(MatMut::new(&mut b.logits, 1), Into::Add, 1.0, h, Mat::new(&second32, 1));
        let loss = self.logistic_loss(b);

        let (g_first, g_rest) = g.split_at_mut(first.len());
        let (g_first_bias, g_rest) = g_rest.split_at_mut(hidden);
        let (g_second, g_bias) = g_rest.split_at_mut(hidden);
        g_first_bias.fill(0.0);
        g_second.fill(0.0);
        for (h, &slope) in b.hidden.chunks_exact_mut(hidden).zip(&b.slopes) {
            for (j, h) in h.iter_mut().enumerate() {
                g_second[j] += f64::from(*h * slope);
                *h = if *h > 0.0 { slope * second32[j] } else { 0.0 }; // now the slope of the sum before the rectifier
                g_first_bias[j] += f64::from(*h);
            }
        }
        g_bias[0] = b.slopes.iter().map(|&s| f64::from(s)).sum();
        b.gradient = vec![0.0; first.len()];
        let slopes = Mat::new(&b.hidden, hidden);
        matmul(MatMut::new(&mut b.gradient, hidden), Into::Replace, 1.0, x.t(), slopes);
        widen(&b.gradient, g_first);
        loss + shrink(first, g_first, penalty) + shrink(second, g_second, penalty)
    }

    /// The weighted loss of `logits`, and its slope with respect to each.
    fn logistic_loss(&self, Buffers { logits, slopes, .. }: &mut Buffers) -> f64 {
        slopes.clear();
        let loss = logits.iter().zip(&self.targets).map(|(&z, &(truth, weight))| {
            let z = f64::from(z);
            slopes.push((weight * (sigmoid(z) - truth)) as f32);
            weight * (softplus(z) - truth * z)
        });
        loss.sum()
    }

    fn classifier(&self, hidden: usize, p: &[f64]) -> Classifier {
        let p = narrow(p);
        let (first, output) = p.split_at(if hidden == 0 { 0 } else { (self.width + 1) * hidden });
        let dense = |part: &[f32], outputs: usize| {
            let (weight, bias) = part.split_at(part.len() - outputs);
            Dense { weight: weight.to_vec(), bias: bias.to_vec() }
        };
        Classifier {
            mean: self.mean.clone(),
            scale: self.scale.clone(),
            hidden: (hidden > 0).then(|| dense(first, hidden)),
            output: dense(output, 1),
        }
    }
}

#[derive(Default)]
struct Buffers {
    first: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
    slopes: Vec<f32>,
    gradient: Vec<f32>,
}

/// Platt scaling: `(slope, shift)` such that `sigmoid(slope * logit + shift)` is P(harmful) where both classes are
/// equally likely. Targets are Platt's, a little inside of 0 and 1, so that perfect separation has an answer too.
pub fn platt(logits: &[f64], labels: &[Verdict]) -> (f64, f64) {
    let targets = balanced(labels);
    let count = |verdict| labels.iter().filter(|&&label| label == verdict).count() as f64;
    let harmful = (count(Verdict::Harmful) + 1.0) / (count(Verdict::Harmful) + 2.0);
    let benign = 1.0 / (count(Verdict::Benign) + 2.0);
    let loss = |p: &[f64], g: &mut [f64]| {
        g.fill(0.0);
        let loss = logits.iter().zip(&targets).map(|(&logit, &(truth, weight))| {
            let (z, truth) = (p[0] * logit + p[1], if truth > 0.0 { harmful } else { benign });
            let slope = weight * (sigmoid(z) - truth);
            g[0] += slope * logit;
            g[1] += slope;
            weight * (softplus(z) - truth * z)
        });
        loss.sum()
    };
    let found = minimise(loss, vec![1.0, 0.0], 200, 1e-9);
    (found[0], found[1])
}

/// For each label its truth (1 for harmful) and its weight: each class has one half.
fn balanced(labels: &[Verdict]) -> Vec<(f64, f64)> {
    let harmful = labels.iter().filter(|&&label| label == Verdict::Harmful).count();
    let weight = |count: usize| 0.5 / count.max(1) as f64;
    let (of_harmful, of_benign) = (weight(harmful), weight(labels.len() - harmful));
    let target = |label: &Verdict| match label {
        Verdict::Harmful => (1.0, of_harmful),
        Verdict::Benign => (0.0, of_benign),
    };
    labels.iter().map(target).collect()
}

/// Mean and inverse standard deviation of each column.
fn moments(states: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = states.len() as f64 / width as f64;
    let mut mean = vec![0.0; width];
    for row in states.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) / rows);
    }
    let mut variance = vec![0.0; width];
    for row in states.chunks_exact(width) {
        let parts = variance.iter_mut().zip(row).zip(&mean);
        parts.for_each(|((sum, &v), mean)| *sum += (f64::from(v) - mean).powi(2) / rows);
    }
    let scale = variance.iter().map(|v: &f64| if *v > 1e-12 { (1.0 / v.sqrt()) as f32 } else { 0.0 });
    (narrow(&mean), scale.collect())
}

fn standardised(states: &[f32], mean: &[f32], scale: &[f32]) -> Vec<f32> {
    let rows = states.chunks_exact(mean.len());
    rows.flat_map(|row| row.iter().zip(mean).zip(scale).map(|((v, m), s)| (v - m) * s)).collect()
}

/// Adds the penalty's gradient and returns its value.
fn shrink(weight: &[f64], gradient: &mut [f64], penalty: f64) -> f64 {
    gradient.iter_mut().zip(weight).for_each(|(g, w)| *g += penalty * w);
    penalty / 2.0 * weight.iter().map(|w| w * w).sum::<f64>()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn widen(from: &[f32], to: &mut [f64]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = f64::from(from));
}

/// `1 / (1 + e^-z)`.
pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// `ln(1 + e^z)`, without overflow.
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four columns of very different scales, by a rule that Python can follow.
    fn data() -> (Vec<f32>, Vec<Verdict>) {
        let value = |i: usize, j: usize| {
            ((i * (7 + 2 * j) + i * i * (3 + j) + 5 * j) % 23) as f64 / 23.0 * 10f64.powi(j as i32 - 1)
        };
        let states = (0..60).flat_map(|i| (0..4).map(move |j| value(i, j) as f32)).collect();
        let labels = "010011001000100100110000000001001000010000000001000101100010".chars();
        let label = |c| if c == '1' { Verdict::Harmful } else { Verdict::Benign };
        (states, labels.map(label).collect())
    }

    /// Expected: scikit-learn 1.9.1, `LogisticRegression(C=C, class_weight="balanced", tol=1e-10)` on
    /// `StandardScaler().fit_transform(states)`.
    #[test]
    fn logistic_regression_agrees_with_scikit_learn() {
        fn check(c: f64, weight: [f32; 4], bias: f32) {
            let (states, labels) = data();
            let problem = Problem::new(&states, &labels);
            let settings = [1e-3, c].map(|c| FitSettings { hidden: 0, c, seed: 0 });
            for found in [problem.fit(&settings[1]), problem.fits(&settings).remove(1)] {
                let pairs = found.output.weight.iter().zip(&weight).chain([(&found.output.bias[0], &bias)]);
                for (found, expected) in pairs {
                    assert!((found - expected).abs() < 1e-3, "C = {c}: {found} is not {expected}");
                }
            }
        }
        check(0.01, [0.101_940_22, 0.061_713_38, -0.048_178_63, -0.025_629_092], -0.030_044_446);
        check(1.0, [1.334_222_4, 1.047_357_1, -0.195_792_26, -0.207_529_9], -0.474_832_13);
    }

    #[test]
    fn a_network_learns_what_no_line_divides() {
        // Harmful where both values have the same sign; the third never changes.
        let points =
            (0..400).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0, (i * 53 % 97) as f32 / 48.0 - 1.0));
        let states: Vec<f32> = points.clone().flat_map(|(a, b)| [a, b, 7.0]).collect();
        let same = |(a, b): (f32, f32)| if a * b > 0.0 { Verdict::Harmful } else { Verdict::Benign };
        let labels: Vec<Verdict> = points.map(same).collect();
        let right = |hidden: usize| {
            let settings = FitSettings { hidden, c: 10.0, seed: 3 };
            let classifier = Problem::new(&states, &labels).fit(&settings);
            assert_eq!(
                classifier,
                Problem::new(&states, &labels).fit(&settings),
                "another fit, another result"
            );
            let found = classifier.probabilities(&states);
            found.iter().zip(&labels).filter(|(p, l)| (**p > 0.5) == (**l == Verdict::Harmful)).count()
        };
        assert!(right(0) < 260, "{}", right(0));
        assert!(right(8) > 380, "{}", right(8));
    }

    #[test]
    fn gradients_are_those_of_the_loss() {
        let (states, labels) = data();
        let problem = Problem::new(&states, &labels);
        for hidden in [0, 3] {
            let settings = FitSettings { hidden, c: 0.5, seed: 1 };
            let loss = |p: &[f64], g: &mut [f64]| match hidden {
                0 => problem.linear_loss(p, g, 0.1, &mut Buffers::default()),
                _ => problem.mlp_loss(p, g, hidden, 0.1, &mut Buffers::default()),
            };
            let p = if hidden == 0 { vec![0.3; 5] } else { problem.random_start(&settings) };
            let mut gradient = vec![0.0; p.len()];
            loss(&p, &mut gradient);
            for i in 0..p.len() {
                let at = |by: f64| {
                    let mut p = p.clone();
                    p[i] += by;
                    loss(&p, &mut vec![0.0; p.len()])
                };
                let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
                assert!((slope - gradient[i]).abs() < 1e-3, "{hidden} {i}: {slope} is not {}", gradient[i]);
            }
        }
    }

    #[test]
    fn calibration_finds_the_odds() {
        // Of those with logit 1, three in four are harmful; of those with -1, one in four.
        let harmful = |i: usize| !i.is_multiple_of(4);
        let logits: Vec<f64> = (0..2000).map(|i| if i < 1000 { 1.0 } else { -1.0 }).collect();
        let label = |i: usize| if harmful(i) == (i < 1000) { Verdict::Harmful } else { Verdict::Benign };
        let labels: Vec<Verdict> = (0..2000).map(label).collect();
        let (slope, shift) = platt(&logits, &labels);
        assert!((slope - 3f64.ln()).abs() < 0.02 && shift.abs() < 0.02, "{slope} {shift}");
        // Perfect separation has an answer too.
        let (slope, shift) =
            platt(&[2.0, 1.0, -1.0, -3.0], &[0, 0, 1, 1].map(|i| [Verdict::Harmful, Verdict::Benign][i]));
        assert!(slope > 0.0 && slope.is_finite() && shift.is_finite());
    }
}
