//! Reading strings out of JSON whose meaning is not known, so that nothing a model might be shown is skipped.

use forethought_core::conversation::{Message, Part, Role};
use serde_json::{Map, Value};

/// Collects all strings, keys included, that `skip` does not skip.
pub(super) fn prose<'a>(value: &'a Value, skip: fn(&str) -> bool, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) if !skip(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| prose(item, skip, texts)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| prose_entry(key, value, skip, texts)),
        _ => {}
    }
}

pub(super) fn prose_entry<'a>(
    key: &'a str,
    value: &'a Value,
    skip: fn(&str) -> bool,
    texts: &mut Vec<&'a str>,
) {
    if !is_word(key) {
        texts.push(key);
    }
    prose(value, skip, texts);
}

/// A string too short to ask for anything. ASCII only, because some scripts write sentences without blanks.
pub(super) fn is_word(text: &str) -> bool {
    text.len() <= 64 && is_payload(text)
}

pub(super) fn is_payload(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn joined(texts: &[&str]) -> Option<Part> {
    (!texts.is_empty()).then(|| Part::Text { text: texts.join("\n") })
}

/// A part that can't be read. Its kind may come from the caller, so only what a name needs is kept of it.
pub(super) fn unread(kind: &str) -> Part {
    let name = kind.chars().filter(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c)).take(40).collect();
    Part::Unread { kind: name }
}

/// The text of a string, or all strings in something else.
pub(super) fn text_or_prose(value: &Value, parts: &mut Vec<Part>, part: impl Fn(String) -> Part) {
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

/// What is said in a role: text, or in a tool's role what it returned.
pub(super) fn said(role: Role, text: impl Into<String>) -> Part {
    let text = text.into();
    match role {
        Role::Tool => Part::ToolResult { text },
        _ => Part::Text { text },
    }
}

/// A value as text: a string as it is, anything else as JSON.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The strings of the fields that were not read otherwise.
pub(super) fn rest(fields: &Map<String, Value>, read: &[&str]) -> Option<Part> {
    let mut texts = Vec::new();
    for (key, value) in fields.iter().filter(|(key, _)| !read.contains(&key.as_str())) {
        prose_entry(key, value, is_word, &mut texts);
    }
    joined(&texts)
}

/// Something that as a whole can't be read. Strings in it with blanks are read all the same; those without are payloads
/// and their addresses.
pub(super) fn unknown(kind: &str, fields: &Map<String, Value>) -> impl Iterator<Item = Part> {
    let mut texts = Vec::new();
    for (key, value) in fields.iter().filter(|(key, _)| *key != "type") {
        prose_entry(key, value, is_payload, &mut texts);
    }
    joined(&texts).into_iter().chain([unread(kind)])
}

/// Adds a part to a turn: to its last message, or where the role changes to a new one.
pub(super) fn push(turn: &mut Vec<Message>, role: Role, part: Part) {
    match turn.last_mut() {
        Some(message) if message.role == role => message.parts.push(part),
        _ => turn.push(Message { role, parts: vec![part] }),
    }
}
