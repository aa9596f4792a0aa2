//! A tuned adapter in the forms that others read, each compared with the adapter itself before it is let out.
//!
//! [`peft`] writes the factors alone; [`merged`] adds them to the base's weights, which [`folder`] writes as a
//! Hugging Face folder and [`gguf`] as one file; [`bundle`] writes what the proxy's guard is made of. [`check`] reads
//! an export back and asks it what it asks the base with the adapter apart. [`publish`] puts the outcome in its place,
//! whole or not at all.

pub mod bundle;
pub mod check;
pub mod folder;
pub mod gguf;
pub mod merged;
pub mod peft;
pub mod publish;
pub mod report;
pub mod tensors;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use forethought_core::guard::bundle::{Base, Manifest};
use forethought_core::model::{Adapter, Checkpoint};

use crate::adapter::{Layout, LoraConfig};
use crate::error::{Result, TrainError};
use crate::model::Dimensions;
use crate::state::{self, Progress};

pub use gguf::Quant;
pub use tensors::Dtype;

/// A tuned adapter.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// Its shape.
    pub lora: LoraConfig,
    /// Where its factors lie in `values`.
    pub layout: Layout,
    /// All factors.
    pub values: Vec<f32>,
}

impl Tuned {
    /// Reads the adapter of a checkpoint, and how far its run had come.
    ///
    /// # Errors
    /// When the checkpoint is damaged, or was made for a model of other dimensions.
    pub fn open(checkpoint: &Path, base: &Checkpoint) -> Result<(Self, Progress)> {
        let (progress, layout, values) = state::load_adapter(checkpoint, &Dimensions::from(base.config()))?;
        Ok((Self { lora: progress.lora.clone(), layout, values }, progress))
    }

    /// The adapter as the decoder takes it.
    ///
    /// # Errors
    /// When memory is short.
    pub fn adapter(&self) -> Result<Adapter> {
        let tensors = self.layout.factors.iter().map(|factor| {
            let values = self.values[factor.range.clone()].to_vec();
            let [rows, columns] = factor.shape;
            Ok((factor.name.clone(), Tensor::from_vec(values, (rows, columns), &Device::Cpu)?))
        });
        let tensors = tensors.collect::<Result<HashMap<_, _>>>()?;
        Ok(Adapter::from_tensors(f64::from(self.lora.alpha) / self.lora.rank as f64, tensors))
    }
}

/// One thing to write.
#[derive(Clone, Debug)]
pub enum Export {
    /// The adapter as a PEFT folder.
    Peft(Dtype),
    /// Base and adapter as one folder in Hugging Face's form.
    Safetensors(Dtype),
    /// Base and adapter as one GGUF file.
    Gguf(Quant),
    /// A guard bundle.
    Bundle(Dtype, Box<BundleParts>),
}

/// What a guard bundle holds beside the adapter.
#[derive(Clone, Debug)]
pub struct BundleParts {
    /// Contents of `guard.toml`; base and adapter are filled in.
    pub manifest: Manifest,
    /// A file to go along as `EVAL.md`.
    pub eval: Option<PathBuf>,
}

impl Export {
    /// What messages call it: the format and how its numbers are held.
    pub fn label(&self) -> String {
        match self {
            Self::Peft(dtype) => format!("peft {dtype}"),
            Self::Safetensors(dtype) => format!("safetensors {dtype}"),
            Self::Gguf(quant) => format!("gguf {quant}"),
            Self::Bundle(dtype, _) => format!("bundle {dtype}"),
        }
    }

    /// Its file or folder inside of the folder of all exports.
    pub fn file_name(&self) -> String {
        match self {
            Self::Peft(_) => "peft".to_owned(),
            Self::Safetensors(_) => "safetensors".to_owned(),
            Self::Gguf(quant) => format!("model-{quant}.gguf"),
            Self::Bundle(..) => "bundle".to_owned(),
        }
    }

    /// How far the worst logit may be off, in standard deviations of the logits; [`check::Figures::logits`].
    ///
    /// Measured on SmolLM2-135M with a tuned adapter, then doubled or more; the worst of some twenty million logits
    /// is about eight times the usual difference.
    pub fn tolerance(&self) -> f64 {
        match self {
            // The adapter alone is rounded, not the base's weights.
            Self::Peft(dtype) | Self::Bundle(dtype, _) => match dtype {
                Dtype::F32 => 1e-3,
                Dtype::F16 => 1e-2,
                Dtype::Bf16 => 1e-1,
            },
            Self::Safetensors(dtype) => match dtype {
                Dtype::F32 => 1e-3,
                Dtype::F16 => 5e-2,
                Dtype::Bf16 => 5e-1,
            },
            Self::Gguf(quant) => match quant {
                Quant::F16 => 5e-2,
                Quant::Q8_0 => 0.5,
                Quant::Q4_0 | Quant::Q4_1 => 2.5,
            },
        }
    }
}

/// What all exports of an adapter share.
pub struct Source<'a> {
    /// The base model's files.
    pub checkpoint: &'a Checkpoint,
    /// The base model by its name and hash, as bundles name it.
    pub base: Base,
    /// What `adapter_config.json` calls the base model; Python's peft loads it by this name.
    pub base_name: String,
    /// The adapter.
    pub tuned: &'a Tuned,
}

impl Source<'_> {
    /// Writes an export into `folder` and returns its path.
    ///
    /// # Errors
    /// When a file can't be read or written, or a number does not fit into the type that was asked for.
    pub fn write(&self, export: &Export, folder: &Path) -> Result<PathBuf> {
        create_folder(folder)?;
        let path = folder.join(export.file_name());
        match export {
            Export::Peft(dtype) => peft::write(&path, self.tuned, &self.base_name, *dtype)?,
            Export::Bundle(dtype, parts) => {
                let manifest = Manifest { base: self.base.clone(), ..parts.manifest.clone() };
                bundle::write(&path, manifest, self.tuned, *dtype, parts.eval.as_deref())?;
            }
            Export::Safetensors(dtype) => {
                let merged = merged::Merged::new(self.checkpoint, self.tuned)?;
                folder::write(&path, &merged, *dtype)?;
            }
            Export::Gguf(quant) => {
                let merged = merged::Merged::new(self.checkpoint, self.tuned)?;
                gguf::write(&path, &merged, *quant)?;
            }
        }
        Ok(path)
    }
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| file_error(path, error))
}

/// Writes JSON as people read it.
fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| file_error(path, e.into()))?;
    text.push('\n');
    state::write_file(path, text.as_bytes())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).map_err(|error| file_error(from, error))?;
    state::write_file(to, &bytes)
}

fn file_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::File { path: path.to_owned(), source }
}
