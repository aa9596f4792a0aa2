//! The results file: one JSON line a row, written as rows finish, from which an interrupted run goes on.
//!
//! Beside `results.jsonl` lies `results.jsonl.meta.json`, which says what made the rows; it is also what a running
//! `eval` locks. Rows of another guard or mode are never mixed in. On resumption a cut last line, rows that failed, and
//! rows whose prompt or label has changed since are taken out and scored anew.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use forethought_core::{
    dataset::Row,
    evidence::{Evidence, GuardVersion, Hazard, Path as ScorePath, PhaseEnd, Verdict},
    guard::{GuardError, Mode},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What made the rows of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this layout.
    pub format: u32,
    /// How the guard was asked.
    pub mode: Mode,
    /// The guard.
    pub guard: GuardVersion,
    /// Settings that change what the guard finds, such as token caps.
    pub settings: Value,
}

impl Meta {
    /// A description in the present format.
    pub fn new(mode: Mode, guard: GuardVersion, settings: Value) -> Self {
        Self { format: 1, mode, guard, settings }
    }

    /// What differs, for people; `None` where rows of `self` and `other` may share a file.
    fn difference(&self, other: &Self) -> Option<String> {
        let mode = |meta: &Self| format!("mode {}", meta.mode.as_str());
        let guard = |meta: &Self| format!("guard {} ({:.12})", meta.guard.bundle, meta.guard.bundle_sha256);
        let base = |meta: &Self| format!("base {} ({:.12})", meta.guard.base_model, meta.guard.base_sha256);
        let all = |meta: &Self| format!("format {}, {}, {}", meta.format, meta.guard.template, meta.settings);
        let parts: [&dyn Fn(&Self) -> String; 4] = [&mode, &guard, &base, &all];
        let (mine, its) = parts.iter().map(|part| (part(self), part(other))).find(|(a, b)| a != b)?;
        Some(format!("it holds rows of {mine}, and this run is {its}"))
    }
}

/// One line of a results file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResultRow {
    /// The row's name in its data file.
    pub id: String,
    /// The data file's name, without folders.
    pub file: String,
    /// The set that the row comes from.
    pub source: Option<String>,
    /// The truth.
    pub label: Verdict,
    /// P(harmful); absent where the row failed.
    pub score: Option<f64>,
    /// The verdict at even odds.
    pub verdict: Option<Verdict>,
    /// The hazard that the guard names.
    pub category: Option<Hazard>,
    /// The first phase's text.
    pub understanding: Option<String>,
    /// The second phase's text.
    pub assessment: Option<String>,
    /// How each phase ended.
    pub ends: Option<[PhaseEnd; 2]>,
    /// P(harmful) asked for with no phases, where it was asked for too.
    pub direct_score: Option<f64>,
    /// P(harmful) by the verdict after the phases.
    pub reason_score: Option<f64>,
    /// P(harmful) by the probes together.
    pub probe_score: Option<f64>,
    /// P(harmful) by each probe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<String, f64>,
    /// Where the score comes from.
    pub path: Option<ScorePath>,
    /// Tokens read and written.
    pub tokens: Option<usize>,
    /// Tokens of them that the guard wrote.
    pub generated_tokens: Option<usize>,
    /// Tokens of the prompt that the guard did not read.
    pub unread_tokens: Option<usize>,
    /// Milliseconds of work, time in the queue left out.
    pub ms: Option<f64>,
    /// Why there is no score.
    pub error: Option<String>,
    /// Fingerprint of prompt and label: a row is only good for what it was made of.
    pub fingerprint: String,
}

impl ResultRow {
    /// The line for what the guard found.
    pub(super) fn new(file: &str, row: &Row, found: Result<Evidence, GuardError>) -> Self {
        let mut result = Self {
            id: row.id.clone(),
            file: file.to_owned(),
            source: row.source.clone(),
            label: row.label,
            score: None,
            verdict: None,
            category: None,
            understanding: None,
            assessment: None,
            ends: None,
            direct_score: None,
            reason_score: None,
            probe_score: None,
            probes: BTreeMap::new(),
            path: None,
            tokens: None,
            generated_tokens: None,
            unread_tokens: None,
            ms: None,
            error: None,
            fingerprint: fingerprint(row),
        };
        match found {
            Err(error) => result.error = Some(error.to_string()),
            Ok(evidence) if evidence.score.is_nan() => {
                result.error = Some("the guard's score is not a number".to_owned());
            }
            Ok(evidence) => {
                let timings = evidence.timings;
                result.score = Some(evidence.score);
                result.verdict = Some(evidence.verdict());
                result.direct_score = evidence.direct_score;
                result.probe_score = evidence.probe_score;
                result.probes = evidence.probes.into_iter().map(|p| (p.name, p.score)).collect();
                result.path = Some(evidence.path);
                result.tokens = Some(timings.prompt_tokens + timings.generated_tokens);
                result.generated_tokens = Some(timings.generated_tokens);
                result.unread_tokens = Some(evidence.coverage.tokens_unread());
                result.ms = Some(timings.total_ms - timings.queue_ms);
                result.category = evidence.hazard;
                if let Some(assessment) = evidence.assessment {
                    result.understanding = Some(assessment.understanding);
                    result.assessment = Some(assessment.assessment);
                    result.ends = Some(assessment.ends);
                    result.reason_score = Some(assessment.score);
                }
            }
        }
        result
    }
}

/// 16 hexadecimal digits that stand for a row's prompt and label.
pub(super) fn fingerprint(row: &Row) -> String {
    let mut hash = Sha256::new();
    hash.update(row.label.as_str());
    for (role, part) in row.conversation.parts() {
        hash.update(role.label());
        hash.update([0]);
        hash.update(part.text().unwrap_or_default());
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

/// What the metrics need of a scored row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scored {
    pub(super) score: f64,
    pub(super) label: Verdict,
    pub(super) ms: f64,
    pub(super) partly_read: bool,
    pub(super) reasoned: bool,
}

impl Scored {
    pub(super) fn of(row: &ResultRow) -> Option<Self> {
        let partly_read = row.unread_tokens.is_some_and(|n| n > 0);
        let (ms, reasoned) = (row.ms.unwrap_or_default(), row.assessment.is_some());
        Some(Self { score: row.score?, label: row.label, ms, partly_read, reasoned })
    }
}

/// File name and id.
pub(super) type Key = (String, String);

/// A results file that is open for more.
#[derive(Debug)]
pub(super) struct ResultsFile {
    path: PathBuf,
    file: File,
    /// Held open for its lock.
    _meta: File,
    /// Rows with a score, by this run or an earlier one.
    pub(super) done: HashMap<Key, Scored>,
    /// Rows that failed in this run.
    pub(super) failed: HashSet<Key>,
    /// Rows of earlier runs that were taken out, to be scored again.
    pub(super) again: usize,
}

impl ResultsFile {
    /// Opens `path` for rows made by `meta`, keeping what is there and still holds. `fingerprints` are those of the
    /// rows that this run wants; rows it does not want stay as they are.
    pub(super) fn open(
        path: &Path,
        meta: &Meta,
        fingerprints: &HashMap<Key, String>,
    ) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .with_context(|| format!("can't write to {}", path.display()))?;
        let is_new = file.metadata()?.len() == 0;
        let meta_file = open_meta(path, meta, is_new)?;
        let (done, dropped) = read_rows(path, &file, fingerprints)?;
        if !dropped.is_empty() {
            rewrite(path, &dropped).with_context(|| format!("can't rewrite {}", path.display()))?;
            file = OpenOptions::new().append(true).open(path)?;
        }
        let (failed, again) = (HashSet::new(), dropped.len());
        Ok(Self { path: path.to_owned(), file, _meta: meta_file, done, failed, again })
    }

    /// Adds a row. It is in the file when this returns.
    pub(super) fn append(&mut self, row: ResultRow) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&row)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| {
            format!("can't write to {} (the same command goes on from here)", self.path.display())
        })?;
        let scored = Scored::of(&row);
        let key = (row.file, row.id);
        match scored {
            Some(scored) => drop(self.done.insert(key, scored)),
            None => drop(self.failed.insert(key)),
        }
        Ok(())
    }
}

/// The rows of a results file.
pub(in crate::cli) fn read(path: &Path) -> anyhow::Result<Vec<ResultRow>> {
    let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let lines = (1..).zip(text.split('\n')).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| {
            let row = serde_json::from_str(line);
            row.map_err(|_| anyhow::anyhow!("{}:{number} is not a row of results", path.display()))
        })
        .collect()
}

/// Opens, locks, and writes or compares the sidecar.
fn open_meta(results: &Path, meta: &Meta, is_new: bool) -> anyhow::Result<File> {
    let path = with_suffix(results, ".meta.json");
    let shown = path.display();
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("can't write to {shown}"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{} is being written to by another run", results.display()),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("can't lock {shown}")),
    }
    if is_new {
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec_pretty(meta)?)?;
        return Ok(file);
    }
    const ELSE: &str = "give another --out, or delete both files to start over";
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let Ok(written) = serde_json::from_str::<Meta>(&text) else {
        bail!("{} can't be resumed: {shown} does not say what made its rows; {ELSE}", results.display());
    };
    if let Some(difference) = written.difference(meta) {
        bail!("{} can't be resumed: {difference}; {ELSE}", results.display());
    }
    file.rewind()?;
    Ok(file)
}

/// What is done, and the lines (counted from 0) that are to be taken out.
fn read_rows(
    path: &Path,
    file: &File,
    fingerprints: &HashMap<Key, String>,
) -> anyhow::Result<(HashMap<Key, Scored>, HashSet<usize>)> {
    let (mut done, mut dropped) = (HashMap::new(), HashSet::new());
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.pop_if(|b| *b == b'\n').is_none() {
            dropped.insert(number); // cut short; only the last line can be
            break;
        }
        let Ok(row) = serde_json::from_slice::<ResultRow>(&line) else {
            bail!("{}:{} is not a row of results", path.display(), number + 1);
        };
        let scored = Scored::of(&row);
        let key = (row.file, row.id);
        let Some(wanted) = fingerprints.get(&key) else { continue };
        match scored {
            Some(scored) if *wanted == row.fingerprint => {
                done.insert(key, scored);
            }
            _ => {
                dropped.insert(number);
            }
        }
    }
    Ok((done, dropped))
}

/// Puts the file in place anew, without the lines that are to go.
fn rewrite(path: &Path, dropped: &HashSet<usize>) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    let mut reader = BufReader::new(File::open(path)?);
    let mut writer = BufWriter::new(File::create(&temporary)?);
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if !dropped.contains(&number) {
            writer.write_all(&line)?;
        }
    }
    writer.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    fs::rename(&temporary, path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
