//! The model store against a fake pip and a hub on loopback.

// clippy.toml allows it in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

#[path = "store/hub.rs"]
mod hub;
#[cfg(unix)]
#[path = "store/pip.rs"]
mod pip;
#[path = "store/server.rs"]
mod server;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use forethought_core::store::{Hub, ModelSpec, Progress, Registry, Silent, Store, StoreError, sha256_file};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Keeps what a person would have been shown.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    notes: Mutex<Vec<String>>,
    last: Mutex<(u64, Option<u64>)>,
}

impl Progress for Recorder {
    fn begin(&self, _: &str) {}
    fn update(&self, done: u64, total: Option<u64>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (done, total);
    }
    fn end(&self) {}
    fn note(&self, message: &str) {
        println!("note: {message}");
        self.notes.lock().unwrap().push(message.to_owned());
    }
}

pub(crate) fn spec(text: &str) -> ModelSpec {
    text.parse().unwrap()
}

/// A store that reaches nothing but what the test gives it.
pub(crate) fn store(home: &TempDir) -> Store {
    let nowhere = Hub { endpoint: Some("http://127.0.0.1:9".into()), token: None };
    Store::at(home.path()).unwrap().with_hub(nowhere)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A registry with one model, `tiny`.
pub(crate) fn registry(sha256: &str, sources: &[&str]) -> Registry {
    let text =
        format!("[tiny]\ndescription = 'd'\nlicence = 'MIT'\nsha256 = '{sha256}'\nsources = {sources:?}");
    Registry::from_toml(&text).unwrap()
}

/// Every file under a folder, relative, sorted.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found.sort();
    found
}

/// This test binary again, as a process of its own that resolves `spec` in `home` and prints what it found.
pub(crate) fn resolving_process(home: &Path, spec: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["resolves_in_its_own_process", "--exact", "--ignored", "--nocapture"]);
    command.env("FORETHOUGHT_HOME", home).env("TEST_SPEC", spec).env_remove("HF_TOKEN");
    command
}

#[test]
#[ignore = "run by other tests, as a process of its own"]
fn resolves_in_its_own_process() {
    let asked = std::env::var("TEST_SPEC").unwrap();
    let resolved = Store::open_default().unwrap().resolve(&spec(&asked), &Recorder::default()).unwrap();
    println!("fetched: {} path: {}", resolved.fetched, resolved.path.display());
}

#[test]
fn an_unknown_name_lists_what_is_known_and_what_is_like_it() {
    let home = TempDir::new().unwrap();
    let error = store(&home).resolve(&spec("smollm-135m-instruct"), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::UnknownName { .. }));
    assert!(error.to_string().contains("did you mean smollm2-135m-instruct?"), "{error}");
    let error = store(&home).resolve(&spec("zebra"), &Silent).unwrap_err().to_string();
    assert!(!error.contains("did you mean") && error.contains("(known: "), "{error}");
    assert!(error.contains("smollm2-135m-instruct"), "{error}");
    assert!(tree(home.path()).is_empty());
}

#[test]
fn local_files_and_folders_are_taken_as_they_are() {
    let home = TempDir::new().unwrap();
    let model = home.path().join("m.gguf");
    fs::write(&model, "weights").unwrap();
    for path in [model.as_path(), home.path()] {
        let resolved = store(&home).resolve(&spec(path.to_str().unwrap()), &Silent).unwrap();
        assert_eq!(
            (resolved.path.as_path(), resolved.source.as_str(), resolved.fetched),
            (path, "local", false)
        );
    }
    let missing = home.path().join("other.gguf");
    let error = store(&home).resolve(&spec(missing.to_str().unwrap()), &Silent).unwrap_err();
    assert!(matches!(&error, StoreError::LocalMissing { path } if *path == missing), "{error}");
    // Only the cache is verified and emptied by the store, never a user's own file.
    let own = spec(model.to_str().unwrap());
    assert!(matches!(store(&home).verify(&own), Err(StoreError::NotCached { .. })));
    assert!(matches!(store(&home).remove(&own), Err(StoreError::NotCached { .. })));
    assert_eq!(sha256_file(&model).unwrap(), sha256(b"weights"));
}

#[test]
fn nothing_is_cached_in_a_new_store() {
    let home = TempDir::new().unwrap();
    let store = store(&home);
    let name = spec("smollm2-135m-instruct");
    assert_eq!(store.cached().unwrap(), []);
    assert!(matches!(store.path(&name), Err(StoreError::NotCached { .. })));
    assert!(matches!(store.verify(&name), Err(StoreError::NotCached { .. })));
    assert!(matches!(store.remove(&name), Err(StoreError::NotCached { .. })));
}

#[test]
fn a_model_for_other_platforms_only_says_so() {
    let home = TempDir::new().unwrap();
    let source = "{ from = 'pip:a==1#lib.so', platform = 'plan9-mips' }";
    let text = format!("[lib]\ndescription = 'd'\nlicence = 'MIT'\nsources = [{source}]");
    let store = store(&home).with_registry(Registry::from_toml(&text).unwrap());
    let error = store.resolve(&spec("lib"), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::NoSource { .. }), "{error}");
}
