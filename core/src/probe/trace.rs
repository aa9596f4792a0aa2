//! A probe's reading at every token: where in a text the guard comes to know.

use serde::{Deserialize, Serialize};

use super::{Pool, Position};

/// Runs a probe.
pub trait ProbeRunner {
    /// Why it can't be run.
    type Error;

    /// Values of one state.
    fn width(&self) -> usize;

    /// P(harmful) for each of the states `[batch, width]`.
    ///
    /// # Errors
    /// The probe can't be run.
    fn run(&self, states: &[f32]) -> Result<Vec<f32>, Self::Error>;
}

/// A probe's reading of a text up to one of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// The token's place, from 0.
    pub token: usize,
    /// P(harmful).
    pub score: f32,
}

/// The readings of `states` `[tokens, width]`, as if the text ended at each token in turn. The first `window` tokens are
/// the window's own; behind it `mean` and `max` stand still.
///
/// # Errors
/// The probe can't be run.
pub fn trace<P: ProbeRunner>(
    probe: &P,
    position: Position,
    states: &[f32],
    window: usize,
) -> Result<Vec<TokenScore>, P::Error> {
    let width = probe.width().max(1);
    let mut pool = Pool::new(width, window);
    let mut pooled = Vec::with_capacity(states.len());
    for state in states.chunks_exact(width) {
        pool.push(state);
        pooled.extend(pool.state(position));
    }
    let scores = probe.run(&pooled)?;
    Ok(scores.into_iter().enumerate().map(|(token, score)| TokenScore { token, score }).collect())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Reads out the first value.
    struct First;

    impl ProbeRunner for First {
        type Error = Infallible;

        fn width(&self) -> usize {
            2
        }

        fn run(&self, states: &[f32]) -> Result<Vec<f32>, Infallible> {
            Ok(states.chunks_exact(2).map(|state| state[0]).collect())
        }
    }

    #[test]
    fn every_token_has_a_reading_of_all_before_it() {
        fn check(position: Position, expected: [f32; 4]) {
            let states = [0.25, 0.0, 0.75, 0.0, 0.5, 0.0, 1.0, 0.0];
            let Ok(scores) = trace(&First, position, &states, 3);
            let expected = expected.into_iter().enumerate();
            assert_eq!(
                scores,
                expected.map(|(token, score)| TokenScore { token, score }).collect::<Vec<_>>()
            );
        }
        check(Position::Last, [0.25, 0.75, 0.5, 1.0]);
        check(Position::Mean, [0.25, 0.5, 0.5, 0.5]);
        check(Position::Max, [0.25, 0.75, 0.75, 0.75]);
    }
}
