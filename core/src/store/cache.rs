//! The cache folder: where a model lies, how it gets there whole, and how two processes take turns.
//!
//! ```text
//! ROOT/models/SLUG/          one model: its files and `.manifest.json`
//! ROOT/staging/SLUG/out/     a fetch in progress, renamed to models/SLUG when complete and checked
//! ROOT/staging/SLUG/work/    downloads in progress; parts stay for a later run to go on with
//! ROOT/locks/SLUG.lock       held while fetching, removing or verifying
//! ```
//!
//! A folder under `models/` without a readable manifest does not count as there. Readers need no lock and no
//! write access, so a read-only cache works.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Progress, StoreError};

const MANIFEST: &str = ".manifest.json";

/// What lies in a model's folder; written last, so it also marks the folder as complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The spec the model was asked for by.
    pub(super) spec: String,
    /// The source it came from.
    pub(super) from: String,
    /// Whether the model is the folder, not its one file.
    pub(super) folder: bool,
    pub(super) files: Vec<FileRecord>,
}

/// One file and the stamp under which its sha256 was last found right.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sha256: String,
    /// Seconds since 1970: container layers keep no finer times.
    modified: u64,
}

/// What a source promises about a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// The place of one model in the cache.
#[derive(Debug)]
pub(super) struct Slot {
    spec: String,
    folder: PathBuf,
    staging: PathBuf,
    lock: PathBuf,
}

/// Held while a slot is being changed.
#[derive(Debug)]
pub(super) struct SlotLock {
    file: File,
}

impl Drop for SlotLock {
    /// Closing alone could leave it locked: a process that another thread starts right now shares the open file until
    /// it runs its own program.
    fn drop(&mut self) {
        // Fails only where it was never locked.
        let _ = self.file.unlock();
    }
}

impl Slot {
    pub(super) fn new(root: &Path, spec: &str) -> Self {
        let slug = slug(spec);
        Slot {
            spec: spec.to_owned(),
            folder: models_folder(root).join(&slug),
            staging: root.join("staging").join(&slug),
            lock: root.join("locks").join(format!("{slug}.lock")),
        }
    }

    /// Waits for whoever else is changing this slot, and says so.
    pub(super) fn lock(&self, progress: &dyn Progress) -> Result<SlotLock, StoreError> {
        if let Some(parent) = self.lock.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        }
        let file = File::create(&self.lock).map_err(StoreError::io("create", &self.lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                progress.note(&format!("{}: waiting for another process to be done with it", self.spec));
                file.lock().map_err(StoreError::io("lock", &self.lock))?;
            }
            Err(fs::TryLockError::Error(cause)) => return Err(StoreError::io("lock", &self.lock)(cause)),
        }
        Ok(SlotLock { file })
    }

    /// The manifest, if the model is there at all.
    pub(super) fn manifest(&self) -> Option<Manifest> {
        read_manifest(&self.folder)
    }

    /// Whether every file has the size and time under which its hash was last found right.
    pub(super) fn is_as_stamped(&self, manifest: &Manifest) -> bool {
        manifest.files.iter().all(|record| {
            stamp(&self.folder.join(&record.name)).is_ok_and(|stamp| stamp == (record.size, record.modified))
        })
    }

    /// Reads every byte again, then renews the stamps; bad files are removed, and the whole model with them.
    pub(super) fn verify(&self, manifest: &Manifest, lock: &SlotLock) -> Result<(), StoreError> {
        let mut renewed = manifest.clone();
        for record in &mut renewed.files {
            let promise = Promise { size: Some(record.size), sha256: Some(record.sha256.clone()) };
            match check_file(&self.folder, &record.name, &promise, "the cache") {
                Ok(checked) => *record = checked,
                Err(error) => {
                    self.remove(lock)?;
                    return Err(error);
                }
            }
        }
        write_manifest(&self.folder, &renewed)
    }

    /// Where the model is: its folder or its one file.
    pub(super) fn model_path(&self, manifest: &Manifest) -> PathBuf {
        match manifest.files.as_slice() {
            [only] if !manifest.folder => self.folder.join(&only.name),
            _ => self.folder.clone(),
        }
    }

    /// An empty `out` and a `work` folder that keeps what earlier runs left.
    pub(super) fn stage(&self, _: &SlotLock) -> Result<Stage, StoreError> {
        let stage = Stage { out: self.staging.join("out"), work: self.staging.join("work") };
        remove_tree(&stage.out)?;
        for folder in [&stage.out, &stage.work] {
            fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        }
        Ok(stage)
    }

    /// Puts a complete, checked stage in place; from here on readers see it.
    pub(super) fn publish(
        &self,
        stage: &Stage,
        manifest: &Manifest,
        lock: &SlotLock,
    ) -> Result<(), StoreError> {
        write_manifest(&stage.out, manifest)?;
        sync(&stage.out)?;
        self.remove(lock)?;
        if let Some(models) = self.folder.parent() {
            fs::create_dir_all(models).map_err(StoreError::io("create", models))?;
            fs::rename(&stage.out, &self.folder).map_err(StoreError::io("move a model to", &self.folder))?;
            sync(models)?;
        }
        remove_tree(&self.staging)
    }

    /// Removes the model and returns how many bytes that freed. The manifest goes first: half of a model is none.
    pub(super) fn remove(&self, _: &SlotLock) -> Result<u64, StoreError> {
        let freed = self.manifest().map_or(0, |manifest| manifest.size());
        let manifest = self.folder.join(MANIFEST);
        match fs::remove_file(&manifest) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &manifest)(error));
            }
            _ => remove_tree(&self.folder)?,
        }
        Ok(freed)
    }

    /// Removes what fetches that never ended have left.
    pub(super) fn remove_parts(&self, _: &SlotLock) -> Result<(), StoreError> {
        remove_tree(&self.staging)
    }
}

/// The folders of a fetch in progress.
#[derive(Debug)]
pub(super) struct Stage {
    /// Complete, checked files go here.
    pub(super) out: PathBuf,
    /// Everything else.
    pub(super) work: PathBuf,
}

impl Manifest {
    /// Bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// sha256 of a one-file model.
    pub(super) fn sha256(&self) -> Option<&str> {
        match self.files.as_slice() {
            [only] if !self.folder => Some(&only.sha256),
            _ => None,
        }
    }
}

/// Every complete model under `root`, with its slot.
pub(super) fn all(root: &Path) -> Result<Vec<(Slot, Manifest)>, StoreError> {
    let models = models_folder(root);
    let folders = match fs::read_dir(&models) {
        Ok(folders) => folders,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read", &models)(error)),
    };
    let mut found: Vec<_> = folders
        .filter_map(|folder| read_manifest(&folder.ok()?.path()))
        .map(|manifest| (Slot::new(root, &manifest.spec), manifest))
        .collect();
    found.sort_by(|a, b| a.1.spec.cmp(&b.1.spec));
    Ok(found)
}

/// Hashes `folder/name`, compares with what was promised, and makes it durable. A file that breaks its promise is
/// removed, so that nothing can use it later.
pub(super) fn check_file(
    folder: &Path,
    name: &str,
    promise: &Promise,
    from: &str,
) -> Result<FileRecord, StoreError> {
    let path = folder.join(name);
    let (size, modified) = stamp(&path).map_err(StoreError::io("read", &path))?;
    let sha256 = sha256_file(&path)?;
    let (file, from) = (name.to_owned(), from.to_owned());
    let broken = match promise {
        Promise { size: Some(expected), .. } if *expected != size => {
            StoreError::WrongSize { file, from, expected: *expected, got: size }
        }
        Promise { sha256: Some(expected), .. } if *expected != sha256 => {
            StoreError::WrongHash { file, from, expected: expected.clone(), got: sha256 }
        }
        _ => {
            sync(&path)?;
            return Ok(FileRecord { name: file, size, sha256, modified });
        }
    };
    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    Err(broken)
}

/// The sha256 of a file, lower-case hex.
pub fn sha256_file(path: &Path) -> Result<String, StoreError> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hex::encode(hasher.finalize())),
                read => hasher.update(&buffer[..read]),
            }
        }
    };
    read().map_err(StoreError::io("read", path))
}

/// Removes a folder and all in it; not there is fine.
pub(super) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn models_folder(root: &Path) -> PathBuf {
    root.join("models")
}

fn read_manifest(folder: &Path) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()?;
    (!manifest.files.is_empty()).then_some(manifest)
}

/// Writes the manifest beside its place and renames it, so that a reader never sees half of one.
fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<(), StoreError> {
    let (path, new) = (folder.join(MANIFEST), folder.join(".manifest.json.new"));
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::from);
    text.and_then(|text| fs::write(&new, text)).map_err(StoreError::io("write", &new))?;
    sync(&new)?;
    fs::rename(&new, &path).map_err(StoreError::io("write", &path))
}

/// Size in bytes and modification time in seconds.
fn stamp(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(path)?;
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Ok((meta.len(), modified))
}

/// Makes a file or folder durable. Windows can't sync a folder, and needs none for a rename to last.
fn sync(path: &Path) -> Result<(), StoreError> {
    if cfg!(windows) && path.is_dir() {
        return Ok(());
    }
    // Windows syncs only through a handle that may write; Unix opens a folder only for reading.
    let file = if cfg!(windows) { File::options().write(true).open(path) } else { File::open(path) };
    file.and_then(|file| file.sync_all()).map_err(StoreError::io("save", path))
}

/// A file name for a spec: itself where that is one, else its readable characters and a hash that keeps it unique.
fn slug(spec: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if spec.len() <= 64 && spec.chars().all(is_plain) {
        return spec.to_owned();
    }
    let readable: String =
        spec.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let hash = hex::encode(Sha256::digest(spec));
    format!("{readable}-{}", &hash[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_file_names_and_distinct() {
        assert_eq!(slug("smollm2-135m-instruct"), "smollm2-135m-instruct");
        let specs = ["hf:a/b/m.gguf", "hf:a/b-m.gguf", "hf:A/b/m.gguf", "pip:a==1#b/m", "pip:a==1#b/n"];
        let slugs: std::collections::BTreeSet<_> =
            specs.iter().map(|spec| slug(spec).to_lowercase()).collect();
        assert_eq!(slugs.len(), specs.len());
        for slug in slugs {
            assert!(slug.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'), "{slug}");
        }
        assert!(slug(&"x/".repeat(500)).len() < 100);
    }

    #[test]
    fn sha256_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_file(&path).unwrap(), expected);
    }
}
