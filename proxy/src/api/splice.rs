//! Changing single values in a JSON text and leaving every other byte as it is: unknown fields, numbers and their digits,
//! the order of keys.
//!
//! The text is one that [`json::parse`](super::json::parse) takes; where it is not, nothing is found in it.

use std::ops::Range;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Deserializer;

/// Where a value stands in a text.
pub(crate) type Span = Range<usize>;

/// The value that begins at or behind `at`, blanks skipped.
pub(crate) fn value(text: &[u8], at: usize) -> Option<Span> {
    let start = skip(text, at);
    let mut values = Deserializer::from_slice(text.get(start..)?).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(start..start + values.byte_offset())
}

/// The keys of the object at `span`, and where their values stand, in order.
pub(crate) fn members(text: &[u8], span: &Span) -> Option<Vec<(String, Span)>> {
    let mut members = Vec::new();
    let mut at = open(text, span, b'{')?;
    while text.get(at)? != &b'}' {
        let key = value(text, at)?;
        let colon = skip(text, key.end);
        if text.get(colon)? != &b':' {
            return None;
        }
        let value = value(text, colon + 1)?;
        at = next(text, value.end, b'}')?;
        members.push((string(text, &key)?, value));
    }
    Some(members)
}

/// Where the items of the array at `span` stand, in order.
pub(crate) fn items(text: &[u8], span: &Span) -> Option<Vec<Span>> {
    let mut items = Vec::new();
    let mut at = open(text, span, b'[')?;
    while text.get(at)? != &b']' {
        let value = value(text, at)?;
        at = next(text, value.end, b']')?;
        items.push(value);
    }
    Some(items)
}

/// The string at `span`, or `None` where another value stands there.
pub(crate) fn string(text: &[u8], span: &Span) -> Option<String> {
    serde_json::from_slice(text.get(span.clone())?).ok()
}

/// `string` in JSON.
pub(crate) fn quoted(string: &str) -> String {
    serde_json::Value::from(string).to_string()
}

/// `text` with other bytes in place of some spans, which must not overlap.
pub(crate) fn replaced(text: &[u8], mut changes: Vec<(Span, String)>) -> Bytes {
    changes.sort_by_key(|(span, _)| span.start);
    let mut new = Vec::with_capacity(text.len());
    let mut at = 0;
    for (span, value) in changes {
        new.extend_from_slice(&text[at..span.start]);
        new.extend_from_slice(value.as_bytes());
        at = span.end;
    }
    new.extend_from_slice(&text[at..]);
    new.into()
}

fn skip(text: &[u8], at: usize) -> usize {
    let blanks = text.iter().skip(at).take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    at + blanks.count()
}

/// Behind the bracket that opens the value at `span`.
fn open(text: &[u8], span: &Span, bracket: u8) -> Option<usize> {
    (text.get(span.start) == Some(&bracket)).then(|| skip(text, span.start + 1))
}

/// Where the next member or item begins, or where the closing bracket stands.
fn next(text: &[u8], at: usize, close: u8) -> Option<usize> {
    let at = skip(text, at);
    match text.get(at)? {
        b',' => Some(skip(text, at + 1)),
        byte if *byte == close => Some(at),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_those_of_the_values() {
        let text = br#" { "a" : [ 1 , -2.50e+3, "x,]\"}" , {} , [ ] ] ,"\u0062":null,"c":{"d":true} } "#;
        let top = value(text, 0).unwrap();
        let shown = |span: &Span| std::str::from_utf8(&text[span.clone()]).unwrap();
        let members = members(text, &top).unwrap();
        let pairs: Vec<_> = members.iter().map(|(key, span)| (key.as_str(), shown(span))).collect();
        assert_eq!(pairs[1..], [("b", "null"), ("c", "{\"d\":true}")]);
        let items = items(text, &members[0].1).unwrap();
        let items: Vec<_> = items.iter().map(shown).collect();
        assert_eq!(items, ["1", "-2.50e+3", r#""x,]\"}""#, "{}", "[ ]"]);
        assert!(super::items(text, &top).is_none());
    }

    #[test]
    fn no_text_makes_it_panic() {
        let text = br#"{"a":[1,{"b":"c"}],"d":2}"#;
        for end in 0..text.len() {
            let cut = &text[..end];
            for start in 0..end {
                let span = start..end;
                let _ = (value(cut, start), members(cut, &span), items(cut, &span), string(cut, &span));
            }
        }
    }

    #[test]
    fn only_what_is_named_changes() {
        let text = b"{\"a\": 1.0, \"b\": \"x\"}";
        let members = members(text, &value(text, 0).unwrap()).unwrap();
        let new = replaced(text, vec![(members[1].1.clone(), quoted("y\"\n"))]);
        assert_eq!(&new[..], br#"{"a": 1.0, "b": "y\"\n"}"#);
    }
}
