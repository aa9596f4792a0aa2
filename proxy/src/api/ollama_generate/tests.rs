//! What is read of requests, shape by shape.

use serde_json::json;

use crate::api::tests::{decoded, reads};

const PATH: &str = "/api/generate";

#[test]
fn prompts_of_every_shape_are_read() {
    reads(
        PATH,
        &json!({"system": "be kind", "prompt": "hi", "suffix": "bye", "images": ["AAAA", "AAAA"], "context": [1, 2],
            "template": "{{ .Prompt }} and be rude", "options": {"seed": 1}, "keep_alive": "5 minutes"}),
        &[
            "System: {{ .Prompt }} and be rude",
            "System unread: context",
            "System: be kind",
            "User: hi",
            "User: bye",
            "User unread: images",
            "User unread: images",
        ],
    );
    reads(PATH, &json!({"prompt": ["a b"], "system": 5}), &["System unread: system", "User unread: prompt"]);
    reads(PATH, &json!({"model": "m", "context": []}), &[]);
}

#[test]
fn answers_are_streamed_unless_said_otherwise() {
    assert!(decoded(PATH, &json!({"prompt": "hi"})).unwrap().stream);
    assert!(decoded(PATH, &json!({"prompt": "hi", "stream": null})).unwrap().stream);
    assert!(!decoded(PATH, &json!({"prompt": "hi", "stream": false})).unwrap().stream);
}
