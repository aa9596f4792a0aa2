//! A guard that finds what the prompt tells it to.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use forethought_core::{
    conversation::Conversation,
    evidence::{Assessment, Coverage, Evidence, GuardVersion, Hazard, Path, Phase, PhaseEnd, Timings},
    guard::{Event, Examination, Guard, GuardError, Mode, Options},
};

/// The last word of the prompt is the score; `fail` and `stop` are failures. Whoever waits sees both phases first.
pub(crate) struct FakeGuard {
    /// sha256 of the bundle that it claims to be.
    pub(crate) bundle_sha256: &'static str,
    /// Prompts in the order of their arrival.
    pub(crate) seen: Mutex<Vec<String>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl FakeGuard {
    pub(crate) fn new() -> Arc<Self> {
        Self::of_bundle("aaaa")
    }

    pub(crate) fn of_bundle(bundle_sha256: &'static str) -> Arc<Self> {
        let seen = Mutex::default();
        Arc::new(Self { bundle_sha256, seen, running: Arc::default(), most: Arc::default() })
    }

    /// Most examinations that ran at once.
    #[allow(dead_code)] // not every test file asks
    pub(crate) fn most_at_once(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// How often it was asked since the last call.
    #[allow(dead_code)]
    pub(crate) fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Guard for FakeGuard {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        let (events, examination) = Examination::channel();
        let prompt: String = conversation.parts().filter_map(|(_, part)| part.text()).collect();
        self.seen.lock().unwrap().push(prompt.clone());
        let running = self.running.clone();
        self.most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
        let guard = self.version();
        tokio::spawn(async move {
            for _ in 0..3 {
                tokio::task::yield_now().await; // so that examinations overlap
            }
            running.fetch_sub(1, SeqCst);
            let score = match prompt.split_whitespace().last().unwrap_or("0.25") {
                "fail" => return events.send(Event::Failed(GuardError::Overloaded { waiting: 3 })),
                "stop" => return events.send(Event::Failed(GuardError::Stopped)),
                score => score.parse().unwrap(),
            };
            let tokens_read = prompt.len().min(100);
            let coverage = Coverage { tokens: prompt.len(), tokens_read, windows: 1, ..Coverage::default() };
            events.send(Event::Coverage(coverage.clone())).ok();
            let texts = [
                (Phase::Understanding, "They ask\u{1b}[2J.", PhaseEnd::Complete),
                (Phase::Assessment, "Hard to", PhaseEnd::Cap),
            ];
            let reasons = match options.mode {
                Mode::Reason => true,
                Mode::Cascade => (0.3..0.7).contains(&score),
                Mode::Direct | Mode::Probe => false,
            };
            for (phase, text, end) in texts.into_iter().filter(|_| reasons) {
                events.send(Event::PhaseStarted(phase)).ok();
                for word in text.split_inclusive(' ') {
                    events.send(Event::Text(phase, word.to_owned())).ok();
                }
                events.send(Event::PhaseEnded(phase, end)).ok();
            }
            let assessment = reasons.then(|| Assessment {
                understanding: texts[0].1.into(),
                assessment: texts[1].1.into(),
                ends: texts.map(|t| t.2),
                score,
            });
            events.send(Event::Done(Box::new(Evidence {
                score,
                path: match options.mode {
                    _ if reasons => Path::Reason,
                    Mode::Direct => Path::Direct,
                    _ => Path::Probe,
                },
                hazard: Some(Hazard::new("cyber")),
                assessment,
                direct_score: None,
                probe_score: None,
                combined_score: None,
                probes: vec![],
                partial: false,
                coverage,
                timings: Timings {
                    queue_ms: 5.0,
                    total_ms: 25.0,
                    prompt_tokens: 7,
                    generated_tokens: 4,
                    ..Timings::default()
                },
                guard,
                steps: vec![],
            })))
        });
        examination
    }

    fn version(&self) -> GuardVersion {
        GuardVersion {
            bundle: "fake 1".into(),
            bundle_sha256: self.bundle_sha256.into(),
            base_model: "none".into(),
            ..GuardVersion::default()
        }
    }
}
