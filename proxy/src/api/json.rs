//! JSON read strictly: what two parsers could read differently is rejected, because the guard must read what the
//! upstream reads.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::reply::Error;

/// Parses a body. Keys that stand twice in one object are an error: some parsers take the first, some the last.
pub(crate) fn parse(body: &[u8]) -> Result<Value, Error> {
    let Strict(value) = serde_json::from_slice(body).map_err(Error::BadJson)?;
    Ok(value)
}

/// Rejects keys that differ from a known one by case alone: some parsers fold case, and take the one for the other.
pub(crate) fn known_case(object: &Map<String, Value>, known: &[&str], at: &str) -> Result<(), Error> {
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        let folded = fold(key);
        if let Some(meant) = known.iter().find(|known| fold(known) == folded) {
            return Err(Error::KeyCase { at: at.to_owned(), key: (*meant).to_owned() });
        }
    }
    Ok(())
}

/// Unicode's simple case folding, near enough: `ſ` and the Kelvin sign fold to `s` and `k`, as in Go's parser.
fn fold(key: &str) -> String {
    key.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// A JSON value without repeated keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
            if object.insert(key, value).is_some() {
                // The key is not named: it may hold anything.
                return Err(A::Error::custom("a key stands twice in one object"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_equal_serde_jsons() {
        for text in [
            "null",
            "[1,-2,3.5,1e300]",
            r#"{"a":{"b":["\u00e9\ud83d\ude00",true]},"c":18446744073709551615}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn what_parsers_disagree_on_is_rejected() {
        fn check(body: &[u8], expected: &str) {
            let error = parse(body).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        check(br#"{"a":1,"secret":{"b":1,"b":2}}"#, "twice in one object at line 1 column");
        check(br#"{"secret":1,"secret":2}"#, "twice");
        check(br#"{"secret":1,"\u0073ecret":2}"#, "twice");
        check(b"{\"a\":\n \"secret\xff\"}", "line 2");
        check(br#""secret \ud800""#, "line 1");
        check(b"\xef\xbb\xbf{}", "line 1 column 1");
        check(b"{} {}", "trailing");
        check(b"{\"a\":1,}", "trailing comma");
        check(b"", "EOF");
        check(b"{\"secret\":NaN}", "line 1");
        check("[".repeat(200).as_bytes(), "recursion limit");
    }

    #[test]
    fn keys_that_fold_to_known_ones_are_rejected() {
        fn check(key: &str, good: bool) {
            let object = Map::from_iter([(key.to_owned(), Value::Null)]);
            let known = ["messages", "tool_choice", "generationConfig"];
            assert_eq!(known_case(&object, &known, "").is_ok(), good, "{key}");
        }
        check("messages", true);
        check("message", true);
        check("Messages", false);
        check("me\u{17f}\u{17f}ages", false);
        check("TOOL_CHOICE", false);
        check("generationConfig", true);
        check("generationconfig", false);
    }
}
