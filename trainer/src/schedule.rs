//! Learning rates over a run, step for step those of transformers' schedulers, so that published recipes carry over.

use serde::{Deserialize, Serialize};

/// What the rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Falls to zero along half a cosine.
    #[default]
    Cosine,
    /// Falls to zero along a line.
    Linear,
    /// Stays.
    Constant,
}

/// The learning rate at each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub rate: f64,
    /// What follows the warm-up.
    pub decay: Decay,
    /// Steps over which the rate rises from zero.
    pub warmup: usize,
    /// Steps of the whole run.
    pub steps: usize,
}

impl Schedule {
    /// The rate of a step, counted from 0. Past the run's end it stays where it ended.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.rate * step as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / span as f64).min(1.0);
        self.rate
            * match self.decay {
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                Decay::Linear => 1.0 - progress,
                Decay::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_transformers() {
        // get_scheduler(..., num_warmup_steps=3, num_training_steps=10) at a rate of 1.
        let check = |decay, expected: [f64; 10]| {
            let schedule = Schedule { rate: 1.0, decay, warmup: 3, steps: 10 };
            for (step, expected) in expected.into_iter().enumerate() {
                let rate = schedule.at(step);
                assert!((rate - expected).abs() < 1e-6, "{decay:?} at {step}: {rate}");
            }
        };
        let warmup = [0.0, 0.333_333, 0.666_667];
        let after = |rest: [f64; 7]| std::array::from_fn(|i| if i < 3 { warmup[i] } else { rest[i - 3] });
        check(Decay::Cosine, after([1.0, 0.950_484, 0.811_745, 0.611_26, 0.388_74, 0.188_255, 0.049_516]));
        check(Decay::Linear, after([1.0, 0.857_143, 0.714_286, 0.571_429, 0.428_571, 0.285_714, 0.142_857]));
        check(Decay::Constant, after([1.0; 7]));
    }

    #[test]
    fn edges_are_finite() {
        for decay in [Decay::Cosine, Decay::Linear, Decay::Constant] {
            for (warmup, steps) in [(0, 0), (0, 1), (5, 3)] {
                let schedule = Schedule { rate: 1.0, decay, warmup, steps };
                assert!((0..20).all(|step| (0.0..=1.0).contains(&schedule.at(step))));
            }
        }
    }
}
