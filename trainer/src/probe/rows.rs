//! Labelled rows from files.

use std::path::{Path, PathBuf};

use forethought_core::{
    dataset::{Dataset, Row},
    evidence::Verdict,
    store::sha256_file,
};
use serde::{Deserialize, Serialize};

use super::error::{ProbeError, Result};

/// A file of labelled rows, and which of them to take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// JSON lines with `prompt` or `instruction`, and `label`.
    pub path: PathBuf,
    /// Every so many rows, one is held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<usize>,
    /// Take only rows of these styles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub styles: Option<Vec<String>>,
}

impl DataFile {
    /// All rows of a file.
    pub fn all(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), hold_out: None, styles: None }
    }

    /// The name of the file, without its extension.
    pub fn stem(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Reads the rows that are wanted and those that are held out, both in the file's order.
    ///
    /// # Errors
    /// The file can't be read, holds a row that can't be used, or none that is wanted.
    pub fn read(&self) -> Result<(Vec<Row>, Vec<Row>)> {
        let data = Dataset::read(&self.path)?;
        if let Some(bad) = data.bad.first() {
            let (line, problem) = (bad.line, bad.problem.clone());
            return Err(ProbeError::Row { path: self.path.clone(), line, problem });
        }
        let (mut rows, mut held_out) = (Vec::new(), Vec::new());
        for (index, row) in data.rows.into_iter().enumerate() {
            let is_held_out = self.hold_out.is_some_and(|every| (index + 1).is_multiple_of(every));
            if is_held_out { held_out.push(row) } else { rows.push(row) }
        }
        if let Some(styles) = &self.styles {
            let wanted = |row: &Row| row.style.as_ref().is_some_and(|style| styles.contains(style));
            rows.retain(wanted);
            held_out.retain(wanted);
        }
        if rows.is_empty() {
            return Err(ProbeError::Data(format!("{}: no row of it is wanted", self.path.display())));
        }
        Ok((rows, held_out))
    }
}

/// What the training record says of a file. No path: those of another machine mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name.
    pub file: String,
    /// Its sha256, hexadecimal.
    pub sha256: String,
    /// Rows taken that are harmful.
    pub harmful: usize,
    /// Rows taken that are benign.
    pub benign: usize,
}

impl FileRecord {
    /// For the rows taken of a file.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn new(path: &Path, rows: &[Row]) -> Result<Self> {
        let harmful = rows.iter().filter(|row| row.label == Verdict::Harmful).count();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file, sha256: sha256_file(path)?, harmful, benign: rows.len() - harmful })
    }
}

/// Where a row comes from: its `source`, else its file and the letters that its id begins with, by which the batches of
/// one data set are told apart.
pub fn source(row: &Row, stem: &str) -> String {
    if let Some(source) = &row.source {
        return source.clone();
    }
    let letters: String = row.id.chars().take_while(|c| c.is_alphabetic()).collect();
    if letters.is_empty() || letters.len() == row.id.len() {
        stem.into()
    } else {
        format!("{stem}/{letters}")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn rows_are_held_out_and_chosen_by_style() {
        let lines: String = (1..=20)
            .map(|i| {
                let style = if i % 4 == 0 { "everyday" } else { "direct" };
                format!(r#"{{"id": "d{i}", "prompt": "p", "label": "benign", "style": "{style}"}}"#) + "\n"
            })
            .collect();
        let file = file(&lines);
        let read = |hold_out, styles: Option<&str>| {
            let styles = styles.map(|style| vec![style.to_owned()]);
            let data = DataFile { path: file.path().into(), hold_out, styles };
            let (rows, held_out) = data.read().unwrap();
            let lines = |rows: Vec<Row>| rows.iter().map(|row| row.line).collect::<Vec<_>>();
            (lines(rows), lines(held_out))
        };
        assert_eq!(read(None, None), ((1..=20).collect(), vec![]));
        assert_eq!(read(Some(10), None), ((1..=9).chain(11..=19).collect(), vec![10, 20]));
        assert_eq!(read(Some(10), Some("everyday")), (vec![4, 8, 12, 16], vec![20]));
    }

    #[test]
    fn bad_rows_are_errors() {
        let file = file("{\"prompt\": \"p\", \"label\": \"benign\"}\n{\"prompt\": \"secret\"}\n");
        let error = DataFile::all(file.path()).read().unwrap_err().to_string();
        assert!(error.ends_with("line 2: no `label`"), "{error}");
    }

    #[test]
    fn sources() {
        fn check(line: &str, expected: &str) {
            let data = Dataset::from_bytes(line.as_bytes());
            assert_eq!(source(&data.rows[0], "train"), expected);
        }
        check(r#"{"id": "b017", "prompt": "p", "label": "benign"}"#, "train/b");
        check(r#"{"prompt": "p", "label": "benign"}"#, "train");
        check(r#"{"id": "name", "prompt": "p", "label": "benign"}"#, "train");
        check(r#"{"id": "b017", "prompt": "p", "label": "benign", "source": "set"}"#, "set");
    }
}
