//! Sizes in the base model's tokens, as the trainer and the guard see them.

use std::path::Path;

use forethought_core::guard::{bundle::Manifest, bundle::TokenLimits, prompt::Prompt};
use forethought_core::metrics::quantile;
use forethought_core::model::{Checkpoint, Tokenizer};
use serde::Serialize;

use super::{Finding, Flaw, Item, Limits, Part};
use crate::error::Result;
use crate::r1act::{Form, PhaseWeights, render};

/// What counts tokens: a base model's tokenizer, and the template that the guard asks with.
pub struct Base {
    tokenizer: Tokenizer,
    prompt: Prompt,
    caps: TokenLimits,
}

impl Base {
    /// Reads the tokenizer and chat template of a model's file or folder; no weights are loaded.
    ///
    /// # Errors
    /// The files are wrong, or do not fit the template.
    pub fn open(path: &Path, manifest: &Manifest) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let prompt = Prompt::new(manifest, &tokenizer, &checkpoint.chat_template()?)?;
        Ok(Self { tokenizer, prompt, caps: manifest.limits })
    }
}

/// Sizes of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tokens {
    /// By part, template left out.
    pub parts: Vec<PartTokens>,
    /// By form, template and all.
    pub forms: Vec<FormTokens>,
}

/// Sizes of one part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PartTokens {
    /// Which.
    pub part: Part,
    /// How they are spread over the rows that have it.
    #[serde(flatten)]
    pub sizes: Sizes,
}

/// Sizes of whole sequences in one form.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FormTokens {
    /// Which.
    pub form: Form,
    /// How they are spread.
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Tokens whose prediction is trained, in one epoch.
    pub targets: usize,
}

/// How sizes are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Texts counted.
    pub rows: usize,
    /// The smallest.
    pub min: usize,
    /// Half are smaller.
    pub median: f64,
    /// 95 of 100 are smaller.
    pub p95: f64,
    /// The largest.
    pub max: usize,
    /// The sum: one epoch.
    pub total: usize,
}

impl Sizes {
    fn new(sizes: &[usize]) -> Option<Self> {
        let mut values: Vec<f64> = sizes.iter().map(|&size| size as f64).collect();
        Some(Self {
            rows: sizes.len(),
            min: *sizes.iter().min()?,
            median: quantile(&mut values, 0.5)?,
            p95: quantile(&mut values, 0.95)?,
            max: *sizes.iter().max()?,
            total: sizes.iter().sum(),
        })
    }
}

pub(super) fn count(
    base: &Base,
    items: &[Item],
    limits: &Limits,
    findings: &mut Vec<Finding>,
) -> Result<Tokens> {
    let mut over = |flaw, item: &Item, part, size: usize, limit: usize| {
        if size > limit {
            let detail = format!("{size} tokens, and {limit} is the limit");
            findings.push(Finding { flaw, place: item.place(limits), part, detail });
        }
    };
    let mut parts = Vec::new();
    for part in Part::ALL {
        let cap = match part {
            Part::Instruction => usize::MAX,
            Part::Understanding => base.caps.understanding_tokens,
            Part::Assessment => base.caps.assessment_tokens,
        };
        let mut sizes = Vec::new();
        for item in items {
            let Some(text) = part.of(item.row) else { continue };
            let size = base.tokenizer.encode_text(&format!(" {}", text.trim()))?.len();
            over(Flaw::PhaseOverCap, item, part, size, cap);
            sizes.push(size);
        }
        parts.extend(Sizes::new(&sizes).map(|sizes| PartTokens { part, sizes }));
    }
    let mut forms = Vec::new();
    for form in [Form::Full, Form::Direct] {
        let (mut sizes, mut targets) = (Vec::new(), 0);
        for item in items {
            let has_phases = item.row.understanding.is_some() && item.row.assessment.is_some();
            if form == Form::Full && !has_phases {
                continue;
            }
            let example = render(item.row, form, &base.prompt, &base.tokenizer, &PhaseWeights::default())?;
            if form == Form::Full || !has_phases {
                over(Flaw::TooLong, item, Part::Instruction, example.tokens.len(), limits.tokens);
            }
            sizes.push(example.tokens.len());
            targets += example.targets();
        }
        forms.extend(Sizes::new(&sizes).map(|sizes| FormTokens { form, sizes, targets }));
    }
    Ok(Tokens { parts, forms })
}
