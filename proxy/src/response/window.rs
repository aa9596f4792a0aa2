//! What is held back of an answer until the guard has read it. Pure: no I/O, no clock, no locks.
//!
//! An answer comes in frames, in the order in which they are sent on: an event, a line, or the whole of it. Text in a frame
//! is sent on only after a judgement that read it, and that also read [`Limits::overlap`] bytes of what follows, or the
//! end: so nothing that begins before a boundary is half sent before it is read in one piece.
//! Each judgement reads the whole reply so far, so that the last one reads what a judgement of the whole answer would.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use forethought_core::conversation::{Message, Part, Role};

use crate::api::{Channel, Piece};

/// How much is held back; in bytes of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// A judgement waits for this much new text, or for a quarter of what was read before where that is more: so the work
    /// grows with the length of the reply, and not with its square.
    pub(crate) hold: usize,
    /// What is still held back of text that was read.
    pub(crate) overlap: usize,
}

/// A frame of an answer, and what the model wrote in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) pieces: Vec<Piece>,
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Push the next frame, or end the answer.
    More,
    /// Have the guard read this reply, and say what came of it.
    Judge(Vec<Message>),
    /// Send this frame on.
    Release(Bytes),
    /// Nothing more: all of it was sent on.
    Done,
}

/// Holds back an answer.
pub(crate) struct Window {
    limits: Limits,
    /// Frames with the length of the reply up to their end.
    held: VecDeque<(Bytes, usize)>,
    /// Length of these frames.
    bytes: usize,
    /// What the model wrote, by answer and channel.
    written: BTreeMap<(usize, Channel), String>,
    /// Length of the reply so far, of what judgements have read, and of what was sent on.
    length: usize,
    judged: usize,
    released: usize,
    ended: bool,
}

impl Window {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            held: VecDeque::new(),
            bytes: 0,
            written: BTreeMap::new(),
            length: 0,
            judged: 0,
            released: 0,
            ended: false,
        }
    }

    /// More of the answer.
    pub(crate) fn push(&mut self, frame: Frame) {
        for piece in frame.pieces {
            let written = self.written.entry((piece.choice, piece.channel)).or_default();
            // Some events tell again what was told in pieces before.
            if !(piece.again && written.contains(&piece.text)) {
                written.push_str(&piece.text);
                self.length += piece.text.len();
            }
        }
        self.bytes += frame.bytes.len();
        self.held.push_back((frame.bytes, self.length));
    }

    /// Bytes in memory: what is held back, and the reply so far.
    pub(crate) fn size(&self) -> usize {
        self.bytes + self.length
    }

    /// There is no more of the answer.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// The reply so far was read, and may be sent on.
    pub(crate) fn allowed(&mut self) {
        self.judged = self.length;
    }

    /// What is to be done next.
    pub(crate) fn next(&mut self) -> Step {
        if let Some(&(_, end)) = self.held.front() {
            let no_text = end == self.released;
            let far_enough = end + self.limits.overlap <= self.judged;
            let all_read = self.ended && self.judged == self.length;
            if (no_text || far_enough || all_read)
                && let Some((bytes, end)) = self.held.pop_front()
            {
                self.released = end;
                self.bytes -= bytes.len();
                return Step::Release(bytes);
            }
        }
        let fresh = self.length - self.judged;
        if fresh > 0 && (self.ended || fresh >= self.limits.hold.max(self.judged / 4)) {
            return Step::Judge(self.reply());
        }
        if self.ended { Step::Done } else { Step::More }
    }

    /// The reply so far: a message for each answer.
    fn reply(&self) -> Vec<Message> {
        let mut messages: BTreeMap<usize, Message> = BTreeMap::new();
        for ((choice, channel), text) in &self.written {
            let text = text.clone();
            let part = match channel {
                Channel::Text => Part::Text { text },
                Channel::Reasoning => Part::Reasoning { text },
                Channel::ToolCall => Part::ToolCall { name: String::new(), arguments: text },
            };
            let message = Message { role: Role::Assistant, parts: vec![] };
            messages.entry(*choice).or_insert(message).parts.push(part);
        }
        messages.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str, choice: usize) -> Frame {
        let piece = Piece { choice, channel: Channel::Text, text: text.to_owned(), again: false };
        Frame { bytes: Bytes::copy_from_slice(text.as_bytes()), pieces: vec![piece] }
    }

    fn said(messages: &[Message]) -> String {
        let text = |part: &Part| part.text().unwrap_or_default().to_owned();
        messages.iter().flat_map(|m| m.parts.iter().map(text)).collect::<Vec<_>>().join("|")
    }

    /// What is sent on of an answer in these frames by a guard that finds `bad`, and whether it was cut.
    fn run(limits: Limits, frames: Vec<Frame>, bad: &str) -> (String, bool) {
        let mut window = Window::new(limits);
        let mut frames = frames.into_iter();
        let mut sent = String::new();
        loop {
            match window.next() {
                Step::More => match frames.next() {
                    Some(frame) => window.push(frame),
                    None => window.end(),
                },
                Step::Judge(reply) if said(&reply).contains(bad) => return (sent, true),
                Step::Judge(_) => window.allowed(),
                Step::Release(bytes) => sent.push_str(std::str::from_utf8(&bytes).unwrap()),
                Step::Done => return (sent, false),
            }
        }
    }

    #[test]
    fn nothing_hides_at_a_boundary() {
        const TEXT: &str = "all is well until here comes the harm and then more";
        let at = TEXT.find("harm").unwrap();
        for first in 0..=TEXT.len() {
            for second in first..=TEXT.len() {
                let pieces = [&TEXT[..first], &TEXT[first..second], &TEXT[second..]];
                for hold in [1, 5, 20, 1000] {
                    let limits = Limits { hold, overlap: "harm".len() };
                    let frames = pieces.iter().map(|text| frame(text, 0)).collect::<Vec<_>>();
                    let (sent, cut) = run(limits, frames.clone(), "harm");
                    assert!(
                        cut && sent.len() <= at && TEXT.starts_with(&sent),
                        "{first} {second} {hold}: {sent}"
                    );
                    assert_eq!(run(limits, frames, "nothing of this"), (TEXT.to_owned(), false));
                }
            }
        }
    }

    #[test]
    fn the_same_is_found_streamed_and_not() {
        const TEXT: &str = "first this, and a good while later that";
        let limits = Limits { hold: 3, overlap: 2 };
        let whole = run(limits, vec![frame(TEXT, 0)], TEXT);
        let streamed = run(limits, TEXT.split_inclusive(' ').map(|text| frame(text, 0)).collect(), TEXT);
        assert!(whole.1 && streamed.1 && whole.0.is_empty());
    }

    #[test]
    fn frames_without_text_are_not_held_unless_text_is_before_them() {
        let mut window = Window::new(Limits { hold: 100, overlap: 0 });
        let empty = |name: &'static str| Frame { bytes: Bytes::from_static(name.as_bytes()), pieces: vec![] };
        window.push(empty("start"));
        assert_eq!(window.next(), Step::Release("start".into()));
        assert_eq!(window.next(), Step::More);
        window.push(frame("text", 0));
        window.push(empty("ping"));
        assert_eq!(window.next(), Step::More);
        assert_eq!(window.size(), "textping".len() + "text".len());
        window.end();
        assert!(matches!(window.next(), Step::Judge(_)));
        window.allowed();
        assert_eq!(
            [window.next(), window.next()],
            [Step::Release("text".into()), Step::Release("ping".into())]
        );
        assert_eq!(window.next(), Step::Done);
    }

    #[test]
    fn every_answer_and_channel_is_read() {
        let mut window = Window::new(Limits { hold: 1000, overlap: 0 });
        let piece =
            |choice, channel, text: &str, again| Piece { choice, channel, text: text.to_owned(), again };
        let pieces = vec![
            piece(1, Channel::Text, "b", false),
            piece(0, Channel::Text, "a", false),
            piece(0, Channel::Reasoning, "so", false),
            piece(0, Channel::ToolCall, "{\"x\":", false),
            piece(0, Channel::ToolCall, "1}", false),
            piece(0, Channel::Text, "a", true),
            piece(1, Channel::Text, "and more", true),
        ];
        window.push(Frame { bytes: Bytes::new(), pieces });
        window.end();
        let Step::Judge(reply) = window.next() else { panic!("not judged") };
        assert_eq!(said(&reply), "a|so|{\"x\":1}|band more");
        assert_eq!(reply.len(), 2);
    }

    #[test]
    fn the_work_grows_with_the_length() {
        let mut window = Window::new(Limits { hold: 10, overlap: 5 });
        let mut read = 0;
        for _ in 0..10_000 {
            window.push(frame("word ", 0));
            loop {
                match window.next() {
                    Step::Judge(reply) => {
                        read += said(&reply).len();
                        window.allowed();
                    }
                    Step::More => break,
                    _ => {}
                }
            }
        }
        assert!(read < 6 * 50_000, "{read}");
    }
}
