//! Token sequences with a weight for each token's loss, and their packing into one matrix without padding.

use std::ops::Range;

use crate::error::{Result, TrainError};
use crate::ops::loss::Target;

/// A sequence to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Prompt and response.
    pub tokens: Vec<u32>,
    /// For each token the weight of the loss of predicting it; 0 for the prompt. The first token is never predicted.
    pub weights: Vec<f32>,
}

impl Example {
    /// Appends a stretch of tokens whose losses all weigh the same.
    pub fn extend(&mut self, tokens: &[u32], weight: f32) {
        self.tokens.extend_from_slice(tokens);
        self.weights.resize(self.tokens.len(), weight);
    }

    /// Positions that are computed: the last token is only ever a target.
    pub fn positions(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Sum of the weights of all tokens that are predicted.
    pub fn weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|&weight| f64::from(weight)).sum()
    }

    fn check(&self, vocabulary: usize) -> std::result::Result<(), String> {
        let out_of_range = self.tokens.iter().find(|&&token| token as usize >= vocabulary);
        if self.tokens.len() != self.weights.len() {
            return Err(format!("{} tokens but {} weights", self.tokens.len(), self.weights.len()));
        }
        if let Some(token) = out_of_range {
            return Err(format!("token {token} is not in the vocabulary of {vocabulary}"));
        }
        if self.weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0) {
            return Err("a weight is negative or not a number".into());
        }
        Ok(())
    }
}

/// Fails on the first example that a model of this vocabulary can't be trained on.
///
/// # Errors
/// Names the example by its place and says what is wrong, without its text.
pub fn check(examples: &[&Example], vocabulary: usize) -> Result<()> {
    for (index, example) in examples.iter().enumerate() {
        example.check(vocabulary).map_err(|reason| TrainError::Example { index, reason })?;
    }
    Ok(())
}

/// Several sequences as one run of rows, each with its own positions and blind to the others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// Input tokens, a row each.
    pub tokens: Vec<u32>,
    /// The rows of each sequence.
    pub segments: Vec<Range<usize>>,
    /// Rows whose prediction counts.
    pub rows: Vec<usize>,
    /// What these rows should predict.
    pub targets: Vec<Target>,
}

impl Packed {
    /// Packs examples one after another; those with nothing to compute take no rows.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut packed = Self::default();
        for example in examples {
            let start = packed.tokens.len();
            packed.tokens.extend_from_slice(&example.tokens[..example.positions()]);
            packed.segments.push(start..packed.tokens.len());
            for (i, (&token, &weight)) in example.tokens.iter().zip(&example.weights).enumerate().skip(1) {
                if weight > 0.0 {
                    packed.rows.push(start + i - 1);
                    packed.targets.push(Target { token, weight });
                }
            }
        }
        packed
    }
}
