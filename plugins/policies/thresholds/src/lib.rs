//! Refuses from a score on: per hazard, and per tenant. Decides on every request, so that the built-in thresholds are not
//! asked any more.
//!
//! ```toml
//! config = { threshold = 0.5, hazards = { self-harm = 0.2 }, tenants = { school = { threshold = 0.2 } } }
//! ```

use std::collections::BTreeMap;

use forethought_policy::prelude::*;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Thresholds {
    /// Refuse where the score is at least this.
    threshold: f64,
    /// Thresholds of single hazards.
    hazards: BTreeMap<String, f64>,
    /// What differs for single tenants; what one does not set is as above.
    tenants: BTreeMap<String, Tenant>,
    /// Texts of refusals.
    texts: Texts,
    /// The text where none of those fits.
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Tenant {
    threshold: Option<f64>,
    hazards: BTreeMap<String, f64>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            hazards: BTreeMap::new(),
            tenants: BTreeMap::new(),
            texts: Texts::default(),
            message: "I can't help with that.".to_owned(),
        }
    }
}

impl Policy for Thresholds {
    fn configure(&mut self) -> Result<(), String> {
        let tenants =
            self.tenants.values().flat_map(|tenant| tenant.hazards.values().chain(&tenant.threshold));
        let mut all = self.hazards.values().chain(tenants).chain([&self.threshold]);
        match all.find(|threshold| !(**threshold >= 0.0)) {
            Some(wrong) => Err(format!("a threshold must be a probability, not {wrong}")),
            None => Ok(()),
        }
    }

    fn decide(&mut self, request: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        let tenant = request.tenant.as_ref().and_then(|name| self.tenants.get(name));
        let hazard = evidence.hazard.as_deref().unwrap_or("");
        let own = tenant.and_then(|tenant| tenant.hazards.get(hazard).or(tenant.threshold.as_ref()));
        let threshold = *own.or(self.hazards.get(hazard)).unwrap_or(&self.threshold);
        let score = evidence.score;
        // A score that is not a number compares false: written this way round, it refuses.
        if score < threshold {
            allow().because(format!("score {score:.3} below {threshold}"))
        } else {
            let refusal = self.texts.refuse(request, evidence, &self.message);
            refusal.because(format!("score {score:.3} at or above {threshold}"))
        }
    }
}

forethought_policy::export!(Thresholds);
