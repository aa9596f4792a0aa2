//! Where ONNX Runtime comes from, and what is said where it can't be used.
//!
//! One test: a process has one ONNX Runtime, and once it is there nothing fails any more.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use forethought_core::{
    probe::{ExecutionProvider, Runtime, RuntimeError},
    store::{Console, Pip, Silent, Store},
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Compiles `source` to a library.
fn library(folder: &Path, name: &str, source: &str) -> TestResult<PathBuf> {
    let (code, library) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    std::fs::write(&code, source)?;
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status()?;
    assert!(done.success());
    Ok(library)
}

const OLD: &str = r#"
    static const char *version(void) { return "1.16.3"; }
    static const void *api(unsigned wanted) { (void)wanted; return 0; }
    static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
    const void *OrtGetApiBase(void) { return &base; }
"#;

#[test]
fn the_library_is_found_once_and_failures_are_named() -> TestResult {
    let folder = tempfile::tempdir()?;
    let without_pip = Store::at(folder.path())?.with_pip(Pip::command(["/nowhere/pip"]));
    let failure = |path: &Path| match Runtime::load(Some(path), &without_pip, &Silent) {
        Ok(_) => "it was loaded".to_owned(),
        Err(error) => error.to_string(),
    };
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library")?;
    for (path, expected) in [
        (folder.path().join("none.so"), "there is no ONNX Runtime at "),
        (text, "can't be loaded as ONNX Runtime: "),
        (library(folder.path(), "other", "int x;")?, "does not export `OrtGetApiBase`"),
        (
            library(folder.path(), "old", OLD)?,
            "is ONNX Runtime 1.16.3, which is too old: 1.17 or newer is needed",
        ),
    ] {
        let error = failure(&path);
        assert!(error.contains(expected) && error.contains("named by guard.onnxruntime"), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    // A machine may have one of its own.
    let found = match Runtime::load(None, &without_pip, &Silent) {
        Ok(runtime) => runtime,
        Err(error) => {
            let text = error.to_string();
            assert!(matches!(error, RuntimeError::Store { .. }), "{text}");
            for expected in ["none is installed", "no pip was found", "ORT_DYLIB_PATH", "`guard.onnxruntime`"]
            {
                assert!(text.contains(expected), "{expected}: {text}");
            }
            Runtime::load(None, &Store::open_default()?, &Console::stderr())?
        }
    };
    // From now on it is that one, whatever is asked for.
    let again = Runtime::load(Some(Path::new("/nowhere/else.so")), &without_pip, &Silent)?;
    assert_eq!(again.library(), found.library());

    let offered = found.providers();
    assert!(offered.contains(&ExecutionProvider::Cpu), "{offered:?}");
    found.check_providers(&offered)?;
    let missing = ExecutionProvider::ALL.into_iter().find(|provider| !offered.contains(provider));
    let missing = missing.ok_or("a library that has everything")?;
    let error =
        found.check_providers(&[ExecutionProvider::Cpu, missing]).err().ok_or("no error")?.to_string();
    let expected = format!("`guard.execution_providers` asks for `{}`, but this", missing.as_str());
    assert!(error.contains(&expected) && error.contains("offers only cpu"), "{error}");
    Ok(())
}
