//! Guards in order: where one fails, the next is asked; and last of all, if so configured, the policies decide without
//! an assessment. Every step is in the evidence.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use forethought_core::{
    conversation::Conversation,
    evidence::{Coverage, Evidence, GuardVersion, Path, Step, Timings},
    guard::{Event, Examination, Guard, GuardError, Load, Options, transcript},
};
use tokio::sync::mpsc::UnboundedSender;

/// What becomes of a request on which all guards fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Last {
    /// The examination fails.
    #[default]
    Fail,
    /// The policies decide without an assessment, on a score of 1: thresholds refuse, and plugins may know better.
    Policy,
}

/// Guards in order.
pub struct Fallback {
    /// Each with its name in evidence.
    guards: Arc<[(String, Arc<dyn Guard>)]>,
    last: Last,
}

impl Fallback {
    /// `guards` are asked in order, until one of them answers.
    pub fn new(guards: Vec<(String, Arc<dyn Guard>)>, last: Last) -> Self {
        Self { guards: guards.into(), last }
    }
}

impl Guard for Fallback {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        let (events, examination) = Examination::channel();
        let (guards, last, version) = (self.guards.clone(), self.last, self.version());
        tokio::spawn(async move {
            let work = ask(&guards, last, version, conversation, options, &events);
            tokio::select! {
                biased;
                () = events.closed() => {}
                event = work => drop(events.send(event)),
            }
        });
        examination
    }

    /// The first guard's; evidence names the one that found it.
    fn version(&self) -> GuardVersion {
        self.guards.first().map(|(_, guard)| guard.version()).unwrap_or_default()
    }

    /// The queue of the guard that is asked first, and the work of all.
    fn load(&self) -> Load {
        let mut loads = self.guards.iter().map(|(_, guard)| guard.load());
        let first = loads.next().unwrap_or_default();
        loads.fold(first, |all, load| Load {
            running: all.running + load.running,
            steps: all.steps + load.steps,
            lanes: all.lanes + load.lanes,
            ..all
        })
    }
}

async fn ask(
    guards: &[(String, Arc<dyn Guard>)],
    last: Last,
    version: GuardVersion,
    conversation: Arc<Conversation>,
    options: Options,
    events: &UnboundedSender<Event>,
) -> Event {
    let called = Instant::now();
    let mut steps = Vec::new();
    let mut error = GuardError::Stopped;
    for (name, guard) in guards {
        // A guard that has no time left still gets a moment, and says itself that it is too late.
        let left =
            |deadline: Duration| deadline.saturating_sub(called.elapsed()).max(Duration::from_millis(1));
        let options = Options { deadline: options.deadline.map(left), ..options };
        let mut examination = guard.examine(conversation.clone(), options);
        error = loop {
            match examination.next().await {
                Some(Event::Done(mut evidence)) => {
                    if evidence.steps.is_empty() {
                        evidence.steps.push(Step::new(name, Step::ANSWERED));
                    }
                    steps.append(&mut evidence.steps);
                    evidence.steps = steps;
                    return Event::Done(evidence);
                }
                Some(Event::Failed(error)) => break error,
                Some(event) => drop(events.send(event)),
                None => break GuardError::Stopped,
            }
        };
        match &error {
            GuardError::Unreachable(asked) => steps.extend(asked.iter().cloned()),
            error => steps.push(Step::new(name, error.to_string())),
        }
    }
    match last {
        Last::Fail => Event::Failed(match error {
            // What is overloaded may be asked again.
            error @ GuardError::Overloaded { .. } => error,
            error if guards.len() == 1 => error,
            _ => GuardError::Unreachable(steps),
        }),
        Last::Policy => {
            let coverage = transcript::nothing_read(&conversation);
            Event::Done(Box::new(unassessed(version, coverage, steps, called)))
        }
    }
}

/// What policies decide on where no guard could be asked.
fn unassessed(guard: GuardVersion, coverage: Coverage, mut steps: Vec<Step>, called: Instant) -> Evidence {
    steps.push(Step::new("policy", "decides without an assessment"));
    Evidence {
        score: 1.0,
        path: Path::Unassessed,
        hazard: None,
        assessment: None,
        direct_score: None,
        probe_score: None,
        combined_score: None,
        probes: vec![],
        partial: false,
        coverage,
        timings: Timings { total_ms: called.elapsed().as_secs_f64() * 1e3, ..Timings::default() },
        guard,
        steps,
    }
}
