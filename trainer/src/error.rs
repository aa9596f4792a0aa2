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
    /// A run's settings are wrong.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Which key, and what is wrong with it.
        problem: String,
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
    /// A row of a file can't be used.
    #[error(
        "{path}:{line}: {problem}{}; mend it, or set `train.skip_bad_rows`",
        match .more { 0 => String::new(), n => format!(" (and {n} more rows of this file)") }
    )]
    BadRow {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
        /// Rows of the file with problems of their own.
        more: usize,
    },
    /// A file has no row to learn from.
    #[error("{path} holds no row that can be used")]
    NoRows {
        /// The file.
        path: String,
    },
    /// A run's folder can't be used.
    #[error("{path}: {problem}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// Scores can't be calibrated.
    #[error("these rows can't be calibrated: {0}")]
    Calibration(String),
    /// A model or data file can't be found or read.
    #[error(transparent)]
    Store(#[from] forethought_core::store::StoreError),
    /// A guard bundle is wrong.
    #[error(transparent)]
    Bundle(#[from] forethought_core::guard::bundle::BundleError),
    /// A bundle's adapter is wrong.
    #[error(transparent)]
    Adapter(#[from] forethought_core::guard::bundle::AdapterError),
    /// A score is not a number.
    #[error(transparent)]
    Metrics(#[from] forethought_core::metrics::MetricsError),
    /// A file of rows can't be read.
    #[error(transparent)]
    Data(#[from] forethought_core::dataset::DatasetError),
    /// A row can't be rendered.
    #[error("the row of line {line} can't be trained on: {problem}")]
    Row {
        /// Its line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Something can't be exported.
    #[error("{problem}")]
    Export {
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An export is not what it was made from.
    #[error(
        "the {export} export disagrees with the adapter: its worst logit is {found:.3} standard deviations off, and \
         {tolerance} are tolerated; nothing was written (`--tolerance` raises the bound)"
    )]
    Disagrees {
        /// The export.
        export: String,
        /// Largest difference of a logit, in standard deviations of the logits.
        found: f64,
        /// What it may be.
        tolerance: f64,
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
    /// The base model's files are wrong.
    #[error(transparent)]
    Base(#[from] forethought_core::model::ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result of the trainer.
pub type Result<T> = std::result::Result<T, TrainError>;
