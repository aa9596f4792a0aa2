//! What a guard must not learn from a data set: repeats, leaks of the label, and what was measured to find them.
//!
//! A *problem* should be mended before training; the rest of a [`Report`] is for people to look at. Texts are left out of
//! it unless asked for: rows are named by file, line and id.

mod contrast;
mod flaws;
mod predictors;
mod repeats;
mod tokens;

use forethought_core::conversation::Conversation;
use forethought_core::dataset::{BadRow, Dataset, Row};
use serde::Serialize;

pub use self::contrast::{Contrast, Neighbours};
pub use self::flaws::{Finding, Flaw};
pub use self::predictors::{Counts, Group, LengthLeak, PredictiveWord};
pub use self::repeats::{Kind, Repeat};
pub use self::tokens::{Base, FormTokens, PartTokens, Tokens};
use super::text::normalise;
use crate::error::Result;

/// A file to check, or to check against.
pub struct Source {
    /// As given.
    pub path: String,
    /// Its rows.
    pub dataset: Dataset,
}

/// What counts as a problem.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jaccard similarity of character 5-grams from which on two prompts are near duplicates.
    pub near: f64,
    /// The most that a length may tell of the label: its AUROC, or one minus that.
    pub length_auroc: f64,
    /// The most tokens of a whole sequence.
    pub tokens: usize,
    /// How many words to list in each direction.
    pub words: usize,
    /// Whether the report holds texts.
    pub texts: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { near: 0.8, length_auroc: 0.7, tokens: 2048, words: 15, texts: false }
    }
}

/// Which text of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// What the user sends.
    Instruction,
    /// The first phase.
    Understanding,
    /// The second phase.
    Assessment,
}

impl Part {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Instruction, Self::Understanding, Self::Assessment];

    /// Its name in a data file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instruction => "instruction",
            Self::Understanding => "understanding",
            Self::Assessment => "assessment",
        }
    }

    /// Its text, if the row has it.
    fn of(self, row: &Row) -> Option<String> {
        match self {
            Self::Instruction => Some(prompt(&row.conversation)),
            Self::Understanding => row.understanding.clone(),
            Self::Assessment => row.assessment.clone(),
        }
    }
}

/// All readable text of a conversation, a part a line.
fn prompt(conversation: &Conversation) -> String {
    conversation.parts().filter_map(|(_, part)| part.text()).collect::<Vec<_>>().join("\n")
}

/// Where a row is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, as given.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The row's name.
    pub id: String,
    /// What is judged, where texts are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A line that is no row.
#[derive(Clone, Debug, Serialize)]
pub struct Bad {
    /// The file, as given.
    pub file: String,
    /// The line and what is wrong with it.
    #[serde(flatten)]
    pub row: BadRow,
}

/// Rows of a file.
#[derive(Clone, Debug, Serialize)]
pub struct FileCounts {
    /// The file, as given.
    pub file: String,
    /// Usable rows by label.
    #[serde(flatten)]
    pub rows: Counts,
    /// Rows with both phases.
    pub with_phases: usize,
    /// Lines that are no rows.
    pub bad: usize,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The files that were checked.
    pub files: Vec<FileCounts>,
    /// How many problems there are.
    pub problems: usize,
    /// Lines that are no rows. Problems.
    pub bad: Vec<Bad>,
    /// Prompts that are alike, inside and across the files. Problems.
    pub repeats: Vec<Repeat>,
    /// Prompts that are like one of the files checked against. Problems.
    pub contamination: Vec<Repeat>,
    /// Flaws of rows.
    pub findings: Vec<Finding>,
    /// Neighbouring rows about the same thing.
    pub contrast: Contrast,
    /// How far lengths alone tell the label.
    pub lengths: Vec<LengthLeak>,
    /// Words that tell the label.
    pub words: Vec<PredictiveWord>,
    /// Rows by style.
    pub styles: Vec<Group>,
    /// Rows by category.
    pub categories: Vec<Group>,
    /// Sizes in the base model's tokens.
    pub tokens: Option<Tokens>,
}

/// A row, and the file it comes from.
struct Item<'a> {
    file: &'a str,
    row: &'a Row,
    /// What is judged, normalised.
    normal: String,
}

impl<'a> Item<'a> {
    fn all(sources: &'a [Source]) -> Vec<Self> {
        let rows = sources.iter().flat_map(|source| {
            source.dataset.rows.iter().map(|row| {
                let normal = normalise(&prompt(&row.conversation));
                Self { file: &source.path, row, normal }
            })
        });
        rows.collect()
    }

    fn place(&self, limits: &Limits) -> Place {
        let text = limits.texts.then(|| prompt(&self.row.conversation));
        Place { file: self.file.to_owned(), line: self.row.line, id: self.row.id.clone(), text }
    }
}

/// Checks files, also for prompts that occur in `against`. Sizes in tokens are left out where there is no base.
///
/// # Errors
/// The tokenizer fails.
pub fn check(files: &[Source], against: &[Source], base: Option<&Base>, limits: &Limits) -> Result<Report> {
    let items = Item::all(files);
    let (repeats, contamination) = repeats::find(&items, &Item::all(against), limits);
    let mut findings: Vec<Finding> =
        files.iter().flat_map(|source| flaws::of_phases(source, limits)).collect();
    let tokens = base.map(|base| tokens::count(base, &items, limits, &mut findings)).transpose()?;
    findings.sort_by_key(|finding| finding.flaw);
    let lengths = predictors::lengths(&items, limits);
    let words = predictors::words(&items, limits);

    let bad: Vec<Bad> = files
        .iter()
        .flat_map(|source| {
            let named = |row: &BadRow| Bad { file: source.path.clone(), row: row.clone() };
            source.dataset.bad.iter().map(named)
        })
        .collect();
    let problems = bad.len()
        + repeats.len()
        + contamination.len()
        + findings.iter().filter(|finding| finding.flaw.is_problem()).count()
        + lengths.iter().filter(|leak| leak.is_problem).count()
        + words.iter().filter(|word| word.is_problem).count();
    Ok(Report {
        files: files.iter().map(counts).collect(),
        problems,
        bad,
        repeats,
        contamination,
        findings,
        contrast: contrast::find(&items, limits),
        lengths,
        words,
        styles: predictors::groups(&items, |row| row.style.as_deref()),
        categories: predictors::groups(&items, |row| row.category.as_deref()),
        tokens,
    })
}

fn counts(source: &Source) -> FileCounts {
    let rows = &source.dataset.rows;
    let both = |row: &&Row| row.understanding.is_some() && row.assessment.is_some();
    FileCounts {
        file: source.path.clone(),
        rows: rows.iter().map(|row| row.label).collect(),
        with_phases: rows.iter().filter(both).count(),
        bad: source.dataset.bad.len(),
    }
}
