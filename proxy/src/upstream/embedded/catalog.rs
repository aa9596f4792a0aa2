//! The embedded model as the APIs' lists of models show it.

use http::{Method, request};
use serde_json::{Value, json};

use super::NAME;
use crate::reply::Error;

/// What is known of the model at this path.
pub(super) fn find(head: &request::Parts) -> Result<Value, Error> {
    let path = head.uri.path();
    let anthropic = head.headers.contains_key("anthropic-version");
    let card = || if anthropic { anthropic_card() } else { openai_card() };
    match (&head.method, path) {
        (&Method::GET, "/v1/models") if anthropic => {
            Ok(json!({"data": [card()], "first_id": NAME, "last_id": NAME, "has_more": false}))
        }
        (&Method::GET, "/v1/models") => Ok(json!({"object": "list", "data": [card()]})),
        (&Method::GET, "/v1/models/embedded") => Ok(card()),
        (&Method::GET, "/v1beta/models") => Ok(json!({"models": [gemini_card()]})),
        (&Method::GET, "/v1beta/models/embedded") => Ok(gemini_card()),
        (&Method::GET, path) if path.starts_with("/v1/models/") || path.starts_with("/v1beta/models/") => {
            Err(Error::NoSuchModel)
        }
        (&Method::GET, "/api/tags") => Ok(json!({"models": [ollama_card()]})),
        (&Method::GET, "/api/version") => Ok(json!({"version": env!("CARGO_PKG_VERSION")})),
        _ => Err(Error::NotFound { path: path.to_owned() }),
    }
}

fn openai_card() -> Value {
    json!({"id": NAME, "object": "model", "created": 0, "owned_by": "forethought"})
}

fn anthropic_card() -> Value {
    json!({"id": NAME, "type": "model", "display_name": NAME, "created_at": "1970-01-01T00:00:00Z"})
}

fn gemini_card() -> Value {
    json!({
        "name": format!("models/{NAME}"),
        "displayName": NAME,
        "supportedGenerationMethods": ["generateContent"],
    })
}

fn ollama_card() -> Value {
    json!({"name": NAME, "model": NAME, "modified_at": "1970-01-01T00:00:00Z", "size": 0, "digest": ""})
}
