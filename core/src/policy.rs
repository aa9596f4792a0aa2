//! Policies decide on evidence. Pure: no I/O, no clock, no locks.

mod builtin;

use std::{fmt, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

pub use self::builtin::{RefuseDisagreement, Thresholds, disagreement};
use crate::{conversation::Conversation, evidence::Evidence};

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
    /// Forward it with other text in it.
    Rewrite {
        /// What becomes other text.
        edits: Vec<Edit>,
    },
    /// Forward it with a note to the upstream's model.
    Annotate {
        /// The note.
        text: String,
    },
    /// Forward it to another upstream.
    Redirect {
        /// The upstream's name in the configuration.
        upstream: String,
    },
}

impl Decision {
    /// The word for logs, headers and audit records.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Refuse { .. } => "refuse",
            Self::Rewrite { .. } => "rewrite",
            Self::Annotate { .. } => "annotate",
            Self::Redirect { .. } => "redirect",
        }
    }
}

/// New text for one part of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// The message's index in [`Conversation::messages`].
    pub message: usize,
    /// The part's index in the message.
    pub part: usize,
    /// The new text.
    pub text: String,
}

impl fmt::Debug for Edit {
    /// Leaves the text out: it may quote the prompt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edit({}.{}: {} bytes)", self.message, self.part, self.text.len())
    }
}

/// What a policy may know of a request beside its conversation and the evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestFacts {
    /// The model the caller asked for.
    pub model: String,
    /// The request's path, such as `/v1/chat/completions`.
    pub path: String,
    /// The wire format, such as `openai-chat`.
    pub api: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Who asks, where the operator named a header that tells.
    pub tenant: Option<String>,
    /// The languages that the caller prefers, best first, in lower case.
    pub languages: Vec<String>,
}

/// What a probe says after one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token's text.
    pub token: String,
    /// P(harmful) at this token, in `[0, 1]`.
    pub score: f64,
}

/// What the program holds and a policy seldom needs; it is brought when a policy asks.
pub trait LazyFacts: Send + Sync {
    /// What the probe of this name says after every token, or `None` where that is not held. It should be there by
    /// `deadline`; nobody waits for it longer.
    fn probe_trace(&self, probe: &str, deadline: Instant) -> Option<Vec<TokenScore>>;
}

/// All that a policy decides on.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// The request.
    pub facts: &'a RequestFacts,
    /// What it says.
    pub conversation: &'a Conversation,
    /// What the guard found.
    pub evidence: &'a Evidence,
    /// What is brought when asked for.
    pub lazy: Option<&'a Arc<dyn LazyFacts>>,
}

/// What a policy says of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// The decision, or `None` to leave it to the next policy in the chain.
    pub decision: Option<Decision>,
    /// The rule behind it, for people: holds names and numbers, never prompt text.
    pub reason: String,
    /// Words to mark the request with.
    pub flags: Vec<String>,
}

impl Said {
    /// No opinion.
    pub fn pass() -> Self {
        Self::default()
    }

    /// A decision by a rule.
    pub fn decided(decision: Decision, reason: impl Into<String>) -> Self {
        Self { decision: Some(decision), reason: reason.into(), flags: vec![] }
    }
}

/// What an earlier policy of the chain, which passed, made of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// The policy's name.
    pub policy: String,
    /// What it marked the request with.
    pub flags: Vec<String>,
    /// Whether it failed, and its failures let requests by.
    pub failed: bool,
}

/// Which policy took part, for audit records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Its name in the configuration.
    pub name: String,
    /// Its version, as it says itself.
    pub version: String,
    /// sha256 of its file, hexadecimal.
    pub sha256: String,
}

/// A policy that could not decide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy `{policy}` failed: {message}")]
pub struct PolicyFailure {
    /// The policy's name.
    pub policy: String,
    /// What happened, in a word for programs: `deadline`, `memory`, ...
    pub kind: &'static str,
    /// What happened, for people: never prompt text.
    pub message: String,
}

/// What becomes of a request that a policy fails on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPolicyFailure {
    /// The whole chain fails.
    #[default]
    Closed,
    /// The policy is taken to pass, and the request is marked.
    Open,
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
    /// What policies marked the request with, `failed:NAME` for those that failed included.
    pub flags: Vec<String>,
}

/// Decides on evidence, or passes.
pub trait Policy: Send + Sync {
    /// The name that audit records show.
    fn name(&self) -> &str;

    /// What it says of a request. `so_far` holds what earlier policies of the chain said.
    ///
    /// # Errors
    /// If it can't decide.
    fn decide(&self, case: &Case<'_>, so_far: &[Opinion]) -> Result<Said, PolicyFailure>;

    /// What becomes of a request that it fails on.
    fn on_failure(&self) -> OnPolicyFailure {
        OnPolicyFailure::Closed
    }

    /// Its version, where that is not the program's own.
    fn version(&self) -> Option<PolicyVersion> {
        None
    }
}

/// Policies in order: the first that does not pass decides, and [`Thresholds`] come last.
pub struct PolicyChain {
    policies: Vec<Box<dyn Policy>>,
    thresholds: Thresholds,
    versions: Arc<[PolicyVersion]>,
}

impl PolicyChain {
    /// A chain of `policies`, ended by `thresholds`.
    pub fn new(policies: Vec<Box<dyn Policy>>, thresholds: Thresholds) -> Self {
        let versions = policies.iter().filter_map(|policy| policy.version()).collect();
        Self { policies, thresholds, versions }
    }

    /// The versions of the policies that are not the program's own, in order.
    pub fn versions(&self) -> &Arc<[PolicyVersion]> {
        &self.versions
    }

    /// The chain's decision. It may take as long as the deadlines of its plugins together: run it where that is no harm.
    ///
    /// # Errors
    /// If a policy fails whose failures are not to be passed over.
    pub fn decide(&self, case: &Case<'_>) -> Result<Ruling, PolicyFailure> {
        let mut so_far: Vec<Opinion> = Vec::new();
        let mut flags = Vec::new();
        for policy in &self.policies {
            let by = policy.name().to_owned();
            match policy.decide(case, &so_far) {
                Ok(said) => {
                    flags.extend(said.flags.iter().cloned());
                    if let Some(decision) = said.decision {
                        return Ok(Ruling { decision, by, reason: said.reason, flags });
                    }
                    so_far.push(Opinion { policy: by, flags: said.flags, failed: false });
                }
                Err(failure) => match policy.on_failure() {
                    OnPolicyFailure::Closed => return Err(failure),
                    OnPolicyFailure::Open => {
                        flags.push(format!("failed:{by}"));
                        so_far.push(Opinion { policy: by, flags: vec![], failed: true });
                    }
                },
            }
        }
        let (decision, reason) = self.thresholds.apply(case.evidence);
        Ok(Ruling { decision, by: Thresholds::NAME.to_owned(), reason, flags })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Fixed(&'static str, OnPolicyFailure, fn(&[Opinion]) -> Result<Said, &'static str>);

    impl Policy for Fixed {
        fn name(&self) -> &str {
            self.0
        }
        fn decide(&self, _: &Case<'_>, so_far: &[Opinion]) -> Result<Said, PolicyFailure> {
            self.2(so_far).map_err(|message| PolicyFailure {
                policy: self.0.to_owned(),
                kind: "trap",
                message: message.to_owned(),
            })
        }
        fn on_failure(&self) -> OnPolicyFailure {
            self.1
        }
    }

    fn decide(policies: Vec<Fixed>) -> Result<Ruling, PolicyFailure> {
        let thresholds = Thresholds { score: 0.5, hazards: BTreeMap::new(), message: "no".into() };
        let policies = policies.into_iter().map(|policy| Box::new(policy) as Box<dyn Policy>).collect();
        PolicyChain::new(policies, thresholds).decide(&Case {
            facts: &RequestFacts::default(),
            conversation: &Conversation::default(),
            evidence: &builtin::tests::evidence(1.0, None),
            lazy: None,
        })
    }

    #[test]
    fn the_first_policy_that_does_not_pass_decides() {
        use OnPolicyFailure::{Closed, Open};
        let passes = || Fixed("passes", Closed, |_| Ok(Said { flags: vec!["a".into()], ..Said::pass() }));
        let fails = |on_failure| Fixed("fails", on_failure, |_| Err("broken"));
        let allows = || {
            Fixed("allows", Closed, |so_far| {
                let seen: Vec<_> = so_far.iter().map(|o| format!("{}:{}", o.policy, o.failed)).collect();
                Ok(Said::decided(Decision::Allow, seen.join(" ")))
            })
        };
        let by = |ruling: Result<Ruling, PolicyFailure>| {
            ruling
                .map(|r| (r.by, r.decision.as_str(), r.reason, r.flags.join(" ")))
                .map_err(|f| f.to_string())
        };
        let own = |text: &str| text.to_owned();
        assert_eq!(
            by(decide(vec![passes(), allows(), fails(Closed)])),
            Ok((own("allows"), "allow", own("passes:false"), own("a")))
        );
        assert_eq!(
            by(decide(vec![passes(), fails(Open), allows()])),
            Ok((own("allows"), "allow", own("passes:false fails:true"), own("a failed:fails")))
        );
        assert_eq!(by(decide(vec![fails(Closed), allows()])), Err(own("the policy `fails` failed: broken")));
        let last = decide(vec![passes(), fails(Open)]).unwrap();
        assert_eq!((last.by.as_str(), last.decision.as_str()), ("thresholds", "refuse"));
    }

    #[test]
    fn edits_do_not_show_their_text() {
        let decision = Decision::Rewrite { edits: vec![Edit { message: 1, part: 0, text: "secret".into() }] };
        assert_eq!(format!("{decision:?}"), "Rewrite { edits: [Edit(1.0: 6 bytes)] }");
    }
}
