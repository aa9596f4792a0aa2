//! Compiled code on disk. Running it means trusting it, so it comes from nowhere but here: files in a folder that belongs
//! to this user alone, written by this program, named by what they were compiled from and by which engine.

#![allow(unsafe_code)] // one call, below

use std::{
    fs,
    hash::{Hash as _, Hasher},
    io::{self, Write as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use tracing::debug;
use wasmtime::component::Component;

use crate::engine::Engine;

/// Bytes of the digest that every file begins with.
const DIGEST: usize = 32;

/// Compiles `component`, whose sha256 is `sha256`, or takes what an earlier run compiled.
pub(crate) fn compile(engine: &Engine, component: &[u8], sha256: &str) -> wasmtime::Result<Component> {
    let Some(folder) = &engine.cache else { return Component::from_binary(&engine.inner, component) };
    let file = folder.join(format!("{sha256}-{:016x}.cwasm", key(&engine.inner)));
    match load(engine, folder, &file) {
        Ok(component) => return Ok(component),
        Err(error) => debug!("compiling a plugin anew: {error}"),
    }
    let compiled = Component::from_binary(&engine.inner, component)?;
    let stored = compiled.serialize().map_err(io::Error::other).and_then(|code| store(folder, &file, &code));
    if let Err(error) = stored {
        debug!("compiled code is not kept: {error}");
    }
    Ok(compiled)
}

/// What the engine's configuration and version come to: other code than that of the same key is never run.
fn key(engine: &wasmtime::Engine) -> u64 {
    /// FNV-1a: the standard library's hashers may differ from one version to the next.
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn load(engine: &Engine, folder: &Path, file: &Path) -> io::Result<Component> {
    own(folder)?;
    own(file)?;
    let bytes = fs::read(file)?;
    let (digest, code) =
        bytes.split_at_checked(DIGEST).ok_or_else(|| io::Error::other("the file was cut short"))?;
    if Sha256::digest(code)[..] != *digest {
        return Err(io::Error::other("the file was changed"));
    }
    // SAFETY: the code was made by `Component::serialize`: `store` is all that writes such files, their digest says that
    // they are whole, and only this user can write to the folder and the file. The engine compares its version and
    // configuration with the code's itself.
    unsafe { Component::deserialize(&engine.inner, code) }.map_err(io::Error::other)
}

fn store(folder: &Path, file: &Path, code: &[u8]) -> io::Result<()> {
    make(folder)?;
    own(folder)?;
    // Whole or not at all, and for this user alone: that is how temporary files are made.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&Sha256::digest(code))?;
    temporary.write_all(code)?;
    temporary.persist(file)?;
    Ok(())
}

#[cfg(unix)]
fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// Fails unless `path` is this user's, and nobody else may write to it.
#[cfg(unix)]
fn own(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::symlink_metadata(path)?;
    // The user's id, by way of a folder that is surely this process's own.
    let user = fs::metadata("/proc/self").map_or_else(|_| metadata.uid(), |own| own.uid());
    if metadata.is_symlink() || metadata.uid() != user || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("others may write to {}", path.display())));
    }
    Ok(())
}

#[cfg(not(unix))]
fn own(path: &Path) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn files(folder: &Path) -> Vec<std::path::PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn code_is_kept_and_changed_code_is_not_run() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("plugins");
        let engine = Engine::new(Some(folder.clone())).unwrap();
        compile(&engine, EMPTY, "a").unwrap();
        let [file] = files(&folder).try_into().unwrap();
        assert!(load(&engine, &folder, &file).is_ok());

        let whole = fs::read(&file).unwrap();
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        for bad in [&changed[..], &whole[..whole.len() / 2], &whole[..7], b""] {
            fs::write(&file, bad).unwrap();
            assert!(load(&engine, &folder, &file).is_err());
        }
        compile(&engine, EMPTY, "a").unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole);

        // Another engine's code, under this one's name.
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let other = Engine { inner: wasmtime::Engine::new(&config).unwrap(), cache: Some(folder.clone()) };
        assert_ne!(key(&other.inner), key(&engine.inner));
        assert!(load(&other, &folder, &file).is_err());
        compile(&other, EMPTY, "a").unwrap();
        assert_eq!(files(&folder).len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn code_that_others_may_write_is_not_run() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("plugins");
        let engine = Engine::new(Some(folder.clone())).unwrap();
        compile(&engine, EMPTY, "a").unwrap();
        let [file] = files(&folder).try_into().unwrap();
        for path in [&file, &folder] {
            let before = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(before.mode() | 0o020)).unwrap();
            assert!(load(&engine, &folder, &file).unwrap_err().to_string().contains("others may write"));
            fs::set_permissions(path, before).unwrap();
        }
        assert!(load(&engine, &folder, &file).is_ok());
        // A cache that can't be used does not keep a plugin from being used.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(compile(&engine, EMPTY, "b").is_ok());
        assert_eq!(files(&folder).len(), 1);
    }
}
