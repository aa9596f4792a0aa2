//! What a run costs, and that it never costs more than it may.

use std::sync::{Mutex, PoisonError};

/// Bytes of text that make a token, about: English has more, most other languages less.
const BYTES_A_TOKEN: usize = 4;

/// About how many tokens a text is, without its model's tokenizer.
pub fn estimate_tokens(text: &str) -> u64 {
    text.len().div_ceil(BYTES_A_TOKEN) as u64
}

/// USD for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// Of what is sent.
    pub input: f64,
    /// Of what is received.
    pub output: f64,
}

impl Prices {
    /// What these tokens cost.
    pub fn cost(&self, tokens_in: u64, tokens_out: u64) -> f64 {
        (self.input * tokens_in as f64 + self.output * tokens_out as f64) / 1e6
    }
}

/// Tokens and money of a run, shared by its workers.
pub(super) struct Budget {
    prices: Option<Prices>,
    most: Option<f64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens_in: u64,
    tokens_out: u64,
    /// The most that the requests under way may still cost.
    reserved: f64,
}

/// Money set aside for a request; to be settled.
pub(super) struct Reserve(f64);

impl Budget {
    pub(super) fn new(prices: Option<Prices>, most: Option<f64>) -> Self {
        Self { prices, most, state: Mutex::default() }
    }

    /// Sets aside the most that a request can cost; `None` where that might be more than is left.
    pub(super) fn reserve(&self, tokens_in: u64, most_out: u64) -> Option<Reserve> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(prices) = self.prices else { return Some(Reserve(0.0)) };
        let (spent, next) =
            (prices.cost(state.tokens_in, state.tokens_out), prices.cost(tokens_in, most_out));
        if self.most.is_some_and(|most| spent + state.reserved + next > most) {
            return None;
        }
        state.reserved += next;
        Some(Reserve(next))
    }

    /// Counts what it did cost.
    pub(super) fn settle(&self, Reserve(reserved): Reserve, tokens_in: u64, tokens_out: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reserved -= reserved;
        state.tokens_in += tokens_in;
        state.tokens_out += tokens_out;
    }

    /// Tokens sent and received, and what they cost.
    pub(super) fn spent(&self) -> (u64, u64, Option<f64>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = self.prices.map(|prices| prices.cost(state.tokens_in, state.tokens_out));
        (state.tokens_in, state.tokens_out, cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_counts_as_spent() {
        let budget = Budget::new(Some(Prices { input: 1.0, output: 10.0 }), Some(1.0));
        let first = budget.reserve(100_000, 50_000).unwrap(); // 0.6
        assert!(budget.reserve(0, 50_000).is_none(), "0.6 under way and 0.5 more");
        budget.settle(first, 100_000, 10_000); // 0.2
        assert_eq!(budget.spent(), (100_000, 10_000, Some(0.2)));
        let second = budget.reserve(0, 50_000).unwrap(); // 0.7
        assert!(budget.reserve(0, 50_000).is_none());
        budget.settle(second, 0, 0);
        assert!(budget.reserve(0, 70_000).is_some());
    }

    #[test]
    fn without_prices_there_is_no_limit() {
        let budget = Budget::new(None, None);
        let reserve = budget.reserve(u64::MAX, u64::MAX).unwrap();
        budget.settle(reserve, 1, 2);
        assert_eq!(budget.spent(), (1, 2, None));
    }
}
