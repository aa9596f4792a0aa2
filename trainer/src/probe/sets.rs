//! Labelled conversations with the places of their states.

use std::collections::HashSet;

use forethought_core::{dataset::Row, evidence::Verdict, probe::Position};

use super::{
    cache::Key,
    classifier::Classifier,
    error::Result,
    reader::{Reader, Reading},
    rows::{DataFile, FileRecord, source},
};

/// One labelled conversation.
#[derive(Clone, Debug)]
pub struct Example {
    /// The truth.
    pub label: Verdict,
    /// Where it comes from.
    pub source: String,
    /// Its hazard, or the one it could be mistaken for.
    pub category: Option<String>,
    /// How it is written.
    pub style: Option<String>,
    /// Its windows.
    pub windows: Vec<Key>,
    /// Its file, by number.
    file: usize,
}

/// Conversations that are fitted on or scored together, in the order of their files.
#[derive(Clone, Debug, Default)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The conversations.
    pub examples: Vec<Example>,
    /// The files they are from.
    pub files: Vec<FileRecord>,
    /// Rows that were left out.
    pub left_out: usize,
}

impl Set {
    /// A set of no rows.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds rows of a file; gives back what is to be [read](Reader::read).
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn add(&mut self, reader: &Reader, file: &DataFile, rows: Vec<Row>) -> Result<Vec<Reading>> {
        let number = self.files.len();
        self.files.push(FileRecord::new(&file.path, &rows)?);
        let mut readings = Vec::with_capacity(rows.len());
        for row in rows {
            let reading = reader.prepare(&row.conversation)?;
            self.examples.push(Example {
                label: row.label,
                source: source(&row, &file.stem()),
                windows: reading.keys(),
                category: row.category,
                style: row.style,
                file: number,
            });
            readings.push(reading);
        }
        Ok(readings)
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        let files = self.files.len();
        self.files.extend_from_slice(&other.files);
        self.examples.extend(other.examples.iter().map(|e| Example { file: files + e.file, ..e.clone() }));
        self.left_out += other.left_out;
    }

    /// Leaves out what `keep` rejects.
    pub fn retain(&mut self, keep: impl FnMut(&Example) -> bool) {
        let before = self.examples.len();
        self.examples.retain(keep);
        self.left_out += before - self.examples.len();
    }

    /// The windows of all examples.
    pub fn windows(&self) -> HashSet<Key> {
        self.examples.iter().flat_map(|e| &e.windows).copied().collect()
    }

    /// The labels.
    pub fn labels(&self) -> Vec<Verdict> {
        self.examples.iter().map(|e| e.label).collect()
    }

    /// The file of each example, by number.
    pub fn file_numbers(&self) -> Vec<usize> {
        self.examples.iter().map(|e| e.file).collect()
    }

    /// States of the first window of each example, `[examples, width]`.
    ///
    /// # Errors
    /// As [`Reader::states`].
    pub fn first_states(&self, reader: &mut Reader, layer: usize, position: Position) -> Result<Vec<f32>> {
        let keys: Vec<Key> = self.examples.iter().filter_map(|e| e.windows.first()).copied().collect();
        reader.states(&keys, layer, position)
    }

    /// States of all windows, `[windows, width]`.
    ///
    /// # Errors
    /// As [`Reader::states`].
    pub fn states(&self, reader: &mut Reader, layer: usize, position: Position) -> Result<Vec<f32>> {
        let keys: Vec<Key> = self.examples.iter().flat_map(|e| &e.windows).copied().collect();
        reader.states(&keys, layer, position)
    }

    /// A classifier's logit for each example, of the [states](Self::states) of all windows: the highest over the
    /// example's windows, as the guard takes it.
    pub fn logits(&self, states: &[f32], classifier: &Classifier) -> Vec<f64> {
        let logits = classifier.logits(states);
        let mut rest = &logits[..];
        let highest = self.examples.iter().map(|example| {
            let (own, others) = rest.split_at(example.windows.len());
            rest = others;
            own.iter().fold(f64::NEG_INFINITY, |highest, &logit| highest.max(f64::from(logit)))
        });
        highest.collect()
    }
}
