//! The OpenAI responses API.
//!
//! What the API holds for the caller (earlier responses, conversations, stored prompts, items named by their id) can't be
//! read, nor can images, files, remote tool servers and reasoning that came back encrypted.

mod answer;

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value, json};

use super::{
    Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit, fields, json,
    text::{is_word, joined, plain, prose_entry, push, rest, said, unknown, unread},
};
use crate::reply::Error;

/// The format.
pub(super) struct OpenAiResponses;

/// Top-level fields with a meaning here.
const TOP: &[&str] = &[
    "conversation",
    "input",
    "instructions",
    "model",
    "previous_response_id",
    "prompt",
    "stream",
    "text",
    "tools",
];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] = &[
    "input",
    "instructions",
    "metadata",
    "model",
    "prompt_cache_key",
    "safety_identifier",
    "stream_options",
    "tools",
    "user",
];
/// What the API holds for the caller.
const HELD: &[&str] = &["conversation", "previous_response_id", "prompt"];
const ITEM: &[&str] =
    &["arguments", "content", "encrypted_content", "input", "name", "output", "role", "summary", "type"];
const PART: &[&str] = &["type", "text", "refusal"];
/// Calls of tools that ran elsewhere, with what they returned: read as JSON.
const CALLS: &[&str] = &[
    "apply_patch_call",
    "code_interpreter_call",
    "computer_call",
    "file_search_call",
    "local_shell_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "shell_call",
    "tool_search_call",
    "web_search_call",
];
/// What tools returned: their field `output` is a string, or an array of parts.
const OUTPUTS: &[&str] = &[
    "apply_patch_call_output",
    "custom_tool_call_output",
    "function_call_output",
    "local_shell_call_output",
    "shell_call_output",
];

impl WireFormat for OpenAiResponses {
    fn name(&self) -> &'static str {
        "openai-responses"
    }

    fn voice(&self) -> Voice {
        Voice::openai("input")
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        let top = fields::top(body, TOP)?;
        let stream = fields::flag(top.get("stream"), "stream", false)?;
        let mut operator =
            fields::settings(&top, &[READ], HELD).map_or_else(Vec::new, |message| message.parts);
        operator.extend(tools(top.get("tools")));
        let mut messages = Vec::new();
        if !operator.is_empty() {
            messages.push(Message { role: Role::System, parts: operator });
        }
        let settings = !messages.is_empty();
        items(top.get("instructions"), Role::System, "instructions", &mut messages)?;
        items(top.get("input"), Role::User, "input", &mut messages)?;
        Ok(Request {
            conversation: Conversation { messages },
            settings,
            model: fields::string(&top, "model"),
            stream,
            framing: Framing::NamedEvents,
            include_usage: true,
            choices: 1,
        })
    }

    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        let item = json!({"type": "message", "role": "developer", "content": note});
        edit::note_at(body, note, &["instructions"], &item, &json!(note))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(answer::Writer::new(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        answer::written(value)
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        Box::new(answer::ItemTail::new(envelope))
    }

    fn parameters(&self) -> &'static Parameters {
        &Parameters {
            max_tokens: &["/max_output_tokens"],
            temperature: "/temperature",
            top_p: "/top_p",
            seed: "/seed",
            stop: "/stop",
            off: &[
                ("/background", &["false"], "the embedded model answers at once only"),
                ("/conversation", &[], "the embedded model holds no conversations"),
                ("/previous_response_id", &[], "the embedded model holds no responses"),
                ("/prompt", &[], "the embedded model holds no prompts"),
                ("/tools", &["[]"], "the embedded model can't call tools"),
                ("/text/format", &[r#"{"type":"text"}"#], "the embedded model writes plain text only"),
                ("/top_logprobs", &["0"], "the embedded model gives no log-probabilities"),
                ("/include", &["[]"], "the embedded model has nothing to include"),
            ],
        }
    }
}

/// The tools' descriptions. What a remote server says of its own is not here to be read; how to log in to it is nothing to
/// be read.
fn tools(tools: Option<&Value>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut texts = Vec::new();
    match tools {
        None | Some(Value::Null) => {}
        Some(Value::Array(tools)) => {
            for tool in tools {
                let remote = tool["type"] == "mcp";
                for (key, value) in tool.as_object().into_iter().flatten() {
                    if !(remote && matches!(key.as_str(), "authorization" | "headers")) {
                        prose_entry(key, value, is_word, &mut texts);
                    }
                }
                if remote || !tool.is_object() {
                    parts.push(unread(if remote { "mcp" } else { "tools" }));
                }
            }
        }
        Some(_) => parts.push(unread("tools")),
    }
    joined(&texts).into_iter().chain(parts).collect()
}

/// A string, or an array of items.
fn items(value: Option<&Value>, role: Role, at: &str, messages: &mut Vec<Message>) -> Result<(), Error> {
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => messages.push(Message::text(role, text)),
        Some(Value::Array(items)) => {
            for (index, value) in items.iter().enumerate() {
                let at = format!("{at}[{index}]");
                let mut turn = Vec::new();
                item(fields::object(value, &at)?, &at, &mut turn)?;
                messages.extend(turn);
            }
        }
        Some(_) => return Err(Error::bad_shape(at, "a string or an array")),
    }
    Ok(())
}

fn item(fields: &Map<String, Value>, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    json::known_case(fields, ITEM, at)?;
    let text = |key: &str| fields.get(key).map(plain).unwrap_or_default();
    let kind = fields.get("type").and_then(Value::as_str);
    match kind {
        None | Some("message") if kind.is_some() || fields.contains_key("role") => message(fields, at, turn)?,
        Some("function_call" | "custom_tool_call") => {
            let arguments = if kind == Some("function_call") { "arguments" } else { "input" };
            let call = Part::ToolCall { name: text("name"), arguments: text(arguments) };
            push(turn, Role::Assistant, call);
            rest(fields, &["type", "name", arguments])
                .into_iter()
                .for_each(|part| push(turn, Role::Assistant, part));
        }
        Some("reasoning") => reasoning(fields, turn),
        Some(kind) if CALLS.contains(&kind) => {
            let arguments = Value::Object(fields.clone()).to_string();
            push(turn, Role::Assistant, Part::ToolCall { name: kind.to_owned(), arguments });
        }
        Some(kind) if OUTPUTS.contains(&kind) => {
            match fields.get("output") {
                Some(Value::Array(parts)) => {
                    content(parts, Role::Tool, &format!("{at}.output"), turn)?;
                }
                Some(output) => push(turn, Role::Tool, Part::ToolResult { text: plain(output) }),
                None => push(turn, Role::Tool, unread(kind)),
            }
            rest(fields, &["type", "output"]).into_iter().for_each(|part| push(turn, Role::Tool, part));
        }
        kind => unknown(kind.unwrap_or("untyped"), fields).for_each(|part| push(turn, Role::User, part)),
    }
    Ok(())
}

fn message(fields: &Map<String, Value>, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => {
            push(turn, Role::User, unread(&format!("role_{}", other.unwrap_or("missing"))));
            Role::User
        }
    };
    match fields.get("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => push(turn, role, said(role, text)),
        Some(Value::Array(parts)) => content(parts, role, &format!("{at}.content"), turn)?,
        Some(_) => push(turn, role, unread("content")),
    }
    rest(fields, &["type", "role", "content"]).into_iter().for_each(|part| push(turn, role, part));
    Ok(())
}

fn content(parts: &[Value], role: Role, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    for (index, value) in parts.iter().enumerate() {
        let Value::Object(fields) = value else {
            let part = value.as_str().map_or_else(|| unread("content"), |text| said(role, text));
            push(turn, role, part);
            continue;
        };
        json::known_case(fields, PART, &format!("{at}[{index}]"))?;
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or("untyped");
        let own = match kind {
            "input_text" | "output_text" | "text" | "summary_text" => "text",
            "refusal" => "refusal",
            _ => "",
        };
        match fields.get(own).and_then(Value::as_str) {
            Some(text) => {
                rest(fields, &["type", own]).into_iter().for_each(|part| push(turn, role, part));
                push(turn, role, said(role, text));
            }
            None => unknown(kind, fields).for_each(|part| push(turn, role, part)),
        }
    }
    Ok(())
}

/// The reasoning that a caller can see, and whether there is more that only the API can.
fn reasoning(fields: &Map<String, Value>, turn: &mut Vec<Message>) {
    for key in ["summary", "content"] {
        let mut texts = Vec::new();
        prose_entry(key, fields.get(key).unwrap_or(&Value::Null), is_type, &mut texts);
        if !texts.is_empty() {
            push(turn, Role::Assistant, Part::Reasoning { text: texts.join("\n") });
        }
    }
    let read = ["type", "id", "summary", "content", "encrypted_content"];
    rest(fields, &read).into_iter().for_each(|part| push(turn, Role::Assistant, part));
    if fields::is_set(fields, "encrypted_content") {
        push(turn, Role::Assistant, unread("encrypted_content"));
    }
}

/// The types of reasoning parts.
fn is_type(text: &str) -> bool {
    matches!(text, "summary_text" | "reasoning_text")
}

#[cfg(test)]
mod tests;
