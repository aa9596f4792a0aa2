//! From files of rows to sequences: what a run learns, what it is scored on, and what it had to leave out.

use std::path::Path;

use forethought_core::dataset::{Dataset, Row};
use forethought_core::evidence::Verdict;
use forethought_core::guard::prompt::Prompt;
use forethought_core::model::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, SftConfig};
use crate::data::Example;
use crate::error::{Result, TrainError};
use crate::r1act::{self, Form, PhaseWeights};
use crate::train::Source;

/// How rows become sequences.
pub struct Renderer<'a> {
    /// Token ids of the template.
    pub prompt: &'a Prompt,
    /// The base model's.
    pub tokenizer: &'a Tokenizer,
    /// Weights of the parts of a response.
    pub weights: PhaseWeights,
    /// Longer sequences are left out.
    pub max_tokens: usize,
}

/// A labelled row that a run is scored on.
#[derive(Clone, Debug)]
pub struct ScoredRow {
    /// Its forms, for the loss.
    pub examples: Vec<Example>,
    /// All that the guard reads before its direct verdict.
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
        if !read.held_out.is_empty() {
            let name = format!("{} held out", name(&data.path));
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
    let dataset = Dataset::read(&data.path)?;
    let bad: Vec<(usize, String)> = dataset.bad.into_iter().map(|bad| (bad.line, bad.problem)).collect();
    if let Some((line, problem)) = bad.first().filter(|_| !skip_bad_rows) {
        return Err(TrainError::BadRow { path, line: *line, problem: problem.clone(), more: bad.len() - 1 });
    }
    let mut read = ReadSource {
        items: Vec::new(),
        held_out: Vec::new(),
        report: SourceReport {
            path: path.clone(),
            rows: 0,
            sequences: 0,
            tokens: 0,
            targets: 0,
            held_out: 0,
            too_long: Vec::new(),
            bad,
        },
    };
    for (index, row) in dataset.rows.iter().enumerate() {
        let rendered = renderer.forms(row, data)?;
        let longest = rendered.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        let report = &mut read.report;
        if longest > renderer.max_tokens {
            report.too_long.push((row.line, longest));
            continue;
        }
        if data.hold_out.is_some_and(|every| (index + 1).is_multiple_of(every)) {
            report.held_out += 1;
            let prompt = renderer.direct_prompt(row)?;
            read.held_out.push(ScoredRow { examples: rendered, prompt, label: row.label });
        } else {
            report.rows += 1;
            report.sequences += rendered.len();
            report.tokens += rendered.iter().map(Example::positions).sum::<usize>();
            report.targets += rendered.iter().map(Example::targets).sum::<usize>();
            read.items.push(rendered);
        }
    }
    if read.items.is_empty() && read.held_out.is_empty() {
        return Err(TrainError::NoRows { path });
    }
    Ok(read)
}

impl Renderer<'_> {
    /// A row in the forms asked for; one without phases in the direct form alone.
    fn forms(&self, row: &Row, data: &DataConfig) -> Result<Vec<Example>> {
        let has_phases = row.understanding.is_some() && row.assessment.is_some();
        let weights = data.loss.as_ref().unwrap_or(&self.weights);
        let render = |form| r1act::render(row, form, self.prompt, self.tokenizer, weights);
        let forms: Vec<Form> = match has_phases {
            true => data.forms.clone(),
            false => vec![Form::Direct],
        };
        forms.into_iter().map(render).collect()
    }

    /// All that the guard reads before it gives its direct verdict.
    fn direct_prompt(&self, row: &Row) -> Result<Vec<u32>> {
        let example = r1act::render_prompt(row, self.prompt, self.tokenizer)?;
        Ok([&example[..], &self.prompt.direct_verdict].concat())
    }
}
