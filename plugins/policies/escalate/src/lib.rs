//! Sends what the guard is unsure of to another upstream: a model that is tuned to be careful, or one that people watch.
//! Where probes and verdict say different things, it is unsure too.
//!
//! ```toml
//! config = { upstream = "careful", from = 0.3, to = 0.7, gap = 0.5 }
//! ```

use forethought_policy::prelude::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Escalate {
    /// The upstream's name, as in `[upstreams.NAME]`.
    upstream: String,
    /// Scores from this on are uncertain, ...
    #[serde(default = "from")]
    from: f64,
    /// ... up to this one, which is not.
    #[serde(default = "to")]
    to: f64,
    /// How far apart probes and verdict must be, either way, to be uncertain below `to` whatever the score.
    gap: Option<f64>,
}

fn from() -> f64 {
    0.3
}

fn to() -> f64 {
    0.7
}

impl Policy for Escalate {
    fn configure(&mut self) -> Result<(), String> {
        if self.from < self.to {
            Ok(())
        } else {
            Err(format!("`from` ({}) must be below `to` ({})", self.from, self.to))
        }
    }

    fn decide(&mut self, _: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        let score = evidence.score;
        let gap = evidence.activation_gap.filter(|gap| self.gap.is_some_and(|least| gap.abs() >= least));
        let (from, to) = (self.from, self.to);
        // What is clearly harmful is left to the policies behind, and so is a score that is not a number.
        if !(score < to) {
            return pass();
        }
        match gap {
            _ if score >= from => {
                redirect(&self.upstream).because(format!("score {score:.3} from {from} to {to}"))
            }
            Some(gap) => redirect(&self.upstream).because(format!("probes and verdict are {gap:+.3} apart")),
            None => pass(),
        }
    }
}

forethought_policy::export!(Escalate);
