//! The guard in this process: a small reasoning model that thinks before it judges.

use std::{path::Path, sync::Arc, time::Instant};

use super::{
    Event, Examination, Guard, GuardError, Options,
    bundle::{AdapterError, Bundle, BundleError},
    examine::ExamineTask,
    prompt::Prompt,
    transcript::{self, Windows},
};
use crate::{
    conversation::Conversation,
    engine::{Engine, Limits, Rejected},
    evidence::GuardVersion,
    guard::bundle::Manifest,
    model::{
        Checkpoint, Decoder, DeviceChoice, KvCache, LoadOptions, ModelError, Precision, Sequence, Tokenizer,
        Want,
    },
};

/// How a local guard runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalOptions {
    /// Where the model runs.
    pub device: DeviceChoice,
    /// How its weights are held.
    pub precision: Precision,
    /// Bounds of its engine.
    pub limits: Limits,
    /// How long conversations are read.
    pub windows: Windows,
}

/// Why a local guard can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bundle is wrong.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The base model is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter is wrong.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The bundle was made for other weights.
    #[error("bundle `{bundle}` was made for a base model with sha256 {expected}, but {path} has {found}")]
    OtherBase {
        /// The bundle's name.
        bundle: String,
        /// The weights it was made for.
        expected: String,
        /// The weights' file.
        path: String,
        /// Its hash.
        found: String,
    },
    /// The windows leave no room in the model's context.
    #[error(
        "`guard.window_tokens` is {window}, but prompt and phases take {other} more and the model's context holds \
         {context}: choose at most {}", .context.saturating_sub(*.other)
    )]
    Context {
        /// Tokens of a window.
        window: usize,
        /// Tokens of everything else.
        other: usize,
        /// The model's context.
        context: usize,
    },
    /// The system gives no thread.
    #[error("can't start the guard's thread: {0}")]
    Thread(std::io::Error),
}

/// A guard model in this process, on a thread of its own.
pub struct LocalGuard {
    pub(super) asked: Arc<Asked>,
    engine: Arc<Engine<ExamineTask>>,
    decoder: Arc<Decoder>,
    windows: Windows,
    queue: usize,
}

/// What every examination shares.
pub(super) struct Asked {
    pub(super) manifest: Manifest,
    pub(super) version: GuardVersion,
    pub(super) tokenizer: Tokenizer,
    pub(super) prompt: Prompt,
    /// Keys and values of the prompt's prefix: read once, forked for every conversation.
    pub(super) prefix: KvCache,
}

/// Longer conversations are tokenized on a thread of their own, so that [`Guard::examine`] never holds its caller up.
const INLINE_BYTES: usize = 64 * 1024;

impl LocalGuard {
    /// Loads `bundle` over the base model at `path`, whose weights hash to `sha256`.
    ///
    /// # Errors
    /// Bundle and model do not fit each other, or one of them is damaged.
    pub fn start(
        bundle: &Bundle,
        path: &Path,
        sha256: &str,
        options: LocalOptions,
    ) -> Result<Self, StartError> {
        let manifest = bundle.manifest.clone();
        if let Some(expected) = manifest.base.sha256.as_ref().filter(|e| !e.eq_ignore_ascii_case(sha256)) {
            return Err(StartError::OtherBase {
                bundle: manifest.name,
                expected: expected.clone(),
                path: path.display().to_string(),
                found: sha256.to_owned(),
            });
        }
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = Prompt::new(&manifest, &tokenizer, &checkpoint.chat_template()?)?;
        let other = prompt.prefix.len()
            + prompt.suffix.len()
            + manifest.limits.understanding_tokens
            + manifest.limits.assessment_tokens
            + HEADINGS;
        let context = checkpoint.config().context;
        if options.windows.window + other > context {
            return Err(StartError::Context { window: options.windows.window, other, context });
        }
        let adapter = bundle.adapter()?;
        let LocalOptions { device, precision, limits, windows } = options;
        let load = LoadOptions { device, precision, adapter: adapter.as_ref(), keep_adapter_apart: false };
        let decoder = Arc::new(Decoder::load(&checkpoint, &load)?);
        let mut prefix = decoder.new_cache()?;
        let sequence = Sequence { tokens: &prompt.prefix, cache: &mut prefix, want: Want::Nothing };
        decoder.forward(&mut [sequence], &[])?;

        let version = GuardVersion {
            bundle: format!("{} {}", manifest.name, manifest.version),
            bundle_sha256: bundle.sha256.clone(),
            base_model: manifest.base.model.clone(),
            base_sha256: sha256.to_owned(),
            template: format!("{} {}", manifest.template.name, manifest.template.version),
        };
        let asked = Arc::new(Asked { manifest, version, tokenizer, prompt, prefix });
        let engine = Engine::start("guard", decoder.clone(), limits).map_err(StartError::Thread)?;
        Ok(Self { asked, engine: Arc::new(engine), decoder, windows, queue: limits.queue })
    }

    /// The guard's model, adapter included.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Examinations waiting and running now.
    pub fn load(&self) -> (usize, usize) {
        self.engine.load()
    }
}

/// Room for all headings, labels and a hazard's name.
const HEADINGS: usize = 48;

impl Guard for LocalGuard {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        let (events, examination) = Examination::channel();
        let called = Instant::now();
        let (asked, engine, windows, queue) =
            (self.asked.clone(), self.engine.clone(), self.windows, self.queue);
        let inline = conversation.text_len() <= INLINE_BYTES;
        let submit = move || {
            let mut coverage = transcript::coverage(&conversation);
            let ids = match asked.tokenizer.encode_text(&transcript::render(&conversation)) {
                Ok(ids) => ids,
                Err(error) => {
                    let _ = events.send(Event::Failed(GuardError::Model(error.to_string())));
                    return;
                }
            };
            let windows = windows.split(ids.len());
            coverage.tokens = ids.len();
            coverage.tokens_read = transcript::union_len(&windows);
            coverage.windows = windows.len();
            let windows = windows.into_iter().map(|window| ids[window].to_vec()).collect();
            let task = ExamineTask::new(asked, options, events.clone(), coverage, windows, called);
            let failure = match engine.submit(task) {
                Ok(()) => return,
                Err(Rejected::Full(_)) => GuardError::Overloaded { waiting: queue },
                Err(Rejected::Stopped) => GuardError::Stopped,
            };
            // A send fails only where nobody listens any more.
            let _ = events.send(Event::Failed(failure));
        };
        if inline {
            submit();
        } else {
            std::thread::spawn(submit);
        }
        examination
    }

    fn version(&self) -> GuardVersion {
        self.asked.version.clone()
    }
}
