//! What can go wrong while probes are made.

use std::path::{Path, PathBuf};

use forethought_core::{
    dataset::DatasetError,
    guard::bundle::{AdapterError, BundleError},
    metrics::MetricsError,
    model::ModelError,
    store::StoreError,
};

use crate::error::TrainError;

/// An error of the probes. It names what is wrong and where, and never holds text of an example.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A setting has no meaning.
    #[error("`{setting}`: {problem}")]
    Setting {
        /// Its path in the file.
        setting: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file in the cache is not what it should be.
    #[error("{path}: {problem}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A data file holds rows that can't be used.
    #[error("{path}, line {line}: {problem}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There is too little to fit on.
    #[error("{0}")]
    Data(String),
    /// The bundle was made for other weights.
    #[error("bundle `{bundle}` was made for a base model with sha256 {expected}, but {path} has {found}")]
    OtherBase {
        /// The bundle's name.
        bundle: String,
        /// The weights it was made for.
        expected: String,
        /// The weights' file.
        path: String,
        /// Its hash.
        found: String,
    },
    /// A plot can't be drawn.
    #[error("the plot {path} can't be drawn: {problem}")]
    Plot {
        /// Its file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A report can't be written as JSON.
    #[error("can't write JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The settings can't be read.
    #[error(transparent)]
    Settings(#[from] TrainError),
    /// A data file can't be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The bundle is wrong.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's adapter is wrong.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The base model can't be found or fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A score is no number.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

impl ProbeError {
    /// Names the file an error of the system belongs to.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn setting(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), problem: problem.into() }
    }
}

/// A result of the probes.
pub type Result<T> = std::result::Result<T, ProbeError>;
