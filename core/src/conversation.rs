//! One request's messages in one form, whatever wire format they came in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who speaks in a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Operator instructions (`system` and `developer` messages).
    System,
    /// The person or program that asks.
    User,
    /// The upstream model's earlier answers.
    Assistant,
    /// What a tool returned to the model.
    Tool,
}

impl Role {
    /// The label that a transcript shows before this role's text.
    pub fn label(self) -> &'static str {
        match self {
            Self::System => "System",
            Self::User => "User",
            Self::Assistant => "Assistant",
            Self::Tool => "Tool",
        }
    }
}

/// One piece of a [`Message`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Plain text.
    Text {
        /// The text.
        text: String,
    },
    /// Text of the upstream model's own reasoning.
    Reasoning {
        /// The text.
        text: String,
    },
    /// A call the upstream model made.
    ToolCall {
        /// The function's name.
        name: String,
        /// The arguments, as sent (JSON text as a rule).
        arguments: String,
    },
    /// What a tool returned.
    ToolResult {
        /// The returned text.
        text: String,
    },
    /// Something the guard can't read (an image, audio, a file); named so that it is never silently skipped.
    Unread {
        /// What it is, in the wire format's own word, such as `image_url`.
        kind: String,
    },
}

impl Part {
    /// The text of the part, or `None` where there is none that a guard could read.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text } | Self::Reasoning { text } | Self::ToolResult { text } => Some(text),
            Self::ToolCall { arguments, .. } => Some(arguments),
            Self::Unread { .. } => None,
        }
    }
}

/// One message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message of a single text part.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, parts: vec![Part::Text { text: text.into() }] }
    }
}

/// The messages of one request, oldest first.
///
/// `Debug` shows the shape only, so that a stray log line can't leak a prompt.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// A conversation of one user message.
    pub fn from_user(text: impl Into<String>) -> Self {
        Self { messages: vec![Message::text(Role::User, text)] }
    }

    /// Reads a labelled transcript, `User: ...`, `Assistant: ...`, `User: ...`, each label at the start of a line;
    /// text without a leading label is one user message. This is how the training sets write several turns.
    pub fn from_transcript(text: &str) -> Self {
        const LABELS: [(&str, Role); 4] = [
            ("System: ", Role::System),
            ("User: ", Role::User),
            ("Assistant: ", Role::Assistant),
            ("Tool: ", Role::Tool),
        ];
        let label = |line: &str| {
            LABELS.iter().find_map(|&(label, role)| Some((role, line.strip_prefix(label)?.len())))
        };
        if label(text).is_none() {
            return Self::from_user(text);
        }
        let mut messages: Vec<(Role, String)> = Vec::new();
        for line in text.split_inclusive('\n') {
            match (label(line), messages.last_mut()) {
                (Some((role, rest)), _) => messages.push((role, line[line.len() - rest..].to_owned())),
                (None, Some((_, text))) => text.push_str(line),
                (None, None) => {} // unreachable: the first line has a label
            }
        }
        let messages = messages
            .into_iter()
            .map(|(role, text)| Message::text(role, text.strip_suffix('\n').unwrap_or(&text)));
        Self { messages: messages.collect() }
    }

    /// All parts with their roles, oldest first.
    pub fn parts(&self) -> impl Iterator<Item = (Role, &Part)> {
        self.messages.iter().flat_map(|m| m.parts.iter().map(move |p| (m.role, p)))
    }

    /// The kinds of the parts that no guard here can read, in order, repeats included.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.parts().filter_map(|(_, part)| match part {
            Part::Unread { kind } => Some(kind.as_str()),
            _ => None,
        })
    }

    /// Length of all readable text, in bytes of UTF-8.
    pub fn text_len(&self) -> usize {
        self.parts().filter_map(|(_, part)| part.text()).map(str::len).sum()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text } => write!(f, "Text({} bytes)", text.len()),
            Self::Reasoning { text } => write!(f, "Reasoning({} bytes)", text.len()),
            Self::ToolCall { arguments, .. } => write!(f, "ToolCall({} bytes)", arguments.len()),
            Self::ToolResult { text } => write!(f, "ToolResult({} bytes)", text.len()),
            Self::Unread { kind } => write!(f, "Unread({kind})"),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{:?}", self.role, self.parts)
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.messages).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_are_split_at_labels() {
        fn check(text: &str, expected: &[(Role, &str)]) {
            let got = Conversation::from_transcript(text);
            let expected: Vec<_> = expected.iter().map(|&(role, text)| Message::text(role, text)).collect();
            assert!(got.messages == expected, "{text:?}");
        }
        check("", &[(Role::User, "")]);
        check("How are you?\nUser: x", &[(Role::User, "How are you?\nUser: x")]);
        check(
            "User: a\nAssistant: b\nc\n\nUser: d\n",
            &[(Role::User, "a"), (Role::Assistant, "b\nc\n"), (Role::User, "d")],
        );
        check("System: s\nUser: ", &[(Role::System, "s"), (Role::User, "")]);
    }

    #[test]
    fn debug_output_holds_no_text() {
        let shown = format!("{:?}", Conversation::from_user("my secret"));
        assert_eq!(shown, "[User[Text(9 bytes)]]");
    }
}
