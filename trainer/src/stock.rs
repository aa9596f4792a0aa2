//! The same training step out of stock candle operations and candle's autograd: any device, no hand-written gradient.
//!
//! Sequences share nothing here, and weights are f32 on the device, whatever they were rounded to. It is the test oracle
//! of [`crate::cpu`], and the path of devices other than the CPU. The one custom operation is the identity that keeps
//! candle from computing the gradients of frozen weights.

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
        let values = Var::from_slice(values, values.len(), &self.device)?;
        let loss = self.weighted_nll(layout, values.as_tensor(), examples)?;
        let store = (&loss * f64::from(scale))?.backward()?;
        if let Some(gradient) = store.get(&values) {
            let gradient: Vec<f32> = gradient.to_vec1()?;
            grads.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// `sum of weight * nll` over the batch, as [`Self::gradients`] has it, without gradients.
    ///
    /// # Errors
    /// When the device fails or is out of memory.
    pub fn loss(&self, layout: &Layout, values: &[f32], examples: &[&Example]) -> Result<f64> {
        let values = Tensor::new(values, &self.device)?;
        Ok(f64::from(self.weighted_nll(layout, &values, examples)?.to_scalar::<f32>()?))
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
        let values = Tensor::new(values, &self.device)?;
        let ends = prompts.iter().scan(0, |end, prompt| {
            *end += prompt.len() as u32;
            Some(*end - 1)
        });
        let logits = self.logits(layout, &values, prompts, ends.collect())?;
        let lse = log_sum_exp(&logits)?; // [prompts]
        let candidates = Tensor::new(candidates, &self.device)?;
        let found = logits.index_select(&candidates, 1)?.broadcast_sub(&lse.unsqueeze(1)?)?;
        Ok(found.to_vec2()?)
    }

    /// `sum of weight * nll` over the batch, as a scalar with its graph.
    fn weighted_nll(&self, layout: &Layout, values: &Tensor, examples: &[&Example]) -> Result<Tensor> {
        let (mut inputs, mut start) = (Vec::new(), 0);
        let (mut rows, mut wanted, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let predicted = example.tokens.iter().zip(&example.weights).skip(1);
            for (row, (&token, &weight)) in (start..).zip(predicted).filter(|(_, (_, weight))| **weight > 0.0)
            {
                rows.push(row);
                wanted.push(token);
                weights.push(weight);
            }
            inputs.push(&example.tokens[..example.positions()]);
            start += example.positions() as u32;
        }
        if rows.is_empty() {
            return Ok((values.sum_all()? * 0.0)?);
        }
        let logits = self.logits(layout, values, &inputs, rows)?;
        let wanted = Tensor::new(wanted, &self.device)?.unsqueeze(1)?;
        let nll = (log_sum_exp(&logits)? - logits.gather(&wanted, 1)?.squeeze(1)?)?;
        Ok((nll * Tensor::new(weights, &self.device)?)?.sum_all()?)
    }

    /// Logits `[rows, vocabulary]` of the chosen rows of all sequences, one after the other.
    fn logits(&self, layout: &Layout, values: &Tensor, inputs: &[&[u32]], rows: Vec<u32>) -> Result<Tensor> {
        let lengths: Vec<usize> = inputs.iter().map(|input| input.len()).collect();
        let tokens = Tensor::new(inputs.concat(), &self.device)?;
        let mut x = self.embedding.index_select(&tokens, 0)?;
        for (block, slots) in self.blocks.iter().zip(&layout.blocks) {
            let eps = self.dimensions.norm_eps;
            let lora = |layer: &StockLinear, slots: &LoraSlots, x: &Tensor| linear(layer, slots, values, x);
            let qkv = lora(&block.qkv, &slots.qkv, &norm(&x, &block.attention_norm, eps)?)?;
            let attention = self.attention(block, &qkv, &lengths)?;
            x = (x + lora(&block.output, &slots.output, &attention)?)?;
            let gate_up = lora(&block.gate_up, &slots.gate_up, &norm(&x, &block.mlp_norm, eps)?)?;
            let mlp = self.dimensions.mlp;
            let activation = (gate_up.narrow(1, 0, mlp)?.silu()? * gate_up.narrow(1, mlp, mlp)?)?;
            x = (x + lora(&block.down, &slots.down, &activation)?)?;
        }
        let x = x.index_select(&Tensor::new(rows, &self.device)?, 0)?;
        frozen_matmul(&norm(&x, &self.norm, self.dimensions.norm_eps)?, &self.head)
    }

    /// Attention of a block, one sequence at a time: `[T, width]` to `[T, query_width]`.
    fn attention(&self, block: &StockBlock, qkv: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let Dimensions { heads, norm_eps, .. } = self.dimensions;
        let groups = heads.query / heads.key_value;
        let mut outputs = Vec::new();
        let mut start = 0;
        for &len in lengths.iter().filter(|&&len| len > 0) {
            let rows = qkv.narrow(0, start, len)?;
            start += len;
            let split = |start: usize, count: usize| {
                rows.narrow(1, start * heads.dim, count * heads.dim)?.reshape(((), count, heads.dim))
            };
            let q = split(0, heads.query)?; // [L, heads, dim]
            let k = split(heads.query, heads.key_value)?;
            let v = split(heads.query + heads.key_value, heads.key_value)?;
            let (q, k) = match &block.qk_norm {
                Some((query, key)) => (norm(&q, query, norm_eps)?, norm(&k, key, norm_eps)?),
                None => (q, k),
            };
            let q = self.rope(&q)?.transpose(0, 1)?.contiguous()?; // [heads, L, dim]
            let repeat = |x: &Tensor| -> candle_core::Result<Tensor> {
                let (keys, len, dim) = x.dims3()?;
                x.unsqueeze(1)?.broadcast_as((keys, groups, len, dim))?.reshape((keys * groups, len, dim))
            };
            let k = repeat(&self.rope(&k)?.transpose(0, 1)?.contiguous()?)?;
            let v = repeat(&v.transpose(0, 1)?.contiguous()?)?;
            let scores = (q.matmul(&k.t()?)? / (heads.dim as f64).sqrt())?;
            let mask: Vec<f32> =
                (0..len * len).map(|i| if i % len > i / len { f32::NEG_INFINITY } else { 0.0 }).collect();
            let scores = scores.broadcast_add(&Tensor::from_vec(mask, (len, len), &self.device)?)?;
            let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
            let output = weights.matmul(&v)?.transpose(0, 1)?.contiguous()?;
            outputs.push(output.reshape((len, heads.query_width()))?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// Turns `[L, heads, dim]`.
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let (len, _, dim) = x.dims3()?;
        let angles: Vec<f32> = (0..len)
            .flat_map(|position| self.dimensions.rope_frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (len, 1, dim / 2), &self.device)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Ok(Tensor::cat(&[first, second], 2)?)
    }
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

fn linear(layer: &StockLinear, slots: &LoraSlots, values: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut y = frozen_matmul(x, &layer.weight)?;
    if let Some(bias) = &layer.bias {
        y = y.broadcast_add(bias)?;
    }
    let rank = slots.rank;
    let (outputs, inputs) = layer.weight.dims2()?;
    // Columns in order: adapted ones with their update, the others as they are.
    let (mut columns, mut done) = (Vec::new(), 0);
    for (i, part) in slots.parts.iter().enumerate() {
        if part.columns.start > done {
            columns.push(y.narrow(1, done, part.columns.start - done)?);
        }
        let a =
            values.narrow(0, slots.a.start + i * rank * inputs, rank * inputs)?.reshape((rank, inputs))?;
        let b = values.narrow(0, part.b.start, part.b.len())?.reshape((part.columns.len(), rank))?;
        let update = (x.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(slots.scale))?;
        columns.push((y.narrow(1, part.columns.start, part.columns.len())? + update)?);
        done = part.columns.end;
    }
    if done < outputs {
        columns.push(y.narrow(1, done, outputs - done)?);
    }
    Ok(Tensor::cat(&columns, 1)?)
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
