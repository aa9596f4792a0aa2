//! Host for WebAssembly policy plugins.
//!
//! A plugin is a component that exports `forethought:policy/policy` (the folder `wit/`). An [`Engine`] compiles it once,
//! a [`Plugin`] is one with its configuration, limits and grants, and is a
//! [`Policy`](forethought_core::policy::Policy) like the built-in ones. Plugins are not trusted: each call has a deadline
//! (waiting for the host included), a memory cap and a cap on what it may return, and whatever goes wrong in one is a
//! [`Failure`] of that call and nothing else.

mod cache;
mod call;
mod engine;
mod error;
mod imports;
mod limits;
mod module;
mod plugin;
pub mod template;
mod v0_1_0;
mod wasi;

pub use self::{
    call::{LogLevel, LogLine},
    engine::Engine,
    error::{Failure, LoadError},
    imports::Grant,
    limits::Limits,
    plugin::{Manifest, Plugin, PluginOptions, ResponseDecision, ResponseRuling, Window},
    v0_1_0::VERSION as NEWEST_INTERFACE,
};
