//! A guard on a server: any OpenAI-compatible API (`/v1/completions`) that serves a tuned guard model, as vLLM and
//! llama.cpp's server do.
//!
//! Prompts are sent as token ids, so that what a user writes can't become a control token there, and what the server
//! reads is what the guard in process would read. The verdict is the difference of the two labels' log-probabilities,
//! where the server tells them; where it does not, that difference is found by asking which label wins under a bias.

mod answer;
mod session;
mod verdict;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use forethought_core::{
    conversation::Conversation,
    evidence::GuardVersion,
    guard::{
        Bundle, Event, Examination, Guard, GuardError, Load, Options, Windows,
        bundle::Manifest,
        local::{StartError, check_base},
        prompt::Prompt,
        transcript,
    },
    model::{Checkpoint, ModelError, Tokenizer},
};
use tokio::{sync::Semaphore, time::timeout};

use self::session::Session;
use super::pool::Pool;
pub use super::pool::PoolOptions;

/// How the verdict is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdicts {
    /// By log-probabilities; by text where the server gives none.
    #[default]
    Auto,
    /// By log-probabilities.
    Logprobs,
    /// By which label is written under a bias.
    Text,
}

/// How a remote guard is asked.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// The servers.
    pub pool: PoolOptions,
    /// The name that they know the model by.
    pub model: String,
    /// How the verdict is read.
    pub verdicts: Verdicts,
    /// Time for one examination, the last third of it for the verdict; less than the whole deadline leaves some for
    /// another guard.
    pub timeout: Duration,
    /// Examinations at once.
    pub batch: usize,
    /// Examinations that may wait.
    pub queue: usize,
    /// How long conversations are read.
    pub windows: Windows,
}

/// Why a remote guard can't start.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Bundle and base model do not fit each other.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The base model's tokenizer or chat template is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The system's certificates can't be read.
    #[error("can't ask the guard's servers: {0}")]
    Client(#[from] std::io::Error),
}

/// A guard on a server. Clones share it.
#[derive(Clone)]
pub struct RemoteGuard(Arc<Remote>);

struct Remote {
    manifest: Manifest,
    version: GuardVersion,
    tokenizer: Tokenizer,
    prompt: Prompt,
    /// Text of the first token of each label: harmful, benign.
    labels: [String; 2],
    pool: Pool,
    options: RemoteOptions,
    places: Semaphore,
    waiting: AtomicUsize,
}

impl RemoteGuard {
    /// A guard whose model is that of `bundle`, over the base model at `path` with this sha256: of that, only tokenizer and
    /// chat template are read. Nothing is asked yet.
    ///
    /// # Errors
    /// Bundle and base model do not fit each other, or the servers' URLs are wrong.
    pub fn new(
        bundle: &Bundle,
        path: &Path,
        sha256: &str,
        options: RemoteOptions,
    ) -> Result<Self, RemoteError> {
        check_base(&bundle.manifest, path, sha256)?;
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = Prompt::new(&bundle.manifest, &tokenizer, &checkpoint.chat_template()?)?;
        let first = |label: &[u32]| tokenizer.decode(&label[..label.len().min(1)]);
        Ok(Self(Arc::new(Remote {
            labels: [first(&prompt.harmful)?, first(&prompt.benign)?],
            manifest: bundle.manifest.clone(),
            version: bundle.version(sha256),
            tokenizer,
            prompt,
            pool: Pool::new(&options.pool)?,
            places: Semaphore::new(options.batch.max(1)),
            waiting: AtomicUsize::new(0),
            options,
        })))
    }
}

impl Remote {
    /// Time for an examination, waiting for a place included.
    fn time(&self, options: Options) -> Duration {
        options.deadline.unwrap_or(self.options.timeout).min(self.options.timeout)
    }
}

impl Guard for RemoteGuard {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        let (events, examination) = Examination::channel();
        let remote = self.0.clone();
        let called = Instant::now();
        if options.mode.needs_probes() {
            let problem = "a guard on a server has no probes: set `guard.mode` to `reason` or `direct`";
            let _ = events.send(Event::Failed(GuardError::Model(problem.to_owned())));
            return examination;
        }
        if self.load().waiting >= remote.options.queue && remote.places.available_permits() == 0 {
            let waiting = remote.options.queue;
            let _ = events.send(Event::Failed(GuardError::Overloaded { waiting }));
            return examination;
        }
        let place = Waiting::new(remote.clone());
        tokio::spawn(async move {
            let work = async {
                let after = remote.time(options);
                // The semaphore is never closed.
                let permit = timeout(after, remote.places.acquire()).await;
                let _permit = permit.map_err(|_| GuardError::Deadline { after })?;
                drop(place);
                // Long conversations take a while to tokenize.
                let reading = {
                    let (remote, conversation) = (remote.clone(), conversation);
                    tokio::task::spawn_blocking(move || {
                        transcript::tokenize(&conversation, &remote.tokenizer, remote.options.windows)
                    })
                };
                let read = reading.await.map_err(|_| GuardError::Stopped)?;
                let (coverage, windows) = read.map_err(|error| GuardError::Model(error.to_string()))?;
                let _ = events.send(Event::Coverage(coverage.clone()));
                Session::new(&remote, &events, options, called).run(coverage, windows).await
            };
            tokio::select! {
                biased;
                // Whoever asked has left; so do we.
                () = events.closed() => {}
                done = work => {
                    let event = done.map_or_else(Event::Failed, |evidence| Event::Done(Box::new(evidence)));
                    let _ = events.send(event);
                }
            }
        });
        examination
    }

    fn version(&self) -> GuardVersion {
        self.0.version.clone()
    }

    fn load(&self) -> Load {
        let Remote { options, places, waiting, .. } = &*self.0;
        Load {
            waiting: waiting.load(Relaxed),
            running: options.batch.max(1).saturating_sub(places.available_permits()),
            queue: options.queue,
            ..Load::default()
        }
    }
}

/// A place in the queue.
struct Waiting(Arc<Remote>);

impl Waiting {
    fn new(remote: Arc<Remote>) -> Self {
        remote.waiting.fetch_add(1, Relaxed);
        Self(remote)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
