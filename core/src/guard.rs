//! A guard turns a conversation into evidence. It finds; only a [policy](crate::policy) decides.

pub mod bundle;
pub mod combine;
mod examine;
pub mod local;
mod probes;
pub mod prompt;
pub mod trace;
pub mod transcript;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    conversation::Conversation,
    evidence::{Coverage, Evidence, GuardVersion, Phase, PhaseEnd, Step},
};

pub use crate::engine::Load;
pub use bundle::Bundle;
pub use combine::Combination;
pub use local::{Cascade, LocalGuard, LocalOptions};
pub use transcript::Windows;

/// How a guard comes to its score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Write both phases, then score the verdict.
    #[default]
    Reason,
    /// Score the verdict at once: one prefill, no text.
    Direct,
    /// Score by the probes: one prefill, no text.
    Probe,
    /// As `Probe` where that is clear, else as `Reason`.
    Cascade,
}

impl Mode {
    /// All, from the cheapest on.
    pub const ALL: [Self; 4] = [Self::Probe, Self::Direct, Self::Cascade, Self::Reason];

    /// The word for it in configurations and results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Direct => "direct",
            Self::Probe => "probe",
            Self::Cascade => "cascade",
        }
    }

    /// Whether it comes to its score by probes.
    pub fn needs_probes(self) -> bool {
        matches!(self, Self::Probe | Self::Cascade)
    }
}

/// What the caller wants of one examination.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How to come to the score.
    pub mode: Mode,
    /// Time allowed from the call on. A guard that runs out of it while writing closes its phases and scores what it
    /// has; one that has not read the conversation by then fails with [`GuardError::Deadline`].
    pub deadline: Option<Duration>,
}

/// What happens during an examination, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// The transcript was rendered; this is what will be read of it.
    Coverage(Coverage),
    /// A phase's text begins.
    PhaseStarted(Phase),
    /// More text of a phase.
    Text(Phase, String),
    /// A phase's text has ended.
    PhaseEnded(Phase, PhaseEnd),
    /// What the probes say at tokens just read; only where [a trace](LocalGuard::trace) was asked for.
    Traced(Vec<trace::TracedToken>),
    /// The examination is over, with evidence. Nothing follows.
    Done(Box<Evidence>),
    /// The examination is over, without evidence. Nothing follows.
    Failed(GuardError),
}

/// Why there is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// The queue is full.
    #[error(
        "the guard is overloaded: {waiting} conversations are waiting already (raise `guard.queue`, or add machines)"
    )]
    Overloaded {
        /// Length of the queue.
        waiting: usize,
    },
    /// Not even the conversation was read in time.
    #[error("the guard could not read the conversation within {} ms (raise `guard.deadline_ms`)", .after.as_millis())]
    Deadline {
        /// The time that was allowed.
        after: Duration,
    },
    /// No guard answered. The message names servers, so it is for operators: callers are not told of the steps.
    #[error("no guard could be asked: {}", said(.0))]
    Unreachable(Vec<Step>),
    /// The model failed.
    #[error("the guard model failed: {0}")]
    Model(String),
    /// The engine is gone, as during shutdown.
    #[error("the guard has stopped")]
    Stopped,
}

/// The steps that failed, in one line.
fn said(steps: &[Step]) -> String {
    let failed = steps.iter().filter(|step| step.outcome != Step::ANSWERED);
    let said: Vec<_> = failed.map(|step| format!("{}: {}", step.guard, step.outcome)).collect();
    said.join("; ")
}

/// A running examination. Dropping it tells the guard to stop work on it.
#[derive(Debug)]
pub struct Examination {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Examination {
    /// An examination and the sender of its events. What is sent is bounded by the guard's token caps, so the channel
    /// needs no bound of its own and never holds the engine up. A guard sees that its caller left by
    /// [`mpsc::UnboundedSender::is_closed`].
    pub fn channel() -> (mpsc::UnboundedSender<Event>, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        (sender, Self { events })
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`Self::next`], for callers that may block.
    ///
    /// # Panics
    /// On a thread that runs asynchronous tasks.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// Waits for the outcome and lets the events before it go by.
    ///
    /// # Errors
    /// Whatever the examination failed with; [`GuardError::Stopped`] if the guard went away.
    pub async fn evidence(mut self) -> Result<Evidence, GuardError> {
        while let Some(event) = self.next().await {
            match event {
                Event::Done(evidence) => return Ok(*evidence),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Err(GuardError::Stopped)
    }
}

/// An examination that tells what probes say token by token.
#[derive(Debug)]
pub struct TracedProbes {
    /// The probes' names, in the order of [`TracedToken::scores`](trace::TracedToken::scores).
    pub probes: Vec<String>,
    /// The examination.
    pub examination: Examination,
}

/// Turns a conversation into evidence.
pub trait Guard: Send + Sync + 'static {
    /// Starts an examination; never blocks. All failures, a full queue included, arrive as [`Event::Failed`].
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination;

    /// Which guard this is.
    fn version(&self) -> GuardVersion;

    /// How busy it is.
    fn load(&self) -> Load {
        Load::default()
    }

    /// As [`Self::examine`] with [`Mode::Probe`], with what every probe says at every token as [`Event::Traced`]. `None`
    /// where no probe reads along.
    fn trace_probes(&self, _: Arc<Conversation>, _: Option<Duration>) -> Option<TracedProbes> {
        None
    }
}
