//! The Anthropic messages API.
//!
//! Thinking that came back encrypted, hosted files and images can't be read. A thinking block's signature is a seal on its
//! text, and shows a model nothing.

mod answer;

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value, json};

use super::{
    Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit, fields, json,
    text::{plain, push, rest, said, unknown, unread},
};
use crate::reply::Error;

/// The format.
pub(super) struct AnthropicMessages;

/// Top-level fields with a meaning here.
const TOP: &[&str] = &["max_tokens", "messages", "model", "stream", "system", "tools"];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] = &["mcp_servers", "messages", "metadata", "model", "stop_sequences", "system"];
const MESSAGE: &[&str] = &["role", "content"];
const BLOCK: &[&str] = &["content", "id", "input", "name", "source", "text", "thinking", "type"];

impl WireFormat for AnthropicMessages {
    fn name(&self) -> &'static str {
        "anthropic-messages"
    }

    fn voice(&self) -> Voice {
        Voice::ANTHROPIC
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        let top = fields::top(body, TOP)?;
        let turns = fields::array(&top, "messages")?;
        let stream = fields::flag(top.get("stream"), "stream", false)?;
        let mut messages: Vec<Message> =
            fields::settings(&top, &[READ], &["mcp_servers"]).into_iter().collect();
        let settings = !messages.is_empty();
        let mut system = Vec::new();
        content(top.get("system"), Role::System, "system", &mut system)?;
        messages.extend(system);
        for (index, value) in turns.iter().enumerate() {
            messages.extend(turn(value, &format!("messages[{index}]"))?);
        }
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
        edit::note_at(body, note, &["system"], &json!({"type": "text", "text": note}), &json!(note))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(answer::Writer(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        answer::written(value)
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        Box::new(answer::BlockTail::new(envelope))
    }

    fn keepalive(&self) -> &'static [u8] {
        b"event: ping\ndata: {\"type\":\"ping\"}\n\n"
    }

    fn parameters(&self) -> &'static Parameters {
        &Parameters {
            max_tokens: &["/max_tokens"],
            temperature: "/temperature",
            top_p: "/top_p",
            seed: "/seed",
            stop: "/stop_sequences",
            off: &[
                ("/tools", &["[]"], "the embedded model can't call tools"),
                ("/mcp_servers", &["[]"], "the embedded model can't call tools"),
                ("/top_k", &[], "the embedded model takes `top_p` only"),
                ("/thinking", &[r#"{"type":"disabled"}"#], "the embedded model does not think"),
                ("/output_config", &["{}"], "the embedded model writes plain text only"),
            ],
        }
    }
}

/// The messages of one turn; what tools returned is a message of its own.
fn turn(value: &Value, at: &str) -> Result<Vec<Message>, Error> {
    let fields = fields::object(value, at)?;
    json::known_case(fields, MESSAGE, at)?;
    let mut turn = Vec::new();
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => {
            push(&mut turn, Role::User, unread(&format!("role_{}", other.unwrap_or("missing"))));
            Role::User
        }
    };
    content(fields.get("content"), role, &format!("{at}.content"), &mut turn)?;
    rest(fields, MESSAGE).into_iter().for_each(|part| push(&mut turn, role, part));
    Ok(turn)
}

/// A string, a block, or an array of blocks.
fn content(value: Option<&Value>, role: Role, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => push(turn, role, said(role, text)),
        Some(Value::Object(fields)) => block(fields, role, at, turn)?,
        Some(Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                match item {
                    Value::String(text) => push(turn, role, said(role, text)),
                    Value::Object(fields) => block(fields, role, &format!("{at}[{index}]"), turn)?,
                    _ => push(turn, role, unread("content")),
                }
            }
        }
        Some(_) => push(turn, role, unread("content")),
    }
    Ok(())
}

fn block(fields: &Map<String, Value>, role: Role, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    json::known_case(fields, BLOCK, at)?;
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("untyped");
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let others = |turn: &mut Vec<Message>, read: &[&str]| {
        rest(fields, read).into_iter().for_each(|part| push(turn, role, part));
    };
    match kind {
        "text" if text("text").is_some() => {
            others(turn, &["type", "text"]);
            push(turn, role, said(role, text("text").unwrap_or_default()));
        }
        "thinking" if text("thinking").is_some() => {
            others(turn, &["type", "thinking", "signature"]);
            push(turn, role, Part::Reasoning { text: text("thinking").unwrap_or_default().to_owned() });
        }
        "tool_use" | "server_tool_use" | "mcp_tool_use" => {
            let name = text("name").unwrap_or_default().to_owned();
            let arguments = fields.get("input").map(plain).unwrap_or_default();
            push(turn, role, Part::ToolCall { name, arguments });
            others(turn, &["type", "name", "input"]);
        }
        "document" => document(fields, role, at, turn)?,
        "search_result" => {
            others(turn, &["type", "content"]);
            content(fields.get("content"), role, &format!("{at}.content"), turn)?;
        }
        // What code that ran elsewhere wrote.
        "code_execution_result" | "bash_code_execution_result" | "text_editor_code_execution_view_result" => {
            let output = Value::Object(fields.clone()).to_string();
            push(turn, role, said(role, output));
        }
        // The one the caller sends, and those of tools that ran elsewhere.
        kind if kind == "tool_result" || kind.ends_with("_tool_result") => {
            content(fields.get("content"), Role::Tool, &format!("{at}.content"), turn)?;
            let read = ["type", "content"];
            rest(fields, &read).into_iter().for_each(|part| push(turn, Role::Tool, part));
        }
        kind => unknown(kind, fields).for_each(|part| push(turn, role, part)),
    }
    Ok(())
}

/// A document in plain text or in blocks; any other can't be read.
fn document(fields: &Map<String, Value>, role: Role, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    let Some(Value::Object(source)) = fields.get("source") else {
        unknown("document", fields).for_each(|part| push(turn, role, part));
        return Ok(());
    };
    json::known_case(source, &["type", "data", "content"], &format!("{at}.source"))?;
    match (source.get("type").and_then(Value::as_str), source.get("data"), source.get("content")) {
        (Some("text"), Some(Value::String(text)), None) => {
            rest(fields, &["type", "source"]).into_iter().for_each(|part| push(turn, role, part));
            rest(source, &["type", "data"]).into_iter().for_each(|part| push(turn, role, part));
            push(turn, role, said(role, text));
        }
        (Some("content"), None, Some(blocks)) => {
            rest(fields, &["type", "source"]).into_iter().for_each(|part| push(turn, role, part));
            rest(source, &["type", "content"]).into_iter().for_each(|part| push(turn, role, part));
            content(Some(blocks), role, &format!("{at}.source.content"), turn)?;
        }
        _ => unknown("document", fields).for_each(|part| push(turn, role, part)),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
