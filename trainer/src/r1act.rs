//! R1-Act examples: a labelled instruction with its two phases, and its rendering as a sequence to learn.
//!
//! A sequence is, id for id, what the guard reads and writes when it examines that conversation: the same prompt, the
//! same headings, each tokenized on its own.

use std::io::BufRead;
use std::path::Path;

use forethought_core::conversation::{Conversation, Message, Role};
use forethought_core::guard::{prompt::Prompt, transcript};
use forethought_core::model::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::data::Example;
use crate::error::{Result, TrainError};

/// What an instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// An answer would do harm.
    Harmful,
    /// It would not.
    Benign,
}

/// One line of a data file.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Stable name of the row.
    pub id: String,
    /// What a user sends. `User: ...\nAssistant: ...\nUser: ...` is a conversation, where the style is `multi-turn`.
    pub instruction: String,
    /// Whether answering it does harm.
    pub label: Label,
    /// The hazard; for a benign row the one it could be mistaken for, or `none`.
    pub category: String,
    /// How the instruction is dressed.
    pub style: String,
    /// The first phase: what the user really wants.
    pub understanding: String,
    /// The second phase: who could be hurt, and what decides.
    pub assessment: String,
}

/// The style whose instructions hold several turns.
const MULTI_TURN: &str = "multi-turn";

impl Row {
    /// The conversation that the guard would be given.
    pub fn conversation(&self) -> Conversation {
        if self.style != MULTI_TURN {
            return Conversation::from_user(self.instruction.as_str());
        }
        let mut messages: Vec<(Role, String)> = Vec::new();
        for line in self.instruction.lines() {
            let turn = [Role::User, Role::Assistant]
                .into_iter()
                .find_map(|role| Some((role, line.strip_prefix(role.label())?.strip_prefix(": ")?)));
            match (turn, messages.last_mut()) {
                (Some((role, text)), _) => messages.push((role, text.to_owned())),
                (None, Some((_, text))) => {
                    text.push('\n');
                    text.push_str(line);
                }
                (None, None) => messages.push((Role::User, line.to_owned())),
            }
        }
        let messages = messages.into_iter().map(|(role, text)| Message::text(role, text)).collect();
        Conversation { messages }
    }
}

/// Reads a JSONL file; empty lines are skipped.
///
/// # Errors
/// Names the first line that is not a row, and what is wrong with it.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let failed = |source| TrainError::File { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut rows = Vec::new();
    for (i, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| TrainError::Data { path: path.to_owned(), line: i + 1, reason };
        let row: Row = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        let texts = [
            ("instruction", &row.instruction),
            ("understanding", &row.understanding),
            ("assessment", &row.assessment),
        ];
        if let Some((key, _)) = texts.iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(wrong(format!("`{key}` is empty")));
        }
        rows.push(row);
    }
    Ok(rows)
}

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
}

impl Default for PhaseWeights {
    fn default() -> Self {
        Self { understanding: 1.0, assessment: 1.0, verdict: 1.0, category: 1.0, headings: 0.1 }
    }
}

/// Renders a row as a sequence to learn.
///
/// # Errors
/// When the tokenizer fails on its text.
pub fn render(
    row: &Row,
    form: Form,
    prompt: &Prompt,
    tokenizer: &Tokenizer,
    weights: &PhaseWeights,
) -> Result<Example> {
    let mut example = Example::default();
    example.extend(&prompt.prefix, 0.0);
    example.extend(&tokenizer.encode_text(&transcript::render(&row.conversation()))?, 0.0);
    example.extend(&prompt.suffix, 0.0);
    let phase = |text: &str| tokenizer.encode_text(&format!(" {}", text.trim()));
    match form {
        Form::Full => {
            example.extend(&prompt.understanding, weights.headings);
            example.extend(&phase(&row.understanding)?, weights.understanding);
            end_phase(&mut example, &prompt.assessment, weights.understanding, weights.headings);
            example.extend(&phase(&row.assessment)?, weights.assessment);
            end_phase(&mut example, &prompt.verdict, weights.assessment, weights.headings);
        }
        Form::Direct => example.extend(&prompt.direct_verdict, weights.headings),
    }
    let label = match row.label {
        Label::Harmful => &prompt.harmful,
        Label::Benign => &prompt.benign,
    };
    example.extend(label, weights.verdict);
    example.extend(&prompt.category, weights.headings);
    example.extend(&tokenizer.encode_control(&format!(" {}\n", row.category))?, weights.category);
    Ok(example)
}

/// Appends the heading that follows a phase. Its first token is the line's end, by which the model says that the phase
/// is over.
fn end_phase(example: &mut Example, heading: &[u32], phase: f32, headings: f32) {
    let (end, rest) = heading.split_at(heading.len().min(1));
    example.extend(end, phase);
    example.extend(rest, headings);
}
