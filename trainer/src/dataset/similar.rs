//! Exact and near duplicates among many texts, without comparing each with each.

use std::collections::HashMap;

use super::text::common;

/// Two texts that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The earlier text's place.
    pub first: usize,
    /// The later text's place.
    pub second: usize,
    /// Jaccard similarity of their grams.
    pub similarity: f64,
}

/// For each text that an earlier one equals, the pair of the first such one and it.
pub fn equal_pairs(texts: &[String]) -> Vec<(usize, usize)> {
    let mut first: HashMap<&str, usize> = HashMap::new();
    let later = texts.iter().enumerate().filter(|(_, text)| !text.is_empty());
    let found = later.filter_map(|(at, text)| {
        let first = *first.entry(text).or_insert(at);
        (first != at).then_some((first, at))
    });
    found.collect()
}

/// All pairs of a Jaccard similarity of at least `threshold` (above 0), by place. Texts without grams are like nothing.
///
/// Two sets that are so alike share a gram among the few rarest of each: only texts that do are compared (prefix
/// filtering, Bayardo et al., "Scaling up all pairs similarity search", WWW 2007). No pair is missed.
pub fn near_pairs(grams: &[Vec<u128>], threshold: f64) -> Vec<Pair> {
    let sets = by_rarity(grams);
    let mut order: Vec<usize> = (0..sets.len()).filter(|&at| !sets[at].is_empty()).collect();
    order.sort_by_key(|&at| sets[at].len());

    let mut by_gram: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut compared = vec![usize::MAX; sets.len()];
    let mut pairs = Vec::new();
    for &at in &order {
        let set = &sets[at];
        // Smaller ones cannot reach the threshold; a little less, so that rounding loses none.
        let shortest = (threshold * set.len() as f64 - 1e-6).ceil().max(1.0) as usize;
        for &gram in &set[..set.len() - shortest.min(set.len()) + 1] {
            let sharing = by_gram.entry(gram).or_default();
            for &other in sharing.iter() {
                if sets[other].len() < shortest || compared[other] == at {
                    continue;
                }
                compared[other] = at;
                let both = common(set, &sets[other]);
                let similarity = both as f64 / (set.len() + sets[other].len() - both) as f64;
                if similarity >= threshold {
                    pairs.push(Pair { first: at.min(other), second: at.max(other), similarity });
                }
            }
            sharing.push(at);
        }
    }
    pairs.sort_by_key(|pair| (pair.first, pair.second));
    pairs
}

/// The sets with each gram as its rank by rarity, sorted.
fn by_rarity(grams: &[Vec<u128>]) -> Vec<Vec<u32>> {
    let mut counts: HashMap<u128, u32> = HashMap::new();
    for &gram in grams.iter().flatten() {
        *counts.entry(gram).or_default() += 1;
    }
    let mut rare_first: Vec<(u32, u128)> = counts.into_iter().map(|(gram, count)| (count, gram)).collect();
    rare_first.sort_unstable();
    let ranks: HashMap<u128, u32> = rare_first.into_iter().map(|(_, gram)| gram).zip(0..).collect();
    let ranked = grams.iter().map(|set| {
        let mut set: Vec<u32> = set.iter().map(|gram| ranks[gram]).collect();
        set.sort_unstable();
        set
    });
    ranked.collect()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::dataset::text::grams;

    #[test]
    fn equal_texts_point_to_the_first() {
        let texts = ["a", "b", "a", "", "a", ""].map(String::from);
        assert_eq!(equal_pairs(&texts), [(0, 2), (0, 4)]);
    }

    #[test]
    fn no_pair_is_missed() {
        // Texts over few letters, and copies with a letter changed, so that many lie near the threshold.
        let mut rng = StdRng::seed_from_u64(7);
        let mut texts: Vec<String> = Vec::new();
        for index in 0..300 {
            let text = if index % 3 > 0 {
                let mut copy = texts[rng.random_range(0..texts.len())].clone().into_bytes();
                let at = rng.random_range(0..copy.len());
                copy[at] = b'z';
                String::from_utf8(copy).unwrap()
            } else {
                let length = rng.random_range(3..90);
                (0..length).map(|_| rng.random_range(b'a'..b'd') as char).collect()
            };
            texts.push(text);
        }
        let sets: Vec<_> = texts.iter().map(|text| grams(text)).collect();
        for threshold in [0.5, 0.8, 1.0] {
            let mut expected = Vec::new();
            for (second, b) in sets.iter().enumerate() {
                for (first, a) in sets[..second].iter().enumerate() {
                    let both = common(a, b);
                    let similarity = both as f64 / (a.len() + b.len() - both) as f64;
                    if similarity >= threshold {
                        expected.push(Pair { first, second, similarity });
                    }
                }
            }
            expected.sort_by_key(|pair| (pair.first, pair.second));
            assert!(expected.len() > 10, "{} at {threshold}", expected.len());
            assert_eq!(near_pairs(&sets, threshold), expected);
        }
    }
}
