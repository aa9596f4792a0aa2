//! Token sequences with a weight for each token's loss, and their packing into one matrix without padding.

use std::ops::Range;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::error::{Result, TrainError};
use crate::ops::attention::Segment;
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

    /// Tokens whose prediction counts.
    pub fn targets(&self) -> usize {
        self.weights.iter().skip(1).filter(|&&weight| weight > 0.0).count()
    }

    fn check(&self, vocabulary: usize) -> std::result::Result<(), String> {
        if self.tokens.len() != self.weights.len() {
            return Err(format!("{} tokens but {} weights", self.tokens.len(), self.weights.len()));
        }
        if self.weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0) {
            return Err("a weight is negative or not a number".into());
        }
        check_tokens(&self.tokens, vocabulary)
    }
}

fn check_tokens(tokens: &[u32], vocabulary: usize) -> std::result::Result<(), String> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(token) => Err(format!("token {token} is not in the vocabulary of {vocabulary}")),
        None => Ok(()),
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

/// Fails on the first prompt that is empty or holds a token outside the vocabulary.
///
/// # Errors
/// As for [`check`].
pub fn check_prompts(prompts: &[&[u32]], vocabulary: usize) -> Result<()> {
    for (index, prompt) in prompts.iter().enumerate() {
        let checked = match prompt {
            [] => Err("it is empty".into()),
            tokens => check_tokens(tokens, vocabulary),
        };
        checked.map_err(|reason| TrainError::Example { index, reason })?;
    }
    Ok(())
}

/// How often a source's items are drawn in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Items of the source.
    pub items: usize,
    /// Draws of them in an epoch: every item is drawn equally often, or once more than another.
    pub draws: usize,
}

/// The order in which a run sees its items, shuffled anew for every epoch.
///
/// A step's batch follows from the seed and the step alone, so a resumed run needs no state of a generator. Batches
/// mix lengths: packing pads nothing, so sorting by length would only make the order less random.
#[derive(Clone, Debug)]
pub struct Shuffle {
    sources: Vec<Draws>,
    batch: usize,
    seed: u64,
    epoch: usize,
    order: Vec<usize>,
}

impl Shuffle {
    /// The order for sources whose items are numbered through, in batches of `batch`, at least 1.
    pub fn new(sources: Vec<Draws>, batch: usize, seed: u64) -> Self {
        Self { sources, batch, seed, epoch: 0, order: Vec::new() }
    }

    /// Batches an epoch; the last one may be smaller.
    pub fn steps_an_epoch(&self) -> usize {
        self.sources.iter().map(|source| source.draws).sum::<usize>().div_ceil(self.batch)
    }

    /// The items of a step, counted from 0.
    pub fn batch(&mut self, step: usize) -> &[usize] {
        let (epoch, index) = (step / self.steps_an_epoch(), step % self.steps_an_epoch());
        if self.order.is_empty() || epoch != self.epoch {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&self.seed.to_le_bytes());
            seed[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
            let rng = &mut StdRng::from_seed(seed);
            self.order.clear();
            let mut first = 0;
            for source in &self.sources {
                let mut items: Vec<usize> = (first..first + source.items).collect();
                items.shuffle(rng);
                self.order.extend(items.iter().cycle().take(source.draws));
                first += source.items;
            }
            self.order.shuffle(rng);
            self.epoch = epoch;
        }
        let start = index * self.batch;
        &self.order[start..(start + self.batch).min(self.order.len())]
    }
}

/// Several sequences as one run of rows, without padding, and without computing twice what they have in common.
///
/// Sequences that begin alike (with the same system prompt, or the same prompt answered in two forms) share the rows of
/// that beginning: what follows sees them as its own past. Values and gradients are those of separate sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// Input tokens, a row each.
    pub tokens: Vec<u32>,
    /// The stretches of rows, each after those that it sees.
    pub segments: Vec<Segment>,
    /// Rows whose prediction counts; one shared by several sequences may come several times.
    pub rows: Vec<usize>,
    /// What these rows should predict.
    pub targets: Vec<Target>,
}

/// Fewest tokens worth sharing: every segment costs calls.
const SHARED: usize = 16;

impl Packed {
    /// Packs examples; those with nothing to compute take no rows.
    pub fn new(examples: &[&Example]) -> Self {
        let inputs: Vec<&[u32]> = examples.iter().map(|e| &e.tokens[..e.positions()]).collect();
        let (mut packed, rows) = Self::share(&inputs);
        for (example, rows) in examples.iter().zip(rows) {
            let predicted = example.tokens.iter().zip(&example.weights).skip(1);
            for (row, (&token, &weight)) in rows.zip(predicted) {
                if weight > 0.0 {
                    packed.rows.push(row);
                    packed.targets.push(Target { token, weight });
                }
            }
        }
        packed
    }

    /// Packs prompts to look at what their last rows predict; `rows` are in the prompts' order. None may be empty.
    pub fn prompts(prompts: &[&[u32]]) -> Self {
        let (mut packed, rows) = Self::share(prompts);
        packed.rows = rows.filter_map(Iterator::last).collect();
        packed
    }

    /// The rows of all sequences, and for each sequence, in order, which are its own.
    fn share(inputs: &[&[u32]]) -> (Self, impl Iterator<Item = impl Iterator<Item = usize>>) {
        let mut packed = Self::default();
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|&i| inputs[i]);
        let mut paths = vec![Vec::new(); inputs.len()];
        packed.branch(inputs, &order, 0, &[], &mut paths);
        (packed, paths.into_iter().map(|path: Vec<Range<usize>>| path.into_iter().flatten()))
    }

    /// Appends what the sequences of `order`, sorted and equal up to `depth`, hold beyond it.
    fn branch(
        &mut self,
        inputs: &[&[u32]],
        order: &[usize],
        depth: usize,
        past: &[Range<usize>],
        paths: &mut [Vec<Range<usize>>],
    ) {
        let ended = order.iter().take_while(|&&i| inputs[i].len() == depth).count();
        for group in order[ended..].chunk_by(|&a, &b| inputs[a][depth] == inputs[b][depth]) {
            let first = inputs[group[0]];
            // Sorted, so that what the first and the last share, all share.
            let shared = common_prefix(first, inputs[group[group.len() - 1]]);
            let alone = group.len() == 1 || shared - depth < SHARED;
            for group in group.chunks(if alone { 1 } else { group.len() }) {
                let end = if alone { inputs[group[0]].len() } else { shared };
                let start = self.tokens.len();
                self.tokens.extend_from_slice(&inputs[group[0]][depth..end]);
                let rows = start..self.tokens.len();
                self.segments.push(Segment { rows: rows.clone(), position: depth, past: past.to_vec() });
                group.iter().for_each(|&i| paths[i].push(rows.clone()));
                if !alone {
                    let past: Vec<_> = past.iter().cloned().chain([rows]).collect();
                    self.branch(inputs, group, end, &past, paths);
                }
            }
        }
    }
}

/// How many tokens two sequences have in common at their beginning.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_holds_every_item_once() {
        let new = |seed| Shuffle::new(vec![Draws { items: 10, draws: 10 }], 4, seed);
        let mut shuffle = new(3);
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            let steps = epoch * 3..(epoch + 1) * 3;
            let seen: Vec<usize> = steps.flat_map(|step| shuffle.batch(step).to_vec()).collect();
            let mut sorted = seen.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            epochs.push(seen);
        }
        assert_ne!(epochs[0], epochs[1]);
        // Any step, out of order, is what it was.
        assert_eq!(new(3).batch(4), &epochs[1][4..8]);
        assert_ne!(new(4).batch(0), &epochs[0][..4]);
    }

    #[test]
    fn sources_are_drawn_as_often_as_asked() {
        let sources = vec![Draws { items: 4, draws: 2 }, Draws { items: 3, draws: 7 }];
        let mut shuffle = Shuffle::new(sources, 5, 1);
        assert_eq!(shuffle.steps_an_epoch(), 2);
        let mut seen = [0; 7];
        for step in 0..2 {
            shuffle.batch(step).iter().for_each(|&item| seen[item] += 1);
        }
        assert_eq!(seen[..4].iter().sum::<i32>(), 2);
        assert!(seen[..4].iter().all(|&n| n <= 1), "{seen:?}");
        assert!(seen[4..].iter().all(|&n| n == 2 || n == 3), "{seen:?}");
    }

    #[test]
    fn packing_keeps_sequences_apart() {
        let mut first = Example::default();
        first.extend(&[5, 6], 0.0);
        first.extend(&[7], 2.0);
        let second = Example { tokens: vec![8, 9], weights: vec![1.0, 0.5] };
        let packed = Packed::new(&[&second, &Example::default(), &first]);
        assert_eq!(packed.tokens, [5, 6, 8]);
        let rows: Vec<_> = packed.segments.iter().map(|segment| segment.rows.clone()).collect();
        assert_eq!(rows, [0..2, 2..3]);
        assert_eq!(packed.rows, [2, 1]);
        let target = |token, weight| Target { token, weight };
        assert_eq!(packed.targets, [target(9, 0.5), target(7, 2.0)]);
        assert_eq!((first.weight(), second.weight()), (2.0, 0.5));
    }

    #[test]
    fn equal_beginnings_are_shared() {
        let sequence = |common: u32, own: u32, len: u32| -> Vec<u32> {
            (0..20)
                .chain((0..20).map(|i| 100 * common + i))
                .chain((0..len).map(|i| 10_000 * own + i))
                .collect()
        };
        let sequences = [sequence(1, 1, 5), sequence(2, 2, 6), sequence(1, 3, 7), sequence(1, 1, 5)];
        let prompts: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let packed = Packed::prompts(&prompts);
        // 20 shared by all, 20 by the first kind, 5 by two that are equal, 7; 26 of the second kind.
        assert_eq!(packed.tokens.len(), 20 + 20 + 5 + 5 + 7 + 26);
        for (prompt, &row) in prompts.iter().zip(&packed.rows) {
            let segment = packed.segments.iter().find(|segment| segment.rows.contains(&row)).unwrap();
            let seen = segment.past.iter().cloned().chain([segment.rows.clone()]).flatten();
            assert_eq!(seen.map(|row| packed.tokens[row]).collect::<Vec<_>>(), *prompt);
            let past: usize = segment.past.iter().map(ExactSizeIterator::len).sum();
            assert_eq!(segment.position, past);
        }
    }
}
