//! Rotary position embedding, in the layout of Hugging Face's Llama and Qwen: value `i` of a head is rotated together
//! with value `i + head_dim / 2`. It is a rotation, so its gradient is the rotation back.

use std::ops::Range;

use super::simd::vectorised;

/// Cosines and sines of every position up to a limit that grows.
#[derive(Clone, Debug)]
pub struct RopeTable {
    frequencies: Vec<f32>,
    cos: Vec<f32>, // [positions, frequencies]
    sin: Vec<f32>, // [positions, frequencies]
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As in the forward pass.
    Forward,
    /// Back again, for gradients.
    Back,
}

impl RopeTable {
    /// A table of no positions for these angular frequencies, one for each pair of values of a head.
    pub fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, cos: Vec::new(), sin: Vec::new() }
    }

    /// Extends the table to at least `positions`.
    pub fn reserve(&mut self, positions: usize) {
        for position in self.positions()..positions {
            for frequency in &self.frequencies {
                // The angle in f32, as transformers and llama.cpp have it: models were trained with that rounding.
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    fn positions(&self) -> usize {
        self.cos.len() / self.frequencies.len()
    }

    /// Turns the heads in columns `0..columns` of `x`, whose rows hold `width` values. Positions count from the
    /// start of each segment.
    ///
    /// # Panics
    /// When a segment is longer than the table.
    pub fn apply(&self, x: &mut [f32], width: usize, columns: usize, segments: &[Range<usize>], turn: Turn) {
        let half = self.frequencies.len();
        let fits = |segment: &Range<usize>| segment.len() <= self.positions();
        assert!(segments.iter().all(fits), "a segment is longer than the rope table");
        vectorised(|| {
            for segment in segments {
                let rows = x[segment.start * width..segment.end * width].chunks_exact_mut(width);
                for (row, (cos, sin)) in
                    rows.zip(self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half)))
                {
                    for head in row[..columns].chunks_exact_mut(2 * half) {
                        let (a, b) = head.split_at_mut(half);
                        for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                            let sin = if turn == Turn::Forward { sin } else { -sin };
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                }
            }
        });
    }
}
