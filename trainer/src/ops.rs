//! The operations of a training step on the CPU, each a forward and a backward function over slices of `f32`.
//!
//! Matrices are row-major, a row a token. Nothing here allocates matrices, starts threads or knows about layers:
//! callers own the buffers (and so can reuse them), and run several token ranges side by side. What a backward
//! function needs again and is cheap (norms, attention weights, the activation) is computed again, not kept.
//!
//! Every pair is tested against candle's autograd and against finite differences.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod amx;
pub mod attention;
pub mod blocks;
pub mod linear;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod rope;
pub(crate) mod simd;
pub mod swiglu;
pub mod weight;
