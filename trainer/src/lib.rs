//! Tunes the guard: R1-Act examples in, a PEFT adapter out.
//!
//! [`dataset`] is about what it learns from: data sets are checked, converted, and given phases by a teacher.
//!
//! To read in order: [`r1act`] renders rows as sequences, [`data`] packs sequences into rows of one matrix, [`ops`] are
//! the operations on it with their gradients, `pass` strings them together into a model's forward and backward pass,
//! [`cpu`] shares a batch among cores, and [`train`] makes steps of it. The [`model`] is frozen; what is trained is one
//! flat vector laid out by [`adapter`]; [`export`] writes it in the forms that others read.
//!
//! Gradients are written by hand, since candle's autograd computes those of frozen weights too, keeps every
//! intermediate and reuses no buffer. [`stock`] is the same step under that autograd: the oracle of the tests, and the
//! way to devices other than the CPU.

pub mod adapter;
pub mod calibrate;
pub mod cli;
pub mod combine;
pub mod config;
pub mod cpu;
pub mod data;
pub mod dataset;
pub mod engine;
pub mod error;
pub mod export;
mod load;
pub mod model;
pub mod ops;
pub mod optim;
mod pass;
pub mod probe;
pub mod r1act;
pub mod report;
pub mod response;
pub mod results;
pub mod schedule;
pub mod sft;
pub mod source;
pub mod state;
pub mod stock;
pub mod train;

pub use error::{Result, TrainError};
