//! Rows that `forethought eval` has scored: what calibration is fitted to and `EVAL.md` is made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use forethought_core::evidence::{Path as ScorePath, PhaseEnd, Verdict};
use forethought_core::guard::Mode;
use serde::Deserialize;

use crate::error::{Result, TrainError};

/// The ways to a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the probes.
    Probe,
    /// The verdict with no phases.
    Direct,
    /// By probes and direct verdict, and by all signals where these are not clear.
    Cascade,
    /// The verdict after the phases.
    Reason,
}

impl Way {
    /// All.
    pub const ALL: [Self; 4] = [Self::Probe, Self::Direct, Self::Cascade, Self::Reason];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Direct => "direct",
            Self::Cascade => "cascade",
            Self::Reason => "reason",
        }
    }
}

/// A scored row; keys that are not needed here are left alone.
#[derive(Clone, Debug, Deserialize)]
pub struct Judged {
    /// The row's name in its data file.
    pub id: String,
    /// The data file's name.
    pub file: String,
    /// The truth.
    pub label: Verdict,
    score: Option<f64>,
    direct_score: Option<f64>,
    reason_score: Option<f64>,
    probe_score: Option<f64>,
    path: Option<ScorePath>,
    /// P(harmful) by each probe.
    #[serde(default)]
    pub probes: BTreeMap<String, f64>,
    /// The first phase's text.
    pub understanding: Option<String>,
    /// The second phase's text.
    pub assessment: Option<String>,
    /// How each phase ended.
    #[serde(default)]
    pub ends: Option<[PhaseEnd; 2]>,
    /// Tokens written.
    pub generated_tokens: Option<usize>,
    /// Milliseconds of work.
    pub ms: Option<f64>,
    /// Why there is no score.
    pub error: Option<String>,
}

impl Judged {
    /// P(harmful) by one way, where it was gone. The cascade's has a meaning only for rows of results in that mode: see
    /// [`Results::mode`].
    pub fn score(&self, way: Way) -> Option<f64> {
        let decided = |path: ScorePath| self.score.filter(|_| self.path == Some(path));
        match way {
            Way::Probe => self.probe_score,
            Way::Direct => self.direct_score.or_else(|| decided(ScorePath::Direct)),
            Way::Reason => self.reason_score.or_else(|| decided(ScorePath::Reason)),
            Way::Cascade => self.score,
        }
    }

    /// Whether both phases say something and the model ended them itself; `None` where it was not asked to write.
    pub fn is_whole(&self) -> Option<bool> {
        let (first, second) = (self.understanding.as_ref()?, self.assessment.as_ref()?);
        let written = !first.trim().is_empty() && !second.trim().is_empty();
        Some(written && self.ends.is_none_or(|ends| ends == [PhaseEnd::Complete; 2]))
    }
}

/// The guard that scored a file.
#[derive(Clone, Debug, Deserialize)]
pub struct Scorer {
    /// The bundle's name and version.
    pub bundle: String,
    /// The bundle's hash.
    pub bundle_sha256: String,
    /// Hashes of probes that are not the bundle's, by name.
    #[serde(default)]
    pub own_probes: BTreeMap<String, String>,
}

/// A results file.
#[derive(Clone, Debug)]
pub struct Results {
    /// Where it lies.
    pub path: PathBuf,
    /// What made it.
    pub guard: Scorer,
    /// How the guard was asked.
    pub mode: Mode,
    /// Its rows; those that failed are not among them.
    pub rows: Vec<Judged>,
    /// How many failed.
    pub failed: usize,
}

impl Results {
    /// Reads a results file and the description beside it.
    ///
    /// # Errors
    /// When one of the two can't be read, or a line is not a result.
    pub fn read(path: &Path) -> Result<Self> {
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| TrainError::File { path: path.to_owned(), source })
        };
        let wrong = |path: &Path, problem: String| TrainError::File {
            path: path.to_owned(),
            source: std::io::Error::other(problem),
        };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".meta.json");
        let beside = PathBuf::from(beside);
        #[derive(Deserialize)]
        struct Meta {
            guard: Scorer,
            mode: Mode,
        }
        let meta: Meta =
            serde_json::from_str(&read(&beside)?).map_err(|error| wrong(&beside, error.to_string()))?;
        let mut rows = Vec::new();
        for (number, line) in (1..).zip(read(path)?.split('\n')).filter(|(_, line)| !line.is_empty()) {
            let row: Judged =
                serde_json::from_str(line).map_err(|error| wrong(path, format!("line {number}: {error}")))?;
            rows.push(row);
        }
        let all = rows.len();
        rows.retain(|row| row.error.is_none());
        let failed = all - rows.len();
        Ok(Self { path: path.to_owned(), guard: meta.guard, mode: meta.mode, rows, failed })
    }
}
