//! Answers of our own in the shape of the OpenAI chat API: whole completions and streams of chunks.

use serde_json::{Value, json};

use crate::{
    api::answer::{self, End, Envelope, Usage},
    config::RefusalField,
};

/// An answer.
pub(super) struct Answer(pub(super) Envelope);

/// Token counts as the OpenAI APIs tell them.
pub(in crate::api) fn usage(Usage { prompt, completion }: Usage) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// The word for an end in the OpenAI chat and completions APIs.
pub(in crate::api) fn finish_reason(envelope: &Envelope, end: End) -> &'static str {
    envelope.word(end, ["stop", "length", "content_filter"])
}

impl Answer {
    /// Whether the text stands in the field for refusals.
    fn in_refusal(&self) -> bool {
        self.0.refusal && self.0.field == RefusalField::Refusal
    }

    fn chunk(&self, index: usize, delta: Value, finish_reason: Option<&str>) -> Value {
        self.chunk_of(
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]),
        )
    }

    fn chunk_of(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": format!("chatcmpl-{}", self.0.id),
            "object": "chat.completion.chunk",
            "created": self.0.created_s(),
            "model": self.0.model,
            "choices": choices,
        });
        if self.0.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl answer::Answer for Answer {
    fn whole(&mut self, text: &str, end: End, counts: Usage) -> Value {
        let finish_reason = finish_reason(&self.0, end);
        let message = if self.in_refusal() {
            json!({"role": "assistant", "content": null, "refusal": text})
        } else {
            json!({"role": "assistant", "content": text, "refusal": null})
        };
        let choice = |index| json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish_reason});
        let mut body = json!({
            "id": format!("chatcmpl-{}", self.0.id),
            "object": "chat.completion",
            "created": self.0.created_s(),
            "model": self.0.model,
            "choices": (0..self.0.choices).map(choice).collect::<Vec<_>>(),
            "usage": usage(counts),
        });
        self.0.expose(&mut body);
        body
    }

    fn open(&mut self, choice: usize) -> Vec<Value> {
        let delta = if self.in_refusal() {
            json!({"role": "assistant", "content": null, "refusal": ""})
        } else {
            json!({"role": "assistant", "content": "", "refusal": null})
        };
        vec![self.chunk(choice, delta, None)]
    }

    fn text(&mut self, choice: usize, text: &str) -> Vec<Value> {
        let delta = if self.in_refusal() { json!({"refusal": text}) } else { json!({"content": text}) };
        vec![self.chunk(choice, delta, None)]
    }

    fn close(&mut self, choice: usize, end: End) -> Vec<Value> {
        let mut last = self.chunk(choice, json!({}), Some(finish_reason(&self.0, end)));
        self.0.expose(&mut last);
        vec![last]
    }

    fn done(&mut self, _: End, counts: Usage) -> Vec<Value> {
        if !self.0.include_usage {
            return vec![];
        }
        let mut chunk = self.chunk_of(json!([]));
        chunk["usage"] = usage(counts);
        vec![chunk]
    }
}
