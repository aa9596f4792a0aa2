//! Probes: what the guard's hidden states say of a conversation before the guard has said anything.

pub mod pool;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use pool::Pool;

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
