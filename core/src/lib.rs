//! What every part of Forethought shares: the conversation in one form for all wire formats, the evidence a
//! guard finds, the policy that decides on it, and the local guard model itself.
//!
//! The words used here (guard, evidence, assessment, coverage, policy, decision) are those of `ARCHITECTURE.md`.

pub mod conversation;
pub mod dataset;
pub mod engine;
pub mod evidence;
pub mod generate;
pub mod guard;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod probe;
pub mod store;
