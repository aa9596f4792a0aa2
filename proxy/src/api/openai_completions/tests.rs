//! What is read of requests, shape by shape.

use serde_json::json;

use crate::api::tests::{decoded, reads, rejects};

const PATH: &str = "/v1/completions";

#[test]
fn prompts_of_every_shape_are_read() {
    fn check(prompt: serde_json::Value, expected: &[&str], choices: usize) {
        let body = json!({"prompt": prompt, "n": 2});
        reads(PATH, &body, expected);
        assert_eq!(decoded(PATH, &body).unwrap().choices, choices, "{body}");
    }
    check(json!("hi"), &["User: hi"], 2);
    check(json!(["a", "b"]), &["User: a", "User: b"], 4);
    check(json!([1, 2]), &["User unread: prompt_tokens"], 2);
    check(
        json!([[1, 2], "b", {"x": 1}]),
        &["User unread: prompt_tokens", "User: b", "User unread: prompt"],
        6,
    );
    check(json!(["a", 1]), &["User: a", "User unread: prompt"], 4);
    check(json!(null), &[], 2);
    reads(PATH, &json!({"prompt": "a", "suffix": "z"}), &["User: a", "User: z"]);
    reads(PATH, &json!({"prompt": "a", "suffix": 5}), &["User: a", "User unread: suffix"]);
}

#[test]
fn bad_shapes_are_named() {
    rejects(PATH, &json!({"prompt": {"secret": 1}}), "`prompt` must be");
    rejects(PATH, &json!({"prompt": vec!["secret"; 1025], "n": 2}), "at most 2048");
    rejects(PATH, &json!({"prompt": "secret", "n": 129}), "`n` must be");
    rejects(PATH, &json!({"prompt": "secret", "stream": 1}), "`stream` must be");
}
