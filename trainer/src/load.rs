//! Reading a base model's files into a [`FrozenModel`].

use candle_core::Tensor;
use forethought_core::model::{Checkpoint, ModelConfig};

use crate::error::Result;
use crate::model::{Dimensions, FrozenBlock, FrozenModel, QkNorm};
use crate::ops::attention::Heads;
use crate::ops::linear::Linear;
use crate::ops::weight::{Frozen, Precision};

impl From<&ModelConfig> for Dimensions {
    fn from(config: &ModelConfig) -> Self {
        Self {
            hidden: config.hidden_size,
            layers: config.layers,
            heads: Heads { query: config.heads, key_value: config.kv_heads, dim: config.head_dim },
            mlp: config.intermediate_size,
            vocabulary: config.vocab_size,
            norm_eps: config.rms_eps as f32,
            rope_frequencies: config.rope_frequencies(),
        }
    }
}

impl FrozenModel {
    /// Reads all weights and holds the matrices in `precision`; norms and biases stay f32.
    ///
    /// # Errors
    /// When a tensor is missing, damaged or of another shape than the model's configuration says.
    pub fn load(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let dimensions = Dimensions::from(checkpoint.config());
        let Dimensions { hidden, heads, mlp, vocabulary, .. } = dimensions;
        let (q, kv) = (heads.query_width(), heads.key_width());
        let files = Files { checkpoint, precision };
        let block = |index: usize| -> Result<FrozenBlock> {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
            let qk_norm = match files.optional(&name("self_attn.q_norm.weight"), heads.dim)? {
                Some(query) => {
                    let key = files.vector(&name("self_attn.k_norm.weight"), heads.dim)?;
                    Some(QkNorm { query, key })
                }
                None => None,
            };
            Ok(FrozenBlock {
                attention_norm: files.vector(&name("input_layernorm.weight"), hidden)?,
                qkv: files.stacked(&qkv.map(|(part, rows)| (name(part), rows)), hidden)?,
                qk_norm,
                output: files.stacked(&[(name("self_attn.o_proj"), hidden)], q)?,
                mlp_norm: files.vector(&name("post_attention_layernorm.weight"), hidden)?,
                gate_up: files
                    .stacked(&[(name("mlp.gate_proj"), mlp), (name("mlp.up_proj"), mlp)], hidden)?,
                down: files.stacked(&[(name("mlp.down_proj"), hidden)], mlp)?,
            })
        };
        let blocks = (0..dimensions.layers).map(block).collect::<Result<_>>()?;
        let norm = files.vector("model.norm.weight", hidden)?;
        let table = |name: &str| -> Result<Frozen> {
            Ok(Frozen::new(files.matrix(name, vocabulary, hidden)?, hidden, precision))
        };
        let embedding = table("model.embed_tokens.weight")?;
        let head = match checkpoint.ties_embeddings() {
            true => embedding.clone(),
            false => table("lm_head.weight")?,
        };
        Ok(Self { dimensions, embedding, blocks, norm, head })
    }
}

struct Files<'a> {
    checkpoint: &'a Checkpoint,
    precision: Precision,
}

impl Files<'_> {
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Vec<f32>> {
        values(&self.checkpoint.require(name, &[rows, columns])?)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        values(&self.checkpoint.require(name, &[len])?)
    }

    fn optional(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        match self.checkpoint.get(name)? {
            Some(_) => self.vector(name, len).map(Some),
            None => Ok(None),
        }
    }

    /// Linear layers of the same input as one; where any has a bias, the others' is zero.
    fn stacked(&self, parts: &[(String, usize)], inputs: usize) -> Result<Linear> {
        let (mut weight, mut bias, mut biased) = (Vec::new(), Vec::new(), false);
        for (name, rows) in parts {
            weight.extend(self.matrix(&format!("{name}.weight"), *rows, inputs)?);
            match self.optional(&format!("{name}.bias"), *rows)? {
                Some(values) => {
                    bias.extend(values);
                    biased = true;
                }
                None => bias.resize(bias.len() + rows, 0.0),
            }
        }
        Ok(Linear { weight: Frozen::new(weight, inputs, self.precision), bias: biased.then_some(bias) })
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
