//! The head and the cross-entropy together, for the positions that count, a chunk of them at a time: the logits of
//! all positions never exist at once, and those of the prompt never exist at all.

use super::attention::sized;
use super::matmul::Into;
use super::simd::{exp_sum, max, vectorised};
use super::weight::Frozen;

/// Positions whose logits are held at once; at 49,152 tokens that is 25 MB.
const CHUNK: usize = 128;

/// What a position should predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The token.
    pub token: u32,
    /// Weight of its loss.
    pub weight: f32,
}

/// Writes each position's negative log-likelihood to `nll`, unweighted, and, where `dx` is given, the gradient of
/// `scale * sum of weight * nll` with respect to `x` to it.
///
/// `x` is `[targets.len(), hidden]`: the normed states, already gathered. Target tokens must be below the head's
/// rows. `scratch` may hold anything.
pub fn cross_entropy(
    head: &Frozen,
    x: &[f32],
    targets: &[Target],
    scale: f32,
    nll: &mut [f32],
    mut dx: Option<&mut [f32]>,
    scratch: &mut Vec<f32>,
) {
    let (hidden, vocabulary) = (head.inputs(), head.outputs());
    for start in (0..targets.len()).step_by(CHUNK) {
        let chunk = start..(start + CHUNK).min(targets.len());
        let logits = sized(scratch, chunk.len() * vocabulary);
        let span = chunk.start * hidden..chunk.end * hidden;
        head.forward(&x[span.clone()], logits, Into::Replace);
        vectorised(|| {
            let rows = logits.chunks_exact_mut(vocabulary).zip(&targets[chunk.clone()]);
            for ((row, target), nll) in rows.zip(&mut nll[chunk.clone()]) {
                let token = target.token as usize;
                let shift = max(row);
                let logit = row[token] - shift;
                let total = exp_sum(row, shift);
                *nll = total.ln() - logit;
                // d nll / d logits = softmax - one-hot.
                let weight = scale * target.weight;
                row.iter_mut().for_each(|p| *p *= weight / total);
                row[token] -= weight;
            }
        });
        if let Some(dx) = dx.as_deref_mut() {
            head.backward(logits, &mut dx[span]);
        }
    }
}

/// Writes to `out` the log-probabilities that each position gives to `candidates`: `[positions, candidates]`.
pub fn log_probabilities(
    head: &Frozen,
    x: &[f32],
    candidates: &[u32],
    out: &mut Vec<f32>,
    scratch: &mut Vec<f32>,
) {
    let (hidden, vocabulary) = (head.inputs(), head.outputs());
    for x in x.chunks(CHUNK * hidden) {
        let logits = sized(scratch, x.len() / hidden * vocabulary);
        head.forward(x, logits, Into::Replace);
        for row in logits.chunks_exact_mut(vocabulary) {
            let wanted = out.len()..out.len() + candidates.len();
            out.extend(candidates.iter().map(|&token| row[token as usize]));
            let lse = vectorised(|| {
                let shift = max(row);
                shift + exp_sum(row, shift).ln()
            });
            out[wanted].iter_mut().for_each(|logit| *logit -= lse);
        }
    }
}
