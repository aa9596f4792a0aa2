//! The cases of `forethought plugin test`: what is written in `cases.toml` or `cases.yaml`.

use forethought_core::{
    conversation::{Conversation, Message, Part, Role},
    evidence::{Assessment, Coverage, Evidence, GuardVersion, Hazard, Path, PhaseEnd, ProbeReading, Timings},
    policy::{Decision, Opinion, RequestFacts, Said},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cli::say_plainly;

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cases {
    /// The plugin's file, from the folder of this file.
    pub(super) component: Option<String>,
    /// What it may import beside what every plugin may.
    #[serde(default)]
    pub(super) grants: Vec<String>,
    /// Its configuration, for cases without one of their own.
    pub(super) config: Option<Map<String, Value>>,
    pub(super) case: Vec<TestCase>,
}

/// A request, its evidence, and what is to come of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestCase {
    pub(super) name: String,
    pub(super) config: Option<Map<String, Value>>,
    #[serde(default)]
    pub(super) request: TestRequest,
    pub(super) evidence: TestEvidence,
    #[serde(default)]
    pub(super) so_far: Vec<TestOpinion>,
    pub(super) expect: Expected,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TestRequest {
    /// The only message; in place of `messages`.
    user: Option<String>,
    messages: Vec<TestMessage>,
    model: String,
    path: Option<String>,
    api: Option<String>,
    stream: bool,
    tenant: Option<String>,
    languages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestMessage {
    role: Role,
    /// The only part; in place of `parts`.
    text: Option<String>,
    #[serde(default)]
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestEvidence {
    score: f64,
    signal: Option<Path>,
    hazard: Option<String>,
    understanding: Option<String>,
    assessment: Option<String>,
    reasoned_score: Option<f64>,
    direct_score: Option<f64>,
    probe_score: Option<f64>,
    combined_score: Option<f64>,
    #[serde(default)]
    probes: Vec<ProbeReading>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestOpinion {
    policy: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    failed: bool,
}

/// What is compared; what is not named may be anything.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expected {
    /// `pass`, `allow`, `refuse`, `rewrite`, `annotate` or `redirect`.
    decision: Option<String>,
    /// The text of a refusal or a note, or the name of an upstream.
    text: Option<String>,
    /// What that text has in it.
    contains: Vec<String>,
    /// The edits of a rewrite.
    edits: Option<Vec<ExpectedEdit>>,
    reason: Option<String>,
    flags: Option<Vec<String>>,
    /// What the error says where the plugin fails, or rejects its configuration.
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedEdit {
    message: usize,
    part: usize,
    text: String,
}

impl TestRequest {
    pub(super) fn conversation(&self) -> Conversation {
        let user = self.user.iter().map(|text| Message::text(Role::User, text));
        let written = self.messages.iter().map(|message| {
            let text = message.text.iter().map(|text| Part::Text { text: text.clone() });
            Message { role: message.role, parts: text.chain(message.parts.iter().cloned()).collect() }
        });
        Conversation { messages: user.chain(written).collect() }
    }

    pub(super) fn facts(&self) -> RequestFacts {
        RequestFacts {
            model: self.model.clone(),
            path: self.path.clone().unwrap_or_else(|| "/v1/chat/completions".to_owned()),
            api: self.api.clone().unwrap_or_else(|| "openai-chat".to_owned()),
            stream: self.stream,
            tenant: self.tenant.clone(),
            languages: self.languages.clone(),
        }
    }
}

impl TestEvidence {
    pub(super) fn evidence(&self) -> Evidence {
        let written =
            self.understanding.is_some() || self.assessment.is_some() || self.reasoned_score.is_some();
        Evidence {
            score: self.score,
            path: self.signal.unwrap_or(Path::Reason),
            hazard: self.hazard.as_deref().map(Hazard::new),
            assessment: written.then(|| Assessment {
                understanding: self.understanding.clone().unwrap_or_default(),
                assessment: self.assessment.clone().unwrap_or_default(),
                ends: [PhaseEnd::Complete; 2],
                score: self.reasoned_score.unwrap_or(self.score),
            }),
            direct_score: self.direct_score,
            probe_score: self.probe_score,
            combined_score: self.combined_score,
            probes: self.probes.clone(),
            partial: false,
            coverage: Coverage { tokens: 10, tokens_read: 10, windows: 1, ..Coverage::default() },
            timings: Timings::default(),
            guard: GuardVersion::default(),
            steps: vec![],
        }
    }
}

impl TestOpinion {
    pub(super) fn opinion(&self) -> Opinion {
        Opinion { policy: self.policy.clone(), flags: self.flags.clone(), failed: self.failed }
    }
}

impl Expected {
    /// What of `found` is not as expected: its name, the expected value, the one found.
    pub(super) fn differences(&self, found: &Value) -> Vec<(String, String, String)> {
        let mut wrong = Vec::new();
        let mut compare = |what: &str, expected: Value| {
            let found = &found[what];
            if *found != expected {
                wrong.push((what.to_owned(), plain(&expected), plain(found)));
            }
        };
        if self.error.is_none() {
            compare("error", Value::Null);
        }
        if let Some(decision) = &self.decision {
            compare("decision", json!(decision));
        }
        if let Some(text) = &self.text {
            compare("text", json!(text));
        }
        if let Some(edits) = &self.edits {
            let edit = |e: &ExpectedEdit| json!({"message": e.message, "part": e.part, "text": e.text});
            compare("edits", edits.iter().map(edit).collect());
        }
        if let Some(reason) = &self.reason {
            compare("reason", json!(reason));
        }
        if let Some(flags) = &self.flags {
            compare("flags", json!(flags));
        }
        let has = |what: &str, part: &str| found[what].as_str().is_some_and(|text| text.contains(part));
        for part in self.contains.iter().filter(|part| !has("text", part)) {
            wrong.push(("text".to_owned(), format!("something with {part:?} in it"), plain(&found["text"])));
        }
        for part in self.error.iter().filter(|part| !has("error", part)) {
            wrong.push((
                "error".to_owned(),
                format!("something with {part:?} in it"),
                plain(&found["error"]),
            ));
        }
        wrong
    }
}

/// What a plugin said, as [`Expected`] names it.
pub(super) fn to_json(said: &Said) -> Value {
    let decision = said.decision.as_ref().map_or("pass", Decision::as_str);
    let mut found = json!({"decision": decision, "reason": said.reason, "flags": said.flags});
    match &said.decision {
        Some(
            Decision::Refuse { message: text }
            | Decision::Annotate { text }
            | Decision::Redirect { upstream: text },
        ) => {
            found["text"] = json!(text);
        }
        Some(Decision::Rewrite { edits }) => found["edits"] = json!(edits),
        None | Some(Decision::Allow) => {}
    }
    found
}

/// What a plugin said, in a line.
pub(super) fn shown(said: &Said) -> String {
    let found = to_json(said);
    let text =
        found.get("text").or(found.get("edits")).map(|text| format!(" {}", plain(text))).unwrap_or_default();
    let reason = if said.reason.is_empty() { String::new() } else { format!(" because {}", said.reason) };
    say_plainly(&format!("{}{text}{reason}", found["decision"].as_str().unwrap_or_default()))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}
