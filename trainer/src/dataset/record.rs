//! Files of records: JSON lines, a JSON array, comma or tab separated columns, or plain lines.
//!
//! Messages never hold text of a record: they name its line.

use std::collections::HashSet;
use std::path::Path;

use clap::ValueEnum;
use forethought_core::dataset::BadRow;
use serde_json::{Map, Value};

use crate::error::{Result, TrainError};

/// How a file's records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects.
    Json,
    /// Comma-separated columns under a header.
    Csv,
    /// Tab-separated columns under a header.
    Tsv,
    /// A text a line.
    Lines,
}

/// The key of a record's text in a file of [`Format::Lines`].
pub const LINE_KEY: &str = "text";

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line on which it begins, counted from 1; in a JSON array its place, counted from 1.
    pub line: usize,
    /// Its fields. Empty cells of columns are left out.
    pub fields: Map<String, Value>,
}

impl Record {
    /// The text, number or truth value under a key, as text; `None` where there is none or it is empty.
    pub fn text(&self, key: &str) -> Option<String> {
        match self.fields.get(key)? {
            Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            _ => None,
        }
    }
}

/// The records of a file, and what could not be read of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// What can be used, in the file's order.
    pub records: Vec<Record>,
    /// What can't, in the file's order.
    pub bad: Vec<BadRow>,
}

/// Reads a file; its format is told by [`detect`] where none is given.
///
/// # Errors
/// The file can't be read, or is not of that format at all.
pub fn read(path: &Path, format: Option<Format>) -> Result<Records> {
    let bytes = std::fs::read(path).map_err(|source| TrainError::File { path: path.into(), source })?;
    let wrong = |problem: String| TrainError::Input { path: path.into(), problem };
    let format = match format.or_else(|| detect(path, &bytes)) {
        Some(format) => format,
        None => return Err(wrong("its name does not say what it holds: name its format".into())),
    };
    parse(&bytes, format).map_err(wrong)
}

/// The format by the name's ending, else by the first character. Files called `.json` are often JSON lines.
pub fn detect(path: &Path, bytes: &[u8]) -> Option<Format> {
    let first = without_mark(bytes).trim_ascii_start().first().copied();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match (ending.as_str(), first) {
        ("jsonl" | "ndjson", _) | ("json" | "", Some(b'{')) => Some(Format::Jsonl),
        ("json" | "", Some(b'[')) => Some(Format::Json),
        ("csv", _) => Some(Format::Csv),
        ("tsv" | "tab", _) => Some(Format::Tsv),
        ("txt" | "text" | "lst", _) => Some(Format::Lines),
        _ => None,
    }
}

/// Reads records of a known format. Blank lines hold none; a byte order mark is passed over.
///
/// # Errors
/// What is wrong where nothing can be read: the array is not one, or the header is broken.
pub fn parse(bytes: &[u8], format: Format) -> std::result::Result<Records, String> {
    let bytes = without_mark(bytes);
    match format {
        Format::Jsonl => Ok(lines(bytes, object)),
        Format::Json => array(bytes),
        Format::Csv => columns(bytes, b','),
        Format::Tsv => columns(bytes, b'\t'),
        Format::Lines => Ok(lines(bytes, |line| {
            let text = line.strip_suffix('\r').unwrap_or(line);
            Ok(Map::from_iter([(LINE_KEY.to_owned(), text.into())]))
        })),
    }
}

fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

fn lines(bytes: &[u8], parse: impl Fn(&str) -> std::result::Result<Map<String, Value>, String>) -> Records {
    let mut records = Records::default();
    for (line, text) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        let text = str::from_utf8(text).map_err(|e| format!("not UTF-8 from byte {} on", e.valid_up_to()));
        match text.and_then(&parse) {
            Ok(fields) => records.records.push(Record { line, fields }),
            Err(problem) => records.bad.push(BadRow { line, problem }),
        }
    }
    records
}

/// serde's own messages may quote values, so only the place is told.
fn object(text: &str) -> std::result::Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("not a JSON object".into()),
        Err(error) => Err(format!("not JSON (column {})", error.column())),
    }
}

fn array(bytes: &[u8]) -> std::result::Result<Records, String> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| format!("not JSON (line {}, column {})", e.line(), e.column()))?;
    let Value::Array(values) = value else {
        return Err("not a JSON array of objects".into());
    };
    let mut records = Records::default();
    for (line, value) in (1..).zip(values) {
        match value {
            Value::Object(fields) => records.records.push(Record { line, fields }),
            _ => records.bad.push(BadRow { line, problem: "not a JSON object".into() }),
        }
    }
    Ok(records)
}

fn columns(bytes: &[u8], delimiter: u8) -> std::result::Result<Records, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bytes);
    let header = reader.headers().map_err(|_| "the header is not UTF-8".to_owned())?;
    let header: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    if header.iter().collect::<HashSet<_>>().len() < header.len() {
        return Err("two columns of the header have the same name".into());
    }
    let mut records = Records::default();
    for row in reader.byte_records() {
        let row = row.map_err(|error| format!("can't be read as columns: {:?}", error.kind()))?;
        let line = row.position().map_or(0, |position| first_line(bytes, position));
        match csv::StringRecord::from_byte_record(row) {
            Err(_) => records.bad.push(BadRow { line, problem: "not UTF-8".into() }),
            Ok(row) if row.len() != header.len() => {
                let problem = format!("{} columns, and the header has {}", row.len(), header.len());
                records.bad.push(BadRow { line, problem });
            }
            Ok(row) => {
                let cells = header.iter().zip(&row).filter(|(_, cell)| !cell.is_empty());
                let fields = cells.map(|(name, cell)| (name.clone(), Value::from(cell))).collect();
                records.records.push(Record { line, fields });
            }
        }
    }
    Ok(records)
}

/// The line on which a record's text begins: csv counts blank lines before it as part of it.
fn first_line(bytes: &[u8], position: &csv::Position) -> usize {
    let rest = bytes.get(position.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() as usize + blank.filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str, format: Format, expected: &[(usize, Value)], bad: &[(usize, &str)]) {
        let found = parse(text.as_bytes(), format).unwrap();
        let records: Vec<_> = found.records.into_iter().map(|r| (r.line, Value::Object(r.fields))).collect();
        assert_eq!(records, expected, "{format:?}");
        let problems: Vec<_> = found.bad.iter().map(|bad| (bad.line, bad.problem.as_str())).collect();
        assert_eq!(problems, bad, "{format:?}");
    }

    #[test]
    fn records_of_every_format() {
        check(
            "\u{feff}{\"a\": 1}\n\n[2]\n{\"a\": \"secret\n",
            Format::Jsonl,
            &[(1, json!({"a": 1}))],
            &[(3, "not a JSON object"), (4, "not JSON (column 13)")],
        );
        check(
            "[{\"a\": 1},\n 2, {\"b\": null}]",
            Format::Json,
            &[(1, json!({"a": 1})), (3, json!({"b": null}))],
            &[(2, "not a JSON object")],
        );
        check(
            "\u{feff}id, prompt\n1,\"two\nlines, one cell\"\n2\n\n3,\n",
            Format::Csv,
            &[(2, json!({"id": "1", "prompt": "two\nlines, one cell"})), (6, json!({"id": "3"}))],
            &[(4, "1 columns, and the header has 2")],
        );
        check("a\tb\n1,5\t2\n", Format::Tsv, &[(2, json!({"a": "1,5", "b": "2"}))], &[]);
        check(
            "one\r\n\ntwo",
            Format::Lines,
            &[(1, json!({"text": "one"})), (3, json!({"text": "two"}))],
            &[],
        );
    }

    #[test]
    fn what_can_not_be_read_at_all() {
        fn check(text: &str, format: Format, expected: &str) {
            assert_eq!(parse(text.as_bytes(), format), Err(expected.into()));
        }
        check("{\"data\": []}", Format::Json, "not a JSON array of objects");
        check("[{\"a\": \"secret", Format::Json, "not JSON (line 1, column 14)");
        check("a,b,a\n", Format::Csv, "two columns of the header have the same name");
    }

    #[test]
    fn formats_are_told_by_name_then_by_content() {
        fn check(name: &str, content: &str, expected: Option<Format>) {
            assert_eq!(detect(Path::new(name), content.as_bytes()), expected, "{name}");
        }
        check("a.JSONL", "[", Some(Format::Jsonl));
        check("a.json", "\u{feff} [", Some(Format::Json));
        check("a.json", "{", Some(Format::Jsonl));
        check("a.csv", "{", Some(Format::Csv));
        check("a", "{", Some(Format::Jsonl));
        check("a.txt", "{", Some(Format::Lines));
        check("a.parquet", "PAR1", None);
    }
}
