//! Answers of our own in the shape of the OpenAI chat API: whole completions and streams of chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};

/// The event that ends a stream.
pub(crate) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// What all pieces of one answer share.
pub(crate) struct Answer {
    id: String,
    created: u64,
    model: String,
}

/// Token counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

impl Answer {
    /// An answer to the request with this id, made now.
    pub(crate) fn new(id: impl std::fmt::Display, model: &str) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { id: format!("chatcmpl-{id}"), created, model: model.to_owned() }
    }

    /// A whole completion; `messages` are the choices' messages.
    pub(crate) fn completion(&self, messages: Vec<Value>, finish_reason: &str, usage: Usage) -> Value {
        let choice = |(index, message): (usize, Value)| json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish_reason});
        let choices: Vec<_> = messages.into_iter().enumerate().map(choice).collect();
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "usage": usage.json(),
        })
    }

    /// A piece of the choice `index`.
    pub(crate) fn chunk(&self, index: usize, delta: Value, finish_reason: Option<&str>) -> Value {
        self.chunk_of(
            json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]),
        )
    }

    /// The chunk that carries the usage of a stream.
    pub(crate) fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.chunk_of(json!([]));
        chunk["usage"] = usage.json();
        chunk
    }

    fn chunk_of(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// A server-sent event.
pub(crate) fn event(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}
