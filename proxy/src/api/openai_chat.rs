//! The OpenAI chat completions API.
//!
//! What is read of a request: every string in it, except single words (up to 64 bytes of plain ASCII without blanks,
//! such as ids, names and enum values), fields that no model is shown (`NOT_SHOWN`), and payloads that a text model
//! can't read (images, audio, files), which become [`Part::Unread`]. So tool definitions, response schemas and fields that
//! this version has never heard of are read too; they stand first, as operator text.

pub(crate) mod answer;
pub(crate) mod edit;
pub(crate) mod refusal;
#[cfg(test)]
mod tests;

use forethought_core::conversation::{Conversation, Message, Part, Role};
use serde_json::{Map, Value};

use super::json;
use crate::reply::Error;

/// The format's name.
pub(crate) const NAME: &str = "openai-chat";

/// What the guard and our own answers need of a request.
#[derive(Debug)]
pub(crate) struct Request {
    /// All that can be read.
    pub(crate) conversation: Conversation,
    /// The model asked for; empty where none is named.
    pub(crate) model: String,
    /// Whether the answer is to be streamed.
    pub(crate) stream: bool,
    /// Whether a stream is to end with a usage chunk.
    pub(crate) include_usage: bool,
    /// How many answers are asked for.
    pub(crate) n: usize,
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

/// More answers than any API gives; the refusal is repeated for each.
const MOST_CHOICES: u64 = 128;

/// Reads a request's body.
pub(crate) fn decode(body: &[u8]) -> Result<Request, Error> {
    let Value::Object(top) = json::parse(body)? else {
        return Err(Error::bad_shape("body", "a JSON object"));
    };
    json::known_case(&top, TOP, "the request")?;
    let Some(Value::Array(messages)) = top.get("messages") else {
        return Err(Error::bad_shape("messages", "an array"));
    };
    let stream = match top.get("stream") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(stream)) => *stream,
        Some(_) => return Err(Error::bad_shape("stream", "true or false")),
    };
    let n = match top.get("n") {
        None | Some(Value::Null) => 1,
        Some(n) => n.as_u64().filter(|n| (1..=MOST_CHOICES).contains(n)).map_or_else(
            || Err(Error::bad_shape("n", "a whole number from 1 to 128")),
            |n| usize::try_from(n).map_err(|_| Error::bad_shape("n", "a whole number from 1 to 128")),
        )?,
    };
    let mut conversation = Conversation::default();
    conversation.messages.extend(settings(&top));
    for (index, value) in messages.iter().enumerate() {
        conversation.messages.push(message(value, &format!("messages[{index}]"))?);
    }
    Ok(Request {
        conversation,
        model: top.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
        stream,
        include_usage: top.get("stream_options").is_some_and(|options| options["include_usage"] == true),
        n,
    })
}

/// All text outside the messages, as operator text.
fn settings(top: &Map<String, Value>) -> Option<Message> {
    let mut texts = Vec::new();
    for (key, value) in top.iter().filter(|(key, _)| !NOT_SHOWN.contains(&key.as_str())) {
        prose_entry(key, value, is_word, &mut texts);
    }
    (!texts.is_empty()).then(|| Message::text(Role::System, texts.join("\n")))
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

fn text_or_prose(value: &Value, parts: &mut Vec<Part>, part: impl Fn(String) -> Part) {
    match value {
        Value::Null => {}
        Value::String(text) => parts.push(part(text.clone())),
        other => {
            let mut texts = Vec::new();
            prose(other, is_word, &mut texts);
            if !texts.is_empty() {
                parts.push(part(texts.join("\n")));
            }
        }
    }
}

fn joined(texts: &[&str]) -> Option<Part> {
    (!texts.is_empty()).then(|| Part::Text { text: texts.join("\n") })
}

/// Collects all strings, keys included, that `skip` does not skip.
fn prose<'a>(value: &'a Value, skip: fn(&str) -> bool, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if !skip(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| prose(item, skip, texts)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| prose_entry(key, value, skip, texts)),
        _ => {}
    }
}

fn prose_entry<'a>(key: &'a str, value: &'a Value, skip: fn(&str) -> bool, texts: &mut Vec<&'a str>) {
    if !is_word(key) {
        texts.push(key);
    }
    prose(value, skip, texts);
}

/// A string too short to ask for anything. ASCII only, because some scripts write sentences without blanks.
fn is_word(text: &str) -> bool {
    text.len() <= 64 && is_payload(text)
}

fn is_payload(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A part that can't be read. Its kind may come from the caller, so only what a name needs is kept of it.
fn unread(kind: &str) -> Part {
    let name = kind.chars().filter(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c)).take(40).collect();
    Part::Unread { kind: name }
}
