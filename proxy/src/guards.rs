//! Guards that are not in this process, and what takes their place when they fail.

mod breaker;
pub mod fallback;
mod pool;
pub mod remote;

pub(crate) use self::breaker::Breaker;
pub use self::{
    fallback::{Fallback, Last},
    remote::{RemoteGuard, RemoteOptions, Verdicts},
};
