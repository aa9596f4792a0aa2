//! A run's settings, from one TOML file.

use std::path::{Path, PathBuf};

use forethought_core::{model::DeviceChoice, probe::Position};
use serde::{Deserialize, Serialize};

use super::{
    error::{ProbeError, Result},
    rows::DataFile,
};

/// Settings of `forethought-trainer probe`. Paths are relative to the folder that the command is started in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The guard bundle whose model is probed: a folder, or `default`.
    pub bundle: String,
    /// Folder for the probes and their report.
    pub out: PathBuf,
    /// Folder for the states; by default in the model store's.
    pub cache: Option<PathBuf>,
    /// Where the model runs.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Seed of everything that is drawn.
    #[serde(default)]
    pub seed: u64,
    /// Threads to use.
    #[serde(default = "two")]
    pub threads: usize,
    /// Layers to look at (0 is the embedding, `k` the state after block `k`); all of them by default.
    pub layers: Option<Vec<usize>>,
    /// Positions to look at.
    #[serde(default = "all_positions")]
    pub positions: Vec<Position>,
    /// What to try.
    #[serde(default)]
    pub search: Search,
    /// Where a probe begins to say harmful.
    #[serde(default)]
    pub threshold: Threshold,
    /// How many examples a probe needs, if that is wanted.
    pub learning_curve: Option<Curve>,
    /// What is fitted on.
    pub fit: Vec<DataFile>,
    /// What is scored and never fitted on.
    #[serde(default)]
    pub score: Vec<ScoreSet>,
}

/// What is tried, by cross-validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Folds of the cross-validation.
    pub folds: usize,
    /// Neighbouring rows that stay in one fold.
    pub block: usize,
    /// Rows at either side of a tested block that are left out of the fit.
    pub gap: usize,
    /// Inverse strengths of the L2 penalty to try, as scikit-learn counts them.
    pub c: Vec<f64>,
    /// How many probes to write.
    pub probes: usize,
    /// Width of the small network's hidden layer; 0 for none.
    pub hidden: usize,
    /// Inverse strengths of its penalty to try.
    pub hidden_c: Vec<f64>,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            folds: 5,
            block: 20,
            gap: 2,
            c: vec![1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
            probes: 3,
            hidden: 16,
            hidden_c: vec![1e-3, 1e-2, 1e-1],
        }
    }
}

/// How thresholds are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Threshold {
    /// Share of the benign rows that a probe may call harmful.
    pub target_fpr: f64,
    /// The rows it is set on; only benign ones count. Without any it is set on the benign rows of `fit`, each scored by a
    /// fit that has not seen it.
    pub benign: Vec<DataFile>,
    /// Of those rows of `fit`, only these styles.
    pub styles: Option<Vec<String>>,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { target_fpr: 0.02, benign: Vec::new(), styles: None }
    }
}

/// A learning curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Curve {
    /// Numbers of examples; all of them are always tried too.
    pub sizes: Vec<usize>,
    /// Draws of each number.
    pub draws: usize,
    /// Neighbouring rows that are drawn together.
    pub block: usize,
}

impl Default for Curve {
    fn default() -> Self {
        Self { sizes: vec![50, 100, 200, 500], draws: 5, block: 10 }
    }
}

/// Rows that are scored together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreSet {
    /// Its name in the report.
    pub name: String,
    /// Its rows.
    pub files: Vec<DataFile>,
}

fn two() -> usize {
    2
}

fn all_positions() -> Vec<Position> {
    Position::ALL.to_vec()
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It can't be read or understood, or a setting has no meaning; the message names it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(ProbeError::file(path))?;
        let invalid = |problem: String| ProbeError::Config { path: path.to_owned(), problem };
        let config: Self = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        config.check().map_err(|e| invalid(e.to_string()))?;
        Ok(config)
    }

    /// Fails on the first setting that has no meaning.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<()> {
        let Self { search, threshold, learning_curve, .. } = self;
        let positive =
            |values: &[f64]| !values.is_empty() && values.iter().all(|&v| v > 0.0 && v.is_finite());
        let at_least = |setting: &str, value: usize, least: usize| match value >= least {
            true => Ok(()),
            false => Err(ProbeError::setting(setting, format!("must be at least {least}"))),
        };
        at_least("threads", self.threads, 1)?;
        at_least("fit", self.fit.len(), 1)?;
        at_least("positions", self.positions.len(), 1)?;
        at_least("search.folds", search.folds, 2)?;
        at_least("search.block", search.block, 1)?;
        at_least("search.probes", search.probes, 1)?;
        if !positive(&search.c) {
            return Err(ProbeError::setting("search.c", "must be numbers above zero"));
        }
        if search.hidden > 0 && !positive(&search.hidden_c) {
            return Err(ProbeError::setting("search.hidden_c", "must be numbers above zero"));
        }
        if !(threshold.target_fpr > 0.0 && threshold.target_fpr < 1.0) {
            return Err(ProbeError::setting("threshold.target_fpr", "must be between 0 and 1"));
        }
        if let Some(curve) = learning_curve {
            at_least("learning_curve.draws", curve.draws, 1)?;
            at_least("learning_curve.block", curve.block, 1)?;
            let least = curve.sizes.iter().copied().min().unwrap_or(usize::MAX);
            at_least("learning_curve.sizes", least, 2 * curve.block)?;
        }
        for (i, set) in self.score.iter().enumerate() {
            at_least(&format!("score[{i}].files"), set.files.len(), 1)?;
            if self.score[..i].iter().any(|other| other.name == set.name) {
                return Err(ProbeError::setting(format!("score[{i}].name"), "is there twice"));
            }
        }
        let files = self.fit.iter().chain(&threshold.benign).chain(self.score.iter().flat_map(|s| &s.files));
        if files.flat_map(|f| f.skip_every.iter().chain(&f.take_every)).any(|&n| n == 0) {
            return Err(ProbeError::setting("skip_every, take_every", "must be at least 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "bundle = 'default'\nout = 'out'\n[[fit]]\npath = 'a.jsonl'\n";

    #[test]
    fn little_is_needed() {
        let config: Config = toml::from_str(LEAST).unwrap();
        config.check().unwrap();
        assert_eq!((config.threads, config.positions.len(), config.search.folds), (2, 3, 5));
    }

    #[test]
    fn mistakes_are_named() {
        fn check(more: &str, expected: &str) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("{more}\n{LEAST}")).unwrap();
            let error = Config::read(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check("thread = 1", "unknown field `thread`");
        check("threads = 0", "`threads`: must be at least 1");
        check("positions = ['first']", "positions");
        check("search = { c = [0.0] }", "`search.c`");
        check("search = { folds = 1 }", "`search.folds`");
        check("threshold = { target_fpr = 1.0 }", "`threshold.target_fpr`");
        check("learning_curve = { sizes = [10] }", "`learning_curve.sizes`");
        check("score = [{ name = 's', files = [] }]", "`score[0].files`");
        let file = "files = [{ path = 'b' }]";
        check(
            &format!("score = [{{ name = 's', {file} }}, {{ name = 's', {file} }}]"),
            "`score[1].name`: is there twice",
        );
        check("score = [{ name = 's', files = [{ path = 'b', take_every = 0 }] }]", "take_every");
    }
}
