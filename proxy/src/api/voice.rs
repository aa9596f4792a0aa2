//! How errors are told: each API has a shape of its own, and its clients understand no other.

use http::{StatusCode, request};
use serde_json::{Value, json};

use super::find;
use crate::reply::ErrorBody;

/// The shape of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    OpenAi,
    Anthropic,
    Ollama,
    Gemini,
}

/// How callers show their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// In the header `authorization`, after `Bearer`.
    Bearer,
    /// In the header `x-api-key`.
    Anthropic,
    /// In the header `x-goog-api-key`.
    Google,
}

/// What the callers of an API expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Voice {
    shape: Shape,
    /// The request's field that holds what the guard reads.
    pub(crate) input: &'static str,
}

impl Voice {
    pub(crate) const fn openai(input: &'static str) -> Self {
        Self { shape: Shape::OpenAi, input }
    }

    pub(crate) const ANTHROPIC: Self = Self { shape: Shape::Anthropic, input: "messages" };

    pub(crate) const fn ollama(input: &'static str) -> Self {
        Self { shape: Shape::Ollama, input }
    }

    pub(crate) const GEMINI: Self = Self { shape: Shape::Gemini, input: "contents" };

    /// The voice for a request: that of its path's format, else of the API that seems to be meant.
    pub(crate) fn of(head: &request::Parts) -> Self {
        let path = head.uri.path();
        match find(path) {
            Some(format) => format.voice(),
            None if path.starts_with("/api/") => Self::ollama("messages"),
            None if path.starts_with("/v1/messages/") || head.headers.contains_key("anthropic-version") => {
                Self::ANTHROPIC
            }
            None if path.starts_with("/v1beta/") || head.headers.contains_key("x-goog-api-key") => {
                Self::GEMINI
            }
            None => Self::openai("messages"),
        }
    }

    /// How callers of the API show their key.
    pub(crate) fn key(self) -> Key {
        match self.shape {
            Shape::OpenAi | Shape::Ollama => Key::Bearer,
            Shape::Anthropic => Key::Anthropic,
            Shape::Gemini => Key::Google,
        }
    }

    /// The error in its shape.
    pub(crate) fn error(self, error: &ErrorBody) -> Value {
        let ErrorBody { status, message, kind, param, code } = error;
        match self.shape {
            Shape::OpenAi => {
                json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
            }
            Shape::Anthropic => {
                json!({"type": "error", "error": {"type": anthropic(*status), "message": message, "code": code}})
            }
            Shape::Ollama => json!({"error": message}),
            Shape::Gemini => {
                json!({"error": {"code": status.as_u16(), "message": message, "status": gemini(*status)}})
            }
        }
    }
}

fn anthropic(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn gemini(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        408 | 504 => "DEADLINE_EXCEEDED",
        429 => "RESOURCE_EXHAUSTED",
        502 | 503 => "UNAVAILABLE",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn errors_in_the_shape_of_the_api_that_is_meant() {
        fn check(path: &str, header: &'static str, status: u16, expected: Value) {
            let (head, ()) = Request::get(path).header(header, "x").body(()).unwrap().into_parts();
            let error = ErrorBody {
                status: StatusCode::from_u16(status).unwrap(),
                message: "no".to_owned(),
                kind: "k",
                param: None,
                code: "c",
            };
            assert_eq!(Voice::of(&head).error(&error), expected, "{path} {status}");
        }
        let openai = json!({"error": {"message": "no", "type": "k", "param": null, "code": "c"}});
        let anthropic =
            |kind| json!({"type": "error", "error": {"type": kind, "message": "no", "code": "c"}});
        let gemini = |code, status| json!({"error": {"code": code, "message": "no", "status": status}});
        check("/v1/chat/completions", "accept", 403, openai.clone());
        check("/v1/responses", "accept", 403, openai.clone());
        check("/v1/batches", "accept", 403, openai.clone());
        check("/", "accept", 403, openai);
        check("/v1/messages", "accept", 403, anthropic("permission_error"));
        check("/v1/messages/batches", "accept", 400, anthropic("invalid_request_error"));
        check("/v1/models/x", "anthropic-version", 404, anthropic("not_found_error"));
        check("/v1/messages", "accept", 503, anthropic("overloaded_error"));
        check("/v1/messages", "accept", 502, anthropic("api_error"));
        check("/v1/messages", "accept", 413, anthropic("request_too_large"));
        check("/api/chat", "accept", 503, json!({"error": "no"}));
        check("/api/pull", "accept", 403, json!({"error": "no"}));
        check("/v1beta/models/m:generateContent", "accept", 403, gemini(403, "PERMISSION_DENIED"));
        check("/v1beta/cachedContents", "accept", 403, gemini(403, "PERMISSION_DENIED"));
        check("/upload/v1beta/files", "x-goog-api-key", 503, gemini(503, "UNAVAILABLE"));
        check("/v1/models/m:generateContent", "accept", 415, gemini(415, "INVALID_ARGUMENT"));
    }
}
