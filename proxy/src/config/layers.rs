//! Layers of configuration, and where each value came from.

use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use directories::ProjectDirs;
use serde_json::Value as Json;

use super::{CheckedConfig, Origins, Problem, Problems, Raw, check};

const PREFIX: &str = "FORETHOUGHT__";
const FILE: &str = "forethought.toml";
const DEFAULT: &str = "default";

/// The layers above the defaults, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables; those that don't start with `FORETHOUGHT__` are skipped.
    pub environment: Vec<(String, String)>,
    /// Command-line flags.
    pub flags: Vec<Flag>,
}

/// A value given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag as the user knows it, such as `--listen`.
    pub name: String,
    /// The key it sets, such as `listen`.
    pub key: String,
    /// The value.
    pub value: String,
}

impl Sources {
    /// This process's layers: `file`, else `forethought.toml` in the working folder or in the platform's configuration
    /// folder; the process's environment; and `flags`.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let usual = || {
            let platform = ProjectDirs::from("", "", "forethought").map(|dirs| dirs.config_dir().join(FILE));
            [Some(PathBuf::from(FILE)), platform].into_iter().flatten().find(|path| path.exists())
        };
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect();
        Self { file: file.or_else(usual), environment, flags }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key's path.
    pub key: String,
    /// The value; `Null` where it is not set.
    pub value: Json,
    /// Where it came from.
    pub origin: String,
}

/// All layers as one, with the mistakes that were seen on the way.
#[derive(Clone, Debug)]
pub struct Merged {
    raw: Raw,
    origins: Origins,
    problems: Vec<Problem>,
}

impl Merged {
    /// Reads all layers. A value that doesn't fit its key is noted as a problem and left at its default, so that the
    /// others can still be checked.
    pub fn read(sources: &Sources) -> Self {
        let mut merged = Self { raw: Raw::default(), origins: Origins::new(), problems: vec![] };
        let mut builder = Config::builder();
        if let Some(path) = &sources.file {
            match read_file(path) {
                Ok(layer) => builder = builder.add_source(layer),
                Err(message) => merged.note("", &path.display().to_string(), message),
            }
        }
        let tree = builder.add_source(Text::environment(sources)).add_source(Text::flags(sources)).build();
        // Collected, not deserialised: that would lose the origins.
        match tree.and_then(|tree| tree.collect()) {
            Ok(tree) => merged.take(table(tree, None)),
            Err(error) => merged.note("", "configuration", message(&error)),
        }
        merged
    }

    /// The configuration, if it has no mistakes.
    ///
    /// # Errors
    /// Every mistake there is.
    pub fn check(self) -> Result<CheckedConfig, Problems> {
        check::check(&self.raw, &self.origins, self.problems)
    }

    /// The values as written.
    pub fn raw(&self) -> &Raw {
        &self.raw
    }

    /// Every key's value and origin, in the order of [`Raw`].
    pub fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        each_leaf(&json(&self.raw), String::new(), &mut |key, value| {
            let origin = self.origins.get(key).map_or(DEFAULT, String::as_str).to_owned();
            settings.push(Setting { key: key.to_owned(), value: value.clone(), origin });
        });
        settings
    }

    fn note(&mut self, key: &str, origin: &str, message: String) {
        self.problems.push(Problem { key: key.to_owned(), origin: origin.to_owned(), message });
    }

    /// Sorts the tree's values into known and unknown ones, and tries each known one on its own.
    fn take(&mut self, tree: Value) {
        let defaults = json(&Raw::default());
        let mut good = Map::new();
        self.walk(&defaults, tree, &mut Vec::new(), &mut good);
        match table(good, None).try_deserialize() {
            Ok(raw) => self.raw = raw,
            Err(error) => self.note("", "configuration", message(&error)),
        }
    }

    fn walk(&mut self, known: &Json, value: Value, path: &mut Vec<String>, good: &mut Map<String, Value>) {
        let origin = origin(&value);
        match (known, value.kind) {
            (Json::Object(keys), ValueKind::Table(entries)) => {
                let free = keys.is_empty() && !path.is_empty(); // a map with keys of its own, such as `policy.hazards`
                let mut entries: Vec<_> = entries.into_iter().collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                for (name, value) in entries {
                    path.push(name);
                    match keys.get(path.last().map_or("", String::as_str)) {
                        Some(known) => self.walk(known, value, path, good),
                        None if free => self.walk(&Json::Null, value, path, good),
                        None => self.note(&path.join("."), &self::origin(&value), unknown(path)),
                    }
                    path.pop();
                }
            }
            (Json::Object(_), _) => {
                self.note(&path.join("."), &origin, "is a section, not a value".to_owned())
            }
            (_, kind) => {
                let value = Value::new(Some(&origin), kind);
                let mut alone = Map::new();
                insert(&mut alone, path, value.clone());
                match serde_path_to_error::deserialize::<_, Raw>(table(alone, None)) {
                    Ok(_) => {
                        insert(good, path, value);
                        self.origins.insert(path.join("."), origin);
                    }
                    Err(error) => {
                        // Inside a list or a table of its own, the path says where.
                        let within = error.path().to_string();
                        let key = if within.len() > path.join(".").len() { within } else { path.join(".") };
                        let message = choices(path, &value).unwrap_or_else(|| message(error.inner()));
                        self.note(&key, &origin, message);
                    }
                }
            }
        }
    }
}

/// A layer of plain strings: the environment, or flags. Each key's own type says how its string is read.
#[derive(Clone, Debug)]
struct Text(Vec<(Vec<String>, Value)>);

impl Text {
    fn environment(sources: &Sources) -> Self {
        let entry = |(name, value): &(String, String)| {
            let key = name.strip_prefix(PREFIX)?.to_lowercase();
            Some(Self::entry(key.split("__"), value, &format!("environment variable {name}")))
        };
        Self(sources.environment.iter().filter_map(entry).collect())
    }

    fn flags(sources: &Sources) -> Self {
        let entry =
            |flag: &Flag| Self::entry(flag.key.split('.'), &flag.value, &format!("flag {}", flag.name));
        Self(sources.flags.iter().map(entry).collect())
    }

    fn entry<'a>(path: impl Iterator<Item = &'a str>, value: &str, origin: &str) -> (Vec<String>, Value) {
        let value = Value::new(Some(&origin.to_owned()), ValueKind::String(value.to_owned()));
        (path.map(str::to_owned).collect(), value)
    }
}

impl Source for Text {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let mut map = Map::new();
        for (path, value) in &self.0 {
            insert(&mut map, path, value.clone());
        }
        Ok(map)
    }
}

fn read_file(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("can't read this file: {error}"))?;
    // Parsed once more by `config` below; this parse is for its error, which shows line and column.
    text.parse::<toml::Table>().map_err(|error| format!("is not TOML: {error}"))?;
    let file = File::from(path).format(FileFormat::Toml);
    Config::builder().add_source(file).build().map_err(|error| message(&error))
}

/// Puts `value` at `path`, making tables on the way.
fn insert(map: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            map.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let entry = map.entry(key.clone()).or_insert_with(|| table(Map::new(), value.origin()));
            if !matches!(entry.kind, ValueKind::Table(_)) {
                *entry = table(Map::new(), value.origin());
            }
            if let ValueKind::Table(inner) = &mut entry.kind {
                insert(inner, rest, value);
            }
        }
    }
}

fn table(map: Map<String, Value>, origin: Option<&str>) -> Value {
    Value::new(origin.map(str::to_owned).as_ref(), ValueKind::Table(map))
}

/// Where a value came from; for a table, where its first value did.
fn origin(value: &Value) -> String {
    match (value.origin(), &value.kind) {
        (Some(origin), _) => origin.to_owned(),
        (None, ValueKind::Table(entries)) => entries.values().next().map_or_else(|| FILE.to_owned(), origin),
        (None, _) => DEFAULT.to_owned(),
    }
}

/// `config`'s errors without the key and origin that [`Problem`] shows itself.
fn message(error: &ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => message(error),
        ConfigError::Type { unexpected, expected, .. } => format!("expected {expected}, found {unexpected}"),
        other => other.to_string(),
    }
}

/// The words to choose from, where `value` is none of them; `config`'s own error doesn't tell.
fn choices(path: &[String], value: &Value) -> Option<String> {
    let ValueKind::String(text) = &value.kind else { return None };
    let wrap = |inner: Json, key: &String| Json::Object([(key.clone(), inner)].into_iter().collect());
    let alone = path.iter().rev().fold(Json::from(text.as_str()), wrap);
    let error = serde_json::from_value::<Raw>(alone).err()?.to_string();
    error.starts_with("unknown variant").then_some(error)
}

fn unknown(path: &[String]) -> String {
    let name = path.last().map_or("", String::as_str);
    let full = path.join(".");
    let mut best: Option<(f64, String)> = None;
    each_leaf(&json(&Raw::default()), String::new(), &mut |key, _| {
        let sections = key.match_indices('.').map(|(end, _)| &key[..end]);
        for known in sections.chain([key]) {
            // A section can be misspelt, a key can be misspelt, or a right key can stand in the wrong section.
            let last = known.rsplit('.').next().unwrap_or(known);
            let likeness = strsim::jaro_winkler(&full, known).max(strsim::jaro_winkler(name, last) - 0.01);
            if likeness > 0.85 && best.as_ref().is_none_or(|(most, _)| likeness > *most) {
                best = Some((likeness, known.to_owned()));
            }
        }
    });
    match best {
        Some((_, key)) => format!("there is no such key; did you mean `{key}`?"),
        None => "there is no such key (`forethought config show` lists all)".to_owned(),
    }
}

fn json(raw: &Raw) -> Json {
    serde_json::to_value(raw).unwrap_or_default()
}

/// Calls `f` with each value that is not a section.
fn each_leaf(value: &Json, path: String, f: &mut impl FnMut(&str, &Json)) {
    match value {
        Json::Object(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                each_leaf(value, path, f);
            }
        }
        leaf => f(&path, leaf),
    }
}
