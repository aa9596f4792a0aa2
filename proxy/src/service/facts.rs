//! What policies may ask for beside the evidence. It is worked out when one asks, and once for a request.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use forethought_core::{
    conversation::Conversation,
    guard::{
        Event, Guard, TracedProbes,
        trace::{Part, TracedToken},
    },
    policy::{LazyFacts, TokenScore},
};

/// The facts of one conversation.
pub(super) struct Facts {
    guard: Arc<dyn Guard>,
    conversation: Arc<Conversation>,
    traced: Mutex<Option<Arc<Traced>>>,
}

struct Traced {
    probes: Vec<String>,
    tokens: Vec<TracedToken>,
}

impl Facts {
    pub(super) fn new(guard: Arc<dyn Guard>, conversation: Arc<Conversation>) -> Self {
        Self { guard, conversation, traced: Mutex::default() }
    }

    /// The trace of all probes. One that does not come in time may come for a policy that waits longer.
    fn traced(&self, deadline: Instant) -> Option<Arc<Traced>> {
        let mut held = self.traced.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = self.read(deadline).map(Arc::new);
        }
        held.clone()
    }

    fn read(&self, deadline: Instant) -> Option<Traced> {
        let left = deadline.saturating_duration_since(Instant::now());
        let TracedProbes { probes, mut examination } =
            self.guard.trace_probes(self.conversation.clone(), Some(left))?;
        let mut tokens = Vec::new();
        loop {
            match examination.blocking_next()? {
                // What the guard asks and writes is no part of the request.
                Event::Traced(more) => {
                    tokens.extend(more.into_iter().filter(|token| matches!(token.part, Part::Window(_))));
                }
                Event::Done(_) => return Some(Traced { probes, tokens }),
                Event::Failed(_) => return None,
                _ => {}
            }
        }
    }
}

impl LazyFacts for Facts {
    fn probe_trace(&self, probe: &str, deadline: Instant) -> Option<Vec<TokenScore>> {
        let traced = self.traced(deadline)?;
        let index = traced.probes.iter().position(|name| name == probe)?;
        let score = |token: &TracedToken| {
            Some(TokenScore { token: token.text.clone(), score: *token.scores.get(index)? })
        };
        traced.tokens.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use forethought_core::{
        evidence::{Coverage, Evidence, GuardVersion, Path, Timings},
        guard::{Examination, GuardError, Options},
    };

    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            partial: false,
            score: 0.4,
            path: Path::Probe,
            hazard: None,
            assessment: None,
            direct_score: None,
            probe_score: Some(0.4),
            combined_score: None,
            probes: vec![],
            steps: vec![],
            coverage: Coverage::default(),
            timings: Timings::default(),
            guard: GuardVersion::default(),
        }
    }

    /// Fails the first time, and counts.
    struct Tracing(AtomicUsize);

    impl Guard for Tracing {
        fn examine(&self, _: Arc<Conversation>, _: Options) -> Examination {
            Examination::channel().1
        }

        fn version(&self) -> GuardVersion {
            GuardVersion::default()
        }

        fn trace_probes(&self, _: Arc<Conversation>, deadline: Option<Duration>) -> Option<TracedProbes> {
            assert!(deadline.is_some_and(|left| left <= Duration::from_secs(9)));
            let (events, examination) = Examination::channel();
            let token = |part, text: &str, scores: [f64; 2]| TracedToken {
                part,
                text: text.to_owned(),
                scores: scores.to_vec(),
            };
            if self.0.fetch_add(1, Relaxed) == 0 {
                events.send(Event::Failed(GuardError::Stopped)).unwrap();
            } else {
                events.send(Event::Traced(vec![token(Part::Window(0), "so", [0.1, 0.2])])).unwrap();
                let more =
                    vec![token(Part::Window(1), " it", [0.3, 0.4]), token(Part::Question, "?", [0.5, 0.6])];
                events.send(Event::Traced(more)).unwrap();
                events.send(Event::Done(Box::new(evidence()))).unwrap();
            }
            Some(TracedProbes { probes: vec!["a".to_owned(), "b".to_owned()], examination })
        }
    }

    #[test]
    fn a_trace_is_worked_out_once() {
        let guard = Arc::new(Tracing(AtomicUsize::new(0)));
        let facts = Facts::new(guard.clone(), Arc::default());
        let ask = |probe| facts.probe_trace(probe, Instant::now() + Duration::from_secs(9));
        assert_eq!(ask("a"), None);
        let token = |token: &str, score| TokenScore { token: token.to_owned(), score };
        assert_eq!(ask("b"), Some(vec![token("so", 0.2), token(" it", 0.4)]));
        assert_eq!(ask("a"), Some(vec![token("so", 0.1), token(" it", 0.3)]));
        assert_eq!(ask("c"), None);
        assert_eq!(guard.0.load(Relaxed), 2);
    }
}
