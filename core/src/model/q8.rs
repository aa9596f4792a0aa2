//! Matrices of 8-bit weights, and their product with `f32` activations on the CPU.
//!
//! A small transformer spends nearly all its time in `x * w^T`. Decoding reads every weight once a token, so
//! bytes decide; prefill reuses them, so integer throughput decides. Weights of eight bits are good for both: a
//! quarter of the bytes of `f32`, and one instruction (`vpdpbusd`) multiplies and adds 64 of them.
//!
//! Numbers share a scale in blocks of [`BLOCK`] along `k`, weights and activations alike:
//! `w ~ scale * q` with `q` in `-127..=127`. Activations are quantised once a call, on the fly. A block's products
//! are summed exactly, in `i32`; blocks are summed in `f32`, in order, with fused multiply-add. The result for a
//! row of `x` is therefore the same to the last bit whatever the other rows are, however many threads work on it,
//! and whichever [`Kernel`] the CPU has.
//!
//! A row of `x` that holds NaN or infinity gives NaN in all of its outputs; other rows are not touched by it.

mod block;
mod kernel;
#[cfg(test)]
mod tests;

use std::cell::Cell;

use half::f16;
use rayon::prelude::*;

pub use block::BLOCK;
use block::Block;
pub use kernel::Kernel;
use kernel::{LANES, QUADS, Quad};

/// Why a matrix cannot be made, or a product not be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Q8Error {
    /// The inner dimension does not divide into blocks.
    #[error("a row of {cols} weights does not divide into blocks of {BLOCK}: keep this matrix in f32")]
    Columns {
        /// The inner dimension asked for.
        cols: usize,
    },
    /// A slice's length does not fit the shapes it came with.
    #[error("{what} holds {found} numbers where the shapes ask for {expected}")]
    Length {
        /// Which slice: `weights`, `x` or `out`.
        what: &'static str,
        /// Numbers the shapes ask for.
        expected: usize,
        /// Numbers the slice holds.
        found: usize,
    },
    /// There is no such row.
    #[error("row {row} of a matrix of {rows} rows")]
    Row {
        /// The row asked for.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A weight is NaN, infinite, or too large for a block's scale (above 8.3 million).
    #[error(
        "row {row} of the weights holds NaN, infinity or a number too large for 8 bits: check the model file"
    )]
    Weight {
        /// The first such row.
        row: usize,
    },
}

/// A weight of shape `[n, k]`, in eight bits a number and sixteen bits of scale a block: 8.5 bits a weight.
///
/// Rows are stored sixteen at a time, interleaved so that one vector holds the same four columns of sixteen rows;
/// a last, short group is filled up with zeros.
#[derive(Clone)]
pub struct Q8Matrix {
    rows: usize,
    cols: usize,
    quads: Vec<Quad>,          // [n / 16][k / 32][8]
    scales: Vec<[f16; LANES]>, // [n / 16][k / 32]
}

impl Q8Matrix {
    /// Quantises `w`, row-major `[n, k]`.
    ///
    /// Weights that come from 8-bit blocks of 32 (GGUF's `Q8_0`) keep their exact values.
    ///
    /// # Errors
    /// If `k` is not a multiple of [`BLOCK`], `w` does not hold `n * k` numbers, or one of them is not finite.
    pub fn quantize(w: &[f32], n: usize, k: usize) -> Result<Self, Q8Error> {
        if !k.is_multiple_of(BLOCK) {
            return Err(Q8Error::Columns { cols: k });
        }
        check_length("weights", n.checked_mul(k), w.len())?;
        let (panels, blocks) = (n.div_ceil(LANES), k / BLOCK);
        let mut quads = vec![Quad::ZERO; panels * blocks * QUADS];
        let mut scales = vec![[f16::ZERO; LANES]; panels * blocks];
        quads
            .par_chunks_mut((blocks * QUADS).max(1))
            .zip(scales.par_chunks_mut(blocks.max(1)))
            .zip(w.par_chunks((LANES * k).max(1)))
            .enumerate()
            .try_for_each(|(panel, ((quads, scales), w))| {
                for (lane, row) in w.chunks_exact(k).enumerate() {
                    for (b, numbers) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                        let (q, scale) =
                            block::weights(numbers).ok_or(Q8Error::Weight { row: panel * LANES + lane })?;
                        scales[b][lane] = scale;
                        for (quad, q) in quads[b * QUADS..].iter_mut().zip(q.as_chunks::<4>().0) {
                            quad.set(lane, *q);
                        }
                    }
                }
                Ok(())
            })?;
        Ok(Self { rows: n, cols: k, quads, scales })
    }

    /// `n`, the length of an output row.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `k`, the length of an input row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory taken, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.quads) + size_of_val(&*self.scales)
    }

    /// Writes row `row` back as `f32`: an embedding, where the same matrix serves as table and as head.
    ///
    /// # Errors
    /// If there is no such row, or `out` does not hold `k` numbers.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), Q8Error> {
        if row >= self.rows {
            return Err(Q8Error::Row { row, rows: self.rows });
        }
        check_length("out", Some(self.cols), out.len())?;
        let (panel, lane, blocks) = (row / LANES, row % LANES, self.cols / BLOCK);
        for (b, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let at = panel * blocks + b;
            let scale = self.scales[at][lane].to_f32();
            for (out, quad) in out.as_chunks_mut::<4>().0.iter_mut().zip(&self.quads[at * QUADS..]) {
                *out = quad.get(lane).map(|q| scale * f32::from(q));
            }
        }
        Ok(())
    }
}

/// `out = x * w^T`, with `x` `[m, k]`, `w` `[n, k]` and `out` `[m, n]`, all row-major.
///
/// Work is spread over rayon's current pool where there is enough of it to pay.
///
/// # Errors
/// If a slice's length does not fit the shapes.
pub fn matmul(x: &[f32], m: usize, w: &Q8Matrix, out: &mut [f32]) -> Result<(), Q8Error> {
    Kernel::best().matmul_many(x, m, &mut [(w, out)])
}

/// [`matmul`] of one `x` with several weights (q, k and v; gate and up): `x` is quantised once, and the work is
/// spread over threads as a whole.
///
/// # Errors
/// If a slice's length does not fit the shapes.
pub fn matmul_many(x: &[f32], m: usize, parts: &mut [(&Q8Matrix, &mut [f32])]) -> Result<(), Q8Error> {
    Kernel::best().matmul_many(x, m, parts)
}

impl Kernel {
    /// [`matmul_many`] with this kernel instead of the best one.
    ///
    /// # Errors
    /// If a slice's length does not fit the shapes.
    pub fn matmul_many(
        self,
        x: &[f32],
        m: usize,
        parts: &mut [(&Q8Matrix, &mut [f32])],
    ) -> Result<(), Q8Error> {
        for (w, out) in parts.iter() {
            check_length("x", m.checked_mul(w.cols), x.len())?;
            check_length("out", m.checked_mul(w.rows), out.len())?;
        }
        // Taken out rather than borrowed: a thread that waits for its share of the work may be handed another
        // product meanwhile.
        let mut blocks = SCRATCH.take();
        self.quantize(x, &mut blocks);
        self.product(&blocks, m, parts);
        SCRATCH.set(blocks);
        Ok(())
    }
}

thread_local! {
    /// The quantised `x` of the last product, kept for its memory.
    static SCRATCH: Cell<Vec<Block>> = const { Cell::new(Vec::new()) };
}

fn check_length(what: &'static str, expected: Option<usize>, found: usize) -> Result<(), Q8Error> {
    match expected {
        Some(expected) if expected == found => Ok(()),
        _ => Err(Q8Error::Length { what, expected: expected.unwrap_or(usize::MAX), found }),
    }
}
