//! What an audit record holds. The fields' names are an interface: programs read them.

use std::{borrow::Cow, sync::Arc};

use forethought_core::{
    conversation::Conversation,
    evidence::{Coverage, Evidence, GuardVersion, Hazard, PhaseEnd, ProbeReading, Step, Timings, Verdict},
    policy::PolicyVersion,
};
use serde::{Serialize, Serializer};

/// What became of a request, in a word: the header `x-forethought-decision` and the records' `decision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Disposition {
    /// Read, and allowed by the policy.
    Allow,
    /// Read, and refused by the policy.
    Refuse,
    /// Read, and passed on with other text in it, by the policy.
    Rewrite,
    /// Read, and passed on with a note, by the policy.
    Annotate,
    /// Read, and passed on to another upstream, by the policy.
    Redirect,
    /// Passed on whatever was found (`policy.mode` is `monitor`).
    AllowMonitored,
    /// Passed on unread: the mode is `off`, or the guard failed and `policy.on_failure` is `open`.
    AllowUnguarded,
    /// Passed on by a rule in `paths.pass`, which no guard reads.
    Pass,
    /// Answered with an error, because it could not be read, or must not be passed on.
    Deny,
    /// Nothing was decided: the caller left, or the server stopped.
    #[default]
    None,
}

impl Disposition {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Refuse => "refuse",
            Self::Rewrite => "rewrite",
            Self::Annotate => "annotate",
            Self::Redirect => "redirect",
            Self::AllowMonitored => "allow-monitored",
            Self::AllowUnguarded => "allow-unguarded",
            Self::Pass => "pass",
            Self::Deny => "deny",
            Self::None => "none",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The whole answer was handed to the connection.
    Finished,
    /// The upstream broke off.
    Aborted,
    /// The caller left.
    #[default]
    Disconnected,
    /// The server stopped.
    Stopped,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Record {
    /// The request's id, as in the header `x-forethought-id`.
    pub(crate) id: String,
    /// When the request's head had arrived, RFC 3339.
    pub(crate) time: String,
    pub(crate) method: String,
    /// Without its query.
    pub(crate) path: String,
    /// The route that has taken it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) route: Option<String>,
    /// The wire format that the guard reads the path in; none where no guard does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<bool>,
    /// Who asked, where `tenants` or `policy.tenant_header` say how to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
    /// Whether that is one of `tenants`, and not a caller's own word.
    #[serde(skip)]
    pub(crate) is_admitted: bool,
    /// The languages that the caller prefers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) languages: Vec<String>,
    pub(crate) mode: &'static str,
    pub(crate) decision: Disposition,
    /// Who decided: a policy, a rule or a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What the policy ruled where nobody acted on it (`monitor`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ruled: Option<&'static str>,
    /// Whether an upstream was asked. Where `policy.order` is `parallel`, refused requests were sent too, and cancelled.
    pub(crate) upstream_contacted: bool,
    /// The upstream that it was sent to, the last one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<String>,
    /// How often it was sent to another upstream, after one that did not work on it.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) retries: u32,
    /// The policies of the chain that are not the program's own.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) policies: Arc<[PolicyVersion]>,
    /// What was let through by a setting: not read in whole (`unreadable`, `truncated`), with probes and verdict far
    /// apart (`disagreement`), or although a policy failed (`failed:NAME`); and what policies marked the request with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) flags: Vec<Cow<'static, str>>,
    /// Code of the error the caller got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'static str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) found: Option<Found>,
    /// The guards that were asked, where there are several, and what came of it: also where none of them answered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<Prompt>,
    pub(crate) version: &'static str,
    pub(crate) config_sha256: String,
    /// Where the evidence comes from, where evidence is kept: `hit`, `shared`, `redis` or `miss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cache: Option<&'static str>,
    /// What the guard found of the answer; none where it does not read answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reply: Option<Reply>,
    pub(crate) timings: Stages,
    /// Status of the answer; none where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    /// Bytes of the answer's body that were handed to the connection.
    pub(crate) bytes: u64,
    pub(crate) outcome: Outcome,
}

impl Record {
    /// The route that has taken the request.
    pub(crate) fn route(&self) -> &str {
        self.route.as_deref().unwrap_or("none")
    }
}

/// What the guard found of an answer, by its latest judgement.
#[derive(Debug, Serialize)]
pub(crate) struct Reply {
    /// `allow`, `refuse` or `deny`.
    pub(crate) decision: &'static str,
    pub(crate) by: String,
    pub(crate) reason: String,
    /// How often the reply was read; each time it had grown.
    pub(crate) judgements: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hazard: Option<Hazard>,
}

/// What the guard found.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) score: f64,
    pub(crate) verdict: Verdict,
    pub(crate) signal: forethought_core::evidence::Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hazard: Option<Hazard>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    combined_score: Option<f64>,
    /// P(harmful) after the written phases.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoned_score: Option<f64>,
    /// How the written phases ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<[PhaseEnd; 2]>,
    /// Probes minus verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_gap: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    probes: Vec<ProbeReading>,
    #[serde(skip_serializing_if = "Option::is_none")]
    understanding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assessment: Option<String>,
    pub(crate) coverage: Coverage,
    pub(crate) guard: GuardVersion,
}

impl Found {
    /// The record of `evidence`, with what the guard wrote if `text`.
    pub(crate) fn new(evidence: &Evidence, text: bool) -> Self {
        let written = evidence.assessment.as_ref().filter(|_| text);
        Self {
            score: evidence.score,
            verdict: evidence.verdict(),
            signal: evidence.path,
            hazard: evidence.hazard.clone(),
            direct_score: evidence.direct_score,
            probe_score: evidence.probe_score,
            combined_score: evidence.combined_score,
            reasoned_score: evidence.assessment.as_ref().map(|a| a.score),
            ends: evidence.assessment.as_ref().map(|a| a.ends),
            activation_gap: evidence.activation_gap(),
            probes: evidence.probes.clone(),
            understanding: written.map(|a| a.understanding.clone()),
            assessment: written.map(|a| a.assessment.clone()),
            coverage: evidence.coverage.clone(),
            guard: evidence.guard.clone(),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Hash { bytes: usize, hmac_sha256: String },
    Full { bytes: usize, conversation: Conversation },
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prompt")
    }
}

/// A stage of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Body,
    Guard,
    Policy,
}

/// How long the stages took, in milliseconds; a stage that was not reached has none.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stages {
    /// Receiving the body.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded")]
    pub(crate) body_ms: Option<f64>,
    /// Waiting for the guard's evidence.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded")]
    pub(crate) guard_ms: Option<f64>,
    /// The guard's own account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guard: Option<Timings>,
    /// Asking the policies.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded")]
    pub(crate) policy_ms: Option<f64>,
    /// Waiting for the head of the upstream's answer.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "rounded")]
    pub(crate) upstream_ms: Option<f64>,
    /// From the request's head to the end.
    #[serde(serialize_with = "rounded")]
    pub(crate) total_ms: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the shape that serde asks for
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// To a microsecond; more digits only fill the disk.
#[allow(clippy::ref_option)] // the shape that serde asks for
fn rounded<S: Serializer>(ms: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match ms {
        Some(ms) => serializer.serialize_f64((ms * 1e3).round() / 1e3),
        None => serializer.serialize_none(),
    }
}
