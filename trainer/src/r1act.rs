//! R1-Act rows as sequences to learn.
//!
//! A sequence is, id for id, what the guard reads and writes when it examines that conversation: the same prompt, the
//! same headings, each tokenized on its own.

use forethought_core::dataset::Row;
use forethought_core::evidence::Verdict;
use forethought_core::guard::{prompt::Prompt, transcript};
use forethought_core::model::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::data::Example;
use crate::error::{Result, TrainError};

/// The two ways in which a row is trained, as the guard has two ways to a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Understanding, assessment, then the verdict.
    Full,
    /// The verdict at once.
    Direct,
}

/// Weight of the loss of each part of a response.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PhaseWeights {
    /// The first phase, its end included.
    pub understanding: f32,
    /// The second phase, its end included.
    pub assessment: f32,
    /// The label after `Verdict:`.
    pub verdict: f32,
    /// The hazard.
    pub category: f32,
    /// The headings. The guard writes them itself, so they teach it nothing; a server that generates freely needs them.
    pub headings: f32,
    /// All of a response, in rows that have one instead of phases.
    pub response: f32,
}

impl Default for PhaseWeights {
    fn default() -> Self {
        Self {
            understanding: 1.0,
            assessment: 1.0,
            verdict: 1.0,
            category: 1.0,
            headings: 0.1,
            response: 1.0,
        }
    }
}

/// Renders a row as a sequence to learn. A category that the guard can't name is left out.
///
/// # Errors
/// When the full form is asked for and the row lacks a phase, or the tokenizer fails on its text.
pub fn render(
    row: &Row,
    form: Form,
    prompt: &Prompt,
    tokenizer: &Tokenizer,
    weights: &PhaseWeights,
) -> Result<Example> {
    let mut example = Example::default();
    example.extend(&render_prompt(row, prompt, tokenizer)?, 0.0);
    let phase = |name: &'static str, text: &Option<String>| match text.as_deref().map(str::trim) {
        Some(text) if !text.is_empty() => Ok(tokenizer.encode_text(&format!(" {text}"))?),
        _ => Err(TrainError::Row { line: row.line, problem: format!("it has no `{name}`") }),
    };
    match form {
        Form::Full => {
            example.extend(&prompt.understanding, weights.headings);
            example.extend(&phase("understanding", &row.understanding)?, weights.understanding);
            end_phase(&mut example, &prompt.assessment, weights.understanding, weights.headings);
            example.extend(&phase("assessment", &row.assessment)?, weights.assessment);
            end_phase(&mut example, &prompt.verdict, weights.assessment, weights.headings);
        }
        Form::Direct => example.extend(&prompt.direct_verdict, weights.headings),
    }
    let label = match row.label {
        Verdict::Harmful => &prompt.harmful,
        Verdict::Benign => &prompt.benign,
    };
    example.extend(label, weights.verdict);
    if let Some(category) = &row.category {
        let ids = tokenizer.encode_control(&format!(" {category}\n"))?;
        let named = ids.iter().try_fold(&prompt.hazards, |tree, &id| tree.child(id));
        if named.is_some() {
            example.extend(&prompt.category, weights.headings);
            example.extend(&ids, weights.category);
        }
    }
    Ok(example)
}

/// All that the guard reads before it writes or judges.
///
/// # Errors
/// When the tokenizer fails on the row's text.
pub fn render_prompt(row: &Row, prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let transcript = tokenizer.encode_text(&transcript::render(&row.conversation))?;
    Ok([&prompt.prefix, &transcript, &prompt.suffix].map(Vec::as_slice).concat())
}

/// Appends the heading that follows a phase. Its first token is the line's end, by which the model says that the phase
/// is over.
fn end_phase(example: &mut Example, heading: &[u32], phase: f32, headings: f32) {
    let (end, rest) = heading.split_at(heading.len().min(1));
    example.extend(end, phase);
    example.extend(rest, headings);
}
