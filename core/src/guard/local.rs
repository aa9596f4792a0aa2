//! The guard in this process: a small reasoning model that thinks before it judges.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Event, Examination, Guard, GuardError, Mode, Options, TracedProbes,
    bundle::{AdapterError, Band, Bundle, BundleError},
    examine::ExamineTask,
    probes::ProbeSet,
    prompt::Prompt,
    transcript::{self, Windows},
};
use crate::{
    conversation::Conversation,
    engine::{Engine, Limits, Load, Rejected},
    evidence::GuardVersion,
    guard::bundle::Manifest,
    model::{
        Checkpoint, Decoder, DeviceChoice, KvCache, LoadOptions, ModelError, Precision, Sequence, Tokenizer,
        Want,
    },
    probe::{Probe, ProbeError, ProbeInfo, onnx::GuardParts},
};

/// How a local guard runs.
#[derive(Clone, Debug, Default)]
pub struct LocalOptions {
    /// Where the model runs.
    pub device: DeviceChoice,
    /// How its weights are held.
    pub precision: Precision,
    /// Bounds of its engine.
    pub limits: Limits,
    /// How long conversations are read.
    pub windows: Windows,
    /// The probes that read along, those of the bundle included: see [`probe::open`](crate::probe::open).
    pub probes: Vec<Arc<Probe>>,
    /// What is clear without reasoning.
    pub cascade: Cascade,
}

/// How [`Mode::Cascade`] decides what to reason about.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cascade {
    /// Below this score a conversation is clearly benign; the bundle's own bound where it is not set.
    pub benign_below: Option<f64>,
    /// From this score on it is clearly harmful; the bundle's own bound where it is not set.
    pub harmful_from: Option<f64>,
    /// Write the phases for the clearly harmful too. The score remains that of the probes.
    pub reason_on_refuse: bool,
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
    /// A probe does not fit the guard.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The bundle combines signals that are not there.
    #[error(
        "bundle `{bundle}` combines a signal `{signal}` (`combine` in its guard.toml), but no probe of it has that name"
    )]
    Signal {
        /// The bundle's name.
        bundle: String,
        /// The signal.
        signal: String,
    },
    /// The mode needs probes.
    #[error(
        "`guard.mode` is `{mode}`, but bundle `{bundle}` has no probes: use a bundle that has some, add one with \
         `guard.probes`, or choose `reason` or `direct`", mode = .mode.as_str()
    )]
    NoProbes {
        /// The mode.
        mode: Mode,
        /// The bundle's name.
        bundle: String,
    },
    /// Nobody said what is clear.
    #[error(
        "`guard.mode` is `cascade`, but bundle `{bundle}` does not say which scores are clear: set \
         `guard.cascade.benign_below` and `guard.cascade.harmful_from`"
    )]
    NoBand {
        /// The bundle's name.
        bundle: String,
    },
    /// The bounds of the cascade are wrong.
    #[error("`guard.cascade`: {0}")]
    Band(String),
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
    pub(super) probes: ProbeSet,
    pub(super) band: Option<Band>,
    pub(super) reason_on_refuse: bool,
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
        check_base(&manifest, path, sha256)?;
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
        let LocalOptions { device, precision, limits, windows, probes, cascade } = options;
        let mut version = bundle.version(sha256);
        if !probes.is_empty() {
            let parts = GuardParts {
                base_sha256: version.base_sha256.clone(),
                adapter_sha256: bundle.adapter_sha256()?,
                template: version.template.clone(),
            };
            let config = checkpoint.config();
            for probe in &probes {
                probe.check_fits(&parts, config.layers, config.hidden_size)?;
            }
            let own = probes.iter().map(|probe| probe.info()).filter(|info| info.own);
            version.own_probes = own.map(|info| (info.name.clone(), info.sha256.clone())).collect();
        }
        let probes = ProbeSet::new(probes, checkpoint.config().hidden_size);
        if let Some(signal) = probes.unknown_signal(&manifest.combine) {
            return Err(StartError::Signal { bundle: manifest.name, signal });
        }
        let band = band(cascade, manifest.cascade)?;
        let adapter = bundle.adapter()?;
        let load = LoadOptions { device, precision, adapter: adapter.as_ref(), keep_adapter_apart: false };
        let decoder = Arc::new(Decoder::load(&checkpoint, &load)?);
        let mut prefix = decoder.new_cache()?;
        let sequence = Sequence { tokens: &prompt.prefix, cache: &mut prefix, want: Want::Nothing };
        decoder.forward(&mut [sequence], &[])?;

        let reason_on_refuse = cascade.reason_on_refuse;
        let asked = Asked { manifest, version, tokenizer, prompt, prefix, probes, band, reason_on_refuse };
        let asked = Arc::new(asked);
        let engine = Engine::start("guard", decoder.clone(), limits).map_err(StartError::Thread)?;
        Ok(Self { asked, engine: Arc::new(engine), decoder, windows, queue: limits.queue })
    }

    /// The guard's model, adapter included.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// The probes that read along.
    pub fn probes(&self) -> impl Iterator<Item = &ProbeInfo> {
        self.asked.probes.iter().map(|probe| probe.info())
    }

    /// Checks that this guard can be asked in `mode`: better said at the start than for every request.
    ///
    /// # Errors
    /// The mode needs probes and there are none, or bounds that nobody has set.
    pub fn check_mode(&self, mode: Mode) -> Result<(), StartError> {
        let bundle = || self.asked.manifest.name.clone();
        if mode.needs_probes() && self.probes().next().is_none() {
            Err(StartError::NoProbes { mode, bundle: bundle() })
        } else if mode == Mode::Cascade && self.asked.band.is_none() {
            Err(StartError::NoBand { bundle: bundle() })
        } else {
            Ok(())
        }
    }

    /// As [`Guard::examine`], with what every probe says at every token as [`Event::Traced`].
    pub fn trace(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        self.start_examination(conversation, options, true)
    }

    fn start_examination(
        &self,
        conversation: Arc<Conversation>,
        options: Options,
        trace: bool,
    ) -> Examination {
        let (events, examination) = Examination::channel();
        let called = Instant::now();
        if let Err(error) = self.check_mode(options.mode) {
            let _ = events.send(Event::Failed(GuardError::Model(error.to_string())));
            return examination;
        }
        let (asked, engine, windows, queue) =
            (self.asked.clone(), self.engine.clone(), self.windows, self.queue);
        let inline = conversation.text_len() <= INLINE_BYTES;
        let submit = move || {
            let (coverage, windows) = match transcript::tokenize(&conversation, &asked.tokenizer, windows) {
                Ok(read) => read,
                Err(error) => {
                    let _ = events.send(Event::Failed(GuardError::Model(error.to_string())));
                    return;
                }
            };
            let task =
                ExamineTask::new(asked, options, events.clone(), coverage, windows.into(), called, trace);
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
}

/// Checks that a base model is the one that a bundle was made for.
///
/// # Errors
/// It is another one.
pub fn check_base(manifest: &Manifest, path: &Path, sha256: &str) -> Result<(), StartError> {
    match manifest.base.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(sha256)) {
        None => Ok(()),
        Some(expected) => Err(StartError::OtherBase {
            bundle: manifest.name.clone(),
            expected: expected.clone(),
            path: path.display().to_string(),
            found: sha256.to_owned(),
        }),
    }
}

/// What is clear: each bound as set, else as the bundle has it; `None` where one is in neither.
fn band(set: Cascade, bundle: Option<Band>) -> Result<Option<Band>, StartError> {
    let benign_below = set.benign_below.or(bundle.map(|band| band.benign_below));
    let harmful_from = set.harmful_from.or(bundle.map(|band| band.harmful_from));
    let Some((benign_below, harmful_from)) = benign_below.zip(harmful_from) else { return Ok(None) };
    let band = Band { benign_below, harmful_from };
    band.problem().map_or(Ok(Some(band)), |problem| Err(StartError::Band(problem)))
}

/// Room for all headings, labels and a hazard's name.
const HEADINGS: usize = 48;

impl Guard for LocalGuard {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        self.start_examination(conversation, options, false)
    }

    fn version(&self) -> GuardVersion {
        self.asked.version.clone()
    }

    fn load(&self) -> Load {
        self.engine.load()
    }

    fn trace_probes(
        &self,
        conversation: Arc<Conversation>,
        deadline: Option<Duration>,
    ) -> Option<TracedProbes> {
        let probes: Vec<String> = self.probes().map(|probe| probe.name.clone()).collect();
        let options = Options { mode: Mode::Probe, deadline };
        (!probes.is_empty()).then(|| TracedProbes { probes, examination: self.trace(conversation, options) })
    }
}
