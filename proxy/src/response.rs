//! The response guard: the same guard reads what the upstream answers, before the caller does.

pub(crate) mod frames;
pub(crate) mod window;

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_stream::stream;
use bytes::{Bytes, BytesMut};
use forethought_core::{
    conversation::{Conversation, Message},
    evidence::Evidence,
    guard::{Event, Guard, GuardError, Options},
    policy::{Decision, RequestFacts},
};
use futures_util::Stream;
use http::{HeaderMap, Response, header};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use tokio::time::{sleep, timeout};

pub(crate) use self::frames::Cut;
use self::{
    frames::{Held, Splitter, held},
    window::{Frame, Limits, Step, Window},
};
use crate::{
    Body, BoxError,
    api::{Framer, Framing, Piece, Tail, WireFormat},
    audit::Reply,
    config::{OnFailure, OnUnread, PolicyConfig, ResponseGuardConfig},
    policies::Policies,
    reply::{self, Error},
    service::Gate,
};

/// Reads the replies to one request.
pub(crate) struct Reader {
    pub(crate) format: &'static dyn WireFormat,
    pub(crate) guard: Arc<dyn Guard>,
    pub(crate) gate: Gate,
    /// The chain that the request began with.
    pub(crate) policies: Arc<Policies>,
    pub(crate) options: Options,
    pub(crate) deadline: Duration,
    pub(crate) policy: PolicyConfig,
    pub(crate) config: ResponseGuardConfig,
    /// What was asked.
    pub(crate) conversation: Arc<Conversation>,
    pub(crate) facts: RequestFacts,
    /// Whether what is found is recorded only.
    pub(crate) monitor: bool,
    /// Where the audit record finds what came of it.
    pub(crate) noted: Arc<Mutex<Option<Reply>>>,
}

/// What came of an answer in one piece.
pub(crate) enum Whole {
    /// It goes on.
    Sent(Response<Body>),
    /// It is refused, in these words, on this evidence.
    Refused(String, Box<Evidence>),
}

/// What is to be done with a reply.
enum Judged {
    Send,
    Refuse(String, Box<Evidence>),
    Fail(Error),
}

impl Reader {
    /// How an answer is cut; `None` for one that the guard need not read, an upstream's error.
    pub(crate) fn cut(&self, response: &Response<Body>) -> Result<Option<Cut>, Error> {
        if !response.status().is_success() {
            return Ok(None);
        }
        let plain = |headers: &HeaderMap| {
            headers.get_all(header::CONTENT_ENCODING).iter().all(|encoding| encoding == "identity")
        };
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        match Cut::of(kind.unwrap_or_default()) {
            Some(cut) if plain(response.headers()) => Ok(Some(cut)),
            _ if self.policy.on_unreadable != OnUnread::Deny || self.monitor => {
                self.note("allow", "policy.on_unreadable", "the answer can't be read".to_owned(), None);
                Ok(None)
            }
            _ => Err(self.unreadable("it is encoded, or neither JSON nor a stream of JSON")),
        }
    }

    /// Reads an answer in one piece.
    pub(crate) async fn whole(&self, response: Response<Body>) -> Result<Whole, Error> {
        let (parts, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::UpstreamBroken)?;
            bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            if bytes.len() > self.config.max_bytes {
                return Err(self.unreadable("it is larger than `response_guard.max_bytes`"));
            }
        }
        let bytes = bytes.freeze();
        let mut window = Window::new(self.limits());
        window.push(Frame { pieces: self.pieces(Cut::Whole, &bytes), bytes: bytes.clone() });
        window.end();
        if let Step::Judge(reply) = window.next() {
            match self.judge(reply).await {
                Judged::Send => {}
                Judged::Refuse(text, evidence) => return Ok(Whole::Refused(text, evidence)),
                Judged::Fail(error) => return Err(error),
            }
        }
        Ok(Whole::Sent(Response::from_parts(parts, reply::full(bytes))))
    }

    /// Reads a streamed answer while it passes; `tail` can end it, in `framing`.
    pub(crate) fn streamed(
        self,
        response: Response<Body>,
        cut: Cut,
        tail: Box<dyn Tail>,
        framing: Framing,
    ) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        // A cut answer has another length.
        parts.headers.remove(header::CONTENT_LENGTH);
        let framing = match (cut, framing) {
            (Cut::Lines, _) => Framing::Lines,
            (Cut::Events, Framing::Lines | Framing::Array) => Framing::Events,
            (_, framing) => framing,
        };
        let frames = self.frames(body, cut, tail, framing);
        Response::from_parts(parts, StreamBody::new(frames).boxed_unsync())
    }

    fn frames(
        self,
        mut body: Body,
        cut: Cut,
        mut tail: Box<dyn Tail>,
        framing: Framing,
    ) -> impl Stream<Item = Result<BodyFrame<Bytes>, BoxError>> {
        let data = |bytes: Bytes| Ok(BodyFrame::data(bytes));
        stream! {
            let mut window = Window::new(self.limits());
            let mut splitter = Splitter::new(cut);
            let mut framer = Framer::new(framing);
            loop {
                match window.next() {
                    Step::Release(bytes) => {
                        if let Held::Json(value) = held(cut, &bytes) {
                            tail.sent(&value);
                        }
                        yield data(bytes);
                    }
                    Step::Done => return,
                    Step::Judge(reply) => {
                        let mut judged = pin!(self.judge(reply));
                        let judged = loop {
                            tokio::select! {
                                judged = &mut judged => break judged,
                                () = sleep(self.config.keepalive) => if let Some(bytes) = self.keepalive() {
                                    yield data(bytes);
                                },
                            }
                        };
                        match judged {
                            Judged::Send => window.allowed(),
                            Judged::Refuse(text, _) => {
                                let last = framer.pieces(&tail.cut(&text));
                                yield data([last, framer.end()].concat().into());
                                return;
                            }
                            Judged::Fail(error) => {
                                yield data(self.failed(&mut framer, &error));
                                return;
                            }
                        }
                    }
                    Step::More => {
                        if let Some(bytes) = splitter.next() {
                            window.push(Frame { pieces: self.pieces(cut, &bytes), bytes });
                            continue;
                        }
                        // However it is cut: an upstream may send no text, or no end of it.
                        if splitter.waiting() + window.size() > self.config.max_bytes {
                            let error = self.unreadable("it is larger than `response_guard.max_bytes`");
                            yield data(self.failed(&mut framer, &error));
                            return;
                        }
                        tokio::select! {
                            frame = body.frame() => match frame {
                                Some(Ok(frame)) => if let Some(bytes) = frame.data_ref() {
                                    splitter.push(bytes);
                                },
                                // What was held back is not sent on.
                                Some(Err(error)) => {
                                    yield Err(error);
                                    return;
                                }
                                None => {
                                    if let Some(bytes) = splitter.rest() {
                                        window.push(Frame { pieces: self.pieces(cut, &bytes), bytes });
                                    }
                                    window.end();
                                }
                            },
                            () = sleep(self.config.keepalive) => if let Some(bytes) = self.keepalive() {
                                yield data(bytes);
                            },
                        }
                    }
                }
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits { hold: self.config.hold_bytes, overlap: self.config.overlap_bytes }
    }

    fn keepalive(&self) -> Option<Bytes> {
        let bytes = self.format.keepalive();
        (!bytes.is_empty()).then(|| Bytes::from_static(bytes))
    }

    fn failed(&self, framer: &mut Framer, error: &Error) -> Bytes {
        let voice = self.format.voice();
        framer.error(&voice.error(&error.body(voice.input)))
    }

    /// What the model wrote in a frame. What is no JSON is text.
    fn pieces(&self, cut: Cut, frame: &[u8]) -> Vec<Piece> {
        match held(cut, frame) {
            Held::Nothing => vec![],
            Held::Json(Value::Array(values)) => {
                values.iter().flat_map(|value| self.format.written(value)).collect()
            }
            Held::Json(value) => self.format.written(&value),
            Held::Text(text) => vec![Piece::text(text)],
        }
    }

    /// Has the guard read the reply after what was asked, and the policy decide.
    async fn judge(&self, reply: Vec<Message>) -> Judged {
        let messages = self.conversation.messages.iter().cloned().chain(reply).collect();
        let conversation = Arc::new(Conversation { messages });
        let decided = match self.examine(conversation.clone()).await {
            Ok(evidence) => {
                self.gate.decide(self.policies.clone(), self.facts.clone(), conversation, evidence).await
            }
            Err(error) => Err(error),
        };
        let judged = match decided {
            Ok((ruling, evidence)) => {
                self.note(ruling.decision.as_str(), &ruling.by, ruling.reason, Some(&evidence));
                match ruling.decision {
                    Decision::Refuse { message } => Judged::Refuse(message, Box::new(evidence)),
                    // What changes a request, or sends it elsewhere, says nothing against its answer.
                    _ => Judged::Send,
                }
            }
            Err(error) => {
                let open = matches!(error, Error::Guard(_)) && self.policy.on_failure == OnFailure::Open;
                let decision = if open { "allow" } else { "deny" };
                self.note(decision, "policy.on_failure", error.to_string(), None);
                if open { Judged::Send } else { Judged::Fail(error) }
            }
        };
        if self.monitor { Judged::Send } else { judged }
    }

    async fn examine(&self, conversation: Arc<Conversation>) -> Result<Evidence, Error> {
        let mut examination = self.guard.examine(conversation, self.options);
        let events = async {
            loop {
                match examination.next().await {
                    Some(Event::Coverage(coverage))
                        if coverage.tokens_unread() > 0 && self.policy.on_truncated == OnUnread::Deny =>
                    {
                        return Err(Error::Truncated { read: coverage.tokens_read, tokens: coverage.tokens });
                    }
                    Some(Event::Done(evidence)) => return Ok(*evidence),
                    Some(Event::Failed(error)) => return Err(Error::Guard(error)),
                    Some(_) => {}
                    None => return Err(Error::Guard(GuardError::Stopped)),
                }
            }
        };
        let hung = Error::Guard(GuardError::Deadline { after: self.deadline });
        timeout(2 * self.deadline, events).await.unwrap_or(Err(hung))
    }

    fn unreadable(&self, why: &'static str) -> Error {
        let error = Error::AnswerUnreadable { why };
        self.note("deny", "policy.on_unreadable", error.to_string(), None);
        error
    }

    /// Notes what came of the latest judgement.
    fn note(&self, decision: &'static str, by: &str, reason: String, evidence: Option<&Evidence>) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let judgements = noted.as_ref().map_or(0, |noted| noted.judgements);
        *noted = Some(Reply {
            decision,
            by: by.to_owned(),
            reason,
            judgements: judgements + usize::from(evidence.is_some()),
            score: evidence.map(|evidence| evidence.score),
            hazard: evidence.and_then(|evidence| evidence.hazard.clone()),
        });
    }
}
