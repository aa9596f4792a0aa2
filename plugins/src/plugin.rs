//! One plugin: a component with its configuration, limits and grants.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use forethought_core::policy::{
    Case, LazyFacts, OnPolicyFailure, Opinion, Policy, PolicyFailure, PolicyVersion, Said,
};
use sha2::{Digest as _, Sha256};
use wasmtime::{
    Store,
    component::{Component, Linker},
};

use crate::{
    cache,
    call::{Call, LogLine},
    engine::Engine,
    error::{Failure, LoadError},
    imports::{self, Grant},
    limits::Limits,
    module, v0_1_0, wasi,
};

/// Time for `init` where a plugin is loaded: the first call of all brings its code into memory.
const LOAD_TIME: Duration = Duration::from_secs(5);
/// Most idle instances that a stateful plugin keeps.
const IDLE: usize = 16;

/// What the operator says of a plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginOptions {
    /// Its name, in logs, audit records and errors; the one it gives itself where this is `None`.
    pub name: Option<String>,
    /// Its configuration, a JSON object.
    pub config: serde_json::Value,
    /// What it may import beside what all may.
    pub grants: Vec<Grant>,
    /// What a call may take up.
    pub limits: Limits,
    /// What becomes of a request that it fails on.
    pub on_failure: OnPolicyFailure,
}

impl Default for PluginOptions {
    fn default() -> Self {
        Self {
            name: None,
            config: serde_json::Value::Object(serde_json::Map::new()),
            grants: vec![],
            limits: Limits::default(),
            on_failure: OnPolicyFailure::Closed,
        }
    }
}

/// Longest name or version of a plugin, in bytes.
const LABEL: usize = 64;

/// Names and versions stand in logs, headers and audit records.
fn is_label(word: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    (1..=LABEL).contains(&word.len()) && word.bytes().all(fits)
}

/// What a plugin says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether an instance may be used for more than one request.
    pub stateful: bool,
}

/// A piece of an answer that is held back until it is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window<'a> {
    /// Index of the answer, where several were asked for.
    pub choice: u32,
    /// What was released before.
    pub before: &'a str,
    /// What is held back.
    pub held: &'a str,
    /// Whether the answer ends here.
    pub last: bool,
    /// P(harmful) of the answer so far, in `[0, 1]`, where the guard read it.
    pub score: Option<f64>,
}

/// What is to be done with a piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseDecision {
    /// No opinion.
    Pass,
    /// Send it on.
    Release,
    /// Send this in its place.
    Replace(String),
    /// End the answer here, with this as its last text.
    Cut(String),
}

/// A decision on a piece of an answer, and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseRuling {
    /// What to do.
    pub decision: ResponseDecision,
    /// The rule behind it.
    pub reason: String,
    /// Words to mark the answer with.
    pub flags: Vec<String>,
}

/// A plugin that is ready to decide.
pub struct Plugin {
    name: String,
    path: PathBuf,
    config: String,
    options: PluginOptions,
    manifest: Manifest,
    sha256: String,
    bytes: usize,
    imports: Vec<String>,
    pre: v0_1_0::PluginPre<Call>,
    idle: Mutex<Vec<Instance>>,
}

/// An instance and the memory it runs in.
struct Instance {
    store: Store<Call>,
    exports: v0_1_0::Plugin,
    /// Bytes of memory that it took to begin with.
    at_start: usize,
}

impl Plugin {
    /// Reads, compiles and tries a plugin.
    ///
    /// # Errors
    /// If the file is no plugin, if it imports what it is not granted, or if it rejects its configuration.
    pub fn load(engine: &Engine, path: &Path, options: PluginOptions) -> Result<Self, LoadError> {
        let file = fs::read(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
        Self::of_bytes(engine, path, &file, options)
    }

    /// A plugin from a file's contents; `path` is for errors.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of_bytes(
        engine: &Engine,
        path: &Path,
        file: &[u8],
        options: PluginOptions,
    ) -> Result<Self, LoadError> {
        let wrong = |message: String| LoadError::Wrong { path: path.to_owned(), message };
        let sha256 = hex::encode(Sha256::digest(file));
        let encoded;
        let binary = if module::is_module(file) {
            encoded = module::encode(file).map_err(wrong)?;
            &encoded
        } else {
            file
        };
        if !binary.starts_with(b"\0asm") {
            return Err(wrong("it is not WebAssembly".to_owned()));
        }
        let component =
            cache::compile(engine, binary, &sha256).map_err(|error| wrong(format!("{error:#}")))?;
        imports::check(&component, path, &options.grants)?;
        let pre = link(engine, &component, &options.grants).map_err(|error| wrong(format!("{error:#}")))?;
        let ty = component.component_type();
        let mut plugin = Self {
            name: String::new(),
            path: path.to_owned(),
            config: options.config.to_string(),
            options,
            manifest: Manifest { name: String::new(), version: String::new(), stateful: false },
            sha256,
            bytes: file.len(),
            imports: ty.imports(&engine.inner).map(|(name, _)| name.to_owned()).collect(),
            pre,
            idle: Mutex::new(vec![]),
        };
        let start = |failure| LoadError::Init { path: path.to_owned(), failure };
        let (instance, manifest) =
            isolated(|| plugin.instance(Instant::now() + LOAD_TIME, LOAD_TIME)).map_err(start)?;
        for (what, word) in [("name", &manifest.name), ("version", &manifest.version)] {
            if !is_label(word) {
                return Err(wrong(format!(
                    "its {what} must be 1 to {LABEL} letters, digits, and `-`, `_`, `.` or `+` (what `init` returns)"
                )));
            }
        }
        plugin.name = plugin.options.name.clone().unwrap_or_else(|| manifest.name.clone());
        plugin.manifest = manifest;
        plugin.keep(instance);
        Ok(plugin)
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// sha256 of its file, hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Size of its file, in bytes.
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// The interfaces that it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// What it says of a request, and what it logged meanwhile (which the log has too).
    ///
    /// # Errors
    /// Whatever goes wrong in it.
    pub fn decide_request(
        &self,
        case: &Case<'_>,
        so_far: &[Opinion],
    ) -> Result<(Said, Vec<LogLine>), Failure> {
        let limit = self.options.limits.output_bytes;
        self.call(case.lazy, |exports, store| {
            let said = exports.decide(store, case, so_far)?;
            within(said_bytes(&said), limit).map(|()| said)
        })
    }

    /// What it says of a piece of an answer, and what it logged meanwhile.
    ///
    /// # Errors
    /// Whatever goes wrong in it.
    pub fn decide_response(
        &self,
        case: &Case<'_>,
        window: &Window<'_>,
    ) -> Result<(ResponseRuling, Vec<LogLine>), Failure> {
        self.call(case.lazy, |exports, store| exports.decide_response(store, case, window))
    }

    /// Runs `f` in an instance, within the deadline.
    fn call<R>(
        &self,
        lazy: Option<&Arc<dyn LazyFacts>>,
        f: impl FnOnce(&v0_1_0::Plugin, &mut Store<Call>) -> wasmtime::Result<R>,
    ) -> Result<(R, Vec<LogLine>), Failure> {
        let limits = &self.options.limits;
        let deadline = Instant::now() + limits.time;
        isolated(|| {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut instance = match idle {
                Some(mut instance) => {
                    instance.store.set_epoch_deadline(Engine::ticks(limits.time));
                    instance
                }
                None => self.instance(deadline, limits.time)?.0,
            };
            let Instance { store, exports, .. } = &mut instance;
            store.data_mut().begin(limits, deadline, lazy);
            let done = f(exports, store);
            let lines = store.data_mut().end(&self.name);
            let done = done.map_err(|error| Failure::of(&error, limits.time, limits.output_bytes))?;
            // After a failure an instance may be in any state; only sound ones are kept.
            self.keep(instance);
            Ok((done, lines))
        })
    }

    /// A new instance that has read its configuration.
    fn instance(&self, deadline: Instant, time: Duration) -> Result<(Instance, Manifest), Failure> {
        let limits = &self.options.limits;
        let failure = |error: wasmtime::Error| Failure::of(&error, time, limits.output_bytes);
        let mut store = Store::new(self.pre.engine(), Call::new(limits));
        store.limiter(|call| &mut call.limiter);
        store.set_epoch_deadline(Engine::ticks(time));
        store.set_hostcall_fuel(limits.output_bytes);
        store.data_mut().begin(limits, deadline, None);
        let exports = self.pre.instantiate(&mut store).map_err(failure)?;
        let said = exports.init(&mut store, &self.config).map_err(failure);
        store.data_mut().end(&self.name);
        let manifest = said?.map_err(Failure::Rejects)?;
        let at_start = store.data().limiter.memory();
        Ok((Instance { store, exports, at_start }, manifest))
    }

    /// Keeps an instance for the next request, if the plugin says that it may be, and if it has not used up most of the memory
    /// that it may take: an engine such as JavaScript's lets its memory grow call by call, and a request must not be the one
    /// that finds none left.
    fn keep(&self, instance: Instance) {
        let Instance { at_start, .. } = instance;
        let grown = instance.store.data().limiter.memory().saturating_sub(at_start);
        let room = self.options.limits.memory_bytes.saturating_sub(at_start);
        if self.manifest.stateful && grown <= room / 2 {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE {
                idle.push(instance);
            }
        }
    }

    /// Most memory that an idle instance takes up, in bytes; `None` where there is none.
    pub fn idle_memory(&self) -> Option<usize> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.iter().map(|instance| instance.store.data().limiter.memory()).max()
    }
}

impl Policy for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn decide(&self, case: &Case<'_>, so_far: &[Opinion]) -> Result<Said, PolicyFailure> {
        self.decide_request(case, so_far).map(|(said, _)| said).map_err(|failure| PolicyFailure {
            policy: self.name.clone(),
            kind: failure.kind(),
            message: failure.to_string(),
        })
    }

    fn on_failure(&self) -> OnPolicyFailure {
        self.options.on_failure
    }

    fn version(&self) -> Option<PolicyVersion> {
        Some(PolicyVersion {
            name: self.name.clone(),
            version: self.manifest.version.clone(),
            sha256: self.sha256.clone(),
        })
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}

/// A panic in `f` is a failure of this call alone.
fn isolated<R>(f: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(Failure::Host("it panicked".to_owned())))
}

fn link(
    engine: &Engine,
    component: &Component,
    grants: &[Grant],
) -> wasmtime::Result<v0_1_0::PluginPre<Call>> {
    let mut linker = Linker::new(&engine.inner);
    v0_1_0::link(&mut linker)?;
    if grants.contains(&Grant::Wasi) {
        wasi::link(&mut linker, component)?;
    }
    v0_1_0::pre(linker.instantiate_pre(component)?)
}

fn said_bytes(said: &Said) -> usize {
    use forethought_core::policy::Decision;
    let decision = match &said.decision {
        None | Some(Decision::Allow) => 0,
        Some(Decision::Refuse { message: text } | Decision::Annotate { text }) => text.len(),
        Some(Decision::Redirect { upstream }) => upstream.len(),
        Some(Decision::Rewrite { edits }) => edits.iter().map(|edit| edit.text.len() + 8).sum(),
    };
    decision + said.reason.len() + said.flags.iter().map(String::len).sum::<usize>()
}

fn within(bytes: usize, limit: usize) -> wasmtime::Result<()> {
    if bytes <= limit { Ok(()) } else { Err(Failure::Output { limit }.into()) }
}
