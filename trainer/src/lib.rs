//! Tunes the guard: R1-Act examples in, a PEFT adapter out.

pub mod adapter;
pub mod cpu;
pub mod data;
pub mod error;
pub mod model;
pub mod ops;
mod pass;
pub mod stock;

pub use error::{Result, TrainError};
