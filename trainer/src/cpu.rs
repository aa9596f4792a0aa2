//! Gradients on the CPU: a batch is shared out to workers, one a core, by whole sequences.
//!
//! Workers never wait for each other inside a step, and each runs the plain serial code of `pass`. Which
//! sequence goes where depends on the lengths and the number of workers alone, and their gradients are summed in
//! order, so a step's result is the same bits each time.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::adapter::Layout;
use crate::data::{self, Example, Packed, common_prefix};
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
    /// Tokens of its sequences, save each one's last, which is only predicted.
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
        let sums = self.each(&work(examples), |model, lane, indices| {
            let packed = &Packed::new(&pick(examples, indices));
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
        let sums = self.each(&work(examples), |model, lane, indices| {
            let packed = &Packed::new(&pick(examples, indices));
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
        let work: Vec<Work> = prompts.iter().map(|prompt| Work { inputs: prompt, targets: 1 }).collect();
        let parts = self.each(&work, |model, lane, indices| {
            let packed = &Packed::prompts(&pick(prompts, indices));
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

    /// Runs `run` on batches that together hold every sequence once, given by their indices; a batch holds at most the
    /// settings' tokens, one longer sequence aside. Results come in a fixed order.
    ///
    /// Sequences with a long beginning in common stay together, since that is computed once a batch. Otherwise the
    /// longest go first, each to the worker with the least to do.
    fn each<T: Send>(
        &mut self,
        work: &[Work<'_>],
        run: impl Fn(&FrozenModel, &mut Lane, &[usize]) -> T + Sync,
    ) -> Vec<T> {
        let model = &*self.model;
        let mut order: Vec<usize> = (0..work.len()).filter(|&i| !work[i].inputs.is_empty()).collect();
        order.sort_by_key(|&i| work[i].inputs);
        let shared = |a: usize, b: usize| common_prefix(work[a].inputs, work[b].inputs);
        let by_all = order.windows(2).map(|pair| shared(pair[0], pair[1])).min().unwrap_or(0);
        let cost = |group: &[usize]| {
            let first = work[group[0]].cost(model, 0);
            let rest = group.windows(2).map(|pair| work[pair[1]].cost(model, shared(pair[0], pair[1])));
            first + rest.sum::<usize>()
        };
        let mut groups: Vec<(usize, &[usize])> = order
            .chunk_by(|&a, &b| shared(a, b) >= by_all + TOGETHER)
            .map(|group| (cost(group), group))
            .collect();
        groups.sort_by_key(|&(cost, _)| std::cmp::Reverse(cost));
        let mut shares = vec![(0, Vec::new()); self.lanes.len()];
        for (cost, group) in groups {
            if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
                *load += cost;
                share.extend_from_slice(group);
            }
        }
        let limit = self.settings.tokens;
        let lanes = self.lanes.par_iter_mut().zip(shares);
        let results = lanes.map(|(lane, (_, mut share))| {
            share.sort_by_key(|&i| work[i].inputs);
            cut(&share, work, limit).into_iter().map(|batch| run(model, lane, batch)).collect::<Vec<T>>()
        });
        results.collect::<Vec<_>>().into_iter().flatten().collect()
    }
}

/// Tokens in common, beyond what all sequences of a batch have in common, that make two sequences stay together.
const TOGETHER: usize = 16;

impl BatchLoss {
    /// The size of a batch, its loss still unknown.
    pub(crate) fn new(examples: &[&Example]) -> Self {
        let weight = examples.iter().map(|example| example.weight()).sum();
        Self { loss: 0.0, weight, tokens: examples.iter().map(|example| example.positions()).sum() }
    }
}

/// A sequence to be computed.
struct Work<'a> {
    inputs: &'a [u32],
    targets: usize,
}

impl Work<'_> {
    /// Multiplications with frozen weights, where the first `shared` tokens are computed already.
    fn cost(&self, model: &FrozenModel, shared: usize) -> usize {
        let d = &model.dimensions;
        let block = d.hidden * (d.heads.width() + d.heads.query_width() + 3 * d.mlp);
        (self.inputs.len() - shared) * block * d.layers + self.targets * d.hidden * d.vocabulary
    }
}

fn work<'a>(examples: &[&'a Example]) -> Vec<Work<'a>> {
    let work = |e: &&'a Example| Work { inputs: &e.tokens[..e.positions()], targets: e.targets() };
    examples.iter().map(work).collect()
}

fn pick<'a, T: ?Sized>(items: &[&'a T], indices: &[usize]) -> Vec<&'a T> {
    indices.iter().map(|&i| items[i]).collect()
}

/// Cuts sorted sequences into batches that compute at most `limit` tokens; a longer sequence is a batch of its own.
fn cut<'a>(share: &'a [usize], work: &[Work<'_>], limit: usize) -> Vec<&'a [usize]> {
    let (mut batches, mut start, mut held) = (Vec::new(), 0, 0);
    for (at, &index) in share.iter().enumerate() {
        let inputs = work[index].inputs;
        let shared = if at == start { 0 } else { common_prefix(inputs, work[share[at - 1]].inputs) };
        held += inputs.len() - shared;
        if at > start && held > limit {
            batches.push(&share[start..at]);
            (start, held) = (at, inputs.len());
        }
    }
    batches.extend((start < share.len()).then(|| &share[start..]));
    batches
}
