//! Tenants: who may ask, and how much.

use std::num::NonZeroU32;

use sha2::{Digest as _, Sha256};

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// Hashes of its keys.
    pub keys: Vec<KeyHash>,
    /// How often it may ask.
    pub rate: Option<Rate>,
    /// How many requests it may have under way.
    pub concurrency: Option<usize>,
}

/// How often a tenant may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a minute.
    pub per_minute: NonZeroU32,
    /// Requests at once after a pause.
    pub burst: NonZeroU32,
}

/// sha256 of a key. A plain hash will do: keys are long and random, so they can't be guessed back from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The word before the digits.
    const KIND: &str = "sha256:";

    /// The hash of a key.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads `sha256:` and 64 hexadecimal digits. What is something else may be a key, so no error shows it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text.strip_prefix(Self::KIND)?, &mut hash).ok()?;
        Some(Self(hash))
    }
}

impl std::fmt::Display for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", Self::KIND, hex::encode(self.0))
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash")
    }
}
