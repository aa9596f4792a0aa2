//! Answers of our own in the shapes of Ollama's chat and generate APIs.

use serde_json::{Value, json};

use crate::api::answer::{Answer, End, Envelope, Usage};

pub(in crate::api) struct Writer {
    envelope: Envelope,
    /// Whether text stands in a message, as in a chat.
    chat: bool,
}

impl Writer {
    pub(in crate::api) fn chat(envelope: Envelope) -> Self {
        Self { envelope, chat: true }
    }

    pub(in crate::api) fn generate(envelope: Envelope) -> Self {
        Self { envelope, chat: false }
    }

    fn line(&self, text: &str, done: bool) -> Value {
        let mut line = json!({
            "model": self.envelope.model,
            "created_at": humantime::format_rfc3339_micros(self.envelope.created).to_string(),
        });
        if self.chat {
            line["message"] = json!({"role": "assistant", "content": text});
        } else {
            line["response"] = text.into();
        }
        line["done"] = done.into();
        line
    }
}

impl Answer for Writer {
    fn whole(&mut self, text: &str, end: End, usage: Usage) -> Value {
        let mut line = self.line(text, true);
        // Ollama has no word for a refusal.
        line["done_reason"] = self.envelope.word(end, ["stop", "length", "stop"]).into();
        for duration in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
            line[duration] = 0.into();
        }
        line["prompt_eval_count"] = usage.prompt.into();
        line["eval_count"] = usage.completion.into();
        self.envelope.expose(&mut line);
        line
    }

    fn open(&mut self, _: usize) -> Vec<Value> {
        vec![]
    }

    fn text(&mut self, _: usize, text: &str) -> Vec<Value> {
        vec![self.line(text, false)]
    }

    fn close(&mut self, _: usize, _: End) -> Vec<Value> {
        vec![]
    }

    fn done(&mut self, end: End, usage: Usage) -> Vec<Value> {
        vec![self.whole("", end, usage)]
    }
}
