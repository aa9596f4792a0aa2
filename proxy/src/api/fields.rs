//! The fields that requests of most formats have, read strictly.

use forethought_core::conversation::{Message, Part, Role};
use serde_json::{Map, Value};

use super::{json, text};
use crate::reply::Error;

/// More answers than any API gives; a refusal is repeated for each.
const MOST_CHOICES: u64 = 128;

/// The fields of a request, none of which may differ from a known one by case alone.
pub(super) fn top(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, Error> {
    let Value::Object(top) = json::parse(body)? else {
        return Err(Error::bad_shape("body", "a JSON object"));
    };
    json::known_case(&top, known, "the request")?;
    Ok(top)
}

pub(super) fn flag(value: Option<&Value>, param: &str, default: bool) -> Result<bool, Error> {
    match value {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Error::bad_shape(param, "true or false")),
    }
}

/// How many answers are asked for.
pub(super) fn choices(value: Option<&Value>, param: &str) -> Result<usize, Error> {
    match value {
        None | Some(Value::Null) => Ok(1),
        Some(n) => n
            .as_u64()
            .filter(|n| (1..=MOST_CHOICES).contains(n))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| Error::bad_shape(param, "a whole number from 1 to 128")),
    }
}

pub(super) fn array<'a>(top: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], Error> {
    match top.get(key) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(Error::bad_shape(key, "an array")),
    }
}

pub(super) fn object<'a>(value: &'a Value, at: &str) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| Error::bad_shape(at, "an object"))
}

pub(super) fn string(top: &Map<String, Value>, key: &str) -> String {
    top.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Whether a field says something.
pub(super) fn is_set(top: &Map<String, Value>, key: &str) -> bool {
    top.get(key).is_some_and(|value| !value.is_null() && value != "" && *value != Value::Array(vec![]))
}

/// All text outside the messages, as operator text, and what there can't be read. `read` names the fields that are read
/// elsewhere or that no model is shown, `unreadable` those that stand for content held elsewhere.
pub(super) fn settings(
    top: &Map<String, Value>,
    read: &[&[&str]],
    unreadable: &[&'static str],
) -> Option<Message> {
    let read: Vec<&str> = read.concat();
    let parts: Vec<Part> = text::rest(top, &read)
        .into_iter()
        .chain(unreadable.iter().filter(|key| is_set(top, key)).map(|key| text::unread(key)))
        .collect();
    (!parts.is_empty()).then_some(Message { role: Role::System, parts })
}
