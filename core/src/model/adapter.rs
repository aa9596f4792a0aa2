//! LoRA adapters, in PEFT's names and files: `adapter_config.json` and `adapter_model.safetensors`.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use serde::Deserialize;

use super::{ModelError, Result, checkpoint::parse_tensors};

/// Name of an adapter's settings.
pub const CONFIG: &str = "adapter_config.json";
/// Name of an adapter's factors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// A LoRA adapter, on the CPU.
pub struct Adapter {
    path: PathBuf,
    scale: f64,
    tensors: HashMap<String, Tensor>,
    used: RefCell<BTreeSet<String>>,
}

/// One linear layer's update: `y += scale * (x A^T) B^T`.
#[derive(Clone)]
pub struct Lora {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scale: f64,
}

impl Lora {
    /// The weight `[out, in]` with the update added: `W + scale * B A`.
    ///
    /// # Errors
    /// The shapes don't fit.
    pub fn add_to(&self, weight: &Tensor) -> Result<Tensor> {
        Ok((weight + (self.b.matmul(&self.a)? * self.scale)?)?)
    }
}

#[derive(Deserialize)]
struct RawConfig {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: HashMap<String, usize>,
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
}

impl Adapter {
    /// Reads a PEFT folder.
    ///
    /// # Errors
    /// A file is missing or damaged, or the adapter uses something other than plain or rank-stabilised LoRA.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|e| ModelError::io(&path, e))
        };
        Self::parse(folder, &read(CONFIG)?, &read(WEIGHTS)?)
    }

    /// Reads the contents of a PEFT folder's two files; `folder` is for messages.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn parse(folder: &Path, config: &[u8], weights: &[u8]) -> Result<Self> {
        let path = folder.join(CONFIG);
        let raw: RawConfig =
            serde_json::from_slice(config).map_err(|e| ModelError::invalid(&path, e.to_string()))?;
        let unsupported = [
            (raw.use_dora, "use_dora"),
            (raw.fan_in_fan_out, "fan_in_fan_out"),
            (!raw.rank_pattern.is_empty(), "rank_pattern"),
            (!raw.alpha_pattern.is_empty(), "alpha_pattern"),
            (raw.r == 0, "r = 0"),
        ];
        if let Some((_, key)) = unsupported.iter().find(|(set, _)| *set) {
            return Err(ModelError::invalid(
                &path,
                format!("`{key}` is not supported: merge the adapter first"),
            ));
        }
        let rank = raw.r as f64;
        let scale = raw.lora_alpha / if raw.use_rslora { rank.sqrt() } else { rank };
        let tensors = parse_tensors(&folder.join(WEIGHTS), weights)?;
        Ok(Self { path: folder.to_owned(), scale, tensors, used: RefCell::default() })
    }

    /// An adapter that lies in no file: f32 tensors on the CPU under PEFT's names.
    pub fn from_tensors(scale: f64, tensors: HashMap<String, Tensor>) -> Self {
        Self { path: "the adapter".into(), scale, tensors, used: RefCell::default() }
    }

    /// The update of a linear layer such as `model.layers.0.self_attn.q_proj`, checked against its shape; `None` where
    /// the adapter leaves the layer alone.
    ///
    /// # Errors
    /// The factors don't fit the shape, or one of them is missing.
    pub fn get(&self, layer: &str, out: usize, input: usize) -> Result<Option<Lora>> {
        let name = |half: &str| format!("base_model.model.{layer}.lora_{half}.weight");
        let (a_name, b_name) = (name("A"), name("B"));
        let (a, b) = match (self.tensors.get(&a_name), self.tensors.get(&b_name)) {
            (Some(a), Some(b)) => (a.clone(), b.clone()),
            (None, None) => return Ok(None),
            _ => return Err(self.invalid(format!("`{layer}` has only one of lora_A and lora_B"))),
        };
        let rank = a.dims().first().copied().unwrap_or(0);
        if a.dims() != [rank, input] || b.dims() != [out, rank] {
            return Err(self.invalid(format!(
                "`{layer}` has A {:?} and B {:?}, but the model's layer is [{out}, {input}]: made for another model?",
                a.dims(),
                b.dims()
            )));
        }
        self.used.borrow_mut().extend([a_name, b_name]);
        Ok(Some(Lora { a, b, scale: self.scale }))
    }

    /// Fails if a tensor of the adapter was in no answer of [`Self::get`]: half an adapter is not the adapter.
    ///
    /// # Errors
    /// It names such a tensor.
    pub fn check_all_used(&self) -> Result<()> {
        let used = self.used.borrow();
        match self.tensors.keys().filter(|&name| !used.contains(name)).min() {
            None => Ok(()),
            Some(name) => Err(self.invalid(format!("`{name}` belongs to no layer of this model"))),
        }
    }

    fn invalid(&self, problem: String) -> ModelError {
        ModelError::invalid(&self.path, problem)
    }
}
