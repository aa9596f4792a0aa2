//! What is read of requests, shape by shape.

use serde_json::{Value, json};

use crate::api::tests::{reads, rejects};

const PATH: &str = "/v1/responses";

fn check(item: Value, expected: &[&str]) {
    reads(PATH, &json!({"input": [item]}), expected);
}

#[test]
fn instructions_and_what_the_api_holds() {
    reads(PATH, &json!({"instructions": "be kind", "input": "hi"}), &["System: be kind", "User: hi"]);
    reads(
        PATH,
        &json!({"instructions": [{"role": "developer", "content": "be kind"}], "input": []}),
        &["System: be kind"],
    );
    reads(
        PATH,
        &json!({"previous_response_id": "resp_1", "conversation": {"id": "conv_1"}, "input": "hi",
            "prompt": {"id": "pmpt_1", "variables": {"topic": "a long tale"}}}),
        &[
            "System: a long tale",
            "System unread: conversation",
            "System unread: previous_response_id",
            "System unread: prompt",
            "User: hi",
        ],
    );
    reads(PATH, &json!({"previous_response_id": null, "conversation": null, "input": "hi"}), &["User: hi"]);
}

#[test]
fn tools_are_read_and_remote_ones_are_not() {
    reads(
        PATH,
        &json!({"input": "hi", "tools": [
            {"type": "function", "name": "f", "description": "Finds a thing."},
            {"type": "mcp", "server_label": "x", "server_url": "https://x", "server_description": "Sells things.",
                "authorization": "secret words", "headers": {"x-key": "secret words"}},
        ]}),
        &["System: Finds a thing.\nSells things.", "System unread: mcp", "User: hi"],
    );
    reads(PATH, &json!({"input": "hi", "tools": "all of them"}), &["System unread: tools", "User: hi"]);
}

#[test]
fn items_of_every_kind_are_read() {
    check(json!({"role": "user", "content": "hi"}), &["User: hi"]);
    check(
        json!({"type": "message", "role": "system", "content": [{"type": "input_text", "text": "a"}]}),
        &["System: a"],
    );
    check(
        json!({"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
            {"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}]}),
        &["Assistant: a", "Assistant: no"],
    );
    check(
        json!({"role": "user", "content": [
            {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
            {"type": "input_file", "file_id": "file_1"},
            {"type": "input_audio", "input_audio": {"data": "AAAA"}},
        ]}),
        &["User unread: input_image", "User unread: input_file", "User unread: input_audio"],
    );
    check(
        json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"x\": 1}"}),
        &["Assistant calls f: {\"x\": 1}"],
    );
    check(
        json!({"type": "custom_tool_call", "call_id": "c", "name": "g", "input": "do it"}),
        &["Assistant calls g: do it"],
    );
    check(json!({"type": "function_call_output", "call_id": "c", "output": "42"}), &["Tool returns: 42"]);
    check(
        json!({"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_text", "text": "42"}, {"type": "input_image", "image_url": "https://x"}]}),
        &["Tool returns: 42", "Tool unread: input_image"],
    );
    check(
        json!({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "so it is"}],
            "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": "A".repeat(400)}),
        &["Assistant reasons: so it is", "Assistant reasons: hm", "Assistant unread: encrypted_content"],
    );
    check(json!({"type": "reasoning", "summary": [], "encrypted_content": null}), &[]);
    check(
        json!({"type": "local_shell_call", "action": {"command": ["rm", "x"]}}),
        &[
            "Assistant calls local_shell_call: {\"type\":\"local_shell_call\",\"action\":{\"command\":[\"rm\",\"x\"]}}",
        ],
    );
    check(
        json!({"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "https://x"}}),
        &["User unread: computer_call_output"],
    );
}

#[test]
fn nothing_unknown_is_skipped() {
    check(json!({"role": "critic", "content": "x"}), &["User unread: role_critic", "User: x"]);
    check(json!({"role": "user", "content": 5}), &["User unread: content"]);
    check(json!({"role": "user", "content": [5, "x y"]}), &["User unread: content", "User: x y"]);
    check(
        json!({"role": "user", "content": [{"type": "hologram", "says": "do it"}]}),
        &["User: do it", "User unread: hologram"],
    );
    check(json!({"role": "user", "content": "a", "note": "b c"}), &["User: a", "User: b c"]);
    check(json!({"type": "item_reference", "id": "msg_1"}), &["User unread: item_reference"]);
    check(json!({"type": "hologram", "says": "do it"}), &["User: do it", "User unread: hologram"]);
    check(json!({"content": "do it"}), &["User: do it", "User unread: untyped"]);
    check(json!({"type": "function_call_output"}), &["Tool unread: function_call_output"]);
}

#[test]
fn bad_shapes_are_named() {
    rejects(PATH, &json!({"input": 5}), "`input` must be");
    rejects(PATH, &json!({"input": ["secret"]}), "`input[0]` must be an object");
    rejects(PATH, &json!({"input": [{"role": "user", "Content": "secret"}]}), "input[0]");
    rejects(
        PATH,
        &json!({"input": [{"role": "user", "content": [{"type": "input_text", "TEXT": "secret"}]}]}),
        "input[0].content[0]",
    );
    rejects(PATH, &json!({"input": "secret", "Previous_Response_Id": "x"}), "`previous_response_id`");
}
