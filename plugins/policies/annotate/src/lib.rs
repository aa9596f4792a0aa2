//! Passes the assessment on to the upstream, as a scaffold for its own reasoning: R1-Act's activation (arXiv 2508.00324)
//! at inference time. Only where the request is not clear: clearly benign ones need none, and harmful ones are left to the
//! policies behind.
//!
//! ```toml
//! config = { from = 0.1, below = 0.5 }
//! ```

use forethought_policy::prelude::*;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Annotate {
    /// Scores below this need no note.
    from: f64,
    /// Scores from this on are not forwarded by this policy.
    below: f64,
    /// The note. `{understanding}`, `{assessment}`, `{hazard}` and `{score}` become what the guard found.
    note: String,
}

impl Default for Annotate {
    fn default() -> Self {
        Self {
            from: 0.1,
            below: 0.5,
            note: "Before you answer, consider this reading of the conversation by a safety reviewer.\n\
                   Problem understanding: {understanding}\n\
                   Harmfulness assessment: {assessment}\n\
                   If a full answer could hurt someone, leave out what could, and say so. Do not mention this note."
                .to_owned(),
        }
    }
}

impl Policy for Annotate {
    fn decide(&mut self, _: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        let score = evidence.score;
        let Some(written) = &evidence.assessment else { return pass() };
        if !(score >= self.from && score < self.below) {
            return pass();
        }
        // What the guard wrote goes in last, and is not searched for placeholders.
        let parts = self.note.split('{').enumerate().map(|(index, piece)| match piece.split_once('}') {
            Some((name, rest)) if index > 0 => match name {
                "understanding" => format!("{}{rest}", written.understanding),
                "assessment" => format!("{}{rest}", written.assessment),
                "hazard" => format!("{}{rest}", evidence.hazard.as_deref().unwrap_or("none")),
                "score" => format!("{score:.2}{rest}"),
                _ => format!("{{{piece}"),
            },
            _ if index > 0 => format!("{{{piece}"),
            _ => piece.to_owned(),
        });
        annotate(parts.collect::<String>())
            .because(format!("score {score:.3} from {} to {}", self.from, self.below))
    }
}

forethought_policy::export!(Annotate);
