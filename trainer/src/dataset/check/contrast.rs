//! Contrast pairs: neighbouring rows with the same trigger words and opposite labels, from which a guard learns to read
//! the aim and not the word.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::{Item, Limits, Place};
use crate::dataset::text::words;

/// Letters by which words are compared, so that `launder` is `laundering`; shorter words are no triggers.
const STEM: usize = 5;
/// Words in more rows than one in this many are no triggers: they bind words of the language or of the set.
const COMMON: usize = 50;

/// Neighbouring rows of one file that share trigger words.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Contrast {
    /// Pairs with opposite labels: they contrast.
    pub opposite: usize,
    /// Rows that are in such a pair.
    pub rows: usize,
    /// Pairs with the same label, where one would expect a contrast.
    pub agreeing: Vec<Neighbours>,
}

/// Two neighbouring rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbours {
    /// The earlier one.
    pub first: Place,
    /// The one after it.
    pub second: Place,
    /// How many trigger words they share.
    pub shared: usize,
}

pub(super) fn find(items: &[Item], limits: &Limits) -> Contrast {
    let stems: Vec<BTreeSet<String>> = items.iter().map(|item| stems(&item.normal)).collect();
    let mut rows_by_stem: HashMap<&str, usize> = HashMap::new();
    for stem in stems.iter().flatten() {
        *rows_by_stem.entry(stem).or_default() += 1;
    }
    // In a small set nearly all words are rare.
    let most = (items.len() / COMMON).max(4);
    let is_trigger = |stem: &&String| rows_by_stem[stem.as_str()] <= most;

    let mut contrast = Contrast::default();
    let mut last_counted = None;
    for (at, pair) in items.windows(2).enumerate() {
        let shared = stems[at].intersection(&stems[at + 1]).filter(is_trigger).count();
        if shared == 0 || pair[0].file != pair[1].file {
            continue;
        }
        if pair[0].row.label == pair[1].row.label {
            let (first, second) = (pair[0].place(limits), pair[1].place(limits));
            contrast.agreeing.push(Neighbours { first, second, shared });
        } else {
            contrast.opposite += 1;
            contrast.rows += if last_counted == Some(at) { 1 } else { 2 };
            last_counted = Some(at + 1);
        }
    }
    contrast
}

fn stems(normal: &str) -> BTreeSet<String> {
    let long = words(normal).filter(|word| word.chars().count() >= STEM || !word.is_ascii());
    long.map(|word| word.chars().take(STEM).collect()).collect()
}
