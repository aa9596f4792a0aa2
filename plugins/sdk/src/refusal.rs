//! Making rulings: the decisions, and refusals whose text depends on hazard, language and wire format.

use alloc::{string::String, vec::Vec};

use serde::Deserialize;

use crate::{Decision, Edit, Evidence, Request, Ruling};

/// No opinion: the next policy decides.
pub fn pass() -> Ruling {
    ruling(Decision::Pass)
}

/// Forward the request.
pub fn allow() -> Ruling {
    ruling(Decision::Allow)
}

/// Answer the request with `text`, in the caller's own wire format, without the upstream.
pub fn refuse(text: impl Into<String>) -> Ruling {
    ruling(Decision::Refuse(text.into()))
}

/// Forward the request with other text in it.
pub fn rewrite(edits: Vec<Edit>) -> Ruling {
    ruling(Decision::Rewrite(edits))
}

/// Forward the request with a note to the upstream's model.
pub fn annotate(note: impl Into<String>) -> Ruling {
    ruling(Decision::Annotate(note.into()))
}

/// Forward the request to the upstream that the operator calls `upstream`.
pub fn redirect(upstream: impl Into<String>) -> Ruling {
    ruling(Decision::Redirect(upstream.into()))
}

fn ruling(decision: Decision) -> Ruling {
    Ruling { decision, reason: String::new(), flags: Vec::new() }
}

impl Ruling {
    /// Gives the reason: names and numbers, never text of the request.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Marks the request, for audit records and later policies.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }
}

/// Texts of refusals. Of those whose conditions hold, one for the hazard comes first, then one for the wire format, then one
/// in the language that the caller prefers most; of equals, the first. A condition that is not set always holds.
///
/// ```toml
/// [[policy.plugins.config.texts]]
/// text = "I can't help with that."
/// [[policy.plugins.config.texts]]
/// hazard = "self-harm"
/// language = "de"
/// text = "..."
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Texts(Vec<Entry>);

/// One text and where it is used.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// The hazard, such as `self-harm`.
    hazard: Option<String>,
    /// The language, such as `de`; `de-ch` is `de` too.
    language: Option<String>,
    /// The wire format, such as `openai-chat`.
    api: Option<String>,
    /// The text. `{hazard}` becomes the hazard's name.
    text: String,
}

impl Texts {
    /// The text for a request of this hazard, or `None` where no entry's conditions hold.
    pub fn find(&self, request: &Request, hazard: Option<&str>) -> Option<String> {
        let ranked = self.0.iter().filter_map(|entry| Some((entry.rank(request, hazard)?, entry)));
        // The least, and the first of equals.
        let (_, best) = ranked.min_by_key(|(rank, _)| *rank)?;
        Some(best.text.replace("{hazard}", hazard.unwrap_or("this")))
    }

    /// A refusal with the text for the evidence's hazard, or with `otherwise`.
    pub fn refuse(&self, request: &Request, evidence: &Evidence, otherwise: &str) -> Ruling {
        refuse(self.find(request, evidence.hazard.as_deref()).unwrap_or_else(|| otherwise.into()))
    }
}

impl Entry {
    /// How far behind the best possible entry this one is, or `None` where its conditions don't hold.
    fn rank(&self, request: &Request, hazard: Option<&str>) -> Option<(bool, bool, usize)> {
        let is_of_hazard = self.hazard.is_some();
        let is_of_api = self.api.is_some();
        let holds = (!is_of_hazard || self.hazard.as_deref() == hazard)
            && self.api.as_ref().is_none_or(|api| *api == request.api);
        let language = match &self.language {
            None => Some(request.languages.len()),
            Some(own) => request.languages.iter().position(|asked| {
                asked == own || asked.strip_prefix(own.as_str()).is_some_and(|rest| rest.starts_with('-'))
            }),
        };
        language.filter(|_| holds).map(|language| (!is_of_hazard, !is_of_api, language))
    }
}
