//! Reading requests.

use crate::{Message, Part, Request, Role};

impl Part {
    /// The part's text, if it has any that can be replaced.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Reasoning(text) | Self::ToolResult(text) => Some(text),
            Self::ToolCall(call) => Some(&call.arguments),
            Self::Unread(_) => None,
        }
    }
}

impl Request {
    /// All parts that have text, as message, index of the message, index of the part, and text.
    pub fn texts(&self) -> impl Iterator<Item = (&Message, u32, u32, &str)> {
        (0u32..).zip(&self.messages).flat_map(|(m, message)| {
            let parts = (0u32..).zip(&message.parts);
            parts.filter_map(move |(p, part)| Some((message, m, p, part.text()?)))
        })
    }

    /// The last text that the user wrote.
    pub fn last_user_text(&self) -> Option<&str> {
        let mut user = self.messages.iter().rev().filter(|message| message.role == Role::User);
        user.find_map(|message| message.parts.iter().rev().find_map(Part::text))
    }
}
