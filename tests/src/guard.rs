//! A guard that finds what a test wants it to find.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use forethought_core::{
    conversation::{Conversation, Part},
    evidence::{Assessment, Coverage, Evidence, GuardVersion, Hazard, Path, PhaseEnd, Timings},
    guard::{Event, Examination, Guard, GuardError, Load, Options},
};
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::sleep,
};

type Find = dyn Fn(&Conversation) -> Result<Evidence, GuardError> + Send + Sync;

/// A guard without a model.
#[derive(Clone)]
pub struct FakeGuard {
    /// `None` never answers.
    find: Option<Arc<Find>>,
    seen: Arc<Mutex<Vec<Arc<Conversation>>>>,
    /// Examinations under way that nobody listens to any more, and all that were begun.
    left: watch::Sender<usize>,
    begun: watch::Sender<usize>,
    load: Arc<Mutex<Load>>,
    /// What it waits for before it says anything.
    hold: Option<Hold>,
    /// How long it takes.
    pause: Duration,
    /// Whether it forgets what it saw.
    forgets: bool,
}

/// Keeps a guard from answering until it is released.
#[derive(Clone, Debug)]
pub struct Hold(watch::Sender<bool>);

impl Default for Hold {
    fn default() -> Self {
        Self::new()
    }
}

impl Hold {
    /// A hold that nobody has released.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets the guard answer, now and from now on.
    pub fn release(&self) {
        self.0.send_replace(true);
    }

    async fn released(&self) {
        self.0.subscribe().wait_for(|released| *released).await.expect("the hold lives");
    }
}

/// Evidence with this score, and everything else filled in.
pub fn evidence(score: f64) -> Evidence {
    Evidence {
        score,
        path: Path::Reason,
        hazard: (score >= 0.5).then(|| Hazard::new("cyber")),
        assessment: Some(Assessment {
            understanding: "The user wants something.".to_owned(),
            assessment: "Someone would be hurt.".to_owned(),
            ends: [PhaseEnd::Complete; 2],
            score,
        }),
        direct_score: None,
        probe_score: None,
        combined_score: None,
        probes: vec![],
        partial: false,
        coverage: Coverage { tokens: 10, tokens_read: 10, windows: 1, ..Coverage::default() },
        timings: Timings { prompt_tokens: 10, generated_tokens: 5, ..Timings::default() },
        guard: version(),
        steps: vec![],
    }
}

fn version() -> GuardVersion {
    GuardVersion { bundle: "fake 1".to_owned(), template: "fake 1".to_owned(), ..GuardVersion::default() }
}

impl FakeGuard {
    fn new(find: Option<Arc<Find>>) -> Self {
        let (left, begun) = (watch::Sender::new(0), watch::Sender::new(0));
        Self {
            find,
            seen: Arc::default(),
            left,
            begun,
            load: Arc::default(),
            hold: None,
            pause: Duration::ZERO,
            forgets: false,
        }
    }

    /// The same guard, but silent until `hold` is released.
    pub fn held(self, hold: &Hold) -> Self {
        Self { hold: Some(hold.clone()), ..self }
    }

    /// The same guard, but it takes this long.
    pub fn taking(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// The same guard, but [`Self::seen`] stays empty, and memory with it.
    pub fn forgetful(self) -> Self {
        Self { forgets: true, ..self }
    }

    /// A guard that finds what `find` finds.
    pub fn finding(
        find: impl Fn(&Conversation) -> Result<Evidence, GuardError> + Send + Sync + 'static,
    ) -> Self {
        Self::new(Some(Arc::new(find)))
    }

    /// A guard that gives every conversation this score.
    pub fn scoring(score: f64) -> Self {
        Self::finding(move |_| Ok(evidence(score)))
    }

    /// A guard that finds harm where a message says "harm".
    pub fn reading() -> Self {
        let harmful = |part: &Part| part.text().is_some_and(|text| text.contains("harm"));
        Self::finding(move |c| {
            Ok(evidence(if c.parts().any(|(_, part)| harmful(part)) { 0.97 } else { 0.01 }))
        })
    }

    /// A guard that always fails.
    pub fn failing(error: GuardError) -> Self {
        Self::finding(move |_| Err(error.clone()))
    }

    /// A guard that never comes to an end.
    pub fn hanging() -> Self {
        Self::new(None)
    }

    /// Says from now on that `waiting` conversations wait in a queue for `queue`.
    pub fn loaded(&self, waiting: usize, queue: usize) {
        *self.load.lock().expect("no panic") = Load { waiting, queue, ..Load::default() };
    }

    /// All conversations so far.
    pub fn seen(&self) -> Vec<Arc<Conversation>> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Waits until this many examinations were begun.
    pub async fn begun(&self, count: usize) {
        self.begun.subscribe().wait_for(|begun| *begun >= count).await.expect("the guard lives");
    }

    /// Waits until the callers of this many examinations have left before their end.
    pub async fn left(&self, count: usize) {
        self.left.subscribe().wait_for(|left| *left >= count).await.expect("the guard lives");
    }
}

impl Guard for FakeGuard {
    fn examine(&self, conversation: Arc<Conversation>, _: Options) -> Examination {
        let (events, examination) = Examination::channel();
        if !self.forgets {
            self.seen.lock().expect("no panic").push(conversation.clone());
        }
        match &self.find {
            Some(find) => {
                let found = find(&conversation);
                let (hold, pause) = (self.hold.clone(), self.pause);
                if hold.is_none() && pause.is_zero() {
                    tell(&events, found);
                } else {
                    tokio::spawn(async move {
                        sleep(pause).await;
                        if let Some(hold) = hold {
                            hold.released().await;
                        }
                        tell(&events, found);
                    });
                }
            }
            None => {
                let left = self.left.clone();
                tokio::spawn(async move {
                    events.closed().await;
                    left.send_modify(|left| *left += 1);
                });
            }
        }
        self.begun.send_modify(|begun| *begun += 1);
        examination
    }

    fn version(&self) -> GuardVersion {
        version()
    }

    fn load(&self) -> Load {
        *self.load.lock().expect("no panic")
    }
}

fn tell(events: &UnboundedSender<Event>, found: Result<Evidence, GuardError>) {
    match found {
        Ok(evidence) => {
            let _ = events.send(Event::Coverage(evidence.coverage.clone()));
            let _ = events.send(Event::Done(Box::new(evidence)));
        }
        Err(error) => drop(events.send(Event::Failed(error))),
    }
}
