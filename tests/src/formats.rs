//! The wire formats as their callers see them: a path and a request of each.

use serde_json::{Value, json};

/// A wire format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Its name in audit records.
    pub name: &'static str,
    /// Where requests go.
    pub path: &'static str,
    /// Where requests for a stream go.
    pub stream_path: &'static str,
    /// The field that holds what is asked.
    pub input: &'static str,
}

const fn format(name: &'static str, path: &'static str, input: &'static str) -> Format {
    Format { name, path, stream_path: path, input }
}

/// All formats.
pub const FORMATS: [Format; 7] = [
    format("openai-chat", "/v1/chat/completions", "messages"),
    format("openai-completions", "/v1/completions", "prompt"),
    format("openai-responses", "/v1/responses", "input"),
    format("anthropic-messages", "/v1/messages", "messages"),
    format("ollama-chat", "/api/chat", "messages"),
    format("ollama-generate", "/api/generate", "prompt"),
    Format {
        name: "gemini",
        path: "/v1beta/models/embedded:generateContent",
        stream_path: "/v1beta/models/embedded:streamGenerateContent?alt=sse",
        input: "contents",
    },
];

impl Format {
    /// A request of one user message, for the model `embedded`.
    pub fn ask(&self, text: &str, stream: bool) -> Value {
        let messages = json!([{"role": "user", "content": text}]);
        match self.name {
            "gemini" => json!({"contents": [{"role": "user", "parts": [{"text": text}]}]}),
            "openai-completions" | "ollama-generate" => {
                json!({"model": "embedded", "prompt": text, "stream": stream})
            }
            "openai-responses" => json!({"model": "embedded", "input": text, "stream": stream}),
            _ => json!({"model": "embedded", "max_tokens": 64, "messages": messages, "stream": stream}),
        }
    }

    /// Where a request goes.
    pub fn target(&self, stream: bool) -> &'static str {
        if stream { self.stream_path } else { self.path }
    }

    /// What an upstream might answer: a content type and a body that says `text` and ends.
    pub fn answer(&self, text: &str, stream: bool) -> (&'static str, String) {
        let events =
            |events: &[Value]| events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
        let named = |events: &[Value]| {
            let name = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
            events
                .iter()
                .map(|event| format!("event: {}\ndata: {event}\n\n", name(event)))
                .collect::<String>()
        };
        let done = "data: [DONE]\n\n";
        let output = json!([{"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}]}]);
        let response = json!({"id": "resp_1", "object": "response", "status": "completed", "output": output});
        let content = json!({"candidates": [
            {"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}]});
        let body = match (self.name, stream) {
            ("openai-chat", false) => json!({"choices": [{"index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": text}}]})
            .to_string(),
            ("openai-chat", true) => {
                let choice = |delta: Value, finish: Value| {
                    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
                };
                let said = choice(json!({"role": "assistant", "content": text}), Value::Null);
                events(&[said, choice(json!({}), json!("stop"))]) + done
            }
            ("openai-completions", false) => {
                json!({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}).to_string()
            }
            ("openai-completions", true) => {
                events(&[json!({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})]) + done
            }
            ("openai-responses", false) => response.to_string(),
            ("openai-responses", true) => named(&[
                json!({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}}),
                json!({"type": "response.output_text.delta", "output_index": 0, "content_index": 0,
                    "item_id": "msg_1", "delta": text}),
                json!({"type": "response.completed", "response": response}),
            ]),
            ("anthropic-messages", false) => json!({"id": "msg_1", "type": "message", "role": "assistant",
                "content": [{"type": "text", "text": text}], "stop_reason": "end_turn"})
            .to_string(),
            ("anthropic-messages", true) => named(&[
                json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": []}}),
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
                json!({"type": "content_block_stop", "index": 0}),
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
                json!({"type": "message_stop"}),
            ]),
            ("ollama-chat", _) => {
                json!({"message": {"role": "assistant", "content": text}, "done": true, "done_reason": "stop"})
                    .to_string()
                    + "\n"
            }
            ("ollama-generate", _) => {
                json!({"response": text, "done": true, "done_reason": "stop"}).to_string() + "\n"
            }
            (_, false) => content.to_string(),
            (_, true) => events(&[content]),
        };
        let kind = match (stream, self.name.starts_with("ollama")) {
            (false, _) => "application/json",
            (true, true) => "application/x-ndjson",
            (true, false) => "text/event-stream",
        };
        (kind, body)
    }

    /// The text of a whole answer.
    pub fn text(&self, body: &Value) -> String {
        let at = match self.name {
            "openai-chat" => "/choices/0/message/content",
            "openai-completions" => "/choices/0/text",
            "openai-responses" => "/output/0/content/0/text",
            "anthropic-messages" => "/content/0/text",
            "ollama-chat" => "/message/content",
            "ollama-generate" => "/response",
            _ => "/candidates/0/content/parts/0/text",
        };
        // A refusal has its own kind of part in responses.
        let text = body.pointer(at).or(body.pointer("/output/0/content/0/refusal"));
        text.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The message of an error.
    pub fn error(&self, body: &Value) -> String {
        let at = if self.name.starts_with("ollama") { "/error" } else { "/error/message" };
        body.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}
