//! From configuration to loaded models. Everything here blocks: it fetches files and reads weights.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use forethought_core::{
    engine::Limits,
    generate::{ChatModel, LocalChat},
    guard::{Bundle, Cascade, LocalGuard, LocalOptions, Mode, Windows},
    model::{Decoder, DeviceChoice, LoadOptions},
    probe::{self, ProbeSource},
    store::{Console, Store, sha256_file},
};
use serde_json::{Value, json};

use super::serve::Models;
use crate::config::{CheckedConfig, Device, EmbeddedConfig, GuardConfig, UpstreamConfig};

/// A running guard and what others may share of it.
pub struct LoadedGuard {
    /// The guard.
    pub guard: Arc<LocalGuard>,
    /// The base model's file or folder.
    base: PathBuf,
    /// Whether the weights in memory are those of the base model, with nothing added.
    is_bare: bool,
}

/// Fetches and loads all that a proxy of this configuration needs.
///
/// # Errors
/// A model can't be fetched or loaded.
pub fn load(config: &CheckedConfig) -> Result<Models> {
    let loaded = load_guard(&config.guard)?;
    let chat = match &config.upstream {
        UpstreamConfig::Embedded(embedded) => Some(load_chat(embedded, &config.guard, &loaded)?),
        UpstreamConfig::Url(_) => None,
    };
    Ok(Models { guard: loaded.guard, chat })
}

/// Fetches and starts the guard.
///
/// # Errors
/// The bundle or its base model can't be fetched or loaded, or they do not fit each other.
pub fn load_guard(config: &GuardConfig) -> Result<LoadedGuard> {
    if let Some(threads) = config.threads {
        // An error means that a pool is running already, as in tests; that one is kept.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let mut bundle = Bundle::open(&config.bundle).context("can't open the guard bundle (`guard.bundle`)")?;
    let limits = &mut bundle.manifest.limits;
    limits.understanding_tokens = config.understanding_tokens.unwrap_or(limits.understanding_tokens);
    limits.assessment_tokens = config.assessment_tokens.unwrap_or(limits.assessment_tokens);
    let store = Store::open_default()?;
    let own = config.probes.iter().map(|probe| ProbeSource::read(&probe.file, probe.made.clone()));
    let own = own.collect::<Result<_, _>>().context("can't add a probe (`guard.probes`)")?;
    let probes = probe::open(&bundle, own, &config.runtime, &store, &Console::stderr())
        .context("can't open the guard's probes")?;
    let base = store.resolve(&bundle.manifest.base.model.parse()?, &Console::stderr())?;
    let sha256 = match base.sha256 {
        Some(sha256) => sha256,
        None if base.path.is_file() => sha256_file(&base.path)?,
        None => String::new(),
    };
    let options = LocalOptions {
        device: device(config.device),
        limits: Limits { batch: config.batch, queue: config.queue, ..Limits::default() },
        windows: Windows {
            window: config.window_tokens,
            overlap: config.window_overlap,
            max: config.max_tokens,
        },
        probes,
        cascade: config.cascade,
        ..LocalOptions::default()
    };
    let is_bare = bundle.manifest.adapter.is_none();
    let guard = LocalGuard::start(&bundle, &base.path, &sha256, options).context("can't start the guard")?;
    guard.check_mode(config.mode)?;
    Ok(LoadedGuard { guard: Arc::new(guard), base: base.path, is_bare })
}

/// What of the configuration changes the guard's findings, beside its bundle.
pub fn finding_settings(config: &GuardConfig) -> Value {
    let mut settings = json!({
        "max_tokens": config.max_tokens,
        "window_tokens": config.window_tokens,
        "window_overlap": config.window_overlap,
        "understanding_tokens": config.understanding_tokens,
        "assessment_tokens": config.assessment_tokens,
    });
    if config.mode == Mode::Cascade {
        let Cascade { benign_below, harmful_from, reason_on_refuse } = config.cascade;
        settings["cascade"] = json!({
            "benign_below": benign_below,
            "harmful_from": harmful_from,
            "reason_on_refuse": reason_on_refuse,
        });
    }
    settings
}

/// Starts the model that answers in process; it shares the guard's weights where they are the same.
fn load_chat(
    config: &EmbeddedConfig,
    guard: &GuardConfig,
    loaded: &LoadedGuard,
) -> Result<Arc<dyn ChatModel>> {
    let model = Store::open_default()?.resolve(&config.model.parse()?, &Console::stderr())?;
    let shared = loaded.is_bare && model.path == loaded.base;
    let decoder: Option<Arc<Decoder>> = shared.then(|| loaded.guard.decoder().clone());
    let options = LoadOptions { device: device(guard.device), ..LoadOptions::default() };
    let limits = Limits { queue: config.queue, ..Limits::default() };
    let chat = LocalChat::start(&model.path, decoder, &options, limits)
        .context("can't start the embedded upstream's model")?;
    Ok(Arc::new(chat))
}

fn device(device: Device) -> DeviceChoice {
    match device {
        Device::Cpu => DeviceChoice::Cpu,
        Device::Cuda => DeviceChoice::Cuda(0),
        Device::Metal => DeviceChoice::Metal,
    }
}
