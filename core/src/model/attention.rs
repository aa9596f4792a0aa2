//! Causal grouped-query attention of one sequence over its cache.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;
use rayon::prelude::*;

use super::{ModelConfig, Result, linear::with_slice};

/// From this many new tokens on, matrix products beat the loop below.
const MATMUL_FROM: usize = 24;

/// `q` `[tokens, heads * head_dim]`, `k` and `v` `[total, kv_heads * head_dim]`, where the new tokens are the last of
/// `total`, and `mask` is their [`mask`]; returns `[tokens, heads * head_dim]`.
pub(super) fn attend(
    config: &ModelConfig,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    if on_cpu(q) && q.dim(0)? < MATMUL_FROM {
        attend_loop(config, q, k, v)
    } else {
        attend_matmul(config, q, k, v, mask)
    }
}

fn on_cpu(tensor: &Tensor) -> bool {
    matches!(tensor.device(), Device::Cpu) && tensor.dtype() == DType::F32
}

fn attend_matmul(
    config: &ModelConfig,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let ModelConfig { heads, kv_heads, head_dim, .. } = *config;
    let (tokens, total) = (q.dim(0)?, k.dim(0)?);
    let group = heads / kv_heads;
    // All query heads of a key head in one product: no key is ever repeated.
    let split = |t: &Tensor, n| t.reshape((n, kv_heads, head_dim))?.transpose(0, 1)?.contiguous();
    let q = q.reshape((tokens, kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?.contiguous()?;
    let q = q.reshape((kv_heads, group * tokens, head_dim))?;
    let (k, v) = (split(k, total)?, split(v, total)?); // [kv_heads, total, head_dim]
    let scores = q.matmul(&k.t()?)?; // [kv_heads, group * tokens, total]
    let weights = if on_cpu(&scores) {
        causal_softmax(&scores, tokens, head_dim)?
    } else {
        let scores = (scores * (head_dim as f64).powf(-0.5))?.reshape((kv_heads, group, tokens, total))?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        softmax_last_dim(&scores)?.reshape((kv_heads, group * tokens, total))?
    };
    let out = weights.matmul(&v)?.reshape((kv_heads, group, tokens, head_dim))?;
    Ok(out.permute((2, 0, 1, 3))?.contiguous()?.reshape((tokens, heads * head_dim))?)
}

/// `[tokens, total]`: zero where a token may look, minus infinity where it may not. `None` where nothing is masked, since one
/// token sees all, or where it is done on the way, on the processor. It is made once for all layers: a copy to a device waits
/// for what the device has still to do.
pub(super) fn mask(tokens: usize, total: usize, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
    if tokens < 2 || (matches!(device, Device::Cpu) && dtype == DType::F32) {
        return Ok(None);
    }
    let past = total - tokens;
    let cell = |row, column| if column > past + row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> =
        (0..tokens).flat_map(|row| (0..total).map(move |column| cell(row, column))).collect();
    Ok(Some(Tensor::from_vec(mask, (tokens, total), device)?.to_dtype(dtype)?))
}

/// Scaling, mask and softmax of `scores` `[.., group * tokens, total]` in one pass: over thousands of tokens, separate
/// passes and a scalar `exp` would cost more than the products.
fn causal_softmax(scores: &Tensor, tokens: usize, head_dim: usize) -> Result<Tensor> {
    let total = scores.dim(2)?;
    let scale = (head_dim as f32).powf(-0.5);
    let mut weights = vec![0f32; scores.elem_count()];
    with_slice(scores, |scores| {
        let rows = weights.par_chunks_mut(total).zip(scores.par_chunks(total)).enumerate();
        rows.with_min_len(16).for_each(|(row, (weights, scores))| {
            let seen = total - tokens + row % tokens + 1;
            pulp::Arch::new().dispatch(|| softmax_row(&scores[..seen], scale, &mut weights[..seen]));
        });
        Ok(())
    })?;
    Ok(Tensor::from_vec(weights, scores.shape(), &Device::Cpu)?)
}

#[inline(always)]
fn softmax_row(scores: &[f32], scale: f32, weights: &mut [f32]) {
    let max = reduce(scores, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    for (weight, score) in weights.iter_mut().zip(scores) {
        *weight = exp((score - max) * scale);
    }
    let sum = reduce(weights, 0.0, |a, b| a + b);
    for weight in weights {
        *weight /= sum;
    }
}

/// Sixteen running results, for the compiler to hold in registers: it may not reorder float operations by itself.
#[inline(always)]
fn reduce(values: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder().iter().fold(start, |a, &b| f(a, b));
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, value);
        }
    }
    lanes.iter().fold(rest, |a, &b| f(a, b))
}

/// `e^x` for `x <= 0` to about 2e-7, in a form that compilers turn into vector code: `2^k` by the exponent's bits,
/// `2^f` for `f` in `[-0.5, 0.5]` by its Taylor series. NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x } * std::f32::consts::LOG2_E;
    let k = x.round_ties_even();
    let f = (x - k) * std::f32::consts::LN_2;
    let series =
        1.0 + f * (1.0 + f / 2.0 * (1.0 + f / 3.0 * (1.0 + f / 4.0 * (1.0 + f / 5.0 * (1.0 + f / 6.0)))));
    f32::from_bits(((k as i32 + 127) << 23) as u32) * series
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

/// One token: `q` and `out` `[heads, head_dim]`, `k` and `v` `[seen, kv_heads, head_dim]`. All query heads of a key head
/// go together, so that each key and value is fetched once.
#[inline(always)]
fn attend_row(config: &ModelConfig, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let ModelConfig { heads, kv_heads, head_dim, .. } = *config;
    let (width, group) = (config.kv_width(), heads / kv_heads);
    let (seen, scale) = (k.len() / width, (head_dim as f32).powf(-0.5));
    let mut scores = vec![0f32; group * seen];
    let mut weights = vec![0f32; group * seen];
    let groups = q.chunks_exact(group * head_dim).zip(out.chunks_exact_mut(group * head_dim));
    for (kv_head, (q, out)) in groups.enumerate() {
        let offset = kv_head * head_dim;
        for (t, k) in k.chunks_exact(width).enumerate() {
            for (q, scores) in q.chunks_exact(head_dim).zip(scores.chunks_exact_mut(seen)) {
                scores[t] = dot(q, &k[offset..][..head_dim]);
            }
        }
        for (scores, weights) in scores.chunks_exact(seen).zip(weights.chunks_exact_mut(seen)) {
            softmax_row(scores, scale, weights);
        }
        for (t, v) in v.chunks_exact(width).enumerate() {
            for (weights, out) in weights.chunks_exact(seen).zip(out.chunks_exact_mut(head_dim)) {
                for (out, v) in out.iter_mut().zip(&v[offset..][..head_dim]) {
                    *out += weights[t] * v;
                }
            }
        }
    }
}

/// A dot product in sixteen running sums; see [`reduce`].
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
    // By halves: a chain of sixteen additions would take longer than the products.
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0] + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library() {
        for i in 0..87_000 {
            let x = -(i as f32) / 1000.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-5, "{x}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN).is_nan());
    }

    /// The two ways to compute attention agree, whatever the number of new tokens.
    #[test]
    fn loop_and_products_agree() -> Result<()> {
        let config = ModelConfig {
            architecture: crate::model::Architecture::Llama,
            hidden_size: 24,
            intermediate_size: 8,
            layers: 1,
            heads: 6,
            kv_heads: 2,
            head_dim: 20,
            vocab_size: 8,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: crate::model::config::RopeScaling::None,
            context: 128,
        };
        for (tokens, total) in [(1, 1), (1, 33), (2, 2), (7, 40), (40, 40)] {
            let random = |rows, width| Tensor::randn(0f32, 2.0, (rows, width), &Device::Cpu);
            let (q, k, v) = (random(tokens, 120)?, random(total, 40)?, random(total, 40)?);
            let one = attend_loop(&config, &q, &k, &v)?.flatten_all()?.to_vec1::<f32>()?;
            let other = attend_matmul(&config, &q, &k, &v, None)?.flatten_all()?.to_vec1::<f32>()?;
            // The way of devices, with a mask; the processor goes it for types of its own.
            let [q, k, v] = [q, k, v].map(|t| t.to_dtype(DType::F64));
            let mask = mask(tokens, total, DType::F64, &Device::Cpu)?;
            let masked = attend_matmul(&config, &q?, &k?, &v?, mask.as_ref())?;
            let masked = masked.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for other in [other, masked] {
                let worst = one.iter().zip(&other).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(worst < 1e-4, "{tokens} of {total}: {worst}");
            }
        }
        Ok(())
    }
}
