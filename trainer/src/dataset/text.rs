//! Text compared as people read it: letter case, width and spacing make no difference.

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizerBorrowed;
use unicode_segmentation::UnicodeSegmentation as _;

/// Characters in a gram.
const GRAM: usize = 5;

/// NFKC, then full case folding, then every run of white space as one blank and none at the ends.
pub fn normalise(text: &str) -> String {
    let text = ComposingNormalizerBorrowed::new_nfkc().normalize(text);
    let text = CaseMapper::new().fold_string(&text);
    let mut normal = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.push_str(word);
    }
    normal
}

/// The distinct character 5-grams of a normalised text, sorted. A shorter text is one gram; an empty one has none.
///
/// A gram is its characters plus one, 21 bits each, so that two are equal only if their characters are.
pub fn grams(normal: &str) -> Vec<u128> {
    let chars: Vec<char> = normal.chars().collect();
    let pack = |gram: &[char]| gram.iter().fold(0, |packed, &c| packed << 21 | u128::from(u32::from(c) + 1));
    let mut grams: Vec<u128> = match chars.len() {
        0 => Vec::new(),
        n if n < GRAM => vec![pack(&chars)],
        _ => chars.windows(GRAM).map(pack).collect(),
    };
    grams.sort_unstable();
    grams.dedup();
    grams
}

/// How many elements two sorted lists without repeats have in common.
pub fn common<T: Ord>(a: &[T], b: &[T]) -> usize {
    let (mut i, mut j, mut count) = (0, 0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, count) = (i + 1, j + 1, count + 1),
        }
    }
    count
}

/// The words of a normalised text by Unicode's rules (UAX 29), in order; each ideograph is a word.
pub fn words(normal: &str) -> impl Iterator<Item = &str> {
    normal.unicode_words()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_width_and_space_make_no_difference() {
        fn check(text: &str, expected: &str) {
            assert_eq!(normalise(text), expected);
        }
        // Expected values are those of Python's unicodedata.normalize("NFKC") and str.casefold.
        check("  How\u{a0}do\tI\n\nGO? ", "how do i go?");
        check("Straße ﬁn", "strasse fin");
        check("ＡＢＣ①", "abc1");
        check("e\u{301}TÉ", "été");
        check("ΣΊΣΥΦΟΣ", "σίσυφοσ");
        check(" \u{3000}", "");
    }

    #[test]
    fn grams_are_sets() {
        fn check(text: &str, count: usize) {
            assert_eq!(grams(text).len(), count, "{text:?}");
        }
        check("", 0);
        check("abc", 1);
        check("abcde", 1);
        check("abcdef", 2);
        check("aaaaaaaaaa", 1);
        assert_ne!(grams("ab"), grams("\0ab"), "a leading NUL counts");
    }

    #[test]
    fn common_elements() {
        assert_eq!(common(&[1, 3, 5, 7], &[0, 3, 4, 7, 9]), 2);
        assert_eq!(common::<u8>(&[], &[1]), 0);
    }
}
