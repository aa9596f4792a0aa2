//! One examination by a server: as [`forethought_core::guard::LocalGuard`] does it, a request at a time.

use std::time::Instant;

use forethought_core::{
    evidence::{Assessment, Coverage, Evidence, Hazard, Path, Phase, PhaseEnd, Step, Timings, Verdict},
    guard::{Event, GuardError, Mode, Options, bundle::Calibration, prompt::HazardTree},
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::{Remote, answer};
use crate::guards::pool::NoAnswer;

/// One examination.
pub(super) struct Session<'a> {
    pub(super) remote: &'a Remote,
    events: &'a UnboundedSender<Event>,
    mode: Mode,
    called: Instant,
    started: Instant,
    /// When phases are closed, and when the verdict must be there.
    soft: Instant,
    hard: Instant,
    pub(super) steps: Vec<Step>,
    timings: Timings,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        remote: &'a Remote,
        events: &'a UnboundedSender<Event>,
        options: Options,
        called: Instant,
    ) -> Self {
        let time = remote.time(options);
        Self {
            remote,
            events,
            mode: options.mode,
            called,
            started: Instant::now(),
            soft: called + time * 2 / 3,
            hard: called + time,
            steps: Vec::new(),
            timings: Timings::default(),
        }
    }

    /// Reads, writes and scores.
    pub(super) async fn run(
        mut self,
        coverage: Coverage,
        windows: Vec<Vec<u32>>,
    ) -> Result<Evidence, GuardError> {
        let remote = self.remote;
        let prompt = &remote.prompt;
        let asks_directly = self.mode == Mode::Direct || windows.len() > 1;
        let mut direct_score = None;
        let mut worst: Option<(f64, Vec<u32>)> = None;
        for window in windows {
            let read: Vec<u32> =
                [&prompt.prefix, &window, &prompt.suffix].into_iter().flatten().copied().collect();
            self.timings.prompt_tokens += window.len() + prompt.suffix.len();
            let score = match asks_directly {
                true => {
                    let asked = with(&read, &[&prompt.direct_verdict]);
                    let calibration = remote.manifest.calibration.direct;
                    let score = self.score(&asked, calibration, self.soft).await?;
                    direct_score = Some(direct_score.map_or(score, |highest: f64| highest.max(score)));
                    score
                }
                false => 0.0,
            };
            if worst.as_ref().is_none_or(|(worst, _)| score > *worst) {
                worst = Some((score, read));
            }
        }
        let (_, read) = worst.ok_or(GuardError::Stopped)?;
        self.timings.prefill_ms = ms(self.started);
        let writing = Instant::now();
        let (assessment, score, read) = match self.mode {
            Mode::Direct => (None, direct_score.unwrap_or(1.0), with(&read, &[&prompt.direct_verdict])),
            _ => {
                let (assessment, read) = self.reason(read).await?;
                let score = assessment.score;
                (Some(assessment), score, read)
            }
        };
        let (hazard, partial) = match score >= remote.manifest.hazards.from {
            true if Instant::now() >= self.soft => (None, true),
            true => self.hazard(score, read).await.map_or((None, true), |hazard| (hazard, false)),
            false => (None, false),
        };
        let hurried = assessment.as_ref().is_some_and(|written| written.ends.contains(&PhaseEnd::Deadline));
        self.timings.queue_ms = (self.started - self.called).as_secs_f64() * 1e3;
        self.timings.decode_ms = ms(writing);
        self.timings.total_ms = ms(self.called);
        Ok(Evidence {
            score,
            path: if assessment.is_some() { Path::Reason } else { Path::Direct },
            hazard,
            assessment,
            direct_score,
            probe_score: None,
            combined_score: None,
            probes: vec![],
            partial: partial || hurried,
            coverage,
            timings: self.timings,
            guard: remote.version.clone(),
            steps: self.steps,
        })
    }

    /// Writes both phases and scores the verdict. Gives back what was read and written too, verdict's heading included.
    async fn reason(&mut self, read: Vec<u32>) -> Result<(Assessment, Vec<u32>), GuardError> {
        let remote = self.remote;
        let prompt = &remote.prompt;
        let limits = remote.manifest.limits;
        let read = with(&read, &[&prompt.understanding]);
        let (understanding, first, read) =
            self.write(Phase::Understanding, read, limits.understanding_tokens).await?;
        let read = with(&read, &[&prompt.assessment]);
        let (assessment, second, read) =
            self.write(Phase::Assessment, read, limits.assessment_tokens).await?;
        let read = with(&read, &[&prompt.verdict]);
        let score = self.score(&read, remote.manifest.calibration.reason, self.hard).await?;
        Ok((Assessment { understanding, assessment, ends: [first, second], score }, read))
    }

    /// One phase: its text, how it ended, and all that was read and written. A line end ends it; so does the deadline.
    async fn write(
        &mut self,
        phase: Phase,
        read: Vec<u32>,
        cap: usize,
    ) -> Result<(String, PhaseEnd, Vec<u32>), GuardError> {
        let _ = self.events.send(Event::PhaseStarted(phase));
        let mut body = self.request(&read, cap);
        body["stop"] = json!(["\n"]);
        let mut answer = self.ask(&body, self.soft).await;
        if let Ok(Some(found)) = &answer
            && answer::text(found).is_some_and(|text| text.trim().is_empty())
        {
            // A phase is never empty: its first token is no end of a line or a turn.
            let line_ends = remote_ids(self.remote, "\n").into_iter().chain(remote_ids(self.remote, "\n\n"));
            let ends = self.remote.tokenizer.ends().iter().copied();
            body["logit_bias"] = biased(ends.chain(line_ends).map(|id| (id, -100.0)));
            answer = self.ask(&body, self.soft).await;
        }
        let (text, end) = match answer? {
            None => (String::new(), PhaseEnd::Deadline),
            Some(answer) => {
                self.timings.generated_tokens += answer::written(&answer);
                let text = answer::text(&answer).ok_or_else(|| malformed("no text"))?;
                let line = text.split('\n').next().unwrap_or_default().to_owned();
                let whole = answer::is_complete(&answer) || line.len() < text.len();
                (line, if whole { PhaseEnd::Complete } else { PhaseEnd::Cap })
            }
        };
        let ids = self.remote.tokenizer.encode_text(&text);
        let ids = ids.map_err(|error| GuardError::Model(error.to_string()))?;
        let shown = text.trim().to_owned();
        if !shown.is_empty() {
            let _ = self.events.send(Event::Text(phase, shown.clone()));
        }
        let _ = self.events.send(Event::PhaseEnded(phase, end));
        Ok((shown, end, with(&read, &[&ids])))
    }

    /// P(harmful) after `read`.
    async fn score(
        &mut self,
        read: &[u32],
        calibration: Calibration,
        until: Instant,
    ) -> Result<f64, GuardError> {
        let score = calibration.probability(self.margin(read, until).await?);
        if score.is_finite() { Ok(score) } else { Err(malformed("a verdict that is no number")) }
    }

    /// The hazard, by its tokens one after the other, of those that may follow.
    ///
    /// # Errors
    /// The servers fail, or do not keep to those tokens.
    async fn hazard(&mut self, score: f64, read: Vec<u32>) -> Result<Option<Hazard>, GuardError> {
        let remote = self.remote;
        let prompt = &remote.prompt;
        let label = match Verdict::from_score(score) {
            Verdict::Harmful => &prompt.harmful,
            Verdict::Benign => &prompt.benign,
        };
        let mut read = with(&read, &[label, &prompt.category]);
        let mut tree: &HazardTree = &prompt.hazards;
        loop {
            let mut body = self.request(&read, 1);
            body["logit_bias"] = biased(tree.ids().map(|id| (id, 100.0)));
            let answer = remote.pool.ask(&body, self.hard, |_| true, &mut self.steps).await;
            let (_, answer) = answer.map_err(|_| self.unreachable())?;
            let text = answer::text(&answer).ok_or_else(|| malformed("no text"))?;
            let decodes = |id: &u32| remote.tokenizer.decode(&[*id]).is_ok_and(|own| own == text);
            let next = tree.ids().find(decodes).and_then(|id| tree.child(id).map(|next| (id, next)));
            let (id, next) = next.ok_or_else(|| malformed("no hazard"))?;
            if let Some(hazard) = next.settled() {
                return Ok(hazard.clone());
            }
            tree = next;
            read.push(id);
        }
    }

    pub(super) fn request(&self, prompt: &[u32], max_tokens: usize) -> Value {
        json!({
            "model": self.remote.options.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
        })
    }

    /// An answer, or `None` where the time to write is over.
    async fn ask(&mut self, body: &Value, until: Instant) -> Result<Option<Value>, GuardError> {
        match self.remote.pool.ask(body, until, |_| true, &mut self.steps).await {
            Ok((_, answer)) => Ok(Some(answer)),
            Err(NoAnswer::Late) => Ok(None),
            Err(_) => Err(self.unreachable()),
        }
    }

    /// The error where no server answered.
    pub(super) fn unreachable(&self) -> GuardError {
        GuardError::Unreachable(self.steps.clone())
    }
}

fn with(read: &[u32], more: &[&Vec<u32>]) -> Vec<u32> {
    read.iter().chain(more.iter().copied().flatten()).copied().collect()
}

fn remote_ids(remote: &Remote, text: &str) -> Vec<u32> {
    // A text of several tokens is none that a phase could begin with.
    remote.tokenizer.encode_text(text).ok().filter(|ids| ids.len() == 1).unwrap_or_default()
}

pub(super) fn biased(tokens: impl IntoIterator<Item = (u32, f64)>) -> Value {
    Value::Object(tokens.into_iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect::<Map<_, _>>())
}

pub(super) fn malformed(what: &str) -> GuardError {
    GuardError::Model(format!("the guard's server gave {what}"))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
