//! The frozen base model: a decoder of Llama's shape, as Llama, Qwen2, Qwen3 and SmolLM2 have it.

use crate::error::{Result, TrainError};
use crate::ops::attention::Heads;
use crate::ops::linear::Linear;
use crate::ops::weight::Frozen;

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Dimensions {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: Heads,
    /// Width of the MLP.
    pub mlp: usize,
    /// Rows of the embedding and of the head.
    pub vocabulary: usize,
    /// RMSNorm's epsilon.
    pub norm_eps: f32,
    /// Angular frequencies of the rotary embedding, half a head of them, any long-context scaling included.
    pub rope_frequencies: Vec<f32>,
}

/// RMSNorm weights of queries and keys, `[head_dim]` each, as Qwen3 has them.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// For every query head.
    pub query: Vec<f32>,
    /// For every key head.
    pub key: Vec<f32>,
}

/// One block. Rows of the query and key weights are in Hugging Face's order (half rotation), not GGUF's.
#[derive(Clone, Debug)]
pub struct FrozenBlock {
    /// RMSNorm before the attention, `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values stacked, `[heads.width(), hidden]`.
    pub qkv: Linear,
    /// Norm of each query and key head, before the rotary embedding.
    pub qk_norm: Option<QkNorm>,
    /// `[hidden, heads.query_width()]`.
    pub output: Linear,
    /// RMSNorm before the MLP, `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// Gate and up stacked, `[2 * mlp, hidden]`.
    pub gate_up: Linear,
    /// `[hidden, mlp]`.
    pub down: Linear,
}

/// A base model. Nothing in it is ever written to.
#[derive(Clone, Debug)]
pub struct FrozenModel {
    /// Sizes and constants.
    pub dimensions: Dimensions,
    /// `[vocabulary, hidden]`.
    pub embedding: Frozen,
    /// The blocks, first to last.
    pub blocks: Vec<FrozenBlock>,
    /// RMSNorm before the head, `[hidden]`.
    pub norm: Vec<f32>,
    /// `[vocabulary, hidden]`; a clone of the embedding where they are tied.
    pub head: Frozen,
}

impl FrozenModel {
    /// Checks that every part has the shape that the dimensions say.
    ///
    /// # Errors
    /// Names the first part that has not.
    pub fn check(&self) -> Result<()> {
        let Dimensions { hidden, layers, heads, mlp, vocabulary, .. } = self.dimensions;
        let ensure = |holds: bool, what: &str, expected: String| match holds {
            true => Ok(()),
            false => Err(TrainError::Model(format!("{what} should be {expected}"))),
        };
        let matrix = |frozen: &Frozen, what: &str, outputs: usize, inputs: usize| {
            let holds = (frozen.outputs(), frozen.inputs()) == (outputs, inputs);
            ensure(
                holds,
                what,
                format!("[{outputs}, {inputs}], is [{}, {}]", frozen.outputs(), frozen.inputs()),
            )
        };
        let linear = |layer: &Linear, what: &str, outputs: usize, inputs: usize| {
            matrix(&layer.weight, what, outputs, inputs)?;
            let bias = layer.bias.as_ref().is_none_or(|bias| bias.len() == outputs);
            ensure(bias, what, format!("biased by {outputs} values"))
        };
        let vector = |values: &[f32], what: &str, len: usize| {
            ensure(values.len() == len, what, format!("[{len}], is [{}]", values.len()))
        };
        let grouped = heads.key_value > 0 && heads.query.is_multiple_of(heads.key_value);
        ensure(grouped, "query heads", format!("a multiple of {} key heads", heads.key_value))?;
        vector(&self.dimensions.rope_frequencies, "rope frequencies", heads.dim / 2)?;
        ensure(heads.dim.is_multiple_of(2), "head_dim", "even".into())?;
        ensure(self.blocks.len() == layers, "the number of blocks", layers.to_string())?;
        matrix(&self.embedding, "embedding", vocabulary, hidden)?;
        matrix(&self.head, "head", vocabulary, hidden)?;
        vector(&self.norm, "the last norm", hidden)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let name = |part: &str| format!("block {i}'s {part}");
            vector(&block.attention_norm, &name("attention norm"), hidden)?;
            vector(&block.mlp_norm, &name("MLP norm"), hidden)?;
            linear(&block.qkv, &name("stacked queries, keys and values"), heads.width(), hidden)?;
            linear(&block.output, &name("attention output"), hidden, heads.query_width())?;
            linear(&block.gate_up, &name("stacked gate and up"), 2 * mlp, hidden)?;
            linear(&block.down, &name("down projection"), hidden, mlp)?;
            if let Some(norm) = &block.qk_norm {
                vector(&norm.query, &name("query norm"), heads.dim)?;
                vector(&norm.key, &name("key norm"), heads.dim)?;
            }
        }
        Ok(())
    }
}

#[doc(hidden)]
pub mod random {
    //! Models of random weights, for tests and benchmarks.

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::ops::weight::Precision;

    impl Dimensions {
        /// Small, with every size different and grouped heads.
        pub fn tiny() -> Self {
            let heads = Heads { query: 6, key_value: 2, dim: 8 };
            Self {
                hidden: 40,
                layers: 2,
                heads,
                mlp: 72,
                vocabulary: 53,
                norm_eps: 1e-5,
                rope_frequencies: rope_frequencies(10_000.0, heads.dim),
            }
        }

        /// SmolLM2-135M's.
        pub fn smollm2_135m() -> Self {
            let heads = Heads { query: 9, key_value: 3, dim: 64 };
            Self {
                hidden: 576,
                layers: 30,
                heads,
                mlp: 1536,
                vocabulary: 49_152,
                norm_eps: 1e-5,
                rope_frequencies: rope_frequencies(100_000.0, heads.dim),
            }
        }
    }

    /// Seeded weights of the size that training leaves them; `qwen` adds query, key and value biases and qk-norms.
    pub fn model(dimensions: Dimensions, qwen: bool, seed: u64) -> FrozenModel {
        rounded(dimensions, qwen, seed, Precision::F32)
    }

    /// The same, held in `precision`.
    pub fn rounded(dimensions: Dimensions, qwen: bool, seed: u64, precision: Precision) -> FrozenModel {
        let rng = &mut StdRng::seed_from_u64(seed);
        let Dimensions { hidden, heads, mlp, vocabulary, .. } = dimensions;
        let blocks = (0..dimensions.layers)
            .map(|_| FrozenBlock {
                attention_norm: values(rng, hidden, 1.0, 0.2),
                qkv: linear(rng, precision, heads.width(), hidden, qwen),
                qk_norm: qwen.then(|| QkNorm {
                    query: values(rng, heads.dim, 1.0, 0.2),
                    key: values(rng, heads.dim, 1.0, 0.2),
                }),
                output: linear(rng, precision, hidden, heads.query_width(), false),
                mlp_norm: values(rng, hidden, 1.0, 0.2),
                gate_up: linear(rng, precision, 2 * mlp, hidden, false),
                down: linear(rng, precision, hidden, mlp, false),
            })
            .collect();
        let embedding = Frozen::new(values(rng, vocabulary * hidden, 0.0, 0.3), hidden, precision);
        let norm = values(rng, hidden, 1.0, 0.2);
        FrozenModel { dimensions, head: embedding.clone(), embedding, blocks, norm }
    }

    /// `base^(-2i / head_dim)`.
    fn rope_frequencies(base: f32, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2).map(|i| 1.0 / base.powf(2.0 * i as f32 / head_dim as f32)).collect()
    }

    fn values(rng: &mut StdRng, len: usize, centre: f32, spread: f32) -> Vec<f32> {
        (0..len).map(|_| centre + rng.random_range(-spread..spread)).collect()
    }

    fn linear(rng: &mut StdRng, precision: Precision, outputs: usize, inputs: usize, bias: bool) -> Linear {
        let weight = values(rng, outputs * inputs, 0.0, 1.5 / (inputs as f32).sqrt());
        let weight = Frozen::new(weight, inputs, precision);
        Linear { weight, bias: bias.then(|| values(rng, outputs, 0.0, 0.5)) }
    }
}
