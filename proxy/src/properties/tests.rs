use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::api::tests::samples;

/// A JSON value of any shape, with words that formats know among its keys and strings.
fn anything() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "role",
        "user",
        "assistant",
        "tool",
        "type",
        "text",
        "content",
        "image_url",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "parts",
        "input",
        "output",
        "message",
        "functionCall",
        "thinking",
        "tool_result",
        "tool_use",
        "document",
        "source",
        "data",
        "refusal",
        "system",
        "n",
        "stream",
        "a few words",
        "",
        "\u{17f}ystem",
        "Content",
    ];
    let word = prop_oneof![select(WORDS).prop_map(str::to_owned), ".{0,12}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((word.clone(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A path, and a request to it of which one field is anything, or that has one more.
fn request() -> impl Strategy<Value = (&'static str, Value)> {
    const KNOWN: &[&str] = &[
        "messages",
        "prompt",
        "input",
        "contents",
        "system",
        "systemInstruction",
        "instructions",
        "tools",
        "n",
        "stream",
        "suffix",
        "images",
        "generationConfig",
        "stream_options",
        "context",
        "more",
    ];
    (0..samples().len(), select(KNOWN), anything(), any::<bool>()).prop_map(|(index, key, value, inside)| {
        let (path, mut body) = samples()[index].clone();
        let value =
            if inside { json!([{"role": "user", "content": value.clone(), "parts": value}]) } else { value };
        body[key] = value;
        (path, body)
    })
}

/// Puts `text` in place of the string at this position, if there is one; counts down.
fn mark(value: &mut Value, left: &mut usize, text: &str) -> bool {
    match value {
        Value::String(old) if *left == 0 => {
            text.clone_into(old);
            true
        }
        Value::String(_) => {
            *left -= 1;
            false
        }
        Value::Array(items) => items.iter_mut().any(|item| mark(item, left, text)),
        Value::Object(fields) => fields.values_mut().any(|value| mark(value, left, text)),
        _ => false,
    }
}

/// Fields whose contents no model is shown, or that can't hold a request.
const NOT_SHOWN: [&str; 6] = ["type", "role", "n", "stream", "signature", "id"];

fn is_shown(body: &Value) -> bool {
    /// Whether the marked text stands under a key that is not shown.
    fn hidden(value: &Value, key: &str) -> bool {
        match value {
            Value::String(text) => text == "the marked words" && NOT_SHOWN.contains(&key),
            Value::Array(items) => items.iter().any(|item| hidden(item, key)),
            Value::Object(fields) => fields.iter().any(|(key, value)| hidden(value, key)),
            _ => false,
        }
    }
    !hidden(body, "")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn requests_of_any_shape_are_read_or_rejected((path, body) in request()) {
        decode(path, body.to_string().as_bytes());
    }

    #[test]
    fn requests_that_break_off_are_rejected((path, body) in request(), share in 0.0..1.0) {
        let body = body.to_string();
        let end = (body.len() as f64 * share) as usize;
        prop_assert_eq!(decode(path, &body.as_bytes()[..end]), None);
    }

    /// Whatever is said anywhere in a request is read, or the request is rejected, or something is said to be unread.
    #[test]
    fn nothing_is_passed_over((path, mut body) in request(), at in 0usize..40) {
        let mut left = at;
        if mark(&mut body, &mut left, "the marked words") && is_shown(&body) && !is_about(&body) {
            let text = body.to_string();
            prop_assert!(is_read(path, text.as_bytes(), "the marked words") != Some(false), "{} {}", path, text);
        }
    }

    #[test]
    fn edits_change_what_they_name((path, body) in request(), message in 0usize..4, part in 0usize..4) {
        edit(path, body.to_string().as_bytes(), message, part);
    }

    #[test]
    fn frames_do_not_depend_on_pieces(
        kind in 0u8..3,
        text in vec(select(&["\r", "\n", "\r\n", "\n\n", "data: ", "data:{}", ":", "{\"a\":1}", "é", "x", "[DONE]"][..]), 0..40),
        ends in vec(0usize..200, 0..20),
    ) {
        let mut ends = ends;
        ends.sort_unstable();
        let text = text.concat();
        frames(kind, text.as_bytes(), &ends);
        frames(kind, text.as_bytes(), &(0..text.len()).collect::<Vec<_>>());
    }

    #[test]
    fn answers_of_any_shape_are_followed(path in select(&PATHS[..]), choices in 1usize..4, values in vec(anything(), 0..6)) {
        let lines: String = values.iter().map(|value| format!("data: {value}\n\n")).collect();
        answer(path, choices, lines.as_bytes());
        let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
        answer(path, choices, lines.as_bytes());
    }

    #[test]
    fn windows_hold_what_was_not_read(
        hold in 0usize..30,
        texts in vec("[ab]{0,6}", 0..12),
        bad in "[ab]{0,5}",
    ) {
        let told: Vec<Told> = texts.into_iter().map(|text| (0, 0, false, text)).collect();
        window(hold, &told, &bad);
    }

    #[test]
    fn windows_lose_nothing(
        hold in 0usize..30,
        told in vec((0u8..3, 0u8..3, any::<bool>(), "[ab]{0,6}"), 0..12),
        bad in "[ab]{0,5}",
    ) {
        window(hold, &told, &bad);
    }
}

/// What one field says of how others are to be taken hides nothing by itself, but moves text to where no model sees it:
/// the model's name, and settings that are not prompts.
fn is_about(body: &Value) -> bool {
    ["model", "stream_options", "generationConfig", "metadata"]
        .iter()
        .any(|key| body[*key].to_string().contains("the marked words"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn configurations_are_right_or_explained(
        keys in vec(
            (
                select(&["listen", "upstream.url", "guard.mode", "policy.threshold", "policy.hazards", "paths.pass",
                    "limits.body_bytes", "response_guard.hold_bytes", "refusal.status", "audit.path", "policy.plugins",
                    "upstreams.x.url", "log.level", "unknown.key"][..]),
                select(&["1", "-1", "0.5", "\"\"", "\"embedded\"", "[]", "{}", "true", "1e400", "nan", "[1, \"x\"]",
                    "\"GET /v1/x\"", "99999999999999999999", "{ a = 1 }", "\"\u{0}\""][..]),
            ),
            0..8,
        ),
        junk in "[\\[\\]=\"a-z\n.#]{0,12}",
    ) {
        let text: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("forethought.toml");
        config(&file, text.as_bytes());
        config(&file, format!("{text}{junk}").as_bytes());
    }
}
