//! What policies change in a request, written back into its own bytes: all that is not changed stays as the caller sent it.
//!
//! Rewriting asks the format's own decoder where a part comes from: the strings that may be the part are marked, each with
//! a mark of its own, and the mark that is read as the part shows which one it is. The result is decoded once more, and
//! must say what the conversation said, with the new text in its place.

use std::collections::HashSet;

use bytes::Bytes;
use forethought_core::{
    conversation::{Conversation, Part, Role},
    policy::Edit,
};
use http::Uri;
use serde_json::Value;

use super::{
    WireFormat,
    splice::{Span, items, members, quoted, replaced, string, value},
};
use crate::reply::Error;

/// The keys whose values may be parts of their own, in any format. Others are names, kinds, ids, or text that is read
/// together with other text.
const OWN: &[&str] = &[
    "args",
    "arguments",
    "content",
    "data",
    "input",
    "instructions",
    "output",
    "prompt",
    "reasoning",
    "reasoning_content",
    "refusal",
    "response",
    "suffix",
    "system",
    "systemInstruction",
    "system_instruction",
    "text",
    "thinking",
];

/// Puts new text in place of parts of the conversation.
pub(crate) fn rewrite(
    format: &dyn WireFormat,
    target: &Uri,
    body: &[u8],
    edits: &[Edit],
) -> Result<Bytes, Error> {
    let wrong = |edit: &Edit| Error::CantRewrite { message: edit.message, part: edit.part };
    let before = format.decode(target, body)?.conversation;
    let mut wanted = before.clone();
    let mut places = HashSet::new();
    for edit in edits {
        let part = part_of(&mut wanted, edit).ok_or_else(|| wrong(edit))?;
        if !places.insert((edit.message, edit.part)) || !put(part, &edit.text) {
            return Err(wrong(edit));
        }
    }
    let Some(first) = edits.first() else { return Ok(Bytes::copy_from_slice(body)) };
    // Everything that says what one of the parts said.
    let texts: HashSet<&str> = edits.iter().filter_map(|edit| text_of(&before, edit)).collect();
    let mut spans = Vec::new();
    let top = value(body, 0).ok_or_else(|| wrong(first))?;
    candidates(body, &top, "", &texts, &mut spans);
    let marks = spans.iter().enumerate().map(|(index, span)| (span.clone(), quoted(&mark(index)))).collect();
    let marked = format.decode(target, &replaced(body, marks)).map_err(|_| wrong(first))?.conversation;
    let mut changes = Vec::with_capacity(edits.len());
    for edit in edits {
        let span = text_of(&marked, edit).and_then(marked_by).and_then(|index| spans.get(index));
        let span = span.ok_or_else(|| wrong(edit))?;
        // What was no string becomes none.
        let new = if body.get(span.start) == Some(&b'"') { quoted(&edit.text) } else { edit.text.clone() };
        changes.push((span.clone(), new));
    }
    let new = replaced(body, changes);
    let after = format.decode(target, &new).map_err(|_| wrong(first))?.conversation;
    if said(&after) == said(&wanted) { Ok(new) } else { Err(wrong(first)) }
}

fn part_of<'a>(conversation: &'a mut Conversation, edit: &Edit) -> Option<&'a mut Part> {
    conversation.messages.get_mut(edit.message)?.parts.get_mut(edit.part)
}

fn text_of<'a>(conversation: &'a Conversation, edit: &Edit) -> Option<&'a str> {
    conversation.messages.get(edit.message)?.parts.get(edit.part)?.text()
}

/// Puts other text into a part; not into one that can't be read.
fn put(part: &mut Part, new: &str) -> bool {
    match part {
        Part::Text { text } | Part::Reasoning { text } | Part::ToolResult { text } => new.clone_into(text),
        Part::ToolCall { arguments, .. } => new.clone_into(arguments),
        Part::Unread { .. } => return false,
    }
    true
}

/// What a conversation says. Formats read no part where there is no text.
fn said(conversation: &Conversation) -> Vec<(Role, &Part)> {
    conversation.parts().filter(|(_, part)| part.text() != Some("")).collect()
}

/// A text that no caller would write, and that no decoder takes for a name.
fn mark(index: usize) -> String {
    format!("\u{f8ff} {index}")
}

fn marked_by(text: &str) -> Option<usize> {
    text.strip_prefix("\u{f8ff} ")?.parse().ok()
}

/// Where values stand under one of the keys in `OWN` that say one of `texts`: strings, or objects that are read as JSON.
fn candidates(body: &[u8], at: &Span, key: &str, texts: &HashSet<&str>, found: &mut Vec<Span>) {
    let own = OWN.contains(&key);
    match body.get(at.start) {
        Some(b'"') if own && string(body, at).is_some_and(|text| texts.contains(text.as_str())) => {
            found.push(at.clone());
        }
        Some(b'{') => {
            let json = || serde_json::from_slice::<Value>(body.get(at.clone())?).ok();
            if own && json().is_some_and(|json| texts.contains(json.to_string().as_str())) {
                found.push(at.clone());
                return;
            }
            for (key, value) in members(body, at).unwrap_or_default() {
                candidates(body, &value, &key, texts, found);
            }
        }
        Some(b'[') => {
            for item in items(body, at).unwrap_or_default() {
                candidates(body, &item, key, texts, found);
            }
        }
        _ => {}
    }
}

/// Adds a note to the operator's instructions. What is read of the request is what was read before, and the note.
pub(crate) fn annotate(
    format: &dyn WireFormat,
    target: &Uri,
    body: &Bytes,
    note: &str,
) -> Result<Bytes, Error> {
    let read = |body: &[u8]| Ok::<_, Error>(format.decode(target, body)?.conversation);
    let before = read(body)?;
    let new = format.noted(body, note)?;
    let after = read(&new).map_err(|_| Error::CantAnnotate)?;
    let is_there = after.parts().any(|(_, part)| part.text().is_some_and(|text| text.contains(note)));
    if is_there && after.unread().eq(before.unread()) { Ok(new) } else { Err(Error::CantAnnotate) }
}

/// Adds a note to the operator's instructions, which stand at the top under one of `keys`: behind a string, or as one more
/// of an array. Where nothing stands there, `fresh` stands under the first of the keys. `item` is the note as one of an
/// array.
pub(crate) fn note_at(
    body: &[u8],
    note: &str,
    keys: &[&str],
    item: &Value,
    fresh: &Value,
) -> Result<Bytes, Error> {
    let place = || {
        let top = value(body, 0)?;
        let members = members(body, &top)?;
        let set = members.iter().find(|(key, span)| keys.contains(&key.as_str()) && !is_null(body, span));
        if let Some((_, span)) = set {
            return joined(body, span, note, item);
        }
        // A null stands for nothing.
        if let Some((_, span)) = members.iter().find(|(key, _)| keys.contains(&key.as_str())) {
            return Some((span.clone(), fresh.to_string()));
        }
        let comma = if members.is_empty() { "" } else { "," };
        let start = top.start + 1; // behind its opening bracket
        Some((start..start, format!("{}:{fresh}{comma}", quoted(keys.first()?))))
    };
    let change = place().ok_or(Error::CantAnnotate)?;
    Ok(replaced(body, vec![change]))
}

fn is_null(body: &[u8], span: &Span) -> bool {
    body.get(span.clone()) == Some(b"null")
}

/// A note behind a string, or behind the items of an array.
pub(crate) fn joined(body: &[u8], span: &Span, note: &str, item: &Value) -> Option<(Span, String)> {
    if let Some(text) = string(body, span) {
        let text = if text.is_empty() { note.to_owned() } else { format!("{text}\n\n{note}") };
        return Some((span.clone(), quoted(&text)));
    }
    let items = items(body, span)?;
    let comma = if items.is_empty() { "" } else { "," };
    let end = span.end - 1; // its closing bracket
    Some((end..end, format!("{comma}{item}")))
}

/// Adds a note to a list of messages: behind the operator text that stands first, or as a first message of its own. Many
/// chat templates take operator text in the first place only, and once.
pub(crate) fn note_in_messages(body: &[u8], note: &str, item: &Value) -> Result<Bytes, Error> {
    let place = || {
        let messages = member(body, &value(body, 0)?, "messages")?;
        let list = items(body, &messages)?;
        if let Some(first) = list.first() {
            let role = member(body, first, "role").and_then(|span| string(body, &span));
            let content = member(body, first, "content").filter(|span| !is_null(body, span));
            if let (Some("system" | "developer"), Some(content)) = (role.as_deref(), content) {
                return joined(body, &content, note, item);
            }
        }
        let comma = if list.is_empty() { "" } else { "," };
        let start = messages.start + 1; // behind its opening bracket
        Some((start..start, format!("{{\"role\":\"system\",\"content\":{}}}{comma}", quoted(note))))
    };
    let change = place().ok_or(Error::CantAnnotate)?;
    Ok(replaced(body, vec![change]))
}

/// The value under `key` of the object at `span`.
pub(crate) fn member(body: &[u8], span: &Span, key: &str) -> Option<Span> {
    members(body, span)?.into_iter().find(|(name, _)| name == key).map(|(_, span)| span)
}

#[cfg(test)]
mod tests;
