//! Choosing the next token.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::generate::Sampling;

/// The most likely token; 0 where no logit is a number.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().filter(|(_, l)| !l.is_nan()).max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(id, _)| id as u32)
}

/// Greedy or seeded nucleus sampling.
pub struct Sampler {
    sampling: Sampling,
    rng: StdRng,
}

impl Sampler {
    /// A sampler with random numbers of its own.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, rng: StdRng::seed_from_u64(sampling.seed) }
    }

    /// The next token of a distribution given by its logits.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, .. } = self.sampling;
        if temperature <= 0.0 {
            return argmax(logits);
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mass = |logit: f32| (f64::from(logit - max) / temperature).exp();
        let mut candidates: Vec<(f64, u32)> =
            logits.iter().enumerate().map(|(id, &logit)| (mass(logit), id as u32)).collect();
        if top_p < 1.0 {
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
            let limit = top_p * candidates.iter().map(|c| c.0).sum::<f64>();
            let mut sum = 0.0;
            // The token that crosses the limit is the last one in.
            let crossing = candidates.iter().position(|c| {
                sum += c.0;
                sum >= limit
            });
            let kept = crossing.map_or(candidates.len(), |i| i + 1);
            candidates.truncate(kept);
        }
        let mut at = self.rng.random::<f64>() * candidates.iter().map(|c| c.0).sum::<f64>();
        for &(mass, id) in &candidates {
            at -= mass;
            if at < 0.0 {
                return id;
            }
        }
        argmax(logits) // rounding, or logits that are not numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling() {
        let logits = [0.0, 3.0, 1.0, f32::NEG_INFINITY];
        let draw = |temperature, top_p, seed| {
            let mut sampler = Sampler::new(Sampling { temperature, top_p, seed });
            (0..200).map(|_| sampler.next(&logits)).collect::<Vec<_>>()
        };
        assert!(draw(0.0, 1.0, 1).iter().all(|&id| id == 1));
        assert!(draw(1.0, 0.5, 1).iter().all(|&id| id == 1));
        let all = draw(2.0, 1.0, 1);
        assert!([0, 1, 2].iter().all(|id| all.contains(id)) && !all.contains(&3));
        assert_eq!(all, draw(2.0, 1.0, 1));
        assert_ne!(all, draw(2.0, 1.0, 2));
        assert_eq!(argmax(&[f32::NAN, 1.0]), 1);
        assert_eq!(Sampler::new(Sampling { temperature: 1.0, top_p: 0.9, seed: 0 }).next(&[f32::NAN; 3]), 0);
    }
}
