//! A policy whose calls are counted and timed.

use std::{sync::Arc, time::Instant};

use forethought_core::policy::{Case, OnPolicyFailure, Opinion, Policy, PolicyFailure, PolicyVersion, Said};

use super::Metrics;

struct Metered {
    policy: Box<dyn Policy>,
    metrics: Arc<Metrics>,
}

impl Metrics {
    /// `policy`, measured.
    pub fn meter(self: &Arc<Self>, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        Box::new(Metered { policy, metrics: self.clone() })
    }
}

impl Policy for Metered {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn decide(&self, case: &Case<'_>, so_far: &[Opinion]) -> Result<Said, PolicyFailure> {
        let since = Instant::now();
        let said = self.policy.decide(case, so_far);
        let word = match &said {
            Ok(said) => said.decision.as_ref().map_or("pass", |decision| decision.as_str()),
            Err(failure) => failure.kind,
        };
        self.metrics.said(self.name(), word, since.elapsed());
        said
    }

    fn on_failure(&self) -> OnPolicyFailure {
        self.policy.on_failure()
    }

    fn version(&self) -> Option<PolicyVersion> {
        self.policy.version()
    }
}
