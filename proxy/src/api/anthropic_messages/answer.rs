//! Answers of our own in the shape of the Anthropic messages API.
//!
//! Clients drop events without a name that they know, want `message_start` first, and fail on an answer without text.

use serde_json::{Value, json};

use crate::api::answer::{Answer, End, Envelope, Usage};

pub(super) struct Writer(pub(super) Envelope);

impl Writer {
    fn message(&self, content: Value, stop_reason: Option<&str>, usage: Usage) -> Value {
        json!({
            "id": format!("msg_{}", self.0.id),
            "type": "message",
            "role": "assistant",
            "model": self.0.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": null,
            "usage": {"input_tokens": usage.prompt, "output_tokens": usage.completion},
        })
    }

    fn stop_reason(&self, end: End) -> &'static str {
        self.0.word(end, ["end_turn", "max_tokens", "refusal"])
    }
}

impl Answer for Writer {
    fn whole(&mut self, text: &str, end: End, usage: Usage) -> Value {
        let content = json!([{"type": "text", "text": text}]);
        let mut body = self.message(content, Some(self.stop_reason(end)), usage);
        self.0.expose(&mut body);
        body
    }

    fn open(&mut self, index: usize) -> Vec<Value> {
        let message = self.message(json!([]), None, Usage::default());
        vec![
            json!({"type": "message_start", "message": message}),
            json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}),
        ]
    }

    fn text(&mut self, index: usize, text: &str) -> Vec<Value> {
        let delta = json!({"type": "text_delta", "text": text});
        vec![json!({"type": "content_block_delta", "index": index, "delta": delta})]
    }

    fn close(&mut self, index: usize, _: End) -> Vec<Value> {
        vec![json!({"type": "content_block_stop", "index": index})]
    }

    fn done(&mut self, end: End, usage: Usage) -> Vec<Value> {
        let mut last = json!({
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason(end), "stop_sequence": null},
            "usage": {"input_tokens": usage.prompt, "output_tokens": usage.completion},
        });
        self.0.expose(&mut last);
        vec![last, json!({"type": "message_stop"})]
    }
}
