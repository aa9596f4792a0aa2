//! What the guard reads of each wire format, as `docs/coverage.md` says it.

#![allow(clippy::unwrap_used)] // helpers of tests

use forethought_core::conversation::{Conversation, Part};
use forethought_tests::{FORMATS, FakeGuard, FakeUpstream, Format, TestProxy, is_written, json_headers};
use http::Method;
use serde_json::{Map, Value, json};

/// What must be found again in what the guard reads.
const MARK: &str = "the marked words";

/// The parts of a request, as rows of the table.
const PARTS: [&str; 20] = [
    "system prompt",
    "user text",
    "several text parts",
    "earlier answer",
    "reasoning",
    "tool description",
    "tool call's arguments",
    "tool result",
    "response schema",
    "field that nobody knows",
    "image",
    "audio",
    "file",
    "encrypted reasoning",
    "what the API holds (conversation, cache, context)",
    "remote tool server",
    "token ids as prompt",
    "part of an unknown kind",
    "unknown role",
    "known key in another case",
];

/// A request with this part, if the format has it.
fn request(format: &Format, part: &str) -> Option<Value> {
    let schema = json!({"type": "object", "description": MARK});
    let with = |key: &str, value: Value| {
        let mut body = format.ask("hi", false);
        body[key] = value;
        Some(body)
    };
    match (format.name, part) {
        (_, "user text") => Some(format.ask(MARK, false)),
        (_, "field that nobody knows") => with("documents", json!([{"text": MARK}])),
        (_, "known key in another case") => with(&format.input.to_uppercase(), json!(MARK)),
        ("openai-chat", _) => openai_chat(part, &schema, with),
        ("openai-completions", "several text parts") => with("prompt", json!(["hi", MARK])),
        ("openai-completions", "token ids as prompt") => with("prompt", json!([1, 2])),
        ("openai-responses", _) => openai_responses(part, &schema, with),
        ("anthropic-messages", _) => anthropic_messages(part, &schema, with),
        ("ollama-chat", _) => ollama_chat(part, &schema, with),
        ("ollama-generate", "system prompt") => with("system", json!(MARK)),
        ("ollama-generate", "response schema") => with("format", schema),
        ("ollama-generate", "image") => with("images", json!(["AAAA"])),
        ("ollama-generate", "what the API holds (conversation, cache, context)") => {
            with("context", json!([1, 2]))
        }
        ("gemini", _) => gemini(part, &schema, with),
        _ => None,
    }
}

fn openai_chat(part: &str, schema: &Value, with: impl Fn(&str, Value) -> Option<Value>) -> Option<Value> {
    let message = |message: Value| with("messages", json!([message]));
    let content = |part: Value| message(json!({"role": "user", "content": [part]}));
    match part {
        "system prompt" => message(json!({"role": "system", "content": MARK})),
        "several text parts" => message(
            json!({"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": MARK}]}),
        ),
        "earlier answer" => message(json!({"role": "assistant", "content": MARK})),
        "reasoning" => message(json!({"role": "assistant", "reasoning_content": MARK})),
        "tool description" => {
            with("tools", json!([{"type": "function", "function": {"name": "f", "description": MARK}}]))
        }
        "tool call's arguments" => message(json!({"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": MARK}}]})),
        "tool result" => message(json!({"role": "tool", "tool_call_id": "1", "content": MARK})),
        "response schema" => with(
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}),
        ),
        "image" => content(json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})),
        "audio" => content(json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
        "file" => content(json!({"type": "file", "file": {"file_id": "f"}})),
        "part of an unknown kind" => content(json!({"type": "hologram", "hologram": "AAAA"})),
        "unknown role" => message(json!({"role": "critic", "content": MARK})),
        _ => None,
    }
}

fn openai_responses(
    part: &str,
    schema: &Value,
    with: impl Fn(&str, Value) -> Option<Value>,
) -> Option<Value> {
    let item = |item: Value| with("input", json!([item]));
    let content = |part: Value| item(json!({"role": "user", "content": [part]}));
    match part {
        "system prompt" => with("instructions", json!(MARK)),
        "several text parts" => item(json!({"role": "user", "content": [
            {"type": "input_text", "text": "hi"}, {"type": "input_text", "text": MARK}]})),
        "earlier answer" => {
            item(json!({"role": "assistant", "content": [{"type": "output_text", "text": MARK}]}))
        }
        "reasoning" => {
            item(json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": MARK}]}))
        }
        "tool description" => with("tools", json!([{"type": "function", "name": "f", "description": MARK}])),
        "tool call's arguments" => {
            item(json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": MARK}))
        }
        "tool result" => item(json!({"type": "function_call_output", "call_id": "1", "output": MARK})),
        "response schema" => {
            with("text", json!({"format": {"type": "json_schema", "name": "s", "schema": schema}}))
        }
        "image" => content(json!({"type": "input_image", "image_url": "data:image/png;base64,AAAA"})),
        "audio" => content(json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
        "file" => content(json!({"type": "input_file", "file_id": "f"})),
        "encrypted reasoning" => {
            item(json!({"type": "reasoning", "summary": [], "encrypted_content": "AAAA"}))
        }
        "what the API holds (conversation, cache, context)" => with("previous_response_id", json!("resp_1")),
        "remote tool server" => {
            with("tools", json!([{"type": "mcp", "server_label": "x", "server_url": "https://x"}]))
        }
        "part of an unknown kind" => content(json!({"type": "hologram", "hologram": "AAAA"})),
        "unknown role" => item(json!({"role": "critic", "content": MARK})),
        _ => None,
    }
}

fn anthropic_messages(
    part: &str,
    schema: &Value,
    with: impl Fn(&str, Value) -> Option<Value>,
) -> Option<Value> {
    let block = |role: &str, block: Value| with("messages", json!([{"role": role, "content": [block]}]));
    let source = json!({"type": "base64", "media_type": "image/png", "data": "AAAA"});
    match part {
        "system prompt" => with("system", json!([{"type": "text", "text": MARK}])),
        "several text parts" => with(
            "messages",
            json!([{"role": "user", "content": [
            {"type": "text", "text": "hi"}, {"type": "text", "text": MARK}]}]),
        ),
        "earlier answer" => block("assistant", json!({"type": "text", "text": MARK})),
        "reasoning" => block("assistant", json!({"type": "thinking", "thinking": MARK, "signature": "AAAA"})),
        "tool description" => with("tools", json!([{"name": "f", "description": MARK, "input_schema": {}}])),
        "tool call's arguments" => {
            block("assistant", json!({"type": "tool_use", "id": "1", "name": "f", "input": {"x": MARK}}))
        }
        "tool result" => block(
            "user",
            json!({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": MARK}]}),
        ),
        "response schema" => {
            with("output_config", json!({"format": {"type": "json_schema", "schema": schema}}))
        }
        "image" => block("user", json!({"type": "image", "source": source})),
        "file" => block("user", json!({"type": "document", "source": {"type": "file", "file_id": "f"}})),
        "encrypted reasoning" => block("assistant", json!({"type": "redacted_thinking", "data": "AAAA"})),
        "remote tool server" => {
            with("mcp_servers", json!([{"type": "url", "url": "https://x", "name": "x"}]))
        }
        "part of an unknown kind" => block("user", json!({"type": "hologram", "hologram": "AAAA"})),
        "unknown role" => block("critic", json!({"type": "text", "text": MARK})),
        _ => None,
    }
}

fn ollama_chat(part: &str, schema: &Value, with: impl Fn(&str, Value) -> Option<Value>) -> Option<Value> {
    let message = |message: Value| with("messages", json!([message]));
    match part {
        "system prompt" => message(json!({"role": "system", "content": MARK})),
        "earlier answer" => message(json!({"role": "assistant", "content": MARK})),
        "reasoning" => message(json!({"role": "assistant", "thinking": MARK})),
        "tool description" => {
            with("tools", json!([{"type": "function", "function": {"name": "f", "description": MARK}}]))
        }
        "tool call's arguments" => message(json!({"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": MARK}}}]})),
        "tool result" => message(json!({"role": "tool", "tool_name": "f", "content": MARK})),
        "response schema" => with("format", schema.clone()),
        "image" => message(json!({"role": "user", "content": "hi", "images": ["AAAA"]})),
        "unknown role" => message(json!({"role": "critic", "content": MARK})),
        _ => None,
    }
}

fn gemini(part: &str, schema: &Value, with: impl Fn(&str, Value) -> Option<Value>) -> Option<Value> {
    let own = |role: &str, part: Value| with("contents", json!([{"role": role, "parts": [part]}]));
    match part {
        "system prompt" => with("systemInstruction", json!({"parts": [{"text": MARK}]})),
        "several text parts" => {
            with("contents", json!([{"role": "user", "parts": [{"text": "hi"}, {"text": MARK}]}]))
        }
        "earlier answer" => own("model", json!({"text": MARK})),
        "reasoning" => own("model", json!({"text": MARK, "thought": true, "thoughtSignature": "AAAA"})),
        "tool description" => {
            with("tools", json!([{"functionDeclarations": [{"name": "f", "description": MARK}]}]))
        }
        "tool call's arguments" => own("model", json!({"functionCall": {"name": "f", "args": {"x": MARK}}})),
        "tool result" => own("user", json!({"functionResponse": {"name": "f", "response": {"y": MARK}}})),
        "response schema" => with("generationConfig", json!({"responseSchema": schema})),
        "image" => own("user", json!({"inlineData": {"mimeType": "image/png", "data": "AAAA"}})),
        "audio" => own("user", json!({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}})),
        "file" => own("user", json!({"fileData": {"fileUri": "https://x"}})),
        "what the API holds (conversation, cache, context)" => {
            with("cachedContent", json!("cachedContents/1"))
        }
        "part of an unknown kind" => own("user", json!({"hologram": {"data": "AAAA"}})),
        "unknown role" => own("critic", json!({"text": MARK})),
        _ => None,
    }
}

/// Whether the guard was shown the marked words.
fn is_read(conversation: &Conversation) -> bool {
    conversation.parts().filter_map(|(_, part)| Part::text(part)).any(|text| text.contains(MARK))
}

/// What becomes of a request: with the default configuration, and with one that lets unread parts through.
async fn outcome(
    format: &Format,
    body: &Value,
    guard: &FakeGuard,
    strict: &TestProxy,
    lax: &TestProxy,
) -> String {
    let send = async |proxy: &TestProxy| {
        proxy.client().send(Method::POST, format.path, json_headers(), body.to_string()).await
    };
    let before = guard.seen().len();
    let reply = send(strict).await;
    let read = guard.seen().get(before).is_some_and(|seen| is_read(seen));
    match (reply.header("x-forethought-decision"), read) {
        ("allow", true) => return "read".to_owned(),
        ("allow", false) => return "**skipped**".to_owned(),
        _ => {}
    }
    if reply.status.as_u16() == 400 {
        return "denied".to_owned();
    }
    let before = guard.seen().len();
    let reply = send(lax).await;
    assert_eq!(reply.header("x-forethought-decision"), "allow", "{}: {body}", format.name);
    let seen = guard.seen()[before].clone();
    let kinds: Map<_, _> = seen.unread().map(|kind| (kind.to_owned(), Value::Null)).collect();
    assert!(!kinds.is_empty(), "{}: {body}", format.name);
    let also = if is_read(&seen) { "read, " } else { "" };
    format!("{also}unread")
}

#[tokio::test]
async fn the_table_says_what_is_read() {
    let upstream = FakeUpstream::answering("{}").await;
    let guard = FakeGuard::scoring(0.0);
    let strict = TestProxy::start(&guard, &upstream.url(), "").await;
    let lax = TestProxy::start(&guard, &upstream.url(), "policy.on_unreadable = \"flag\"").await;
    let mut text = "# What the guard reads\n\n\
        Written by `tests/tests/coverage.rs`, which sends each of these to the proxy.\n\n\
        - *read*: the guard is shown it.\n\
        - *unread*: the guard can't read it, and says so. `policy.on_unreadable` decides: by default the request is denied.\n\
        - *denied*: the request is rejected with 400, because servers would read it in different ways.\n\
        - empty: the format has no such part.\n\n"
        .to_owned();
    text += &format!("| part | {} |\n", FORMATS.map(|format| format.name).join(" | "));
    text += &format!("| --- |{}\n", " --- |".repeat(FORMATS.len()));
    for part in PARTS {
        let mut row = format!("| {part} |");
        for format in &FORMATS {
            let cell = match request(format, part) {
                Some(body) => outcome(format, &body, &guard, &strict, &lax).await,
                None => String::new(),
            };
            row += &format!(" {cell} |");
        }
        text += &row.replace("  |", " |");
        text.push('\n');
    }
    assert!(!text.contains("skipped"), "{text}");
    is_written("coverage.md", &text);
}
