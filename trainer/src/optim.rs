//! AdamW with decoupled weight decay (arXiv 1711.05101), and clipping by the global norm, as PyTorch computes them.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// AdamW's constants; the learning rate comes from a [`Schedule`](crate::schedule::Schedule).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
    /// Each step shrinks all values by `rate * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 1e-4 }
    }
}

/// The optimizer's state.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Running mean of the gradients.
    pub mean: Vec<f32>,
    /// Running mean of their squares.
    pub square: Vec<f32>,
    /// Steps taken.
    pub steps: u64,
}

/// Values that one task updates: enough that handing out tasks costs nothing.
const CHUNK: usize = 1 << 15;

impl AdamW {
    /// The state before the first step, for this many values.
    pub fn new(len: usize) -> Self {
        Self { mean: vec![0.0; len], square: vec![0.0; len], steps: 0 }
    }

    /// Moves `values` against `scale * grads` at a learning rate.
    pub fn step(&mut self, config: &AdamConfig, rate: f64, values: &mut [f32], grads: &[f32], scale: f32) {
        self.steps += 1;
        let steps = self.steps as f64;
        let keep = (1.0 - rate * config.weight_decay) as f32;
        let (beta1, beta2) = (config.beta1 as f32, config.beta2 as f32);
        let size = (rate / (1.0 - config.beta1.powf(steps))) as f32;
        let root = (1.0 - config.beta2.powf(steps)).sqrt() as f32;
        let epsilon = config.epsilon as f32;
        let chunks = values.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK));
        let moments = self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK));
        chunks.zip(moments).for_each(|((values, grads), (mean, square))| {
            for (((value, grad), mean), square) in values.iter_mut().zip(grads).zip(mean).zip(square) {
                let grad = grad * scale;
                *mean = beta1 * *mean + (1.0 - beta1) * grad;
                *square = beta2 * *square + (1.0 - beta2) * grad * grad;
                *value = *value * keep - size * *mean / (square.sqrt() / root + epsilon);
            }
        });
    }
}

/// The gradients' Euclidean norm, summed in a fixed order.
pub fn norm(grads: &[f32]) -> f64 {
    let square = |chunk: &[f32]| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let sums: Vec<f64> = grads.par_chunks(CHUNK).map(square).collect();
    sums.iter().sum::<f64>().sqrt()
}

/// The factor that brings gradients of norm `norm` down to `limit`; 1 where they are below, or without a limit.
pub fn clip_factor(norm: f64, limit: Option<f64>) -> f32 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_torch() {
        // torch.optim.AdamW(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1) after clip_grad_norm_(1.0), three steps.
        let expected: [(f64, [f32; 4]); 3] = [
            (2.002_498_6, [0.489_500_02, -0.989, 1.998, -0.009_999_8]),
            (2.009_975_4, [0.479_426_44, -0.978_011_6, 1.996_002_1, -0.019_989_079]),
            (2.022_375_1, [0.469_492_1, -0.967_035_4, 1.994_006_2, -0.029_967_021]),
        ];
        let config = AdamConfig { weight_decay: 0.1, ..AdamConfig::default() };
        let mut values = [0.5, -1.0, 2.0, 0.0];
        let mut adam = AdamW::new(4);
        for (i, (expected_norm, expected)) in expected.into_iter().enumerate() {
            let grads = [0.1 * (i + 1) as f32, -2.0, 0.0, 1e-3];
            let norm = norm(&grads);
            assert!((norm - expected_norm).abs() < 1e-6);
            adam.step(&config, 0.01, &mut values, &grads, clip_factor(norm, Some(1.0)));
            for (value, expected) in values.iter().zip(expected) {
                assert!((value - expected).abs() < 3e-7, "step {i}: {values:?}");
            }
        }
    }

    #[test]
    fn small_gradients_are_not_clipped() {
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_factor(5.0, None), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
    }
}
