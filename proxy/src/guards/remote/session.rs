//! One examination by a server: as [`forethought_core::guard::LocalGuard`] does it, a request at a time.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use forethought_core::{
    evidence::{Assessment, Coverage, Evidence, Hazard, Path, Phase, PhaseEnd, Step, Timings, Verdict},
    guard::{Event, GuardError, Mode, Options, bundle::Calibration, prompt::HazardTree},
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::{Remote, Verdicts, answer};

/// How many of the likeliest tokens are asked for: the most that common servers give.
const TOP: usize = 20;
/// The bias that leaves only some tokens, and the margins that are told apart under it. APIs take at most 100.
const BIAS: f64 = 80.0;
const MARGIN: f64 = 12.0;
/// Halvings of the range of margins: the last one is right to 0.05.
const HALVINGS: usize = 8;

pub(super) struct Session<'a> {
    remote: &'a Remote,
    events: &'a UnboundedSender<Event>,
    mode: Mode,
    called: Instant,
    started: Instant,
    /// When phases are closed, and when the verdict must be there.
    soft: Instant,
    hard: Instant,
    steps: Vec<Step>,
    timings: Timings,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        remote: &'a Remote,
        events: &'a UnboundedSender<Event>,
        options: Options,
        called: Instant,
    ) -> Self {
        let time = options.deadline.unwrap_or(remote.options.timeout).min(remote.options.timeout);
        Self {
            remote,
            events,
            mode: options.mode,
            called,
            started: Instant::now(),
            soft: called + time,
            hard: called + time + time / 2,
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
        let hazard = match score >= remote.manifest.hazards.from && Instant::now() < self.soft {
            true => self.hazard(score, read).await,
            false => None,
        };
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

    /// The harmful label's logit minus the benign one's.
    async fn margin(&mut self, read: &[u32], until: Instant) -> Result<f64, GuardError> {
        if !self.remote.tells_nothing.load(Relaxed) {
            let mut body = self.request(read, 1);
            body["logprobs"] = json!(TOP);
            let told = match self.ask_by(&body, until).await {
                Ok(answer) => self.told(&answer),
                // A server that takes no such parameter says so.
                Err(_) if self.was_rejected() => None,
                Err(error) => return Err(error),
            };
            match told {
                Some(margin) => return Ok(margin),
                None if self.remote.options.verdicts == Verdicts::Logprobs => {
                    return Err(malformed("no log-probabilities of the verdict"));
                }
                None => {}
            }
        }
        self.searched(read, until).await
    }

    /// The margin by log-probabilities; `None` where they do not tell it.
    fn told(&self, answer: &Value) -> Option<f64> {
        let Some(tokens) = answer::first_tokens(answer) else {
            self.remote.tells_nothing.store(true, Relaxed);
            return None;
        };
        let prompt = &self.remote.prompt;
        let [harmful, benign] = &self.remote.labels;
        let find = |label: &[u32], text: &str| {
            let found = tokens.iter().find(|(token, _)| label.first().is_some_and(|&id| token.is(id, text)));
            found.map(|(_, logprob)| *logprob)
        };
        Some(find(&prompt.harmful, harmful)? - find(&prompt.benign, benign)?)
    }

    /// The margin by text: under a bias that leaves only the two labels, the one wins that has the greater logit; how much
    /// more bias the other one needs to win is the margin. Found by halving.
    async fn searched(&mut self, read: &[u32], until: Instant) -> Result<f64, GuardError> {
        let prompt = &self.remote.prompt;
        let label = |label: &[u32]| label.first().copied().ok_or_else(|| malformed("no labels"));
        let (harmful, benign) = (label(&prompt.harmful)?, label(&prompt.benign)?);
        let (mut low, mut high) = (-MARGIN, MARGIN);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            let mut body = self.request(read, 1);
            body["logit_bias"] = biased([(harmful, BIAS - middle), (benign, BIAS)]);
            let answer = self.ask_by(&body, until).await?;
            let text = answer::text(&answer).unwrap_or_default();
            // Harmful wins where its logit less the middle is the greater: where the margin is above the middle.
            match self.remote.labels.iter().position(|label| label.trim() == text.trim()) {
                Some(0) => low = middle,
                Some(_) => high = middle,
                None => return Err(malformed("neither label, so it does not follow `logit_bias`")),
            }
        }
        Ok(f64::midpoint(low, high))
    }

    /// The hazard, by its tokens one after the other, of those that may follow; `None` where the server does not keep to
    /// them.
    async fn hazard(&mut self, score: f64, read: Vec<u32>) -> Option<Hazard> {
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
            let answer = self.ask_by(&body, self.hard).await.ok()?;
            let text = answer::text(&answer)?;
            let decodes = |id: &u32| remote.tokenizer.decode(&[*id]).is_ok_and(|own| own == text);
            let id = tree.ids().find(decodes)?;
            tree = tree.child(id)?;
            if let Some(hazard) = tree.settled() {
                return hazard.clone();
            }
            read.push(id);
        }
    }

    fn request(&self, prompt: &[u32], max_tokens: usize) -> Value {
        json!({
            "model": self.remote.options.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
        })
    }

    /// An answer, or `None` where the time to write is over.
    async fn ask(&mut self, body: &Value, until: Instant) -> Result<Option<Value>, GuardError> {
        match self.ask_by(body, until).await {
            Ok(answer) => Ok(Some(answer)),
            Err(_) if Instant::now() >= until => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask_by(&mut self, body: &Value, until: Instant) -> Result<Value, GuardError> {
        let answer = self.remote.pool.ask(body, until, &mut self.steps).await;
        answer.map_err(|_| {
            let said = self.steps.iter().filter(|step| step.outcome != Step::ANSWERED);
            let said: Vec<_> = said.map(|step| format!("{} {}", step.guard, step.outcome)).collect();
            GuardError::Unreachable(said.join(", "))
        })
    }

    /// Whether the last server to be asked did not like the request.
    fn was_rejected(&self) -> bool {
        self.remote.options.verdicts == Verdicts::Auto
            && self.steps.last().is_some_and(|step| step.outcome.starts_with("answered with status 4"))
    }
}

fn with(read: &[u32], more: &[&Vec<u32>]) -> Vec<u32> {
    read.iter().chain(more.iter().copied().flatten()).copied().collect()
}

fn remote_ids(remote: &Remote, text: &str) -> Vec<u32> {
    // A text of several tokens is none that a phase could begin with.
    remote.tokenizer.encode_text(text).ok().filter(|ids| ids.len() == 1).unwrap_or_default()
}

fn biased(tokens: impl IntoIterator<Item = (u32, f64)>) -> Value {
    Value::Object(tokens.into_iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect::<Map<_, _>>())
}

fn malformed(what: &str) -> GuardError {
    GuardError::Model(format!("the guard's server gave {what}"))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
