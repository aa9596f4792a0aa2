//! Scores of a state on labelled rows, by the trainer's own forward pass: the loss in both forms and the direct verdict.
//! The reasoned verdict takes the guard itself, which writes; `eval` scores it after a run.

use std::collections::BTreeMap;

use forethought_core::evidence::Verdict;
use forethought_core::guard::prompt::Prompt;
use forethought_core::metrics::Scored;
use serde::{Deserialize, Serialize};

use crate::config::Select;
use crate::data::Example;
use crate::engine::Engine;
use crate::error::Result;
use crate::source::ScoredSet;

/// All sets' scores at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps taken before.
    pub step: usize,
    /// Name of the set that decides which state is best.
    pub first: String,
    /// Scores by the sets' names.
    pub sets: BTreeMap<String, SetScores>,
}

/// One set's scores; those of the direct verdict are at even odds, uncalibrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetScores {
    /// Rows scored.
    pub rows: usize,
    /// Weighted mean of the negative log-likelihoods, as in training.
    pub loss: f64,
    /// Share of right verdicts.
    pub accuracy: Option<f64>,
    /// Share of the harmful that is found.
    pub recall: Option<f64>,
    /// Share of the benign that is held to be harmful.
    pub false_positive_rate: Option<f64>,
    /// Area under the ROC curve; absent where one label is missing.
    pub auroc: Option<f64>,
}

impl Evaluation {
    /// Whether this state is better than `other`.
    pub fn beats(&self, other: Option<&Self>, select: Select) -> bool {
        let value = |evaluation: &Self| {
            let scores = evaluation.sets.get(&evaluation.first).copied().unwrap_or_default();
            match (select, scores.auroc) {
                (Select::Auroc, Some(auroc)) => auroc,
                _ => -scores.loss,
            }
        };
        other.is_none_or(|other| value(self) > value(other))
    }
}

/// Scores adapter `values` on every set.
///
/// # Errors
/// When a row does not fit the model, or a score is not a number.
pub fn evaluate(
    engine: &mut Engine,
    values: &[f32],
    sets: &[ScoredSet],
    prompt: &Prompt,
    step: usize,
) -> Result<Evaluation> {
    let mut scores = BTreeMap::new();
    for set in sets {
        let margins = margins(engine, values, set, prompt)?;
        let labels = set.judged().map(|row| row.label);
        let labelled = margins.into_iter().zip(labels);
        let scored = Scored::new(labelled)?;
        let confusion = scored.confusion(0.0);
        let examples: Vec<&Example> = set.rows.iter().flat_map(|row| &row.examples).collect();
        let set_scores = SetScores {
            rows: set.rows.len(),
            loss: engine.loss(values, &examples)?.loss,
            accuracy: confusion.accuracy(),
            recall: confusion.recall(),
            false_positive_rate: confusion.false_positive_rate(),
            auroc: scored.auroc(),
        };
        scores.insert(set.name.clone(), set_scores);
    }
    let first = sets.first().map(|set| set.name.clone()).unwrap_or_default();
    Ok(Evaluation { step, first, sets: scores })
}

/// The harmful label's log-probability minus the benign one's, for the direct verdict of each
/// row that has one.
///
/// # Errors
/// When a row does not fit the model.
pub fn margins(engine: &mut Engine, values: &[f32], set: &ScoredSet, prompt: &Prompt) -> Result<Vec<f64>> {
    let labels = [Verdict::Harmful, Verdict::Benign].map(|label| first_token(prompt, label));
    let prompts: Vec<&[u32]> = set.judged().map(|row| row.prompt.as_slice()).collect();
    let rows = engine.log_probabilities(values, &prompts, &labels)?;
    Ok(rows.iter().map(|row| f64::from(row[0]) - f64::from(row[1])).collect())
}

/// The guard compares the labels' first tokens, which differ.
fn first_token(prompt: &Prompt, label: Verdict) -> u32 {
    let ids = match label {
        Verdict::Harmful => &prompt.harmful,
        Verdict::Benign => &prompt.benign,
    };
    ids.first().copied().unwrap_or_default()
}
