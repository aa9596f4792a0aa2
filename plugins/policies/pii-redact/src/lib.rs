//! Takes personal data out of requests before they go upstream: email addresses, payment cards, IBANs and international
//! phone numbers become `[EMAIL]`, `[CARD]`, `[IBAN]` and `[PHONE]`. Cards and IBANs are told from other numbers by their
//! check digits.
//!
//! ```toml
//! config = { kinds = ["email", "card", "iban", "phone"], below = 0.5 }
//! ```

mod find;

use forethought_policy::prelude::*;

use crate::find::Kind;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Redact {
    /// What is taken out.
    kinds: Vec<Kind>,
    /// Scores from this on are left to the policies behind: who rewrites decides, and harm is not this policy's matter.
    below: f64,
}

impl Default for Redact {
    fn default() -> Self {
        Self { kinds: Kind::ALL.to_vec(), below: 0.5 }
    }
}

impl Policy for Redact {
    fn decide(&mut self, request: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        if !(evidence.score < self.below) {
            return pass();
        }
        let mut found = 0;
        let mut edits = Vec::new();
        for (_, message, part, text) in request.texts() {
            let (text, count) = find::redact(text, &self.kinds);
            if count > 0 {
                found += count;
                edits.push(Edit { message, part, text });
            }
        }
        if edits.is_empty() {
            pass()
        } else {
            rewrite(edits).because(format!("{found} pieces of personal data")).flag("pii")
        }
    }
}

forethought_policy::export!(Redact);
