//! One thread that owns a model and runs many tasks on it in one batch.
//!
//! Continuous batching: every step reads what each running task wants read next, the next token of some and part of a
//! prompt of others, in one forward pass; tasks join and leave between steps. Work whose caller has left is dropped. A
//! full queue is an explicit overload, never an unbounded wait.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use crate::model::{Decoder, KvCache, ModelError, Sequence, States, Want};

/// What a task is reading.
pub struct Lane {
    /// Tokens to be read next, in order; at least one while the task runs.
    pub pending: Vec<u32>,
    /// What has been read. A task may truncate it to go back.
    pub cache: KvCache,
}

/// A piece of work for the engine. All methods run on the engine's thread.
pub trait Task: Send + 'static {
    /// Starts: says what to read first. `None` ends the task; it has then told its caller why.
    fn start(&mut self, decoder: &Decoder) -> Option<Lane>;

    /// Layers whose hidden states it wants of the tokens that are pending.
    fn taps(&self) -> &[usize] {
        &[]
    }

    /// `tokens`, the first of those pending, were read; these are their states in the layers of [`Self::taps`]. A prompt
    /// that is read in parts comes in as many calls, and each is before [`Self::advance`]. Breaks where the task fails; it
    /// has then told its caller so.
    fn tapped(&mut self, tokens: &[u32], states: &States<'_>) -> ControlFlow<()> {
        let _ = (tokens, states);
        ControlFlow::Continue(())
    }

    /// All pending tokens were read; `logits` are those after the last one. Sets what to read next, or breaks when done.
    fn advance(&mut self, lane: &mut Lane, logits: &[f32]) -> ControlFlow<()>;

    /// Called before each step: whether to give up, because nobody waits for it or its time is over. A task whose time
    /// is over tells its caller so first.
    fn is_over(&mut self) -> bool;

    /// The model failed.
    fn fail(self, error: &str);
}

/// Bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tasks that run at once.
    pub batch: usize,
    /// Tasks that may wait.
    pub queue: usize,
    /// Prompt tokens read in one step: what a long prompt adds to the time of everyone else's next token.
    pub chunk: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch: 8, queue: 64, chunk: 256 }
    }
}

/// Why a task was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// This many are waiting already.
    Full(usize),
    /// The engine has stopped.
    Stopped,
}

/// The sending side of an engine. Dropping it stops the thread after the current step.
pub struct Engine<T: Task> {
    shared: Arc<Shared<T>>,
    limits: Limits,
    thread: Option<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    steps: AtomicU64,
    lanes: AtomicU64,
}

/// What an engine has to do, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tasks that wait.
    pub waiting: usize,
    /// Tasks that run.
    pub running: usize,
    /// Most tasks that may wait; 0 where nothing is queued.
    pub queue: usize,
    /// Forward passes so far.
    pub steps: u64,
    /// Tasks read in all forward passes so far, each as often as it took part: divided by `steps`, the mean batch.
    pub lanes: u64,
}

struct State<T> {
    waiting: VecDeque<T>,
    running: usize,
    stopped: bool,
}

impl<T: Task> Engine<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &str, decoder: Arc<Decoder>, limits: Limits) -> std::io::Result<Self> {
        let state = State { waiting: VecDeque::new(), running: 0, stopped: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            steps: AtomicU64::new(0),
            lanes: AtomicU64::new(0),
        });
        let worker = Worker { shared: shared.clone(), decoder, limits };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, limits, thread: Some(thread) })
    }

    /// Queues a task; never waits.
    ///
    /// # Errors
    /// The queue is full, or the engine has stopped.
    pub fn submit(&self, task: T) -> Result<(), Rejected> {
        let mut state = self.shared.lock();
        if state.stopped {
            return Err(Rejected::Stopped);
        }
        if state.waiting.len() >= self.limits.queue {
            state.waiting.retain_mut(|task| !task.is_over());
        }
        // An idle engine takes a task at once: it does not wait, even where nothing may.
        let idle = state.running == 0 && state.waiting.is_empty();
        if state.waiting.len() >= self.limits.queue && !idle {
            return Err(Rejected::Full(state.waiting.len()));
        }
        state.waiting.push_back(task);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let state = self.shared.lock();
        Load {
            waiting: state.waiting.len(),
            running: state.running,
            queue: self.limits.queue,
            steps: self.shared.steps.load(Relaxed),
            lanes: self.shared.lanes.load(Relaxed),
        }
    }
}

impl<T: Task> Drop for Engine<T> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends after the step it is in; a panic in it has been reported already.
            let _ = thread.join();
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is whole between any two statements, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct Worker<T> {
    shared: Arc<Shared<T>>,
    decoder: Arc<Decoder>,
    limits: Limits,
}

impl<T: Task> Worker<T> {
    fn run(self) {
        let mut running: Vec<(T, Lane)> = Vec::new();
        while let Some(joining) = self.next_tasks(running.len()) {
            running.retain_mut(|(task, _)| !task.is_over());
            for mut task in joining {
                if !task.is_over()
                    && let Some(lane) = task.start(&self.decoder)
                {
                    running.push((task, lane));
                }
            }
            // A panic in the model must not take the guard down with it: those it hit fail, the next ones are served.
            let step = catch_unwind(AssertUnwindSafe(|| self.step(&mut running)));
            let failure = match step {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the model panicked".to_owned(),
            };
            tracing::error!(tasks = running.len(), "{failure}");
            for (task, _) in running.drain(..) {
                task.fail(&failure);
            }
        }
    }

    /// Tasks that may join `running` others; waits while there is nothing to do. `None` when the engine is to stop.
    fn next_tasks(&self, running: usize) -> Option<Vec<T>> {
        let mut state = self.shared.lock();
        state.running = running;
        while running == 0 && state.waiting.is_empty() && !state.stopped {
            state = self.shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if state.stopped {
            state.waiting.clear();
            return None;
        }
        let count = state.waiting.len().min(self.limits.batch.max(1).saturating_sub(running));
        let joining: Vec<T> = state.waiting.drain(..count).collect();
        state.running = running + joining.len();
        Some(joining)
    }

    /// One forward pass over what the tasks want read; those whose pending tokens are all read go on.
    fn step(&self, running: &mut Vec<(T, Lane)>) -> Result<(), ModelError> {
        // Single tokens always fit; prompts share the chunk, first come first served.
        let mut budget = self.limits.chunk.max(1);
        let mut taken = vec![0; running.len()];
        let mut taps = BTreeSet::new();
        let mut sequences = Vec::with_capacity(running.len());
        for ((task, lane), taken) in running.iter_mut().zip(&mut taken) {
            let tokens = lane.pending.len();
            *taken = if tokens == 1 { 1 } else { tokens.min(budget) };
            if tokens > 1 {
                budget -= *taken;
            }
            if *taken > 0 {
                let want = if *taken == tokens { Want::Last } else { Want::Nothing };
                sequences.push(Sequence { tokens: &lane.pending[..*taken], cache: &mut lane.cache, want });
                taps.extend(task.taps());
            }
        }
        if sequences.is_empty() {
            return Ok(());
        }
        self.shared.steps.fetch_add(1, Relaxed);
        self.shared.lanes.fetch_add(sequences.len() as u64, Relaxed);
        let taps: Vec<usize> = taps.into_iter().collect();
        let output = self.decoder.forward(&mut sequences, &taps)?;
        let mut logits = output.logits.iter();
        let (mut index, mut row) = (0, 0);
        let mut failure = None;
        running.retain_mut(|(task, lane)| {
            let taken = std::mem::take(&mut taken[index]);
            index += 1;
            if taken == 0 {
                return true;
            }
            let logits = logits.next();
            let rows = row..row + taken;
            row = rows.end;
            if !task.taps().is_empty() {
                let states = States::new(&output, &taps, rows);
                if task.tapped(&lane.pending[..taken], &states).is_break() {
                    return false;
                }
            }
            lane.pending.drain(..taken);
            if !lane.pending.is_empty() {
                return true;
            }
            let logits = logits.map(|l| l.flatten_all()?.to_vec1::<f32>());
            match logits {
                Some(Ok(logits)) => task.advance(lane, &logits).is_continue(),
                Some(Err(error)) => {
                    failure = Some(error);
                    true
                }
                None => true,
            }
        });
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}
