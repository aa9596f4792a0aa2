//! The OpenAI chat completions API.
//!
//! What is read of a request: every string in it, except single words (up to 64 bytes of plain ASCII without blanks,
//! such as ids, names and enum values), fields that no model is shown (`NOT_SHOWN`), and payloads that a text model
//! can't read (images, audio, files), which become [`Part::Unread`]. So tool definitions, response schemas and fields that
//! this version has never heard of are read too; they stand first, as operator text.

pub(super) mod answer;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value, json};

use super::{
    Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit, fields, json,
    tail::ListTail,
    text::{is_payload, is_word, joined, prose_entry, text_or_prose, unread},
    written,
};
use crate::reply::Error;

/// The format.
pub(super) struct OpenAiChat;

impl WireFormat for OpenAiChat {
    fn name(&self) -> &'static str {
        "openai-chat"
    }

    fn voice(&self) -> Voice {
        Voice::openai("messages")
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        decode(body)
    }

    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        edit::note_in_messages(body, note, &json!({"type": "text", "text": note}))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(answer::Answer(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        written::choices(&value["choices"], |choice| vec![&choice["delta"], &choice["message"]])
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        let choices = envelope.choices;
        Box::new(ListTail::new(self.answer(envelope), choices, "choices"))
    }

    fn parameters(&self) -> &'static Parameters {
        &Parameters {
            max_tokens: &["/max_completion_tokens", "/max_tokens"],
            temperature: "/temperature",
            top_p: "/top_p",
            seed: "/seed",
            stop: "/stop",
            off: &[
                ("/n", &["1"], "the embedded model gives one answer"),
                ("/tools", &["[]"], "the embedded model can't call tools"),
                ("/functions", &["[]"], "the embedded model can't call functions"),
                ("/response_format", &[r#"{"type":"text"}"#], "the embedded model writes plain text only"),
                ("/logprobs", &["false"], "the embedded model gives no log-probabilities"),
                ("/top_logprobs", &["0"], "the embedded model gives no log-probabilities"),
                ("/logit_bias", &["{}"], "the embedded model takes no logit bias"),
                ("/frequency_penalty", &["0", "0.0"], "the embedded model takes no penalties"),
                ("/presence_penalty", &["0", "0.0"], "the embedded model takes no penalties"),
                ("/modalities", &[r#"["text"]"#], "the embedded model writes plain text only"),
                ("/audio", &[], "the embedded model writes plain text only"),
            ],
        }
    }
}

/// Top-level fields with a meaning here.
const TOP: &[&str] =
    &["messages", "model", "stream", "stream_options", "n", "tools", "functions", "response_format"];
/// Top-level fields that no model is shown.
const NOT_SHOWN: &[&str] = &[
    "logit_bias",
    "messages",
    "metadata",
    "model",
    "prompt_cache_key",
    "safety_identifier",
    "stop",
    "stream_options",
    "user",
];
const MESSAGE: &[&str] = &[
    "audio",
    "content",
    "function_call",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "refusal",
    "role",
    "tool_calls",
];
const PART: &[&str] = &["type", "text", "refusal"];
const CALL: &[&str] = &["type", "function", "custom"];
const FUNCTION: &[&str] = &["name", "arguments", "input"];

/// Reads a request's body.
pub(crate) fn decode(body: &[u8]) -> Result<Request, Error> {
    let top = fields::top(body, TOP)?;
    let messages = fields::array(&top, "messages")?;
    let stream = fields::flag(top.get("stream"), "stream", false)?;
    let choices = fields::choices(top.get("n"), "n")?;
    let mut conversation = Conversation::default();
    conversation.messages.extend(fields::settings(&top, &[NOT_SHOWN], &[]));
    let settings = !conversation.messages.is_empty();
    for (index, value) in messages.iter().enumerate() {
        conversation.messages.push(message(value, &format!("messages[{index}]"))?);
    }
    Ok(Request {
        conversation,
        settings,
        model: fields::string(&top, "model"),
        stream,
        framing: Framing::EventsDone,
        include_usage: top.get("stream_options").is_some_and(|options| options["include_usage"] == true),
        choices,
    })
}

fn message(value: &Value, at: &str) -> Result<Message, Error> {
    let Value::Object(fields) = value else {
        return Err(Error::bad_shape(at, "an object"));
    };
    json::known_case(fields, MESSAGE, at)?;
    let mut parts = Vec::new();
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool" | "function") => Role::Tool,
        other => {
            parts.push(unread(&format!("role_{}", other.unwrap_or("missing"))));
            Role::User
        }
    };
    for (key, value) in fields {
        let at = format!("{at}.{key}");
        match key.as_str() {
            "role" => {}
            "content" => content(value, role, &at, &mut parts)?,
            "refusal" => text_or_prose(value, &mut parts, |text| Part::Text { text }),
            "reasoning" | "reasoning_content" | "reasoning_details" => {
                text_or_prose(value, &mut parts, |text| Part::Reasoning { text });
            }
            "tool_calls" => match value {
                Value::Null => {}
                Value::Array(calls) => {
                    for (index, value) in calls.iter().enumerate() {
                        tool_call(value, &format!("{at}[{index}]"), &mut parts)?;
                    }
                }
                _ => parts.push(unread("tool_calls")),
            },
            "function_call" => match value {
                Value::Null => {}
                Value::Object(function) => parts.extend(call(function, &at)?),
                _ => parts.push(unread("function_call")),
            },
            "audio" if !value.is_null() => parts.push(unread("audio")),
            _ => {
                let mut texts = Vec::new();
                prose_entry(key, value, is_word, &mut texts);
                parts.extend(joined(&texts));
            }
        }
    }
    Ok(Message { role, parts })
}

fn content(value: &Value, role: Role, at: &str, parts: &mut Vec<Part>) -> Result<(), Error> {
    let part = |text: &str| match role {
        Role::Tool => Part::ToolResult { text: text.to_owned() },
        _ => Part::Text { text: text.to_owned() },
    };
    match value {
        Value::Null => {}
        Value::String(text) => parts.push(part(text)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                match item {
                    Value::String(text) => parts.push(part(text)),
                    Value::Object(fields) => content_part(fields, &part, &format!("{at}[{index}]"), parts)?,
                    _ => parts.push(unread("content")),
                }
            }
        }
        _ => parts.push(unread("content")),
    }
    Ok(())
}

fn content_part(
    fields: &Map<String, Value>,
    part: &impl Fn(&str) -> Part,
    at: &str,
    parts: &mut Vec<Part>,
) -> Result<(), Error> {
    json::known_case(fields, PART, at)?;
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("untyped");
    let own = match kind {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        _ => "",
    };
    let read = fields.get(own).and_then(Value::as_str);
    let mut texts = Vec::new();
    for (key, value) in fields.iter().filter(|(key, _)| *key != "type" && (read.is_none() || *key != own)) {
        // In a part that can't be read, strings without blanks are payloads and their addresses.
        prose_entry(key, value, if read.is_some() { is_word } else { is_payload }, &mut texts);
    }
    parts.extend(joined(&texts));
    parts.push(read.map_or_else(|| unread(kind), part));
    Ok(())
}

fn tool_call(value: &Value, at: &str, parts: &mut Vec<Part>) -> Result<(), Error> {
    let Value::Object(fields) = value else {
        parts.push(unread("tool_call"));
        return Ok(());
    };
    json::known_case(fields, CALL, at)?;
    let mut known = false;
    let mut texts = Vec::new();
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("function" | "custom", Value::Object(function)) => {
                known = true;
                parts.extend(call(function, &format!("{at}.{key}"))?);
            }
            _ => prose_entry(key, value, is_word, &mut texts),
        }
    }
    parts.extend(joined(&texts));
    if !known {
        parts.push(unread("tool_call"));
    }
    Ok(())
}

/// A call's name and arguments; the arguments of custom tools are called `input`.
fn call(function: &Map<String, Value>, at: &str) -> Result<Vec<Part>, Error> {
    json::known_case(function, FUNCTION, at)?;
    let mut texts = Vec::new();
    let mut name = "";
    let mut arguments = Vec::new();
    for (key, value) in function {
        match (key.as_str(), value) {
            ("name", Value::String(text)) => name = text,
            ("arguments" | "input", Value::String(text)) => arguments.push(text.clone()),
            ("arguments" | "input", value) => arguments.push(value.to_string()),
            _ => prose_entry(key, value, is_word, &mut texts),
        }
    }
    let call = Part::ToolCall { name: name.to_owned(), arguments: arguments.join("\n") };
    Ok(std::iter::once(call).chain(joined(&texts)).collect())
}
