//! The guard model: weights, forward pass and decoding.

pub mod q8;
