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
