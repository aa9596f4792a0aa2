//! Wire formats: each decodes requests into conversations and writes answers of our own.
//!
//! Provider JSON stays in this module. [`WireFormat`] is all that the rest of the proxy knows of a format, and [`find`]
//! says which one a path belongs to.

pub(crate) mod answer;
mod anthropic_messages;
pub(crate) mod edit;
mod fields;
mod framing;
mod gemini;
pub(crate) mod json;
mod ollama_chat;
mod ollama_generate;
pub(crate) mod openai_chat;
mod openai_completions;
mod openai_responses;
mod paths;
pub(crate) mod refusal;
pub(crate) mod splice;
mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod voice;
mod written;

use bytes::Bytes;
use forethought_core::conversation::Conversation;
use http::Uri;
use serde::Deserialize;
use serde_json::Value;

use self::answer::{Answer, Envelope};
pub(crate) use self::{
    framing::{Framer, Framing},
    paths::{find, resembles},
    tail::Tail,
    voice::{Key, Voice},
    written::{Channel, Piece},
};
use crate::reply::Error;

/// What the guard and our own answers need of a request.
#[derive(Debug)]
pub(crate) struct Request {
    /// All that can be read.
    pub(crate) conversation: Conversation,
    /// Whether the first message holds the texts from outside the messages, such as the tools' descriptions.
    pub(crate) settings: bool,
    /// The model asked for; empty where none is named.
    pub(crate) model: String,
    /// Whether the answer is to be streamed.
    pub(crate) stream: bool,
    /// How a streamed answer is cut into pieces.
    pub(crate) framing: Framing,
    /// Whether a stream is to end with a usage chunk, where that is the caller's choice.
    pub(crate) include_usage: bool,
    /// How many answers are asked for.
    pub(crate) choices: usize,
}

/// A wire format.
pub(crate) trait WireFormat: Sync {
    /// The word for it in audit records.
    fn name(&self) -> &'static str;

    /// How errors are told to its callers.
    fn voice(&self) -> Voice;

    /// Reads a request. Nothing that a model might be shown is skipped: what can't be read becomes an unread part.
    fn decode(&self, target: &Uri, body: &[u8]) -> Result<Request, Error>;

    /// The request with a note at the operator's instructions, and every other byte as the caller sent it; see
    /// [`edit::annotate`], which checks it.
    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error>;

    /// The model that is asked for, read without the rest.
    fn model(&self, _target: &Uri, body: &[u8]) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Asked {
            model: Option<String>,
        }
        // A key that stands twice is an error here too.
        let asked: Asked = serde_json::from_slice(body).map_err(Error::BadJson)?;
        Ok(asked.model)
    }

    /// Writes an answer of our own.
    fn answer(&self, envelope: Envelope) -> Box<dyn Answer>;

    /// What a model wrote in one value of a streamed answer, or in a whole one.
    fn written(&self, value: &Value) -> Vec<Piece>;

    /// Follows a streamed answer, so that it can be ended with a refusal that looks as `envelope` says.
    fn tail(&self, envelope: Envelope) -> Box<dyn Tail>;

    /// What keeps a stream alive while nothing else may be sent.
    fn keepalive(&self) -> &'static [u8] {
        b": still reading\n\n"
    }

    /// Where the embedded model finds what it needs to know.
    fn parameters(&self) -> &'static Parameters;
}

/// Where a format's requests say how an answer is to be written, as JSON pointers.
pub(crate) struct Parameters {
    /// Most tokens to write; the first that is set counts.
    pub(crate) max_tokens: &'static [&'static str],
    pub(crate) temperature: &'static str,
    pub(crate) top_p: &'static str,
    pub(crate) seed: &'static str,
    /// A string or several.
    pub(crate) stop: &'static str,
    /// What the embedded model can't do: where it is asked for, the values (in JSON) that don't ask for it, and what to
    /// say to all others.
    pub(crate) off: &'static [(&'static str, &'static [&'static str], &'static str)],
}
