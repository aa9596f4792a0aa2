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
        let weight: f64 = examples.iter().map(|example| example.weight()).sum();
        if weight <= 0.0 {
            return Err(TrainError::Example {
                index: 0,
                reason: "no token of this batch has a loss weight above 0".into(),
            });
        }
        let (shares, scale) = (self.share(examples), (1.0 / weight) as f32);
        let (model, layout, settings) = (&*self.model, &*self.layout, &self.settings);
        let sums: Vec<f64> = self
            .lanes
            .par_iter_mut()
            .zip(&shares)
            .map(|(Lane { worker, grads }, share)| {
                grads.clear();
                grads.resize(layout.len, 0.0);
                let mut sum = 0.0;
                for packed in share {
                    let pass = Pass { model, layout, values, packed, recompute: settings.recompute };
                    sum += worker.gradients(pass, scale, grads);
                }
                sum
            })
            .collect();
        const CHUNK: usize = 1 << 14;
        grads.par_chunks_mut(CHUNK).enumerate().for_each(|(i, sum)| {
            sum.fill(0.0);
            for lane in &self.lanes {
                sum.iter_mut().zip(&lane.grads[i * CHUNK..]).for_each(|(sum, grad)| *sum += grad);
            }
        });
        let tokens = examples.iter().map(|example| example.positions()).sum();
        Ok(BatchLoss { loss: sums.iter().sum::<f64>() / weight, weight, tokens })
    }

    /// The loss of a batch without gradients, as for validation.
    ///
    /// # Errors
    /// As for [`gradients`](Self::gradients).
    pub fn loss(&mut self, values: &[f32], examples: &[&Example]) -> Result<BatchLoss> {
        data::check(examples, self.model.dimensions.vocabulary)?;
        let weight: f64 = examples.iter().map(|example| example.weight()).sum();
        let shares = self.share(examples);
        let (model, layout) = (&*self.model, &*self.layout);
        let sums: Vec<f64> = self
            .lanes
            .par_iter_mut()
            .zip(&shares)
            .map(|(lane, share)| {
                let weighted = |packed: &Packed| -> f64 {
                    let pass = Pass { model, layout, values, packed, recompute: true };
                    let nll = lane.worker.losses(pass);
                    let pairs = packed.targets.iter().zip(nll);
                    pairs.map(|(target, nll)| f64::from(target.weight) * f64::from(nll)).sum()
                };
                share.iter().map(weighted).sum()
            })
            .collect();
        let tokens = examples.iter().map(|example| example.positions()).sum();
        Ok(BatchLoss { loss: sums.iter().sum::<f64>() / weight.max(f64::MIN_POSITIVE), weight, tokens })
    }

    /// Shares a batch out: the longest sequence first, each to the worker with the least to do. A worker's share
    /// comes in packed batches of at most the settings' tokens.
    fn share(&self, examples: &[&Example]) -> Vec<Vec<Packed>> {
        let d = &self.model.dimensions;
        let block = d.hidden * (d.heads.width() + d.heads.query_width() + 3 * d.mlp);
        let cost = |example: &Example| {
            let targets = example.weights.iter().skip(1).filter(|&&weight| weight > 0.0).count();
            example.positions() * block * d.layers + targets * d.hidden * d.vocabulary
        };
        let mut order: Vec<(usize, &Example)> = examples.iter().map(|e| (cost(e), *e)).collect();
        order.sort_by_key(|&(cost, _)| std::cmp::Reverse(cost));
        let mut shares: Vec<(usize, Vec<&Example>)> = vec![(0, Vec::new()); self.lanes.len()];
        for (cost, example) in order {
            if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
                *load += cost;
                share.push(example);
            }
        }
        shares.into_iter().map(|(_, share)| pack(&share, self.settings.tokens)).collect()
    }
}

/// Cuts sequences, in order, into packed batches of at most `limit` tokens.
fn pack(examples: &[&Example], limit: usize) -> Vec<Packed> {
    let mut batches: Vec<Vec<&Example>> = Vec::new();
    let mut held = usize::MAX;
    for &example in examples.iter().filter(|example| example.positions() > 0) {
        held = held.saturating_add(example.positions());
        match batches.last_mut() {
            Some(batch) if held <= limit => batch.push(example),
            _ => {
                batches.push(vec![example]);
                held = example.positions();
            }
        }
    }
    batches.into_iter().map(Packed::new).collect()
}
