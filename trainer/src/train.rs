//! The training loop's step: draw a batch, compute its gradients, clip, update. Files, evaluation and progress are
//! the caller's.

use std::path::Path;
use std::sync::Arc;

use forethought_core::model::DeviceChoice;

use crate::adapter::{Layout, LoraConfig};
use crate::cpu::{BatchLoss, CpuSettings};
use crate::data::{self, Draws, Example, Shuffle};
use crate::engine::Engine;
use crate::error::{Result, TrainError};
use crate::model::FrozenModel;
use crate::optim::{self, AdamConfig, AdamW};
use crate::schedule::{Decay, Schedule};
use crate::state::{Progress, State, read_adapter};

/// A run's settings; the defaults are R1-Act's (arXiv 2508.00324).
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// The adapter.
    pub lora: LoraConfig,
    /// The optimizer.
    pub adam: AdamConfig,
    /// Highest learning rate.
    pub rate: f64,
    /// How it falls.
    pub decay: Decay,
    /// Steps over which it rises.
    pub warmup: usize,
    /// Passes over all items.
    pub epochs: usize,
    /// Length of the run in steps, instead of `epochs`.
    pub steps: Option<usize>,
    /// Items a step. However many, memory is bounded by [`CpuSettings::tokens`].
    pub batch: usize,
    /// Highest norm of the gradients; larger ones are scaled down.
    pub clip: Option<f64>,
    /// Seed of the adapter's start and of the order of examples.
    pub seed: u64,
    /// How steps are run.
    pub cpu: CpuSettings,
    /// Where.
    pub device: DeviceChoice,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lora: LoraConfig::default(),
            adam: AdamConfig::default(),
            rate: 1e-5,
            decay: Decay::Cosine,
            warmup: 5,
            epochs: 15,
            steps: None,
            batch: 16,
            clip: Some(1.0),
            seed: 42,
            cpu: CpuSettings::default(),
            device: DeviceChoice::Cpu,
        }
    }
}

/// Items that are drawn alike.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// An item is one or more sequences that are always drawn together, such as the two forms of a row: what they have
    /// in common is computed once.
    pub items: Vec<Vec<Example>>,
    /// Draws in an epoch.
    pub draws: usize,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 0.
    pub step: usize,
    /// The batch before the update.
    pub batch: BatchLoss,
    /// The gradients' norm before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub rate: f64,
}

/// A run in progress.
pub struct Trainer {
    config: TrainConfig,
    layout: Arc<Layout>,
    engine: Engine,
    items: Vec<Vec<Example>>,
    shuffle: Shuffle,
    schedule: Schedule,
    state: State,
    grads: Vec<f32>,
}

impl Trainer {
    /// A run from the start.
    ///
    /// # Errors
    /// When the model is inconsistent, an example does not fit it, or a setting has no meaning.
    pub fn new(model: Arc<FrozenModel>, sources: Vec<Source>, config: TrainConfig) -> Result<Self> {
        let draws: Vec<Draws> =
            sources.iter().map(|s| Draws { items: s.items.len(), draws: s.draws }).collect();
        let positive = [
            ("adapter.rank", config.lora.rank),
            ("train.epochs", config.steps.unwrap_or(config.epochs)),
            ("train.batch", config.batch),
            ("the number of examples drawn", draws.iter().filter(|d| d.items > 0).map(|d| d.draws).sum()),
        ];
        if let Some((setting, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(TrainError::Setting { setting, value: "0".into(), expected: "at least 1" });
        }
        let items: Vec<Vec<Example>> = sources.into_iter().flat_map(|source| source.items).collect();
        data::check(&items.iter().flatten().collect::<Vec<_>>(), model.dimensions.vocabulary)?;
        let layout = Arc::new(Layout::new(&model.dimensions, &config.lora));
        let device = config.device.open()?;
        let engine = Engine::new(model, layout.clone(), config.cpu.clone(), &device)?;
        let shuffle = Shuffle::new(draws, config.batch, config.seed);
        let steps = config.steps.unwrap_or(config.epochs * shuffle.steps_an_epoch());
        let schedule = Schedule { rate: config.rate, decay: config.decay, warmup: config.warmup, steps };
        let progress =
            Progress { step: 0, lora: config.lora.clone(), seed: config.seed, workers: config.cpu.workers };
        let state = State { progress, values: layout.init(config.seed), optimizer: AdamW::new(layout.len) };
        let grads = vec![0.0; layout.len];
        Ok(Self { config, layout, engine, items, shuffle, schedule, state, grads })
    }

    /// Begins with the adapter of a saved state, of whatever run, or of a PEFT folder, instead of one that changes nothing.
    ///
    /// # Errors
    /// When it can't be read or has another shape.
    pub fn begin_with(&mut self, folder: &Path) -> Result<()> {
        self.state.values = read_adapter(folder, &self.layout)?;
        Ok(())
    }

    /// Goes on from a saved state, exactly as if the run had not stopped.
    ///
    /// # Errors
    /// When the state can't be read or belongs to a run with other settings.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let state = State::load(folder, &self.layout)?;
        let same = Progress { step: state.progress.step, ..self.state.progress.clone() };
        if state.progress != same {
            return Err(TrainError::Checkpoint {
                path: folder.to_owned(),
                reason: format!("it was made with {:?}, this run has {same:?}", state.progress),
            });
        }
        self.state = state;
        Ok(())
    }

    /// Writes the state into a folder.
    ///
    /// # Errors
    /// As for [`State::save`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.state.save(folder, &self.layout)
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> usize {
        self.schedule.steps
    }

    /// Steps of one pass over the items.
    pub fn steps_an_epoch(&self) -> usize {
        self.shuffle.steps_an_epoch()
    }

    /// What the run has come to.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where the adapter's factors lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The engine, to evaluate with.
    pub fn engine(&mut self) -> (&mut Engine, &[f32]) {
        (&mut self.engine, &self.state.values)
    }

    /// Takes the next step; `None` when the run is over. A step that fails has changed nothing.
    ///
    /// # Errors
    /// When the loss or a gradient is not a finite number.
    pub fn step(&mut self) -> Result<Option<StepReport>> {
        let step = self.state.progress.step;
        if step >= self.schedule.steps {
            return Ok(None);
        }
        let batch: Vec<&Example> = self.shuffle.batch(step).iter().flat_map(|&i| &self.items[i]).collect();
        let batch = self.engine.gradients(&self.state.values, &batch, &mut self.grads)?;
        let grad_norm = optim::norm(&self.grads);
        for (what, value) in [("loss", batch.loss), ("gradient norm", grad_norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged { step, what, value });
            }
        }
        let rate = self.schedule.at(step);
        let scale = optim::clip_factor(grad_norm, self.config.clip);
        self.state.optimizer.step(&self.config.adam, rate, &mut self.state.values, &self.grads, scale);
        self.state.progress.step += 1;
        Ok(Some(StepReport { step, batch, grad_norm, rate }))
    }
}
