//! The models that have a name: what each is, and where it comes from.

use std::{collections::BTreeMap, env::consts};

use serde::{Deserialize, Serialize};

use super::{Source, StoreError, error::similar};

/// The registry name used when nothing else is configured.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Names and their entries.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

/// What the registry knows about one model.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// One line for people.
    pub description: String,
    /// SPDX expression of the weights' licence.
    pub licence: String,
    /// Model architecture (`llama`, `qwen2`, `qwen3`), where it is a language model.
    #[serde(default)]
    pub architecture: Option<String>,
    /// Bytes of the file, where it is the same from every source.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its sha256 in lower-case hex, where it is the same from every source.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Where to get it, tried in order.
    pub sources: Vec<EntrySource>,
}

/// One source of an entry.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(from = "Written")]
pub struct EntrySource {
    /// The source.
    pub from: Source,
    /// Only on this platform, such as `linux-x86_64`; anywhere if absent.
    pub platform: Option<String>,
    /// Bytes, where they differ from the entry's.
    pub size: Option<u64>,
    /// sha256, where it differs from the entry's.
    pub sha256: Option<String>,
}

/// A source as the file has it: a bare spec or a table.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Written {
    Spec(Source),
    Table { from: Source, platform: Option<String>, size: Option<u64>, sha256: Option<String> },
}

impl From<Written> for EntrySource {
    fn from(written: Written) -> Self {
        match written {
            Written::Spec(from) => EntrySource { from, platform: None, size: None, sha256: None },
            Written::Table { from, platform, size, sha256 } => EntrySource { from, platform, size, sha256 },
        }
    }
}

/// This machine, as registry files write it: `linux-x86_64`, `macos-aarch64`, `windows-x86_64`.
pub fn platform() -> String {
    format!("{}-{}", consts::OS, consts::ARCH)
}

impl Registry {
    /// The registry that comes with this crate.
    pub fn builtin() -> Result<Self, StoreError> {
        Self::from_toml(include_str!("registry.toml"))
    }

    /// Reads a registry: a table per name, see `registry.toml`.
    pub fn from_toml(text: &str) -> Result<Self, StoreError> {
        let wrong = |detail: String| StoreError::Registry { detail };
        let registry: Registry = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        for (name, entry) in &registry.entries {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
            if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(is_name) {
                return Err(wrong(format!(
                    "`{name}`: a name is lower-case letters, digits, `-`, `.` and `_`"
                )));
            }
            if entry.sources.is_empty() {
                return Err(wrong(format!("`{name}` has no sources")));
            }
            let hashes = entry.sources.iter().map(|source| &source.sha256).chain([&entry.sha256]).flatten();
            for hash in hashes {
                if hash.len() != 64 || !hash.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
                    return Err(wrong(format!("`{name}`: `{hash}` is no sha256 in lower-case hex")));
                }
            }
        }
        Ok(registry)
    }

    /// Names and entries in alphabetical order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The error for a name that is not here.
    pub(super) fn unknown(&self, name: &str) -> StoreError {
        StoreError::UnknownName {
            name: name.to_owned(),
            similar: similar(name, self.entries.keys()),
            known: self.entries.keys().cloned().collect(),
        }
    }
}

impl Entry {
    /// The sources that serve this machine, the entry's own size and sha256 filled in.
    pub(super) fn sources_here(&self) -> Vec<EntrySource> {
        let here = platform();
        let serves =
            |source: &&EntrySource| source.platform.as_ref().is_none_or(|platform| *platform == here);
        let filled = |source: &EntrySource| EntrySource {
            size: source.size.or(self.size),
            sha256: source.sha256.clone().or_else(|| self.sha256.clone()),
            ..source.clone()
        };
        self.sources.iter().filter(serves).map(filled).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_registry_holds_the_default() {
        let registry = Registry::builtin().unwrap();
        let sources = registry.get(DEFAULT_MODEL).unwrap().sources_here();
        assert!(matches!(sources[0].from, Source::Pip(_)) && matches!(sources[1].from, Source::Hub(_)));
        assert!(sources.iter().all(|source| source.sha256.is_some() && source.size == Some(98_362_432)));
    }

    #[test]
    fn nothing_is_fetched_on_trust() {
        let registry = Registry::builtin().unwrap();
        for (name, entry) in registry.entries() {
            for source in &entry.sources {
                let pinned = |own: bool, all: bool| assert!(own || all, "{name}: {}", source.from);
                pinned(source.sha256.is_some(), entry.sha256.is_some());
                pinned(source.size.is_some(), entry.size.is_some());
            }
        }
    }

    #[test]
    fn sources_of_other_platforms_are_left_out() {
        let text = format!(
            "[lib]\ndescription = ''\nlicence = 'MIT'\nsources = [\n\
             {{ from = 'pip:a==1#x/lib.so', platform = '{}', size = 7 }},\n\
             {{ from = 'pip:a==1#x/lib.dll', platform = 'plan9-mips' }},\n]",
            platform()
        );
        let registry = Registry::from_toml(&text).unwrap();
        let sources = registry.get("lib").unwrap().sources_here();
        assert_eq!(sources.len(), 1);
        assert_eq!((sources[0].from.to_string().as_str(), sources[0].size), ("pip:a==1#x/lib.so", Some(7)));
    }

    #[test]
    fn faults_are_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = Registry::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let entry = "description = ''\nlicence = 'MIT'\n";
        check(&format!("[a]\n{entry}sources = []"), "`a` has no sources");
        check(&format!("['../a']\n{entry}sources = ['pip:a==1#m']"), "a name is");
        check(&format!("[a]\n{entry}sources = ['pip:a==1#m']\nsha256 = 'AB'"), "no sha256");
        check(&format!("[a]\n{entry}sources = ['pip:a==1#m']\ncolour = 1"), "colour");
        check(&format!("[a]\n{entry}sources = [{{ from = 'pip:a==1#m', platfrom = 'x' }}]"), "sources");
    }
}
