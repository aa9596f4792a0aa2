//! Answers of our own in the shape of the Anthropic messages API.
//!
//! Clients drop events without a name that they know, want `message_start` first, and fail on an answer without text.

use serde_json::{Value, json};

use crate::api::{
    Channel, Piece, Tail,
    answer::{Answer, End, Envelope, Usage},
    written::{index, texts},
};

/// What a model wrote in an event, or in a whole message.
pub(super) fn written(value: &Value) -> Vec<Piece> {
    let block = |value: &Value, choice| texts(value, choice, Channel::Text, false);
    let blocks = |message: &Value| {
        let blocks = message["content"].as_array().into_iter().flatten().enumerate();
        blocks.flat_map(|(place, value)| block(value, place)).collect()
    };
    match value["type"].as_str() {
        Some("message") => blocks(value),
        Some("message_start") => blocks(&value["message"]),
        Some("message_delta" | "message_stop" | "content_block_stop" | "ping" | "error") => vec![],
        Some("content_block_start") => block(&value["content_block"], index(value, "index", 0)),
        Some("content_block_delta") => block(&value["delta"], index(value, "index", 0)),
        _ => block(value, 0),
    }
}

/// Follows the blocks of a message.
pub(super) struct BlockTail {
    writer: Writer,
    begun: bool,
    open: Option<usize>,
    next: usize,
}

impl BlockTail {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self { writer: Writer(envelope), begun: false, open: None, next: 0 }
    }
}

impl Tail for BlockTail {
    fn sent(&mut self, value: &Value) {
        match value["type"].as_str() {
            Some("message_start") => self.begun = true,
            Some("content_block_start") => {
                let block = index(value, "index", self.next);
                self.open = Some(block);
                self.next = block + 1;
            }
            Some("content_block_stop") => self.open = None,
            _ => {}
        }
    }

    /// Closes the block that is open, and adds one with the refusal.
    fn cut(&mut self, text: &str) -> Vec<Value> {
        let mut values: Vec<Value> =
            self.open.into_iter().flat_map(|block| self.writer.close(block, End::Refused)).collect();
        let opened = self.writer.open(self.next);
        values.extend(opened.into_iter().skip(usize::from(self.begun)));
        values.extend(self.writer.text(self.next, text));
        values.extend(self.writer.close(self.next, End::Refused));
        values.extend(self.writer.done(End::Refused, Usage::default()));
        values
    }
}

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
