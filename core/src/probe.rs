//! Probes: what the guard's hidden states say of a conversation before the guard has said anything.
//!
//! A probe is an ONNX file: from one state of one layer to P(harmful). [`onnx`] opens and runs it, [`runtime`] finds the
//! library that does so, [`pool`] boils a window's states down to the one that a probe reads.

pub mod onnx;
pub mod pool;
pub mod runtime;

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    guard::{Bundle, bundle::BundleError},
    store::{Progress, Store},
};

pub use onnx::{Made, Probe, ProbeInfo, ProbeSource};
pub use pool::Pool;
pub use runtime::{ExecutionProvider, Runtime, RuntimeError};

/// Which state of a window a probe reads.
///
/// The guard reads `prefix + window + suffix + direct verdict`; the window is its part of the transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// That of the last token read, before the verdict.
    Last,
    /// The mean over the window's own tokens.
    Mean,
    /// The largest value of each dimension over the window's own tokens.
    Max,
}

impl Position {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Last, Self::Mean, Self::Max];

    /// `last`, `mean` or `max`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|p| p.as_str() == s);
        known.ok_or_else(|| format!("unknown position `{s}`: use `last`, `mean` or `max`"))
    }
}

/// Why a probe can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The library that runs probes is not to be had.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The bundle does not hold the file that it names.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file can't be read.
    #[error("can't read the probe {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is damaged, or no ONNX.
    #[error("the probe {file} is damaged, or no ONNX file ({problem}): copy or export it again")]
    Corrupt {
        /// The file.
        file: String,
        /// What ONNX Runtime says.
        problem: String,
    },
    /// The file is whole, but no probe for this program.
    #[error("the probe {file} {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The probe was fitted on the states of another guard: its readings would mean nothing.
    #[error(
        "the probe {file} was made for another {what}: {made_for}, but this guard has {has}. Fit it again for this \
         guard, or use the guard that it was made for"
    )]
    MadeForAnother {
        /// The file.
        file: String,
        /// `base model`, `adapter` or `template`.
        what: &'static str,
        /// What it was made for.
        made_for: String,
        /// What the guard has.
        has: String,
    },
    /// Two probes have the same name.
    #[error("two probes are called `{name}` ({first} and {second}): give one of them another `name`")]
    SameName {
        /// The name.
        name: String,
        /// The first probe's file.
        first: String,
        /// The second probe's file.
        second: String,
    },
    /// A running probe failed.
    #[error("the probe `{name}` failed: {problem}")]
    Run {
        /// The probe.
        name: String,
        /// What went wrong.
        problem: String,
    },
}

/// Where probes compute, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// ONNX Runtime's library, where it is not to be looked for.
    pub library: Option<std::path::PathBuf>,
    /// Where probes compute; the processor takes what no other can.
    pub providers: Vec<ExecutionProvider>,
}

/// Opens the probes of `bundle` and those of `own`, in this order. Without any, ONNX Runtime is not loaded.
///
/// # Errors
/// ONNX Runtime can't be found, fetched or used; a probe can't be read, or two have the same name. The message says which.
pub fn open(
    bundle: &Bundle,
    own: Vec<ProbeSource>,
    options: &RuntimeOptions,
    store: &Store,
    progress: &dyn Progress,
) -> Result<Vec<Arc<Probe>>, ProbeError> {
    let mut sources = bundle.probes()?;
    sources.extend(own);
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let runtime = Runtime::load(options.library.as_deref(), store, progress)?;
    let mut probes: Vec<Arc<Probe>> = Vec::with_capacity(sources.len());
    for source in sources {
        let probe = Probe::open(&runtime, source, &options.providers)?;
        if let Some(other) = probes.iter().find(|other| other.info().name == probe.info().name) {
            let [first, second] = [other, &Arc::new(probe)].map(|p| p.info().file.clone());
            return Err(ProbeError::SameName { name: other.info().name.clone(), first, second });
        }
        probes.push(Arc::new(probe));
    }
    Ok(probes)
}

impl ProbeSource {
    /// A probe in a file of the user's own.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(file: &Path, made: Made) -> Result<Self, ProbeError> {
        let name = file.display().to_string();
        match std::fs::read(file) {
            Ok(bytes) => Ok(Self { file: name, bytes: bytes.into(), made, own: true }),
            Err(source) => Err(ProbeError::Io { file: name, source }),
        }
    }
}
