//! What tells the label without being read: lengths and single words.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use forethought_core::dataset::Row;
use forethought_core::evidence::Verdict;
use forethought_core::metrics::Scored;
use serde::Serialize;

use super::{Item, Limits, Part};
use crate::dataset::text::{normalise, words as split};

/// Rows by label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Harmful rows.
    pub harmful: usize,
    /// Benign rows.
    pub benign: usize,
}

impl Counts {
    /// All rows.
    pub fn total(self) -> usize {
        self.harmful + self.benign
    }

    fn add(&mut self, label: Verdict) {
        match label {
            Verdict::Harmful => self.harmful += 1,
            Verdict::Benign => self.benign += 1,
        }
    }
}

impl FromIterator<Verdict> for Counts {
    fn from_iter<T: IntoIterator<Item = Verdict>>(labels: T) -> Self {
        labels.into_iter().fold(Self::default(), |mut counts, label| {
            counts.add(label);
            counts
        })
    }
}

/// Rows of one style or category.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its name; `-` for rows without one.
    pub name: String,
    /// Its rows.
    #[serde(flatten)]
    pub rows: Counts,
}

/// How far the length of a text tells the label.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LengthLeak {
    /// Which text.
    pub part: Part,
    /// Probability that a harmful row's text is longer than a benign row's; 0.5 tells nothing. `None` where a class is
    /// missing.
    pub auroc: Option<f64>,
    /// Whether that is more than the limit.
    pub is_problem: bool,
}

/// A word by which the label can be guessed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PredictiveWord {
    /// In which text.
    pub part: Part,
    /// The word, normalised. Only words of at least `SEEN` rows are listed.
    pub word: String,
    /// Rows with it.
    #[serde(flatten)]
    pub rows: Counts,
    /// Smoothed logarithm of the odds ratio; above zero for harmful.
    pub log_odds: f64,
    /// The same in standard errors: the order of the list.
    pub z: f64,
    /// Whether the word alone decides a good part of the set.
    pub is_problem: bool,
}

/// Rows of each label below which lengths prove nothing.
const ENOUGH: usize = 20;
/// Rows that a word must be in.
const SEEN: usize = 5;
/// A word is a problem where it is in one row of this many or more,
const WIDE: usize = 20;
/// and of its rows one in this many or fewer has the other label.
const PURE: usize = 20;
/// Added to every count, so that a word that one class lacks has finite odds.
const SMOOTHING: f64 = 0.5;

pub(super) fn lengths(items: &[Item], limits: &Limits) -> Vec<LengthLeak> {
    let leak = |part: Part| {
        let length =
            |item: &Item| part.of(item.row).map(|text| (text.chars().count() as f64, item.row.label));
        let lengths: Vec<(f64, Verdict)> = items.iter().filter_map(length).collect();
        let rows: Counts = lengths.iter().map(|&(_, label)| label).collect();
        // Lengths are numbers, so there is always a score.
        let auroc = Scored::new(lengths).ok().and_then(|scored| scored.auroc());
        let is_leak = auroc.is_some_and(|auroc| auroc.max(1.0 - auroc) > limits.length_auroc);
        let is_problem = is_leak && rows.harmful.min(rows.benign) >= ENOUGH;
        LengthLeak { part, auroc, is_problem }
    };
    Part::ALL.map(leak).to_vec()
}

pub(super) fn words(items: &[Item], limits: &Limits) -> Vec<PredictiveWord> {
    Part::ALL.into_iter().flat_map(|part| words_of(part, items, limits)).collect()
}

/// The best words in each direction, harmful first, then what else is a problem.
fn words_of(part: Part, items: &[Item], limits: &Limits) -> Vec<PredictiveWord> {
    let mut rows_by_word: HashMap<String, Counts> = HashMap::new();
    let mut all = Counts::default();
    for item in items {
        let Some(text) = part.of(item.row) else { continue };
        all.add(item.row.label);
        let text = normalise(&text);
        for word in split(&text).collect::<BTreeSet<_>>() {
            match rows_by_word.get_mut(word) {
                Some(rows) => rows.add(item.row.label),
                None => {
                    rows_by_word.insert(word.to_owned(), Counts::from_iter([item.row.label]));
                }
            }
        }
    }
    if all.harmful == 0 || all.benign == 0 {
        return Vec::new();
    }
    let seen = rows_by_word.into_iter().filter(|(_, rows)| rows.total() >= SEEN);
    let mut words: Vec<PredictiveWord> = seen.map(|(word, rows)| predictive(part, word, rows, all)).collect();
    words.sort_by(|a, b| b.z.total_cmp(&a.z).then_with(|| a.word.cmp(&b.word)));
    let ends = words.len().saturating_sub(limits.words);
    let mut at = 0..;
    words.retain(|word| {
        let at = at.next().unwrap_or(0);
        let leads = at < limits.words && word.z > 0.0 || at >= ends && word.z < 0.0;
        leads || word.is_problem
    });
    words
}

fn predictive(part: Part, word: String, rows: Counts, all: Counts) -> PredictiveWord {
    let cell = |count: usize| count as f64 + SMOOTHING;
    let cells = [
        cell(rows.harmful),
        cell(all.harmful - rows.harmful),
        cell(rows.benign),
        cell(all.benign - rows.benign),
    ];
    let log_odds = (cells[0] / cells[1]).ln() - (cells[2] / cells[3]).ln();
    let error = cells.iter().map(|cell| 1.0 / cell).sum::<f64>().sqrt();
    // Phases are there to tell the label: only a prompt must not do so by a word.
    let is_problem = part == Part::Instruction
        && rows.total() * WIDE >= all.total()
        && rows.harmful.min(rows.benign) * PURE <= rows.total();
    PredictiveWord { part, word, rows, log_odds, z: log_odds / error, is_problem }
}

pub(super) fn groups(items: &[Item], name: impl Fn(&Row) -> Option<&str>) -> Vec<Group> {
    let mut rows_by_name: BTreeMap<&str, Counts> = BTreeMap::new();
    for item in items {
        rows_by_name.entry(name(item.row).unwrap_or("-")).or_default().add(item.row.label);
    }
    let mut groups: Vec<Group> =
        rows_by_name.into_iter().map(|(name, rows)| Group { name: name.to_owned(), rows }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.rows.total()));
    groups
}
