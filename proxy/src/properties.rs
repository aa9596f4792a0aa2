//! What must hold for any input, whoever makes it up. The tests here draw inputs of the right shape at random; the functions
//! are public for fuzzers, which set `cfg(fuzzing)` and try any bytes.
//!
//! Every function panics where its property does not hold.

use std::{fs, path::Path};

use bytes::Bytes;
use forethought_core::{
    conversation::{Conversation, Message, Part},
    policy::Edit,
};
use http::Uri;

use crate::{
    CheckedConfig,
    api::{self, Channel, Framer, Piece, Request, WireFormat, answer::Envelope},
    config::Sources,
    reply::Error,
    response::{
        frames::{Cut, Held, Splitter, held},
        window::{Frame, Limits, Step, Window},
    },
};

/// A path of each format.
pub const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/v1beta/models/m:generateContent",
    "/v1beta/models/m:streamGenerateContent?alt=sse",
];

fn format(path: &str) -> (&'static dyn WireFormat, Uri) {
    let target: Uri = path.parse().expect("a path");
    (api::find(target.path()).expect("a guarded path"), target)
}

/// Reading a request does not panic, and reads the same every time; errors do not quote it.
///
/// Gives the number of parts that were read, and of those that can't be; `None` for a request that is rejected.
pub fn decode(path: &str, body: &[u8]) -> Option<(usize, usize)> {
    let (format, target) = format(path);
    let read = |request: Result<Request, Error>| match request {
        Ok(request) => {
            assert!(request.choices > 0);
            Ok(request.conversation)
        }
        Err(error) => Err(error.to_string()),
    };
    let first = read(format.decode(&target, body));
    assert!(first == read(format.decode(&target, body)), "{path} is read in two ways");
    let conversation = first.ok()?;
    Some((conversation.parts().count(), conversation.unread().count()))
}

/// Whether a text stands in something that was read of a request; `None` for a request that is rejected, or that has
/// something that can't be read.
pub fn is_read(path: &str, body: &[u8], text: &str) -> Option<bool> {
    let (format, target) = format(path);
    let conversation = format.decode(&target, body).ok()?.conversation;
    let named = |part: &Part| match part {
        Part::ToolCall { name, arguments } => name.contains(text) || arguments.contains(text),
        part => part.text().is_some_and(|read| read.contains(text)),
    };
    conversation.unread().next().is_none().then(|| conversation.parts().any(|(_, part)| named(part)))
}

/// A note is added, and a part gets other text, without anything else of the request being read differently.
pub fn edit(path: &str, body: &[u8], message: usize, part: usize) {
    let (format, target) = format(path);
    let Ok(request) = format.decode(&target, body) else { return };
    let before = request.conversation;
    let again = |body: &[u8]| format.decode(&target, body).expect("what was edited can be read").conversation;
    let said = |conversation: &Conversation| {
        conversation.parts().filter_map(|(_, part)| Some(part.text()?.to_owned())).collect::<Vec<_>>()
    };
    let note = "a note, and no more";
    if let Ok(new) = api::edit::annotate(format, &target, &Bytes::copy_from_slice(body), note) {
        let all = said(&again(&new));
        for text in said(&before).iter().map(String::as_str).chain([note]) {
            assert!(all.iter().any(|new| new.contains(text)), "a text is lost");
        }
    }
    let new = "a text of another kind";
    let edits = [Edit { message, part, text: new.to_owned() }];
    if let Ok(body) = api::edit::rewrite(format, &target, body, &edits) {
        let after = again(&body);
        let (old, all) = (said(&before), said(&after));
        assert!(all.iter().any(|text| text == new), "the new text is not there");
        let changed = old.iter().filter(|text| !all.contains(text)).count();
        assert!(changed <= 1, "{changed} parts changed");
    }
}

/// Bytes are cut into the same frames wherever their pieces end, and nothing of them is lost. `kind` says how they are cut,
/// `ends` where pieces end.
pub fn frames(kind: u8, bytes: &[u8], ends: &[usize]) {
    let cut = [Cut::Events, Cut::Lines, Cut::Whole][usize::from(kind) % 3];
    let split = |ends: &[usize]| {
        let (mut splitter, mut frames, mut from) = (Splitter::new(cut), Vec::new(), 0);
        for &end in ends.iter().chain([&bytes.len()]) {
            let end = end.clamp(from, bytes.len());
            splitter.push(&bytes[from..end]);
            from = end;
            frames.extend(std::iter::from_fn(|| splitter.next()));
        }
        frames.extend(splitter.rest());
        assert_eq!(splitter.waiting(), 0);
        frames
    };
    let whole = split(&[]);
    assert_eq!(whole.concat(), bytes, "bytes are lost");
    // A frame that ends the bytes may be whole in one way of cutting and the rest in another: its contents are the same.
    let contents = |frames: &[Bytes]| {
        frames.iter().map(|frame| held(cut, frame)).filter(|held| *held != Held::Nothing).collect::<Vec<_>>()
    };
    let pieces = split(ends);
    assert_eq!(pieces.concat(), bytes, "bytes are lost");
    assert_eq!(contents(&pieces), contents(&whole), "frames depend on pieces");
}

/// What a model wrote is found in any answer, and one that is cut ends in a way that can be read.
pub fn answer(path: &str, choices: usize, stream: &[u8]) {
    let (format, target) = format(path);
    let envelope = |id| Envelope { choices: choices.clamp(1, 8), refusal: true, ..Envelope::new(id, "m") };
    let mut tail = format.tail(envelope("own"));
    let cut = if path.starts_with("/api/") { Cut::Lines } else { Cut::Events };
    let mut splitter = Splitter::new(cut);
    splitter.push(stream);
    let frames = std::iter::from_fn(|| splitter.next()).collect::<Vec<_>>();
    for frame in frames.iter().chain(&splitter.rest()) {
        if let Held::Json(value) = held(cut, frame) {
            let _ = format.written(&value);
            tail.sent(&value);
        }
    }
    let last = tail.cut("no");
    let framing = match format.decode(&target, b"{\"contents\":[],\"messages\":[],\"input\":\"\"}") {
        Ok(request) => request.framing,
        Err(_) => return,
    };
    let bytes = Framer::new(framing).pieces(&last);
    let mut splitter = Splitter::new(cut);
    splitter.push(&bytes);
    let frames = std::iter::from_fn(|| splitter.next()).collect::<Vec<_>>();
    if framing != api::Framing::Array {
        let read: Vec<_> = frames.iter().map(|frame| held(cut, frame)).collect();
        assert_eq!(read, last.into_iter().map(Held::Json).collect::<Vec<_>>());
    }
}

/// A piece of an answer: how many frames' bytes there are beside its text, the answer's index, its channel, whether it tells
/// again what was told, and its text.
pub type Told = (u8, u8, bool, String);

/// A window over an answer in these frames, before a guard that refuses what has `bad` in it. All is sent on where nothing
/// is bad; what is bad is found in a stream as in one piece, and nothing that begins it is sent on.
pub fn window(hold: usize, frames: &[Told], bad: &str) {
    let overlap = bad.len();
    let made = |frames: &[Told]| -> Vec<Frame> {
        let frame = |(index, (channel, choice, again, text)): (usize, &Told)| {
            let channel = [Channel::Text, Channel::Reasoning, Channel::ToolCall][usize::from(*channel) % 3];
            let piece = Piece { choice: usize::from(*choice), channel, text: text.clone(), again: *again };
            Frame { bytes: Bytes::from(format!("{index}:{text}\n")), pieces: vec![piece] }
        };
        frames.iter().enumerate().map(frame).collect()
    };
    let all: Vec<u8> = made(frames).iter().flat_map(|frame| frame.bytes.to_vec()).collect();
    let limits = Limits { hold, overlap };
    let (sent, cut, _) = run(limits, made(frames), |_| false);
    assert!(!cut && sent == all, "a harmless answer is not sent on in whole");
    if bad.is_empty() {
        return;
    }
    let is_bad = |reply: &[Message]| said(reply).iter().any(|text| text.contains(bad));
    let (sent, cut, read) = run(limits, made(frames), is_bad);
    // The same without pieces: all frames at once, as a whole answer is read.
    let (_, whole, _) = run(Limits { hold: usize::MAX, overlap }, made(frames), is_bad);
    assert!(cut == whole || (cut && !whole), "found in one piece, and not in a stream");
    assert!(all.starts_with(&sent));
    if !cut {
        assert!(sent == all && !read.iter().any(|text| text.contains(bad)));
    }
    // With one answer in one channel, no frame in which the bad begins is sent on.
    let one =
        frames.iter().all(|(channel, choice, again, _)| (*channel % 3, *choice, *again) == (0, 0, false));
    if one {
        let text: String = frames.iter().map(|(_, _, _, text)| text.as_str()).collect();
        assert_eq!(cut, text.contains(bad), "what is bad is not what is found");
        if let Some(at) = text.find(bad) {
            let mut end = 0;
            let before = frames.iter().take_while(|(_, _, _, text)| {
                end += text.len();
                end <= at
            });
            let most: usize = made(frames).iter().take(before.count()).map(|frame| frame.bytes.len()).sum();
            // Frames without text may follow the last one before it.
            let idle: usize = frames.iter().filter(|told| told.3.is_empty()).count() * 24;
            assert!(sent.len() <= most + idle, "the beginning of what is bad is sent on");
        }
    }
}

/// What a window sends on, whether it was cut, and what the last judgement read.
fn run(
    limits: Limits,
    frames: Vec<Frame>,
    is_bad: impl Fn(&[Message]) -> bool,
) -> (Vec<u8>, bool, Vec<String>) {
    let (mut window, mut frames) = (Window::new(limits), frames.into_iter());
    let (mut sent, mut read) = (Vec::new(), vec![]);
    loop {
        match window.next() {
            Step::More => match frames.next() {
                Some(frame) => window.push(frame),
                None => window.end(),
            },
            Step::Judge(reply) => {
                read = said(&reply);
                if is_bad(&reply) {
                    return (sent, true, read);
                }
                window.allowed();
            }
            Step::Release(bytes) => sent.extend_from_slice(&bytes),
            Step::Done => return (sent, false, read),
        }
    }
}

fn said(reply: &[Message]) -> Vec<String> {
    reply.iter().flat_map(|m| m.parts.iter().filter_map(|part| part.text().map(str::to_owned))).collect()
}

/// A configuration file is right, or every mistake in it is told; it is never half taken. The text is written to `file`.
pub fn config(file: &Path, text: &[u8]) {
    fs::write(file, text).expect("a file");
    let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
    match CheckedConfig::load(&sources) {
        Ok(_) => {
            assert!(std::str::from_utf8(text).is_ok_and(|text| toml::from_str::<toml::Table>(text).is_ok()))
        }
        Err(problems) => assert!(!problems.0.is_empty() && !problems.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests;
