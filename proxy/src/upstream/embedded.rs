//! A small model in process, behind the OpenAI chat API.
//!
//! What it can't do (several answers, tools, images, response formats, log-probabilities, penalties) is answered with an
//! error that names the parameter: nothing that shapes an answer is silently ignored.

mod request;

use std::sync::Arc;

use async_stream::stream;
use bytes::Bytes;
use forethought_core::generate::{ChatEvent, ChatModel, ChatStream, Finish, GenerateError};
use futures_util::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Sent;
use crate::{
    Body,
    api::openai_chat::answer::{Answer, DONE, Usage, event},
    config::EmbeddedConfig,
    reply::{self, Error},
    server::Cutoff,
};

/// The model name that requests use.
const NAME: &str = "embedded";

pub(super) struct Embedded {
    model: Arc<dyn ChatModel>,
    config: EmbeddedConfig,
}

impl Embedded {
    pub(super) fn new(model: Arc<dyn ChatModel>, config: EmbeddedConfig) -> Self {
        Self { model, config }
    }

    pub(super) async fn send(&self, request: Request<Sent>, cutoff: Cutoff) -> Result<Response<Body>, Error> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::POST, "/v1/chat/completions") => {
                let body = match request.into_body() {
                    Sent::Read(bytes) => bytes,
                    Sent::Unread(body) => body.collect().await.map_err(|_| Error::BodyBroken)?.to_bytes(),
                };
                self.chat(&body, cutoff).await
            }
            (&Method::GET, "/v1/models") => {
                Ok(reply::json(StatusCode::OK, &json!({"object": "list", "data": [model_card()]})))
            }
            (&Method::GET, "/v1/models/embedded") => Ok(reply::json(StatusCode::OK, &model_card())),
            (&Method::GET, path) if path.starts_with("/v1/models/") => Err(Error::NoSuchModel),
            _ => Err(Error::NotFound { path: path.to_owned() }),
        }
    }

    async fn chat(&self, body: &[u8], cutoff: Cutoff) -> Result<Response<Body>, Error> {
        let wanted = request::read(body, &self.config)?;
        let answer = Answer::new(Uuid::now_v7(), NAME);
        let mut running = self.model.chat(wanted.chat);
        // The first event decides on the status, so that an overload or a bad template is no broken stream.
        let first = next(&mut running).await;
        if let ChatEvent::Failed(error) = first {
            return Err(Error::Generate(error));
        }
        if wanted.stream {
            let events = streamed(answer, wanted.include_usage, first, running, cutoff);
            Ok(reply::events(StreamBody::new(events.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()))
        } else {
            whole(&answer, first, running).await
        }
    }
}

/// The model's next event; a model that has gone away has failed.
async fn next(running: &mut ChatStream) -> ChatEvent {
    running.next().await.unwrap_or(ChatEvent::Failed(GenerateError::Stopped))
}

/// The answer in one piece, once it is written.
async fn whole(answer: &Answer, first: ChatEvent, mut running: ChatStream) -> Result<Response<Body>, Error> {
    let mut text = String::new();
    let mut happened = first;
    loop {
        match happened {
            ChatEvent::Text(more) => text.push_str(&more),
            ChatEvent::Done { finish, prompt_tokens: prompt, completion_tokens: completion } => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                let body =
                    answer.completion(vec![message], finish_reason(finish), Usage { prompt, completion });
                return Ok(reply::json(StatusCode::OK, &body));
            }
            ChatEvent::Failed(error) => return Err(Error::Generate(error)),
        }
        happened = next(&mut running).await;
    }
}

/// The answer as server-sent events while it is written.
fn streamed(
    answer: Answer,
    include_usage: bool,
    first: ChatEvent,
    mut running: ChatStream,
    mut cutoff: Cutoff,
) -> impl Stream<Item = Bytes> {
    let chunk = move |answer: &Answer, delta: Value, finish: Option<&str>| {
        let mut chunk = answer.chunk(0, delta, finish);
        if include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    };
    stream! {
        yield chunk(&answer, json!({"role": "assistant", "content": "", "refusal": null}), None);
        let mut happened = first;
        loop {
            match happened {
                ChatEvent::Text(text) => yield chunk(&answer, json!({"content": text}), None),
                ChatEvent::Done { finish, prompt_tokens: prompt, completion_tokens: completion } => {
                    yield chunk(&answer, json!({}), Some(finish_reason(finish)));
                    if include_usage {
                        yield event(&answer.usage_chunk(Usage { prompt, completion }));
                    }
                    break;
                }
                ChatEvent::Failed(error) => {
                    // The head is long gone. Clients raise an error for such an event.
                    yield event(&Error::Generate(error).body().json());
                    return;
                }
            }
            happened = tokio::select! {
                event = next(&mut running) => event,
                () = cutoff.reached() => {
                    // Cut short, so its counts are not known.
                    yield chunk(&answer, json!({}), Some(finish_reason(Finish::Length)));
                    break;
                }
            };
        }
        yield DONE;
    }
}

fn model_card() -> Value {
    json!({"id": NAME, "object": "model", "created": 0, "owned_by": "forethought"})
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
