//! RMSNorm with a frozen weight: `y = x / rms(x) * w`, a row of `w.len()` values at a time.

use super::simd::{sum, vectorised};

/// Writes the norm of every row of `x` to `y`. Both hold whole rows of `weight.len()` values.
pub fn forward(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    vectorised(|| {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let scale = inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    });
}

/// Adds to `dx` the gradient of the input, given the input `x` and the output's gradient `dy`.
pub fn backward(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    vectorised(|| {
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width))
        {
            let scale = inverse_rms(x, eps);
            // dx = s (w dy) - x s^3 / n (x . (w dy)), with s = 1 / rms(x).
            let mut dot = 0.0;
            for ((x, dy), w) in x.chunks(32).zip(dy.chunks(32)).zip(weight.chunks(32)) {
                let mut products = [0.0; 32];
                for (((p, x), dy), w) in products.iter_mut().zip(x).zip(dy).zip(w) {
                    *p = x * dy * w;
                }
                dot += sum(&products, &products, |p, _| p);
            }
            let along = dot * scale * scale * scale / width as f32;
            for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx += scale * w * dy - along * x;
            }
        }
    });
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, x, |a, b| a * b) / x.len() as f32 + eps).sqrt()
}
