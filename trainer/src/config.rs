//! A run's settings: one TOML file, whose every value the environment and flags can override.
//!
//! Layers, lowest first: R1-Act's recipe as defaults, the file, `FORETHOUGHT_TRAINER__SECTION__KEY` variables, and
//! `--set section.key=value`. Relative paths in the file are relative to its folder.

use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat};
use forethought_core::model::DeviceChoice;
use forethought_core::store::DEFAULT_MODEL;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::adapter::LoraConfig;
use crate::cpu::CpuSettings;
use crate::error::{Result, TrainError};
use crate::ops::weight::Precision;
use crate::optim::AdamConfig;
use crate::r1act::{Form, PhaseWeights};
use crate::schedule::Decay;

/// Prefix of environment variables that set a key.
const PREFIX: &str = "FORETHOUGHT_TRAINER";

/// Everything that a run of `sft` is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// Folder of the run's results.
    pub out: PathBuf,
    /// The frozen model.
    pub base: BaseConfig,
    /// How the guard asks it.
    pub guard: GuardConfig,
    /// What is learnt.
    pub data: Vec<DataConfig>,
    /// What the run is scored on.
    pub validation: Vec<DataConfig>,
    /// Weights of the parts of a response.
    pub loss: PhaseWeights,
    /// The adapter.
    pub adapter: LoraConfig,
    /// The optimizer's constants.
    pub optimizer: AdamConfig,
    /// The loop.
    pub train: LoopConfig,
    /// How a step is run.
    pub compute: CpuSettings,
    /// When and how the run is scored.
    pub evaluation: EvaluationConfig,
    /// When states are written.
    pub checkpoints: CheckpointConfig,
}

/// The frozen model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseConfig {
    /// A name, path, `pip:...` or `hf:...` for the model store.
    pub model: String,
    /// How its weights are held.
    pub precision: Precision,
    /// Where the run takes place.
    pub device: DeviceChoice,
}

impl Default for BaseConfig {
    fn default() -> Self {
        Self { model: DEFAULT_MODEL.into(), precision: Precision::Bf16, device: DeviceChoice::Cpu }
    }
}

/// How the guard asks the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// A `guard.toml`, whose template the examples are rendered with; the default bundle's where it is not set.
    pub manifest: Option<PathBuf>,
}

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// The file.
    pub path: PathBuf,
    /// How often an example is drawn in an epoch, on average.
    pub weight: f64,
    /// The forms in which a row is learnt. Rows without phases have only the direct one.
    pub forms: Vec<Form>,
    /// Every so many rows, one is held back from learning and scored instead.
    pub hold_out: Option<usize>,
    /// Learn only some of the rows that are not held back.
    pub part: Option<Part>,
    /// Weights of the parts of a response, instead of the run's.
    pub loss: Option<PhaseWeights>,
}

/// Every so many blocks of neighbouring rows, which are often contrast pairs and belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Rows of a block.
    pub block: usize,
    /// One of this many blocks is taken.
    pub of: usize,
    /// Which, counted from 0.
    pub take: usize,
}

impl Part {
    /// Whether the row with this number, counted from 0 without those held back, is in it.
    pub fn holds(self, row: usize) -> bool {
        (row / self.block) % self.of == self.take
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            weight: 1.0,
            forms: vec![Form::Full, Form::Direct],
            hold_out: None,
            part: None,
            loss: None,
        }
    }
}

/// The loop; the defaults are R1-Act's (arXiv 2508.00324).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// Highest learning rate.
    pub rate: f64,
    /// How it falls.
    pub decay: Decay,
    /// Steps over which it rises.
    pub warmup: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Length of the run in steps, instead of `epochs`.
    pub steps: Option<usize>,
    /// Examples a step. However many, memory is bounded by `compute.tokens`.
    pub batch: usize,
    /// Highest norm of the gradients; larger ones are scaled down. 0 for no limit.
    pub clip: f64,
    /// Seed of the adapter's start and of the order of examples.
    pub seed: u64,
    /// Checkpoint or PEFT folder whose adapter the run begins with, instead of one that changes nothing.
    pub init: Option<PathBuf>,
    /// Examples with more tokens are left out, and named.
    pub max_tokens: usize,
    /// Leave unusable rows out, and name them, instead of stopping at the first.
    pub skip_bad_rows: bool,
    /// The run has diverged where the mean loss of twenty steps is this many times the lowest seen. 0 for no check.
    pub divergence: f64,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            rate: 1e-5,
            decay: Decay::Cosine,
            warmup: 5,
            epochs: 15,
            steps: None,
            batch: 16,
            clip: 1.0,
            seed: 42,
            init: None,
            max_tokens: 1024,
            skip_bad_rows: false,
            divergence: 3.0,
        }
    }
}

/// What makes one state better than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// The higher AUROC of the direct verdict.
    #[default]
    Auroc,
    /// The lower loss.
    Loss,
}

/// When and how the run is scored. The first validation file decides which state is best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Steps between two evaluations; 0 for one an epoch.
    pub every: usize,
    /// What makes a state the best.
    pub select: Select,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { every: 0, select: Select::Auroc }
    }
}

/// When states are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between two; 0 for one an epoch. One is written whenever a run ends, too.
    pub every: usize,
    /// Keep the one of every epoch's end beside the last and the best.
    pub keep_epochs: bool,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 50, keep_epochs: false }
    }
}

impl SftConfig {
    /// Reads all layers; `set` holds `key=value` pairs of flags.
    ///
    /// # Errors
    /// Names the key and where its value came from.
    pub fn read(path: &Path, set: &[String]) -> Result<Self> {
        let mut config: Self = layers(path, set)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let sources = config.data.iter_mut().chain(&mut config.validation).map(|data| &mut data.path);
        for path in sources.chain(&mut config.guard.manifest).chain(&mut config.train.init) {
            *path = folder.join(&*path);
        }
        config.check().map_err(|problem| TrainError::Config { path: path.to_owned(), problem })?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let LoopConfig { rate, batch, clip, max_tokens, divergence, .. } = self.train;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let checks = [
            (!self.data.is_empty(), "data", "at least one file"),
            (self.data.iter().all(|d| positive(d.weight)), "data.weight", "above 0"),
            (self.data.iter().all(|d| !d.forms.is_empty()), "data.forms", "`full`, `direct` or both"),
            (self.data.iter().all(|d| d.hold_out.is_none_or(|n| n > 1)), "data.hold_out", "2 or more"),
            (
                self.data.iter().filter_map(|d| d.part).all(|p| p.block > 0 && p.take < p.of),
                "data.part",
                "blocks of 1 row or more, and `take` below `of`",
            ),
            (positive(rate), "train.rate", "above 0"),
            (batch > 0, "train.batch", "at least 1"),
            (self.train.steps.unwrap_or(self.train.epochs) > 0, "train.epochs", "at least 1"),
            (not_negative(clip), "train.clip", "0 or more"),
            (
                divergence == 0.0 || (divergence > 1.0 && divergence.is_finite()),
                "train.divergence",
                "0 or above 1",
            ),
            (max_tokens > 1, "train.max_tokens", "at least 2"),
            (self.adapter.rank > 0, "adapter.rank", "at least 1"),
            (positive(self.adapter.alpha.into()), "adapter.alpha", "above 0"),
            (!self.adapter.targets.is_empty(), "adapter.targets", "at least one projection"),
            (self.compute.workers > 0, "compute.workers", "at least 1"),
            (self.compute.tokens > 0, "compute.tokens", "at least 1"),
        ];
        match checks.iter().find(|(holds, ..)| !holds) {
            Some((_, key, expected)) => Err(format!("`{key}` must be {expected}")),
            None => Ok(()),
        }
    }
}

/// Reads a file and the layers over it; `set` holds `key=value` pairs of flags.
///
/// # Errors
/// Names the key and where its value came from.
pub(crate) fn layers<T: DeserializeOwned>(path: &Path, set: &[String]) -> Result<T> {
    let wrong = |problem: String| TrainError::Config { path: path.to_owned(), problem };
    let text =
        std::fs::read_to_string(path).map_err(|source| TrainError::File { path: path.to_owned(), source })?;
    // Parsed once more below; this parse is for its error, which shows line and column.
    text.parse::<toml::Table>().map_err(|error| wrong(format!("is not TOML: {error}")))?;
    let mut builder = Config::builder().add_source(File::from(path).format(FileFormat::Toml)).add_source(
        Environment::with_prefix(PREFIX).prefix_separator("__").separator("__").try_parsing(true),
    );
    for pair in set {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(wrong(format!("`--set {pair}` is not KEY=VALUE")));
        };
        builder = builder
            .set_override(key.trim(), parsed(value.trim()))
            .map_err(|error| wrong(format!("`--set {pair}`: {error}")))?;
    }
    builder.build().and_then(Config::try_deserialize).map_err(|error| wrong(error.to_string()))
}

/// A flag's value as TOML has it, and as plain text where it is not TOML: `--set base.model=x` needs no quotes.
fn parsed(value: &str) -> config::Value {
    let as_toml = Config::builder()
        .add_source(File::from_str(&format!("value = {value}"), FileFormat::Toml))
        .build()
        .and_then(|document| document.get("value"));
    as_toml.unwrap_or_else(|_| value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, set: &[&str]) -> std::result::Result<SftConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|&pair| pair.to_owned()).collect();
        SftConfig::read(&path, &set).map_err(|error| error.to_string())
    }

    const DATA: &str = "[[data]]\npath = 'rows.jsonl'\n";

    #[test]
    fn defaults_are_the_papers() {
        let config = read(DATA, &[]).unwrap();
        let LoopConfig { rate, warmup, epochs, batch, .. } = config.train;
        assert_eq!((rate, warmup, epochs, batch), (1e-5, 5, 15, 16));
        assert_eq!((config.adapter.rank, config.adapter.alpha), (16, 16.0));
        assert!(
            config.data[0].path.ends_with("rows.jsonl")
                && config.data[0].path.parent() != Some(Path::new(""))
        );
    }

    #[test]
    fn flags_win() {
        let text = format!("[train]\nrate = 1e-4\n{DATA}");
        let set = ["train.rate=3e-4", "base.model=other", "adapter.targets=['q_proj']", "train.steps=7"];
        let config = read(&text, &set).unwrap();
        assert_eq!((config.train.rate, config.train.steps), (3e-4, Some(7)));
        assert_eq!(config.base.model, "other");
        assert_eq!(config.adapter.targets.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        fn check(text: &str, set: &[&str], expected: &str) {
            let error = read(text, set).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check("", &[], "`data` must be at least one file");
        check("data = [", &[], "line 1");
        check(&format!("[train]\nspeed = 1\n{DATA}"), &[], "speed");
        check(&format!("[train]\nrate = 'fast'\n{DATA}"), &[], "train.rate");
        check(DATA, &["train.rate=-1"], "`train.rate` must be above 0");
        check(DATA, &["train.rate"], "is not KEY=VALUE");
        check(DATA, &["base.device=tpu"], "unknown device");
        check(&format!("{DATA}weight = 0"), &[], "data.weight");
        check(&format!("{DATA}part = {{ block = 9, of = 2, take = 2 }}"), &[], "data.part");
    }
}
