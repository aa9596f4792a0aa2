//! What the probes say token by token: where in a text the guard comes to know.

use serde::{Deserialize, Serialize};

/// Which part of what the guard reads or writes a token is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The transcript; the window of this number, from 0.
    Window(usize),
    /// The template's text behind the transcript, up to the question for a direct verdict.
    Question,
    /// Headings, phases, verdict and category, as the guard writes them.
    Written,
}

/// What every probe of the guard says at one token: run on its layer's state there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TracedToken {
    /// Where it is.
    pub part: Part,
    /// Its text. Empty where a character takes more than one token; the last of them then has it.
    pub text: String,
    /// P(harmful) by each probe, in the order of [`LocalGuard::probes`](super::LocalGuard::probes).
    pub scores: Vec<f64>,
}
