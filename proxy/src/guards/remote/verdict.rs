//! How a server's verdict is read: by the log-probabilities of the two labels, or by which of them wins under a bias.

use std::time::Instant;

use forethought_core::guard::GuardError;
use serde_json::{Value, json};

use super::{
    Verdicts, answer,
    session::{Session, biased, malformed},
};
use crate::guards::pool::{NoAnswer, Server};

/// How many of the likeliest tokens are asked for: the most that common servers give.
const TOP: usize = 20;
/// The bias that leaves only some tokens, and the margins that are told apart under it. APIs take at most 100.
const BIAS: f64 = 80.0;
const MARGIN: f64 = 12.0;
/// Halvings of the range of margins: the last one is right to 0.05.
const HALVINGS: usize = 8;
/// Biases under which a label wins, whatever the model would say: what tells whether a server follows them.
const WINS: f64 = 100.0;
const LOSES: f64 = 60.0;

impl<'a> Session<'a> {
    /// The harmful label's logit minus the benign one's.
    pub(super) async fn margin(&mut self, read: &[u32], until: Instant) -> Result<f64, GuardError> {
        let pool = &self.remote.pool;
        let verdicts = self.remote.options.verdicts;
        let may_tell = |server: &Server| verdicts == Verdicts::Logprobs || !server.tells_nothing.holds();
        if verdicts == Verdicts::Text || !pool.any(may_tell) {
            return self.searched(read, until).await;
        }
        let mut body = self.request(read, 1);
        body["logprobs"] = json!(TOP);
        let told = match pool.ask(&body, until, may_tell, &mut self.steps).await {
            Ok((server, answer)) => {
                if !answer::tells(&answer) {
                    server.tells_nothing.learn();
                }
                self.told(&answer)
            }
            // A server that takes no such parameter says so; and where others tell nothing, they may still answer.
            Err(NoAnswer::Rejected) if verdicts == Verdicts::Auto => None,
            Err(NoAnswer::Failed) if pool.any(|server| !may_tell(server)) => None,
            Err(_) => return Err(self.unreachable()),
        };
        match told {
            Some(margin) => Ok(margin),
            None if verdicts == Verdicts::Logprobs => Err(malformed("no log-probabilities of the verdict")),
            None => self.searched(read, until).await,
        }
    }

    /// The margin by log-probabilities; `None` where they do not tell it.
    fn told(&self, answer: &Value) -> Option<f64> {
        let tokens = answer::first_tokens(answer)?;
        let prompt = &self.remote.prompt;
        let [harmful, benign] = &self.remote.labels;
        let find = |label: &[u32], text: &str| {
            let found = tokens.iter().find(|(token, _)| label.first().is_some_and(|&id| token.is(id, text)));
            found.map(|(_, logprob)| *logprob)
        };
        Some(find(&prompt.harmful, harmful)? - find(&prompt.benign, benign)?)
    }

    /// The margin by text: under a bias that leaves only the two labels, the one wins that has the greater logit; how much
    /// more bias the other one needs to win is the margin. Found by halving. A margin outside of the range counts as its
    /// edge.
    async fn searched(&mut self, read: &[u32], until: Instant) -> Result<f64, GuardError> {
        let (mut low, mut high) = (-MARGIN, MARGIN);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            let (server, harmful_wins) = self.wins(read, until, [BIAS - middle, BIAS], |_| true).await?;
            self.check_bias(server, read, until).await?;
            // Harmful wins where its logit less the middle is the greater: where the margin is above the middle.
            if harmful_wins {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(f64::midpoint(low, high))
    }

    /// Makes sure that a server follows biases. One that does not would find the same label in all halvings, and so be very
    /// sure of whatever it says.
    async fn check_bias(&mut self, server: &Server, read: &[u32], until: Instant) -> Result<(), GuardError> {
        if server.follows_bias.holds() {
            return Ok(());
        }
        for (bias, expected) in [([WINS, LOSES], true), ([LOSES, WINS], false)] {
            let this = |other: &Server| std::ptr::eq(other, server);
            let (_, harmful_wins) = self.wins(read, until, bias, this).await?;
            if harmful_wins != expected {
                return Err(malformed("the same label under any bias, so it does not follow `logit_bias`"));
            }
        }
        server.follows_bias.learn();
        Ok(())
    }

    /// Whether the harmful label wins under these biases, harmful's first; and who says so, of such servers.
    async fn wins(
        &mut self,
        read: &[u32],
        until: Instant,
        bias: [f64; 2],
        which: impl Fn(&Server) -> bool,
    ) -> Result<(&'a Server, bool), GuardError> {
        let remote = self.remote;
        let label = |label: &[u32]| label.first().copied().ok_or_else(|| malformed("no labels"));
        let labels = [label(&remote.prompt.harmful)?, label(&remote.prompt.benign)?];
        let mut body = self.request(read, 1);
        body["logit_bias"] = biased(labels.into_iter().zip(bias));
        let answer = remote.pool.ask(&body, until, which, &mut self.steps).await;
        let (server, answer) = answer.map_err(|_| self.unreachable())?;
        let text = answer::text(&answer).unwrap_or_default();
        match remote.labels.iter().position(|label| label.trim() == text.trim()) {
            Some(winner) => Ok((server, winner == 0)),
            None => Err(malformed("neither label, so it does not follow `logit_bias`")),
        }
    }
}
