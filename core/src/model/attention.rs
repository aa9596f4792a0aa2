//! Causal grouped-query attention of one sequence over its cache.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use rayon::prelude::*;

use super::{ModelConfig, Result, linear::with_slice};

/// From this many new tokens on, matrix products beat the loop below.
const MATMUL_FROM: usize = 24;

/// `q` `[tokens, heads * head_dim]`, `k` and `v` `[total, kv_heads * head_dim]`, where the new tokens are the last of
/// `total`; returns `[tokens, heads * head_dim]`.
pub(super) fn attend(config: &ModelConfig, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let on_cpu = matches!(q.device(), Device::Cpu) && q.dtype() == DType::F32;
    if on_cpu && q.dim(0)? < MATMUL_FROM {
        attend_loop(config, q, k, v)
    } else {
        attend_matmul(config, q, k, v)
    }
}

fn attend_matmul(config: &ModelConfig, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let ModelConfig { heads, kv_heads, head_dim, .. } = *config;
    let (tokens, total) = (q.dim(0)?, k.dim(0)?);
    let group = heads / kv_heads;
    // All query heads of a key head in one product: no key is ever repeated.
    let split = |t: &Tensor, n| t.reshape((n, kv_heads, head_dim))?.transpose(0, 1)?.contiguous();
    let q = q.reshape((tokens, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    let q = q.reshape((kv_heads, group * tokens, head_dim))?;
    let (k, v) = (split(k, total)?, split(v, total)?); // [kv_heads, total, head_dim]
    let scores = (q.matmul(&k.t()?)? * (head_dim as f64).powf(-0.5))?; // [kv_heads, group * tokens, total]
    let scores = if tokens > 1 {
        let mask = causal_mask(tokens, total, q.dtype(), q.device())?;
        scores.reshape((kv_heads, group, tokens, total))?.broadcast_add(&mask)?
    } else {
        scores.reshape((kv_heads, group, tokens, total))?
    };
    let weights = softmax_last_dim(&scores)?.reshape((kv_heads, group * tokens, total))?;
    let out = weights.matmul(&v)?.reshape((kv_heads, group, tokens, head_dim))?;
    Ok(out.permute((2, 0, 1, 3))?.contiguous()?.reshape((tokens, heads * head_dim))?)
}

/// `[tokens, total]`: zero where a token may look, minus infinity where it may not.
fn causal_mask(tokens: usize, total: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let past = total - tokens;
    let cell = |row, column| if column > past + row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> =
        (0..tokens).flat_map(|row| (0..total).map(move |column| cell(row, column))).collect();
    Ok(Tensor::from_vec(mask, (tokens, total), device)?.to_dtype(dtype)?)
}

/// For few tokens on the processor: no copies, one pass over keys and values.
fn attend_loop(config: &ModelConfig, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (tokens, total) = (q.dim(0)?, k.dim(0)?);
    let width = config.heads * config.head_dim;
    let mut out = vec![0f32; tokens * width];
    with_slice(q, |q| {
        with_slice(k, |k| {
            with_slice(v, |v| {
                let row = |(i, out): (usize, &mut [f32])| {
                    let q = &q[i * width..][..width];
                    let seen = (total - tokens + i + 1) * config.kv_width();
                    // The wider registers this may use are found at run time.
                    pulp::Arch::new().dispatch(|| attend_row(config, q, &k[..seen], &v[..seen], out));
                };
                // A thread is worth waking from about half a million multiplications on.
                if tokens * total * width > 1 << 18 {
                    out.par_chunks_mut(width).enumerate().for_each(row);
                } else {
                    out.chunks_mut(width).enumerate().for_each(row);
                }
                Ok(())
            })
        })
    })?;
    Ok(Tensor::from_vec(out, (tokens, width), &Device::Cpu)?)
}

/// One token: `q` and `out` `[heads, head_dim]`, `k` and `v` `[seen, kv_heads, head_dim]`.
#[inline(always)]
fn attend_row(config: &ModelConfig, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let ModelConfig { heads, kv_heads, head_dim, .. } = *config;
    let (width, group) = (config.kv_width(), heads / kv_heads);
    let scale = (head_dim as f32).powf(-0.5);
    let mut weights = vec![0f32; k.len() / width];
    for head in 0..heads {
        let offset = head / group * head_dim;
        let q = &q[head * head_dim..][..head_dim];
        let mut max = f32::NEG_INFINITY;
        for (weight, k) in weights.iter_mut().zip(k.chunks_exact(width)) {
            *weight = dot(q, &k[offset..][..head_dim]) * scale;
            max = max.max(*weight);
        }
        let mut sum = 0.0;
        for weight in &mut weights {
            *weight = (*weight - max).exp();
            sum += *weight;
        }
        let out = &mut out[head * head_dim..][..head_dim];
        for (weight, v) in weights.iter().zip(v.chunks_exact(width)) {
            let weight = weight / sum;
            for (out, v) in out.iter_mut().zip(&v[offset..][..head_dim]) {
                *out += weight * v;
            }
        }
    }
}

/// Sixteen running sums, for the compiler to hold in registers: it may not reorder a float sum by itself.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}
