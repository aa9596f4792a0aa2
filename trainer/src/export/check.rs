//! Asks an export what it asks the base with the adapter apart, and measures how far the answers are from each other.

mod prompts;

use std::path::Path;

use candle_core::Tensor;
use forethought_core::conversation::Conversation;
use forethought_core::guard::bundle::{Bundle, Manifest};
use forethought_core::guard::{prompt::Prompt, transcript};
use forethought_core::model::sampler::argmax;
use forethought_core::model::{Adapter, Checkpoint, Decoder, LoadOptions, Precision, Sequence, Want};
use serde::Serialize;

use super::{Export, Tuned};
use crate::error::{Result, TrainError};

pub use prompts::{BUILT_IN, conversations};

/// Positions of a prompt whose logits are compared: its end, up to the verdict.
const POSITIONS: usize = 32;
/// Most tokens of a conversation; the rest is cut off, for this is about the weights and not the text.
const CONVERSATION_TOKENS: usize = 512;

/// How far answers are from the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Largest difference of a logit, in standard deviations of the reference's logits at that position.
    pub logits: f64,
    /// Root mean square of all those differences.
    pub logits_rms: f64,
    /// Share of positions where the same token is best, in [0, 1].
    pub same_argmax: f64,
    /// Largest difference of a verdict's margin (the harmful label's logit minus the benign one's).
    pub margin: f64,
    /// Largest difference of a verdict's score, a probability.
    pub score: f64,
}

/// The prompts in token ids, each up to where its verdict is asked for at once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Questions {
    prefix: Vec<u32>,
    rest: Vec<Vec<u32>>,
    harmful: u32,
    benign: u32,
}

impl Questions {
    fn new(manifest: &Manifest, model: &Checkpoint, conversations: &[Conversation]) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let prompt = Prompt::new(manifest, &tokenizer, &model.chat_template()?)?;
        let rest = conversations.iter().map(|conversation| {
            let mut ids = tokenizer.encode_text(&transcript::render(conversation))?;
            ids.truncate(CONVERSATION_TOKENS);
            ids.extend_from_slice(&prompt.suffix);
            ids.extend_from_slice(&prompt.direct_verdict);
            Ok(ids)
        });
        let label = |ids: &[u32]| {
            let empty = || TrainError::Export { problem: "a verdict's label has no tokens".to_owned() };
            ids.first().copied().ok_or_else(empty)
        };
        Ok(Self {
            rest: rest.collect::<Result<_>>()?,
            harmful: label(&prompt.harmful)?,
            benign: label(&prompt.benign)?,
            prefix: prompt.prefix,
        })
    }

    /// For every prompt the logits `[positions, vocab]` of its end.
    fn ask(&self, decoder: &Decoder) -> Result<Vec<Tensor>> {
        let mut prefix = decoder.new_cache()?;
        let sequence = Sequence { tokens: &self.prefix, cache: &mut prefix, want: Want::Nothing };
        decoder.forward(&mut [sequence], &[])?;
        let answer = |ids: &Vec<u32>| {
            let mut cache = prefix.fork(ids.len())?;
            let (before, end) = ids.split_at(ids.len().saturating_sub(POSITIONS));
            if !before.is_empty() {
                let sequence = Sequence { tokens: before, cache: &mut cache, want: Want::Nothing };
                decoder.forward(&mut [sequence], &[])?;
            }
            let sequence = Sequence { tokens: end, cache: &mut cache, want: Want::All };
            Ok(decoder.forward(&mut [sequence], &[])?.logits.swap_remove(0))
        };
        self.rest.iter().map(answer).collect()
    }

    fn margin(&self, logits: &[f32]) -> f64 {
        let logit = |id: u32| logits.get(id as usize).copied().map_or(f64::NAN, f64::from);
        logit(self.harmful) - logit(self.benign)
    }
}

/// The reference's answers, and all that is needed to ask others.
pub struct Check<'a> {
    base: &'a Checkpoint,
    manifest: &'a Manifest,
    conversations: &'a [Conversation],
    questions: Questions,
    answers: Vec<Tensor>,
}

impl<'a> Check<'a> {
    /// Asks the base with the adapter apart, in f32. The prompts are those of a guard with this manifest.
    ///
    /// # Errors
    /// When there is nothing to ask, or the base model's files are damaged or do not fit the adapter or the manifest.
    pub fn new(
        base: &'a Checkpoint,
        tuned: &Tuned,
        manifest: &'a Manifest,
        conversations: &'a [Conversation],
    ) -> Result<Self> {
        if conversations.is_empty() {
            return Err(TrainError::Export {
                problem: "there are no prompts to compare exports on".to_owned(),
            });
        }
        let questions = Questions::new(manifest, base, conversations)?;
        let answers = questions.ask(&load(base, Some(&tuned.adapter()?))?)?;
        Ok(Self { base, manifest, conversations, questions, answers })
    }

    /// Prompts asked.
    pub fn prompts(&self) -> usize {
        self.answers.len()
    }

    /// Positions whose logits are compared.
    pub fn positions(&self) -> usize {
        self.answers.iter().map(|answer| answer.dims()[0]).sum()
    }

    /// How far the base without the adapter is from the reference: what the adapter does at all. An export that is
    /// off by as much has lost it.
    ///
    /// # Errors
    /// When memory is short.
    pub fn untuned(&self) -> Result<Figures> {
        self.measure(&self.questions.ask(&load(self.base, None)?)?)
    }

    /// Reads an export back and asks it.
    ///
    /// # Errors
    /// When it can't be read, or reads the same prompts as other tokens.
    pub fn compare(&self, export: &Export, path: &Path) -> Result<Figures> {
        let answers = match export {
            Export::Peft(_) => self.questions.ask(&load(self.base, Some(&Adapter::open(path)?))?)?,
            Export::Bundle(..) => {
                let bundle = Bundle::open(&path.to_string_lossy())?;
                self.check_questions(export, &bundle.manifest, self.base)?;
                let missing = || TrainError::Export { problem: "the bundle has no adapter".to_owned() };
                let adapter = bundle.adapter()?.ok_or_else(missing)?;
                self.questions.ask(&load(self.base, Some(&adapter))?)?
            }
            Export::Safetensors(_) | Export::Gguf(_) => {
                let model = Checkpoint::open(path)?;
                self.check_questions(export, self.manifest, &model)?;
                self.questions.ask(&load(&model, None)?)?
            }
        };
        self.measure(&answers)
    }

    fn check_questions(&self, export: &Export, manifest: &Manifest, model: &Checkpoint) -> Result<()> {
        if Questions::new(manifest, model, self.conversations)? == self.questions {
            return Ok(());
        }
        let problem = format!(
            "the {} export reads the same prompts as other tokens than the base does",
            export.label()
        );
        Err(TrainError::Export { problem })
    }

    fn measure(&self, answers: &[Tensor]) -> Result<Figures> {
        let calibration = self.manifest.calibration.direct;
        let (mut figures, mut same, mut squares, mut count) = (Figures::default(), 0, 0.0, 0u64);
        // A value that is no number is as far off as can be; `f64::max` would pass over it.
        let worst = |worst: &mut f64, value: f64| {
            *worst = worst.max(if value.is_nan() { f64::INFINITY } else { value.abs() });
        };
        for (expected, found) in self.answers.iter().zip(answers) {
            let (expected, found): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (expected.to_vec2()?, found.to_vec2()?);
            for (expected, found) in expected.iter().zip(&found) {
                let deviation = deviation(expected);
                for (expected, found) in expected.iter().zip(found) {
                    let difference = f64::from(found - expected) / deviation;
                    worst(&mut figures.logits, difference);
                    squares += difference * difference;
                    count += 1;
                }
                same += usize::from(argmax(expected) == argmax(found));
            }
            if let (Some(expected), Some(found)) = (expected.last(), found.last()) {
                let [expected, found] = [expected, found].map(|logits| self.questions.margin(logits));
                worst(&mut figures.margin, found - expected);
                worst(&mut figures.score, calibration.probability(found) - calibration.probability(expected));
            }
        }
        figures.logits_rms = (squares / count as f64).sqrt();
        figures.same_argmax = same as f64 / self.positions() as f64;
        Ok(figures)
    }
}

fn load(model: &Checkpoint, adapter: Option<&Adapter>) -> Result<Decoder> {
    let options =
        LoadOptions { precision: Precision::Dense, adapter, keep_adapter_apart: true, ..Default::default() };
    Ok(Decoder::load(model, &options)?)
}

fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count).sqrt()
}
