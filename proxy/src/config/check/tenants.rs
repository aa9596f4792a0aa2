//! Tenants: keys that can be read, and that belong to one of them each.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
};

use super::{Check, named};
use crate::config::{KeyHash, Rate, RawTenant, TenantConfig};

/// How a hash is written.
const SHAPE: &str = "`sha256:` and 64 hexadecimal digits, as `forethought key new` prints it";

impl Check<'_> {
    pub(super) fn tenants(&mut self, raw: &BTreeMap<String, RawTenant>) -> BTreeMap<String, TenantConfig> {
        let mut owners = HashMap::<KeyHash, &str>::new();
        let mut tenants = BTreeMap::new();
        for (name, raw) in raw {
            let at = format!("tenants.{name}");
            self.require(&at, named(name), || {
                "a tenant's name must be at most 64 characters of visible ASCII without blanks".to_owned()
            });
            let keys = self.keys(&at, raw);
            for key in &keys {
                if let Some(other) = owners.insert(*key, name).filter(|other| other != name) {
                    self.note(&at, format!("has a key that `tenants.{other}` has too; give each its own"));
                }
            }
            let (rate, concurrency) = (self.rate(&at, raw), raw.concurrency);
            concurrency.map(|most| self.at_least(&format!("{at}.concurrency"), most, 1));
            tenants.insert(name.clone(), TenantConfig { keys, rate, concurrency });
        }
        tenants
    }

    /// Hashes of a tenant's keys. Messages name the variable, the file and the line, never what they hold.
    fn keys(&mut self, at: &str, raw: &RawTenant) -> Vec<KeyHash> {
        let mut keys = Vec::new();
        if let Some(path) = &raw.keys_file {
            let key = format!("{at}.keys_file");
            let text = std::fs::read_to_string(path).map_err(|error| format!("can't read `{path}`: {error}"));
            for (index, line) in self.parsed(&key, text).unwrap_or_default().lines().enumerate() {
                let line = line.split('#').next().unwrap_or_default().trim();
                if !line.is_empty() {
                    let hash = KeyHash::parse(line)
                        .ok_or_else(|| format!("line {} of `{path}` must be {SHAPE}", index + 1));
                    keys.extend(self.parsed(&key, hash));
                }
            }
        }
        if let Some(name) = &raw.keys_env {
            let key = format!("{at}.keys_env");
            let text = std::env::var(name)
                .map_err(|_| format!("the environment variable `{name}` is not set, or is not UTF-8"));
            let text = self.parsed(&key, text).unwrap_or_default();
            for word in text.split([',', ' ', '\n', '\t']).filter(|word| !word.is_empty()) {
                let hash =
                    KeyHash::parse(word).ok_or_else(|| format!("each word of `{name}` must be {SHAPE}"));
                keys.extend(self.parsed(&key, hash));
            }
        }
        self.require(at, raw.keys_file.is_some() || raw.keys_env.is_some(), || {
            format!("has no keys: set `{at}.keys_file` or `{at}.keys_env`")
        });
        keys
    }

    fn rate(&mut self, at: &str, raw: &RawTenant) -> Option<Rate> {
        self.require(
            &format!("{at}.burst"),
            raw.burst.is_none() || raw.requests_per_minute.is_some(),
            || format!("means nothing without `{at}.requests_per_minute`"),
        );
        let per_minute = raw.requests_per_minute?;
        let per_minute = self.at_least(&format!("{at}.requests_per_minute"), per_minute, 1);
        let burst = raw.burst.unwrap_or((per_minute / 6).max(1));
        let burst = self.at_least(&format!("{at}.burst"), burst, 1);
        Some(Rate { per_minute: NonZeroU32::new(per_minute)?, burst: NonZeroU32::new(burst)? })
    }
}
