//! Wire formats: each decodes requests into conversations and writes answers of our own.
//!
//! Provider JSON stays in this module.

pub(crate) mod json;
pub(crate) mod openai_chat;
pub(crate) mod splice;
