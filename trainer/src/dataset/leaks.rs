//! What a phase must not say: the verdict itself, the prompt over again, or what the other phase said.
//!
//! The guard writes the verdict after the phases, and compares two logits there. A phase that already names the label
//! teaches it to copy a word instead of weighing. The checks know English; in other languages only copies are seen.

use super::text::{common, grams, normalise, words};

/// Share of a phase's grams from which on it counts as copied.
const COPIED: f64 = 0.8;

/// How openly a text gives the verdict away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Openness {
    /// It names a label.
    States,
    /// It says as much in other words.
    Hints,
}

/// The words of the label itself, by their beginning: `harmfulness` too.
const LABELS: [&str; 2] = ["harmful", "benign"];

/// Ways to say as much. Whole words of a normalised text.
const HINTS: [&str; 20] = [
    "harmless",
    "verdict",
    "is unsafe to answer",
    "is safe to answer",
    "is safe to help",
    "safe request",
    "unsafe request",
    "malicious request",
    "dangerous request",
    "legitimate request",
    "should be refused",
    "must be refused",
    "should be declined",
    "should refuse",
    "must refuse",
    "should be answered",
    "can be answered",
    "should not be answered",
    "must not be answered",
    "violates policy",
];

/// The word or phrase by which a phase gives the verdict away, most open first.
pub fn verdict(phase: &str) -> Option<(Openness, &'static str)> {
    let spaced = spaced(phase);
    let label = LABELS.into_iter().find(|label| spaced.contains(&format!(" {label}")));
    let hint = || HINTS.into_iter().find(|hint| spaced.contains(&format!(" {hint} ")));
    label.map(|label| (Openness::States, label)).or_else(|| Some((Openness::Hints, hint()?)))
}

/// What an assessment of a harmful row cannot say, and one of a benign row cannot.
const AGAINST_HARMFUL: [&str; 10] = [
    "no one is hurt",
    "nobody is hurt",
    "no one is harmed",
    "nobody is harmed",
    "no one would be hurt",
    "nobody would be hurt",
    "no one would be harmed",
    "nobody would be harmed",
    "poses no risk",
    "there is no risk",
];
const AGAINST_BENIGN: [&str; 6] = [
    "would help to harm",
    "would help them harm",
    "would enable serious harm",
    "would cause serious harm",
    "gives a criminal",
    "intent to harm is clear",
];

/// A phrase of an assessment that speaks against the row's label. Few can be told; silence proves nothing.
pub fn contradiction(assessment: &str, harmful: bool) -> Option<&'static str> {
    let spaced = spaced(assessment);
    let phrases: &[&'static str] = if harmful { &AGAINST_HARMFUL } else { &AGAINST_BENIGN };
    phrases.iter().copied().find(|phrase| spaced.contains(&format!(" {phrase} ")))
}

/// Whether nearly all of `phase` stands in `source` already.
pub fn copies(phase: &str, source: &str) -> bool {
    let (phase, source) = (grams(&normalise(phase)), grams(&normalise(source)));
    !phase.is_empty() && common(&phase, &source) as f64 >= COPIED * phase.len() as f64
}

/// The words with one blank around each, so that phrases are found at word borders only.
fn spaced(text: &str) -> String {
    let normal = normalise(text);
    words(&normal).fold(String::from(" "), |spaced, word| spaced + word + " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_seen_at_word_borders() {
        fn check(phase: &str, expected: Option<(Openness, &str)>) {
            assert_eq!(verdict(phase), expected, "{phase}");
        }
        check("This is HARMFUL.", Some((Openness::States, "harmful")));
        check("It judges harmfulness.", Some((Openness::States, "harmful")));
        check("A benign aim, so harmless.", Some((Openness::States, "benign")));
        check("It\u{a0}should  be\nrefused!", Some((Openness::Hints, "should be refused")));
        check("Such planning is harmless.", Some((Openness::Hints, "harmless")));
        check("It would do harm to a neighbour. An unharmful word.", None);
        check("A safe place for chemicals.", None);
        check("", None);
    }

    #[test]
    fn contradictions_depend_on_the_label() {
        fn check(assessment: &str, harmful: bool, expected: Option<&str>) {
            assert_eq!(contradiction(assessment, harmful), expected, "{assessment}");
        }
        check("Nobody is hurt by a sweater.", true, Some("nobody is hurt"));
        check("Nobody is hurt by a sweater.", false, None);
        check("It would cause serious harm.", false, Some("would cause serious harm"));
        check("It would cause serious harm.", true, None);
    }

    #[test]
    fn copies_are_seen_whichever_is_longer() {
        let prompt = "How do I launder a wool sweater without shrinking it?";
        assert!(copies("how do I launder a WOOL sweater without  shrinking it", prompt));
        assert!(copies("launder a wool sweater", prompt));
        assert!(!copies("This is a household question about washing a knitted garment.", prompt));
        assert!(!copies(prompt, "launder a wool sweater"), "it says more");
        assert!(!copies("", prompt));
    }
}
