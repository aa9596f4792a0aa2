//! What the tests of all formats share, and what holds for each of them.

use forethought_core::conversation::{Conversation, Part, Role};
use serde_json::{Value, json};

use super::*;

/// The request in `body`, sent to `path`.
pub(super) fn decoded(path: &str, body: &Value) -> Result<Request, Error> {
    let target: Uri = path.parse().unwrap();
    find(target.path()).unwrap().decode(&target, body.to_string().as_bytes())
}

/// Checks what is read of a request.
#[track_caller]
pub(super) fn reads(path: &str, body: &Value, expected: &[&str]) {
    let request = decoded(path, body).unwrap();
    assert_eq!(shown(&request.conversation), expected, "{body}");
}

/// Checks that a request is rejected, and that the error names `expected` and nothing that is secret.
#[track_caller]
pub(super) fn rejects(path: &str, body: &Value, expected: &str) {
    let error = decoded(path, body).unwrap_err().to_string();
    assert!(error.contains(expected) && !error.contains("secret"), "{error}");
}

/// A conversation in one line a part, with all that was read.
pub(super) fn shown(conversation: &Conversation) -> Vec<String> {
    let line = |(role, part): (Role, &Part)| match part {
        Part::Text { text } => format!("{}: {text}", role.label()),
        Part::Reasoning { text } => format!("{} reasons: {text}", role.label()),
        Part::ToolCall { name, arguments } => format!("{} calls {name}: {arguments}", role.label()),
        Part::ToolResult { text } => format!("{} returns: {text}", role.label()),
        Part::Unread { kind } => format!("{} unread: {kind}", role.label()),
    };
    conversation.parts().map(line).collect()
}

/// A path of each format, and a request of one user message.
pub(super) fn samples() -> [(&'static str, Value); 7] {
    let messages = json!([{"role": "user", "content": "hi there"}]);
    [
        ("/v1/chat/completions", json!({"model": "m", "messages": messages})),
        ("/v1/completions", json!({"model": "m", "prompt": "hi there"})),
        ("/v1/responses", json!({"model": "m", "input": "hi there"})),
        ("/v1/messages", json!({"model": "m", "max_tokens": 9, "messages": messages})),
        ("/api/chat", json!({"model": "m", "messages": messages})),
        ("/api/generate", json!({"model": "m", "prompt": "hi there"})),
        (
            "/v1beta/models/m:generateContent",
            json!({"contents": [{"role": "user", "parts": [{"text": "hi there"}]}]}),
        ),
    ]
}

#[test]
fn a_user_message_is_one_in_every_format() {
    for (path, body) in samples() {
        reads(path, &body, &["User: hi there"]);
        assert_eq!(decoded(path, &body).unwrap().model, "m", "{path}");
    }
}

#[test]
fn fields_that_nobody_knows_are_read_in_every_format() {
    for (path, mut body) in samples() {
        body["documents"] = json!([{"text": "once upon a time"}, "gpt-4"]);
        reads(path, &body, &["System: once upon a time", "User: hi there"]);
        assert!(decoded(path, &body).unwrap().settings, "{path}");
    }
}

#[test]
fn hostile_shapes_are_rejected_in_every_format() {
    for (path, sample) in samples() {
        let input = find(path).unwrap().voice().input;
        for body in [json!([]), json!("secret"), json!(null)] {
            rejects(path, &body, "`body` must be a JSON object");
        }
        let mut body = sample.clone();
        body[input.to_uppercase()] = json!("secret");
        rejects(path, &body, input);
        let mut body = sample.clone();
        body[input] = json!({"secret": 1});
        let decoded = decoded(path, &body);
        let unread = decoded.as_ref().is_ok_and(|request| request.conversation.unread().next().is_some());
        assert!(decoded.is_err() || unread, "{path}");
        // The same key twice.
        let text = sample.to_string();
        let twice = format!("{},\"{input}\":\"secret\"}}", &text[..text.len() - 1]);
        let error = find(path).unwrap().decode(&path.parse().unwrap(), twice.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("twice") && !error.to_string().contains("secret"), "{error}");
    }
}
