//! Causal attention with grouped heads over packed sequences that may share their beginnings.
//!
//! Queries, keys and values come side by side in one matrix, already turned by [`rope`](super::rope). Only the
//! log-sum-exp of each row of scores is kept for the backward pass, which computes the scores again, as
//! FlashAttention does (arXiv 2205.14135). Scores exist for one block of queries at a time.

use std::ops::Range;

use super::matmul::{Into, Mat, MatMut, matmul};
use super::simd::{exp, exp_sum, max, sum, vectorised};

/// Queries whose scores are computed at once.
const BLOCK: usize = 128;

/// The heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; divides `query`.
    pub key_value: usize,
    /// Values a head.
    pub dim: usize,
}

impl Heads {
    /// Columns of all queries.
    pub fn query_width(&self) -> usize {
        self.query * self.dim
    }

    /// Columns of all keys, and of all values.
    pub fn key_width(&self) -> usize {
        self.key_value * self.dim
    }

    /// Columns of the queries, keys and values together.
    pub fn width(&self) -> usize {
        self.query_width() + 2 * self.key_width()
    }

    /// Columns of a query head, and of the key and value head that it reads.
    fn columns(&self, head: usize) -> [Range<usize>; 3] {
        let columns = |start| start..start + self.dim;
        let shared = head / (self.query / self.key_value) * self.dim;
        let (keys, values) = (self.query_width(), self.query_width() + self.key_width());
        [columns(head * self.dim), columns(keys + shared), columns(values + shared)]
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// A stretch of rows: a sequence, or what follows a beginning that several sequences share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its rows.
    pub rows: Range<usize>,
    /// Position of its first row in its sequences.
    pub position: usize,
    /// Rows that all of its rows see besides those before them in the segment.
    pub past: Vec<Range<usize>>,
}

impl Segment {
    /// Positions of its sequences up to its end.
    pub fn end(&self) -> usize {
        self.position + self.rows.len()
    }

    /// Its blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let starts = self.rows.clone().step_by(BLOCK);
        starts.map(|start| {
            let end = (start + BLOCK).min(self.rows.end);
            let mut keys = Vec::with_capacity(self.past.len() + 1);
            let mut column = 0;
            for rows in self.past.iter().cloned().chain(std::iter::once(self.rows.start..end)) {
                let columns = column..column + rows.len();
                column = columns.end;
                keys.push((columns, rows));
            }
            Block { queries: start..end, keys, width: column, first: column - (end - start) + 1 }
        })
    }
}

/// Queries whose scores are computed together.
struct Block {
    /// Their rows.
    queries: Range<usize>,
    /// Columns of the scores, and the rows of the keys that they belong to.
    keys: Vec<(Range<usize>, Range<usize>)>,
    /// Columns of the scores.
    width: usize,
    /// Keys that the first query sees; each further one sees one more.
    first: usize,
}

/// Writes the attention's result to `out` `[T, query_width]` and each row's log-sum-exp to `lse` `[T, query]`.
///
/// `qkv` is `[T, width]`; a row sees those before it in its segment, and the segment's past. `scratch` may hold
/// anything.
pub fn forward(
    heads: Heads,
    segments: &[Segment],
    qkv: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    for block in segments.iter().flat_map(Segment::blocks) {
        let Block { queries, keys, width, first } = &block;
        for head in 0..heads.query {
            let [q, k, v] = heads.columns(head).map(|columns| Mat::new(qkv, heads.width()).columns(columns));
            let scores = sized(scratch, queries.len() * width);
            for (columns, rows) in keys {
                let scores = MatMut::new(scores, *width).columns(columns.clone());
                let (query, key) = (q.rows(queries.clone()), k.rows(rows.clone()));
                matmul(scores, Into::Replace, heads.scale(), query, key.t());
            }
            vectorised(|| {
                for (i, (row, token)) in scores.chunks_exact_mut(*width).zip(queries.clone()).enumerate() {
                    let (seen, unseen) = row.split_at_mut(first + i);
                    let shift = max(seen);
                    let total = exp_sum(seen, shift);
                    let scale = 1.0 / total;
                    seen.iter_mut().for_each(|p| *p *= scale);
                    unseen.fill(0.0);
                    lse[token * heads.query + head] = shift + total.ln();
                }
            });
            for (i, (columns, rows)) in keys.iter().enumerate() {
                let into = if i == 0 { Into::Replace } else { Into::Add };
                let out = MatMut::new(out, heads.query_width()).rows(queries.clone());
                let weights = Mat::new(scores, *width).columns(columns.clone());
                matmul(out.columns(heads.columns(head)[0].clone()), into, 1.0, weights, v.rows(rows.clone()));
            }
        }
    }
}

/// Writes the gradient of `qkv` to `d_qkv`, given what [`forward`] read and wrote and the gradient of its result.
pub fn backward(
    heads: Heads,
    segments: &[Segment],
    qkv: &[f32],
    (out, lse): (&[f32], &[f32]),
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let out_width = heads.query_width();
    d_qkv.fill(0.0);
    for block in segments.iter().flat_map(Segment::blocks) {
        let Block { queries, keys, width, first } = &block;
        for head in 0..heads.query {
            let [q_columns, k_columns, v_columns] = heads.columns(head);
            let view = |columns: &Range<usize>| Mat::new(qkv, heads.width()).columns(columns.clone());
            let (query, k, v) = (view(&q_columns).rows(queries.clone()), view(&k_columns), view(&v_columns));
            // A query head's columns are those of its result.
            let d_result = Mat::new(d_out, out_width).columns(q_columns.clone()).rows(queries.clone());
            let (p, d_p) = sized(scratch, 2 * queries.len() * width).split_at_mut(queries.len() * width);
            for (columns, rows) in keys {
                let scores = MatMut::new(p, *width).columns(columns.clone());
                matmul(scores, Into::Replace, heads.scale(), query, k.rows(rows.clone()).t());
                let d_weights = MatMut::new(d_p, *width).columns(columns.clone());
                matmul(d_weights, Into::Replace, 1.0, d_result, v.rows(rows.clone()).t());
            }
            vectorised(|| {
                let rows = p.chunks_exact_mut(*width).zip(d_p.chunks_exact_mut(*width));
                for (i, ((p, d_p), token)) in rows.zip(queries.clone()).enumerate() {
                    let shift = lse[token * heads.query + head];
                    let row = token * out_width + q_columns.start..token * out_width + q_columns.end;
                    let mean = sum(&out[row.clone()], &d_out[row], |o, d| o * d);
                    let (seen, unseen) = p.split_at_mut(first + i);
                    let (d_seen, d_unseen) = d_p.split_at_mut(first + i);
                    for (p, d) in seen.iter_mut().zip(d_seen) {
                        *p = exp(*p - shift);
                        *d = *p * (*d - mean);
                    }
                    unseen.fill(0.0);
                    d_unseen.fill(0.0);
                }
            });
            for (columns, rows) in keys {
                let p = Mat::new(p, *width).columns(columns.clone());
                let d_scores = Mat::new(d_p, *width).columns(columns.clone());
                let mut add = |rows: &Range<usize>, columns: &Range<usize>, scale, lhs, rhs| {
                    let dst = MatMut::new(d_qkv, heads.width()).rows(rows.clone()).columns(columns.clone());
                    matmul(dst, Into::Add, scale, lhs, rhs);
                };
                add(queries, &q_columns, heads.scale(), d_scores, k.rows(rows.clone()));
                add(rows, &k_columns, heads.scale(), d_scores.t(), query);
                add(rows, &v_columns, 1.0, p.t(), d_result);
            }
        }
    }
}

/// The first `len` values of a buffer that grows as needed.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
