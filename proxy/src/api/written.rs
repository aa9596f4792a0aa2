//! What a model wrote in an answer: text, reasoning, and calls of tools.

use serde_json::Value;

/// What a text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Channel {
    /// For the caller.
    Text,
    /// For itself.
    Reasoning,
    /// For a tool: its name and its arguments.
    ToolCall,
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// The answer it belongs to, by its index.
    pub(crate) choice: usize,
    pub(crate) channel: Channel,
    pub(crate) text: String,
    /// Whether it may tell again what pieces before it told.
    pub(crate) again: bool,
}

impl Piece {
    /// Text that belongs to no answer in particular.
    pub(crate) fn text(text: String) -> Self {
        Self { choice: 0, channel: Channel::Text, text, again: false }
    }
}

/// What says how a text is to be taken, and seals and payloads: nothing that a model wrote.
const ABOUT: &[&str] = &[
    "call_id",
    "created_at",
    "data",
    "encrypted_content",
    "finishReason",
    "finish_reason",
    "id",
    "index",
    "item_id",
    "logprobs",
    "obfuscation",
    "object",
    "role",
    "signature",
    "status",
    "stop_reason",
    "thoughtSignature",
    "thought_signature",
    "tool_call_id",
    "tool_use_id",
    "type",
];

/// All texts in a value, whatever the names of its fields: an API may have more than this version has heard of.
pub(super) fn texts(value: &Value, choice: usize, channel: Channel, again: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    collect(value, &Piece { choice, channel, text: String::new(), again }, &mut pieces);
    pieces
}

fn collect(value: &Value, like: &Piece, pieces: &mut Vec<Piece>) {
    match value {
        Value::String(text) if !text.is_empty() => {
            pieces.push(Piece { text: text.clone(), ..like.clone() });
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, like, pieces)),
        Value::Object(fields) => {
            let thought = fields.get("thought").is_some_and(|thought| *thought == true);
            for (key, value) in fields.iter().filter(|(key, _)| !ABOUT.contains(&key.as_str())) {
                let channel = match key.as_str() {
                    "args" | "arguments" | "executableCode" | "executable_code" | "functionCall"
                    | "function_call" | "input" | "name" | "partial_json" | "tool_calls" => Channel::ToolCall,
                    "summary" => Channel::Reasoning,
                    key if thought || key.contains("reason") || key.contains("think") => Channel::Reasoning,
                    _ => like.channel,
                };
                collect(value, &Piece { channel, ..like.clone() }, pieces);
            }
        }
        _ => {}
    }
}

/// The index that a value names, else its place.
pub(super) fn index(value: &Value, key: &str, place: usize) -> usize {
    value[key].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(place)
}

/// The texts of the answers in a list.
pub(super) fn choices(list: &Value, read: impl Fn(&Value) -> Vec<&Value>) -> Vec<Piece> {
    let list = list.as_array().into_iter().flatten().enumerate();
    let texts_of = |(place, choice): (usize, &Value)| {
        let index = index(choice, "index", place);
        read(choice)
            .into_iter()
            .flat_map(move |value| texts(value, index, Channel::Text, false))
            .collect::<Vec<_>>()
    };
    list.flat_map(texts_of).collect()
}
