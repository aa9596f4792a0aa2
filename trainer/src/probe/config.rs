//! A run's settings: one TOML file, whose every value the environment and flags can override.
//!
//! Layers, lowest first: defaults, the file, `FORETHOUGHT_TRAINER__SECTION__KEY` variables, and `--set
//! section.key=value`. Data files are relative to the file's folder.

use std::path::{Path, PathBuf};

use forethought_core::{model::DeviceChoice, probe::Position};
use serde::{Deserialize, Serialize};

use super::{
    error::{ProbeError, Result},
    rows::DataFile,
};
use crate::config::layers;

/// Everything that a run of `probe` is told.
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
    /// Rows that neither the fit nor the adapter's training has seen; what is held out of `fit` is added to them. Probes
    /// are chosen, calibrated and given thresholds by them. Without any that is done by cross-validation on `fit`, which
    /// is right for an untuned model only: a tuned one's states tell the labels that it has learnt.
    #[serde(default)]
    pub unseen: Vec<DataFile>,
    /// What is scored and serves for nothing else.
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
            c: vec![1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
            probes: 3,
            hidden: 16,
            hidden_c: vec![1e-3, 1e-2, 1e-1, 1.0],
        }
    }
}

/// How thresholds are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Threshold {
    /// Share of the benign rows that a probe may call harmful.
    pub target_fpr: f64,
    /// The rows it is set on, of which only the benign ones count; by default those that probes are chosen by.
    pub benign: Vec<DataFile>,
}

impl Default for Threshold {
    fn default() -> Self {
        Self { target_fpr: 0.02, benign: Vec::new() }
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
    /// Reads all layers; `set` holds `key=value` pairs of flags.
    ///
    /// # Errors
    /// The file can't be read or understood, or a setting has no meaning; the message names it.
    pub fn read(path: &Path, set: &[String]) -> Result<Self> {
        let mut config: Self = layers(path, set)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for file in config.files() {
            file.path = folder.join(&file.path);
        }
        config.check()?;
        Ok(config)
    }

    fn files(&mut self) -> impl Iterator<Item = &mut DataFile> {
        let scored = self.score.iter_mut().flat_map(|set| &mut set.files);
        self.fit.iter_mut().chain(&mut self.unseen).chain(&mut self.threshold.benign).chain(scored)
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
        if self.fit.iter().any(|file| file.hold_out.is_some_and(|every| every < 2)) {
            return Err(ProbeError::setting("fit.hold_out", "must be at least 2"));
        }
        let others =
            self.unseen.iter().chain(&threshold.benign).chain(self.score.iter().flat_map(|s| &s.files));
        if others.into_iter().any(|file| file.hold_out.is_some()) {
            return Err(ProbeError::setting("hold_out", "is for the files of `fit` only"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "bundle = 'default'\nout = 'out'\n[[fit]]\npath = 'a.jsonl'\n";

    fn read(text: &str, set: &[&str]) -> std::result::Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.toml");
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|&pair| pair.to_owned()).collect();
        Config::read(&path, &set).map_err(|error| error.to_string())
    }

    #[test]
    fn little_is_needed_and_flags_win() {
        let config = read(LEAST, &["threshold.target_fpr=0.01", "search.probes=2"]).unwrap();
        assert_eq!((config.threads, config.positions.len(), config.search.folds), (2, 3, 5));
        assert_eq!((config.threshold.target_fpr, config.search.probes), (0.01, 2));
        assert!(config.fit[0].path.is_absolute() && config.fit[0].path.ends_with("a.jsonl"));
    }

    #[test]
    fn mistakes_are_named() {
        fn check(more: &str, expected: &str) {
            let error = read(&format!("{more}\n{LEAST}"), &[]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check("thread = 1", "thread");
        check("threads = [", "TOML parse error at line");
        check("threads = 0", "`threads`: must be at least 1");
        check("positions = ['first']", "first");
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
        check("unseen = [{ path = 'b', hold_out = 10 }]", "`hold_out`");
    }
}
