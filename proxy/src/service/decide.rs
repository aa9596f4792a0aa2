//! Asking the policy chain. Plugins may take a while, so chains that have some run on threads of their own, a bounded
//! number at once.

use std::{sync::Arc, thread, time::Duration};

use forethought_core::{
    conversation::Conversation,
    evidence::Evidence,
    guard::Guard,
    policy::{Case, LazyFacts, RequestFacts, Ruling},
};
use http::{HeaderMap, HeaderName, header};
use tokio::{sync::Semaphore, time::timeout};

use super::facts::Facts;
use crate::{policies::Policies, reply::Error};

/// Most languages and bytes that are kept of `accept-language`.
const LANGUAGES: (usize, usize) = (8, 35);

/// Places for requests that are being decided.
#[derive(Clone)]
pub(crate) struct Gate {
    /// What policies may ask for more.
    guard: Arc<dyn Guard>,
    places: Arc<Semaphore>,
    /// How long a request waits for one.
    patience: Duration,
}

impl Gate {
    pub(crate) fn new(guard: Arc<dyn Guard>, patience: Duration) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { guard, places: Arc::new(Semaphore::new((2 * cores).max(4))), patience }
    }

    /// The same places, for another guard and with another patience.
    pub(crate) fn of(&self, guard: Arc<dyn Guard>, patience: Duration) -> Self {
        Self { guard, places: self.places.clone(), patience }
    }

    /// The chain's decision. Gives the evidence back.
    pub(crate) async fn decide(
        &self,
        policies: Arc<Policies>,
        facts: RequestFacts,
        conversation: Arc<Conversation>,
        evidence: Evidence,
    ) -> Result<(Ruling, Evidence), Error> {
        let quick = policies.chain.versions().is_empty();
        let lazy = (!quick)
            .then(|| Arc::new(Facts::new(self.guard.clone(), conversation.clone())) as Arc<dyn LazyFacts>);
        let decide = move || {
            let (facts, conversation) = (&facts, &*conversation);
            let case = Case { facts, conversation, evidence: &evidence, lazy: lazy.as_ref() };
            let ruling = policies.chain.decide(&case);
            (ruling, evidence)
        };
        let (ruling, evidence) = if quick {
            decide()
        } else {
            let place = timeout(self.patience, self.places.clone().acquire_owned()).await;
            // The semaphore is never closed.
            let place = place.ok().and_then(Result::ok).ok_or(Error::PolicyOverloaded)?;
            let decided = tokio::task::spawn_blocking(move || {
                let decided = decide();
                // The work goes on when the caller leaves, and so does its claim.
                drop(place);
                decided
            });
            decided.await.map_err(|_| Error::PolicyPanicked)?
        };
        Ok((ruling.map_err(Error::Policy)?, evidence))
    }
}

/// The tenant that `name` names; a header that is there twice names nobody.
pub(super) fn tenant(headers: &HeaderMap, name: Option<&HeaderName>) -> Option<String> {
    let mut values = headers.get_all(name?).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// The languages of `accept-language`, best first, in lower case. What is no language tag is left out.
pub(super) fn languages(headers: &HeaderMap) -> Vec<String> {
    let (most, length) = LANGUAGES;
    let values = headers.get_all(header::ACCEPT_LANGUAGE).iter().filter_map(|value| value.to_str().ok());
    let mut weighed: Vec<(f32, String)> = values
        .flat_map(|value| value.split(','))
        .filter_map(|item| {
            let (tag, parameters) = item.split_once(';').unwrap_or((item, ""));
            let tag = tag.trim().to_ascii_lowercase();
            let weight = match parameters.trim().strip_prefix("q=") {
                Some(weight) => weight.parse().ok().filter(|weight| *weight > 0.0)?,
                None => 1.0,
            };
            let good = (1..=length).contains(&tag.len())
                && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            good.then_some((weight, tag))
        })
        .take(most)
        .collect();
    // A stable sort: equals stay in the caller's order.
    weighed.sort_by(|a, b| b.0.total_cmp(&a.0));
    weighed.into_iter().map(|(_, tag)| tag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_by_preference() {
        fn check(value: &'static str, expected: &[&str]) {
            let headers = HeaderMap::from_iter([(header::ACCEPT_LANGUAGE, value.parse().unwrap())]);
            assert_eq!(languages(&headers), expected, "{value}");
        }
        check("de-CH, fr;q=0.8, en;q=0.9", &["de-ch", "en", "fr"]);
        check("en", &["en"]);
        check("*;q=0.5, x y, fr;q=0, de;q=nonsense", &[]);
        check("", &[]);
        assert!(languages(&HeaderMap::new()).is_empty());
    }

    #[test]
    fn a_tenant_is_named_once() {
        let name = HeaderName::from_static("x-tenant");
        let check = |values: &[&str], expected: Option<&str>| {
            let headers = values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect();
            assert_eq!(tenant(&headers, Some(&name)).as_deref(), expected, "{values:?}");
            assert_eq!(tenant(&headers, None), None);
        };
        check(&["school"], Some("school"));
        check(&[" "], None);
        check(&["a", "b"], None);
        check(&[], None);
    }
}
