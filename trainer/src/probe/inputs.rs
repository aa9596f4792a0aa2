//! Everything a run reads, and the states of all of it.

use std::collections::HashSet;

use forethought_core::{evidence::Verdict, store};

use super::{
    Progress,
    cache::Key,
    config::Config,
    error::{ProbeError, Result},
    reader::Reader,
    rows::DataFile,
    sets::Set,
};

/// What a run reads.
pub struct Inputs {
    /// The states.
    pub reader: Reader,
    /// What is fitted on: conversations of one window each.
    pub fit: Set,
    /// What thresholds are set on, where that is not `fit`.
    pub threshold: Option<Set>,
    /// What is scored.
    pub score: Vec<Set>,
}

impl Inputs {
    /// Opens the bundle, reads all rows, and their states where the cache lacks them.
    ///
    /// Of a conversation of several windows nobody knows which of them its label is about, so it is not fitted on; and
    /// what is fitted on is not scored.
    ///
    /// # Errors
    /// The bundle, a file or the cache can't be read, the model fails, or `fit` lacks a class.
    pub fn read(config: &Config, fetch: &dyn store::Progress, progress: Progress<'_>) -> Result<Self> {
        let cache = match &config.cache {
            Some(folder) => folder.clone(),
            None => store::Store::open_default()?.root().join("states"),
        };
        let mut reader = Reader::open(&config.bundle, config.layers.clone(), config.device, &cache, fetch)?;
        let mut all_readings = Vec::new();
        let mut load = |name: &str, files: &[DataFile]| -> Result<Set> {
            let (set, readings) = Set::load(&reader, name, files)?;
            all_readings.extend(readings);
            Ok(set)
        };
        let mut fit = load("fit", &config.fit)?;
        let mut threshold = match &config.threshold.benign[..] {
            [] => None,
            files => Some(load("threshold", files)?),
        };
        let mut score =
            config.score.iter().map(|set| load(&set.name, &set.files)).collect::<Result<Vec<_>>>()?;
        fit.retain(|example| example.windows.len() == 1);
        let fitted: HashSet<Key> = fit.windows();
        for set in threshold.iter_mut().chain(&mut score) {
            set.retain(|example| !example.windows.iter().any(|key| fitted.contains(key)));
        }
        if let Some(set) = &mut threshold {
            set.retain(|example| example.label == Verdict::Benign);
        }
        for (verdict, name) in [(Verdict::Harmful, "harmful"), (Verdict::Benign, "benign")] {
            let count = fit.examples.iter().filter(|e| e.label == verdict).count();
            if count < config.search.folds {
                return Err(ProbeError::Data(format!(
                    "`fit` holds {count} {name} rows: it needs {} at least",
                    config.search.folds
                )));
            }
        }
        reader.read(&all_readings.iter().collect::<Vec<_>>(), &mut |done, total| {
            progress("reading", done, total);
        })?;
        Ok(Self { reader, fit, threshold, score })
    }
}
