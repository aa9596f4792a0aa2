//! What a guard found: the facts a policy decides on.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{conversation::Role, probe::Position};

/// What the guard holds of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Answering would help to do harm.
    Harmful,
    /// Nothing speaks against answering.
    Benign,
}

impl Verdict {
    /// The verdict of a score at even odds.
    pub fn from_score(score: f64) -> Self {
        if score >= 0.5 { Self::Harmful } else { Self::Benign }
    }

    /// `harmful` or `benign`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Harmful => "harmful",
            Self::Benign => "benign",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A category of harm, by name. A bundle says which names its guard uses; [`Hazard::MLCOMMONS`] is the default list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hazard(Arc<str>);

impl Hazard {
    /// The hazards of the MLCommons AILuminate taxonomy, under the names this project uses.
    pub const MLCOMMONS: [&'static str; 14] = [
        "violent-crimes",
        "nonviolent-crimes",
        "sex-crimes",
        "child-exploitation",
        "defamation",
        "specialized-advice",
        "privacy",
        "intellectual-property",
        "indiscriminate-weapons",
        "hate",
        "self-harm",
        "sexual-content",
        "elections",
        "cyber",
    ];

    /// A hazard of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Hazard {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The steps of R1-Act's reasoning that a guard takes (arXiv 2508.00324, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Problem understanding: what the user really wants.
    Understanding,
    /// Harmfulness assessment: who would be hurt, and how.
    Assessment,
}

/// Why a phase's text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PhaseEnd {
    /// The model ended it.
    Complete,
    /// The token cap closed it.
    Cap,
    /// The deadline closed it.
    Deadline,
}

/// The written reasoning and its verdict.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    /// Text of the first phase.
    pub understanding: String,
    /// Text of the second phase.
    pub assessment: String,
    /// How each phase ended, in order.
    pub ends: [PhaseEnd; 2],
    /// P(harmful) after the two phases, in `[0, 1]`.
    pub score: f64,
}

impl fmt::Debug for Assessment {
    /// Leaves the texts out: they may quote the prompt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assessment")
            .field("score", &self.score)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// What a probe says of a conversation; of several windows, the highest it says of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReading {
    /// The probe's name.
    pub name: String,
    /// The layer it reads: 0 is the embedding, `k` the output of block `k`.
    pub layer: usize,
    /// The state it reads.
    pub position: Position,
    /// P(harmful), in `[0, 1]`.
    pub score: f64,
    /// The score from which on it says harmful.
    pub threshold: f64,
}

impl ProbeReading {
    /// Whether the probe says harmful.
    pub fn is_harmful(&self) -> bool {
        self.score >= self.threshold
    }
}

/// Which signal the score of an [`Evidence`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The probes, after one prefill.
    Probe,
    /// The verdict after written phases.
    Reason,
    /// The verdict asked for at once, with no phases.
    Direct,
    /// Nothing: no guard could be asked, and the score is 1, so that thresholds refuse.
    Unassessed,
}

impl Path {
    /// The word for it in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Reason => "reason",
            Self::Direct => "direct",
            Self::Unassessed => "unassessed",
        }
    }
}

/// A guard that was asked, where there are several, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which one: `local`, or a server's host and port.
    pub guard: String,
    /// `answered`, or why it did not: in words that hold nothing of the conversation.
    pub outcome: String,
}

impl Step {
    /// The outcome of a guard whose answer counts.
    pub const ANSWERED: &str = "answered";

    /// A step.
    pub fn new(guard: impl Into<String>, outcome: impl Into<String>) -> Self {
        Self { guard: guard.into(), outcome: outcome.into() }
    }
}

/// What was read of a conversation, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Messages by role.
    pub roles: BTreeMap<Role, usize>,
    /// Tool calls read.
    pub tool_calls: usize,
    /// Tool results read.
    pub tool_results: usize,
    /// Reasoning parts read.
    pub reasoning: usize,
    /// Parts that can't be read, counted by kind.
    pub unread: BTreeMap<String, usize>,
    /// Tokens of the rendered transcript.
    pub tokens: usize,
    /// Tokens of it that lay in at least one window that the guard read.
    pub tokens_read: usize,
    /// Windows the guard read.
    pub windows: usize,
}

impl Coverage {
    /// Whether everything was read.
    pub fn is_complete(&self) -> bool {
        self.unread.is_empty() && self.tokens_read == self.tokens
    }

    /// Tokens that no window held.
    pub fn tokens_unread(&self) -> usize {
        self.tokens.saturating_sub(self.tokens_read)
    }
}

/// How long the steps took, in milliseconds, and what they cost in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for the engine.
    pub queue_ms: f64,
    /// Reading the transcript.
    pub prefill_ms: f64,
    /// Running the probes; part of [`Self::prefill_ms`].
    #[serde(default)]
    pub probe_ms: f64,
    /// Writing the phases, verdict and category.
    pub decode_ms: f64,
    /// From call to evidence.
    pub total_ms: f64,
    /// Tokens read, shared prefix left out.
    pub prompt_tokens: usize,
    /// Tokens written by the model (forced headings left out).
    pub generated_tokens: usize,
}

/// Which guard made the evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardVersion {
    /// The bundle's name and version.
    pub bundle: String,
    /// sha256 of the bundle's contents, hexadecimal.
    pub bundle_sha256: String,
    /// The base model's name.
    pub base_model: String,
    /// sha256 of the base model's weights, hexadecimal.
    pub base_sha256: String,
    /// The template's name and version.
    pub template: String,
    /// sha256 of each probe that is not the bundle's, hexadecimal, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub own_probes: BTreeMap<String, String>,
}

/// Everything a guard found out about a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// P(harmful) that a policy should compare with its thresholds, in `[0, 1]`.
    pub score: f64,
    /// Where [`Self::score`] comes from.
    pub path: Path,
    /// The hazard that a harmful reading would fall under; `None` where the guard names none.
    pub hazard: Option<Hazard>,
    /// The written reasoning, if there was any.
    pub assessment: Option<Assessment>,
    /// P(harmful) asked for with no phases, if it was.
    pub direct_score: Option<f64>,
    /// P(harmful) by the probes, if there are any: the highest of their readings, or what the bundle makes of them.
    #[serde(default)]
    pub probe_score: Option<f64>,
    /// P(harmful) by the signals together, where the bundle says how to combine those that there are.
    #[serde(default)]
    pub combined_score: Option<f64>,
    /// What each probe says.
    #[serde(default)]
    pub probes: Vec<ProbeReading>,
    /// Whether something is missing that the guard would have said, because its time was over or a server failed: a
    /// phase's end, or the hazard. What no hazard was named for lack of time is told apart so from what falls under none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// What was read and what was not.
    pub coverage: Coverage,
    /// What it cost.
    pub timings: Timings,
    /// Who found it.
    pub guard: GuardVersion,
    /// The guards that were asked, in order, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

impl Evidence {
    /// The verdict at even odds. Policies compare [`Self::score`] with their own thresholds.
    pub fn verdict(&self) -> Verdict {
        Verdict::from_score(self.score)
    }

    /// How much more harm the probes see than the model says, after reasoning if it did, else at once; below zero where
    /// it says more. In `[-1, 1]`; `None` without probes.
    ///
    /// R1-Act's finding (arXiv 2508.00324) is that a model may know what it does not say.
    pub fn activation_gap(&self) -> Option<f64> {
        let said = self.assessment.as_ref().map(|a| a.score).or(self.direct_score)?;
        Some(self.probe_score? - said)
    }
}
