//! Answers of our own, in JSON, piece by piece: what the embedded model writes, and refusals.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::config::{FinishReason, RefusalField};

/// What all pieces of one answer share.
#[derive(Debug)]
pub(crate) struct Envelope {
    /// The request's id; formats put a word of their own before it.
    pub(crate) id: String,
    /// When the answer was begun.
    pub(crate) created: SystemTime,
    /// The model asked for.
    pub(crate) model: String,
    /// How many answers there are, all alike.
    pub(crate) choices: usize,
    /// Whether a stream ends with a usage chunk, where that is the caller's choice.
    pub(crate) include_usage: bool,
    /// Whether it is a refusal.
    pub(crate) refusal: bool,
    /// What ends a refusal, where the format has a word for it.
    pub(crate) finish: FinishReason,
    /// Where a refusal's text stands, where the format has the choice.
    pub(crate) field: RefusalField,
    /// What a refusal tells of the guard's findings.
    pub(crate) details: Option<Value>,
}

impl Envelope {
    /// One answer to the request with this id, made now.
    pub(crate) fn new(id: impl std::fmt::Display, model: &str) -> Self {
        Self {
            id: id.to_string(),
            created: SystemTime::now(),
            model: model.to_owned(),
            choices: 1,
            include_usage: false,
            refusal: false,
            finish: FinishReason::ContentFilter,
            field: RefusalField::Content,
            details: None,
        }
    }

    /// When the answer was begun, in seconds since 1970.
    pub(crate) fn created_s(&self) -> u64 {
        self.created.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    }

    /// The format's word for an end, out of those for an answer that is complete, cut or refused.
    pub(crate) fn word(&self, end: End, [stop, length, refused]: [&'static str; 3]) -> &'static str {
        match end {
            End::Stop => stop,
            End::Length => length,
            End::Refused if self.finish == FinishReason::Stop => stop,
            End::Refused => refused,
        }
    }

    /// Adds what the caller may see of the guard's findings; once.
    pub(crate) fn expose(&mut self, value: &mut Value) {
        if let Some(details) = self.details.take() {
            value["forethought"] = details;
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is complete.
    Stop,
    /// It met a limit.
    Length,
    /// It is a refusal.
    Refused,
}

/// Token counts. Those of a refusal are zero: the upstream read and wrote nothing, so there is nothing to bill.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

/// Writes one answer, whole or in pieces; a piece may be several JSON values. In a stream each choice is opened, told and
/// closed, one after the other, and then the stream is done.
pub(crate) trait Answer: Send {
    /// The whole answer; its text is that of every choice.
    fn whole(&mut self, text: &str, end: End, usage: Usage) -> Value;

    /// The beginning of a choice.
    fn open(&mut self, choice: usize) -> Vec<Value>;

    /// More of a choice's text.
    fn text(&mut self, choice: usize, text: &str) -> Vec<Value>;

    /// The end of a choice.
    fn close(&mut self, choice: usize, end: End) -> Vec<Value>;

    /// The end of the stream.
    fn done(&mut self, end: End, usage: Usage) -> Vec<Value>;
}
