//! The gated activation of Llama's MLP: `h = silu(gate) * up`, with gate and up side by side in one matrix.

use super::simd::{exp, vectorised};

/// Writes `h` (rows of `width`) from `gate_up` (rows of `2 width`: the gate, then up).
pub fn forward(gate_up: &[f32], width: usize, h: &mut [f32]) {
    vectorised(|| {
        for (row, h) in gate_up.chunks_exact(2 * width).zip(h.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((h, &gate), &up) in h.iter_mut().zip(gate).zip(up) {
                *h = gate / (1.0 + exp(-gate)) * up;
            }
        }
    });
}

/// Turns `gate_up` into its own gradient, given that of `h`.
pub fn backward(gate_up: &mut [f32], width: usize, dh: &[f32]) {
    vectorised(|| {
        for (row, dh) in gate_up.chunks_exact_mut(2 * width).zip(dh.chunks_exact(width)) {
            let (gate, up) = row.split_at_mut(width);
            for ((gate, up), &dh) in gate.iter_mut().zip(up).zip(dh) {
                let sigmoid = 1.0 / (1.0 + exp(-*gate));
                let silu = *gate * sigmoid;
                (*gate, *up) = (dh * *up * (sigmoid + silu * (1.0 - sigmoid)), dh * silu);
            }
        }
    });
}
