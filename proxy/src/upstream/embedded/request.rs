//! A request as the embedded model takes it.

use forethought_core::{
    conversation::{Message, Part, Role},
    generate::{ChatMessage, ChatRequest, Sampling},
};
use http::Uri;
use serde_json::Value;

use super::NAME;
use crate::{
    api::{Framing, WireFormat, json as strict},
    config::EmbeddedConfig,
    reply::Error,
};

pub(super) struct Wanted {
    pub(super) chat: ChatRequest,
    pub(super) stream: bool,
    pub(super) framing: Framing,
    pub(super) include_usage: bool,
}

pub(super) fn read(
    format: &dyn WireFormat,
    target: &Uri,
    body: &[u8],
    config: &EmbeddedConfig,
) -> Result<Wanted, Error> {
    let request = format.decode(target, body)?;
    match request.model.as_str() {
        NAME => {}
        "" => return Err(Error::bad_shape("model", "`embedded`")),
        _ => return Err(Error::NoSuchModel),
    }
    let input = format.voice().input;
    let fields = Fields(strict::parse(body)?);
    let parameters = format.parameters();
    fields.supported(parameters.off)?;
    let written = request.conversation.messages.iter().skip(usize::from(request.settings));
    let messages = written.map(|part| message(part, input)).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Error::bad_shape(input, "at least one message"));
    }
    let limits = parameters.max_tokens.iter().map(|at| fields.limit(at)).collect::<Result<Vec<_>, _>>()?;
    let temperature =
        fields.number(parameters.temperature, "a number from 0 to 2", |t| (0.0..=2.0).contains(&t))?;
    let top_p = fields.number(parameters.top_p, "a number above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
    Ok(Wanted {
        chat: ChatRequest {
            messages,
            max_tokens: limits.into_iter().flatten().next().unwrap_or(config.max_tokens),
            sampling: Sampling {
                temperature: temperature.unwrap_or(config.temperature),
                top_p: top_p.unwrap_or(config.top_p),
                seed: fields.seed(parameters.seed)?,
            },
            stop: fields.stop(parameters.stop)?,
        },
        stream: request.stream,
        framing: request.framing,
        include_usage: request.include_usage,
    })
}

/// A message of text alone. Earlier reasoning is not shown to a model again.
fn message(message: &Message, input: &'static str) -> Result<ChatMessage, Error> {
    let unsupported = |message| Error::Unsupported { param: input.to_owned(), message };
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut texts = Vec::new();
    for part in &message.parts {
        match part {
            Part::Text { text } | Part::ToolResult { text } => texts.push(text.as_str()),
            Part::Reasoning { .. } => {}
            Part::ToolCall { .. } => return Err(unsupported("the embedded model can't read tool calls")),
            Part::Unread { kind } if kind.starts_with("role_") => {
                return Err(unsupported("the embedded model knows no such role"));
            }
            Part::Unread { .. } => return Err(unsupported("the embedded model reads text parts only")),
        }
    }
    Ok(ChatMessage { role: role.to_owned(), content: texts.join("\n") })
}

/// A request's fields, by their JSON pointers.
struct Fields(Value);

impl Fields {
    /// A field that says something.
    fn get(&self, at: &str) -> Option<&Value> {
        self.0.pointer(at).filter(|value| !value.is_null())
    }

    /// Rejects parameters that would shape the answer and that the model can't follow; the values that mean "off" will do.
    fn supported(&self, off: &[(&str, &[&str], &'static str)]) -> Result<(), Error> {
        for (at, off, message) in off {
            let is_off = |value: &Value| off.contains(&value.to_string().as_str());
            if self.get(at).is_some_and(|value| !is_off(value)) {
                return Err(Error::Unsupported { param: param(at), message });
            }
        }
        Ok(())
    }

    fn limit(&self, at: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(at) else { return Ok(None) };
        match value.as_u64().map(usize::try_from) {
            Some(Ok(limit)) if limit > 0 => Ok(Some(limit)),
            _ => Err(Error::bad_shape(&param(at), "a whole number above 0")),
        }
    }

    fn number(
        &self,
        at: &str,
        expected: &'static str,
        good: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(at) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if good(number) => Ok(Some(number)),
            _ => Err(Error::bad_shape(&param(at), expected)),
        }
    }

    /// The request's seed, or a random one.
    fn seed(&self, at: &str) -> Result<u64, Error> {
        let Some(value) = self.get(at) else { return Ok(rand::random()) };
        let seed = value.as_i64().map(i64::cast_unsigned).or(value.as_u64());
        seed.ok_or_else(|| Error::bad_shape(&param(at), "a whole number"))
    }

    fn stop(&self, at: &str) -> Result<Vec<String>, Error> {
        let expected = "a string that is not empty, or an array of up to 16 such strings";
        let stop: Option<Vec<String>> = match self.get(at) {
            None => Some(vec![]),
            Some(Value::String(one)) => Some(vec![one.clone()]),
            Some(Value::Array(some)) => some.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
            Some(_) => None,
        };
        stop.filter(|stop| stop.len() <= 16 && stop.iter().all(|one| !one.is_empty()))
            .ok_or_else(|| Error::bad_shape(&param(at), expected))
    }
}

/// A pointer as people write it: `options.seed`.
fn param(at: &str) -> String {
    at.trim_start_matches('/').replace('/', ".")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    fn config() -> EmbeddedConfig {
        EmbeddedConfig { model: String::new(), queue: 1, max_tokens: 7, temperature: 0.25, top_p: 0.5 }
    }

    fn read_at(target: &str, body: &Value) -> Result<Wanted, Error> {
        let target: Uri = target.parse().unwrap();
        read(api::find(target.path()).unwrap(), &target, body.to_string().as_bytes(), &config())
    }

    fn request(fields: Value) -> Result<Wanted, Error> {
        let mut body = json!({"model": "embedded", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        read_at("/v1/chat/completions", &body)
    }

    #[test]
    fn parameters_reach_the_model() {
        let plain = request(json!({})).unwrap();
        assert_eq!(plain.chat.max_tokens, 7);
        assert_eq!((plain.chat.sampling.temperature, plain.chat.sampling.top_p), (0.25, 0.5));
        assert!(!plain.stream && !plain.include_usage && plain.chat.stop.is_empty());

        let full = request(json!({
            "max_tokens": 3, "max_completion_tokens": 5, "temperature": 1, "top_p": 0.9, "seed": -1, "stop": "x",
            "stream": true, "stream_options": {"include_usage": true}, "n": 1, "frequency_penalty": 0.0, "tools": [],
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
        }))
        .unwrap();
        assert_eq!(full.chat.max_tokens, 5);
        assert_eq!(full.chat.sampling, Sampling { temperature: 1.0, top_p: 0.9, seed: u64::MAX });
        assert_eq!(full.chat.stop, ["x"]);
        assert!(full.stream && full.include_usage);
        let messages: Vec<_> =
            full.chat.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(messages, [("system", "be brief"), ("user", "a\nb")]);
    }

    #[test]
    fn what_the_model_cannot_do_is_named() {
        fn check(fields: Value, expected: &str) {
            let error = request(fields).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(json!({"model": "gpt-4"}), "does not exist");
        check(json!({"model": null}), "`model`");
        check(json!({"messages": []}), "`messages`");
        check(json!({"messages": [{"role": "critic"}]}), "no such role");
        check(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "text parts only");
        check(json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}), "tool calls");
        check(json!({"n": 2}), "`n`: the embedded model gives one answer");
        check(json!({"tools": [{"type": "function"}]}), "`tools`");
        check(json!({"response_format": {"type": "json_object"}}), "`response_format`");
        check(json!({"logprobs": true}), "`logprobs`");
        check(json!({"presence_penalty": 0.5}), "`presence_penalty`");
        check(json!({"max_tokens": 0}), "`max_tokens`");
        check(json!({"temperature": 2.5}), "`temperature`");
        check(json!({"top_p": 0}), "`top_p`");
        check(json!({"seed": "x"}), "`seed`");
        check(json!({"stop": ""}), "`stop`");
        check(json!({"stream": "yes"}), "`stream`");
    }

    #[test]
    fn parameters_of_every_format_reach_the_model() {
        fn check(target: &str, body: Value, expected: &[(&str, &str)]) {
            let wanted = read_at(target, &body).unwrap();
            let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed: 3 };
            assert_eq!((wanted.chat.max_tokens, wanted.chat.sampling), (5, sampling), "{target}");
            assert_eq!(wanted.chat.stop, ["x"], "{target}");
            let messages: Vec<_> =
                wanted.chat.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
            assert_eq!(messages, expected, "{target}");
        }
        let both = [("system", "be brief"), ("user", "hi")];
        check(
            "/v1/completions",
            json!({"model": "embedded", "prompt": "hi", "max_tokens": 5, "temperature": 1, "top_p": 0.9, "seed": 3,
                "stop": "x", "unknown": "not for the model"}),
            &both[1..],
        );
        check(
            "/v1/responses",
            json!({"model": "embedded", "instructions": "be brief", "input": "hi", "max_output_tokens": 5,
                "temperature": 1, "top_p": 0.9, "seed": 3, "stop": "x"}),
            &both,
        );
        check(
            "/v1/messages",
            json!({"model": "embedded", "system": "be brief", "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 5, "temperature": 1, "top_p": 0.9, "seed": 3, "stop_sequences": ["x"]}),
            &both,
        );
        let options =
            json!({"num_predict": 5, "temperature": 1, "top_p": 0.9, "seed": 3, "stop": ["x"], "num_ctx": 9});
        let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]);
        check("/api/chat", json!({"model": "embedded", "messages": messages, "options": options}), &both);
        check(
            "/api/generate",
            json!({"model": "embedded", "system": "be brief", "prompt": "hi", "options": options}),
            &both,
        );
        check(
            "/v1beta/models/embedded:generateContent",
            json!({"systemInstruction": {"parts": [{"text": "be brief"}]}, "contents": [{"parts": [{"text": "hi"}]}],
                "generationConfig": {"maxOutputTokens": 5, "temperature": 1, "topP": 0.9, "seed": 3,
                    "stopSequences": ["x"]}}),
            &both,
        );
    }
}
