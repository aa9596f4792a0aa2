//! The base's weights with the adapter added to them.

use candle_core::Tensor;
use forethought_core::model::{Adapter, Checkpoint, ModelError};

use super::Tuned;
use crate::adapter::Projection;
use crate::error::{Result, TrainError};

/// A base model and an adapter, read as one model, tensor by tensor.
pub struct Merged<'a> {
    base: &'a Checkpoint,
    adapter: Adapter,
}

impl<'a> Merged<'a> {
    /// Merges `tuned` into `base`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(base: &'a Checkpoint, tuned: &Tuned) -> Result<Self> {
        Ok(Self { base, adapter: tuned.adapter()? })
    }

    /// The base model's files.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// Names and shapes of all tensors, in Hugging Face's form.
    ///
    /// # Errors
    /// When the base model's files are damaged.
    pub fn tensors(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let config = self.base.config();
        let (hidden, mlp, vocabulary) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_width());
        let shape = |projection| match projection {
            Projection::QProj => [q, hidden],
            Projection::KProj | Projection::VProj => [kv, hidden],
            Projection::OProj => [hidden, q],
            Projection::GateProj | Projection::UpProj => [mlp, hidden],
            Projection::DownProj => [hidden, mlp],
        };
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
        for layer in 0..config.layers {
            let norm = |part: &str| format!("model.layers.{layer}.{part}.weight");
            for projection in Projection::ALL {
                let [out, input] = shape(projection);
                let module = projection.module(layer);
                tensors.push((format!("{module}.weight"), vec![out, input]));
                tensors.extend(self.if_there(format!("{module}.bias"), out)?);
            }
            tensors.extend(self.if_there(norm("self_attn.q_norm"), config.head_dim)?);
            tensors.extend(self.if_there(norm("self_attn.k_norm"), config.head_dim)?);
            for part in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((norm(part), vec![hidden]));
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.base.ties_embeddings() {
            tensors.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
        }
        Ok(tensors)
    }

    fn if_there(&self, name: String, len: usize) -> Result<Option<(String, Vec<usize>)>> {
        Ok(self.base.get(&name)?.map(|_| (name, vec![len])))
    }

    /// A tensor with its update, f32.
    ///
    /// # Errors
    /// When the base model's files are damaged or lack it, or the adapter does not fit it.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let weight = self.base.require(name, shape)?;
        let update = match (name.strip_suffix(".weight"), shape) {
            (Some(module), &[out, input]) => self.adapter.get(module, out, input)?,
            _ => None,
        };
        Ok(match update {
            Some(update) => update.add_to(&weight)?,
            None => weight,
        })
    }

    /// The error of something in the base model that an export can't hold.
    pub(super) fn cannot(&self, problem: impl Into<String>) -> TrainError {
        let path = self.base.path().display().to_string();
        ModelError::Invalid { path, problem: problem.into() }.into()
    }

    /// Fails if a factor of the adapter was added to no tensor.
    ///
    /// # Errors
    /// It names the factor.
    pub fn check_all_used(&self) -> Result<()> {
        Ok(self.adapter.check_all_used()?)
    }
}
