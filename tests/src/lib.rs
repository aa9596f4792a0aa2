//! Fakes for the end-to-end tests: an upstream, a guard, a chat model, and a proxy between them and a client; and what
//! the tests of documents share.

mod client;
mod document;
mod formats;
mod guard;
mod model;
mod proxy;
mod raw;
mod upstream;

pub use self::{
    client::{Client, Reply, chat, json_headers},
    document::is_written,
    formats::{FORMATS, Format},
    guard::{FakeGuard, Hold, evidence},
    model::FakeModel,
    proxy::TestProxy,
    raw::{RawRequest, RawUpstream, Step},
    upstream::{FakeUpstream, Respond, Seen},
};
