//! What is read of requests, shape by shape.

use serde_json::{Value, json};

use crate::api::tests::{decoded, reads, rejects};

const PATH: &str = "/api/chat";

#[test]
fn messages_of_every_shape_are_read() {
    fn check(message: Value, expected: &[&str]) {
        reads(PATH, &json!({"messages": [message]}), expected);
    }
    check(json!({"role": "system", "content": "be kind"}), &["System: be kind"]);
    check(json!({"role": "tool", "content": "42", "tool_name": "f"}), &["Tool returns: 42"]);
    check(
        json!({"role": "assistant", "thinking": "so it is", "content": "yes",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}),
        &["Assistant reasons: so it is", "Assistant: yes", "Assistant calls f: {\"x\":1}"],
    );
    check(
        json!({"role": "user", "content": "look", "images": ["AAAA", "BBBB"]}),
        &["User: look", "User unread: images", "User unread: images"],
    );
}

#[test]
fn nothing_unknown_is_skipped() {
    fn check(message: Value, expected: &[&str]) {
        reads(PATH, &json!({"messages": [message]}), expected);
    }
    check(json!({"role": "critic", "content": "x"}), &["User unread: role_critic", "User: x"]);
    check(json!({"role": "user", "content": ["a b"]}), &["User unread: content"]);
    check(json!({"role": "user", "content": "a", "images": "AAAA"}), &["User: a", "User unread: images"]);
    check(json!({"role": "user", "content": "a", "note": "b c"}), &["User: a", "User: b c"]);
    check(json!({"role": "assistant", "tool_calls": [5]}), &["Assistant unread: tool_call"]);
    check(json!({"role": "assistant", "tool_calls": "x y"}), &["Assistant unread: tool_calls"]);
}

#[test]
fn bad_shapes_are_named() {
    rejects(PATH, &json!({"messages": ["secret"]}), "`messages[0]` must be an object");
    rejects(PATH, &json!({"messages": "secret"}), "`messages` must be an array");
    // Go's parser would read these.
    rejects(PATH, &json!({"messages": [{"role": "user", "Content": "secret"}]}), "messages[0]");
    rejects(
        PATH,
        &json!({"messages": [{"role": "user", "tool_calls": [{"function": {"ARGUMENTS": "secret"}}]}]}),
        "messages[0].tool_calls[0].function",
    );
}

#[test]
fn answers_are_streamed_unless_said_otherwise() {
    assert!(decoded(PATH, &json!({"messages": []})).unwrap().stream);
    assert!(!decoded(PATH, &json!({"messages": [], "stream": false})).unwrap().stream);
}
