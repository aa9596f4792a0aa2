//! Answers of our own in the shape of the OpenAI responses API.
//!
//! A refusal is a part of its own kind. Clients wait for `response.completed`, and check that every piece belongs to an
//! item and a part that was added before.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::api::{
    Channel, Piece, Tail,
    answer::{Answer, End, Envelope, Usage},
    written::{index, texts},
};

/// What a model wrote in an event, or in a whole response. Events at the end of an item tell again what was told before.
pub(super) fn written(value: &Value) -> Vec<Piece> {
    let output = |response: &Value, again| {
        let items = response["output"].as_array().into_iter().flatten().enumerate();
        items.flat_map(|(place, item)| texts(item, place, Channel::Text, again)).collect()
    };
    let Some(kind) = value["type"].as_str() else { return output(value, false) };
    let item = index(value, "output_index", 0);
    if value.get("response").is_some() {
        // What the request said is told again here, too; only the output is the model's.
        return output(&value["response"], true);
    }
    let channel = if kind.contains("reasoning") {
        Channel::Reasoning
    } else if ["arguments", "tool", "call", "code"].iter().any(|word| kind.contains(word)) {
        Channel::ToolCall
    } else {
        Channel::Text
    };
    match value.get("delta") {
        Some(delta) => texts(delta, item, channel, false),
        None => texts(value, item, channel, true),
    }
}

/// Adds to an item what an event says of it.
fn grow(item: &mut Value, kind: &str, event: &Value) {
    let part = index(event, "content_index", 0);
    let (at, key) = match kind {
        "response.content_part.added" => {
            if let Some(parts) = item.get_mut("content").and_then(Value::as_array_mut) {
                parts.push(event["part"].clone());
            }
            return;
        }
        "response.output_text.delta" => (item.pointer_mut(&format!("/content/{part}")), "text"),
        "response.refusal.delta" => (item.pointer_mut(&format!("/content/{part}")), "refusal"),
        "response.function_call_arguments.delta" => (Some(item), "arguments"),
        "response.custom_tool_call_input.delta" => (Some(item), "input"),
        _ => return,
    };
    if let (Some(Value::String(text)), Some(delta)) =
        (at.and_then(|at| at.get_mut(key)), event["delta"].as_str())
    {
        text.push_str(delta);
    }
}

/// Follows the items of a response.
pub(super) struct ItemTail {
    writer: Writer,
    /// The response as it was told first.
    begun: Option<Value>,
    /// Items that are not done, as far as they were sent on.
    open: BTreeMap<usize, Value>,
    /// Numbers of the next event and the next item.
    sequence: usize,
    item: usize,
}

impl ItemTail {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self { writer: Writer::new(envelope), begun: None, open: BTreeMap::new(), sequence: 0, item: 0 }
    }
}

impl Tail for ItemTail {
    fn sent(&mut self, value: &Value) {
        self.sequence = index(value, "sequence_number", self.sequence) + 1;
        let item = index(value, "output_index", self.item);
        match value["type"].as_str() {
            Some("response.created") => self.begun = value.get("response").cloned(),
            Some("response.output_item.added") => {
                self.item = item + 1;
                self.open.insert(item, value["item"].clone());
            }
            Some("response.output_item.done") => drop(self.open.remove(&item)),
            Some(kind) => {
                if let Some(open) = self.open.get_mut(&item) {
                    grow(open, kind, value);
                }
            }
            None => {}
        }
    }

    /// Ends the items that are open as they are, adds one with the refusal, and completes the response with nothing else
    /// in it. Clients take no response with an item that is not done.
    fn cut(&mut self, text: &str) -> Vec<Value> {
        let opened = self.writer.open(0);
        let mut values: Vec<Value> =
            opened.into_iter().skip(if self.begun.is_some() { 2 } else { 0 }).collect();
        values.extend(self.writer.text(0, text));
        values.extend(self.writer.close(0, End::Refused));
        values.extend(self.writer.done(End::Refused, Usage::default()));
        values
            .iter_mut()
            .filter_map(|event| event.get_mut("output_index"))
            .for_each(|own| *own = self.item.into());
        let done = std::mem::take(&mut self.open).into_iter().map(|(index, mut item)| {
            item["status"] = "incomplete".into();
            json!({"type": "response.output_item.done", "sequence_number": 0, "output_index": index, "item": item})
        });
        let mut values: Vec<Value> = done.chain(values).collect();
        for (event, sequence) in values.iter_mut().zip(self.sequence..) {
            event["sequence_number"] = sequence.into();
            if let (Some(own), Some(begun)) = (event.get_mut("response"), &self.begun) {
                let mut response = begun.clone();
                response["status"] = own["status"].take();
                response["output"] = own["output"].take();
                *own = response;
            }
        }
        values
    }
}

pub(super) struct Writer {
    envelope: Envelope,
    text: String,
    /// Number of the next event.
    sequence: usize,
}

impl Writer {
    pub(super) fn new(envelope: Envelope) -> Self {
        Self { envelope, text: String::new(), sequence: 0 }
    }

    fn item_id(&self) -> String {
        format!("msg_{}", self.envelope.id)
    }

    fn part(&self, text: &str) -> Value {
        if self.envelope.refusal {
            json!({"type": "refusal", "refusal": text})
        } else {
            json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
        }
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({
            "id": self.item_id(),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        })
    }

    fn response(&self, status: &str, output: Value, usage: Option<Usage>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            })
        });
        json!({
            "id": format!("resp_{}", self.envelope.id),
            "object": "response",
            "created_at": self.envelope.created_s(),
            "status": status,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": null,
            "metadata": {},
            "model": self.envelope.model,
            "output": output,
            "parallel_tool_calls": true,
            "temperature": null,
            "tool_choice": "auto",
            "tools": [],
            "top_p": null,
            "usage": usage,
        })
    }

    /// An event, numbered.
    fn event(&mut self, kind: &str, fields: Value) -> Value {
        let mut event = Map::new();
        event.insert("type".to_owned(), kind.into());
        event.insert("sequence_number".to_owned(), self.sequence.into());
        self.sequence += 1;
        event.extend(fields.as_object().cloned().unwrap_or_default());
        Value::Object(event)
    }

    /// `delta` or `done` of the text, under its kind's own name.
    fn piece(&mut self, step: &str, text: &str) -> Value {
        let (kind, own) =
            if self.envelope.refusal { ("refusal", "refusal") } else { ("output_text", "text") };
        let key = if step == "delta" { "delta" } else { own };
        let mut fields = json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, key: text});
        if !self.envelope.refusal {
            fields["logprobs"] = json!([]);
        }
        self.event(&format!("response.{kind}.{step}"), fields)
    }

    fn is_cut(end: End) -> bool {
        end == End::Length
    }
}

impl Answer for Writer {
    fn whole(&mut self, text: &str, end: End, usage: Usage) -> Value {
        let status = if Self::is_cut(end) { "incomplete" } else { "completed" };
        let output = json!([self.item(status, json!([self.part(text)]))]);
        let mut body = self.response(status, output, Some(usage));
        self.envelope.expose(&mut body);
        body
    }

    fn open(&mut self, _: usize) -> Vec<Value> {
        let response = self.response("in_progress", json!([]), None);
        let item = self.item("in_progress", json!([]));
        let part = self.part("");
        let item_id = self.item_id();
        vec![
            self.event("response.created", json!({"response": response})),
            self.event("response.in_progress", json!({"response": response})),
            self.event("response.output_item.added", json!({"output_index": 0, "item": item})),
            self.event(
                "response.content_part.added",
                json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part}),
            ),
        ]
    }

    fn text(&mut self, _: usize, text: &str) -> Vec<Value> {
        self.text.push_str(text);
        vec![self.piece("delta", text)]
    }

    fn close(&mut self, _: usize, end: End) -> Vec<Value> {
        let text = self.text.clone();
        let part = self.part(&text);
        let status = if Self::is_cut(end) { "incomplete" } else { "completed" };
        let item = self.item(status, json!([part]));
        let item_id = self.item_id();
        vec![
            self.piece("done", &text),
            self.event(
                "response.content_part.done",
                json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part}),
            ),
            self.event("response.output_item.done", json!({"output_index": 0, "item": item})),
        ]
    }

    fn done(&mut self, end: End, usage: Usage) -> Vec<Value> {
        let text = std::mem::take(&mut self.text);
        let response = self.whole(&text, end, usage);
        let kind = if Self::is_cut(end) { "response.incomplete" } else { "response.completed" };
        vec![self.event(kind, json!({"response": response}))]
    }
}
