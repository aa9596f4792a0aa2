//! Policies decide on evidence. Pure: no I/O, no clock, no locks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evidence::{Evidence, Hazard};

/// What is to be done with a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "lowercase")]
pub enum Decision {
    /// Forward it.
    Allow,
    /// Answer it in the caller's own wire format, without the upstream.
    Refuse {
        /// The text the caller gets.
        message: String,
    },
}

impl Decision {
    /// The word for logs, headers and audit records.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Refuse { .. } => "refuse",
        }
    }
}

/// What a policy may know of a request beside the evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// The model the caller asked for.
    pub model: String,
    /// The request's path, such as `/v1/chat/completions`.
    pub path: String,
}

/// A decision and who made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Ruling {
    /// What to do.
    pub decision: Decision,
    /// Name of the policy that decided.
    pub by: String,
    /// The rule that decided, for people: holds names and numbers, never prompt text.
    pub reason: String,
}

/// Decides on evidence, or passes.
pub trait Policy: Send + Sync {
    /// The name that audit records show.
    fn name(&self) -> &str;

    /// The decision and the rule behind it, or `None` to leave it to the next policy in the chain.
    fn decide(&self, request: &RequestFacts, evidence: &Evidence) -> Option<(Decision, String)>;
}

/// Policies in order: the first that does not pass decides, and [`Thresholds`] come last.
pub struct PolicyChain {
    policies: Vec<Box<dyn Policy>>,
    thresholds: Thresholds,
}

impl PolicyChain {
    /// A chain of `policies`, ended by `thresholds`.
    pub fn new(policies: Vec<Box<dyn Policy>>, thresholds: Thresholds) -> Self {
        Self { policies, thresholds }
    }

    /// The chain's decision.
    pub fn decide(&self, request: &RequestFacts, evidence: &Evidence) -> Ruling {
        for policy in &self.policies {
            if let Some((decision, reason)) = policy.decide(request, evidence) {
                return Ruling { decision, by: policy.name().to_owned(), reason };
            }
        }
        let (decision, reason) = self.thresholds.apply(evidence);
        Ruling { decision, by: Thresholds::NAME.to_owned(), reason }
    }
}

/// How far apart probes and verdict are, if that is at least `gap`, either way: see [`Evidence::activation_gap`].
pub fn disagreement(evidence: &Evidence, gap: f64) -> Option<f64> {
    evidence.activation_gap().filter(|found| found.abs() >= gap)
}

/// A built-in policy: refuse where the probes and the verdict say different things.
#[derive(Clone, Debug, PartialEq)]
pub struct RefuseDisagreement {
    /// How far they must be apart for that.
    pub gap: f64,
    /// The refusal's text.
    pub message: String,
}

impl Policy for RefuseDisagreement {
    fn name(&self) -> &str {
        "disagreement"
    }

    fn decide(&self, _: &RequestFacts, evidence: &Evidence) -> Option<(Decision, String)> {
        let found = disagreement(evidence, self.gap)?;
        let message = self.message.clone();
        let reason = format!("probes and verdict are {found:+.3} apart, at least {}", self.gap);
        Some((Decision::Refuse { message }, reason))
    }
}

/// The built-in policy that ends every chain: refuse from a score on.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Refuse where the score is at least this. Above 1 nothing is refused.
    pub score: f64,
    /// Thresholds of single hazards, in place of [`Self::score`].
    pub hazards: BTreeMap<Hazard, f64>,
    /// The refusal's text.
    pub message: String,
}

impl Thresholds {
    const NAME: &'static str = "thresholds";

    fn apply(&self, evidence: &Evidence) -> (Decision, String) {
        let hazard = evidence.hazard.as_ref();
        let own = hazard.and_then(|h| self.hazards.get(h));
        let threshold = own.copied().unwrap_or(self.score);
        let name = match (hazard, own) {
            (Some(hazard), Some(_)) => format!("threshold for {hazard}"),
            _ => "threshold".to_owned(),
        };
        let score = evidence.score;
        // A score that is not a number compares false: written this way round, it refuses.
        if score < threshold {
            (Decision::Allow, format!("score {score:.3} below the {name} {threshold}"))
        } else {
            let message = self.message.clone();
            (Decision::Refuse { message }, format!("score {score:.3} at or above the {name} {threshold}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::{Assessment, Coverage, GuardVersion, Path, PhaseEnd, Timings};

    fn evidence(score: f64, hazard: Option<&str>) -> Evidence {
        Evidence {
            score,
            path: Path::Reason,
            hazard: hazard.map(Hazard::new),
            assessment: None,
            direct_score: None,
            probe_score: None,
            combined_score: None,
            probes: vec![],
            coverage: Coverage::default(),
            timings: Timings::default(),
            guard: GuardVersion::default(),
        }
    }

    fn thresholds() -> Thresholds {
        Thresholds {
            score: 0.5,
            hazards: BTreeMap::from([(Hazard::new("self-harm"), 0.2), (Hazard::new("cyber"), 0.9)]),
            message: "no".into(),
        }
    }

    #[test]
    fn thresholds_by_hazard() {
        fn check(score: f64, hazard: Option<&str>, expected: &str) {
            let ruling = PolicyChain::new(vec![], thresholds())
                .decide(&RequestFacts::default(), &evidence(score, hazard));
            assert_eq!(ruling.decision.as_str(), expected, "{score} {hazard:?}: {}", ruling.reason);
        }
        check(0.49, None, "allow");
        check(0.5, None, "refuse");
        check(0.3, Some("self-harm"), "refuse");
        check(0.1, Some("self-harm"), "allow");
        check(0.8, Some("cyber"), "allow");
        check(0.8, Some("hate"), "refuse");
        check(f64::NAN, None, "refuse");
    }

    #[test]
    fn disagreement_is_refused() {
        fn check(probe: Option<f64>, direct: Option<f64>, reasoned: Option<f64>, expected: &str) {
            let assessment = reasoned.map(|score| Assessment {
                understanding: String::new(),
                assessment: String::new(),
                ends: [PhaseEnd::Complete; 2],
                score,
            });
            let found =
                Evidence { probe_score: probe, direct_score: direct, assessment, ..evidence(0.1, None) };
            let rule = RefuseDisagreement { gap: 0.5, message: "no".into() };
            let chain = PolicyChain::new(vec![Box::new(rule)], thresholds());
            let ruling = chain.decide(&RequestFacts::default(), &found);
            assert_eq!(ruling.decision.as_str(), expected, "{probe:?} {direct:?} {reasoned:?}");
        }
        check(Some(0.75), Some(0.25), None, "refuse");
        check(Some(0.25), Some(0.75), None, "refuse");
        check(Some(0.74), Some(0.25), None, "allow");
        // What was said after reasoning counts, not what was said at once.
        check(Some(0.75), Some(0.75), Some(0.25), "refuse");
        check(Some(0.75), Some(0.25), Some(0.75), "allow");
        check(None, Some(0.9), Some(0.1), "allow");
        check(Some(0.9), None, None, "allow");
    }

    #[test]
    fn the_first_policy_that_does_not_pass_decides() {
        struct Fixed(&'static str, Option<Decision>);
        impl Policy for Fixed {
            fn name(&self) -> &str {
                self.0
            }
            fn decide(&self, _: &RequestFacts, _: &Evidence) -> Option<(Decision, String)> {
                self.1.clone().map(|d| (d, "fixed".into()))
            }
        }
        let chain = PolicyChain::new(
            vec![Box::new(Fixed("passes", None)), Box::new(Fixed("allows", Some(Decision::Allow)))],
            thresholds(),
        );
        let ruling = chain.decide(&RequestFacts::default(), &evidence(1.0, None));
        assert_eq!((ruling.by.as_str(), ruling.decision), ("allows", Decision::Allow));
    }
}
