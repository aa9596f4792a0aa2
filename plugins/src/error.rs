//! What can go wrong with a plugin: when it is loaded, and when it is called.

use std::{path::PathBuf, time::Duration};

use wasmtime::Trap;

/// Why a plugin can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine does not start.
    #[error("the WebAssembly engine can't start: {0}")]
    Engine(String),
    /// The file can't be read.
    #[error("can't read the plugin {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no plugin.
    #[error("{} is not a policy plugin: {message}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What it is, and what would be right.
        message: String,
    },
    /// The plugin wants more than it is granted.
    #[error("{} imports `{import}`, which is not granted: {remedy}", .path.display())]
    Ungranted {
        /// The file.
        path: PathBuf,
        /// The import.
        import: String,
        /// What would grant it.
        remedy: String,
    },
    /// Its `init` fails.
    #[error("the plugin {} does not start: {failure}", .path.display())]
    Init {
        /// The file.
        path: PathBuf,
        /// How.
        failure: Failure,
    },
}

/// Why a call of a plugin gave no decision. Messages hold nothing that a plugin wrote, except those of `init`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It took too long.
    #[error("it did not decide within {} ms (its setting `time_ms`)", .after.as_millis())]
    Deadline {
        /// The time it had.
        after: Duration,
    },
    /// It asked for too much memory.
    #[error("it asked for more than {limit} bytes of memory (its setting `memory_bytes`)")]
    Memory {
        /// The most it may have, in bytes.
        limit: usize,
    },
    /// It asked for too large a table.
    #[error("it asked for a table of more than {limit} elements")]
    Table {
        /// The most it may have.
        limit: usize,
    },
    /// It called itself too deeply.
    #[error("its stack overflowed")]
    Stack,
    /// It returned too much.
    #[error("it returned more than {limit} bytes (its setting `output_bytes`)")]
    Output {
        /// The most it may return, in bytes.
        limit: usize,
    },
    /// It trapped: panicked, as a rule.
    #[error("it trapped: {0}")]
    Trap(String),
    /// What it returned is not what the interface says, such as text that is not UTF-8.
    #[error("it returned what its interface does not allow: {0}")]
    Malformed(String),
    /// It rejects its configuration.
    #[error("it rejects its configuration: {0}")]
    Rejects(String),
    /// Too many calls run already.
    #[error("too many calls of plugins run at once")]
    Overloaded,
    /// The host itself failed.
    #[error("the host failed: {0}")]
    Host(String),
}

impl Failure {
    /// The word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => "deadline",
            Self::Memory { .. } => "memory",
            Self::Table { .. } => "table",
            Self::Stack => "stack",
            Self::Output { .. } => "output",
            Self::Trap(_) => "trap",
            Self::Malformed(_) => "malformed",
            Self::Rejects(_) => "rejects",
            Self::Overloaded => "overloaded",
            Self::Host(_) => "host",
        }
    }

    /// The failure behind an error of wasmtime's; `limit` is the cap on output.
    pub(crate) fn of(error: &wasmtime::Error, after: Duration, limit: usize) -> Self {
        if let Some(own) = error.downcast_ref::<Self>() {
            return own.clone();
        }
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return Self::Overloaded;
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Deadline { after },
            Some(Trap::StackOverflow) => Self::Stack,
            Some(trap) => Self::Trap(trap.to_string()),
            // wasmtime's own type for this is private.
            None => match error.root_cause().to_string() {
                text if text.contains("hostcalls") => Self::Output { limit },
                text => Self::Malformed(text),
            },
        }
    }
}
