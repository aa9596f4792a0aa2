//! Probes: small classifiers on the guard's hidden states, fitted, calibrated and written as ONNX.
//!
//! To read in order: [`config`] is what a run is told and [`run()`] does it. [`rows`], [`sets`] and [`inputs`] are its
//! data, [`reader`] gets the states as the guard itself sees them and [`cache`] keeps them; [`folds`] and [`search`] find
//! out where to look, and [`classifier`] is what is fitted there. [`made`] turns that into a probe and [`onnx`] into a
//! file; [`scores`] and [`curve`] say what it is worth, [`report`] writes it down.

pub mod cache;
pub mod classifier;
pub mod config;
pub mod curve;
pub mod error;
pub mod folds;
pub mod inputs;
pub(crate) mod lbfgs;
pub mod made;
pub mod onnx;
pub mod reader;
pub mod report;
pub mod rows;
pub mod run;
pub mod scores;
pub mod search;
pub mod sets;

pub use config::Config;
pub use error::{ProbeError, Result};
pub use report::Report;
pub use run::run;

/// Hears of a run's progress: what it is at, how much of it is done, and of how much.
pub type Progress<'a> = &'a mut dyn FnMut(&str, usize, usize);
