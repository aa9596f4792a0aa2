//! The policy chain that a configuration describes.

use std::sync::{Arc, Mutex, PoisonError};

use forethought_core::{
    policy::{Policy, PolicyChain},
    store::Store,
};
use forethought_plugins::{Engine, LoadError, Plugin};
use sha2::{Digest, Sha256};

use crate::{
    config::{PluginConfig, PolicyConfig},
    metrics::Metrics,
};

/// A chain, and what stands for it.
pub(crate) struct Policies {
    pub(crate) chain: Arc<PolicyChain>,
    /// sha256 of what is configured of guard and policies, plugins included, hexadecimal: what evidence is kept for.
    pub(crate) sha256: String,
}

impl Policies {
    /// `chain`; `judging_sha256` is that of what is configured of guard and policies.
    pub(crate) fn new(chain: Arc<PolicyChain>, judging_sha256: &str) -> Self {
        let mut hash = Sha256::new_with_prefix(judging_sha256);
        hash.update(serde_json::to_vec(chain.versions()).unwrap_or_default());
        let sha256 = hex::encode(hash.finalize());
        Self { chain, sha256 }
    }
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
