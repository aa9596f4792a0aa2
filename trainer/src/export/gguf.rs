//! Base and adapter as one GGUF file, for llama.cpp and all that is built on it.

mod metadata;

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use forethought_core::model::{ModelConfig, config::RopeScaling, gguf};
use serde::{Deserialize, Serialize};

use super::{file_error, merged::Merged, tensors::does_not_fit};
use crate::error::Result;

/// How the matrices are held. Norms and biases are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Quant {
    /// 16 bits.
    F16,
    /// 8 bits, with a scale for every 32 weights.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits, with a scale and an offset for every 32 weights; embedding and head 8 bits.
    #[value(name = "q4_1")]
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 4 bits, with a scale for every 32 weights; embedding and head 8 bits.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Quant {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
        }
    }

    /// llama.cpp's number for a file of this kind (`llama_ftype`).
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
        }
    }

    fn matrices(self) -> GgmlDType {
        match self {
            Self::F16 => GgmlDType::F16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q4_0 => GgmlDType::Q4_0,
        }
    }

    /// The type of a tensor of this name and shape.
    fn of(self, name: &str, shape: &[usize]) -> GgmlDType {
        let [_, width] = shape else { return GgmlDType::F32 };
        let wanted = match self.matrices() {
            // Errors in the table of all words are in every logit.
            GgmlDType::Q4_0 | GgmlDType::Q4_1 if ["token_embd.weight", "output.weight"].contains(&name) => {
                GgmlDType::Q8_0
            }
            wanted => wanted,
        };
        if width.is_multiple_of(wanted.block_size()) { wanted } else { GgmlDType::F16 }
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Writes the file.
///
/// # Errors
/// When the base model's files are damaged, its tokenizer has no form in GGUF, a number does not fit into its type, or
/// the file can't be written.
pub fn write(path: &Path, merged: &Merged<'_>, quant: Quant) -> Result<()> {
    let config = merged.base().config();
    let metadata = metadata::metadata(merged, quant)?;
    let mut tensors = Vec::new();
    if let Some(factors) = rope_factors(config) {
        let factors = Tensor::new(factors, &Device::Cpu)?;
        tensors.push(("rope_freqs.weight".to_owned(), QTensor::quantize(&factors, GgmlDType::F32)?));
    }
    for (name, shape) in merged.tensors()? {
        let tensor = gguf::rows_in_pairs(config, &name, merged.get(&name, &shape)?)?;
        let name = gguf::tensor_name(&name)
            .ok_or_else(|| merged.cannot(format!("GGUF has no name for tensor `{name}`")))?;
        let kind = quant.of(&name, &shape);
        let blocks = QTensor::quantize(&tensor, kind)?;
        check_finite(&name, &tensor, &blocks)?;
        tensors.push((name, blocks));
    }
    merged.check_all_used()?;

    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let failed = |error| file_error(path, error);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)
}

/// Fails if a number became infinite: f16 and the blocks' scales, which are f16, end at 65504.
fn check_finite(name: &str, tensor: &Tensor, blocks: &QTensor) -> Result<()> {
    let rounded: Vec<f32> = blocks.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let Some(at) = rounded.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    // Not finite itself, or the largest of its block.
    let block = blocks.dtype().block_size();
    let start = at - at % block;
    let value = values[start..start + block].iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    Err(does_not_fit(name, value.unwrap_or(f32::NAN), &format!("{:?}", blocks.dtype())))
}

/// By what each rotary frequency is divided, for models that GGUF's own keys do not describe.
fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear(_) => None,
        RopeScaling::Factors(factors) => Some(factors.clone()),
        RopeScaling::Llama3 { .. } => {
            let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() }.rope_frequencies();
            Some(plain.iter().zip(config.rope_frequencies()).map(|(plain, scaled)| plain / scaled).collect())
        }
    }
}
