//! What policies change in a request of the OpenAI chat API, written back into its own bytes: all that is not changed stays
//! as the caller sent it.

use bytes::Bytes;
use forethought_core::{
    conversation::{Message, Part},
    policy::Edit,
};

use super::decode;
use crate::{
    api::splice::{Span, items, members, quoted, replaced, string, value},
    reply::Error,
};

/// Adds a note to the operator's instructions: behind those that stand first, or as a first message of its own. Many chat
/// templates take operator text in the first place only, and once.
pub(crate) fn annotate(body: &[u8], note: &str) -> Result<Bytes, Error> {
    let change = place(body, note).ok_or(Error::CantAnnotate)?;
    Ok(replaced(body, vec![change]))
}

fn place(body: &[u8], note: &str) -> Option<(Span, String)> {
    let messages = messages(body)?;
    let list = items(body, &messages)?;
    let first = match list.first() {
        Some(first) => members(body, first)?,
        None => vec![],
    };
    let field = |name: &str| first.iter().find(|(key, _)| key == name).map(|(_, span)| span);
    let role = field("role").and_then(|span| string(body, span));
    let content = field("content").filter(|_| matches!(role.as_deref(), Some("system" | "developer")));
    if let Some(content) = content {
        if let Some(text) = string(body, content) {
            return Some((content.clone(), quoted(&format!("{text}\n\n{note}"))));
        }
        if let Some(parts) = items(body, content) {
            let comma = if parts.is_empty() { "" } else { "," };
            let end = content.end - 1; // its closing bracket
            return Some((end..end, format!("{comma}{{\"type\":\"text\",\"text\":{}}}", quoted(note))));
        }
    }
    let comma = if list.is_empty() { "" } else { "," };
    let start = messages.start + 1; // behind its opening bracket
    Some((start..start, format!("{{\"role\":\"system\",\"content\":{}}}{comma}", quoted(note))))
}

/// Puts new text in place of parts of the conversation.
pub(crate) fn rewrite(body: &[u8], edits: &[Edit]) -> Result<Bytes, Error> {
    let conversation = decode(body)?.conversation;
    let list = messages(body).and_then(|span| items(body, &span)).unwrap_or_default();
    // What stands outside the messages comes first in the conversation, joined: it has no place of its own.
    let before = conversation.messages.len() - list.len();
    let mut changes: Vec<(Span, String)> = Vec::with_capacity(edits.len());
    for Edit { message, part, text } in edits {
        let place = || {
            let index = message.checked_sub(before)?;
            let strings = strings(body, list.get(index)?)?;
            matched(body, &strings, conversation.messages.get(*message)?, *part)
        };
        let wrong = || Error::CantRewrite { message: *message, part: *part };
        let span = place().ok_or_else(wrong)?;
        if changes.iter().any(|(taken, _)| *taken == span) {
            return Err(wrong());
        }
        changes.push((span, quoted(text)));
    }
    Ok(replaced(body, changes))
}

fn messages(body: &[u8]) -> Option<Span> {
    let top = members(body, &value(body, 0)?)?;
    top.into_iter().find(|(key, _)| key == "messages").map(|(_, span)| span)
}

/// Where the strings of a message stand that become parts of their own, in the order of `decode`.
fn strings(body: &[u8], message: &Span) -> Option<Vec<Span>> {
    let mut found = Vec::new();
    let mut keep = |span: &Span| found.extend(string(body, span).map(|_| span.clone()));
    for (key, span) in members(body, message)? {
        match key.as_str() {
            "content" => match items(body, &span) {
                None => keep(&span),
                Some(parts) => {
                    for part in parts {
                        match members(body, &part) {
                            None => keep(&part),
                            Some(fields) => {
                                let own = |(key, _): &&(String, Span)| key == "text" || key == "refusal";
                                fields.iter().filter(own).for_each(|(_, span)| keep(span));
                            }
                        }
                    }
                }
            },
            "refusal" | "reasoning" | "reasoning_content" => keep(&span),
            "tool_calls" => {
                for call in items(body, &span).unwrap_or_default() {
                    for (key, function) in members(body, &call).unwrap_or_default() {
                        if key == "function" || key == "custom" {
                            arguments(body, &function, &mut keep);
                        }
                    }
                }
            }
            "function_call" => arguments(body, &span, &mut keep),
            _ => {}
        }
    }
    Some(found)
}

fn arguments(body: &[u8], function: &Span, keep: &mut impl FnMut(&Span)) {
    for (key, span) in members(body, function).unwrap_or_default() {
        if key == "arguments" || key == "input" {
            keep(&span);
        }
    }
}

/// The string that a part was made of. Strings and parts stand in the same order, and only a string that says what the
/// part says is taken for it.
fn matched(body: &[u8], strings: &[Span], message: &Message, part: usize) -> Option<Span> {
    let mut strings = strings.iter();
    let mut next = strings.next();
    for (index, candidate) in message.parts.iter().enumerate() {
        let text = match candidate {
            Part::Unread { .. } => None,
            readable => readable.text(),
        };
        let same = next.filter(|span| text.is_some() && string(body, span).as_deref() == text);
        if index == part {
            return same.cloned();
        }
        if same.is_some() {
            next = strings.next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn edit(message: usize, part: usize, text: &str) -> Edit {
        Edit { message, part, text: text.to_owned() }
    }

    #[test]
    fn notes_join_the_operators_instructions() {
        fn check(body: &str, expected: &str) {
            let new = annotate(body.as_bytes(), "a \"note\"").unwrap();
            assert_eq!(std::str::from_utf8(&new).unwrap(), expected);
            assert!(decode(&new).is_ok());
        }
        check(
            r#"{"x": 1.00, "messages": [ {"role":"user","content":"hi"}]}"#,
            r#"{"x": 1.00, "messages": [{"role":"system","content":"a \"note\""}, {"role":"user","content":"hi"}]}"#,
        );
        check(r#"{"messages":[]}"#, r#"{"messages":[{"role":"system","content":"a \"note\""}]}"#);
        check(
            r#"{"messages":[{"content":"Be brief.","role":"developer", "y":[]},{"role":"user"}]}"#,
            r#"{"messages":[{"content":"Be brief.\n\na \"note\"","role":"developer", "y":[]},{"role":"user"}]}"#,
        );
        check(
            r#"{"messages":[{"role":"system","content":[{"type":"text","text":"t"}]}]}"#,
            r#"{"messages":[{"role":"system","content":[{"type":"text","text":"t"},{"type":"text","text":"a \"note\""}]}]}"#,
        );
    }

    #[test]
    fn what_is_not_rewritten_stays_as_it_is() {
        let body = r#"{ "seed": 12345678901234567890123, "messages": [
            {"role": "user", "content": "mail me@x.example", "unknown": {"k": [1.0, 1e2]}},
            {"role": "user", "content": [ {"type":"text","text":"one","cache":1}, "two" ]},
            {"role": "assistant", "reasoning_content": "r", "tool_calls": [{"id":"1","type":"function",
              "function":{"name":"f","arguments":"{\"a\": 1}"}}]},
            {"role": "tool", "content": "result"}
        ], "temperature": 0.10 }"#;
        let new = rewrite(
            body.as_bytes(),
            &[edit(0, 0, "mail [EMAIL]"), edit(1, 1, "2"), edit(2, 0, "s"), edit(2, 1, "{}"), edit(3, 0, "")],
        );
        let expected = body
            .replace("mail me@x.example", "mail [EMAIL]")
            .replace("\"two\"", "\"2\"")
            .replace("\"r\"", "\"s\"")
            .replace(r#""{\"a\": 1}""#, "\"{}\"")
            .replace("\"result\"", "\"\"");
        assert_eq!(std::str::from_utf8(&new.unwrap()).unwrap(), expected);
    }

    #[test]
    fn every_part_of_its_own_can_be_rewritten_and_no_other() {
        let body = json!({
            "tools": [{"type": "function", "function": {"name": "f", "description": "Does a thing."}}],
            "messages": [
                {"role": "user", "name": "a name with blanks", "content": "text"},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "http://x.example", "alt": "some words"}},
                    {"type": "text", "text": "t", "note": "more words"},
                ]},
                {"role": "assistant", "content": null, "refusal": "no", "function_call": {"name": "f", "arguments": "x"}},
            ],
        })
        .to_string();
        let conversation = decode(body.as_bytes()).unwrap().conversation;
        let mut rewritten = Vec::new();
        for (m, message) in conversation.messages.iter().enumerate() {
            for (p, part) in message.parts.iter().enumerate() {
                match rewrite(body.as_bytes(), &[edit(m, p, "NEW")]) {
                    Ok(new) => {
                        rewritten.push(part.text().unwrap_or_default());
                        let mut expected = conversation.clone();
                        match &mut expected.messages[m].parts[p] {
                            Part::Text { text } | Part::Reasoning { text } | Part::ToolResult { text } => {
                                *text = "NEW".to_owned();
                            }
                            Part::ToolCall { arguments, .. } => *arguments = "NEW".to_owned(),
                            Part::Unread { .. } => panic!("unread parts can't be rewritten"),
                        }
                        assert!(decode(&new).unwrap().conversation == expected, "{m}.{p}");
                    }
                    Err(error) => assert_eq!(error.code(), "rewrite_failed"),
                }
            }
        }
        assert_eq!(rewritten, ["text", "t", "no", "x"]);
        for wrong in [edit(9, 0, ""), edit(1, 9, "")] {
            assert_eq!(rewrite(body.as_bytes(), &[wrong]).unwrap_err().code(), "rewrite_failed");
        }
        let twice = [edit(1, 1, "a"), edit(1, 1, "b")];
        assert_eq!(rewrite(body.as_bytes(), &twice).unwrap_err().code(), "rewrite_failed");
        let _: Value = serde_json::from_str(&body).unwrap();
    }
}
