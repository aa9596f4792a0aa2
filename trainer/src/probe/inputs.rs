//! Everything a run reads, and the states of all of it.

use std::collections::HashSet;

use forethought_core::{evidence::Verdict, store};

use super::{
    Progress,
    cache::Key,
    config::Config,
    error::{ProbeError, Result},
    reader::{Reader, Reading},
    rows::DataFile,
    sets::Set,
};

/// What a run reads.
pub struct Inputs {
    /// The states.
    pub reader: Reader,
    /// What is fitted on: conversations of one window each.
    pub fit: Set,
    /// What probes are chosen and calibrated by, if that is not `fit`.
    pub unseen: Option<Set>,
    /// What thresholds are set on, if that is neither.
    pub threshold: Option<Set>,
    /// What is scored: the parts of `unseen`, then what serves for nothing else.
    pub score: Vec<Set>,
    /// How many of `score` are parts of `unseen`.
    pub parts: usize,
}

impl Inputs {
    /// Opens the bundle, reads all rows, and their states where the cache lacks them.
    ///
    /// Of a conversation of several windows nobody knows which of them its label is about, so it is not fitted on; and
    /// what is fitted on is not scored.
    ///
    /// # Errors
    /// The bundle, a file or the cache can't be read, the model fails, or a class is missing.
    pub fn read(config: &Config, fetch: &dyn store::Progress, progress: Progress<'_>) -> Result<Self> {
        let cache = match &config.cache {
            Some(folder) => folder.clone(),
            None => store::Store::open_default()?.root().join("states"),
        };
        let mut reader = Reader::open(&config.bundle, config.layers.clone(), config.device, &cache, fetch)?;
        let mut readings: Vec<Reading> = Vec::new();
        let mut load = |name: &str, files: &[DataFile]| -> Result<Set> {
            let mut set = Set::named(name);
            for file in files {
                readings.extend(set.add(&reader, file, file.read()?.0)?);
            }
            Ok(set)
        };
        let mut fit = load("fit", &config.fit)?;
        let mut score = Vec::new();
        for file in &config.unseen {
            score.push(load(&file.stem(), std::slice::from_ref(file))?);
        }
        let scored =
            config.score.iter().map(|set| load(&set.name, &set.files)).collect::<Result<Vec<_>>>()?;
        let mut threshold = match &config.threshold.benign[..] {
            [] => None,
            files => Some(load("threshold", files)?),
        };
        for file in config.fit.iter().filter(|file| file.hold_out.is_some()) {
            let mut set = Set::named(&format!("{} held out", file.stem()));
            readings.extend(set.add(&reader, file, file.read()?.1)?);
            score.push(set);
        }
        let parts = score.len();
        score.extend(scored);

        fit.retain(|example| example.windows.len() == 1);
        let fitted: HashSet<Key> = fit.windows();
        for set in threshold.iter_mut().chain(&mut score) {
            set.retain(|example| !example.windows.iter().any(|key| fitted.contains(key)));
        }
        let unseen = (parts > 0).then(|| {
            let mut unseen = Set::named("unseen");
            score[..parts].iter().for_each(|part| unseen.extend(part));
            unseen
        });
        check(&fit, config.search.folds)?;
        if let Some(unseen) = &unseen {
            check(unseen, config.search.folds)?;
        }
        reader.read(&readings.iter().collect::<Vec<_>>(), &mut |done, total| {
            progress("reading", done, total);
        })?;
        Ok(Self { reader, fit, unseen, threshold, score, parts })
    }
}

/// Fails where a set has fewer rows of a class than `least`.
fn check(set: &Set, least: usize) -> Result<()> {
    for verdict in [Verdict::Harmful, Verdict::Benign] {
        let count = set.examples.iter().filter(|e| e.label == verdict).count();
        if count < least {
            let name = &set.name;
            return Err(ProbeError::Data(format!(
                "`{name}` holds {count} {verdict} rows: it needs {least} at least"
            )));
        }
    }
    Ok(())
}
