//! Where losses and gradients are computed: by hand-written passes on the processor, by candle's autograd elsewhere.

use std::sync::Arc;

use candle_core::Device;

use crate::adapter::Layout;
use crate::cpu::{BatchLoss, CpuEngine, CpuSettings};
use crate::data::{self, Example};
use crate::error::{Result, TrainError};
use crate::model::FrozenModel;
use crate::stock::StockModel;

/// The base model on its device, ready to train an adapter for it.
pub enum Engine {
    /// The processor.
    Cpu(CpuEngine),
    /// A device of candle's.
    Device(DeviceEngine),
}

/// The base model on a device of candle's.
pub struct DeviceEngine {
    model: StockModel,
    layout: Arc<Layout>,
    vocabulary: usize,
    /// Most tokens at once; a longer sequence is taken alone.
    tokens: usize,
}

impl Engine {
    /// Puts the model on `device`. Of the settings only `tokens` matters to devices other than the processor.
    ///
    /// # Errors
    /// When the model's parts do not fit together, a setting is zero, or the device has no room.
    pub fn new(
        model: Arc<FrozenModel>,
        layout: Arc<Layout>,
        settings: CpuSettings,
        device: &Device,
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::Cpu(CpuEngine::new(model, layout, settings)?));
        }
        DeviceEngine::new(&model, layout, settings.tokens, device).map(Self::Device)
    }

    /// Writes to `grads` the gradient of the batch's loss (the weighted mean over all its targets) with respect to
    /// `values`.
    ///
    /// # Errors
    /// When an example does not fit the model, no token of the batch has a weight, or the device fails.
    pub fn gradients(
        &mut self,
        values: &[f32],
        examples: &[&Example],
        grads: &mut [f32],
    ) -> Result<BatchLoss> {
        match self {
            Self::Cpu(engine) => engine.gradients(values, examples, grads),
            Self::Device(engine) => engine.gradients(values, examples, grads),
        }
    }

    /// The loss of a batch without gradients.
    ///
    /// # Errors
    /// When an example does not fit the model, or the device fails.
    pub fn loss(&mut self, values: &[f32], examples: &[&Example]) -> Result<BatchLoss> {
        match self {
            Self::Cpu(engine) => engine.loss(values, examples),
            Self::Device(engine) => engine.loss(values, examples),
        }
    }

    /// For each prompt the log-probabilities of `candidates` as its next token.
    ///
    /// # Errors
    /// When a prompt is empty, a token is not in the vocabulary, or the device fails.
    pub fn log_probabilities(
        &mut self,
        values: &[f32],
        prompts: &[&[u32]],
        candidates: &[u32],
    ) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(engine) => engine.log_probabilities(values, prompts, candidates),
            Self::Device(engine) => engine.log_probabilities(values, prompts, candidates),
        }
    }
}

impl DeviceEngine {
    /// Copies the model to `device`.
    ///
    /// # Errors
    /// When the model's parts do not fit together, or the device has no room.
    pub fn new(model: &FrozenModel, layout: Arc<Layout>, tokens: usize, device: &Device) -> Result<Self> {
        model.check()?;
        let vocabulary = model.dimensions.vocabulary;
        Ok(Self { model: StockModel::new(model, device)?, layout, vocabulary, tokens })
    }

    fn gradients(&self, values: &[f32], examples: &[&Example], grads: &mut [f32]) -> Result<BatchLoss> {
        let batch = self.check(examples)?;
        if batch.weight <= 0.0 {
            let reason = "no token of this batch has a loss weight above 0".into();
            return Err(TrainError::Example { index: 0, reason });
        }
        grads.fill(0.0);
        let scale = (1.0 / batch.weight) as f32;
        let mut sum = 0.0;
        for part in parts(&by_length(examples), self.tokens, |example| example.positions()) {
            sum += self.model.gradients(&self.layout, values, part, scale, grads)?;
        }
        Ok(BatchLoss { loss: sum / batch.weight, ..batch })
    }

    fn loss(&self, values: &[f32], examples: &[&Example]) -> Result<BatchLoss> {
        let batch = self.check(examples)?;
        let mut sum = 0.0;
        for part in parts(&by_length(examples), self.tokens, |example| example.positions()) {
            sum += self.model.loss(&self.layout, values, part)?;
        }
        Ok(BatchLoss { loss: sum / batch.weight.max(f64::MIN_POSITIVE), ..batch })
    }

    fn log_probabilities(
        &self,
        values: &[f32],
        prompts: &[&[u32]],
        candidates: &[u32],
    ) -> Result<Vec<Vec<f32>>> {
        data::check_prompts(prompts, self.vocabulary)?;
        data::check_prompts(&[candidates], self.vocabulary)?;
        let mut rows = Vec::new();
        for part in parts(prompts, self.tokens, |prompt| prompt.len()) {
            rows.extend(self.model.log_probabilities(&self.layout, values, part, candidates)?);
        }
        Ok(rows)
    }

    fn check(&self, examples: &[&Example]) -> Result<BatchLoss> {
        data::check(examples, self.vocabulary)?;
        Ok(BatchLoss::new(examples))
    }
}

/// Cuts a batch into parts of at most `limit` tokens, where each sequence counts as its part's longest; a longer sequence is
/// a part of its own.
fn parts<'a, T: ?Sized>(items: &'a [&'a T], limit: usize, tokens: impl Fn(&T) -> usize) -> Vec<&'a [&'a T]> {
    let (mut parts, mut start, mut longest) = (Vec::new(), 0, 0);
    for (at, item) in items.iter().enumerate() {
        longest = longest.max(tokens(item));
        if at > start && (at + 1 - start) * longest > limit {
            parts.push(&items[start..at]);
            (start, longest) = (at, tokens(item));
        }
    }
    parts.extend((start < items.len()).then(|| &items[start..]));
    parts
}

/// Examples by length, so that those of a part need little padding.
fn by_length<'a>(examples: &[&'a Example]) -> Vec<&'a Example> {
    let mut examples = examples.to_vec();
    examples.sort_by_key(|example| example.positions());
    examples
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::LoraConfig;
    use crate::model::{Dimensions, random};

    #[test]
    fn parts_hold_everything_once() {
        let check = |lengths: &[usize], expected: &[&[usize]]| {
            let items: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![0; n]).collect();
            let items: Vec<&[u8]> = items.iter().map(Vec::as_slice).collect();
            let found: Vec<Vec<usize>> = parts(&items, 10, |item| item.len())
                .into_iter()
                .map(|part| part.iter().map(|item| item.len()).collect())
                .collect();
            assert_eq!(found, expected);
        };
        check(&[], &[]);
        check(&[4, 5, 1], &[&[4, 5], &[1]]);
        check(&[4, 6, 1], &[&[4], &[6], &[1]]);
        check(&[1, 1, 3, 1, 2], &[&[1, 1, 3], &[1, 2]]);
        check(&[30, 3, 8], &[&[30], &[3], &[8]]);
    }

    /// Candle's own device path, run on the processor, is what the hand-written passes compute.
    #[test]
    fn both_engines_agree() {
        check_against_processor(&Device::Cpu);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn the_gpu_agrees() {
        check_against_processor(&Device::new_cuda(0).unwrap());
    }

    fn check_against_processor(device: &Device) {
        let model = Arc::new(random::model(Dimensions::tiny(), true, 1));
        let layout =
            Arc::new(Layout::new(&model.dimensions, &LoraConfig { rank: 4, ..LoraConfig::default() }));
        let mut values = layout.init(3);
        values.iter_mut().enumerate().for_each(|(i, v)| *v += (i % 7) as f32 * 0.01);
        let examples: Vec<Example> = (0..5u32)
            .map(|i| Example {
                tokens: (0..9 + i).map(|t| (t * 7 + i) % 53).collect(),
                weights: (0..9 + i).map(|t| if t < 3 { 0.0 } else { 0.5 + (t % 2) as f32 }).collect(),
            })
            .collect();
        let examples: Vec<&Example> = examples.iter().collect();
        let settings = CpuSettings { workers: 2, tokens: 16, recompute: false };
        let mut engines = [
            Engine::new(model.clone(), layout.clone(), settings, &Device::Cpu).unwrap(),
            Engine::Device(DeviceEngine::new(&model, layout.clone(), 16, device).unwrap()),
        ];
        let prompts: Vec<&[u32]> =
            examples.iter().enumerate().map(|(i, example)| &example.tokens[..4 + i]).collect();
        let [one, other] = engines.each_mut().map(|engine| {
            let mut grads = vec![f32::NAN; layout.len];
            let batch = engine.gradients(&values, &examples, &mut grads).unwrap();
            let loss = engine.loss(&values, &examples).unwrap();
            assert!((batch.loss - loss.loss).abs() < 1e-5);
            (batch, grads, engine.log_probabilities(&values, &prompts, &[1, 50]).unwrap())
        });
        assert!((one.0.loss - other.0.loss).abs() < 1e-4);
        assert_eq!((one.0.tokens, one.0.weight), (other.0.tokens, other.0.weight));
        let worst = one.1.iter().zip(&other.1).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 1e-4, "{worst}");
        for (a, b) in one.2.iter().flatten().zip(other.2.iter().flatten()) {
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
        }
    }
}
