//! The Ollama chat API.

pub(super) mod answer;

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value};

use super::{
    Channel, Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit, fields, json,
    tail::ListTail,
    text::{plain, push, rest, said, text_or_prose, unread},
    written,
};
use crate::reply::Error;

/// The format.
pub(super) struct OllamaChat;

/// Top-level fields with a meaning here. Ollama's own parser folds case.
const TOP: &[&str] = &["format", "messages", "model", "options", "stream", "tools"];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] = &["keep_alive", "messages", "model", "options"];
const MESSAGE: &[&str] = &["content", "images", "role", "thinking", "tool_calls", "tool_name"];
const FUNCTION: &[&str] = &["name", "arguments"];
/// What the embedded model can't do, in both of Ollama's formats.
pub(super) const PARAMETERS: Parameters = Parameters {
    max_tokens: &["/options/num_predict"],
    temperature: "/options/temperature",
    top_p: "/options/top_p",
    seed: "/options/seed",
    stop: "/options/stop",
    off: &[
        ("/tools", &["[]"], "the embedded model can't call tools"),
        ("/format", &["\"\""], "the embedded model writes plain text only"),
        ("/think", &["false"], "the embedded model does not think"),
        ("/logprobs", &["false"], "the embedded model gives no log-probabilities"),
        ("/suffix", &["\"\""], "the embedded model writes at the end only"),
        ("/template", &["\"\""], "the embedded model has a template of its own"),
        ("/raw", &["false"], "the embedded model has a template of its own"),
    ],
};

impl WireFormat for OllamaChat {
    fn name(&self) -> &'static str {
        "ollama-chat"
    }

    fn voice(&self) -> Voice {
        Voice::ollama("messages")
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        let top = fields::top(body, TOP)?;
        let turns = match top.get("messages") {
            // Loads the model, and says nothing.
            None | Some(Value::Null) => &[],
            Some(_) => fields::array(&top, "messages")?,
        };
        let mut messages: Vec<Message> = fields::settings(&top, &[READ], &[]).into_iter().collect();
        let settings = !messages.is_empty();
        for (index, value) in turns.iter().enumerate() {
            let at = format!("messages[{index}]");
            messages.extend(turn(fields::object(value, &at)?, &at)?);
        }
        request(&top, messages, settings)
    }

    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        edit::note_in_messages(body, note, &Value::from(note))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(answer::Writer::chat(envelope))
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

/// A request of either format; both stream where nothing else is said.
pub(super) fn request(
    top: &Map<String, Value>,
    messages: Vec<Message>,
    settings: bool,
) -> Result<Request, Error> {
    Ok(Request {
        conversation: Conversation { messages },
        settings,
        model: fields::string(top, "model"),
        stream: fields::flag(top.get("stream"), "stream", true)?,
        framing: Framing::Lines,
        include_usage: true,
        choices: 1,
    })
}

/// What a model wrote in a line of either format.
pub(super) fn ollama_written(value: &Value) -> Vec<Piece> {
    let told = ["message", "response", "thinking"].into_iter().filter_map(|key| Some((key, value.get(key)?)));
    told.flat_map(|(key, value)| {
        let channel = if key == "thinking" { Channel::Reasoning } else { Channel::Text };
        written::texts(value, 0, channel, false)
    })
    .collect()
}

/// One unread part for each image.
pub(super) fn images(value: Option<&Value>) -> impl Iterator<Item = Part> {
    let count = match value {
        None | Some(Value::Null) => 0,
        Some(Value::Array(images)) => images.len(),
        Some(_) => 1,
    };
    std::iter::repeat_with(|| unread("images")).take(count)
}

fn turn(fields: &Map<String, Value>, at: &str) -> Result<Vec<Message>, Error> {
    json::known_case(fields, MESSAGE, at)?;
    let mut turn = Vec::new();
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        other => {
            push(&mut turn, Role::User, unread(&format!("role_{}", other.unwrap_or("missing"))));
            Role::User
        }
    };
    let mut parts = Vec::new();
    if let Some(thinking) = fields.get("thinking") {
        text_or_prose(thinking, &mut parts, |text| Part::Reasoning { text });
    }
    match fields.get("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(said(role, text)),
        Some(_) => parts.push(unread("content")),
    }
    parts.extend(images(fields.get("images")));
    match fields.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) => {
            for (index, call) in calls.iter().enumerate() {
                parts.extend(tool_call(call, &format!("{at}.tool_calls[{index}]"))?);
            }
        }
        Some(_) => parts.push(unread("tool_calls")),
    }
    parts.extend(rest(fields, &["content", "images", "role", "thinking", "tool_calls"]));
    parts.into_iter().for_each(|part| push(&mut turn, role, part));
    Ok(turn)
}

fn tool_call(value: &Value, at: &str) -> Result<Vec<Part>, Error> {
    let (Some(call), Some(Value::Object(function))) = (value.as_object(), value.get("function")) else {
        return Ok(vec![unread("tool_call")]);
    };
    json::known_case(call, &["function"], at)?;
    json::known_case(function, FUNCTION, &format!("{at}.function"))?;
    let text = |key: &str| function.get(key).map(plain).unwrap_or_default();
    let made = Part::ToolCall { name: text("name"), arguments: text("arguments") };
    let others = [rest(call, &["function"]), rest(function, FUNCTION)];
    Ok(std::iter::once(made).chain(others.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests;
