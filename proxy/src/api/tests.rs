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
pub(crate) fn samples() -> [(&'static str, Value); 7] {
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

/// What is told of an answer that the embedded writer writes and that is cut after its first piece.
fn cut(path: &str) -> Vec<Value> {
    let format = find(path).unwrap();
    let mut answer = format.answer(Envelope::new("up", "m"));
    let mut tail = format.tail(Envelope { refusal: true, ..Envelope::new("own", "m") });
    let mut sent = answer.open(0);
    sent.extend(answer.text(0, "so far"));
    sent.iter().for_each(|value| tail.sent(value));
    tail.cut("no")
}

#[test]
fn what_the_embedded_model_writes_is_read_once_in_every_format() {
    for (path, _) in samples() {
        let format = find(path).unwrap();
        let mut answer = format.answer(Envelope::new("up", "m"));
        let mut values = answer.open(0);
        values.extend(answer.text(0, "one"));
        values.extend(answer.text(0, " two"));
        values.extend(answer.close(0, answer::End::Stop));
        values.extend(answer.done(answer::End::Stop, answer::Usage::default()));
        let pieces: Vec<Piece> = values.iter().flat_map(|value| format.written(value)).collect();
        let first: Vec<_> =
            pieces.iter().filter(|p| !p.again).map(|p| (p.choice, p.channel, p.text.as_str())).collect();
        assert_eq!(first, [(0, Channel::Text, "one"), (0, Channel::Text, " two")], "{path}");
        assert!(pieces.iter().all(|piece| !piece.again || piece.text == "one two"), "{path}: {pieces:?}");

        let whole = format.answer(Envelope::new("up", "m")).whole(
            "one two",
            answer::End::Stop,
            answer::Usage::default(),
        );
        let pieces = format.written(&whole);
        assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<Vec<_>>(), ["one two"], "{path}");
    }
}

#[test]
fn a_cut_answer_is_ended_properly() {
    let kinds = |path| cut(path).iter().map(|v| v["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        kinds("/v1/messages"),
        [
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert_eq!(
        kinds("/v1/responses"),
        [
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.refusal.delta",
            "response.refusal.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let events = cut("/v1/responses");
    // What was sent on is told as it is.
    assert_eq!(events[0]["item"]["content"][0]["text"], "so far");
    assert_eq!(events[0]["item"]["status"], "incomplete");
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (5..13).collect::<Vec<_>>());
    assert!(events[1..7].iter().all(|event| event["output_index"] == 1), "{events:?}");
    assert_eq!(events[7]["response"]["id"], "resp_up");
    assert_eq!(events[7]["response"]["output"][0]["content"][0]["refusal"], "no");

    let chunks = cut("/v1/chat/completions");
    assert!(chunks.iter().all(|chunk| chunk["id"] == "chatcmpl-up"), "{chunks:?}");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "content_filter");
    let lines = cut("/api/generate");
    assert_eq!((&lines[0]["response"], &lines[1]["done"]), (&json!("no"), &json!(true)));
}
