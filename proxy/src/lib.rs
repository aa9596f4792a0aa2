//! The reverse proxy: a guard reads each request before the LLM does.
//!
//! [`Proxy`] is the whole of it: built from a checked configuration, models and an audit log, then given a listener and a
//! shutdown signal. The life of a request reads in `service.rs`, top to bottom.

pub mod admin;
mod api;
pub mod audit;
mod cache;
pub mod cli;
mod client;
pub mod config;
pub mod guards;
pub mod layer;
pub mod live;
pub mod log;
pub mod metrics;
pub mod policies;
#[cfg(any(test, fuzzing))]
pub mod properties;
pub mod reload;
mod reply;
mod response;
pub mod server;
mod service;
pub mod telemetry;
mod tenants;
pub mod upstream;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

pub use self::{
    audit::AuditLog,
    config::CheckedConfig,
    live::Models,
    reload::Reloader,
    service::Proxy,
    upstream::{Upstream, UpstreamStatus},
};

/// What a body or a service fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Any body that passes through.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
