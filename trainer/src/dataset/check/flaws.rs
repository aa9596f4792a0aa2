//! What is wrong with single rows.

use std::collections::HashMap;

use forethought_core::dataset::Row;
use forethought_core::evidence::Verdict;
use serde::Serialize;

use super::{Item, Limits, Part, Place, Source, prompt};
use crate::dataset::leaks::{self, Openness};
use crate::dataset::text::normalise;

/// What is wrong with a phase of a row, or with the row's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// Other rows of the file have this phase.
    PhaseMissing,
    /// The guard ends a phase at the end of its line.
    PhaseOfSeveralLines,
    /// It names a label.
    StatesVerdict,
    /// It repeats the instruction.
    CopiesInstruction,
    /// It repeats the other phase.
    CopiesPhase,
    /// An earlier row has this very phase.
    RepeatsEarlierPhase,
    /// It speaks against the label.
    ContradictsLabel,
    /// The guard would cut the phase off at its token cap.
    PhaseOverCap,
    /// The sequence is longer than the limit.
    TooLong,
    /// It says as much as the label in other words. Not a problem: often it is about something else.
    HintsVerdict,
}

impl Flaw {
    /// Whether it is to be mended.
    pub fn is_problem(self) -> bool {
        self != Self::HintsVerdict
    }
}

/// A flaw and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub flaw: Flaw,
    /// Where.
    pub place: Place,
    /// In which text.
    pub part: Part,
    /// The word, the count or the line that shows it.
    pub detail: String,
}

/// Flaws of the phases of one file's rows.
pub(super) fn of_phases(source: &Source, limits: &Limits) -> Vec<Finding> {
    let rows = &source.dataset.rows;
    let mut findings = Vec::new();
    for part in [Part::Understanding, Part::Assessment] {
        let expected = rows.iter().any(|row| part.of(row).is_some());
        let mut lines = HashMap::new();
        for row in rows {
            let mut found = |flaw, detail: String| {
                let item = Item { file: &source.path, row, normal: String::new() };
                let mut place = item.place(limits);
                // The phase says more than the prompt about what is wrong with it.
                place.text = place.text.and_then(|_| part.of(row));
                findings.push(Finding { flaw, place, part, detail });
            };
            let Some(text) = part.of(row).filter(|text| !text.trim().is_empty()) else {
                if expected {
                    found(Flaw::PhaseMissing, String::new());
                }
                continue;
            };
            for (flaw, detail) in flaws(row, part, &text) {
                found(flaw, detail);
            }
            let first = *lines.entry(normalise(&text)).or_insert(row.line);
            if first != row.line {
                found(Flaw::RepeatsEarlierPhase, format!("line {first}"));
            }
        }
    }
    findings
}

fn flaws(row: &Row, part: Part, text: &str) -> Vec<(Flaw, String)> {
    let mut flaws = Vec::new();
    if text.trim().contains(['\n', '\r']) {
        flaws.push((Flaw::PhaseOfSeveralLines, String::new()));
    }
    match leaks::verdict(text) {
        Some((Openness::States, word)) => flaws.push((Flaw::StatesVerdict, word.to_owned())),
        Some((Openness::Hints, word)) => flaws.push((Flaw::HintsVerdict, word.to_owned())),
        None => {}
    }
    if leaks::copies(text, &prompt(&row.conversation)) {
        flaws.push((Flaw::CopiesInstruction, String::new()));
    }
    if part == Part::Assessment {
        if row.understanding.as_ref().is_some_and(|other| leaks::copies(text, other)) {
            flaws.push((Flaw::CopiesPhase, String::new()));
        }
        if let Some(phrase) = leaks::contradiction(text, row.label == Verdict::Harmful) {
            flaws.push((Flaw::ContradictsLabel, phrase.to_owned()));
        }
    }
    flaws
}
