//! Rows to train on: with R1-Act's phases under the project's names, or an instruction with its response as one text,
//! as the paper's own set has it.

use std::collections::HashMap;
use std::path::Path;

use clap::ValueEnum;
use forethought_core::dataset::{BadRow, Dataset, Row};
use forethought_core::evidence::Verdict;

use super::record::{self, Format, Record, Records};
use crate::error::Result;

/// Keys of an instruction, in the order in which they are looked for.
const INSTRUCTION: [&str; 3] = ["instruction", "prompt", "question"];
/// Keys of a response.
const RESPONSE: [&str; 3] = ["response", "output", "completion"];
/// Keys of the phases.
const PHASES: [&str; 2] = ["understanding", "assessment"];

/// What a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// The project's rows: a label, and the two phases where there are any.
    Phases,
    /// An instruction and its response.
    Responses,
}

/// An instruction and what a model should answer.
#[derive(Clone, PartialEq, Eq)]
pub struct ResponseRow {
    /// Its name, unique in the file.
    pub id: String,
    /// Its line, counted from 1.
    pub line: usize,
    /// What the user sends.
    pub instruction: String,
    /// All that is answered, thoughts included.
    pub response: String,
    /// The truth, where the file says it.
    pub label: Option<Verdict>,
}

impl std::fmt::Debug for ResponseRow {
    /// Leaves the texts out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, line, label, .. } = self;
        f.debug_struct("ResponseRow")
            .field("id", id)
            .field("line", line)
            .field("label", label)
            .finish_non_exhaustive()
    }
}

/// The rows of a file, each kind in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// Rows with a label, and phases where there are any.
    pub phases: Vec<Row>,
    /// Rows with a response.
    pub responses: Vec<ResponseRow>,
    /// What can't be used, by line.
    pub bad: Vec<BadRow>,
}

/// Reads a file of either kind of row, or of both; a row with a response and no phases is the second kind.
///
/// # Errors
/// The file can't be read, or not in any format that its name or beginning tells.
pub fn read_rows(path: &Path) -> Result<Read> {
    read_rows_as(path, None, None)
}

/// [`read_rows`], with the format or the kind of all rows given.
///
/// # Errors
/// As there.
pub fn read_rows_as(path: &Path, format: Option<Format>, content: Option<Content>) -> Result<Read> {
    Ok(rows(record::read(path, format)?, content))
}

/// Makes rows of records.
fn rows(Records { records, bad }: Records, content: Option<Content>) -> Read {
    let mut read = Read { bad, ..Read::default() };
    let mut phases = Vec::new();
    let mut lines_by_id = HashMap::new();
    for record in records {
        if content.unwrap_or_else(|| kind(&record)) == Content::Phases {
            phases.push(record);
            continue;
        }
        let line = record.line;
        match response(&record) {
            Ok(row) => match lines_by_id.get(&row.id) {
                Some(first) => {
                    read.bad.push(BadRow { line, problem: format!("`id` is that of line {first}") });
                }
                None => {
                    lines_by_id.insert(row.id.clone(), line);
                    read.responses.push(row);
                }
            },
            Err(problem) => read.bad.push(BadRow { line, problem }),
        }
    }
    let dataset = Dataset::from_bytes(&json_lines(&phases));
    read.phases = dataset.rows;
    read.bad.extend(dataset.bad);
    read.bad.sort_by_key(|bad| bad.line);
    read
}

/// The records as JSON lines, each on the line that it came from: so core's reader, which knows the rules, names the
/// lines of the original file.
fn json_lines(records: &[Record]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut line = 1;
    for record in records {
        text.resize(text.len() + record.line.saturating_sub(line), b'\n');
        line = record.line.max(line);
        text.extend(serde_json::Value::Object(record.fields.clone()).to_string().into_bytes());
    }
    text
}

fn kind(record: &Record) -> Content {
    let has = |keys: &[&str]| keys.iter().any(|key| record.text(key).is_some());
    if has(&RESPONSE) && !has(&PHASES) { Content::Responses } else { Content::Phases }
}

fn response(record: &Record) -> std::result::Result<ResponseRow, String> {
    let first = |keys: &[&str]| keys.iter().find_map(|key| record.text(key));
    let mut instruction = first(&INSTRUCTION).ok_or("no `instruction`, `prompt` or `question`")?;
    // Alpaca's form keeps what the instruction is about beside it.
    if let Some(input) = record.text("input") {
        instruction = format!("{instruction}\n\n{input}");
    }
    let label = match record.text("label").as_deref() {
        None => None,
        Some("harmful") => Some(Verdict::Harmful),
        Some("benign") => Some(Verdict::Benign),
        Some(_) => return Err("`label` is neither `harmful` nor `benign`".into()),
    };
    Ok(ResponseRow {
        id: record.text("id").unwrap_or_else(|| record.line.to_string()),
        line: record.line,
        instruction,
        response: first(&RESPONSE).ok_or("no `response`, `output` or `completion`")?,
        label,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, format: Format, content: Option<Content>) -> Read {
        rows(record::parse(text.as_bytes(), format).unwrap(), content)
    }

    fn bad(read: &Read) -> Vec<(usize, &str)> {
        read.bad.iter().map(|bad| (bad.line, bad.problem.as_str())).collect()
    }

    #[test]
    fn both_kinds_in_one_file() {
        let found = read(
            concat!(
                r#"{"instruction": "a", "response": "<think>b</think>"}"#,
                "\n\n",
                r#"{"id": "p", "prompt": "c", "label": "harmful", "understanding": "u", "assessment": "v"}"#,
                "\n",
                r#"{"question": "d", "input": "e", "output": "f", "label": "benign", "id": 9}"#,
                "\n",
                r#"{"prompt": "g", "label": "maybe"}"#,
                "\n",
                r#"{"response": "h"}"#,
                "\n",
                r#"{"prompt": "i", "completion": "j", "id": "9"}"#,
            ),
            Format::Jsonl,
            None,
        );
        let row = |id: &str, line, instruction: &str, response: &str, label| ResponseRow {
            id: id.into(),
            line,
            instruction: instruction.into(),
            response: response.into(),
            label,
        };
        let expected =
            [row("1", 1, "a", "<think>b</think>", None), row("9", 4, "d\n\ne", "f", Some(Verdict::Benign))];
        assert_eq!(found.responses, expected);
        assert_eq!(found.phases.iter().map(|r| (r.id.as_str(), r.line)).collect::<Vec<_>>(), [("p", 3)]);
        let expected = [
            (5, "`label` is neither `harmful` nor `benign`"),
            (6, "no `instruction`, `prompt` or `question`"),
            (7, "`id` is that of line 4"),
        ];
        assert_eq!(bad(&found), expected);
    }

    #[test]
    fn columns_with_the_projects_names() {
        let text = "id,instruction,label,category,understanding,assessment\n\
            a,\"two\nlines\",harmful,cyber,u,v\n\
            ,plain,benign,,,\n\
            a,again,benign,,,\n";
        let found = read(text, Format::Csv, None);
        let [a, b] = &found.phases[..] else { panic!("{:?}", found.phases) };
        assert_eq!((a.id.as_str(), a.line, a.category.as_deref()), ("a", 2, Some("cyber")));
        assert_eq!((b.id.as_str(), b.line, &b.understanding), ("4", 4, &None));
        assert_eq!(bad(&found), [(5, "`id` is that of line 2")]);
    }

    #[test]
    fn the_kind_can_be_given() {
        let text = r#"{"prompt": "a", "label": "benign", "response": "b"}"#;
        assert_eq!(read(text, Format::Jsonl, None).responses.len(), 1);
        assert_eq!(read(text, Format::Jsonl, Some(Content::Phases)).phases.len(), 1);
        let found = read(r#"{"prompt": "a", "label": "benign"}"#, Format::Jsonl, Some(Content::Responses));
        assert_eq!(bad(&found), [(1, "no `response`, `output` or `completion`")]);
    }

    #[test]
    fn debug_output_holds_no_text() {
        let found = read(r#"{"prompt": "secret", "response": "secret"}"#, Format::Jsonl, None);
        assert!(!format!("{found:?}").contains("secret"));
    }
}
