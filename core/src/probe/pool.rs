//! One layer's states as a window is read, boiled down to those a probe can ask for.

use super::Position;

/// The states of one layer, pooled in whatever pieces they come.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Tokens of the window that are still to come.
    left: usize,
    /// Tokens of the window that were seen.
    seen: usize,
    sum: Vec<f64>, // [width]
    max: Vec<f32>,
    last: Vec<f32>,
}

impl Pool {
    /// For states of `width` values, the first `window` of which are those of the window's own tokens.
    pub fn new(width: usize, window: usize) -> Self {
        let max = vec![f32::NEG_INFINITY; width];
        Self { left: window, seen: 0, sum: vec![0.0; width], max, last: vec![0.0; width] }
    }

    /// Takes the states of the next tokens, `[tokens, width]`.
    pub fn push(&mut self, states: &[f32]) {
        let rows = states.chunks_exact(self.last.len().max(1));
        if let Some(row) = rows.clone().next_back() {
            self.last.copy_from_slice(row);
        }
        for row in rows.take(self.left) {
            for ((sum, max), &value) in self.sum.iter_mut().zip(&mut self.max).zip(row) {
                *sum += f64::from(value);
                *max = max.max(value);
            }
            self.left -= 1;
            self.seen += 1;
        }
    }

    /// The state at a position of what was read so far, `[width]`. With nothing of a window, it is the last one's.
    pub fn state(&self, position: Position) -> Vec<f32> {
        match position {
            Position::Mean if self.seen > 0 => {
                self.sum.iter().map(|sum| (sum / self.seen as f64) as f32).collect()
            }
            Position::Max if self.seen > 0 => self.max.clone(),
            _ => self.last.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        // Three tokens of a window, two of what follows it.
        let states = [1.0, -4.0, 3.0, -6.0, 2.0, -2.0, 9.0, 9.0, 7.0, 5.0];
        for cut in 0..=5 {
            for second in cut..=5 {
                let mut pool = Pool::new(2, 3);
                for piece in [&states[..cut * 2], &states[cut * 2..second * 2], &states[second * 2..]] {
                    pool.push(piece);
                }
                assert_eq!(pool.state(Position::Last), [7.0, 5.0]);
                assert_eq!(pool.state(Position::Mean), [2.0, -4.0]);
                assert_eq!(pool.state(Position::Max), [3.0, -2.0]);
            }
        }
    }

    #[test]
    fn an_empty_window_is_read_at_its_last_token() {
        let mut pool = Pool::new(2, 0);
        pool.push(&[1.0, 2.0, 3.0, 4.0]);
        for position in Position::ALL {
            assert_eq!(pool.state(position), [3.0, 4.0], "{position}");
        }
    }
}
