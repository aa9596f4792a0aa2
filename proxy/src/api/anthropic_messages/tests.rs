//! What is read of requests, shape by shape.

use serde_json::{Value, json};

use crate::api::tests::{reads, rejects};

const PATH: &str = "/v1/messages";

fn check(role: &str, content: Value, expected: &[&str]) {
    reads(PATH, &json!({"messages": [{"role": role, "content": content}]}), expected);
}

#[test]
fn the_system_prompt_is_read() {
    reads(PATH, &json!({"system": "be kind", "messages": []}), &["System: be kind"]);
    let blocks = json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]);
    reads(PATH, &json!({"system": blocks, "messages": []}), &["System: a", "System: b"]);
    reads(PATH, &json!({"system": 5, "messages": []}), &["System unread: content"]);
    let server =
        json!([{"type": "url", "url": "https://x", "name": "x", "authorization_token": "secret words"}]);
    reads(PATH, &json!({"mcp_servers": server, "messages": []}), &["System unread: mcp_servers"]);
}

#[test]
fn blocks_of_every_kind_are_read() {
    check("user", json!("hi"), &["User: hi"]);
    check("system", json!("be kind"), &["System: be kind"]);
    check("user", json!([{"type": "text", "text": "a"}, "b"]), &["User: a", "User: b"]);
    check(
        "assistant",
        json!([
            {"type": "thinking", "thinking": "so it is", "signature": "A".repeat(400)},
            {"type": "redacted_thinking", "data": "A".repeat(400)},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"x": "a b"}},
            {"type": "server_tool_use", "id": "t", "name": "web_search", "input": {"query": "llamas"}},
        ]),
        &[
            "Assistant reasons: so it is",
            "Assistant unread: redacted_thinking",
            "Assistant calls f: {\"x\":\"a b\"}",
            "Assistant calls web_search: {\"query\":\"llamas\"}",
        ],
    );
    check(
        "user",
        json!([
            {"type": "tool_result", "tool_use_id": "t", "content": "42"},
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "43"}, {"type": "image", "source": {}}]},
            {"type": "tool_result", "tool_use_id": "t"},
            {"type": "text", "text": "and now?"},
        ]),
        &["Tool returns: 42", "Tool returns: 43", "Tool unread: image", "User: and now?"],
    );
    check(
        "user",
        json!([
            {"type": "document", "title": "A tale", "source": {"type": "text", "media_type": "text/plain", "data": "once"}},
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "upon"}]}},
            {"type": "document", "title": "A book", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
            {"type": "search_result", "source": "x", "title": "Of llamas", "content": [{"type": "text", "text": "a time"}]},
        ]),
        &[
            "User: A tale",
            "User: once",
            "User: upon",
            "User: A book",
            "User unread: document",
            "User: Of llamas",
            "User: a time",
        ],
    );
    check(
        "assistant",
        json!([
            {"type": "web_search_tool_result", "tool_use_id": "t", "content": [
                {"type": "web_search_result", "title": "Of llamas", "url": "https://x", "encrypted_content": "AAAA"}]},
            {"type": "bash_code_execution_tool_result", "tool_use_id": "t",
                "content": {"type": "bash_code_execution_result", "stdout": "done"}},
        ]),
        &[
            "Tool: Of llamas",
            "Tool unread: web_search_result",
            "Tool returns: {\"type\":\"bash_code_execution_result\",\"stdout\":\"done\"}",
        ],
    );
}

#[test]
fn nothing_unknown_is_skipped() {
    check("critic", json!("x"), &["User unread: role_critic", "User: x"]);
    check("user", json!(5), &["User unread: content"]);
    check("user", json!([5]), &["User unread: content"]);
    check(
        "user",
        json!([{"type": "image", "source": {"type": "url", "url": "https://x"}}]),
        &["User unread: image"],
    );
    check("user", json!([{"type": "hologram", "says": "do it"}]), &["User: do it", "User unread: hologram"]);
    check("user", json!([{"text": "do it"}]), &["User: do it", "User unread: untyped"]);
    check("user", json!([{"type": "text", "text": 5}]), &["User unread: text"]);
    check("user", json!([{"type": "text", "text": "a", "also": "b c"}]), &["User: b c", "User: a"]);
    check(
        "user",
        json!([{"type": "document", "source": {"type": "text", "data": "a", "content": "b c"}}]),
        &["User: b c", "User unread: document"],
    );
    check("user", json!([{"type": "container_upload", "file_id": "f"}]), &["User unread: container_upload"]);
}

#[test]
fn bad_shapes_are_named() {
    rejects(PATH, &json!({"messages": "secret"}), "`messages` must be an array");
    rejects(PATH, &json!({"messages": ["secret"]}), "`messages[0]` must be an object");
    rejects(PATH, &json!({"messages": [], "System": "secret"}), "`system`");
    rejects(
        PATH,
        &json!({"messages": [{"content": [{"type": "text", "Text": "secret"}]}]}),
        "messages[0].content[0]",
    );
    rejects(
        PATH,
        &json!({"messages": [{"content": [{"type": "tool_result", "content": [{"TYPE": "secret"}]}]}]}),
        "messages[0].content[0].content[0]",
    );
}
