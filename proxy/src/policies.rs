//! The policy chain that a configuration describes, and swapping it while requests are served.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use forethought_core::{
    policy::{Policy, PolicyChain},
    store::Store,
};
use forethought_plugins::{Engine, LoadError, Plugin};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::{
    CheckedConfig, Proxy,
    config::{PluginConfig, PolicyConfig, Problems, Sources},
    metrics::Metrics,
};

/// A chain and the configuration that it comes from.
pub(crate) struct Policies {
    pub(crate) chain: PolicyChain,
    pub(crate) config_sha256: Arc<str>,
    /// sha256 of what is configured of guard and policies, plugins included, hexadecimal: what evidence is kept for.
    pub(crate) sha256: String,
}

impl Policies {
    /// `chain`, which `config` describes.
    pub(crate) fn new(chain: PolicyChain, config: &CheckedConfig) -> Self {
        let mut hash = Sha256::new_with_prefix(&*config.judging_sha256);
        hash.update(serde_json::to_vec(chain.versions()).unwrap_or_default());
        let sha256 = hex::encode(hash.finalize());
        Self { chain, config_sha256: config.sha256.clone(), sha256 }
    }
}

/// Why a chain can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] Problems),
    /// A plugin can't be loaded.
    #[error("can't load a policy plugin (`policy.plugins`)")]
    Plugin(#[from] LoadError),
}

/// The engine of this process's plugins, made when it is first asked for. Compiled code is kept beside the models.
///
/// # Errors
/// If this machine can't run one.
pub fn engine() -> Result<Engine, LoadError> {
    static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);
    let mut shared = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = &*shared {
        return Ok(engine.clone());
    }
    let cache = Store::open_default().ok().map(|store| store.root().join("plugins"));
    Ok(shared.insert(Engine::new(cache)?).clone())
}

/// The chain of `config`: its plugins, measured in `metrics`, then the built-in policies.
///
/// # Errors
/// If a plugin can't be loaded.
pub fn chain(config: &PolicyConfig, metrics: &Arc<Metrics>) -> Result<PolicyChain, LoadError> {
    let load = |plugin: &PluginConfig| {
        let plugin = Plugin::load(&engine()?, &plugin.path, plugin.options.clone())?;
        Ok(metrics.meter(Box::new(plugin) as Box<dyn Policy>))
    };
    Ok(config.chain(config.plugins.iter().map(load).collect::<Result<_, LoadError>>()?))
}

/// Swaps a proxy's chain when its configuration or a plugin's file changes. All or nothing: the old chain serves until the
/// new one is ready, and goes on serving where there is none.
pub struct Reloader {
    proxy: Arc<Proxy>,
    sources: Sources,
    watched: Vec<(PathBuf, Option<Seen>)>,
}

/// What tells that a file was changed.
type Seen = (SystemTime, u64);

impl Reloader {
    /// A reloader of `proxy`, which was made of `sources`.
    pub fn new(proxy: Arc<Proxy>, sources: Sources) -> Self {
        let watched = watch(&sources, &proxy.config.policy);
        Self { proxy, sources, watched }
    }

    /// How often files are to be looked at; `None` is never.
    pub fn interval(&self) -> Option<Duration> {
        self.proxy.config.policy.watch
    }

    /// Reads the configuration's policy section and all plugins anew, and puts them in force.
    ///
    /// # Errors
    /// If anything of it is wrong; then nothing has changed.
    pub fn reload(&mut self) -> Result<(), ChainError> {
        let config = CheckedConfig::load(&self.sources)?;
        let chain = chain(&config.policy, &self.proxy.metrics)?;
        self.watched = watch(&self.sources, &config.policy);
        let plugins = chain.versions().len();
        let policies = Policies::new(chain, &config);
        self.proxy.policies.store(Arc::new(policies));
        info!(plugins, "the policies were reloaded; other settings hold from the next start on");
        Ok(())
    }

    /// Whether a watched file is another one than it was; a file that is being written is waited for.
    pub fn is_changed(&mut self) -> bool {
        let changed = self.watched.iter().any(|(path, before)| seen(path) != *before);
        // Younger than this, and it may not be whole yet.
        let settled = |(path, _): &(PathBuf, Option<Seen>)| {
            seen(path).is_none_or(|(time, _)| time.elapsed().is_ok_and(|age| age > Duration::from_millis(50)))
        };
        changed && self.watched.iter().all(settled)
    }

    /// Reloads, and says in the log what is wrong.
    pub fn try_reload(&mut self) {
        if let Err(error) = self.reload() {
            // Not again before something else changes.
            for (path, before) in &mut self.watched {
                *before = seen(path);
            }
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            warn!("the policies were not reloaded, and the old ones stay in force: {error}{cause}");
        }
    }
}

fn watch(sources: &Sources, policy: &PolicyConfig) -> Vec<(PathBuf, Option<Seen>)> {
    let plugins = policy.plugins.iter().map(|plugin| plugin.path.clone());
    let files = sources.file.iter().cloned().chain(plugins);
    files.map(|path| (path.clone(), seen(&path))).collect()
}

fn seen(path: &Path) -> Option<Seen> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
