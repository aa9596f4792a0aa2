//! Instructions with responses, such as the public set of R1-Act, as sequences to learn: the model's own chat template
//! around the instruction, then all that it should answer.

use forethought_core::generate::ChatMessage;
use forethought_core::model::{ChatTemplate, Checkpoint, Tokenizer};

use crate::data::Example;
use crate::dataset::read::ResponseRow;
use crate::error::Result;

/// What opens a reasoning model's thoughts. Some templates write it themselves.
const THINK: &str = "<think>";

/// How a model is asked, and how its answer ends.
pub struct Chat {
    template: ChatTemplate,
    end: String,
}

impl Chat {
    /// The chat template of a checkpoint.
    ///
    /// # Errors
    /// It has none, or one with a mistake.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let end = checkpoint.chat_source()?.eos.unwrap_or_default();
        Ok(Self { template: checkpoint.chat_template()?, end })
    }

    /// Renders a row. Nothing in the instruction is a control token; in the response, which is training data and says
    /// what the model should write, control tokens are.
    ///
    /// # Errors
    /// The template rejects the instruction, or the tokenizer fails on a text.
    pub fn render(&self, row: &ResponseRow, tokenizer: &Tokenizer, weight: f32) -> Result<Example> {
        let ask = ChatMessage { role: "user".into(), content: row.instruction.clone() };
        let prompt = tokenizer.encode_pieces(&self.template.render(&[ask])?)?;
        let mut response = row.response.as_str();
        if let Some(rest) = response.trim_start().strip_prefix(THINK)
            && tokenizer.decode(&prompt)?.trim_end().ends_with(THINK)
        {
            response = rest.trim_start();
        }
        let mut example = Example::default();
        example.extend(&prompt, 0.0);
        example.extend(&tokenizer.encode_control(&format!("{}{}", response.trim_end(), self.end))?, weight);
        Ok(example)
    }
}
