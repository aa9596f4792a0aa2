//! The same training step out of stock candle operations and candle's autograd: any device, no hand-written gradient.
//!
//! Sequences share nothing here and are padded to one length, and weights are f32 on the device, whatever they were rounded
//! to. It is the test oracle of [`crate::cpu`], and the path of devices other than the CPU. The one custom operation is the
//! identity that keeps candle from computing the gradients of frozen weights.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, D, Device, Layout as TensorLayout, MetalStorage, Shape, Tensor, Var,
};

use crate::adapter::Layout;
use crate::data::Example;
use crate::error::Result;
use crate::model::{Dimensions, FrozenModel};
use crate::ops::linear::{Linear, LoraSlots};
use crate::ops::weight::Frozen;

/// A model's weights as tensors of one device.
pub struct StockModel {
    dimensions: Dimensions,
    embedding: Tensor,
    blocks: Vec<StockBlock>,
    norm: Tensor,
    head: Tensor,
    device: Device,
}

struct StockBlock {
    attention_norm: Tensor,
    qkv: StockLinear,
    qk_norm: Option<(Tensor, Tensor)>,
    output: StockLinear,
    mlp_norm: Tensor,
    gate_up: StockLinear,
    down: StockLinear,
}

struct StockLinear {
    weight: Tensor, // [outputs, inputs]
    bias: Option<Tensor>,
}

/// The matrices of an adapter, by where each begins in the flat vector. They are tensors of their own, since the gradient of a
/// part of one long tensor is as long as the whole.
struct Factors(BTreeMap<usize, Tensor>);

/// Positions, as attention sees them.
struct Places {
    /// `[length, 1, dim / 2]`, as `sin`.
    cos: Tensor,
    sin: Tensor,
    /// `[length, length]`: minus infinity where a key comes after the query.
    mask: Tensor,
}

impl StockModel {
    /// Copies a model to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(model: &FrozenModel, device: &Device) -> Result<Self> {
        let vector = |values: &[f32]| Tensor::new(values, device);
        let matrix = |frozen: &Frozen| {
            let mut values = vec![0.0; frozen.outputs() * frozen.inputs()];
            for (row, out) in values.chunks_exact_mut(frozen.inputs()).enumerate() {
                frozen.row(row, out);
            }
            Tensor::from_vec(values, (frozen.outputs(), frozen.inputs()), device)
        };
        let linear = |layer: &Linear| -> candle_core::Result<StockLinear> {
            let bias = layer.bias.as_deref().map(vector).transpose()?;
            Ok(StockLinear { weight: matrix(&layer.weight)?, bias })
        };
        let mut blocks = Vec::new();
        for block in &model.blocks {
            let qk_norm = match &block.qk_norm {
                Some(norm) => Some((vector(&norm.query)?, vector(&norm.key)?)),
                None => None,
            };
            blocks.push(StockBlock {
                attention_norm: vector(&block.attention_norm)?,
                qkv: linear(&block.qkv)?,
                qk_norm,
                output: linear(&block.output)?,
                mlp_norm: vector(&block.mlp_norm)?,
                gate_up: linear(&block.gate_up)?,
                down: linear(&block.down)?,
            });
        }
        Ok(Self {
            dimensions: model.dimensions.clone(),
            embedding: matrix(&model.embedding)?,
            blocks,
            norm: vector(&model.norm)?,
            head: matrix(&model.head)?,
            device: device.clone(),
        })
    }

    /// Adds to `grads` the gradient of `scale * sum of weight * nll` over the batch, and returns that sum, unscaled.
    ///
    /// # Errors
    /// When the device fails or is out of memory.
    pub fn gradients(
        &self,
        layout: &Layout,
        values: &[f32],
        examples: &[&Example],
        scale: f32,
        grads: &mut [f32],
    ) -> Result<f64> {
        let factors = Factors::new(self, layout, values, true)?;
        let loss = self.weighted_nll(layout, &factors, examples)?;
        let store = (&loss * f64::from(scale))?.backward()?;
        for (start, factor) in &factors.0 {
            if let Some(gradient) = store.get(factor) {
                let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
                grads[*start..].iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// `sum of weight * nll` over the batch, as [`Self::gradients`] has it, without gradients.
    ///
    /// # Errors
    /// When the device fails or is out of memory.
    pub fn loss(&self, layout: &Layout, values: &[f32], examples: &[&Example]) -> Result<f64> {
        let factors = Factors::new(self, layout, values, false)?;
        Ok(f64::from(self.weighted_nll(layout, &factors, examples)?.to_scalar::<f32>()?))
    }

    /// For each prompt the log-probabilities of `candidates` as its next token. No prompt may be empty.
    ///
    /// # Errors
    /// When the device fails or is out of memory.
    pub fn log_probabilities(
        &self,
        layout: &Layout,
        values: &[f32],
        prompts: &[&[u32]],
        candidates: &[u32],
    ) -> Result<Vec<Vec<f32>>> {
        let factors = Factors::new(self, layout, values, false)?;
        let length = longest(prompts);
        let ends = prompts.iter().enumerate().map(|(i, prompt)| (i * length + prompt.len() - 1) as u32);
        let logits = self.logits(layout, &factors, prompts, ends.collect())?;
        let lse = log_sum_exp(&logits)?; // [prompts]
        let candidates = Tensor::new(candidates, &self.device)?;
        let found = logits.index_select(&candidates, 1)?.broadcast_sub(&lse.unsqueeze(1)?)?;
        Ok(found.to_vec2()?)
    }

    /// `sum of weight * nll` over the batch, as a scalar with its graph.
    fn weighted_nll(&self, layout: &Layout, factors: &Factors, examples: &[&Example]) -> Result<Tensor> {
        let inputs: Vec<&[u32]> =
            examples.iter().map(|example| &example.tokens[..example.positions()]).collect();
        let length = longest(&inputs);
        let (mut rows, mut wanted, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (i, example) in examples.iter().enumerate() {
            let predicted = example.tokens.iter().zip(&example.weights).skip(1);
            for (at, (&token, &weight)) in predicted.enumerate().filter(|(_, (_, weight))| **weight > 0.0) {
                rows.push((i * length + at) as u32);
                wanted.push(token);
                weights.push(weight);
            }
        }
        if rows.is_empty() {
            return Ok(Tensor::new(0f32, &self.device)?);
        }
        let logits = self.logits(layout, factors, &inputs, rows)?;
        let wanted = Tensor::new(wanted, &self.device)?.unsqueeze(1)?;
        let nll = (log_sum_exp(&logits)? - logits.gather(&wanted, 1)?.squeeze(1)?)?;
        Ok((nll * Tensor::new(weights, &self.device)?)?.sum_all()?)
    }

    /// Logits `[rows, vocabulary]` of the chosen rows of all sequences. Sequences lie one after the other, each padded at
    /// its end to the longest: what is there is seen by nothing before it.
    fn logits(
        &self,
        layout: &Layout,
        factors: &Factors,
        inputs: &[&[u32]],
        rows: Vec<u32>,
    ) -> Result<Tensor> {
        let length = longest(inputs);
        let padded = inputs
            .iter()
            .flat_map(|input| input.iter().copied().chain(std::iter::repeat_n(0, length - input.len())));
        let tokens = Tensor::from_iter(padded, &self.device)?;
        let places = self.places(length)?;
        let mut x = self.embedding.index_select(&tokens, 0)?;
        for (block, slots) in self.blocks.iter().zip(&layout.blocks) {
            let eps = self.dimensions.norm_eps;
            let lora = |layer: &StockLinear, slots: &LoraSlots, x: &Tensor| linear(layer, slots, factors, x);
            let qkv = lora(&block.qkv, &slots.qkv, &norm(&x, &block.attention_norm, eps)?)?;
            let attention = self.attention(block, &qkv, &places)?;
            x = (x + lora(&block.output, &slots.output, &attention)?)?;
            let gate_up = lora(&block.gate_up, &slots.gate_up, &norm(&x, &block.mlp_norm, eps)?)?;
            let mlp = self.dimensions.mlp;
            let activation = (gate_up.narrow(1, 0, mlp)?.silu()? * gate_up.narrow(1, mlp, mlp)?)?;
            x = (x + lora(&block.down, &slots.down, &activation)?)?;
        }
        let x = x.index_select(&Tensor::new(rows, &self.device)?, 0)?;
        frozen_matmul(&norm(&x, &self.norm, self.dimensions.norm_eps)?, &self.head)
    }

    /// What attention needs to know of positions up to `length`.
    fn places(&self, length: usize) -> Result<Places> {
        let frequencies = &self.dimensions.rope_frequencies;
        let angles: Vec<f32> = (0..length)
            .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
            .collect();
        let angles = Tensor::from_vec(angles, (length, 1, frequencies.len()), &self.device)?;
        let mask: Vec<f32> = (0..length * length)
            .map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (length, length), &self.device)?;
        Ok(Places { cos: angles.cos()?, sin: angles.sin()?, mask })
    }

    /// Attention of a block: `[sequences * length, width]` to `[sequences * length, query_width]`.
    fn attention(&self, block: &StockBlock, qkv: &Tensor, places: &Places) -> Result<Tensor> {
        let Dimensions { heads, norm_eps, .. } = self.dimensions;
        let groups = heads.query / heads.key_value;
        let length = places.mask.dim(0)?;
        let split = |start: usize, count: usize| {
            qkv.narrow(1, start * heads.dim, count * heads.dim)?.reshape(((), length, count, heads.dim))
        };
        let q = split(0, heads.query)?; // [sequences, length, heads, dim]
        let k = split(heads.query, heads.key_value)?;
        let v = split(heads.query + heads.key_value, heads.key_value)?;
        let (q, k) = match &block.qk_norm {
            Some((query, key)) => (norm(&q, query, norm_eps)?, norm(&k, key, norm_eps)?),
            None => (q, k),
        };
        let q = places.rope(&q)?.transpose(1, 2)?.contiguous()?; // [sequences, heads, length, dim]
        let repeat = |x: &Tensor| -> candle_core::Result<Tensor> {
            let (sequences, keys, _, dim) = x.dims4()?;
            let repeated = x.unsqueeze(2)?.broadcast_as((sequences, keys, groups, length, dim))?;
            repeated.reshape((sequences, keys * groups, length, dim))
        };
        let k = repeat(&places.rope(&k)?.transpose(1, 2)?.contiguous()?)?;
        let v = repeat(&v.transpose(1, 2)?.contiguous()?)?;
        let scores = (q.matmul(&k.t()?)? / (heads.dim as f64).sqrt())?.broadcast_add(&places.mask)?;
        let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
        let output = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        Ok(output.reshape(((), heads.query_width()))?)
    }
}

impl Places {
    /// Turns `[sequences, length, heads, dim]`.
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Ok(Tensor::cat(&[first, second], D::Minus1)?)
    }
}

/// Length of the longest sequence.
fn longest(inputs: &[&[u32]]) -> usize {
    inputs.iter().map(|input| input.len()).max().unwrap_or(0)
}

/// `[rows, columns]` to `[rows]`.
fn log_sum_exp(logits: &Tensor) -> Result<Tensor> {
    let shift = logits.max_keepdim(D::Minus1)?.detach();
    let sum = logits.broadcast_sub(&shift)?.exp()?.sum_keepdim(D::Minus1)?;
    Ok((sum.log()? + shift)?.squeeze(1)?)
}

fn norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(weight)?)
}

fn linear(layer: &StockLinear, slots: &LoraSlots, factors: &Factors, x: &Tensor) -> Result<Tensor> {
    let mut y = frozen_matmul(x, &layer.weight)?;
    if let Some(bias) = &layer.bias {
        y = y.broadcast_add(bias)?;
    }
    if slots.parts.is_empty() {
        return Ok(y);
    }
    let (rows, outputs) = y.dims2()?;
    let gap = |width: usize| Tensor::zeros((rows, width), y.dtype(), y.device());
    let low = x.matmul(&factors.at(&slots.a)?.t()?)?; // [rows, parts * rank]
    // Columns in order; those that are not adapted have no update.
    let (mut updates, mut done) = (Vec::new(), 0);
    for (i, part) in slots.parts.iter().enumerate() {
        if part.columns.start > done {
            updates.push(gap(part.columns.start - done)?);
        }
        let low = low.narrow(1, i * slots.rank, slots.rank)?.contiguous()?;
        updates.push(low.matmul(&factors.at(&part.b)?.t()?)?);
        done = part.columns.end;
    }
    if done < outputs {
        updates.push(gap(outputs - done)?);
    }
    Ok((y + (Tensor::cat(&updates, 1)? * f64::from(slots.scale))?)?)
}

impl Factors {
    /// The factors of an adapter's flat vector; with gradients if it is `trained`.
    fn new(model: &StockModel, layout: &Layout, values: &[f32], trained: bool) -> Result<Self> {
        let mut factors = BTreeMap::new();
        for (block, slots) in model.blocks.iter().zip(&layout.blocks) {
            let layers = [
                (&block.qkv, &slots.qkv),
                (&block.output, &slots.output),
                (&block.gate_up, &slots.gate_up),
                (&block.down, &slots.down),
            ];
            for (layer, slots) in layers.into_iter().filter(|(_, slots)| !slots.parts.is_empty()) {
                let stacked = (slots.a.clone(), layer.weight.dim(1)?);
                let ups = slots.parts.iter().map(|part| (part.b.clone(), slots.rank));
                for (range, columns) in std::iter::once(stacked).chain(ups) {
                    let shape = (range.len() / columns, columns);
                    let factor = Tensor::from_slice(&values[range.clone()], shape, &model.device)?;
                    let factor = if trained { Var::from_tensor(&factor)?.into_inner() } else { factor };
                    factors.insert(range.start, factor);
                }
            }
        }
        Ok(Self(factors))
    }

    fn at(&self, range: &Range<usize>) -> candle_core::Result<&Tensor> {
        self.0.get(&range.start).ok_or_else(|| candle_core::Error::msg("a layout of another model"))
    }
}

/// `x W^T` with the gradient of `x` alone; candle's own product would compute that of `W` as well.
fn frozen_matmul(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let y = x.detach().matmul(&weight.t()?)?;
    Ok(x.apply_op2(&y, Product { weight: weight.clone() })?)
}

/// Takes `(x, x W^T)` and is the second; its gradient goes to the first.
struct Product {
    weight: Tensor,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product with a frozen weight"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &TensorLayout,
        y: &CpuStorage,
        layout: &TensorLayout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        copy(y, layout)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &TensorLayout,
        y: &CudaStorage,
        layout: &TensorLayout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        copy(y, layout)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &TensorLayout,
        y: &MetalStorage,
        layout: &TensorLayout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        copy(y, layout)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.matmul(&self.weight)?), None))
    }
}

/// The product, fresh from `matmul` and so contiguous, on any device.
fn copy<S: BackendStorage>(y: &S, layout: &TensorLayout) -> candle_core::Result<(S, Shape)> {
    Ok((y.try_clone(layout)?, layout.shape().clone()))
}
