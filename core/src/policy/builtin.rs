//! The built-in policies.

use std::collections::BTreeMap;

use super::{Case, Decision, Opinion, Policy, PolicyFailure, Said};
use crate::evidence::{Evidence, Hazard};

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

    fn decide(&self, case: &Case<'_>, _: &[Opinion]) -> Result<Said, PolicyFailure> {
        let Some(found) = disagreement(case.evidence, self.gap) else { return Ok(Said::pass()) };
        let message = self.message.clone();
        let reason = format!("probes and verdict are {found:+.3} apart, at least {}", self.gap);
        Ok(Said::decided(Decision::Refuse { message }, reason))
    }
}

/// The built-in policy that ends every chain: refuse from a score on.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Refuse where the score is at least this. Above 1 nothing is refused.
    pub score: f64,
    /// Thresholds of single hazards, in place of [`Self::score`]. Where there was no time to name the hazard, the lowest holds.
    pub hazards: BTreeMap<Hazard, f64>,
    /// The refusal's text.
    pub message: String,
}

impl Thresholds {
    pub(super) const NAME: &'static str = "thresholds";

    pub(super) fn apply(&self, evidence: &Evidence) -> (Decision, String) {
        let hazard = evidence.hazard.as_ref();
        let own = hazard.and_then(|h| self.hazards.get(h));
        // A hazard that there was no time to name may be any of them.
        let strictest = self.hazards.values().copied().fold(self.score, f64::min);
        let unnamed = hazard.is_none() && evidence.partial && strictest < self.score;
        let threshold = own.copied().unwrap_or(if unnamed { strictest } else { self.score });
        let name = match (hazard, own) {
            (Some(hazard), Some(_)) => format!("threshold for {hazard}"),
            _ if unnamed => "strictest threshold, for there was no time to name the hazard,".to_owned(),
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
pub(super) mod tests {
    use super::*;
    use crate::conversation::Conversation;
    use crate::evidence::{Assessment, Coverage, GuardVersion, Path, PhaseEnd, Timings};
    use crate::policy::{PolicyChain, RequestFacts, Ruling};

    pub(in crate::policy) fn evidence(score: f64, hazard: Option<&str>) -> Evidence {
        Evidence {
            score,
            path: Path::Reason,
            hazard: hazard.map(Hazard::new),
            assessment: None,
            direct_score: None,
            probe_score: None,
            combined_score: None,
            probes: vec![],
            partial: false,
            coverage: Coverage::default(),
            timings: Timings::default(),
            guard: GuardVersion::default(),
            steps: vec![],
        }
    }

    fn decide(chain: &PolicyChain, evidence: &Evidence) -> Ruling {
        let (facts, conversation) = (&RequestFacts::default(), &Conversation::default());
        chain.decide(&Case { facts, conversation, evidence, lazy: None }).unwrap()
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
            let ruling = decide(&PolicyChain::new(vec![], thresholds()), &evidence(score, hazard));
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
    fn a_hazard_that_was_not_named_in_time_may_be_any() {
        fn check(score: f64, hazard: Option<&str>, expected: &str) {
            let hurried = Evidence { partial: true, ..evidence(score, hazard) };
            let ruling = decide(&PolicyChain::new(vec![], thresholds()), &hurried);
            assert_eq!(ruling.decision.as_str(), expected, "{score} {hazard:?}: {}", ruling.reason);
        }
        check(0.3, None, "refuse");
        check(0.1, None, "allow");
        // It was named, and a phase was cut short.
        check(0.3, Some("hate"), "allow");
        // No threshold is stricter than the common one.
        let lax = Thresholds { hazards: BTreeMap::from([(Hazard::new("cyber"), 0.9)]), ..thresholds() };
        let hurried = Evidence { partial: true, ..evidence(0.6, None) };
        assert_eq!(decide(&PolicyChain::new(vec![], lax), &hurried).decision.as_str(), "refuse");
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
            let ruling = decide(&chain, &found);
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
}
