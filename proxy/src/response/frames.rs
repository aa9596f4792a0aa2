//! Cuts the bytes of an answer into frames, wherever its pieces begin and end. Pure.

use bytes::{Bytes, BytesMut};
use serde_json::Value;

/// How an answer is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Server-sent events.
    Events,
    /// JSON values, one a line.
    Lines,
    /// Not at all.
    Whole,
}

impl Cut {
    /// By the answer's content type; `None` where nobody here can read it.
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Some(Self::Events),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Lines),
            "application/json" => Some(Self::Whole),
            _ => None,
        }
    }
}

/// What a frame holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Held {
    Json(Value),
    /// Neither JSON nor a mark that a format knows.
    Text(String),
    /// A comment, a blank line or `[DONE]`.
    Nothing,
}

/// Cuts bytes into frames; what it gives back, put together, is what it was given.
pub(crate) struct Splitter {
    cut: Cut,
    buffer: BytesMut,
    /// How far the buffer was searched.
    searched: usize,
}

impl Splitter {
    pub(crate) fn new(cut: Cut) -> Self {
        Self { cut, buffer: BytesMut::new(), searched: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are not yet a frame.
    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole frame.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        let end = match self.cut {
            Cut::Events => self.end_of_event()?,
            Cut::Lines => {
                let from = self.searched;
                self.searched = self.buffer.len();
                from + self.buffer[from..].iter().position(|&byte| byte == b'\n')? + 1
            }
            Cut::Whole => return None,
        };
        self.searched = 0;
        Some(self.buffer.split_to(end).freeze())
    }

    /// What is left when there is no more.
    pub(crate) fn rest(&mut self) -> Option<Bytes> {
        self.searched = 0;
        (!self.buffer.is_empty()).then(|| self.buffer.split().freeze())
    }

    /// Lines end with `\n`, `\r\n` or `\r`; an event ends with an empty line. A `\r` at the very end may be half an end.
    fn end_of_event(&mut self) -> Option<usize> {
        let bytes = &self.buffer[..];
        let mut at = self.searched.saturating_sub(4);
        while at < bytes.len() {
            let first = line_end(&bytes[at..]);
            match first.and_then(|first| Some((first, line_end(&bytes[at + first..])?))) {
                Some((first, second)) => {
                    let end = at + first + second;
                    // `\r` and then `\n` in the next piece belong together.
                    if bytes[end - 1] == b'\r' && end == bytes.len() {
                        break;
                    }
                    return Some(end);
                }
                None => at += 1,
            }
        }
        self.searched = self.buffer.len();
        None
    }
}

/// Length of the line end that the bytes begin with.
fn line_end(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\r', b'\n', ..] => Some(2),
        [b'\r' | b'\n', ..] => Some(1),
        _ => None,
    }
}

/// What a frame holds.
pub(crate) fn held(cut: Cut, frame: &[u8]) -> Held {
    let text = String::from_utf8_lossy(frame);
    let data = match cut {
        Cut::Events => {
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            let data =
                text.lines().filter_map(|line| line.trim_start_matches('\u{feff}').strip_prefix("data:"));
            data.map(|data| data.strip_prefix(' ').unwrap_or(data)).collect::<Vec<_>>().join("\n")
        }
        Cut::Lines | Cut::Whole => text.into_owned(),
    };
    match data.trim() {
        "" | "[DONE]" => Held::Nothing,
        data => serde_json::from_str(data).map_or_else(|_| Held::Text(data.to_owned()), Held::Json),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn split(cut: Cut, text: &[u8], pieces: &[usize]) -> Vec<Held> {
        let mut splitter = Splitter::new(cut);
        let (mut frames, mut from) = (Vec::new(), 0);
        for &to in pieces.iter().chain([&text.len()]) {
            splitter.push(&text[from..to]);
            from = to;
            frames.extend(std::iter::from_fn(|| splitter.next()));
        }
        frames.extend(splitter.rest());
        assert_eq!(frames.concat(), text);
        frames.iter().map(|frame| held(cut, frame)).filter(|held| *held != Held::Nothing).collect()
    }

    #[test]
    fn frames_are_the_same_wherever_the_pieces_end() {
        let one = Held::Json(json!({"a": "é"}));
        let two = Held::Json(json!([2]));
        let odd = Held::Text("odd".to_owned());
        for (cut, text, expected) in [
            (
                Cut::Events,
                ": hi\n\ndata: {\"a\":\ndata: \"é\"}\n\nevent: x\r\ndata:[2]\r\n\r\ndata: odd\r\rdata: [DONE]\n\n",
                vec![one.clone(), two.clone(), odd.clone()],
            ),
            (Cut::Events, "data: {\"a\": \"é\"}\n\ndata: [2]", vec![one.clone(), two.clone()]),
            (Cut::Lines, "{\"a\":\"é\"}\n\n[2]\r\nodd", vec![one.clone(), two, odd]),
            (Cut::Whole, "{\"a\":\n\n\"é\"}", vec![one]),
        ] {
            let bytes = text.as_bytes();
            for first in 0..=bytes.len() {
                assert_eq!(split(cut, bytes, &[first]), expected, "{text:?} at {first}");
            }
            let every: Vec<usize> = (1..bytes.len()).collect();
            assert_eq!(split(cut, bytes, &every), expected, "{text:?} at every byte");
        }
    }

    #[test]
    fn content_types() {
        assert_eq!(Cut::of("text/event-stream; charset=utf-8"), Some(Cut::Events));
        assert_eq!(Cut::of("Application/JSON"), Some(Cut::Whole));
        assert_eq!(Cut::of("application/x-ndjson"), Some(Cut::Lines));
        assert_eq!(Cut::of("text/html"), None);
        assert_eq!(Cut::of(""), None);
    }
}
