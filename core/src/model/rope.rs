//! Rotary position embeddings: the angles of a batch's positions.

use candle_core::{DType, Device, Tensor};

use super::{ModelConfig, Result, config::RopeScaling};

/// Inverse frequencies, after scaling; length `head_dim / 2`.
pub(super) struct Rope {
    inverse: Vec<f32>,
}

impl ModelConfig {
    /// Angular frequencies of the rotary embedding, after scaling; length `head_dim / 2`.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let frequency = |i| {
            let f = 1.0 / self.rope_theta.powf(i as f64 / half as f64);
            match &self.rope_scaling {
                RopeScaling::None => f,
                RopeScaling::Linear(factor) => f / factor,
                RopeScaling::Factors(factors) => f / f64::from(factors.get(i).copied().unwrap_or(1.0)),
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    // Waves far shorter than the original context stay, far longer ones are stretched, and those
                    // between are blended.
                    let turns = original_context * f / std::f64::consts::TAU;
                    let blend = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let blend = blend.clamp(0.0, 1.0);
                    (1.0 - blend) * f / factor + blend * f
                }
            }
        };
        (0..half).map(|i| frequency(i) as f32).collect()
    }
}

impl Rope {
    pub(super) fn new(config: &ModelConfig) -> Self {
        Self { inverse: config.rope_frequencies() }
    }

    /// Cosines and sines for `positions`, each `[positions, head_dim / 2]`.
    pub(super) fn angles(
        &self,
        positions: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let shape = (positions.len(), self.inverse.len());
        let angles = positions.iter().flat_map(|&p| self.inverse.iter().map(move |f| p as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let tensor = |values| Tensor::from_vec(values, shape, device)?.to_dtype(dtype);
        Ok((tensor(cos)?, tensor(sin)?))
    }
}
