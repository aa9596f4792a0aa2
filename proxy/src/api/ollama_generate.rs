//! The Ollama generate API, which continues a prompt.
//!
//! A template of the caller's own is shown to the model, so it is read. Images, and a context in token ids, can't be.

use bytes::Bytes;
use forethought_core::conversation::{Message, Part, Role};
use http::Uri;
use serde_json::Value;

use super::{
    Envelope, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit::{self, member},
    fields,
    ollama_chat::{PARAMETERS, answer::Writer, images, ollama_written, request},
    splice::value,
    tail::ListTail,
    text::unread,
};
use crate::reply::Error;

/// The format.
pub(super) struct OllamaGenerate;

/// Top-level fields with a meaning here. Ollama's own parser folds case.
const TOP: &[&str] = &[
    "context", "format", "images", "model", "options", "prompt", "raw", "stream", "suffix", "system",
    "template",
];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] = &["context", "images", "keep_alive", "model", "options", "prompt", "suffix", "system"];

impl WireFormat for OllamaGenerate {
    fn name(&self) -> &'static str {
        "ollama-generate"
    }

    fn voice(&self) -> Voice {
        Voice::ollama("prompt")
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        let top = fields::top(body, TOP)?;
        let mut messages: Vec<Message> = fields::settings(&top, &[READ], &["context"]).into_iter().collect();
        let settings = !messages.is_empty();
        let said = |key: &str| match top.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(Part::Text { text: text.clone() }),
            Some(_) => Some(unread(key)),
        };
        messages.extend(said("system").map(|part| Message { role: Role::System, parts: vec![part] }));
        let parts: Vec<Part> =
            said("prompt").into_iter().chain(said("suffix")).chain(images(top.get("images"))).collect();
        if !parts.is_empty() {
            messages.push(Message { role: Role::User, parts });
        }
        request(&top, messages, settings)
    }

    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        // A template of the caller's own may have no place for operator text.
        let asks = |key: &str, no: &[&[u8]]| {
            let span = value(body, 0).and_then(|top| member(body, &top, key));
            span.is_some_and(|span| !no.contains(&&body[span]))
        };
        if asks("raw", &[b"false", b"null"]) || asks("template", &[b"\"\"", b"null"]) {
            return Err(Error::CantAnnotate);
        }
        edit::note_at(body, note, &["system"], &Value::from(note), &Value::from(note))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(Writer::generate(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        ollama_written(value)
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        let choices = envelope.choices;
        Box::new(ListTail::new(self.answer(envelope), choices, "none"))
    }

    fn keepalive(&self) -> &'static [u8] {
        b""
    }

    fn parameters(&self) -> &'static Parameters {
        &PARAMETERS
    }
}

#[cfg(test)]
mod tests;
