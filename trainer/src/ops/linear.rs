//! A frozen linear layer with low-rank adapters: `y = x W^T + b + scale (x A^T) B^T` (LoRA, arXiv 2106.09685).
//!
//! Several projections of the same input (queries, keys and values; gate and up) are one layer: their weights are
//! stacked, and so are their `A`, while each has its own `B` for its own columns of `y`.

use std::ops::Range;

use super::matmul::{Into, Mat, MatMut, matmul};
use super::weight::Frozen;

/// Where the adapters of one (possibly stacked) layer lie in the flat vector of all trainable values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraSlots {
    /// Rank of each `A` and `B`.
    pub rank: usize,
    /// `alpha / rank`.
    pub scale: f32,
    /// The stacked `A`, `[parts * rank, inputs]`.
    pub a: Range<usize>,
    /// The adapted projections, in the order of `a`.
    pub parts: Vec<LoraPart>,
}

/// The adapter of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPart {
    /// Its columns of the layer's output.
    pub columns: Range<usize>,
    /// Its `B`, `[columns, rank]`.
    pub b: Range<usize>,
}

impl LoraSlots {
    /// Columns of `x A^T`; zero when nothing is adapted.
    pub fn width(&self) -> usize {
        self.rank * self.parts.len()
    }
}

/// A frozen linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Frozen,
    /// `[outputs]`, as Qwen2's queries, keys and values have.
    pub bias: Option<Vec<f32>>,
}

/// `y = linear(x)` or `y += linear(x)`; writes `x A^T` to `xa` for the backward pass.
///
/// `values` are all trainable values, `x` is `[T, inputs]`, `y` `[T, outputs]`, `xa` `[T, lora.width()]`.
pub fn forward(
    layer: &Linear,
    lora: &LoraSlots,
    values: &[f32],
    x: &[f32],
    y: &mut [f32],
    into: Into,
    xa: &mut [f32],
) {
    let outputs = layer.weight.outputs();
    layer.weight.forward(x, y, into);
    if let Some(bias) = &layer.bias {
        for row in y.chunks_exact_mut(outputs) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    project(layer, lora, values, x, xa);
    for (i, part) in lora.parts.iter().enumerate() {
        let xa = Mat::new(xa, lora.width()).columns(i * lora.rank..(i + 1) * lora.rank);
        let y = MatMut::new(y, outputs).columns(part.columns.clone());
        matmul(y, Into::Add, lora.scale, xa, Mat::new(&values[part.b.clone()], lora.rank).t());
    }
}

/// `xa = x A^T` alone.
pub fn project(layer: &Linear, lora: &LoraSlots, values: &[f32], x: &[f32], xa: &mut [f32]) {
    if lora.parts.is_empty() {
        return;
    }
    let inputs = layer.weight.inputs();
    let a = Mat::new(&values[lora.a.clone()], inputs);
    matmul(MatMut::new(xa, lora.width()), Into::Replace, 1.0, Mat::new(x, inputs), a.t());
}

/// Writes the input's gradient to `dx` and adds those of `A` and `B` to `grads`, which is laid out as `values`.
///
/// `d_xa` is scratch of the size of `xa`.
#[allow(clippy::too_many_arguments)] // All are plain data of one formula; a struct for them would only rename it.
pub fn backward(
    layer: &Linear,
    lora: &LoraSlots,
    values: &[f32],
    (x, xa): (&[f32], &[f32]),
    dy: &[f32],
    dx: &mut [f32],
    d_xa: &mut [f32],
    grads: &mut [f32],
) {
    layer.weight.backward(dy, dx);
    if lora.parts.is_empty() {
        return;
    }
    let (inputs, outputs) = (layer.weight.inputs(), layer.weight.outputs());
    for (i, part) in lora.parts.iter().enumerate() {
        let columns = i * lora.rank..(i + 1) * lora.rank;
        let dy = Mat::new(dy, outputs).columns(part.columns.clone());
        let xa = Mat::new(xa, lora.width()).columns(columns.clone());
        let b = Mat::new(&values[part.b.clone()], lora.rank);
        matmul(MatMut::new(d_xa, lora.width()).columns(columns), Into::Replace, lora.scale, dy, b);
        matmul(MatMut::new(&mut grads[part.b.clone()], lora.rank), Into::Add, lora.scale, dy.t(), xa);
    }
    let d_xa = Mat::new(d_xa, lora.width());
    matmul(MatMut::new(&mut grads[lora.a.clone()], inputs), Into::Add, 1.0, d_xa.t(), Mat::new(x, inputs));
    matmul(MatMut::new(dx, inputs), Into::Add, 1.0, d_xa, Mat::new(&values[lora.a.clone()], inputs));
}
