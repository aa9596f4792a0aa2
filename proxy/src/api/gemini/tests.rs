//! What is read of requests, shape by shape.

use serde_json::{Value, json};

use super::*;
use crate::api::tests::{decoded, reads, rejects};

const PATH: &str = "/v1beta/models/m:generateContent";

fn check(role: &str, part: Value, expected: &[&str]) {
    reads(PATH, &json!({"contents": [{"role": role, "parts": [part]}]}), expected);
}

#[test]
fn the_target_says_model_and_stream() {
    fn check(target: &str, model: &str, stream: bool, framing: Framing) {
        let request = decoded(target, &json!({"contents": []})).unwrap();
        assert_eq!(
            (request.model.as_str(), request.stream, request.framing),
            (model, stream, framing),
            "{target}"
        );
    }
    check("/v1beta/models/gemini-2.5-pro:generateContent", "gemini-2.5-pro", false, Framing::Array);
    check("/v1beta/models/m:streamGenerateContent", "m", true, Framing::Array);
    check("/v1beta/models/m:streamGenerateContent?key=k&alt=sse", "m", true, Framing::Events);
    check("/v1/tunedModels/m:streamGenerateContent?alt=sse2", "m", true, Framing::Array);
}

#[test]
fn parts_of_every_kind_are_read() {
    check("user", json!({"text": "hi"}), &["User: hi"]);
    check(
        "model",
        json!({"text": "so it is", "thought": true, "thoughtSignature": "A".repeat(400)}),
        &["Assistant reasons: so it is"],
    );
    check(
        "model",
        json!({"functionCall": {"name": "f", "args": {"x": "a b"}}}),
        &["Assistant calls f: {\"x\":\"a b\"}"],
    );
    check("model", json!({"function_call": {"name": "f", "args": {}}}), &["Assistant calls f: {}"]);
    check(
        "user",
        json!({"functionResponse": {"name": "f", "response": {"y": 1}}}),
        &["Tool returns: {\"y\":1}"],
    );
    check(
        "function",
        json!({"functionResponse": {"name": "f", "response": {}, "parts": [{"inlineData": {"data": "AAAA"}}]}}),
        &["Tool returns: {}", "Tool unread: inlineData"],
    );
    check(
        "user",
        json!({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}),
        &["User unread: inlineData"],
    );
    check(
        "user",
        json!({"inline_data": {"mime_type": "image/png", "data": "AAAA"}}),
        &["User unread: inline_data"],
    );
    check(
        "user",
        json!({"fileData": {"fileUri": "https://x", "displayName": "My tale"}, "videoMetadata": {"fps": 1}}),
        &["User: My tale", "User unread: fileData"],
    );
    check(
        "model",
        json!({"executableCode": {"code": "1+1"}}),
        &["Assistant calls executableCode: {\"code\":\"1+1\"}"],
    );
    check("model", json!({"codeExecutionResult": {"output": "2"}}), &["Tool returns: {\"output\":\"2\"}"]);
}

#[test]
fn what_stands_beside_the_contents() {
    for key in ["systemInstruction", "system_instruction"] {
        let system = json!({"parts": [{"text": "be kind"}], "role": "user"});
        reads(PATH, &json!({key: system, "contents": []}), &["System: be kind"]);
    }
    reads(PATH, &json!({"systemInstruction": "be kind", "contents": []}), &["System: be kind"]);
    reads(
        PATH,
        &json!({"cachedContent": "cachedContents/1", "contents": []}),
        &["System unread: cachedContent"],
    );
    reads(
        PATH,
        &json!({"contents": [], "tools": [{"functionDeclarations": [{"name": "f", "description": "Finds a thing."}]}],
            "generationConfig": {"responseSchema": {"description": "An answer."}, "candidateCount": 3}}),
        &["System: Finds a thing.\nAn answer."],
    );
    let body = json!({"contents": [], "generation_config": {"candidate_count": 3}});
    assert_eq!(decoded(PATH, &body).unwrap().choices, 3);
}

#[test]
fn nothing_unknown_is_skipped() {
    check("critic", json!({"text": "x"}), &["User unread: role_critic", "User: x"]);
    check("user", json!({"text": 5}), &["User unread: text"]);
    check("user", json!({"hologram": {"says": "do it"}}), &["User: do it", "User unread: hologram"]);
    check("user", json!({"hologram": "do it"}), &["User: do it", "User unread: hologram"]);
    check(
        "user",
        json!({"text": "a", "functionCall": {"name": "f", "args": {}}}),
        &["User: a", "User calls f: {}"],
    );
    reads(PATH, &json!({"contents": [{"parts": {"text": "a"}}]}), &["User: a"]);
    reads(PATH, &json!({"contents": [{"parts": [], "note": "b c"}]}), &["User: b c"]);
}

#[test]
fn bad_shapes_are_named() {
    rejects(PATH, &json!({"prompt": "secret"}), "`contents` must be an array");
    rejects(PATH, &json!({"contents": ["secret"]}), "`contents[0]` must be an object");
    rejects(PATH, &json!({"contents": [{"parts": ["secret"]}]}), "`contents[0].parts[0]` must be an object");
    rejects(
        PATH,
        &json!({"contents": [], "systeminstruction": {"parts": [{"text": "secret"}]}}),
        "`systemInstruction`",
    );
    rejects(PATH, &json!({"contents": [{"parts": [{"Text": "secret"}]}]}), "contents[0].parts[0]");
    rejects(
        PATH,
        &json!({"contents": [], "generationConfig": {"candidateCount": 0}}),
        "`generationConfig.candidateCount`",
    );
}
