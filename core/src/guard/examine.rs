//! One examination on the engine: read, write the two phases, score the verdict, name the hazard.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc, time::Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::{Event, GuardError, Mode, Options, bundle::Calibration, local::Asked};
use crate::{
    engine::{Lane, Task},
    evidence::{Assessment, Coverage, Evidence, Hazard, Path, Phase, PhaseEnd, Timings, Verdict},
    model::{Decoder, KvCache, ModelError, Result, sampler::argmax, tokenizer::TextStream},
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
    /// Of several windows the most harmful so far, by its direct score, and what was read of it.
    worst: Option<(f64, KvCache)>,
    direct_score: f64,
    reasoned_score: Option<f64>,
    phases: [Written; 2],
    hazard: Option<Hazard>,
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
    ) -> Self {
        Self {
            asked,
            options,
            events,
            coverage,
            windows,
            stage: Stage::Reading,
            worst: None,
            direct_score: f64::NAN,
            reasoned_score: None,
            phases: Default::default(),
            hazard: None,
            clock: Clock { called, started: None, read: None, prompt_tokens: 0 },
        }
    }

    fn send(&self, event: Event) {
        // A send fails only where the caller has left; `is_over` sees that before the next step.
        let _ = self.events.send(event);
    }

    fn is_late(&self) -> bool {
        self.options.deadline.is_some_and(|deadline| self.clock.called.elapsed() >= deadline)
    }

    /// What reading the next window takes: the window, the end of the prompt, and the question for a direct verdict.
    fn next_window(&mut self) -> Option<Lane> {
        let mut pending = self.windows.pop_front()?;
        let Asked { prompt, prefix, manifest, .. } = &*self.asked;
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

    /// P(harmful) by the two labels' logits.
    fn score(&self, logits: &[f32], calibration: Calibration) -> Result<f64> {
        let prompt = &self.asked.prompt;
        let logit = |label: &[u32]| label.first().and_then(|&id| logits.get(id as usize)).copied();
        let margin =
            logit(&prompt.harmful).zip(logit(&prompt.benign)).map(|(h, b)| f64::from(h) - f64::from(b));
        let score = margin.map(|margin| calibration.probability(margin)).filter(|score| score.is_finite());
        score.ok_or_else(|| candle_core::Error::msg("the verdict's score is not a number").into())
    }

    fn next(&mut self, lane: &mut Lane, logits: &[f32]) -> Result<ControlFlow<()>> {
        match &self.stage {
            Stage::Reading => self.window_read(lane, logits),
            Stage::Writing(phase) => self.write(*phase, lane, logits),
            Stage::Verdict => {
                let score = self.score(logits, self.asked.manifest.calibration.reason)?;
                self.reasoned_score = Some(score);
                Ok(self.ask_hazard(score, lane))
            }
            Stage::Hazard(path) => {
                let path = path.clone();
                Ok(self.name_hazard(path, lane, logits))
            }
        }
    }

    /// A window's direct verdict is there: on to the next window, or to the phases of the worst.
    fn window_read(&mut self, lane: &mut Lane, logits: &[f32]) -> Result<ControlFlow<()>> {
        let score = self.score(logits, self.asked.manifest.calibration.direct)?;
        if self.coverage.windows <= 1 {
            self.direct_score = score; // nothing to choose, nothing to copy
        } else {
            if self.worst.as_ref().is_none_or(|(worst, _)| score > *worst) {
                self.worst = Some((score, lane.cache.fork(0)?));
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
            if let Some((score, cache)) = self.worst.take() {
                (self.direct_score, lane.cache) = (score, cache);
            }
        }
        self.clock.read = Some(Instant::now());
        Ok(match self.options.mode {
            Mode::Direct => self.ask_hazard(self.direct_score, lane),
            Mode::Reason => {
                // The question for a direct verdict is taken back.
                lane.cache.truncate(lane.cache.len() - self.asked.prompt.direct_verdict.len());
                lane.pending = self.asked.prompt.understanding.clone();
                self.begin(Phase::Understanding);
                ControlFlow::Continue(())
            }
        })
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
        let written = &mut self.phases[phase as usize];
        let id = if written.tokens == 0 { first_token(tokenizer, logits)? } else { argmax(logits) };
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
        if score < self.asked.manifest.hazards.from || self.is_late() {
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

    fn finish(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        let Clock { called, started, read, prompt_tokens } = self.clock;
        let ms = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map_or(0.0, |(from, to)| to.saturating_duration_since(from).as_secs_f64() * 1e3)
        };
        let timings = Timings {
            queue_ms: ms(Some(called), started),
            prefill_ms: ms(started, read),
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
        let evidence = Evidence {
            score: self.reasoned_score.unwrap_or(self.direct_score),
            path: if assessment.is_some() { Path::Reason } else { Path::Direct },
            hazard: self.hazard.take(),
            assessment,
            direct_score: Some(self.direct_score),
            coverage: std::mem::take(&mut self.coverage),
            timings,
            guard: self.asked.version.clone(),
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

    fn advance(&mut self, lane: &mut Lane, logits: &[f32]) -> ControlFlow<()> {
        self.next(lane, logits).unwrap_or_else(|error| {
            self.send(Event::Failed(GuardError::Model(error.to_string())));
            ControlFlow::Break(())
        })
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
mod tests {
    use std::{error::Error, path::Path as FilePath, time::Duration};

    use super::*;
    use crate::{
        conversation::Conversation,
        guard::{Bundle, Examination, LocalGuard, LocalOptions, Windows, transcript},
        model::{Sequence, Want},
    };

    /// The deadline passes at a chosen point instead of a chosen time: phases then close and are scored as they are.
    #[tokio::test]
    async fn a_deadline_closes_what_is_open() -> Result<(), Box<dyn Error>> {
        for tokens_before in [0, 1, 5] {
            let model = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama");
            let mut bundle = Bundle::builtin("base")?;
            bundle.manifest.base.sha256 = None;
            bundle.manifest.template.harmful = "H".into();
            bundle.manifest.template.benign = "B".into();
            bundle.manifest.template.user = "{conversation}".into();
            let windows = Windows { window: 64, overlap: 8, max: 64 };
            let guard =
                LocalGuard::start(&bundle, &model, "", LocalOptions { windows, ..LocalOptions::default() })?;
            let conversation = Conversation::from_user("hello");
            let ids = guard.asked.tokenizer.encode_text(&transcript::render(&conversation))?;
            let coverage =
                Coverage { tokens: ids.len(), tokens_read: ids.len(), windows: 1, ..Coverage::default() };
            let (events, examination) = Examination::channel();
            let options = Options { mode: Mode::Reason, deadline: Some(Duration::from_secs(3600)) };
            let windows = VecDeque::from([ids]);
            let mut task =
                ExamineTask::new(guard.asked.clone(), options, events, coverage, windows, Instant::now());

            let decoder = guard.decoder();
            let mut lane = task.start(decoder).ok_or("no lane")?;
            let mut steps = 0;
            loop {
                let pending = std::mem::take(&mut lane.pending);
                let sequence = Sequence { tokens: &pending, cache: &mut lane.cache, want: Want::Last };
                let logits =
                    decoder.forward(&mut [sequence], &[])?.logits[0].flatten_all()?.to_vec1::<f32>()?;
                // The first step reads, each one after it writes a token.
                if steps == tokens_before + 1 {
                    task.options.deadline = Some(Duration::ZERO);
                }
                assert!(!task.is_over(), "what was read is judged");
                if task.advance(&mut lane, &logits).is_break() {
                    break;
                }
                steps += 1;
            }
            drop(task);
            let evidence = examination.evidence().await?;
            let assessment = evidence.assessment.ok_or("no assessment")?;
            assert_eq!(assessment.ends, [PhaseEnd::Deadline; 2], "after {tokens_before} tokens");
            assert_eq!(evidence.timings.generated_tokens, tokens_before);
            assert!((0.0..=1.0).contains(&evidence.score));
            assert_eq!(assessment.assessment, "");
        }
        Ok(())
    }
}
