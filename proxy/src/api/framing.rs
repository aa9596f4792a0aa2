//! How the JSON values of a streamed answer become bytes.

use bytes::Bytes;
use serde_json::Value;

/// A way to cut a stream into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events without names.
    Events,
    /// Server-sent events without names, and `[DONE]` after the last.
    EventsDone,
    /// Server-sent events named by their field `type`.
    NamedEvents,
    /// One JSON value a line.
    Lines,
    /// One JSON array.
    Array,
}

impl Framing {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Events | Self::EventsDone | Self::NamedEvents => "text/event-stream; charset=utf-8",
            Self::Lines => "application/x-ndjson",
            Self::Array => "application/json",
        }
    }
}

/// Writes the pieces of one stream.
pub(crate) struct Framer {
    framing: Framing,
    begun: bool,
}

impl Framer {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, begun: false }
    }

    pub(crate) fn pieces(&mut self, values: &[Value]) -> Bytes {
        values.iter().map(|value| self.piece(value)).collect::<String>().into()
    }

    fn piece(&mut self, value: &Value) -> String {
        let begun = std::mem::replace(&mut self.begun, true);
        match self.framing {
            Framing::Events | Framing::EventsDone => format!("data: {value}\n\n"),
            Framing::NamedEvents => {
                let name = value["type"].as_str().unwrap_or("message");
                format!("event: {name}\ndata: {value}\n\n")
            }
            Framing::Lines => format!("{value}\n"),
            Framing::Array => format!("{}{value}", if begun { ",\n" } else { "[" }),
        }
    }

    /// What ends a stream that is complete.
    pub(crate) fn end(&mut self) -> Bytes {
        match self.framing {
            Framing::EventsDone => Bytes::from_static(b"data: [DONE]\n\n"),
            Framing::Array => Bytes::from_static(if self.begun { b"]" } else { b"[]" }),
            Framing::Events | Framing::NamedEvents | Framing::Lines => Bytes::new(),
        }
    }

    /// An error as the last piece. The head is long gone; clients raise an error for such a piece.
    pub(crate) fn error(&mut self, error: &Value) -> Bytes {
        let mut last = self.piece(error);
        if self.framing == Framing::Array {
            last.push(']');
        }
        last.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_and_ends() {
        fn check(framing: Framing, expected: &str, failed: &str) {
            let values = [json!({"type": "a"}), json!({"type": "b"})];
            let mut framer = Framer::new(framing);
            let mut text = String::from_utf8(framer.pieces(&values).to_vec()).unwrap();
            text += std::str::from_utf8(&framer.end()).unwrap();
            assert_eq!(text, expected);
            let mut framer = Framer::new(framing);
            framer.pieces(&values[..1]);
            assert_eq!(framer.error(&json!({"type": "error"})), failed);
        }
        check(
            Framing::Events,
            "data: {\"type\":\"a\"}\n\ndata: {\"type\":\"b\"}\n\n",
            "data: {\"type\":\"error\"}\n\n",
        );
        check(
            Framing::EventsDone,
            "data: {\"type\":\"a\"}\n\ndata: {\"type\":\"b\"}\n\ndata: [DONE]\n\n",
            "data: {\"type\":\"error\"}\n\n",
        );
        check(
            Framing::NamedEvents,
            "event: a\ndata: {\"type\":\"a\"}\n\nevent: b\ndata: {\"type\":\"b\"}\n\n",
            "event: error\ndata: {\"type\":\"error\"}\n\n",
        );
        check(Framing::Lines, "{\"type\":\"a\"}\n{\"type\":\"b\"}\n", "{\"type\":\"error\"}\n");
        check(Framing::Array, "[{\"type\":\"a\"},\n{\"type\":\"b\"}]", ",\n{\"type\":\"error\"}]");
    }
}
