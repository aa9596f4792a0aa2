//! A training state on disk: PEFT's `adapter_model.safetensors`, the optimizer's moments beside it, and a JSON file
//! with everything else. What is read back is bit for bit what was written.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::adapter::{Layout, LoraConfig};
use crate::error::{Result, TrainError};
use crate::model::Dimensions;
use crate::optim::AdamW;

/// Name of the adapter's file.
pub const ADAPTER_FILE: &str = "adapter_model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// What must be the same for a run to go on where it stopped, and how far it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken.
    pub step: usize,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Seed of the run.
    pub seed: u64,
    /// Workers that summed gradients: another number would round differently.
    pub workers: usize,
}

/// Everything that a run changes.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// How far the run is.
    pub progress: Progress,
    /// The adapter, laid out by [`Layout`].
    pub values: Vec<f32>,
    /// The optimizer.
    pub optimizer: AdamW,
}

impl State {
    /// Writes the state into `folder`, which appears whole or not at all: an interrupted or failed write leaves what was
    /// there before.
    ///
    /// # Errors
    /// When a file can't be written, as on a full disk.
    pub fn save(&self, folder: &Path, layout: &Layout) -> Result<()> {
        let partial = folder.with_extension("partial");
        let clear = |path: &Path| match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error(path, error)),
            _ => Ok(()),
        };
        clear(&partial)?;
        fs::create_dir_all(&partial).map_err(|error| file_error(&partial, error))?;
        let factors = layout
            .factors
            .iter()
            .map(|factor| (factor.name.as_str(), factor.shape.to_vec(), &self.values[factor.range.clone()]));
        write_tensors(&partial.join(ADAPTER_FILE), factors)?;
        let moments = [("mean", &self.optimizer.mean), ("square", &self.optimizer.square)];
        let moments = moments.map(|(name, values)| (name, vec![values.len()], values.as_slice()));
        write_tensors(&partial.join(OPTIMIZER_FILE), moments)?;
        let file = StateFile { progress: self.progress.clone(), optimizer_steps: self.optimizer.steps };
        let json = serde_json::to_vec_pretty(&file)
            .map_err(|error| file_error(&partial.join(STATE_FILE), std::io::Error::other(error)))?;
        write_file(&partial.join(STATE_FILE), &json)?;
        // The old state goes only when the new one is in its place.
        let old = folder.with_extension("old");
        clear(&old)?;
        match fs::rename(folder, &old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(file_error(folder, error));
            }
            _ => fs::rename(&partial, folder).map_err(|error| file_error(folder, error))?,
        }
        clear(&old)
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// When a file is missing or damaged, or is of an adapter with another layout.
    pub fn load(folder: &Path, layout: &Layout) -> Result<Self> {
        let file = read_state_file(folder)?;
        let values = read_adapter(folder, layout)?;
        let mut moments = vec![0.0; 2 * layout.len];
        let (mean, square) = (0..layout.len, layout.len..2 * layout.len);
        let wanted =
            [("mean", mean), ("square", square)].map(|(name, range)| (name, vec![layout.len], range));
        read_tensors(&folder.join(OPTIMIZER_FILE), wanted, &mut moments)?;
        let square = moments.split_off(layout.len);
        let optimizer = AdamW { mean: moments, square, steps: file.optimizer_steps };
        Ok(Self { progress: file.progress, values, optimizer })
    }
}

/// Reads the adapter alone out of a saved state, for a model of these dimensions.
///
/// # Errors
/// As for [`State::load`].
pub fn load_adapter(folder: &Path, dimensions: &Dimensions) -> Result<(Progress, Layout, Vec<f32>)> {
    let StateFile { progress, .. } = read_state_file(folder)?;
    let layout = Layout::new(dimensions, &progress.lora);
    let values = read_adapter(folder, &layout)?;
    Ok((progress, layout, values))
}

/// Reads an adapter's factors out of a saved state or a PEFT folder, in f32, f16 or bf16.
///
/// # Errors
/// When the file can't be read, or its tensors are not those of `layout`.
pub fn read_adapter(folder: &Path, layout: &Layout) -> Result<Vec<f32>> {
    let mut values = vec![0.0; layout.len];
    let wanted = layout.factors.iter().map(|f| (f.name.as_str(), f.shape.to_vec(), f.range.clone()));
    read_tensors(&folder.join(ADAPTER_FILE), wanted, &mut values)?;
    Ok(values)
}

fn read_state_file(folder: &Path) -> Result<StateFile> {
    let path = folder.join(STATE_FILE);
    let json = read_file(&path)?;
    serde_json::from_slice(&json).map_err(|error| TrainError::Checkpoint { path, reason: error.to_string() })
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    #[serde(flatten)]
    progress: Progress,
    optimizer_steps: u64,
}

/// Writes tensors of `(name, shape, values)` to a safetensors file.
fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, Vec<usize>, &'a [f32])>,
) -> Result<()> {
    let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let invalid = |error: safetensors::SafeTensorError| file_error(path, std::io::Error::other(error));
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<std::result::Result<_, _>>()
        .map_err(invalid)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_file(path, &safetensors::serialize(views, Some(metadata)).map_err(invalid)?)
}

/// Reads tensors of `(name, shape)` into ranges of `values`.
fn read_tensors<'a>(
    path: &Path,
    wanted: impl IntoIterator<Item = (&'a str, Vec<usize>, std::ops::Range<usize>)>,
    values: &mut [f32],
) -> Result<()> {
    let unfit = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
    let bytes = read_file(path)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unfit(error.to_string()))?;
    let mut count = 0;
    for (name, shape, range) in wanted {
        let tensor = tensors.tensor(name).map_err(|_| unfit(format!("it has no tensor `{name}`")))?;
        let (dtype, values) = (tensor.dtype(), &mut values[range]);
        let is_float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !is_float || tensor.shape() != shape {
            return Err(unfit(format!(
                "tensor `{name}` is {dtype:?} {:?}, this run's is F32 {shape:?}",
                tensor.shape()
            )));
        }
        let halves = || tensor.data().as_chunks::<2>().0.iter();
        match dtype {
            Dtype::F16 => {
                values.iter_mut().zip(halves()).for_each(|(v, b)| *v = f16::from_le_bytes(*b).into())
            }
            Dtype::BF16 => {
                values.iter_mut().zip(halves()).for_each(|(v, b)| *v = bf16::from_le_bytes(*b).into())
            }
            _ => {
                let words = tensor.data().as_chunks::<4>().0;
                values.iter_mut().zip(words).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
            }
        }
        count += 1;
    }
    match tensors.len() {
        found if found == count => Ok(()),
        found => Err(unfit(format!("it has {found} tensors, this run has {count}"))),
    }
}

/// Writes a file and waits until the disk has it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| file_error(path, error))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| file_error(path, error))
}

fn file_error(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::File { path: path.to_owned(), source }
}
