//! A chat request as the embedded model takes it.

use forethought_core::generate::{ChatMessage, ChatRequest, Sampling};
use serde_json::{Map, Value, json};

use super::NAME;
use crate::{api::json as strict, config::EmbeddedConfig, reply::Error};

pub(super) struct Wanted {
    pub(super) chat: ChatRequest,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

pub(super) fn read(body: &[u8], config: &EmbeddedConfig) -> Result<Wanted, Error> {
    let Value::Object(top) = strict::parse(body)? else {
        return Err(Error::bad_shape("body", "a JSON object"));
    };
    match top.get("model") {
        Some(Value::String(name)) if name == NAME => {}
        Some(Value::String(_)) => return Err(Error::NoSuchModel),
        _ => return Err(Error::bad_shape("model", "`embedded`")),
    }
    supported(&top)?;
    let Some(Value::Array(messages)) = top.get("messages") else {
        return Err(Error::bad_shape("messages", "an array"));
    };
    if messages.is_empty() {
        return Err(Error::bad_shape("messages", "an array of at least one message"));
    }
    let max_tokens = match limit(&top, "max_completion_tokens")? {
        Some(limit) => limit,
        None => limit(&top, "max_tokens")?.unwrap_or(config.max_tokens),
    };
    Ok(Wanted {
        chat: ChatRequest {
            messages: messages.iter().enumerate().map(message).collect::<Result<_, _>>()?,
            max_tokens,
            sampling: Sampling {
                temperature: number(&top, "temperature", "a number from 0 to 2", |t| {
                    (0.0..=2.0).contains(&t)
                })?
                .unwrap_or(config.temperature),
                top_p: number(&top, "top_p", "a number above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?
                    .unwrap_or(config.top_p),
                seed: seed(&top)?,
            },
            stop: stop(&top)?,
        },
        stream: flag(top.get("stream"), "stream")?,
        include_usage: flag(
            top.get("stream_options").and_then(|o| o.get("include_usage")),
            "stream_options",
        )?,
    })
}

/// Rejects parameters that would shape the answer and that the model can't follow; the values that mean "off" will do.
fn supported(top: &Map<String, Value>) -> Result<(), Error> {
    let off: [(&'static str, &[Value], &'static str); 11] = [
        ("n", &[json!(1)], "the embedded model gives one answer"),
        ("tools", &[json!([])], "the embedded model can't call tools"),
        ("functions", &[json!([])], "the embedded model can't call functions"),
        ("response_format", &[json!({"type": "text"})], "the embedded model writes plain text only"),
        ("logprobs", &[json!(false)], "the embedded model gives no log-probabilities"),
        ("top_logprobs", &[json!(0)], "the embedded model gives no log-probabilities"),
        ("logit_bias", &[json!({})], "the embedded model takes no logit bias"),
        ("frequency_penalty", &[json!(0), json!(0.0)], "the embedded model takes no penalties"),
        ("presence_penalty", &[json!(0), json!(0.0)], "the embedded model takes no penalties"),
        ("modalities", &[json!(["text"])], "the embedded model writes plain text only"),
        ("audio", &[], "the embedded model writes plain text only"),
    ];
    for (param, off, message) in off {
        if top.get(param).is_some_and(|value| !value.is_null() && !off.contains(value)) {
            return Err(Error::Unsupported { param, message });
        }
    }
    Ok(())
}

fn message((index, value): (usize, &Value)) -> Result<ChatMessage, Error> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let role = match value.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => "tool",
        _ => return Err(Error::bad_shape(&at(".role"), "system, developer, user, assistant or tool")),
    };
    let calls = |key| value.get(key).is_some_and(|calls| !calls.is_null() && *calls != json!([]));
    if calls("tool_calls") || calls("function_call") {
        return Err(Error::Unsupported {
            param: "messages",
            message: "the embedded model can't read tool calls",
        });
    }
    let text_of = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
    let content = match value.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Option<Vec<_>> = parts.iter().map(text_of).collect();
            let message = "the embedded model reads text parts only";
            texts.ok_or(Error::Unsupported { param: "messages", message })?.join("\n")
        }
        Some(_) => return Err(Error::bad_shape(&at(".content"), "a string or an array of parts")),
    };
    Ok(ChatMessage { role: role.to_owned(), content })
}

fn limit(top: &Map<String, Value>, key: &str) -> Result<Option<usize>, Error> {
    match top.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().map(usize::try_from) {
            Some(Ok(limit)) if limit > 0 => Ok(Some(limit)),
            _ => Err(Error::bad_shape(key, "a whole number above 0")),
        },
    }
}

fn number(
    top: &Map<String, Value>,
    key: &str,
    expected: &'static str,
    good: impl Fn(f64) -> bool,
) -> Result<Option<f64>, Error> {
    match top.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if good(number) => Ok(Some(number)),
            _ => Err(Error::bad_shape(key, expected)),
        },
    }
}

/// The request's seed, or a random one.
fn seed(top: &Map<String, Value>) -> Result<u64, Error> {
    match top.get("seed") {
        None | Some(Value::Null) => Ok(rand::random()),
        Some(value) => value
            .as_i64()
            .map(i64::cast_unsigned)
            .or(value.as_u64())
            .ok_or_else(|| Error::bad_shape("seed", "a whole number")),
    }
}

fn stop(top: &Map<String, Value>) -> Result<Vec<String>, Error> {
    let expected = "a string that is not empty, or an array of up to 16 such strings";
    let stop: Option<Vec<String>> = match top.get("stop") {
        None | Some(Value::Null) => Some(vec![]),
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(some)) => some.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    stop.filter(|stop| stop.len() <= 16 && stop.iter().all(|one| !one.is_empty()))
        .ok_or_else(|| Error::bad_shape("stop", expected))
}

fn flag(value: Option<&Value>, param: &str) -> Result<bool, Error> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Error::bad_shape(param, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EmbeddedConfig {
        EmbeddedConfig { model: String::new(), queue: 1, max_tokens: 7, temperature: 0.25, top_p: 0.5 }
    }

    fn request(fields: Value) -> Result<Wanted, Error> {
        let mut body = json!({"model": "embedded", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        read(body.to_string().as_bytes(), &config())
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
        check(json!({"messages": [{"role": "critic"}]}), "`messages[0].role`");
        check(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "text parts only");
        check(json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "tool calls");
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
}
