//! Gradients on the CPU: a batch is shared out to workers, one a core, by whole sequences.
//!
//! Workers never wait for each other inside a step, and each runs the plain serial code of [`crate::pass`]. Which
//! sequence goes where depends on the lengths and the number of workers alone, and their gradients are summed in
//! order, so a step's result is the same bits each time.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::adapter::Layout;
use crate::data::{self, Example, Packed};
use crate::error::{Result, TrainError};
use crate::model::FrozenModel;
use crate::pass::{Pass, Worker};

/// How a step is run; nothing here changes what it computes, save for rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuSettings {
    /// Workers; part of a run's record, since another number sums gradients in another order.
    pub workers: usize,
    /// Most tokens a worker holds activations of at once. A longer sequence is taken alone.
    pub tokens: usize,
    /// Keep only each block's input and run blocks again in the backward pass.
    pub recompute: bool,
}

impl Default for CpuSettings {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self { workers, tokens: 512, recompute: false }
    }
}

/// A batch's loss and size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchLoss {
    /// Weighted mean of the negative log-likelihoods.
    pub loss: f64,
    /// Sum of the weights.
    pub weight: f64,
    /// Rows computed.
    pub tokens: usize,
}

/// The base model with the buffers to train an adapter for it.
pub struct CpuEngine {
    model: Arc<FrozenModel>,
    layout: Arc<Layout>,
    settings: CpuSettings,
    lanes: Vec<Lane>,
}

/// A worker and the gradients it has summed.
struct Lane {
    worker: Worker,
    grads: Vec<f32>,
}

impl CpuEngine {
    /// # Errors
    /// When the model's parts do not fit together, or a setting is zero.
    pub fn new(model: Arc<FrozenModel>, layout: Arc<Layout>, settings: CpuSettings) -> Result<Self> {
        model.check()?;
        for (setting, value) in [("workers", settings.workers), ("tokens", settings.tokens)] {
            if value == 0 {
                return Err(TrainError::Setting { setting, value: "0".into(), expected: "at least 1" });
            }
        }
        let lanes =
            (0..settings.workers).map(|_| Lane { worker: Worker::new(&model), grads: Vec::new() }).collect();
        Ok(Self { model, layout, settings, lanes })
    }

    /// Writes to `grads` the gradient of the batch's loss (the weighted mean over all its targets) with respect to
    /// `values`.
    ///
    /// # Errors
    /// When an example does not fit the model, or no token of the batch has a weight.
    pub fn gradients(
        &mut self,
        values: &[f32],
        examples: &[&Example],
        grads: &mut [f32],
    ) -> Result<BatchLoss> {
        data::check(examples, self.model.dimensions.vocabulary)?;
        let batch = BatchLoss::new(examples);
        if batch.weight <= 0.0 {
            let reason = "no token of this batch has a loss weight above 0".into();
            return Err(TrainError::Example { index: 0, reason });
        }
        let scale = (1.0 / batch.weight) as f32;
        let (layout, recompute) = (self.layout.clone(), self.settings.recompute);
        for lane in &mut self.lanes {
            lane.grads.clear();
            lane.grads.resize(layout.len, 0.0);
        }
        let sums = self.each(&sizes(examples), |model, lane, indices| {
            let packed = &Packed::new(indices.iter().map(|&i| examples[i]));
            let pass = Pass { model, layout: &layout, values, packed, recompute };
            lane.worker.gradients(pass, scale, &mut lane.grads)
        });
        const CHUNK: usize = 1 << 14;
        grads.par_chunks_mut(CHUNK).enumerate().for_each(|(i, sum)| {
            sum.fill(0.0);
            for lane in &self.lanes {
                sum.iter_mut().zip(&lane.grads[i * CHUNK..]).for_each(|(sum, grad)| *sum += grad);
            }
        });
        Ok(BatchLoss { loss: sums.iter().sum::<f64>() / batch.weight, ..batch })
    }

    /// The loss of a batch without gradients, as for validation.
    ///
    /// # Errors
    /// When an example does not fit the model.
    pub fn loss(&mut self, values: &[f32], examples: &[&Example]) -> Result<BatchLoss> {
        data::check(examples, self.model.dimensions.vocabulary)?;
        let layout = self.layout.clone();
        let sums = self.each(&sizes(examples), |model, lane, indices| {
            let packed = &Packed::new(indices.iter().map(|&i| examples[i]));
            let nll = lane.worker.losses(Pass { model, layout: &layout, values, packed, recompute: true });
            let pairs = packed.targets.iter().zip(nll);
            pairs.map(|(target, nll)| f64::from(target.weight) * f64::from(nll)).sum::<f64>()
        });
        let batch = BatchLoss::new(examples);
        Ok(BatchLoss { loss: sums.iter().sum::<f64>() / batch.weight.max(f64::MIN_POSITIVE), ..batch })
    }

    /// For each prompt the log-probabilities of `candidates` as its next token, as for a verdict's two labels.
    ///
    /// # Errors
    /// When a prompt is empty, or a token is not in the vocabulary.
    pub fn log_probabilities(
        &mut self,
        values: &[f32],
        prompts: &[&[u32]],
        candidates: &[u32],
    ) -> Result<Vec<Vec<f32>>> {
        data::check_prompts(prompts, self.model.dimensions.vocabulary)?;
        data::check_prompts(&[candidates], self.model.dimensions.vocabulary)?;
        let layout = self.layout.clone();
        let sizes: Vec<Size> =
            prompts.iter().map(|prompt| Size { positions: prompt.len(), targets: 1 }).collect();
        let parts = self.each(&sizes, |model, lane, indices| {
            let packed = &Packed::prompts(indices.iter().map(|&i| prompts[i]));
            let pass = Pass { model, layout: &layout, values, packed, recompute: true };
            let rows = lane.worker.log_probabilities(pass, candidates);
            let rows = rows.chunks_exact(candidates.len()).map(<[f32]>::to_vec);
            indices.iter().copied().zip(rows).collect::<Vec<_>>()
        });
        let mut out = vec![Vec::new(); prompts.len()];
        for (index, row) in parts.into_iter().flatten() {
            out[index] = row;
        }
        Ok(out)
    }

    /// Runs `work` on packed batches that together hold every sequence once, given by their indices. Sequences are
    /// shared out longest first, each to the worker with the least to do; a batch holds at most the settings' tokens.
    /// Results come in a fixed order.
    fn each<T: Send>(
        &mut self,
        sizes: &[Size],
        work: impl Fn(&FrozenModel, &mut Lane, &[usize]) -> T + Sync,
    ) -> Vec<T> {
        let model = &*self.model;
        let mut order: Vec<usize> = (0..sizes.len()).filter(|&i| sizes[i].positions > 0).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(sizes[i].cost(model)));
        let mut shares = vec![(0, Vec::new()); self.lanes.len()];
        for index in order {
            if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
                *load += sizes[index].cost(model);
                share.push(index);
            }
        }
        let limit = self.settings.tokens;
        let lanes = self.lanes.par_iter_mut().zip(&shares);
        let results = lanes.map(|(lane, (_, share))| {
            cut(share, sizes, limit).iter().map(|batch| work(model, lane, batch)).collect::<Vec<T>>()
        });
        results.collect::<Vec<_>>().into_iter().flatten().collect()
    }
}

impl BatchLoss {
    /// The size of a batch, its loss still unknown.
    fn new(examples: &[&Example]) -> Self {
        let weight = examples.iter().map(|example| example.weight()).sum();
        Self { loss: 0.0, weight, tokens: examples.iter().map(|example| example.positions()).sum() }
    }
}

/// What a sequence costs.
struct Size {
    positions: usize,
    targets: usize,
}

impl Size {
    /// Multiplications with frozen weights.
    fn cost(&self, model: &FrozenModel) -> usize {
        let d = &model.dimensions;
        let block = d.hidden * (d.heads.width() + d.heads.query_width() + 3 * d.mlp);
        self.positions * block * d.layers + self.targets * d.hidden * d.vocabulary
    }
}

fn sizes(examples: &[&Example]) -> Vec<Size> {
    examples.iter().map(|e| Size { positions: e.positions(), targets: e.targets() }).collect()
}

/// Cuts sequences, in order, into batches of at most `limit` tokens; a longer sequence is a batch of its own.
fn cut(share: &[usize], sizes: &[Size], limit: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut held = 0;
    for &index in share {
        held += sizes[index].positions;
        match batches.last_mut() {
            Some(batch) if held <= limit => batch.push(index),
            _ => {
                held = sizes[index].positions;
                batches.push(vec![index]);
            }
        }
    }
    batches
}
