//! The OpenAI completions API, which continues text.
//!
//! Every prompt is read, and so is the text that is to follow the gap (`suffix`). Prompts in token ids can't be read.

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value, json};

use super::{
    Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::{Answer, End, Usage},
    edit::member,
    fields,
    openai_chat::answer::{finish_reason, usage},
    splice::{items, quoted, replaced, string, value},
    tail::ListTail,
    text::unread,
    written,
};
use crate::reply::Error;

/// The format.
pub(super) struct OpenAiCompletions;

/// Top-level fields with a meaning here.
const TOP: &[&str] = &["model", "n", "prompt", "stream", "stream_options", "suffix"];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] =
    &["logit_bias", "metadata", "model", "prompt", "stop", "stream_options", "suffix", "user"];
/// As many as OpenAI takes; each may be refused on its own.
const MOST_PROMPTS: usize = 2048;

impl WireFormat for OpenAiCompletions {
    fn name(&self) -> &'static str {
        "openai-completions"
    }

    fn voice(&self) -> Voice {
        Voice::openai("prompt")
    }

    fn decode(&self, _: &Uri, body: &[u8]) -> Result<Request, Error> {
        let top = fields::top(body, TOP)?;
        let prompts = prompts(&top)?;
        let stream = fields::flag(top.get("stream"), "stream", false)?;
        let choices = prompts.len().max(1) * fields::choices(top.get("n"), "n")?;
        if choices > MOST_PROMPTS {
            return Err(Error::bad_shape("prompt", "at most 2048 prompts, times `n`"));
        }
        let mut messages: Vec<Message> = fields::settings(&top, &[READ], &[]).into_iter().collect();
        let settings = !messages.is_empty();
        let own = |part| Message { role: Role::User, parts: vec![part] };
        messages.extend(prompts.into_iter().map(own));
        match top.get("suffix") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => messages.push(Message::text(Role::User, text)),
            Some(_) => messages.push(own(unread("suffix"))),
        }
        Ok(Request {
            conversation: Conversation { messages },
            settings,
            model: fields::string(&top, "model"),
            stream,
            framing: Framing::EventsDone,
            include_usage: top.get("stream_options").is_some_and(|options| options["include_usage"] == true),
            choices,
        })
    }

    /// There is no operator text: the note stands before every prompt.
    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        let prompts =
            value(body, 0).and_then(|top| member(body, &top, "prompt")).ok_or(Error::CantAnnotate)?;
        let prompts = items(body, &prompts).unwrap_or_else(|| vec![prompts]);
        let noted = |span| {
            let text = string(body, &span)?;
            Some((span, quoted(&format!("{note}\n\n{text}"))))
        };
        let changes: Option<Vec<_>> = prompts.into_iter().map(noted).collect();
        Ok(replaced(body, changes.filter(|changes| !changes.is_empty()).ok_or(Error::CantAnnotate)?))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(Writer(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        written::choices(&value["choices"], |choice| vec![&choice["text"]])
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        let choices = envelope.choices;
        Box::new(ListTail::new(self.answer(envelope), choices, "choices"))
    }

    fn parameters(&self) -> &'static Parameters {
        &Parameters {
            max_tokens: &["/max_tokens"],
            temperature: "/temperature",
            top_p: "/top_p",
            seed: "/seed",
            stop: "/stop",
            off: &[
                ("/n", &["1"], "the embedded model gives one answer"),
                ("/best_of", &["1"], "the embedded model gives one answer"),
                ("/echo", &["false"], "the embedded model does not repeat the prompt"),
                ("/suffix", &["\"\""], "the embedded model writes at the end only"),
                ("/logprobs", &[], "the embedded model gives no log-probabilities"),
                ("/logit_bias", &["{}"], "the embedded model takes no logit bias"),
                ("/frequency_penalty", &["0", "0.0"], "the embedded model takes no penalties"),
                ("/presence_penalty", &["0", "0.0"], "the embedded model takes no penalties"),
            ],
        }
    }
}

/// One part for each prompt. Without any, the model starts from nothing.
fn prompts(top: &Map<String, Value>) -> Result<Vec<Part>, Error> {
    let text = |text: &String| Part::Text { text: text.clone() };
    match top.get("prompt") {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::String(prompt)) => Ok(vec![text(prompt)]),
        // One prompt in token ids.
        Some(Value::Array(ids)) if ids.iter().all(Value::is_number) => Ok(vec![unread("prompt_tokens")]),
        Some(Value::Array(prompts)) => {
            let prompt = |prompt: &Value| match prompt {
                Value::String(prompt) => text(prompt),
                Value::Array(_) => unread("prompt_tokens"),
                _ => unread("prompt"),
            };
            Ok(prompts.iter().map(prompt).collect())
        }
        Some(_) => Err(Error::bad_shape("prompt", "a string or an array")),
    }
}

struct Writer(Envelope);

impl Writer {
    fn piece(&self, choices: Value) -> Value {
        let mut piece = json!({
            "id": format!("cmpl-{}", self.0.id),
            "object": "text_completion",
            "created": self.0.created_s(),
            "model": self.0.model,
            "choices": choices,
        });
        if self.0.include_usage {
            piece["usage"] = Value::Null;
        }
        piece
    }
}

fn choice(index: usize, text: &str, finish_reason: Option<&str>) -> Value {
    json!({"text": text, "index": index, "logprobs": null, "finish_reason": finish_reason})
}

impl Answer for Writer {
    fn whole(&mut self, text: &str, end: End, counts: Usage) -> Value {
        let finish = finish_reason(&self.0, end);
        let choices = (0..self.0.choices).map(|index| choice(index, text, Some(finish))).collect();
        let mut body = self.piece(Value::Array(choices));
        body["usage"] = usage(counts);
        self.0.expose(&mut body);
        body
    }

    fn open(&mut self, _: usize) -> Vec<Value> {
        vec![]
    }

    fn text(&mut self, index: usize, text: &str) -> Vec<Value> {
        vec![self.piece(json!([choice(index, text, None)]))]
    }

    fn close(&mut self, index: usize, end: End) -> Vec<Value> {
        let mut last = self.piece(json!([choice(index, "", Some(finish_reason(&self.0, end)))]));
        self.0.expose(&mut last);
        vec![last]
    }

    fn done(&mut self, _: End, counts: Usage) -> Vec<Value> {
        if !self.0.include_usage {
            return vec![];
        }
        let mut last = self.piece(json!([]));
        last["usage"] = usage(counts);
        vec![last]
    }
}

#[cfg(test)]
mod tests;
