//! The Gemini API: `generateContent` and `streamGenerateContent`.
//!
//! The path names the model and whether to stream. Google's parser takes every field in camel case and in snake case.
//! Files, inline data and cached content can't be read. A thought's signature is a seal, and shows a model nothing.

mod answer;

use bytes::Bytes;
use forethought_core::conversation::{Conversation, Message, Part, Role};
use http::Uri;
use serde_json::{Map, Value, json};

use super::{
    Envelope, Framing, Parameters, Piece, Request, Tail, Voice, WireFormat,
    answer::Answer,
    edit::{self, joined as behind, member},
    fields, json,
    splice::{members, replaced, value},
    tail::ListTail,
    text::{is_payload, joined, plain, prose_entry, push, rest, unknown, unread},
    written,
};
use crate::reply::Error;

/// The format.
pub(super) struct Gemini;

/// Top-level fields with a meaning here.
const TOP: &[&str] = &[
    "cachedContent",
    "cached_content",
    "contents",
    "generationConfig",
    "generation_config",
    "model",
    "systemInstruction",
    "system_instruction",
    "tools",
];
/// Top-level fields that are read on their own, or that no model is shown.
const READ: &[&str] = &[
    "cachedContent",
    "cached_content",
    "contents",
    "labels",
    "model",
    "safetySettings",
    "safety_settings",
    "systemInstruction",
    "system_instruction",
];
/// Where operator text stands.
const OPERATOR: &[&str] = &["systemInstruction", "system_instruction"];
const HELD: &[&str] = &["cachedContent", "cached_content"];
const CONTENT: &[&str] = &["parts", "role"];
const PART: &[&str] = &[
    "codeExecutionResult",
    "code_execution_result",
    "executableCode",
    "executable_code",
    "fileData",
    "file_data",
    "functionCall",
    "functionResponse",
    "function_call",
    "function_response",
    "inlineData",
    "inline_data",
    "text",
    "thought",
    "thoughtSignature",
    "thought_signature",
];
/// What says how the other fields of a part are to be taken.
const ABOUT: &[&str] = &[
    "thought",
    "thoughtSignature",
    "thought_signature",
    "videoMetadata",
    "video_metadata",
    "mediaResolution",
];

impl Gemini {
    /// The model that a path names, and whether the answer is to be streamed.
    pub(super) fn target(path: &str) -> Option<(&str, bool)> {
        let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
        let (collection, name) = rest.split_once('/')?;
        let (model, method) = name.rsplit_once(':')?;
        let known = matches!(version, "v1" | "v1alpha" | "v1beta")
            && matches!(collection, "models" | "tunedModels")
            && !model.is_empty()
            && !model.contains('/');
        match method {
            "generateContent" if known => Some((model, false)),
            "streamGenerateContent" if known => Some((model, true)),
            _ => None,
        }
    }
}

impl WireFormat for Gemini {
    fn name(&self) -> &'static str {
        "gemini"
    }

    fn voice(&self) -> Voice {
        Voice::GEMINI
    }

    fn model(&self, target: &Uri, _body: &[u8]) -> Result<Option<String>, Error> {
        Ok(Self::target(target.path()).map(|(model, _)| model.to_owned()))
    }

    fn decode(&self, target: &Uri, body: &[u8]) -> Result<Request, Error> {
        let (model, stream) = Self::target(target.path()).unwrap_or_default();
        let top = fields::top(body, TOP)?;
        let turns = fields::array(&top, "contents")?;
        let mut messages: Vec<Message> = fields::settings(&top, &[READ], HELD).into_iter().collect();
        let settings = !messages.is_empty();
        for key in OPERATOR {
            match top.get(*key) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => messages.push(Message::text(Role::System, text)),
                Some(value) => {
                    let mut turn = Vec::new();
                    content(value, Some(Role::System), key, &mut turn)?;
                    messages.extend(turn);
                }
            }
        }
        for (index, value) in turns.iter().enumerate() {
            let mut turn = Vec::new();
            content(value, None, &format!("contents[{index}]"), &mut turn)?;
            messages.extend(turn);
        }
        let config = top.get("generationConfig").or(top.get("generation_config"));
        let count = config.and_then(|config| config.get("candidateCount").or(config.get("candidate_count")));
        let events = target.query().is_some_and(|query| query.split('&').any(|pair| pair == "alt=sse"));
        Ok(Request {
            conversation: Conversation { messages },
            settings,
            model: model.to_owned(),
            stream,
            framing: if events { Framing::Events } else { Framing::Array },
            include_usage: true,
            choices: fields::choices(count, "generationConfig.candidateCount")?,
        })
    }

    fn noted(&self, body: &Bytes, note: &str) -> Result<Bytes, Error> {
        let item = json!({"text": note});
        let top = value(body, 0).and_then(|top| members(body, &top)).unwrap_or_default();
        let object =
            top.iter().find(|(key, span)| OPERATOR.contains(&key.as_str()) && body[span.start] == b'{');
        let Some((_, span)) = object else {
            return edit::note_at(body, note, OPERATOR, &item, &json!({"parts": [item]}));
        };
        let change = match member(body, span, "parts") {
            // One part may stand without an array.
            Some(parts) if body[parts.start] == b'{' => {
                let part = String::from_utf8_lossy(&body[parts.clone()]);
                Some((parts.clone(), format!("[{part},{item}]")))
            }
            Some(parts) => behind(body, &parts, note, &item),
            None => {
                let comma =
                    if members(body, span).is_some_and(|fields| fields.is_empty()) { "" } else { "," };
                let start = span.start + 1; // behind its opening bracket
                Some((start..start, format!("\"parts\":[{item}]{comma}")))
            }
        };
        Ok(replaced(body, vec![change.ok_or(Error::CantAnnotate)?]))
    }

    fn answer(&self, envelope: Envelope) -> Box<dyn Answer> {
        Box::new(answer::Writer(envelope))
    }

    fn written(&self, value: &Value) -> Vec<Piece> {
        written::choices(&value["candidates"], |candidate| vec![&candidate["content"]])
    }

    fn tail(&self, envelope: Envelope) -> Box<dyn Tail> {
        let choices = envelope.choices;
        Box::new(ListTail::new(self.answer(envelope), choices, "candidates"))
    }

    fn parameters(&self) -> &'static Parameters {
        const PLAIN: &str = "the embedded model writes plain text only";
        &Parameters {
            max_tokens: &["/generationConfig/maxOutputTokens"],
            temperature: "/generationConfig/temperature",
            top_p: "/generationConfig/topP",
            seed: "/generationConfig/seed",
            stop: "/generationConfig/stopSequences",
            off: &[
                ("/generation_config", &["{}"], "the embedded model takes `generationConfig`"),
                ("/generationConfig/candidateCount", &["1"], "the embedded model gives one answer"),
                ("/generationConfig/topK", &[], "the embedded model takes `topP` only"),
                ("/generationConfig/responseMimeType", &["\"text/plain\""], PLAIN),
                ("/generationConfig/responseSchema", &[], PLAIN),
                ("/generationConfig/responseJsonSchema", &[], PLAIN),
                ("/generationConfig/responseModalities", &["[]", "[\"TEXT\"]"], PLAIN),
                ("/tools", &["[]"], "the embedded model can't call tools"),
                ("/cachedContent", &["\"\""], "the embedded model holds no content"),
            ],
        }
    }
}

/// A turn's messages; what functions returned is a message of its own.
fn content(value: &Value, role: Option<Role>, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    let fields = fields::object(value, at)?;
    json::known_case(fields, CONTENT, at)?;
    let role = match (role, fields.get("role").and_then(Value::as_str)) {
        (Some(role), _) => role,
        // A turn without a role is the user's.
        (None, Some("user") | None) => Role::User,
        (None, Some("model")) => Role::Assistant,
        (None, Some("function" | "tool")) => Role::Tool,
        (None, Some("system")) => Role::System,
        (None, Some(other)) => {
            push(turn, Role::User, unread(&format!("role_{other}")));
            Role::User
        }
    };
    match fields.get("parts") {
        None | Some(Value::Null) => {}
        Some(Value::Array(parts)) => {
            for (index, value) in parts.iter().enumerate() {
                part(value, role, &format!("{at}.parts[{index}]"), turn)?;
            }
        }
        Some(value) => part(value, role, &format!("{at}.parts"), turn)?,
    }
    rest(fields, CONTENT).into_iter().for_each(|part| push(turn, role, part));
    Ok(())
}

/// A part holds one kind of data; what holds several is read in whole.
fn part(value: &Value, role: Role, at: &str, turn: &mut Vec<Message>) -> Result<(), Error> {
    let fields = fields::object(value, at)?;
    json::known_case(fields, PART, at)?;
    let thought = fields.get("thought").is_some_and(|thought| *thought == true);
    for (key, value) in fields {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("text", Value::String(text)) if thought => {
                push(turn, role, Part::Reasoning { text: text.clone() });
            }
            ("text", Value::String(text)) => push(turn, role, Part::Text { text: text.clone() }),
            ("functionCall" | "function_call", Value::Object(call)) => {
                let text = |key: &str| call.get(key).map(plain).unwrap_or_default();
                push(turn, role, Part::ToolCall { name: text("name"), arguments: text("args") });
                rest(call, &["name", "args"]).into_iter().for_each(|part| push(turn, role, part));
            }
            ("functionResponse" | "function_response", Value::Object(response)) => {
                returned(response, turn);
            }
            ("executableCode" | "executable_code", Value::Object(code)) => {
                let arguments = Value::Object(code.clone()).to_string();
                push(turn, role, Part::ToolCall { name: key.clone(), arguments });
            }
            ("codeExecutionResult" | "code_execution_result", Value::Object(result)) => {
                let text = Value::Object(result.clone()).to_string();
                push(turn, Role::Tool, Part::ToolResult { text });
            }
            (key, _) if ABOUT.contains(&key) => {}
            (key, Value::Object(fields)) => {
                unknown(key, fields).for_each(|part| push(turn, role, part));
            }
            (key, value) => {
                let mut texts = Vec::new();
                prose_entry(key, value, is_payload, &mut texts);
                joined(&texts).into_iter().chain([unread(key)]).for_each(|part| push(turn, role, part));
            }
        }
    }
    Ok(())
}

/// What a function returned, and the files with it.
fn returned(response: &Map<String, Value>, turn: &mut Vec<Message>) {
    let text = response.get("response").map(plain).unwrap_or_default();
    push(turn, Role::Tool, Part::ToolResult { text });
    for value in response.get("parts").and_then(Value::as_array).into_iter().flatten() {
        match value {
            Value::Object(fields) => {
                let kind = fields.keys().next().map_or("part", String::as_str);
                unknown(kind, fields).for_each(|part| push(turn, Role::Tool, part));
            }
            _ => push(turn, Role::Tool, unread("part")),
        }
    }
    rest(response, &["response", "parts"]).into_iter().for_each(|part| push(turn, Role::Tool, part));
}

#[cfg(test)]
mod tests;
