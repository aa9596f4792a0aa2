//! Reloading: configuration, keys, certificates, plugins and the guard's bundle, while requests are served.
//!
//! All is read, loaded and checked before anything changes; then it is swapped at once. Where something is wrong, the old
//! stays in force as a whole. Requests that run keep what they began with.

use std::{
    collections::BTreeSet,
    error::Error,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use forethought_core::guard::Mode as GuardMode;
use tracing::{info, warn};

use crate::{
    CheckedConfig, Proxy,
    config::{EmbeddedConfig, Problems, Sources, UpstreamConfig},
    live::{BuildError, Live, Models},
};

/// Loads the models of a configuration.
pub type Load = dyn Fn(&CheckedConfig) -> Result<Models, Box<dyn Error + Send + Sync>> + Send + Sync;

/// What a reload has put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// sha256 of the configuration's values, as in audit records.
    pub config_sha256: Arc<str>,
    /// Whether the guard was loaded anew.
    pub guard: bool,
    /// Settings that were changed and hold from the next start on.
    pub at_next_start: Vec<&'static str>,
}

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] Problems),
    /// Something that it names can't be loaded or read.
    #[error("{error}{}", causes(.error))]
    Build {
        /// What is wrong.
        error: BuildError,
    },
    /// The models can't be loaded.
    #[error("can't load the models: {0}")]
    Models(String),
    /// There is a mistake in this program.
    #[error("the reload panicked")]
    Panicked,
}

/// Puts a proxy's configuration in force anew. Clones share their work: one reload runs at a time.
#[derive(Clone)]
pub struct Reloader(Arc<Shared>);

struct Shared {
    proxy: Arc<Proxy>,
    sources: Sources,
    load: Box<Load>,
    /// Held while a reload runs.
    state: Mutex<State>,
}

struct State {
    /// Files whose change asks for a reload, as they were.
    watched: Vec<(PathBuf, Option<Seen>)>,
    /// What the models in force were loaded from.
    loaded: Loaded,
}

/// What tells that a file was changed.
type Seen = (SystemTime, u64);

/// What the models depend on.
#[derive(PartialEq)]
struct Loaded {
    guard_sha256: Arc<str>,
    modes: BTreeSet<&'static str>,
    embedded: Option<EmbeddedConfig>,
    files: Vec<(PathBuf, Option<Seen>)>,
}

impl Reloader {
    /// A reloader of `proxy`, which was made of `sources` with models that `load` loads.
    pub fn new(proxy: Arc<Proxy>, sources: Sources, load: Box<Load>) -> Self {
        let live = proxy.live.load_full();
        let state = State { watched: watched(&sources, &live.config), loaded: Loaded::of(&live.config) };
        Self(Arc::new(Shared { proxy, sources, load, state: Mutex::new(state) }))
    }

    /// How often files are to be looked at; `None` is never.
    pub fn interval(&self) -> Option<Duration> {
        self.0.proxy.live.load().config.policy.watch
    }

    /// Reads, loads and checks everything anew and puts it in force, and says in the log how that went.
    ///
    /// # Errors
    /// Something is wrong; then nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let shared = self.0.clone();
        // Reading files and compiling block. New upstreams' checks are started on this runtime.
        let work = tokio::task::spawn_blocking(move || shared.reload());
        let done = work.await.unwrap_or(Err(ReloadError::Panicked));
        match &done {
            Ok(Reloaded { guard, at_next_start, .. }) => {
                info!(guard, "the configuration was reloaded");
                if !at_next_start.is_empty() {
                    let keys = at_next_start.join("`, `");
                    warn!("changes of `{keys}` hold from the next start on");
                }
            }
            Err(error) => warn!("nothing was reloaded, and the old configuration stays in force: {error}"),
        }
        done
    }

    /// Whether a watched file is another one than it was; a file that is being written is waited for.
    pub fn is_changed(&self) -> bool {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = state.watched.iter().any(|(path, before)| seen(path) != *before);
        // Younger than this, and it may not be whole yet.
        let settled = |(path, _): &(PathBuf, Option<Seen>)| {
            seen(path).is_none_or(|(time, _)| time.elapsed().is_ok_and(|age| age > Duration::from_millis(50)))
        };
        changed && state.watched.iter().all(settled)
    }
}

impl Shared {
    fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything is read: what changes from here on is seen as a change. A failure is not tried again before.
        for (path, before) in &mut state.watched {
            *before = seen(path);
        }
        let config = CheckedConfig::load(&self.sources)?;
        let before = self.proxy.live.load_full();
        let watched = watched(&self.sources, &config);
        let loaded = Loaded::of(&config);
        let guard = loaded != state.loaded;
        let models = if guard {
            (self.load)(&config).map_err(|error| ReloadError::Models(told(&*error)))?
        } else {
            before.models.clone()
        };
        let at_next_start = at_next_start(&before.config, &config);
        let live = Live::build(config, models, &self.proxy.lasting, Some(&before))
            .map_err(|error| ReloadError::Build { error })?;
        live.start();
        let config_sha256 = live.config.sha256.clone();
        self.proxy.live.store(Arc::new(live));
        *state = State { watched, loaded };
        Ok(Reloaded { config_sha256, guard, at_next_start })
    }
}

/// Checks all that a reload of this configuration would load, and puts nothing in force. `load` loads the models; without
/// it they are not looked at.
///
/// # Errors
/// As [`Reloader::reload`].
pub fn rehearse(sources: &Sources, load: Option<&Load>) -> Result<(), ReloadError> {
    let config = CheckedConfig::load(sources)?;
    if let Some(load) = load {
        load(&config).map_err(|error| ReloadError::Models(told(&*error)))?;
    }
    Live::check(&config).map_err(|error| ReloadError::Build { error })
}

impl Loaded {
    fn of(config: &CheckedConfig) -> Self {
        let modes = config.routes.iter().map(|route| GuardMode::as_str(route.guard_mode)).collect();
        let embedded = match &config.upstream {
            UpstreamConfig::Embedded(embedded) if config.uses_default_upstream() => Some(embedded.clone()),
            _ => None,
        };
        let bundle = Path::new(&config.guard.bundle);
        let mut files = Vec::new();
        if bundle.is_dir() {
            walk(bundle, 3, &mut files);
        }
        files.extend(config.guard.probes.iter().map(|probe| probe.file.clone()));
        files.extend(config.guard.key_file.clone());
        let files = files.into_iter().map(|path| (path.clone(), seen(&path))).collect();
        Self { guard_sha256: config.guard_sha256.clone(), modes, embedded, files }
    }
}

/// The files in a folder, `depth` folders deep.
fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && depth > 0 {
            walk(&path, depth - 1, files);
        } else {
            files.push(path);
        }
    }
}

/// What was changed of the settings that a running server can't change.
fn at_next_start(before: &CheckedConfig, now: &CheckedConfig) -> Vec<&'static str> {
    let pairs = before.fixed.iter().zip(&now.fixed);
    pairs.filter(|(before, now)| before != now).map(|((key, _), _)| *key).collect()
}

fn watched(sources: &Sources, config: &CheckedConfig) -> Vec<(PathBuf, Option<Seen>)> {
    let plugins = config.routes.iter().flat_map(|route| &route.policy.plugins);
    let mut files: BTreeSet<PathBuf> = plugins.map(|plugin| plugin.path.clone()).collect();
    files.extend(sources.file.clone());
    files.extend(config.files.iter().cloned());
    let bundle = Path::new(&config.guard.bundle).join("guard.toml");
    files.extend(Some(bundle).filter(|path| path.exists()));
    files.into_iter().map(|path| (path.clone(), seen(&path))).collect()
}

fn seen(path: &Path) -> Option<Seen> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The causes of an error, to follow it.
fn causes(error: &dyn Error) -> String {
    let mut told = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

fn told(error: &(dyn Error + 'static)) -> String {
    format!("{error}{}", causes(error))
}
