use serde_json::json;

use super::*;
use crate::api::{
    find,
    tests::{samples, shown},
};

const CHAT: &str = "/v1/chat/completions";

fn edit(message: usize, part: usize, text: &str) -> Edit {
    Edit { message, part, text: text.to_owned() }
}

fn rewritten(path: &str, body: &str, edits: &[Edit]) -> Result<String, Error> {
    let target: Uri = path.parse().unwrap();
    let new = rewrite(find(target.path()).unwrap(), &target, body.as_bytes(), edits)?;
    Ok(String::from_utf8(new.to_vec()).unwrap())
}

fn annotated(path: &str, body: &str) -> Result<String, Error> {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let new = annotate(find(path).unwrap(), &path.parse().unwrap(), &body, "a \"note\"")?;
    Ok(String::from_utf8(new.to_vec()).unwrap())
}

/// What is read of a request.
fn read(path: &str, body: &str) -> Vec<String> {
    shown(&find(path).unwrap().decode(&path.parse().unwrap(), body.as_bytes()).unwrap().conversation)
}

#[test]
fn notes_join_the_operators_instructions() {
    fn check(path: &str, body: &str, expected: &str) {
        assert_eq!(annotated(path, body).unwrap(), expected);
        let read = read(path, expected).join("\n");
        assert!(read.contains("System: ") && read.contains("a \"note\""), "{read}");
    }
    check(
        CHAT,
        r#"{"x": 1.00, "messages": [ {"role":"user","content":"hi"}]}"#,
        r#"{"x": 1.00, "messages": [{"role":"system","content":"a \"note\""}, {"role":"user","content":"hi"}]}"#,
    );
    check(CHAT, r#"{"messages":[]}"#, r#"{"messages":[{"role":"system","content":"a \"note\""}]}"#);
    check(
        CHAT,
        r#"{"messages":[{"content":"Be brief.","role":"developer", "y":[]},{"role":"user"}]}"#,
        r#"{"messages":[{"content":"Be brief.\n\na \"note\"","role":"developer", "y":[]},{"role":"user"}]}"#,
    );
    check(
        CHAT,
        r#"{"messages":[{"role":"system","content":[{"type":"text","text":"t"}]}]}"#,
        r#"{"messages":[{"role":"system","content":[{"type":"text","text":"t"},{"type":"text","text":"a \"note\""}]}]}"#,
    );
    check(
        "/api/chat",
        r#"{"messages":[{"role":"user","content":"hi"}],"options":{"seed":1}}"#,
        r#"{"messages":[{"role":"system","content":"a \"note\""},{"role":"user","content":"hi"}],"options":{"seed":1}}"#,
    );
    check("/api/generate", r#"{ "prompt":"hi"}"#, r#"{"system":"a \"note\"", "prompt":"hi"}"#);
    check(
        "/api/generate",
        r#"{"prompt":"hi","system":"Be brief."}"#,
        r#"{"prompt":"hi","system":"Be brief.\n\na \"note\""}"#,
    );
    check(
        "/v1/messages",
        r#"{"messages":[],"system":"Be brief.","max_tokens":9}"#,
        r#"{"messages":[],"system":"Be brief.\n\na \"note\"","max_tokens":9}"#,
    );
    check(
        "/v1/messages",
        r#"{"system":[{"type":"text","text":"t","cache_control":{"type":"ephemeral"}}],"messages":[]}"#,
        r#"{"system":[{"type":"text","text":"t","cache_control":{"type":"ephemeral"}},{"type":"text","text":"a \"note\""}],"messages":[]}"#,
    );
    check("/v1/messages", r#"{"messages":[]}"#, r#"{"system":"a \"note\"","messages":[]}"#);
    check(
        "/v1/responses",
        r#"{"input":"hi","instructions":null}"#,
        r#"{"input":"hi","instructions":"a \"note\""}"#,
    );
    check("/v1/responses", r#"{"input":"hi"}"#, r#"{"instructions":"a \"note\"","input":"hi"}"#);
    check(
        "/v1beta/models/m:generateContent",
        r#"{"contents":[],"system_instruction":{"parts":[{"text":"Be brief."}]}}"#,
        r#"{"contents":[],"system_instruction":{"parts":[{"text":"Be brief."},{"text":"a \"note\""}]}}"#,
    );
    check(
        "/v1beta/models/m:generateContent",
        r#"{"systemInstruction":{"role":"user","parts":{"text":"Be brief."}},"contents":[]}"#,
        r#"{"systemInstruction":{"role":"user","parts":[{"text":"Be brief."},{"text":"a \"note\""}]},"contents":[]}"#,
    );
    check(
        "/v1beta/models/m:generateContent",
        r#"{"contents":[]}"#,
        r#"{"systemInstruction":{"parts":[{"text":"a \"note\""}]},"contents":[]}"#,
    );
}

#[test]
fn a_format_without_operator_text_has_the_note_first() {
    let path = "/v1/completions";
    let check = |body: &str, expected: &str| assert_eq!(annotated(path, body).unwrap(), expected);
    check(r#"{"prompt":"Once","x":1.0}"#, r#"{"prompt":"a \"note\"\n\nOnce","x":1.0}"#);
    check(r#"{"prompt":["a", "b"]}"#, r#"{"prompt":["a \"note\"\n\na", "a \"note\"\n\nb"]}"#);
    for body in [r#"{"prompt":[1,2]}"#, r#"{"prompt":["a",[1]]}"#, "{}"] {
        assert_eq!(annotated(path, body).unwrap_err().code(), "annotate_failed", "{body}");
    }
    // No operator text that the format has.
    let list = r#"{"prompt":"hi","system":[{"text":"x"}]}"#;
    assert_eq!(annotated("/api/generate", list).unwrap_err().code(), "annotate_failed");
    // The template is the caller's own, and may have no place for operator text.
    let raw = r#"{"prompt":"hi","raw":true}"#;
    assert_eq!(annotated("/api/generate", raw).unwrap_err().code(), "annotate_failed");
    let template = r#"{"prompt":"hi","template":"{{ .Prompt }}"}"#;
    assert_eq!(annotated("/api/generate", template).unwrap_err().code(), "annotate_failed");
    assert_eq!(annotated("/api/chat", r#"{"model":"m"}"#).unwrap_err().code(), "annotate_failed");
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
    let edits =
        [edit(0, 0, "mail [EMAIL]"), edit(1, 1, "2"), edit(2, 0, "s"), edit(2, 1, "{}"), edit(3, 0, "")];
    let expected = body
        .replace("mail me@x.example", "mail [EMAIL]")
        .replace("\"two\"", "\"2\"")
        .replace("\"r\"", "\"s\"")
        .replace(r#""{\"a\": 1}""#, "\"{}\"")
        .replace("\"result\"", "\"\"");
    assert_eq!(rewritten(CHAT, body, &edits).unwrap(), expected);
}

/// Rewrites every part of a request on its own, checks that this and nothing else changes, and gives the texts of the parts
/// that can be rewritten.
#[track_caller]
fn each(path: &str, body: &str) -> Vec<String> {
    let target: Uri = path.parse().unwrap();
    let format = find(target.path()).unwrap();
    let conversation = format.decode(&target, body.as_bytes()).unwrap().conversation;
    let mut done = Vec::new();
    for (m, message) in conversation.messages.iter().enumerate() {
        for (p, part) in message.parts.iter().enumerate() {
            // What is read as JSON must stay JSON.
            for new in ["a new text", "{\"new\":true}"] {
                match rewritten(path, body, &[edit(m, p, new)]) {
                    Ok(changed) => {
                        let mut expected = conversation.clone();
                        assert!(put(&mut expected.messages[m].parts[p], new));
                        let found = format.decode(&target, changed.as_bytes()).unwrap().conversation;
                        assert!(found == expected, "{m}.{p}");
                        done.push(part.text().unwrap().to_owned());
                        break;
                    }
                    Err(error) => assert_eq!(error.code(), "rewrite_failed"),
                }
            }
        }
    }
    done
}

#[test]
fn every_part_of_its_own_can_be_rewritten_and_no_other() {
    let chat = json!({
        "tools": [{"type": "function", "function": {"name": "f", "description": "Does a thing."}}],
        "messages": [
            {"role": "user", "name": "a name with blanks", "content": "text"},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "http://x.example", "alt": "some words"}},
                {"type": "text", "text": "t", "note": "more words"},
            ]},
            {"role": "assistant", "content": null, "refusal": "no", "function_call": {"name": "f", "arguments": "x"}},
        ],
    });
    assert_eq!(each(CHAT, &chat.to_string()), ["text", "t", "no", "x"]);
    let messages = json!({
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": "text"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2VhbA=="},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "found"}]},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a page"}},
                {"type": "image", "source": {"type": "url", "url": "http://x.example"}},
            ]},
        ],
    });
    assert_eq!(
        each("/v1/messages", &messages.to_string()),
        ["s", "text", "hm", "{\"a\":1}", "found", "a page"]
    );
    let responses = json!({
        "instructions": "s",
        "input": [
            {"role": "user", "content": "text"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "found"},
        ],
    });
    assert_eq!(each("/v1/responses", &responses.to_string()), ["s", "text", "t", "{}", "found"]);
    assert_eq!(each("/v1/responses", r#"{"input":"hi"}"#), ["hi"]);
    assert_eq!(each("/v1/completions", r#"{"prompt":["a","b",[1]],"suffix":"c"}"#), ["a", "b", "c"]);
    let ollama = json!({"messages": [
        {"role": "user", "content": "text", "images": ["AAAA"]},
        {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_name": "f", "content": "found"},
    ]});
    let mut done = each("/api/chat", &ollama.to_string());
    done.sort();
    assert_eq!(done, ["found", "hm", "text", "{\"a\":1}"]);
    assert_eq!(each("/api/generate", r#"{"system":"s","prompt":"hi","suffix":"end"}"#), ["s", "hi", "end"]);
    let gemini = json!({
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "text"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {"role": "model", "parts": [{"thought": true, "text": "hm"}, {"functionCall": {"name": "f", "args": {"a": 1}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "found"}}}]},
        ],
    });
    assert_eq!(
        each("/v1beta/models/m:generateContent", &gemini.to_string()),
        ["s", "text", "hm", "{\"a\":1}", "{\"result\":\"found\"}"]
    );
}

#[test]
fn the_same_text_twice_is_told_apart() {
    let body = r#"{"messages":[{"role":"user","content":"text"},{"role":"user","content":[{"type":"text","text":"text"}]}],"system":"text"}"#;
    let new = rewritten("/v1/messages", body, &[edit(2, 0, "new")]).unwrap();
    assert_eq!(new, body.replace(r#""text":"text""#, r#""text":"new""#));
    let new = rewritten("/v1/messages", body, &[edit(0, 0, "new")]).unwrap();
    assert_eq!(new, body.replace(r#""system":"text""#, r#""system":"new""#));
}

#[test]
fn wrong_edits_are_rejected() {
    let body =
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}"#;
    let fails = |edits: &[Edit]| rewritten(CHAT, body, edits).unwrap_err().code() == "rewrite_failed";
    assert!(fails(&[edit(9, 0, "")]) && fails(&[edit(0, 9, "")]) && fails(&[edit(0, 1, "")]));
    assert!(fails(&[edit(0, 0, "a"), edit(0, 0, "b")]));
    assert_eq!(rewritten(CHAT, body, &[]).unwrap(), body);
}

#[test]
fn every_format_can_be_edited() {
    for (path, body) in samples() {
        assert_eq!(each(path, &body.to_string()), ["hi there"], "{path}");
        let new = annotated(path, &body.to_string()).unwrap();
        assert!(read(path, &new).join("\n").contains("a \"note\""), "{path}: {new}");
    }
}
