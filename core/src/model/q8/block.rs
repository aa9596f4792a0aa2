//! Blocks of 32 numbers in eight bits: how weights and activations are rounded.

use half::f16;

/// Numbers that share one scale, along `k`.
pub const BLOCK: usize = 32;

/// The largest quantised magnitude. -128 is not used, so that a sign can always be flipped.
const PEAK: f32 = 127.0;

/// Blocks whose numbers are all smaller count as zero: the reciprocal of their scale would overflow.
const TINY: f32 = 1e-36;

/// Added to a number below 2^22, this leaves the nearest integer (ties to even) in the low bits. Unlike
/// `f32::round_ties_even` it needs nothing above SSE2 to be one instruction on every lane.
const ROUND: f32 = (3 << 22) as f32;

/// 32 activations, next to each other in memory with what else the kernels read about them.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Block {
    pub(super) quants: [i8; BLOCK],
    pub(super) scale: f32,
    /// `-128 * sum(quants)`: what to start a sum of products from where weights are stored with 128 added.
    pub(super) bias: i32,
}

impl Block {
    pub(super) const ZERO: Self = Self { quants: [0; BLOCK], scale: 0.0, bias: 0 };

    /// Quantises 32 activations. NaN or infinity among them makes the block's scale NaN.
    // Inlined so that each kernel's caller compiles it for its own vectors.
    #[inline(always)]
    pub(super) fn new(x: &[f32; BLOCK]) -> Self {
        let peak = peak(x);
        if !peak.is_finite() {
            return Self { scale: f32::NAN, ..Self::ZERO };
        }
        if peak < TINY {
            return Self::ZERO;
        }
        let quants = round(x, PEAK / peak);
        let sum: i32 = quants.iter().map(|&q| i32::from(q)).sum();
        Self { quants, scale: peak / PEAK, bias: -128 * sum }
    }
}

/// Quantises 32 weights; `None` if one is NaN, infinite or too large.
pub(super) fn weights(w: &[f32; BLOCK]) -> Option<([i8; BLOCK], f16)> {
    let scale = f16::from_f32(peak(w) / PEAK);
    if !scale.is_finite() {
        return None;
    }
    if scale == f16::ZERO {
        return Some(([0; BLOCK], scale));
    }
    // By the scale as stored; clamped, because that may be a little less than the one wanted.
    let inverse = scale.to_f32().recip();
    let limit = PEAK * scale.to_f32();
    Some((round(&w.map(|w| w.clamp(-limit, limit)), inverse), scale))
}

/// The largest magnitude; NaN or infinity if any number is. Magnitudes order as their bits do, NaN last.
#[inline(always)]
fn peak(x: &[f32; BLOCK]) -> f32 {
    f32::from_bits(x.iter().fold(0, |peak, x| peak.max(x.abs().to_bits())))
}

#[inline(always)]
fn round(x: &[f32; BLOCK], inverse: f32) -> [i8; BLOCK] {
    let mut quants = [0; BLOCK];
    for (q, x) in quants.iter_mut().zip(x) {
        *q = (x * inverse + ROUND).to_bits() as i8;
    }
    quants
}
