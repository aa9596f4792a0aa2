//! A policy of the Forethought proxy.

use std::collections::BTreeMap;

use forethought_policy::prelude::*;

/// What the operator writes under `config`.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mine {
    /// Refuse where P(harmful) is at least this.
    threshold: f64,
    /// Thresholds of single hazards.
    hazards: BTreeMap<String, f64>,
}

impl Default for Mine {
    fn default() -> Self {
        Self { threshold: 0.5, hazards: BTreeMap::new() }
    }
}

impl Policy for Mine {
    fn decide(&mut self, _: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        let hazard = evidence.hazard.as_deref().unwrap_or("");
        let threshold = self.hazards.get(hazard).copied().unwrap_or(self.threshold);
        // A score that is not a number compares false: written this way round, it refuses.
        if evidence.score < threshold {
            return pass();
        }
        refuse("I can't help with that.")
            .because(format!("score {:.3} at or above {threshold}", evidence.score))
    }
}

forethought_policy::export!(Mine);
