//! Who asks: tenants by their keys, and how much each may.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock as _, DefaultClock},
};
use http::{HeaderMap, HeaderName, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    config::{KeyHash, TenantConfig},
    reply::Error,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Headers in which callers show their key.
pub(crate) static KEY_HEADERS: [HeaderName; 3] = [header::AUTHORIZATION, X_API_KEY, X_GOOG_API_KEY];

/// All tenants.
#[derive(Default)]
pub(crate) struct Tenants {
    all: BTreeMap<String, Arc<Tenant>>,
    /// By the hash of what the caller shows, so the time that a look takes tells nothing of the keys.
    by_key: HashMap<KeyHash, Arc<Tenant>>,
}

struct Tenant {
    name: String,
    config: TenantConfig,
    rate: Option<DefaultDirectRateLimiter>,
    places: Option<Arc<Semaphore>>,
}

/// A tenant's request. While it lives it takes a place of those that the tenant may have.
pub(crate) struct Admitted {
    pub(crate) tenant: String,
    _place: Option<OwnedSemaphorePermit>,
}

/// Marks a request whose key is one of ours, which no upstream may see.
#[derive(Clone, Copy)]
pub(crate) struct OwnKey;

impl Tenants {
    /// The tenants of a configuration. Whoever was there `before` with the same limits has used what it had used.
    pub(crate) fn new(config: &BTreeMap<String, TenantConfig>, before: Option<&Self>) -> Self {
        let mut tenants = Self::default();
        for (name, config) in config {
            let known = before.and_then(|before| before.all.get(name));
            let tenant = match known.filter(|known| known.config == *config) {
                Some(known) => known.clone(),
                None => Arc::new(Tenant::new(name, config, known)),
            };
            tenants.by_key.extend(config.keys.iter().map(|key| (*key, tenant.clone())));
            tenants.all.insert(name.clone(), tenant);
        }
        tenants
    }

    /// Lets a request in, if its caller is known and within its limits; `None` where nobody needs to be known.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<Option<Admitted>, Error> {
        if self.all.is_empty() {
            return Ok(None);
        }
        let key = key(headers).ok_or(Error::Unauthenticated)?;
        let tenant = self.by_key.get(&KeyHash::of(key)).ok_or(Error::Unauthenticated)?;
        tenant.admit().map(Some)
    }
}

impl Tenant {
    fn new(name: &str, config: &TenantConfig, known: Option<&Arc<Self>>) -> Self {
        let places = match known.filter(|known| known.config.concurrency == config.concurrency) {
            Some(known) => known.places.clone(),
            None => config.concurrency.map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)))),
        };
        let quota = |rate: crate::config::Rate| Quota::per_minute(rate.per_minute).allow_burst(rate.burst);
        let rate = config.rate.map(|rate| DefaultDirectRateLimiter::direct(quota(rate)));
        Self { name: name.to_owned(), config: config.clone(), rate, places }
    }

    fn admit(&self) -> Result<Admitted, Error> {
        // The place first: a request that is turned away for want of one has not used up the rate.
        let place = match &self.places {
            Some(places) => Some(places.clone().try_acquire_owned().map_err(|_| Error::TooManyRunning)?),
            None => None,
        };
        if let Some(Err(until)) = self.rate.as_ref().map(DefaultDirectRateLimiter::check) {
            let after = until.wait_time_from(DefaultClock::default().now()).max(Duration::from_secs(1));
            return Err(Error::RateLimited { after });
        }
        Ok(Admitted { tenant: self.name.clone(), _place: place })
    }
}

/// The key that a request shows. Where it shows several that are not the same, it shows none: another server might take
/// another one.
fn key(headers: &HeaderMap) -> Option<&str> {
    let mut keys =
        KEY_HEADERS.iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
    let first = shown(keys.next()?)?;
    keys.all(|next| shown(next) == Some(first)).then_some(first)
}

fn shown<'a>((name, value): (&HeaderName, &'a http::HeaderValue)) -> Option<&'a str> {
    let text = value.to_str().ok()?;
    let key = if name == header::AUTHORIZATION {
        text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?.1
    } else {
        text
    };
    Some(key.trim()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::config::Rate;

    #[test]
    fn a_key_is_shown_once() {
        fn check(headers: &[(HeaderName, &str)], expected: Option<&str>) {
            let headers =
                headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
            assert_eq!(key(&headers), expected, "{headers:?}");
        }
        check(&[(header::AUTHORIZATION, "Bearer k")], Some("k"));
        check(&[(header::AUTHORIZATION, "bearer  k ")], Some("k"));
        check(&[(header::AUTHORIZATION, "Basic k")], None);
        check(&[(header::AUTHORIZATION, "k")], None);
        check(&[(header::AUTHORIZATION, "Bearer ")], None);
        check(&[(X_API_KEY, "k")], Some("k"));
        check(&[(X_GOOG_API_KEY, "k")], Some("k"));
        check(&[(X_API_KEY, "k"), (header::AUTHORIZATION, "Bearer k")], Some("k"));
        check(&[(X_API_KEY, "k"), (header::AUTHORIZATION, "Bearer l")], None);
        check(&[(X_API_KEY, "k"), (X_API_KEY, "l")], None);
        check(&[], None);
    }

    #[test]
    fn a_tenant_keeps_what_it_has_used() {
        let keys = vec![KeyHash::of("k")];
        let rate = |burst| {
            let [per_minute, burst] = [1, burst].map(|count| NonZeroU32::new(count).unwrap());
            Some(Rate { per_minute, burst })
        };
        let config = |burst, concurrency| {
            let config = TenantConfig { keys: keys.clone(), rate: rate(burst), concurrency };
            BTreeMap::from([("t".to_owned(), config)])
        };
        let headers = HeaderMap::from_iter([(X_API_KEY, "k".parse().unwrap())]);
        let ask = |tenants: &Tenants| match tenants.admit(&headers) {
            Ok(admitted) => Ok(admitted.unwrap()),
            Err(error) => Err(error.code()),
        };
        let before = Tenants::new(&config(2, Some(1)), None);
        let running = ask(&before).unwrap();
        assert_eq!(running.tenant, "t");
        assert_eq!(ask(&before).err(), Some("too_many_running"));
        let same = Tenants::new(&config(2, Some(1)), Some(&before));
        assert_eq!(ask(&same).err(), Some("too_many_running"));
        drop(running);
        drop(ask(&same).unwrap());
        assert_eq!(ask(&same).err(), Some("rate_limited"));
        // Another rate begins anew; the places are still the same ones.
        let other = Tenants::new(&config(3, Some(1)), Some(&same));
        let _running = ask(&other).unwrap();
        assert_eq!(ask(&same).err(), Some("too_many_running"));
        assert_eq!(
            Tenants::default().admit(&HeaderMap::new()).map(|admitted| admitted.is_none()).ok(),
            Some(true)
        );
        assert_eq!(same.admit(&HeaderMap::new()).err().map(|error| error.code()), Some("invalid_api_key"));
    }
}
