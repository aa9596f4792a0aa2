//! A folder of exports that appears whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

use super::{create_folder, file_error};
use crate::error::{Result, TrainError};

/// Name of the file with the figures. A folder that holds it was written by [`publish`].
pub const REPORT: &str = "export.json";

/// Makes a folder of what `fill` writes into the one it is given. Nothing is left behind where that fails.
///
/// A folder that is there already is replaced only if `force` is set, and only if it is empty or holds exports.
///
/// # Errors
/// `out` is there already, or whatever `fill` or the file system fails with.
pub fn publish<T>(out: &Path, force: bool, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    check_free(out, force)?;
    let out = std::path::absolute(out).map_err(|error| file_error(out, error))?;
    let parent = out.parent().ok_or_else(|| refused(&out, "is no place for a new folder: name another"))?;
    create_folder(parent)?;
    // Beside `out`, so that it can be moved there; removed with all it then holds when this function ends.
    let scratch = tempfile::Builder::new()
        .prefix(".forethought-export-")
        .tempdir_in(parent)
        .map_err(|error| file_error(parent, error))?;
    let (new, old) = (scratch.path().join("new"), scratch.path().join("old"));
    create_folder(&new)?;
    let outcome = fill(&new)?;
    let failed = |error| file_error(&out, error);
    match fs::rename(&out, &old) {
        Ok(()) if !force => {
            fs::rename(&old, &out).map_err(failed)?;
            return Err(taken(&out));
        }
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Err(error) = fs::rename(&new, &out) {
        // What was there goes back; if even that fails, the first error says more.
        let _ = fs::rename(&old, &out);
        return Err(failed(error));
    }
    Ok(outcome)
}

/// Fails if [`publish`] would refuse `out`: to be asked before hours of work.
///
/// # Errors
/// `out` is there already and may not be replaced.
pub fn check_free(out: &Path, force: bool) -> Result<()> {
    let mut entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error(out, error)),
    };
    if !force {
        return Err(taken(out));
    }
    // `--force` with a slip of the finger must not cost a home folder.
    if entries.next().is_some() && !out.join(REPORT).is_file() {
        return Err(refused(
            out,
            "is there already and holds no exports: it is not replaced, name another folder",
        ));
    }
    Ok(())
}

fn taken(out: &Path) -> TrainError {
    refused(out, "is there already: name another folder, or replace it with --force")
}

fn refused(out: &Path, problem: &str) -> TrainError {
    TrainError::Export { problem: format!("{} {problem}", out.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &'static str) -> impl Fn(&Path) -> Result<()> {
        move |folder| fs::write(folder.join(REPORT), text).map_err(|error| file_error(folder, error))
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("a/b");
        let read = || fs::read_to_string(out.join(REPORT)).ok();
        let left = || fs::read_dir(scratch.path().join("a")).unwrap().count();
        let fails = |folder: &Path| {
            write("half")(folder)?;
            Err::<(), _>(TrainError::Export { problem: "broken".to_owned() })
        };
        assert!(publish(&out, false, fails).is_err());
        assert_eq!((read(), left()), (None, 0));
        publish(&out, false, write("one")).unwrap();
        assert_eq!((read().as_deref(), left()), (Some("one"), 1));
        let error = publish(&out, false, write("two")).unwrap_err().to_string();
        assert!(error.contains("a/b is there already") && error.contains("--force"), "{error}");
        assert!(publish(&out, true, fails).is_err());
        assert_eq!((read().as_deref(), left()), (Some("one"), 1));
        publish(&out, true, write("two")).unwrap();
        assert_eq!((read().as_deref(), left()), (Some("two"), 1));
    }

    #[test]
    fn a_folder_of_other_things_is_never_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("thesis.txt"), "").unwrap();
        let error = publish(scratch.path(), true, write("x")).unwrap_err().to_string();
        assert!(error.contains("holds no exports"), "{error}");
        let file = scratch.path().join("thesis.txt");
        assert!(publish(&file, true, write("x")).is_err());
        assert!(file.exists());
    }

    #[test]
    fn a_folder_that_came_meanwhile_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("out");
        let race = |folder: &Path| {
            fs::create_dir(&out).map_err(|error| file_error(&out, error))?;
            fs::write(out.join("theirs"), "").map_err(|error| file_error(&out, error))?;
            write("ours")(folder)
        };
        assert!(publish(&out, false, race).is_err());
        assert!(out.join("theirs").exists());
    }
}
