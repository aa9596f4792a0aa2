//! Ends an answer that was begun by an upstream with a refusal, in the answer's own format.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    answer::{Answer, End, Usage},
    written::index,
};

/// Follows what is sent on of a streamed answer, and can end it.
pub(crate) trait Tail: Send {
    /// Notes a value that was sent on.
    fn sent(&mut self, value: &Value);

    /// What ends the answer with a refusal.
    fn cut(&mut self, text: &str) -> Vec<Value>;
}

/// What an answer is known by; the end is to be known by the same.
const IDENTITY: [&str; 6] = ["id", "created", "model", "system_fingerprint", "responseId", "modelVersion"];

/// The tail of formats that keep no account of what is open: a list of answers, each told by its index.
pub(super) struct ListTail {
    answer: Box<dyn Answer>,
    /// The answers asked for.
    choices: usize,
    /// The field with the list of answers.
    list: &'static str,
    last: Value,
    opened: BTreeSet<usize>,
    closed: BTreeSet<usize>,
}

impl ListTail {
    pub(super) fn new(answer: Box<dyn Answer>, choices: usize, list: &'static str) -> Self {
        let (opened, closed) = (BTreeSet::new(), BTreeSet::new());
        Self { answer, choices, list, last: Value::Null, opened, closed }
    }
}

impl Tail for ListTail {
    fn sent(&mut self, value: &Value) {
        for (place, choice) in value[self.list].as_array().into_iter().flatten().enumerate() {
            let index = index(choice, "index", place);
            self.opened.insert(index);
            if choice["finish_reason"].is_string() {
                self.closed.insert(index);
            }
        }
        self.last = value.clone();
    }

    fn cut(&mut self, text: &str) -> Vec<Value> {
        let mut values = Vec::new();
        let all: BTreeSet<usize> = (0..self.choices).chain(self.opened.iter().copied()).collect();
        for &choice in all.difference(&self.closed) {
            if !self.opened.contains(&choice) {
                values.extend(self.answer.open(choice));
            }
            values.extend(self.answer.text(choice, text));
            values.extend(self.answer.close(choice, End::Refused));
        }
        values.extend(self.answer.done(End::Refused, Usage::default()));
        for value in &mut values {
            for key in IDENTITY {
                if let (Some(own), Some(seen)) = (value.get_mut(key), self.last.get(key)) {
                    own.clone_from(seen);
                }
            }
        }
        values
    }
}
