//! From configuration to loaded models. Everything here blocks: it fetches files and reads weights.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use forethought_core::{
    engine::Limits,
    generate::{ChatModel, LocalChat},
    guard::{Bundle, Cascade, Guard, LocalGuard, LocalOptions, Mode, Windows},
    model::{Decoder, DeviceChoice, LoadOptions},
    probe::{self, ProbeSource},
    store::{Console, Store, sha256_file},
};
use serde_json::{Value, json};

use super::serve::Models;
use crate::{
    config::{CheckedConfig, Device, EmbeddedConfig, GuardConfig, RemoteConfig, UpstreamConfig},
    guards::{Fallback, RemoteGuard},
};

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
    let (guard, loaded) = load_any(&config.guard)?;
    if let Some(loaded) = &loaded {
        config.routes.iter().try_for_each(|route| loaded.guard.check_mode(route.guard_mode))?;
    }
    let chat = match &config.upstream {
        UpstreamConfig::Embedded(embedded) if config.uses_default_upstream() => {
            Some(load_chat(embedded, &config.guard, loaded.as_ref())?)
        }
        _ => None,
    };
    Ok(Models { guard, chat })
}

/// The guard of a configuration, be it in this process or on servers, and what is loaded of it in this process.
///
/// # Errors
/// As [`load_guard`].
pub fn load_any(config: &GuardConfig) -> Result<(Arc<dyn Guard>, Option<LoadedGuard>)> {
    let Some(remote) = &config.remote else {
        let loaded = load_guard(config)?;
        return Ok((loaded.guard.clone(), Some(loaded)));
    };
    let loaded = remote.local.then(|| load_guard(config)).transpose()?;
    let local = loaded.as_ref().map(|loaded| loaded.guard.clone() as Arc<dyn Guard>);
    Ok((with_servers(config, remote, local)?, loaded))
}

/// The guard on servers, and what takes its place.
fn with_servers(
    config: &GuardConfig,
    remote: &RemoteConfig,
    local: Option<Arc<dyn Guard>>,
) -> Result<Arc<dyn Guard>> {
    let bundle = open_bundle(config)?;
    let (base, sha256) = base(&bundle, &Store::open_default()?)?;
    let servers = RemoteGuard::new(&bundle, &base, &sha256, remote.options.clone())
        .context("can't ask the guard's servers (`guard.remote`)")?;
    let servers = ("remote".to_owned(), Arc::new(servers) as Arc<dyn Guard>);
    let local = local.map(|local| ("local".to_owned(), local));
    Ok(Arc::new(Fallback::new([servers].into_iter().chain(local).collect(), remote.last)))
}

fn open_bundle(config: &GuardConfig) -> Result<Bundle> {
    let mut bundle = Bundle::open(&config.bundle).context("can't open the guard bundle (`guard.bundle`)")?;
    let limits = &mut bundle.manifest.limits;
    limits.understanding_tokens = config.understanding_tokens.unwrap_or(limits.understanding_tokens);
    limits.assessment_tokens = config.assessment_tokens.unwrap_or(limits.assessment_tokens);
    Ok(bundle)
}

/// A bundle's base model, fetched where it is not there, and its sha256.
fn base(bundle: &Bundle, store: &Store) -> Result<(PathBuf, String)> {
    let base = store.resolve(&bundle.manifest.base.model.parse()?, &Console::stderr())?;
    let sha256 = match base.sha256 {
        Some(sha256) => sha256,
        None if base.path.is_file() => sha256_file(&base.path)?,
        None => String::new(),
    };
    Ok((base.path, sha256))
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
    let bundle = open_bundle(config)?;
    let store = Store::open_default()?;
    let own = config.probes.iter().map(|probe| ProbeSource::read(&probe.file, probe.made.clone()));
    let own = own.collect::<Result<_, _>>().context("can't add a probe (`guard.probes`)")?;
    let probes = probe::open(&bundle, own, &config.runtime, &store, &Console::stderr())
        .context("can't open the guard's probes")?;
    let (base, sha256) = base(&bundle, &store)?;
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
    let guard = LocalGuard::start(&bundle, &base, &sha256, options).context("can't start the guard")?;
    guard.check_mode(config.mode)?;
    Ok(LoadedGuard { guard: Arc::new(guard), base, is_bare })
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
    loaded: Option<&LoadedGuard>,
) -> Result<Arc<dyn ChatModel>> {
    let model = Store::open_default()?.resolve(&config.model.parse()?, &Console::stderr())?;
    let shared = loaded.filter(|loaded| loaded.is_bare && model.path == loaded.base);
    let decoder: Option<Arc<Decoder>> = shared.map(|loaded| loaded.guard.decoder().clone());
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
