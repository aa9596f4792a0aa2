//! Causal attention with grouped heads over packed sequences.
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

/// The blocks of queries of a segment, and the keys each may see: all up to its last query.
fn blocks(segment: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let segment = segment.clone();
    segment.clone().step_by(BLOCK).map(move |start| {
        let end = (start + BLOCK).min(segment.end);
        (start..end, segment.start..end)
    })
}

/// Writes the attention's result to `out` `[T, query_width]` and each row's log-sum-exp to `lse` `[T, query]`.
///
/// `qkv` is `[T, width]`; no token sees one of another segment. `scratch` may hold anything.
pub fn forward(
    heads: Heads,
    segments: &[Range<usize>],
    qkv: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    for segment in segments {
        for head in 0..heads.query {
            let [q, k, v] = heads.columns(head).map(|columns| Mat::new(qkv, heads.width()).columns(columns));
            for (queries, keys) in blocks(segment) {
                let scores = sized(scratch, queries.len() * keys.len());
                let width = keys.len();
                let (query, key) = (q.rows(queries.clone()), k.rows(keys.clone()));
                matmul(MatMut::new(scores, width), Into::Replace, heads.scale(), query, key.t());
                vectorised(|| {
                    for (row, token) in scores.chunks_exact_mut(width).zip(queries.clone()) {
                        let (seen, unseen) = row.split_at_mut(token - segment.start + 1);
                        let shift = max(seen);
                        let total = exp_sum(seen, shift);
                        let scale = 1.0 / total;
                        seen.iter_mut().for_each(|p| *p *= scale);
                        unseen.fill(0.0);
                        lse[token * heads.query + head] = shift + total.ln();
                    }
                });
                let columns = head * heads.dim..(head + 1) * heads.dim;
                let out = MatMut::new(out, heads.query_width()).rows(queries).columns(columns);
                matmul(out, Into::Replace, 1.0, Mat::new(scores, width), v.rows(keys));
            }
        }
    }
}

/// Writes the gradient of `qkv` to `d_qkv`, given what [`forward`] read and wrote and the gradient of its result.
pub fn backward(
    heads: Heads,
    segments: &[Range<usize>],
    qkv: &[f32],
    (out, lse): (&[f32], &[f32]),
    d_out: &[f32],
    d_qkv: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (width, out_width) = (heads.width(), heads.query_width());
    d_qkv.fill(0.0);
    for segment in segments {
        for head in 0..heads.query {
            let columns = heads.columns(head);
            let [q, k, v] = columns.clone().map(|columns| Mat::new(qkv, width).columns(columns));
            let out_columns = head * heads.dim..(head + 1) * heads.dim;
            let d_result = Mat::new(d_out, out_width).columns(out_columns.clone());
            for (queries, keys) in blocks(segment) {
                let count = keys.len();
                let (p, d_p) = sized(scratch, 2 * queries.len() * count).split_at_mut(queries.len() * count);
                let (query, key, value) =
                    (q.rows(queries.clone()), k.rows(keys.clone()), v.rows(keys.clone()));
                let d_result = d_result.rows(queries.clone());
                matmul(MatMut::new(p, count), Into::Replace, heads.scale(), query, key.t());
                matmul(MatMut::new(d_p, count), Into::Replace, 1.0, d_result, value.t());
                vectorised(|| {
                    for ((p, d_p), token) in
                        p.chunks_exact_mut(count).zip(d_p.chunks_exact_mut(count)).zip(queries.clone())
                    {
                        let shift = lse[token * heads.query + head];
                        let row = token * out_width + out_columns.start..token * out_width + out_columns.end;
                        let mean = sum(&out[row.clone()], &d_out[row], |o, d| o * d);
                        let (seen, unseen) = p.split_at_mut(token - segment.start + 1);
                        let (d_seen, d_unseen) = d_p.split_at_mut(seen.len());
                        for (p, d) in seen.iter_mut().zip(d_seen) {
                            *p = exp(*p - shift);
                            *d = *p * (*d - mean);
                        }
                        unseen.fill(0.0);
                        d_unseen.fill(0.0);
                    }
                });
                let (p, d_scores) = (Mat::new(p, count), Mat::new(d_p, count));
                let [d_q, d_k, d_v] = columns.clone();
                let mut target = |rows: &Range<usize>, columns: Range<usize>, scale, lhs, rhs| {
                    let dst = MatMut::new(d_qkv, width).rows(rows.clone()).columns(columns);
                    matmul(dst, Into::Add, scale, lhs, rhs);
                };
                target(&queries, d_q, heads.scale(), d_scores, key);
                target(&keys, d_k, heads.scale(), d_scores.t(), query);
                target(&keys, d_v, 1.0, p.t(), d_result);
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
