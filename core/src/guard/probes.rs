//! A guard's probes, and their readings of one conversation.

use std::{collections::BTreeMap, sync::Arc};

use super::combine::{self, Combination, DIRECT, REASON, Signal};
use crate::{
    evidence::ProbeReading,
    model::{ModelError, States},
    probe::{Pool, Position, Probe, ProbeError},
};

/// The probes of a guard, by the layers that they read.
pub(super) struct ProbeSet {
    probes: Vec<Arc<Probe>>,
    layers: Vec<usize>,
    /// Whether a probe of that layer reads more than the last token.
    whole: Vec<bool>,
    width: usize,
}

/// Why probes can't read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

impl ProbeSet {
    /// `width` is the number of values of the model's states.
    pub(super) fn new(probes: Vec<Arc<Probe>>, width: usize) -> Self {
        let mut layers: BTreeMap<usize, bool> = BTreeMap::new();
        for info in probes.iter().map(|probe| probe.info()) {
            *layers.entry(info.layer).or_default() |= info.position != Position::Last;
        }
        let (layers, whole) = layers.into_iter().unzip();
        Self { probes, layers, whole, width }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Probe>> {
        self.probes.iter()
    }

    /// The layers whose states are wanted, each once.
    pub(super) fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// A signal that is combined and is not there.
    pub(super) fn unknown_signal(&self, combinations: &[Combination]) -> Option<String> {
        let known = |name: &str| {
            [DIRECT, REASON].contains(&name) || self.iter().any(|probe| probe.info().name == name)
        };
        combinations.iter().flat_map(|c| c.weights.keys()).find(|name| !known(name)).cloned()
    }

    /// Begins to read a window of `tokens` tokens.
    pub(super) fn window(&self, tokens: usize) -> Vec<Pool> {
        self.whole.iter().map(|whole| Pool::new(self.width, if *whole { tokens } else { 0 })).collect()
    }

    /// Takes the states of the next tokens.
    pub(super) fn push(&self, pools: &mut [Pool], states: &States<'_>) -> Result<(), ReadError> {
        for ((pool, layer), whole) in pools.iter_mut().zip(&self.layers).zip(&self.whole) {
            pool.push(&if *whole { states.layer(*layer)? } else { states.last(*layer)? });
        }
        Ok(())
    }

    /// What each probe says of a window that was read.
    pub(super) fn read(&self, pools: &[Pool]) -> Result<Vec<f64>, ReadError> {
        let read = |probe: &Arc<Probe>| {
            let info = probe.info();
            let at = self.layers.iter().position(|layer| *layer == info.layer);
            let state = at.and_then(|at| pools.get(at)).map(|pool| pool.state(info.position));
            Ok(probe.run(&state.unwrap_or_default(), self.width)?.first().copied().unwrap_or(f64::NAN))
        };
        self.iter().map(read).collect()
    }

    /// What each probe says at each of the tokens that were just read: by token, then by probe.
    pub(super) fn read_each(&self, states: &States<'_>) -> Result<Vec<Vec<f64>>, ReadError> {
        let mut rows = Vec::new();
        for probe in self.iter() {
            let scores = probe.run(&states.layer(probe.info().layer)?, self.width)?;
            rows.resize_with(scores.len(), Vec::new);
            rows.iter_mut().zip(scores).for_each(|(row, score)| row.push(score));
        }
        Ok(rows)
    }

    /// `scores` with the probes' names.
    pub(super) fn signals<'a>(&'a self, scores: &'a [f64]) -> impl Iterator<Item = Signal<'a>> {
        self.iter().zip(scores).map(|(probe, score)| (probe.info().name.as_str(), *score))
    }

    /// `scores` as evidence.
    pub(super) fn readings(&self, scores: &[f64]) -> Vec<ProbeReading> {
        let reading = |(probe, score): (&Arc<Probe>, &f64)| {
            let info = probe.info();
            ProbeReading {
                name: info.name.clone(),
                layer: info.layer,
                position: info.position,
                score: *score,
                threshold: info.threshold,
            }
        };
        self.iter().zip(scores).map(reading).collect()
    }

    /// P(harmful) by the probes: what `combinations` make of them, else the highest. `None` without any.
    pub(super) fn score(&self, scores: &[f64], combinations: &[Combination]) -> Option<f64> {
        let highest = || scores.iter().copied().reduce(f64::max);
        self.combined(scores, combinations, &[]).or_else(highest)
    }

    /// P(harmful) by probes and `verdicts` together, if `combinations` say how; the last verdict is always part of it. A
    /// user's own probe is not among what they were fitted to: it counts by itself, and the score is at least what it says.
    pub(super) fn combined(
        &self,
        scores: &[f64],
        combinations: &[Combination],
        verdicts: &[Signal<'_>],
    ) -> Option<f64> {
        let signals: Vec<Signal<'_>> = self.signals(scores).chain(verdicts.iter().copied()).collect();
        let uses_last =
            |c: &&Combination| verdicts.last().is_none_or(|(name, _)| c.weights.contains_key(*name));
        let (score, used) = combine::combine(combinations.iter().filter(uses_last), &signals)?;
        let own = self.iter().zip(scores).filter(|(probe, _)| {
            let info = probe.info();
            info.own && !used.weights.contains_key(&info.name)
        });
        Some(own.fold(score, |score, (_, own)| score.max(*own)))
    }
}
