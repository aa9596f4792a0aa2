//! Forward and backward pass of one worker over one packed batch, on the CPU.
//!
//! The passes are written out by hand instead of recorded by an autograd: what is kept, what is computed again and
//! which buffer is overwritten is then plain to see, and no gradient of a frozen weight is ever computed. The stock
//! autograd version of the same model is [`crate::stock`]; tests hold the two together.
//!
//! A worker runs on one thread. Several of them share a step by taking different sequences, so no operation is split
//! or synchronised (see [`crate::cpu`]).

use crate::adapter::Layout;
use crate::data::Packed;
use crate::model::{FrozenModel, QkNorm};
use crate::ops::attention::Segment;
use crate::ops::matmul::Into;
use crate::ops::rope::{RopeTable, Turn};
use crate::ops::{attention, linear, loss, norm, swiglu};

/// Everything a pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) model: &'a FrozenModel,
    pub(crate) layout: &'a Layout,
    /// The adapter's values, laid out by `layout`.
    pub(crate) values: &'a [f32],
    pub(crate) packed: &'a Packed,
    /// Keep only each block's input, and run the block again in the backward pass: a tenth of the memory for
    /// a third more time.
    pub(crate) recompute: bool,
}

/// What a block's backward pass needs of its forward pass; `T` rows each.
#[derive(Default)]
struct Kept {
    /// Queries and keys before their norm, `[T, query and key widths]`; only with qk-norm.
    raw_qk: Vec<f32>,
    /// Queries and keys turned, and values: `[T, heads.width()]`.
    qkv: Vec<f32>,
    /// `[T, query heads]`.
    lse: Vec<f32>,
    /// Attention's result, `[T, heads.query_width()]`.
    attention: Vec<f32>,
    /// The residual stream between attention and MLP, `[T, hidden]`.
    middle: Vec<f32>,
    /// `[T, 2 * mlp]`; the backward pass turns it into its gradient.
    gate_up: Vec<f32>,
    /// `x A^T` of the four layers, in the order of a block.
    xa: [Vec<f32>; 4],
}

/// A worker's buffers. They grow to the largest batch seen and stay.
pub(crate) struct Worker {
    rope: RopeTable,
    /// Input of every block, and the last block's output: `[T, hidden]` each.
    streams: Vec<Vec<f32>>,
    /// For every block, or one for all where blocks are run again.
    kept: Vec<Kept>,
    work: Work,
}

/// Buffers whose content is dead between operations.
#[derive(Default)]
struct Work {
    normed: Vec<f32>,
    activation: Vec<f32>,
    d_stream: Vec<f32>,
    d_normed: Vec<f32>,
    d_activation: Vec<f32>,
    d_attention: Vec<f32>,
    d_qkv: Vec<f32>,
    d_xa: Vec<f32>,
    scratch: Vec<f32>,
}

impl Worker {
    pub(crate) fn new(model: &FrozenModel) -> Self {
        let rope = RopeTable::new(model.dimensions.rope_frequencies.clone());
        Self { rope, streams: Vec::new(), kept: Vec::new(), work: Work::default() }
    }

    /// Adds to `grads` the gradient of `scale * sum of weight * nll` over the batch, and returns that sum, unscaled.
    pub(crate) fn gradients(&mut self, pass: Pass<'_>, scale: f32, grads: &mut [f32]) -> f64 {
        self.forward(pass);
        let nll = self.head(pass, Some(scale));
        for block in (0..pass.model.blocks.len()).rev() {
            self.backward_block(pass, block, grads);
        }
        pass.packed.targets.iter().zip(nll).map(|(t, nll)| f64::from(t.weight) * f64::from(nll)).sum()
    }

    /// Each target's negative log-likelihood, unweighted.
    pub(crate) fn losses(&mut self, pass: Pass<'_>) -> Vec<f32> {
        self.forward(pass);
        self.head(pass, None)
    }

    /// Log-probabilities of `candidates` as the next token at the batch's rows: `[rows, candidates]`.
    pub(crate) fn log_probabilities(&mut self, pass: Pass<'_>, candidates: &[u32]) -> Vec<f32> {
        self.forward(pass);
        self.gather(pass);
        let mut out = Vec::new();
        let Work { normed, scratch, .. } = &mut self.work;
        loss::log_probabilities(&pass.model.head, normed, candidates, &mut out, scratch);
        out
    }

    fn forward(&mut self, pass: Pass<'_>) {
        let Pass { model, packed, .. } = pass;
        let longest = packed.segments.iter().map(Segment::end).max().unwrap_or(0);
        self.rope.reserve(longest);
        let blocks = model.blocks.len();
        self.streams.resize_with(blocks + 1, Vec::new);
        self.kept.resize_with(if pass.recompute { 1 } else { blocks }, Kept::default);

        let hidden = model.dimensions.hidden;
        let stream = exact(&mut self.streams[0], packed.tokens.len() * hidden);
        for (&token, row) in packed.tokens.iter().zip(stream.chunks_exact_mut(hidden)) {
            model.embedding.row(token as usize, row);
        }
        for block in 0..blocks {
            let (before, after) = self.streams.split_at_mut(block + 1);
            let kept = &mut self.kept[if pass.recompute { 0 } else { block }];
            let y = exact(&mut after[0], before[block].len());
            forward_block(pass, block, &self.rope, &before[block], kept, &mut self.work, Some(y));
        }
    }

    /// Gathers the rows that count and norms them into `work.normed`, unnormed into `work.activation`.
    fn gather(&mut self, pass: Pass<'_>) {
        let Pass { model, packed, .. } = pass;
        let hidden = model.dimensions.hidden;
        let (stream, work) = (&self.streams[model.blocks.len()], &mut self.work);
        work.activation.clear();
        for &row in &packed.rows {
            work.activation.extend_from_slice(&stream[row * hidden..(row + 1) * hidden]);
        }
        let normed = exact(&mut work.normed, work.activation.len());
        norm::forward(&work.activation, &model.norm, model.dimensions.norm_eps, normed);
    }

    /// Each target's negative log-likelihood; where a `scale` is given, the last block's output gradient too.
    fn head(&mut self, pass: Pass<'_>, scale: Option<f32>) -> Vec<f32> {
        let Pass { model, packed, .. } = pass;
        self.gather(pass);
        let work = &mut self.work;
        let mut nll = vec![0.0; packed.targets.len()];
        let d_normed = scale.is_some().then(|| exact(&mut work.d_normed, work.normed.len()));
        let factor = scale.unwrap_or(1.0);
        loss::cross_entropy(
            &model.head,
            &work.normed,
            &packed.targets,
            factor,
            &mut nll,
            d_normed,
            &mut work.scratch,
        );
        if scale.is_some() {
            let hidden = model.dimensions.hidden;
            let d_stream = exact(&mut work.d_stream, packed.tokens.len() * hidden);
            d_stream.fill(0.0);
            let rows = work.activation.chunks_exact(hidden).zip(work.d_normed.chunks_exact(hidden));
            for (&row, (x, dy)) in packed.rows.iter().zip(rows) {
                let dx = &mut d_stream[row * hidden..(row + 1) * hidden];
                norm::backward(x, &model.norm, model.dimensions.norm_eps, dy, dx);
            }
        }
        nll
    }

    /// Turns `work.d_stream` from the gradient of a block's output into that of its input.
    fn backward_block(&mut self, pass: Pass<'_>, index: usize, grads: &mut [f32]) {
        let Pass { model, layout, values, packed, .. } = pass;
        let (block, slots, d) = (&model.blocks[index], &layout.blocks[index], &model.dimensions);
        let (x, rows) = (&self.streams[index], packed.tokens.len());
        let kept = &mut self.kept[if pass.recompute { 0 } else { index }];
        if pass.recompute {
            forward_block(pass, index, &self.rope, x, kept, &mut self.work, None);
        }
        let Work { normed, activation, d_stream, d_normed, d_activation, d_attention, d_qkv, d_xa, scratch } =
            &mut self.work;

        // MLP: stream = middle + down(swiglu(gate_up(norm(middle)))).
        let activation = exact(activation, rows * d.mlp);
        let d_activation = exact(d_activation, rows * d.mlp);
        swiglu::forward(&kept.gate_up, d.mlp, activation);
        let d_low = exact(d_xa, rows * slots.down.width());
        let read = (&*activation, &*kept.xa[3]);
        linear::backward(&block.down, &slots.down, values, read, d_stream, d_activation, d_low, grads);
        swiglu::backward(&mut kept.gate_up, d.mlp, d_activation);
        let normed = exact(normed, rows * d.hidden);
        let d_normed = exact(d_normed, rows * d.hidden);
        norm::forward(&kept.middle, &block.mlp_norm, d.norm_eps, normed);
        let d_low = exact(d_xa, rows * slots.gate_up.width());
        let read = (&*normed, &*kept.xa[2]);
        linear::backward(&block.gate_up, &slots.gate_up, values, read, &kept.gate_up, d_normed, d_low, grads);
        norm::backward(&kept.middle, &block.mlp_norm, d.norm_eps, d_normed, d_stream);

        // Attention: middle = x + output(attention(turn(qkv(norm(x))))).
        let d_attention = exact(d_attention, rows * d.heads.query_width());
        let d_low = exact(d_xa, rows * slots.output.width());
        let read = (&*kept.attention, &*kept.xa[1]);
        linear::backward(&block.output, &slots.output, values, read, d_stream, d_attention, d_low, grads);
        let d_qkv = exact(d_qkv, rows * d.heads.width());
        let result = (&*kept.attention, &*kept.lse);
        attention::backward(d.heads, &packed.segments, &kept.qkv, result, d_attention, d_qkv, scratch);
        let turned = d.heads.query_width() + d.heads.key_width();
        self.rope.apply(d_qkv, d.heads.width(), turned, &packed.segments, Turn::Back);
        if let Some(weights) = &block.qk_norm {
            qk_norm_backward(weights, d.norm_eps, &kept.raw_qk, turned, d_qkv, d.heads.width(), scratch);
        }
        norm::forward(x, &block.attention_norm, d.norm_eps, normed);
        let d_low = exact(d_xa, rows * slots.qkv.width());
        let read = (&*normed, &*kept.xa[0]);
        linear::backward(&block.qkv, &slots.qkv, values, read, d_qkv, d_normed, d_low, grads);
        norm::backward(x, &block.attention_norm, d.norm_eps, d_normed, d_stream);
    }
}

/// Runs a block on `x` and keeps what its backward pass needs. Without `y`, as when a block is run again, the
/// block's output is not computed.
fn forward_block(
    pass: Pass<'_>,
    index: usize,
    rope: &RopeTable,
    x: &[f32],
    kept: &mut Kept,
    work: &mut Work,
    y: Option<&mut [f32]>,
) {
    let Pass { model, layout, values, packed, .. } = pass;
    let (block, slots, d) = (&model.blocks[index], &layout.blocks[index], &model.dimensions);
    let (rows, width) = (packed.tokens.len(), d.heads.width());
    let [xa_qkv, xa_output, xa_gate_up, xa_down] = &mut kept.xa;
    let normed = exact(&mut work.normed, rows * d.hidden);

    norm::forward(x, &block.attention_norm, d.norm_eps, normed);
    let qkv = exact(&mut kept.qkv, rows * width);
    let xa = exact(xa_qkv, rows * slots.qkv.width());
    linear::forward(&block.qkv, &slots.qkv, values, normed, qkv, Into::Replace, xa);
    let turned = d.heads.query_width() + d.heads.key_width();
    if let Some(weights) = &block.qk_norm {
        let raw = exact(&mut kept.raw_qk, rows * turned);
        qk_norm(weights, d.norm_eps, raw, turned, qkv, width);
    }
    rope.apply(qkv, width, turned, &packed.segments, Turn::Forward);
    let attention = exact(&mut kept.attention, rows * d.heads.query_width());
    let lse = exact(&mut kept.lse, rows * d.heads.query);
    attention::forward(d.heads, &packed.segments, qkv, attention, lse, &mut work.scratch);
    let middle = exact(&mut kept.middle, rows * d.hidden);
    middle.copy_from_slice(x);
    let xa = exact(xa_output, rows * slots.output.width());
    linear::forward(&block.output, &slots.output, values, attention, middle, Into::Add, xa);

    norm::forward(middle, &block.mlp_norm, d.norm_eps, normed);
    let gate_up = exact(&mut kept.gate_up, rows * 2 * d.mlp);
    let xa = exact(xa_gate_up, rows * slots.gate_up.width());
    linear::forward(&block.gate_up, &slots.gate_up, values, normed, gate_up, Into::Replace, xa);
    let activation = exact(&mut work.activation, rows * d.mlp);
    swiglu::forward(gate_up, d.mlp, activation);
    let xa = exact(xa_down, rows * slots.down.width());
    match y {
        Some(y) => {
            y.copy_from_slice(middle);
            linear::forward(&block.down, &slots.down, values, activation, y, Into::Add, xa);
        }
        None => linear::project(&block.down, &slots.down, values, activation, xa),
    }
}

/// Norms every query and key head of `qkv`, and writes what they were to `raw` `[T, turned]`.
fn qk_norm(weights: &QkNorm, eps: f32, raw: &mut [f32], turned: usize, qkv: &mut [f32], width: usize) {
    let keys = key_columns(weights, turned, width);
    for (raw, row) in raw.chunks_exact_mut(turned).zip(qkv.chunks_exact_mut(width)) {
        raw.copy_from_slice(&row[..turned]);
        norm::forward(&raw[..keys], &weights.query, eps, &mut row[..keys]);
        norm::forward(&raw[keys..], &weights.key, eps, &mut row[keys..turned]);
    }
}

/// Turns the gradient of normed queries and keys into that of the raw ones.
fn qk_norm_backward(
    weights: &QkNorm,
    eps: f32,
    raw: &[f32],
    turned: usize,
    d_qkv: &mut [f32],
    width: usize,
    scratch: &mut Vec<f32>,
) {
    let keys = key_columns(weights, turned, width);
    for (raw, row) in raw.chunks_exact(turned).zip(d_qkv.chunks_exact_mut(width)) {
        let row = &mut row[..turned];
        scratch.clear();
        scratch.extend_from_slice(row);
        row.fill(0.0);
        norm::backward(&raw[..keys], &weights.query, eps, &scratch[..keys], &mut row[..keys]);
        norm::backward(&raw[keys..], &weights.key, eps, &scratch[keys..], &mut row[keys..]);
    }
}

/// Where keys begin: values are as wide as keys, and `turned` is queries and keys.
fn key_columns(weights: &QkNorm, turned: usize, width: usize) -> usize {
    debug_assert_eq!((width - turned) % weights.key.len(), 0);
    turned - (width - turned)
}

/// The buffer at exactly this length. What it holds is whatever it held.
fn exact(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
