//! SDK for policy plugins of the Forethought proxy.
//!
//! A plugin is a type that implements [`Policy`], and one line that exports it (its package depends on `serde` too, which
//! `derive(Deserialize)` looks for):
//!
//! ```
//! use forethought_policy::prelude::*;
//!
//! #[derive(Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct NoHate {
//!     from: f64,
//! }
//!
//! impl Default for NoHate {
//!     fn default() -> Self {
//!         Self { from: 0.3 }
//!     }
//! }
//!
//! impl Policy for NoHate {
//!     fn decide(&mut self, _: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
//!         match evidence.hazard.as_deref() {
//!             Some("hate") if evidence.score >= self.from => refuse("Not here.").because("hate, above `from`"),
//!             _ => pass(),
//!         }
//!     }
//! }
//!
//! forethought_policy::export!(NoHate);
//! ```
//!
//! The type itself is the configuration: it is deserialized from what the operator writes under `config`. A type whose
//! state is more than that implements [`Policy::configure`].
//!
//! **Whoever does not pass decides alone.** No later policy is asked then, the built-in thresholds included. A policy that
//! rewrites, annotates or redirects should pass where the score is high, or harmful requests go through with it.

#![no_std]
#![warn(missing_docs)]

extern crate alloc;

#[cfg(all(feature = "arena", target_arch = "wasm32"))]
mod arena;
mod refusal;
mod request;

use alloc::{string::String, vec::Vec};

use serde::de::DeserializeOwned;

#[cfg(all(feature = "arena", target_arch = "wasm32"))]
#[global_allocator]
static MEMORY: arena::Arena = arena::Arena::new();

pub use self::{
    bindings::forethought::policy::{
        facts,
        types::{
            Assessment, Count, Coverage, Decision, Edit, Evidence, GuardVersion, Manifest, Message, Opinion,
            Part, Position, ProbeReading, Request, ResponseDecision, ResponseRuling, Role, Ruling, Signal,
            ToolCall, Window,
        },
    },
    refusal::{Texts, allow, annotate, pass, redirect, refuse, rewrite},
};

/// The interface in Rust, as generated from its definition.
#[allow(missing_docs)]
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/0.1.0",
        world: "plugin",
        pub_export_macro: true,
        default_bindings_module: "forethought_policy::bindings",
        additional_derives: [PartialEq, Clone],
    });
}

/// What a plugin needs as a rule.
pub mod prelude {
    pub use alloc::{borrow::ToOwned, format, string::String, vec, vec::Vec};

    pub use serde::{self, Deserialize};

    pub use crate::{
        Decision, Edit, Evidence, Manifest, Message, Opinion, Part, Policy, Request, ResponseDecision,
        ResponseRuling, Role, Ruling, Texts, Window, allow, annotate, log, pass, redirect, refuse, rewrite,
    };
}

/// Lines for the operator's log; never text of the request.
pub mod log {
    use crate::bindings::forethought::policy::log::{Level, log};

    /// For whoever writes the plugin.
    pub fn debug(message: &str) {
        log(Level::Debug, message);
    }
    /// For whoever reads the log.
    pub fn info(message: &str) {
        log(Level::Info, message);
    }
    /// Something is not as it should be.
    pub fn warn(message: &str) {
        log(Level::Warn, message);
    }
    /// Something failed.
    pub fn error(message: &str) {
        log(Level::Error, message);
    }
}

/// A policy. `Deserialize` reads it from the operator's configuration.
pub trait Policy: DeserializeOwned + 'static {
    /// Whether an instance may be used for more than one request. Leave it false: a Rust plugin gains little by it, and
    /// nothing can leak from one request to the next.
    const STATEFUL: bool = false;

    /// Looks over the configuration, once, before the first decision.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    fn configure(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Decides on a request. Passes by default.
    fn decide(&mut self, request: &Request, evidence: &Evidence, so_far: &[Opinion]) -> Ruling {
        let _ = (request, evidence, so_far);
        pass()
    }

    /// Decides on a piece of an answer. Passes by default.
    fn decide_response(&mut self, request: &Request, evidence: &Evidence, window: &Window) -> ResponseRuling {
        let _ = (request, evidence, window);
        ResponseRuling { decision: ResponseDecision::Pass, reason: String::new(), flags: Vec::new() }
    }
}

#[doc(hidden)]
pub mod export {
    //! What [`export!`](crate::export) needs.

    use alloc::{format, string::String};

    use crate::Policy;
    pub use crate::bindings::{export, exports::forethought::policy::policy::Guest};

    /// A policy from its configuration.
    pub fn configured<P: Policy>(config: &str) -> Result<P, String> {
        let mut policy: P = serde_json::from_str(config).map_err(|error| format!("{error}"))?;
        policy.configure()?;
        Ok(policy)
    }
}

/// Exports a [`Policy`] under the package's name and version. Stands once in a plugin.
#[macro_export]
macro_rules! export {
    ($policy:ty) => {
        const _: () = {
            struct Exported;

            ::std::thread_local! {
                static POLICY: ::core::cell::RefCell<::core::option::Option<$policy>> =
                    const { ::core::cell::RefCell::new(None) };
            }

            fn with<R>(f: impl FnOnce(&mut $policy) -> R) -> R {
                // The host calls `init` first.
                POLICY.with_borrow_mut(|policy| f(policy.as_mut().expect("`init` comes first")))
            }

            impl $crate::export::Guest for Exported {
                fn init(
                    config: ::std::string::String,
                ) -> ::core::result::Result<$crate::Manifest, ::std::string::String> {
                    let policy = $crate::export::configured::<$policy>(&config)?;
                    POLICY.set(Some(policy));
                    Ok($crate::Manifest {
                        name: ::core::env!("CARGO_PKG_NAME").into(),
                        version: ::core::env!("CARGO_PKG_VERSION").into(),
                        stateful: <$policy as $crate::Policy>::STATEFUL,
                    })
                }

                fn decide_request(
                    request: $crate::Request,
                    evidence: $crate::Evidence,
                    so_far: ::std::vec::Vec<$crate::Opinion>,
                ) -> $crate::Ruling {
                    with(|policy| $crate::Policy::decide(policy, &request, &evidence, &so_far))
                }

                fn decide_response(
                    request: $crate::Request,
                    evidence: $crate::Evidence,
                    window: $crate::Window,
                ) -> $crate::ResponseRuling {
                    with(|policy| $crate::Policy::decide_response(policy, &request, &evidence, &window))
                }
            }

    $crate::export::export!(Exported with_types_in $crate::bindings);
        };
    };
}
