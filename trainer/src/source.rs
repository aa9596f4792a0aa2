//! From files of rows to sequences: what a run learns, what it is scored on, and what it had to leave out.

use std::path::Path;

use forethought_core::dataset::Row;
use forethought_core::evidence::Verdict;
use forethought_core::guard::prompt::Prompt;
use forethought_core::model::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, SftConfig};
use crate::data::Example;
use crate::dataset::read::{ResponseRow, read_rows};
use crate::error::{Result, TrainError};
use crate::r1act::{self, Form, PhaseWeights};
use crate::response::Chat;
use crate::train::Source;

/// How rows become sequences.
pub struct Renderer<'a> {
    /// Token ids of the template.
    pub prompt: &'a Prompt,
    /// How the base model is asked where a row has a response and no phases.
    pub chat: &'a Chat,
    /// The base model's.
    pub tokenizer: &'a Tokenizer,
    /// Weights of the parts of a response.
    pub weights: PhaseWeights,
    /// Longer sequences are left out.
    pub max_tokens: usize,
}

/// A row that a run is scored on.
#[derive(Clone, Debug)]
pub struct ScoredRow {
    /// Its forms, for the loss.
    pub examples: Vec<Example>,
    /// For the verdict; rows with a response have none.
    pub judged: Option<JudgedRow>,
}

/// What a direct verdict takes.
#[derive(Clone, Debug)]
pub struct JudgedRow {
    /// All that the guard reads before it.
    pub prompt: Vec<u32>,
    /// The truth.
    pub label: Verdict,
}

/// Rows that are scored together.
#[derive(Clone, Debug)]
pub struct ScoredSet {
    /// The file's name without its ending; ` held out` follows where only a part of it is scored.
    pub name: String,
    /// The rows.
    pub rows: Vec<ScoredRow>,
}

impl ScoredSet {
    /// The rows that a verdict is given on.
    pub fn judged(&self) -> impl Iterator<Item = &JudgedRow> {
        self.rows.iter().filter_map(|row| row.judged.as_ref())
    }
}

/// What a file gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// The file.
    pub path: String,
    /// Rows learnt.
    pub rows: usize,
    /// Sequences of them.
    pub sequences: usize,
    /// Tokens of these.
    pub tokens: usize,
    /// Tokens whose prediction is learnt.
    pub targets: usize,
    /// Rows held back.
    pub held_out: usize,
    /// Lines left out since they are longer than `train.max_tokens`, with their tokens.
    pub too_long: Vec<(usize, usize)>,
    /// Lines left out since they can't be used, with the reason.
    pub bad: Vec<(usize, String)>,
}

/// Everything that a run reads.
pub struct Prepared {
    /// What is learnt.
    pub sources: Vec<Source>,
    /// What is scored: validation files, then held-out parts.
    pub sets: Vec<ScoredSet>,
    /// A report for each file of `data`, then each of `validation`.
    pub reports: Vec<SourceReport>,
}

/// Reads and renders all files of a run.
///
/// # Errors
/// When a file can't be read or holds no usable row, or, unless `train.skip_bad_rows` is set, a row can't be used;
/// file and line are named.
pub fn prepare(config: &SftConfig, renderer: &Renderer<'_>) -> Result<Prepared> {
    let mut prepared = Prepared { sources: Vec::new(), sets: Vec::new(), reports: Vec::new() };
    let mut held_out = Vec::new();
    for data in &config.data {
        let mut read = read(data, config.train.skip_bad_rows, renderer)?;
        let draws = (read.items.len() as f64 * data.weight).round() as usize;
        prepared.sources.push(Source { items: std::mem::take(&mut read.items), draws });
        let name = format!("{} held out", name(&data.path));
        // A file may be named more than once, each time with other forms or weights; its rows are scored once.
        if !read.held_out.is_empty() && held_out.iter().all(|set: &ScoredSet| set.name != name) {
            held_out.push(ScoredSet { name, rows: read.held_out });
        }
        prepared.reports.push(read.report);
    }
    for data in &config.validation {
        let data = DataConfig { hold_out: Some(1), ..data.clone() };
        let read = read(&data, config.train.skip_bad_rows, renderer)?;
        prepared.sets.push(ScoredSet { name: name(&data.path), rows: read.held_out });
        prepared.reports.push(read.report);
    }
    prepared.sets.extend(held_out);
    Ok(prepared)
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

struct ReadSource {
    items: Vec<Vec<Example>>,
    held_out: Vec<ScoredRow>,
    report: SourceReport,
}

fn read(data: &DataConfig, skip_bad_rows: bool, renderer: &Renderer<'_>) -> Result<ReadSource> {
    let path = data.path.display().to_string();
    let file = read_rows(&data.path)?;
    let bad: Vec<(usize, String)> = file.bad.into_iter().map(|bad| (bad.line, bad.problem)).collect();
    if let Some((line, problem)) = bad.first().filter(|_| !skip_bad_rows) {
        return Err(TrainError::BadRow { path, line: *line, problem: problem.clone(), more: bad.len() - 1 });
    }
    let phases = file.phases.iter().map(|row| (row.line, renderer.phases(row, data)));
    let responses = file.responses.iter().map(|row| (row.line, renderer.response(row, data)));
    let mut rows: Vec<(usize, Result<ScoredRow>)> = phases.chain(responses).collect();
    rows.sort_by_key(|(line, _)| *line);

    let (mut items, mut held_out, mut too_long) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tokens, mut targets, mut seen) = (0, 0, 0);
    for (index, (line, row)) in rows.into_iter().enumerate() {
        let row = row?;
        let longest = row.examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        if longest > renderer.max_tokens {
            too_long.push((line, longest));
        } else if data.hold_out.is_some_and(|every| (index + 1).is_multiple_of(every)) {
            held_out.push(row);
        } else {
            seen += 1;
            if data.part.is_some_and(|part| !part.holds(seen - 1)) {
                continue;
            }
            tokens += row.examples.iter().map(Example::positions).sum::<usize>();
            targets += row.examples.iter().map(Example::targets).sum::<usize>();
            items.push(row.examples);
        }
    }
    if items.is_empty() && held_out.is_empty() {
        return Err(TrainError::NoRows { path });
    }
    let sequences = items.iter().map(Vec::len).sum();
    let (rows, held) = (items.len(), held_out.len());
    let report = SourceReport { path, rows, sequences, tokens, targets, held_out: held, too_long, bad };
    Ok(ReadSource { items, held_out, report })
}

impl Renderer<'_> {
    /// A row in the forms asked for; one without phases in the direct form alone.
    fn phases(&self, row: &Row, data: &DataConfig) -> Result<ScoredRow> {
        let has_phases = row.understanding.is_some() && row.assessment.is_some();
        let weights = data.loss.as_ref().unwrap_or(&self.weights);
        let forms = if has_phases { &data.forms[..] } else { &[Form::Direct] };
        let render = |&form: &Form| r1act::render(row, form, self.prompt, self.tokenizer, weights);
        let examples = forms.iter().map(render).collect::<Result<_>>()?;
        let prompt =
            [r1act::render_prompt(row, self.prompt, self.tokenizer)?, self.prompt.direct_verdict.clone()]
                .concat();
        Ok(ScoredRow { examples, judged: Some(JudgedRow { prompt, label: row.label }) })
    }

    fn response(&self, row: &ResponseRow, data: &DataConfig) -> Result<ScoredRow> {
        let weights = data.loss.as_ref().unwrap_or(&self.weights);
        let example = self.chat.render(row, self.tokenizer, weights.response)?;
        Ok(ScoredRow { examples: vec![example], judged: None })
    }
}
