//! A bundle's template in token ids, ready for use.

use std::collections::BTreeMap;

use super::bundle::{CONVERSATION, Manifest};
use crate::{
    evidence::Hazard,
    generate::ChatMessage,
    model::{ChatTemplate, ModelError, Piece, Result, Tokenizer},
};

/// The token ids around a transcript, and those of every heading.
pub struct Prompt {
    /// Before the transcript; the same for every conversation.
    pub prefix: Vec<u32>,
    /// After the transcript: closes the user's turn and opens the assistant's.
    pub suffix: Vec<u32>,
    /// Opens the first phase.
    pub understanding: Vec<u32>,
    /// Opens the second phase.
    pub assessment: Vec<u32>,
    /// Asks for the verdict after the phases.
    pub verdict: Vec<u32>,
    /// Asks for the verdict at once.
    pub direct_verdict: Vec<u32>,
    /// The harmful label.
    pub harmful: Vec<u32>,
    /// The benign label.
    pub benign: Vec<u32>,
    /// Asks for the hazard.
    pub category: Vec<u32>,
    /// All that may follow there.
    pub hazards: HazardTree,
}

impl Prompt {
    /// Tokenizes a bundle's template for a model.
    ///
    /// # Errors
    /// The model's chat template rejects the messages, or the two labels begin with the same token.
    pub fn new(manifest: &Manifest, tokenizer: &Tokenizer, chat: &ChatTemplate) -> Result<Self> {
        let template = &manifest.template;
        let message =
            |role: &str, content: &str| ChatMessage { role: role.into(), content: content.trim().into() };
        let pieces = chat.render(&[message("system", &template.system), message("user", &template.user)])?;
        let at = pieces
            .iter()
            .position(|p| matches!(p, Piece::Text(text) if text.contains(CONVERSATION)))
            .ok_or_else(|| ModelError::Template("the user's message is not in the rendered prompt".into()))?;
        let (Piece::Text(user) | Piece::Control(user)) = &pieces[at];
        let (before, after) = user.split_once(CONVERSATION).unwrap_or((user, ""));

        let mut prefix = tokenizer.encode_pieces(&pieces[..at])?;
        prefix.extend(tokenizer.encode_text(before)?);
        let mut suffix = tokenizer.encode_text(after)?;
        suffix.extend(tokenizer.encode_pieces(&pieces[at + 1..])?);
        // Templates of reasoning models open the thoughts themselves.
        let opened =
            matches!(pieces.last(), Some(Piece::Control(end)) if end.ends_with(template.open.trim_end()));
        if !opened {
            suffix.extend(tokenizer.encode_control(&template.open)?);
        }

        let heading = |text: &str| tokenizer.encode_control(text);
        let (harmful, benign) = (heading(&template.harmful)?, heading(&template.benign)?);
        if harmful.first() == benign.first() {
            return Err(ModelError::Template(format!(
                "the labels `{}` and `{}` begin with the same token: choose others",
                template.harmful, template.benign
            )));
        }
        Ok(Self {
            prefix,
            suffix,
            understanding: heading(&template.understanding)?,
            assessment: heading(&template.assessment)?,
            verdict: heading(&template.verdict)?,
            direct_verdict: heading(&template.direct_verdict)?,
            harmful,
            benign,
            category: heading(&template.category)?,
            hazards: HazardTree::new(&manifest.hazards.names, tokenizer)?,
        })
    }
}

/// The hazards' token ids as a prefix tree: what the model may write after `Category:`.
#[derive(Debug, Default)]
pub struct HazardTree {
    children: BTreeMap<u32, HazardTree>,
    /// The hazard if only one is left from here on; `Some(None)` is `none`.
    only: Option<Option<Hazard>>,
}

impl HazardTree {
    fn new(names: &[Hazard], tokenizer: &Tokenizer) -> Result<Self> {
        let mut tree = Self::default();
        let all = names.iter().map(|h| (h.as_str(), Some(h.clone()))).chain([("none", None)]);
        for (name, hazard) in all {
            // The end of the line is part of a name, so that no name is the beginning of another.
            let ids = tokenizer.encode_control(&format!(" {name}\n"))?;
            tree.insert(&ids, hazard, true);
        }
        Ok(tree)
    }

    fn insert(&mut self, ids: &[u32], hazard: Option<Hazard>, root: bool) {
        self.only = if self.children.is_empty() && !root { Some(hazard.clone()) } else { None };
        if let Some((first, rest)) = ids.split_first() {
            self.children.entry(*first).or_default().insert(rest, hazard, false);
        }
    }

    /// The outcome if it is settled here; the inner `None` is `none`.
    pub fn settled(&self) -> Option<&Option<Hazard>> {
        self.only.as_ref()
    }

    /// Where a token leads.
    pub fn child(&self, id: u32) -> Option<&Self> {
        self.children.get(&id)
    }

    /// The tokens that may come next.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.children.keys().copied()
    }

    /// The likeliest next token and where it leads.
    pub fn step(&self, logits: &[f32]) -> Option<(u32, &Self)> {
        let logit = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let best = self.children.iter().max_by(|a, b| logit(*a.0).total_cmp(&logit(*b.0)));
        best.map(|(&id, child)| (id, child))
    }
}
