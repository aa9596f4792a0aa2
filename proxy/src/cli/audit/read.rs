//! Audit files, line by line.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Deserializer};

/// What is shown of a record, and all of it as it was written.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) id: String,
    #[serde(deserialize_with = "rfc3339")]
    pub(super) time: SystemTime,
    method: String,
    path: String,
    pub(super) decision: String,
    pub(super) model: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) route: Option<String>,
    by: Option<String>,
    pub(super) error: Option<String>,
    pub(super) score: Option<f64>,
    pub(super) hazard: Option<String>,
    pub(super) signal: Option<String>,
    status: Option<u16>,
    outcome: String,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    pub(super) timings: Times,
    #[serde(skip)]
    pub(super) raw: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Times {
    pub(super) guard_ms: Option<f64>,
    pub(super) upstream_ms: Option<f64>,
    pub(super) total_ms: Option<f64>,
}

fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

impl Entry {
    /// # Errors
    /// The line is no audit record.
    pub(super) fn parse(line: &str) -> serde_json::Result<Self> {
        Ok(Self { raw: line.to_owned(), ..serde_json::from_str(line)? })
    }
}

impl fmt::Display for Entry {
    /// A line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds(self.time);
        let status = self.status.map_or_else(|| "-".to_owned(), |status| status.to_string());
        write!(f, "{time} {} {:<15} {status} {} {}", self.id, self.decision, self.method, self.path)?;
        let mut say = |name: &str, value: Option<String>| match value {
            Some(value) => write!(f, " {name}={value}"),
            None => Ok(()),
        };
        say("score", self.score.map(|score| format!("{score:.3}")))?;
        say("hazard", self.hazard.clone())?;
        say("by", self.by.clone())?;
        say("error", self.error.clone())?;
        say("tenant", self.tenant.clone())?;
        say("model", self.model.clone())?;
        say("flags", (!self.flags.is_empty()).then(|| self.flags.join(",")))?;
        say("outcome", (self.outcome != "finished").then(|| self.outcome.clone()))?;
        say("guard_ms", self.timings.guard_ms.map(|ms| format!("{ms:.0}")))?;
        say("ms", self.timings.total_ms.map(|ms| format!("{ms:.0}")))
    }
}

/// The records of `files`, in order. Where the last line of a file was never finished, as after a crash, it is left out.
pub(super) fn entries(files: Vec<PathBuf>) -> impl Iterator<Item = Result<Entry>> {
    files.into_iter().flat_map(|path| {
        let lines = lines(&path).with_context(|| format!("can't read {}", path.display()));
        let (lines, failed) = match lines {
            Ok(lines) => (Some(lines), None),
            Err(error) => (None, Some(Err(error))),
        };
        let numbered = lines.into_iter().flatten().zip(1_usize..);
        let parsed = numbered.filter_map(move |(line, number)| {
            let at = || format!("{}, line {number}", path.display());
            let line = match line.with_context(at) {
                Ok(line) if line.trim().is_empty() => return None,
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            match Entry::parse(&line) {
                Err(error) if error.is_eof() => None,
                parsed => Some(parsed.with_context(|| format!("{}: no audit record", at()))),
            }
        });
        failed.into_iter().chain(parsed)
    })
}

pub(super) fn lines(path: &Path) -> io::Result<io::Lines<Box<dyn BufRead>>> {
    let file = File::open(path)?;
    let is_compressed = path.extension().is_some_and(|end| end == "gz");
    let reader: Box<dyn BufRead> = match is_compressed {
        true => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        false => Box::new(BufReader::new(file)),
    };
    Ok(reader.lines())
}
