//! Reading: window after window, what the probes and the direct verdict say of each, and what is decided by that alone.

use std::{collections::BTreeSet, ops::ControlFlow, time::Instant};

use super::{ExamineTask, Stage};
use crate::{
    engine::Lane,
    evidence::Phase,
    guard::{
        Event, GuardError, Mode,
        bundle::Focus,
        combine::{DIRECT, REASON},
        local::Asked,
        probes::ReadError,
        trace::{Part, TracedToken},
    },
    model::{States, tokenizer::TextStream},
};

/// Where a trace is in the window being read.
#[derive(Default)]
pub(super) struct Trace {
    /// The window's number, from 1; 0 before the first.
    window: usize,
    /// Tokens of it that are still to come.
    left: usize,
    stream: TextStream,
}

impl ExamineTask {
    /// What reading the next window takes: the window, the end of the prompt, and the question for a direct verdict.
    pub(super) fn next_window(&mut self) -> Option<Lane> {
        let mut pending = self.windows.pop_front()?;
        let Asked { prompt, prefix, manifest, probes, .. } = &*self.asked;
        self.pools = probes.window(pending.len());
        self.window.clone_from(&pending);
        if let Some(trace) = &mut self.trace {
            (trace.window, trace.left) = (trace.window + 1, pending.len());
        }
        pending.extend(prompt.suffix.iter().chain(&prompt.direct_verdict));
        self.clock.prompt_tokens += pending.len();
        let room =
            pending.len() + manifest.limits.understanding_tokens + manifest.limits.assessment_tokens + 64;
        match prefix.fork(room) {
            Ok(cache) => Some(Lane { pending, cache }),
            Err(error) => {
                self.send(Event::Failed(GuardError::Model(error.to_string())));
                None
            }
        }
    }

    /// Keeps what probes need of the states of `tokens`, and tells what they say of each where a trace is wanted.
    pub(super) fn take_states(&mut self, tokens: &[u32], states: &States<'_>) -> Result<(), ReadError> {
        let asked = self.asked.clone();
        let is_reading = matches!(self.stage, Stage::Reading);
        if is_reading {
            asked.probes.push(&mut self.pools, states)?;
        }
        let Some(trace) = &mut self.trace else { return Ok(()) };
        let mut traced = Vec::with_capacity(tokens.len());
        for (&id, scores) in tokens.iter().zip(asked.probes.read_each(states)?) {
            let part = match is_reading {
                true if trace.left > 0 => Part::Window(trace.window - 1),
                true => Part::Question,
                false => Part::Written,
            };
            trace.left = trace.left.saturating_sub(1);
            traced.push(TracedToken { part, text: trace.stream.push(&asked.tokenizer, id)?, scores });
        }
        self.send(Event::Traced(traced));
        Ok(())
    }

    /// A window's direct verdict is there: on to the next window, or to what the mode wants of the worst.
    pub(super) fn window_read(
        &mut self,
        lane: &mut Lane,
        logits: &[f32],
    ) -> Result<ControlFlow<()>, ReadError> {
        let direct = self.score(logits, self.asked.manifest.calibration.direct)?;
        let since = Instant::now();
        let probes = self.asked.probes.read(&self.pools)?;
        self.clock.probes += since.elapsed();
        self.direct_score = self.direct_score.max(direct);
        for (highest, score) in self.probe_scores.iter_mut().zip(&probes) {
            *highest = highest.max(*score);
        }
        if self.coverage.windows > 1 {
            let score = self.early_score(&probes, direct).map_or(direct, |(score, _)| score);
            if self.worst.as_ref().is_none_or(|(worst, ..)| score > *worst) {
                self.worst = Some((score, lane.cache.fork(0)?, std::mem::take(&mut self.window)));
            }
            if !self.windows.is_empty() {
                return Ok(match self.next_window() {
                    Some(next) => {
                        *lane = next;
                        ControlFlow::Continue(())
                    }
                    None => ControlFlow::Break(()),
                });
            }
            if let Some((_, cache, window)) = self.worst.take() {
                (lane.cache, self.window) = (cache, window);
            }
        }
        self.clock.read = Some(Instant::now());
        Ok(self.all_read(lane))
    }

    /// The score before any phase in modes that go by probes, and whether signals were combined for it.
    fn early_score(&self, probes: &[f64], direct: f64) -> Option<(f64, bool)> {
        let Asked { probes: set, manifest, .. } = &*self.asked;
        let combinations = &manifest.combine;
        let verdict = (DIRECT, direct);
        let combined = match self.options.mode {
            Mode::Reason | Mode::Direct => return None,
            Mode::Probe => set.combined(probes, combinations, &[]),
            Mode::Cascade => set
                .combined(probes, combinations, &[verdict])
                .or_else(|| set.combined(probes, combinations, &[])),
        };
        let is_combined = combined.is_some();
        Some((combined.or_else(|| set.score(probes, combinations))?, is_combined))
    }

    /// The conversation was read: decides, or begins to reason.
    fn all_read(&mut self, lane: &mut Lane) -> ControlFlow<()> {
        let early = self.early_score(&self.probe_scores, self.direct_score);
        let Some((score, is_combined)) = early else {
            return match self.options.mode {
                Mode::Direct => self.ask_hazard(self.direct_score, lane),
                _ => self.reason(lane),
            };
        };
        let band = self.asked.band.filter(|_| self.options.mode == Mode::Cascade);
        let is_harmful = band.is_some_and(|band| score >= band.harmful_from);
        let is_clear = band.is_none_or(|band| score < band.benign_below || is_harmful);
        if !is_clear {
            return self.reason(lane);
        }
        self.decided = Some(score);
        self.combined_score = is_combined.then_some(score);
        if is_harmful && self.asked.reason_on_refuse {
            self.reason(lane)
        } else {
            self.ask_hazard(score, lane)
        }
    }

    /// Begins the phases.
    fn reason(&mut self, lane: &mut Lane) -> ControlFlow<()> {
        // The question for a direct verdict is taken back.
        lane.cache.truncate(lane.cache.len() - self.asked.prompt.direct_verdict.len());
        lane.pending = self.asked.prompt.understanding.clone();
        self.topic = self.words();
        self.begin(Phase::Understanding);
        ControlFlow::Continue(())
    }

    /// The window's tokens that are words or beginnings of words, short ones left out: what it is about.
    fn words(&self) -> BTreeSet<u32> {
        let Asked { tokenizer, manifest, .. } = &*self.asked;
        if manifest.focus == Focus::default() {
            return BTreeSet::new();
        }
        let is_word = |id: &u32| {
            let text = tokenizer.decode(&[*id]).unwrap_or_default();
            let text = text.trim();
            text.chars().count() > 3 && text.chars().all(char::is_alphanumeric)
        };
        let all: BTreeSet<u32> = self.window.iter().copied().collect();
        all.into_iter().filter(is_word).collect()
    }

    /// The verdict after the phases is there.
    pub(super) fn reasoned(&mut self, score: f64, lane: &mut Lane) -> ControlFlow<()> {
        if self.options.mode == Mode::Cascade && self.decided.is_none() {
            let Asked { probes, manifest, .. } = &*self.asked;
            let verdicts = [(DIRECT, self.direct_score), (REASON, score)];
            self.combined_score = probes.combined(&self.probe_scores, &manifest.combine, &verdicts);
        }
        self.ask_hazard(self.final_score(), lane)
    }

    /// P(harmful) by what decides.
    pub(super) fn final_score(&self) -> f64 {
        let said = self.combined_score.or(self.reasoned_score).unwrap_or(self.direct_score);
        self.decided.unwrap_or(said)
    }
}
