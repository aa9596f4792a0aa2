//! Element-wise helpers that the compiler can vectorise.
//!
//! The crate is compiled for a baseline CPU; [`vectorised`] compiles a closure again for the widest vectors and
//! picks at run time. Only what is inlined into the closure profits, hence the `inline(always)` below.

/// Runs `f` in a version compiled for this CPU's vectors.
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `e^x` within 2 units in the last place, clamped to finite normal numbers; NaN stays NaN.
///
/// Splits `x = n ln 2 + r` and takes a polynomial for `e^r` (the minimax one of Cephes' `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `clamp` or `max`: these compile to more, or turn NaN into a number.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Partial sums held side by side, since a strictly ordered sum can't be vectorised.
const LANES: usize = 32;

/// `sum of f(a_i, b_i)`.
#[inline(always)]
pub(crate) fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in a.zip(b) {
        for ((sum, &a), &b) in partial.iter_mut().zip(a).zip(b) {
            *sum += f(a, b);
        }
    }
    partial.iter().sum::<f32>() + rest
}

/// The largest value; `-inf` of none.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let mut partial = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| larger(m, v));
    for chunk in chunks {
        for (m, &v) in partial.iter_mut().zip(chunk) {
            *m = larger(*m, v);
        }
    }
    partial.iter().fold(rest, |m, &v| larger(m, v))
}

/// Replaces each value by `e^(value - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], shift: f32) -> f32 {
    let mut partial = [0.0; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (sum, v) in partial.iter_mut().zip(chunk) {
            *v = exp(*v - shift);
            *sum += *v;
        }
    }
    let mut rest = 0.0;
    for v in chunks.into_remainder() {
        *v = exp(*v - shift);
        rest += *v;
    }
    partial.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -870..=880 {
            let x = i as f32 / 10.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e9).is_finite() && exp(f32::NEG_INFINITY) > 0.0);
    }

    #[test]
    fn reductions_cover_head_and_tail() {
        for len in [0, 1, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..len).map(|i| (i % 11) as f32 - 5.0).collect();
            let expected: f32 = a.iter().map(|v| v * v).sum();
            assert_eq!(sum(&a, &a, |x, y| x * y), expected);
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut b = a.clone();
            let total = exp_sum(&mut b, 1.0);
            assert!((total - a.iter().map(|v| (v - 1.0).exp()).sum::<f32>()).abs() <= 1e-5 * total.abs());
        }
    }
}
