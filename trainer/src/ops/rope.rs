//! Rotary position embedding, in the layout of Hugging Face's Llama and Qwen: value `i` of a head is rotated together
//! with value `i + head_dim / 2`. It is a rotation, so its gradient is the rotation back.

use super::attention::Segment;
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

    /// Turns the heads in columns `0..columns` of `x`, whose rows hold `width` values.
    ///
    /// # Panics
    /// When a segment goes beyond the table.
    pub fn apply(&self, x: &mut [f32], width: usize, columns: usize, segments: &[Segment], turn: Turn) {
        let half = self.frequencies.len();
        let fits = |segment: &Segment| segment.end() <= self.positions();
        assert!(segments.iter().all(fits), "a segment goes beyond the rope table");
        vectorised(|| {
            for segment in segments {
                let rows = x[segment.rows.start * width..segment.rows.end * width].chunks_exact_mut(width);
                let (cos, sin) = (&self.cos[segment.position * half..], &self.sin[segment.position * half..]);
                for (row, (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
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
