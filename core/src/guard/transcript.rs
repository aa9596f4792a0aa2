//! A conversation as one text, and the windows in which a long one is read.

use std::{collections::BTreeMap, fmt::Write, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    conversation::{Conversation, Part},
    evidence::Coverage,
    model::{ModelError, Tokenizer},
};

/// Writes the conversation as a transcript: `User: ...`, `Assistant: ...`, one message after the other.
pub fn render(conversation: &Conversation) -> String {
    let mut text = String::with_capacity(conversation.text_len() + 16 * conversation.messages.len());
    for message in &conversation.messages {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(message.role.label());
        text.push(':');
        for part in &message.parts {
            // Writing to a string can't fail.
            let _ = match part {
                Part::Text { text: part } | Part::ToolResult { text: part } => write!(text, " {part}"),
                Part::Reasoning { text: part } => write!(text, " (thinking) {part}"),
                Part::ToolCall { name, arguments } => write!(text, " (calls {name}) {arguments}"),
                Part::Unread { kind } => write!(text, " ({kind}, not shown)"),
            };
        }
    }
    text
}

/// A conversation in tokens: the windows in which it is read, in order, and what they hold of it.
///
/// # Errors
/// The tokenizer's.
pub fn tokenize(
    conversation: &Conversation,
    tokenizer: &Tokenizer,
    windows: Windows,
) -> Result<(Coverage, Vec<Vec<u32>>), ModelError> {
    let mut coverage = coverage(conversation);
    let ids = tokenizer.encode_text(&render(conversation))?;
    let windows = windows.split(ids.len());
    coverage.tokens = ids.len();
    coverage.tokens_read = union_len(&windows);
    coverage.windows = windows.len();
    Ok((coverage, windows.into_iter().map(|window| ids[window].to_vec()).collect()))
}

/// The coverage of a conversation that no guard has read: all its parts are unread, by kind.
pub fn nothing_read(conversation: &Conversation) -> Coverage {
    let Coverage { roles, .. } = coverage(conversation);
    let mut unread = BTreeMap::new();
    for (_, part) in conversation.parts() {
        let kind = match part {
            Part::Text { .. } => "text",
            Part::Reasoning { .. } => "reasoning",
            Part::ToolCall { .. } => "tool_call",
            Part::ToolResult { .. } => "tool_result",
            Part::Unread { kind } => kind,
        };
        *unread.entry(kind.to_owned()).or_default() += 1;
    }
    Coverage { roles, unread, ..Coverage::default() }
}

/// Counts what the transcript holds; tokens and windows are still to be filled in.
fn coverage(conversation: &Conversation) -> Coverage {
    let mut coverage = Coverage::default();
    for message in &conversation.messages {
        *coverage.roles.entry(message.role).or_default() += 1;
    }
    for (_, part) in conversation.parts() {
        match part {
            Part::Text { .. } => {}
            Part::Reasoning { .. } => coverage.reasoning += 1,
            Part::ToolCall { .. } => coverage.tool_calls += 1,
            Part::ToolResult { .. } => coverage.tool_results += 1,
            Part::Unread { kind } => *coverage.unread.entry(kind.clone()).or_default() += 1,
        }
    }
    coverage
}

/// How much of a transcript is read, and in which pieces; in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// Length of a window.
    pub window: usize,
    /// What neighbouring windows share, so that nothing hides at a border; less than `window`.
    pub overlap: usize,
    /// Most tokens read, overlaps included. At least one window is always read.
    pub max: usize,
}

impl Default for Windows {
    fn default() -> Self {
        Self { window: 1024, overlap: 128, max: 16_384 }
    }
}

impl Windows {
    /// The windows of a transcript of `tokens` tokens, in order. Where not all of it may be read, it is the latest part
    /// and the very beginning.
    pub fn split(&self, tokens: usize) -> Vec<Range<usize>> {
        let window = self.window.max(1);
        if tokens <= window {
            return std::iter::once(0..tokens).collect();
        }
        let step = window - self.overlap.min(window - 1);
        let mut windows: Vec<_> =
            std::iter::successors(Some(tokens), |&end| (end > window).then(|| end - step))
                .map(|end| end.saturating_sub(window)..end.max(window))
                .collect();
        let most = (self.max / window).max(1);
        if windows.len() > most {
            windows.truncate(most.max(2) - 1);
            if most > 1 {
                windows.push(0..window);
            }
        }
        windows.reverse();
        windows
    }
}

/// Tokens that lie in at least one of `windows`, which are in order.
fn union_len(windows: &[Range<usize>]) -> usize {
    let mut end = 0;
    let new = windows.iter().map(|w| {
        let new = w.end.saturating_sub(w.start.max(end));
        end = end.max(w.end);
        new
    });
    new.sum()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // lists of one window
mod tests {
    use super::*;
    use crate::conversation::{Message, Role};

    #[test]
    fn transcripts() {
        let tool_call = Part::ToolCall { name: "search".into(), arguments: "{\"q\":1}".into() };
        let conversation = Conversation {
            messages: vec![
                Message::text(Role::System, "Be kind."),
                Message {
                    role: Role::User,
                    parts: vec![
                        Part::Text { text: "look".into() },
                        Part::Unread { kind: "image_url".into() },
                    ],
                },
                Message { role: Role::Assistant, parts: vec![tool_call] },
                Message { role: Role::Tool, parts: vec![Part::ToolResult { text: "found".into() }] },
            ],
        };
        let expected = "System: Be kind.\nUser: look (image_url, not shown)\n\
            Assistant: (calls search) {\"q\":1}\nTool: found";
        assert_eq!(render(&conversation), expected);
        let coverage = coverage(&conversation);
        assert_eq!((coverage.tool_calls, coverage.tool_results, coverage.roles.len()), (1, 1, 4));
        assert!(!coverage.is_complete());
    }

    #[test]
    fn windows() {
        fn check(tokens: usize, max: usize, expected: &[Range<usize>], read: usize) {
            let windows = Windows { window: 10, overlap: 2, max }.split(tokens);
            assert_eq!(windows, expected, "{tokens} tokens, at most {max}");
            assert_eq!(union_len(&windows), read);
        }
        check(0, 100, &[0..0], 0);
        check(10, 100, &[0..10], 10);
        check(11, 100, &[0..10, 1..11], 11);
        check(26, 100, &[0..10, 8..18, 16..26], 26);
        check(30, 100, &[0..10, 4..14, 12..22, 20..30], 30);
        check(100, 30, &[0..10, 82..92, 90..100], 28);
        check(100, 10, &[90..100], 10);
        check(100, 0, &[90..100], 10);
    }

    #[test]
    fn windows_cover_everything_they_may() {
        for tokens in 0..400 {
            for overlap in [0, 1, 9, 20] {
                let windows = Windows { window: 10, overlap, max: usize::MAX }.split(tokens);
                assert_eq!(union_len(&windows), tokens, "{tokens} tokens, overlap {overlap}");
            }
        }
    }
}
