//! What can go wrong in the trainer.

use std::path::PathBuf;

/// An error of the trainer. It names what is wrong and where, and never holds text of an example.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Parts of a model do not fit together.
    #[error("the base model is inconsistent: {0}")]
    Model(String),
    /// An example can't be trained on.
    #[error("example {index} can't be trained on: {reason}")]
    Example {
        /// Its place in the list that was passed.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting has no meaning.
    #[error("{setting} = {value} is out of range: {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The loss or a gradient is no longer a finite number.
    #[error(
        "training diverged at step {step}: the {what} is {value}; lower the learning rate or resume from an earlier checkpoint"
    )]
    Diverged {
        /// The step, from 0.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The value seen.
        value: f64,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A checkpoint does not hold what this run needs.
    #[error("{path} can't be resumed from: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is missing or different.
        reason: String,
    },
    /// A row can't be rendered.
    #[error("the row of line {line} can't be trained on: {problem}")]
    Row {
        /// Its line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An input file can't be used.
    #[error("{path}: {problem}")]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The teacher can't be asked, or no longer.
    #[error("the teacher can't be used: {0}")]
    Teacher(String),
    /// A data set can't be read.
    #[error(transparent)]
    Dataset(#[from] forethought_core::dataset::DatasetError),
    /// The base model's files are wrong.
    #[error(transparent)]
    Base(#[from] forethought_core::model::ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result of the trainer.
pub type Result<T> = std::result::Result<T, TrainError>;
