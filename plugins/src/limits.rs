//! What a plugin may take up.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::error::Failure;

/// What one call of a plugin may take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for one call, waiting for the host included.
    pub time: Duration,
    /// Most memory of one instance, in bytes.
    pub memory_bytes: usize,
    /// Most of what a call may return, in bytes.
    pub output_bytes: usize,
    /// Most of what a call may write to the log, in bytes; more is dropped.
    pub log_bytes: usize,
}

impl Limits {
    /// The most memory that can be allowed, in bytes.
    pub const MOST_MEMORY: usize = 512 << 20;
    /// Most elements of all tables of an instance.
    pub(crate) const TABLE_ELEMENTS: usize = 200_000;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_millis(250),
            memory_bytes: 64 << 20,
            output_bytes: 1 << 20,
            log_bytes: 4 << 10,
        }
    }
}

/// Counts the memory and tables of one instance. Growth beyond a cap ends the call with an error that names the cap; a
/// plugin is not asked whether it could do with less.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_limit: usize,
    memory: usize,
    elements: usize,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { memory_limit: limits.memory_bytes, memory: 0, elements: 0 }
    }

    /// Bytes of memory in use.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // A component may have several memories: the cap is on their sum.
        let all = self.memory.saturating_add(desired.saturating_sub(current));
        if all > self.memory_limit {
            return Err(Failure::Memory { limit: self.memory_limit }.into());
        }
        self.memory = all;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let all = self.elements.saturating_add(desired.saturating_sub(current));
        if all > Limits::TABLE_ELEMENTS {
            return Err(Failure::Table { limit: Limits::TABLE_ELEMENTS }.into());
        }
        self.elements = all;
        Ok(true)
    }
}
