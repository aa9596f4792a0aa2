//! A run of supervised fine-tuning from start to end: read, step, score, save.
//!
//! The run's folder holds `config.toml` (every value as used), `metrics.jsonl`, TensorBoard events, `loss.svg`,
//! `eval.svg`, and `checkpoints/` with `last`, `best` and, where asked for, one an epoch.

pub mod evaluation;
pub mod recorder;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forethought_core::guard::bundle::{Bundle, Manifest};
use forethought_core::guard::prompt::Prompt;
use forethought_core::model::{Checkpoint, Tokenizer};

use self::evaluation::{Evaluation, evaluate};
use self::recorder::Recorder;
use crate::config::SftConfig;
use crate::error::{Result, TrainError};
use crate::model::FrozenModel;
use crate::response::Chat;
use crate::source::{Prepared, Renderer, ScoredSet, prepare};
use crate::train::{StepReport, TrainConfig, Trainer};

/// The base model and the template, ready to render rows.
pub struct Base {
    checkpoint: Checkpoint,
    chat: Chat,
    /// The base model's.
    pub tokenizer: Tokenizer,
    /// The template in token ids.
    pub prompt: Prompt,
}

impl Base {
    /// Opens the model at `path` and tokenizes the template of the run's manifest.
    ///
    /// # Errors
    /// When the model's files or the manifest are wrong, or do not fit each other.
    pub fn open(config: &SftConfig, path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = Prompt::new(&manifest(config)?, &tokenizer, &checkpoint.chat_template()?)?;
        let chat = Chat::new(&checkpoint)?;
        Ok(Self { checkpoint, chat, tokenizer, prompt })
    }

    /// Reads and renders the run's rows.
    ///
    /// # Errors
    /// As for [`prepare`].
    pub fn prepare(&self, config: &SftConfig) -> Result<Prepared> {
        let max_tokens = config.train.max_tokens.min(self.checkpoint.config().context);
        let Self { prompt, chat, tokenizer, .. } = self;
        prepare(config, &Renderer { prompt, chat, tokenizer, weights: config.loss, max_tokens })
    }

    /// Reads the frozen weights.
    ///
    /// # Errors
    /// When a tensor is missing, damaged or of another shape.
    pub fn weights(&self, config: &SftConfig) -> Result<Arc<FrozenModel>> {
        Ok(Arc::new(FrozenModel::load(&self.checkpoint, config.base.precision)?))
    }
}

/// The manifest whose template a run trains.
///
/// # Errors
/// When the file is missing or wrong.
pub fn manifest(config: &SftConfig) -> Result<Manifest> {
    Ok(match &config.guard.manifest {
        Some(path) => Manifest::read(path)?,
        None => Bundle::builtin("default")?.manifest,
    })
}

/// The loop's settings.
pub fn train_config(config: &SftConfig) -> TrainConfig {
    let train = &config.train;
    TrainConfig {
        lora: config.adapter.clone(),
        adam: config.optimizer,
        rate: train.rate,
        decay: train.decay,
        warmup: train.warmup,
        epochs: train.epochs,
        steps: train.steps,
        batch: train.batch,
        clip: (train.clip > 0.0).then_some(train.clip),
        seed: train.seed,
        cpu: config.compute.clone(),
        device: config.base.device,
    }
}

/// What a caller sees of a run, besides its folder.
pub trait Observer {
    /// The run begins, or goes on, at `step` of `steps`.
    fn start(&mut self, _step: usize, _steps: usize) {}
    /// A step was taken, in this time.
    fn step(&mut self, _report: &StepReport, _took: Duration) {}
    /// The run was scored; `best` where no state before was better.
    fn evaluated(&mut self, _evaluation: &Evaluation, _best: bool) {}
}

/// Nobody looks.
impl Observer for () {}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps taken in all.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// The last scores.
    pub last: Option<Evaluation>,
    /// The best state's scores.
    pub best: Option<Evaluation>,
}

/// How far to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Until<'a> {
    /// Stop, resumably, once this many steps are taken.
    pub step: Option<usize>,
    /// Stop, resumably, after the step during which this becomes true.
    pub stop: Option<&'a AtomicBool>,
}

/// Runs, or with `resume` goes on with, the run of `config`.
///
/// # Errors
/// Whatever [`prepare`] and [`Trainer`] fail with; files that can't be written. The last checkpoint then is whole.
pub fn run(
    config: &SftConfig,
    base: &Base,
    prepared: Prepared,
    resume: bool,
    until: Until<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let Prepared { sources, sets, reports } = prepared;
    let folder = Folder(config.out.clone());
    folder.claim(resume)?;
    let mut trainer = Trainer::new(base.weights(config)?, sources, train_config(config))?;
    if resume {
        trainer.resume(&folder.last())?;
    } else if let Some(init) = &config.train.init {
        trainer.begin_with(init)?;
    }
    let mut recorder = Recorder::open(&config.out, config, trainer.state().progress.step)?;
    recorder.data(&reports)?;
    let mut run =
        Run { config, base, sets, folder, best: recorder.best(config.evaluation.select), last: None };
    observer.start(trainer.state().progress.step, trainer.steps());
    let result = run.take_steps(&mut trainer, &mut recorder, until, observer);
    recorder.plot()?;
    let stopped = result?;
    let (step, steps) = (trainer.state().progress.step, trainer.steps());
    Ok(Outcome { step, steps, stopped, last: run.last, best: run.best })
}

/// The files of a run's folder that hold states.
struct Folder(PathBuf);

impl Folder {
    fn last(&self) -> PathBuf {
        self.0.join("checkpoints/last")
    }

    fn best(&self) -> PathBuf {
        self.0.join("checkpoints/best")
    }

    /// A new run never writes over an old one.
    fn claim(&self, resume: bool) -> Result<()> {
        let problem = match (resume, self.last().exists(), self.0.join(recorder::METRICS).exists()) {
            (true, false, _) => "there is no checkpoint to resume from",
            (false, true, _) | (false, _, true) => {
                "it holds a run already: go on with it by --resume, or choose another --out"
            }
            _ => return Ok(()),
        };
        Err(TrainError::Folder { path: self.0.clone(), problem })
    }
}

struct Run<'a> {
    config: &'a SftConfig,
    base: &'a Base,
    sets: Vec<ScoredSet>,
    folder: Folder,
    best: Option<Evaluation>,
    last: Option<Evaluation>,
}

impl Run<'_> {
    /// Takes steps up to the end or a stop; whether it was a stop.
    fn take_steps(
        &mut self,
        trainer: &mut Trainer,
        recorder: &mut Recorder,
        until: Until<'_>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let epoch = trainer.steps_an_epoch();
        let every = |steps: usize| if steps == 0 { epoch } else { steps };
        let (evaluate_every, save_every) =
            (every(self.config.evaluation.every), every(self.config.checkpoints.every));
        let mut divergence = Divergence::new(self.config.train.divergence);
        loop {
            let began = Instant::now();
            let report = match trainer.step() {
                Ok(Some(report)) => report,
                Ok(None) => return Ok(false),
                Err(error) => {
                    // The step has changed nothing, so this state is good.
                    trainer.save(&self.folder.last())?;
                    return Err(error);
                }
            };
            let took = began.elapsed();
            recorder.step(&report, took)?;
            observer.step(&report, took);
            divergence.check(&report)?;

            let done = report.step + 1;
            let over = done == trainer.steps();
            let stop = until.step.is_some_and(|step| done >= step)
                || until.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            let scored = done.is_multiple_of(evaluate_every) || over;
            if scored || stop || done.is_multiple_of(save_every) {
                trainer.save(&self.folder.last())?;
            }
            if self.config.checkpoints.keep_epochs && done.is_multiple_of(epoch) {
                trainer.save(&self.folder.0.join(format!("checkpoints/epoch-{}", done / epoch)))?;
            }
            if scored && !self.sets.is_empty() {
                self.evaluate(trainer, recorder, observer, done)?;
            }
            if stop && !over {
                return Ok(true);
            }
        }
    }

    fn evaluate(
        &mut self,
        trainer: &mut Trainer,
        recorder: &mut Recorder,
        observer: &mut dyn Observer,
        step: usize,
    ) -> Result<()> {
        let (engine, values) = trainer.engine();
        let evaluation = evaluate(engine, values, &self.sets, &self.base.prompt, step)?;
        recorder.evaluation(&evaluation)?;
        let better = evaluation.beats(self.best.as_ref(), self.config.evaluation.select);
        if better {
            trainer.save(&self.folder.best())?;
            self.best = Some(evaluation.clone());
        }
        observer.evaluated(&evaluation, better);
        self.last = Some(evaluation);
        recorder.plot()
    }
}

/// Watches for a loss that grows instead of falling.
struct Divergence {
    factor: f64,
    recent: Vec<f64>,
    lowest: f64,
}

/// Steps whose mean loss is looked at: single batches vary too much.
const RECENT: usize = 20;

impl Divergence {
    fn new(factor: f64) -> Self {
        Self { factor, recent: Vec::new(), lowest: f64::INFINITY }
    }

    fn check(&mut self, report: &StepReport) -> Result<()> {
        self.recent.push(report.batch.loss);
        if self.factor == 0.0 || self.recent.len() < RECENT {
            return Ok(());
        }
        let mean = self.recent.iter().sum::<f64>() / RECENT as f64;
        self.recent.remove(0);
        self.lowest = self.lowest.min(mean);
        match mean > self.factor * self.lowest {
            true => Err(TrainError::Diverged { step: report.step, what: "mean loss", value: mean }),
            false => Ok(()),
        }
    }
}
