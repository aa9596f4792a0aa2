//! Answers of our own in the shape of the Gemini API.

use serde_json::{Value, json};

use crate::api::answer::{Answer, End, Envelope, Usage};

pub(super) struct Writer(pub(super) Envelope);

impl Writer {
    fn candidate(&self, index: usize, text: &str, end: Option<End>) -> Value {
        let mut candidate = json!({"content": {"parts": [{"text": text}], "role": "model"}, "index": index});
        if let Some(end) = end {
            candidate["finishReason"] = self.0.word(end, ["STOP", "MAX_TOKENS", "SAFETY"]).into();
        }
        candidate
    }

    fn response(&self, candidates: Vec<Value>, usage: Option<Usage>) -> Value {
        let mut response = json!({"candidates": candidates});
        if let Some(usage) = usage {
            response["usageMetadata"] = json!({
                "promptTokenCount": usage.prompt,
                "candidatesTokenCount": usage.completion,
                "totalTokenCount": usage.prompt + usage.completion,
            });
        }
        response["modelVersion"] = self.0.model.as_str().into();
        response["responseId"] = self.0.id.as_str().into();
        response
    }
}

impl Answer for Writer {
    fn whole(&mut self, text: &str, end: End, usage: Usage) -> Value {
        let candidates = (0..self.0.choices).map(|index| self.candidate(index, text, Some(end))).collect();
        let mut body = self.response(candidates, Some(usage));
        self.0.expose(&mut body);
        body
    }

    fn open(&mut self, _: usize) -> Vec<Value> {
        vec![]
    }

    fn text(&mut self, choice: usize, text: &str) -> Vec<Value> {
        vec![self.response(vec![self.candidate(choice, text, None)], None)]
    }

    fn close(&mut self, _: usize, _: End) -> Vec<Value> {
        vec![]
    }

    fn done(&mut self, end: End, usage: Usage) -> Vec<Value> {
        vec![self.whole("", end, usage)]
    }
}
