//! Prompts that come again, in the data or in what it is to be kept apart from.

use serde::Serialize;

use super::{Item, Limits, Place};
use crate::dataset::similar::{equal_pairs, near_pairs};
use crate::dataset::text::grams;

/// How much two prompts are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The same but for letter case, width and spacing.
    Exact,
    /// Nearly so.
    Near,
}

/// Two prompts that are alike. Of several equal ones the first stands for all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repeat {
    /// How much.
    pub kind: Kind,
    /// Jaccard similarity of their character 5-grams.
    pub similarity: f64,
    /// Whether their labels differ.
    pub labels_differ: bool,
    /// The earlier one.
    pub first: Place,
    /// The later one, or the one in a file checked against.
    pub second: Place,
}

/// Pairs among `items`, and pairs of one of `items` and one of `against`.
pub(super) fn find(items: &[Item], against: &[Item], limits: &Limits) -> (Vec<Repeat>, Vec<Repeat>) {
    let all: Vec<&Item> = items.iter().chain(against).collect();
    let texts: Vec<String> = all.iter().map(|item| item.normal.clone()).collect();
    let equal = equal_pairs(&texts);
    let mut sets: Vec<Vec<u128>> = texts.iter().map(|text| grams(text)).collect();
    for &(_, later) in &equal {
        sets[later].clear();
    }
    let exact = equal.into_iter().map(|(first, second)| (Kind::Exact, first, second, 1.0));
    let near = near_pairs(&sets, limits.near);
    let near = near.into_iter().map(|pair| (Kind::Near, pair.first, pair.second, pair.similarity));

    let (mut repeats, mut contamination) = (Vec::new(), Vec::new());
    for (kind, first, second, similarity) in exact.chain(near) {
        let list = match (first < items.len(), second < items.len()) {
            (true, true) => &mut repeats,
            (true, false) => &mut contamination,
            (false, _) => continue,
        };
        let (first, second) = (all[first], all[second]);
        list.push(Repeat {
            kind,
            similarity,
            labels_differ: first.row.label != second.row.label,
            first: first.place(limits),
            second: second.place(limits),
        });
    }
    (repeats, contamination)
}
