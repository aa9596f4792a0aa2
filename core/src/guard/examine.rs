//! One examination on the engine: read ([`reading`]), write the two phases, score the verdict, name the hazard.

mod reading;

use std::{
    collections::{BTreeSet, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use self::reading::Trace;
use super::{Event, GuardError, Options, bundle::Calibration, local::Asked, probes::ReadError};
use crate::{
    engine::{Lane, Task},
    evidence::{Assessment, Coverage, Evidence, Hazard, Path, Phase, PhaseEnd, Timings, Verdict},
    model::{Decoder, KvCache, ModelError, Result, States, sampler::argmax, tokenizer::TextStream},
    probe::Pool,
};

/// The state of one examination.
pub(super) struct ExamineTask {
    asked: Arc<Asked>,
    options: Options,
    events: UnboundedSender<Event>,
    coverage: Coverage,
    /// Windows that are still to be read.
    windows: VecDeque<Vec<u32>>,
    stage: Stage,
    /// The window being read: the states that probes want of it.
    pools: Vec<Pool>,
    /// The window being read, or written about.
    window: Vec<u32>,
    /// Of several windows the most harmful so far, by the score that the mode goes by, and what was read of it.
    worst: Option<(f64, KvCache, Vec<u32>)>,
    /// Words of the window that no phase has written yet.
    topic: BTreeSet<u32>,
    /// The highest of all windows, as all scores are.
    direct_score: f64,
    /// By each probe.
    probe_scores: Vec<f64>,
    /// The score that probes decide by; set where they did.
    decided: Option<f64>,
    /// The score of several signals, where that is what counts.
    combined_score: Option<f64>,
    reasoned_score: Option<f64>,
    trace: Option<Trace>,
    phases: [Written; 2],
    hazard: Option<Hazard>,
    /// Whether there was no time for the hazard.
    partial: bool,
    clock: Clock,
}

/// What the next logits mean.
enum Stage {
    /// The direct verdict of a window.
    Reading,
    /// The next token of a phase.
    Writing(Phase),
    /// The verdict after the phases.
    Verdict,
    /// The next token of the hazard, after these.
    Hazard(Vec<u32>),
}

/// A phase's text so far.
#[derive(Default)]
struct Written {
    stream: TextStream,
    text: String,
    tokens: usize,
    end: Option<PhaseEnd>,
}

struct Clock {
    called: Instant,
    started: Option<Instant>,
    read: Option<Instant>,
    probes: Duration,
    prompt_tokens: usize,
}

impl ExamineTask {
    pub(super) fn new(
        asked: Arc<Asked>,
        options: Options,
        events: UnboundedSender<Event>,
        coverage: Coverage,
        windows: VecDeque<Vec<u32>>,
        called: Instant,
        trace: bool,
    ) -> Self {
        Self {
            probe_scores: vec![0.0; asked.probes.iter().count()],
            asked,
            options,
            events,
            coverage,
            windows,
            stage: Stage::Reading,
            pools: Vec::new(),
            window: Vec::new(),
            worst: None,
            topic: BTreeSet::new(),
            direct_score: f64::NAN,
            decided: None,
            combined_score: None,
            reasoned_score: None,
            trace: trace.then(Trace::default),
            phases: Default::default(),
            hazard: None,
            partial: false,
            clock: Clock { called, started: None, read: None, probes: Duration::ZERO, prompt_tokens: 0 },
        }
    }

    fn send(&self, event: Event) {
        // A send fails only where the caller has left; `is_over` sees that before the next step.
        let _ = self.events.send(event);
    }

    fn is_late(&self) -> bool {
        self.options.deadline.is_some_and(|deadline| self.clock.called.elapsed() >= deadline)
    }

    /// P(harmful) by the two labels' logits.
    fn score(&self, logits: &[f32], calibration: Calibration) -> Result<f64> {
        let prompt = &self.asked.prompt;
        let logit = |label: &[u32]| label.first().and_then(|&id| logits.get(id as usize)).copied();
        let margin =
            logit(&prompt.harmful).zip(logit(&prompt.benign)).map(|(h, b)| f64::from(h) - f64::from(b));
        let score = margin.map(|margin| calibration.probability(margin)).filter(|score| score.is_finite());
        score.ok_or_else(|| candle_core::Error::msg("the verdict's score is not a number").into())
    }

    fn next(&mut self, lane: &mut Lane, logits: &[f32]) -> Result<ControlFlow<()>, ReadError> {
        match &self.stage {
            Stage::Reading => self.window_read(lane, logits),
            Stage::Writing(phase) => Ok(self.write(*phase, lane, logits)?),
            Stage::Verdict => {
                let score = self.score(logits, self.asked.manifest.calibration.reason)?;
                self.reasoned_score = Some(score);
                Ok(self.reasoned(score, lane))
            }
            Stage::Hazard(path) => {
                let path = path.clone();
                Ok(self.name_hazard(path, lane, logits))
            }
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.send(Event::PhaseStarted(phase));
        self.stage = Stage::Writing(phase);
    }

    /// One more token of a phase. A line end, or a token that ends a turn, ends the phase.
    fn write(&mut self, phase: Phase, lane: &mut Lane, logits: &[f32]) -> Result<ControlFlow<()>> {
        let asked = self.asked.clone();
        let tokenizer = &asked.tokenizer;
        let limits = asked.manifest.limits;
        let cap = match phase {
            Phase::Understanding => limits.understanding_tokens,
            Phase::Assessment => limits.assessment_tokens,
        };
        if self.is_late() {
            lane.pending = Vec::new();
            return self.end(phase, PhaseEnd::Deadline, lane);
        }
        let mut logits = logits.to_vec();
        for &id in &self.topic {
            logits[id as usize] += asked.manifest.focus.of(phase);
        }
        let written = &mut self.phases[phase as usize];
        let id = if written.tokens == 0 { first_token(tokenizer, &logits)? } else { argmax(&logits) };
        self.topic.remove(&id);
        if tokenizer.is_end(id) {
            lane.pending = Vec::new();
            return self.end(phase, PhaseEnd::Complete, lane);
        }
        written.tokens += 1;
        let text = written.stream.push(tokenizer, id)?;
        let line_end = text.split_once('\n').map(|(before, _)| before.to_owned());
        // What comes before the line's end is kept; the end itself belongs to the next heading.
        lane.pending = match &line_end {
            Some(before) => tokenizer.encode_text(before)?,
            None => vec![id],
        };
        let full = written.tokens >= cap;
        self.add_text(phase, line_end.as_ref().unwrap_or(&text));
        match line_end {
            Some(_) => self.end(phase, PhaseEnd::Complete, lane),
            None if full => self.end(phase, PhaseEnd::Cap, lane),
            None => Ok(ControlFlow::Continue(())),
        }
    }

    fn add_text(&mut self, phase: Phase, text: &str) {
        let written = &mut self.phases[phase as usize];
        let text = if written.text.is_empty() { text.trim_start() } else { text };
        if !text.is_empty() {
            written.text.push_str(text);
            let text = text.to_owned();
            self.send(Event::Text(phase, text));
        }
    }

    /// Closes a phase; what is pending of it is read together with the next heading.
    fn end(&mut self, phase: Phase, end: PhaseEnd, lane: &mut Lane) -> Result<ControlFlow<()>> {
        let asked = self.asked.clone();
        let rest = std::mem::take(&mut self.phases[phase as usize].stream).finish(&asked.tokenizer)?;
        if end == PhaseEnd::Cap {
            self.add_text(phase, &rest);
        }
        self.phases[phase as usize].end = Some(end);
        self.send(Event::PhaseEnded(phase, end));
        match phase {
            Phase::Understanding => {
                lane.pending.extend(&asked.prompt.assessment);
                self.begin(Phase::Assessment);
            }
            Phase::Assessment => {
                lane.pending.extend(&asked.prompt.verdict);
                self.stage = Stage::Verdict;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// With the score known, asks for the hazard where one is to be named.
    fn ask_hazard(&mut self, score: f64, lane: &mut Lane) -> ControlFlow<()> {
        if score < self.asked.manifest.hazards.from {
            return self.finish();
        }
        if self.is_late() {
            self.partial = true;
            return self.finish();
        }
        let prompt = &self.asked.prompt;
        let label = match Verdict::from_score(score) {
            Verdict::Harmful => &prompt.harmful,
            Verdict::Benign => &prompt.benign,
        };
        lane.pending = label.iter().chain(&prompt.category).copied().collect();
        self.stage = Stage::Hazard(Vec::new());
        ControlFlow::Continue(())
    }

    /// One more token of the hazard, of those that may follow; ends as soon as only one hazard is left.
    fn name_hazard(&mut self, mut path: Vec<u32>, lane: &mut Lane, logits: &[f32]) -> ControlFlow<()> {
        let mut tree = &self.asked.prompt.hazards;
        for id in &path {
            let Some(child) = tree.child(*id) else { break };
            tree = child;
        }
        let Some((id, next)) = tree.step(logits) else { return self.finish() };
        if let Some(hazard) = next.settled() {
            self.hazard = hazard.clone();
            return self.finish();
        }
        path.push(id);
        lane.pending = vec![id];
        self.stage = Stage::Hazard(path);
        ControlFlow::Continue(())
    }

    fn give_up(&self, error: &ReadError) -> ControlFlow<()> {
        self.send(Event::Failed(GuardError::Model(error.to_string())));
        ControlFlow::Break(())
    }

    fn finish(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        let Clock { called, started, read, probes, prompt_tokens } = self.clock;
        let ms = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map_or(0.0, |(from, to)| to.saturating_duration_since(from).as_secs_f64() * 1e3)
        };
        let timings = Timings {
            queue_ms: ms(Some(called), started),
            prefill_ms: ms(started, read),
            probe_ms: probes.as_secs_f64() * 1e3,
            decode_ms: ms(read, Some(now)),
            total_ms: ms(Some(called), Some(now)),
            prompt_tokens,
            generated_tokens: self.phases.iter().map(|p| p.tokens).sum(),
        };
        let assessment = self.reasoned_score.map(|score| Assessment {
            understanding: self.phases[0].text.trim_end().to_owned(),
            assessment: self.phases[1].text.trim_end().to_owned(),
            ends: std::array::from_fn(|i| self.phases[i].end.unwrap_or(PhaseEnd::Complete)),
            score,
        });
        let hurried = self.phases.iter().any(|phase| phase.end == Some(PhaseEnd::Deadline));
        let path = match (self.decided, &assessment) {
            (Some(_), _) => Path::Probe,
            (None, Some(_)) => Path::Reason,
            (None, None) => Path::Direct,
        };
        let Asked { probes, manifest, version, .. } = &*self.asked;
        let evidence = Evidence {
            score: self.final_score(),
            path,
            hazard: self.hazard.take(),
            assessment,
            direct_score: Some(self.direct_score),
            probe_score: probes.score(&self.probe_scores, &manifest.combine),
            combined_score: self.combined_score,
            probes: probes.readings(&self.probe_scores),
            partial: self.partial || hurried,
            coverage: std::mem::take(&mut self.coverage),
            timings,
            guard: version.clone(),
            steps: vec![],
        };
        self.send(Event::Done(Box::new(evidence)));
        ControlFlow::Break(())
    }
}

impl Task for ExamineTask {
    fn start(&mut self, _: &Decoder) -> Option<Lane> {
        self.clock.started = Some(Instant::now());
        self.send(Event::Coverage(self.coverage.clone()));
        self.next_window()
    }

    fn taps(&self) -> &[usize] {
        let is_wanted = self.trace.is_some() || matches!(self.stage, Stage::Reading);
        if is_wanted { self.asked.probes.layers() } else { &[] }
    }

    fn tapped(&mut self, tokens: &[u32], states: &States<'_>) -> ControlFlow<()> {
        let since = Instant::now();
        let taken = self.take_states(tokens, states);
        self.clock.probes += since.elapsed();
        taken.map_or_else(|error| self.give_up(&error), ControlFlow::Continue)
    }

    fn advance(&mut self, lane: &mut Lane, logits: &[f32]) -> ControlFlow<()> {
        self.next(lane, logits).unwrap_or_else(|error| self.give_up(&error))
    }

    fn is_over(&mut self) -> bool {
        if self.events.is_closed() {
            return true;
        }
        match self.options.deadline {
            Some(after) if self.clock.read.is_none() && self.is_late() => {
                self.send(Event::Failed(GuardError::Deadline { after }));
                true
            }
            _ => false,
        }
    }

    fn fail(self, error: &str) {
        self.send(Event::Failed(GuardError::Model(error.to_owned())));
    }
}

/// The likeliest token that begins a text: a phase is never empty.
fn first_token(tokenizer: &crate::model::Tokenizer, logits: &[f32]) -> Result<u32, ModelError> {
    let mut logits = logits.to_vec();
    for _ in 0..32 {
        let id = argmax(&logits);
        if !tokenizer.is_end(id) && !tokenizer.decode(&[id])?.trim().is_empty() {
            return Ok(id);
        }
        logits[id as usize] = f32::NEG_INFINITY;
    }
    Ok(argmax(&logits))
}

#[cfg(test)]
mod tests;
