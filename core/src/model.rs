//! The guard's language model: one decoder for llama, qwen2 and qwen3, its tokenizer and its chat template.
//!
//! candle types stay in here. A [`Checkpoint`] reads a GGUF file or a folder of safetensors under one set of names;
//! [`Decoder`] runs it over ragged batches; [`Tokenizer`] keeps user text and control tokens apart.

pub mod adapter;
mod attention;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod device;
pub mod gguf;
pub mod linear;
pub mod q8;
mod rope;
pub mod sampler;
pub mod template;
pub mod tokenizer;

pub use adapter::Adapter;
pub use cache::KvCache;
pub use checkpoint::Checkpoint;
pub use config::{Architecture, ModelConfig};
pub use decoder::{Decoder, LoadOptions, Sequence, States, Want};
pub use device::DeviceChoice;
pub use linear::Precision;
pub use template::{ChatTemplate, Piece};
pub use tokenizer::Tokenizer;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file can't be read.
    #[error("can't read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file or folder.
        path: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The device is not there, or not compiled in.
    #[error("{0}")]
    Device(String),
    /// Text can't be tokenized.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A chat template can't be rendered.
    #[error("the chat template failed: {0}")]
    Template(String),
    /// A computation failed.
    #[error("computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    pub(crate) fn invalid(path: &std::path::Path, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.display().to_string(), problem: problem.into() }
    }
}

/// Result of this module's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
