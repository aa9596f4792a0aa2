//! Labelled conversations with the places of their states.

use std::collections::HashSet;

use forethought_core::{evidence::Verdict, probe::Position};

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
    /// Reads the rows of `files`. Their states are to be [read](Reader::read) next.
    ///
    /// # Errors
    /// A file can't be read or holds a row that can't be used.
    pub fn load(reader: &Reader, name: &str, files: &[DataFile]) -> Result<(Self, Vec<Reading>)> {
        let mut set = Self { name: name.to_owned(), ..Self::default() };
        let mut readings = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let rows = file.read()?;
            set.files.push(FileRecord::new(&file.path, &rows)?);
            for row in rows {
                let reading = reader.prepare(&row.conversation)?;
                set.examples.push(Example {
                    label: row.label,
                    source: source(&row, &file.stem()),
                    windows: reading.keys(),
                    category: row.category,
                    style: row.style,
                    file: number,
                });
                readings.push(reading);
            }
        }
        Ok((set, readings))
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

    /// A classifier's logit for each example: the highest over its windows, as the guard takes it.
    ///
    /// # Errors
    /// As [`Reader::states`].
    pub fn logits(
        &self,
        reader: &mut Reader,
        layer: usize,
        position: Position,
        classifier: &Classifier,
    ) -> Result<Vec<f64>> {
        let keys: Vec<Key> = self.examples.iter().flat_map(|e| &e.windows).copied().collect();
        let logits = classifier.logits(&reader.states(&keys, layer, position)?);
        let mut rest = &logits[..];
        let highest = self.examples.iter().map(|example| {
            let (own, others) = rest.split_at(example.windows.len());
            rest = others;
            own.iter().fold(f64::NEG_INFINITY, |highest, &logit| highest.max(f64::from(logit)))
        });
        Ok(highest.collect())
    }
}
