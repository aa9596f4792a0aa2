//! Tunes the guard: R1-Act examples in, a PEFT adapter out.

pub mod adapter;
pub mod cpu;
pub mod data;
pub mod error;
mod load;
pub mod model;
pub mod ops;
pub mod optim;
mod pass;
pub mod r1act;
pub mod schedule;
pub mod state;
pub mod stock;
pub mod train;

pub use error::{Result, TrainError};
