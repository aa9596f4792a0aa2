//! A small model in process, behind every wire format that the guard reads.
//!
//! What it can't do (several answers, tools, images, response formats, log-probabilities, penalties) is answered with an
//! error that names the parameter: nothing that shapes an answer is silently ignored.

mod catalog;
mod request;

use std::sync::Arc;

use async_stream::stream;
use bytes::Bytes;
use forethought_core::generate::{ChatEvent, ChatModel, ChatStream, Finish, GenerateError};
use futures_util::{Stream, StreamExt};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use uuid::Uuid;

use super::Sent;
use crate::{
    Body,
    api::{
        self, Framer, Voice, WireFormat,
        answer::{Answer, End, Envelope, Usage},
    },
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
        let (head, body) = request.into_parts();
        match api::find(head.uri.path()) {
            Some(format) if head.method == Method::POST => {
                let body = match body {
                    Sent::Read(bytes) => bytes,
                    Sent::Unread(body) => body.collect().await.map_err(|_| Error::BodyBroken)?.to_bytes(),
                };
                self.answer(format, &head.uri, &body, cutoff).await
            }
            _ => catalog::find(&head).map(|body| reply::json(StatusCode::OK, &body)),
        }
    }

    async fn answer(
        &self,
        format: &'static dyn WireFormat,
        target: &Uri,
        body: &[u8],
        cutoff: Cutoff,
    ) -> Result<Response<Body>, Error> {
        let wanted = request::read(format, target, body, &self.config)?;
        let envelope =
            Envelope { include_usage: wanted.include_usage, ..Envelope::new(Uuid::now_v7(), NAME) };
        let answer = format.answer(envelope);
        let mut running = self.model.chat(wanted.chat);
        // The first event decides on the status, so that an overload or a bad template is no broken stream.
        let first = next(&mut running).await;
        if let ChatEvent::Failed(error) = first {
            return Err(Error::Generate(error));
        }
        if wanted.stream {
            let framer = Framer::new(wanted.framing);
            let pieces = streamed(answer, framer, format.voice(), first, running, cutoff);
            let body = StreamBody::new(pieces.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync();
            Ok(reply::stream(wanted.framing.content_type(), body))
        } else {
            whole(answer, first, running).await
        }
    }
}

/// The model's next event; a model that has gone away has failed.
async fn next(running: &mut ChatStream) -> ChatEvent {
    running.next().await.unwrap_or(ChatEvent::Failed(GenerateError::Stopped))
}

/// The answer in one piece, once it is written.
async fn whole(
    mut answer: Box<dyn Answer>,
    first: ChatEvent,
    mut running: ChatStream,
) -> Result<Response<Body>, Error> {
    let mut text = String::new();
    let mut happened = first;
    loop {
        match happened {
            ChatEvent::Text(more) => text.push_str(&more),
            ChatEvent::Done { finish, prompt_tokens: prompt, completion_tokens: completion } => {
                let body = answer.whole(&text, end(finish), Usage { prompt, completion });
                return Ok(reply::json(StatusCode::OK, &body));
            }
            ChatEvent::Failed(error) => return Err(Error::Generate(error)),
        }
        happened = next(&mut running).await;
    }
}

/// The answer in pieces while it is written.
fn streamed(
    mut answer: Box<dyn Answer>,
    mut framer: Framer,
    voice: Voice,
    first: ChatEvent,
    mut running: ChatStream,
    mut cutoff: Cutoff,
) -> impl Stream<Item = Bytes> {
    stream! {
        let opened = framer.pieces(&answer.open(0));
        if !opened.is_empty() {
            yield opened;
        }
        let mut happened = first;
        let (end, usage) = loop {
            match happened {
                ChatEvent::Text(text) => yield framer.pieces(&answer.text(0, &text)),
                ChatEvent::Done { finish, prompt_tokens: prompt, completion_tokens: completion } => {
                    break (end(finish), Usage { prompt, completion });
                }
                ChatEvent::Failed(error) => {
                    yield framer.error(&voice.error(&Error::Generate(error).body(voice.input)));
                    return;
                }
            }
            happened = tokio::select! {
                event = next(&mut running) => event,
                // Cut short, so its counts are not known.
                () = cutoff.reached() => break (End::Length, Usage::default()),
            };
        };
        let mut last = answer.close(0, end);
        last.extend(answer.done(end, usage));
        yield [framer.pieces(&last), framer.end()].concat().into();
    }
}

fn end(finish: Finish) -> End {
    match finish {
        Finish::Stop => End::Stop,
        Finish::Length => End::Length,
    }
}
