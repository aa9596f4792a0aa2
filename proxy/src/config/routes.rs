//! Routes: which requests they take, where those go, and what differs for them.

use std::{sync::Arc, time::Duration};

use forethought_core::guard::Mode as GuardMode;
use http::{HeaderMap, HeaderName, Uri, header};

use super::{PolicyConfig, ResponseGuardConfig};

/// A route.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// Its name.
    pub name: String,
    /// Which requests it takes.
    pub rules: RouteRules,
    /// The upstreams it sends to; at least one.
    pub upstreams: Vec<Target>,
    /// Most upstreams that one request is sent to.
    pub tries: usize,
    /// Whether a request is sent again that an upstream may have worked on.
    pub retry_unanswered: bool,
    /// How the guard comes to its score.
    pub guard_mode: GuardMode,
    /// Time the guard has for one request, waiting included.
    pub guard_deadline: Duration,
    /// What is done with what the guard finds.
    pub policy: PolicyConfig,
    /// sha256 of what is configured of its guard and policies, hexadecimal.
    pub judging_sha256: Arc<str>,
    /// Whether and how the guard reads answers; `None` where it doesn't.
    pub response_guard: Option<ResponseGuardConfig>,
}

/// An upstream of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name in `[upstreams]`, or [`DEFAULT_UPSTREAM`].
    pub name: String,
    /// Its share of the requests, beside others of the same priority; at least 1.
    pub weight: u32,
    /// Lower ones are asked first.
    pub priority: u32,
}

/// The name of the upstream in the section `upstream`.
pub const DEFAULT_UPSTREAM: &str = "default";

/// Which requests a route takes: all that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRules {
    /// Without a slash at its end.
    pub(super) path_prefix: Option<String>,
    pub(super) headers: Vec<(HeaderName, Glob)>,
    pub(super) models: Vec<Glob>,
    pub(super) tenants: Vec<String>,
}

impl RouteRules {
    /// Whether the model that is asked for matters.
    pub fn need_model(&self) -> bool {
        !self.models.is_empty()
    }

    /// Whether a request with this head is taken, if its model is.
    pub fn take_head(&self, uri: &Uri, headers: &HeaderMap, tenant: Option<&str>) -> bool {
        let prefix = self.path_prefix.as_deref().is_none_or(|prefix| rest(uri.path(), prefix).is_some());
        // Of a header that is there more than once, every value must match: servers read different ones.
        let header = |(name, glob): &(HeaderName, Glob)| {
            let mut values = headers.get_all(name).iter().peekable();
            let authority = uri.authority().filter(|_| name == header::HOST && values.peek().is_none());
            match authority {
                Some(authority) => glob.matches(authority.as_str()),
                None => {
                    values.peek().is_some()
                        && values.all(|value| value.to_str().is_ok_and(|v| glob.matches(v)))
                }
            }
        };
        let tenant =
            self.tenants.is_empty() || tenant.is_some_and(|name| self.tenants.iter().any(|t| t == name));
        prefix && tenant && self.headers.iter().all(header)
    }

    /// Whether a request for this model is taken, if its head is; `None` where it is not known.
    pub fn take_model(&self, model: Option<&str>) -> bool {
        !self.need_model() || model.is_some_and(|model| self.models.iter().any(|glob| glob.matches(model)))
    }

    /// The target without the prefix; `None` where there is nothing to take away.
    pub fn shorten(&self, uri: &Uri) -> Option<Uri> {
        let path = rest(uri.path(), self.path_prefix.as_deref()?)?;
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target.parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// What follows `prefix` in `path`, from a slash on.
fn rest<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'))
}

/// Text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<String>);

impl Glob {
    pub(super) fn new(text: &str) -> Self {
        Self(text.split('*').map(str::to_owned).collect())
    }

    /// Whether `text` is of this form.
    pub fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &self.0[..] else {
            return self.0.first().is_some_and(|t| t == text);
        };
        let Some(mut text) = text.strip_prefix(first.as_str()).and_then(|t| t.strip_suffix(last.as_str()))
        else {
            return false;
        };
        // The earliest place of each leaves the most for those that follow.
        middle.iter().all(|part| match text.split_once(part.as_str()) {
            Some((_, after)) => {
                text = after;
                true
            }
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        fn check(glob: &str, text: &str, expected: bool) {
            assert_eq!(Glob::new(glob).matches(text), expected, "{glob} {text}");
        }
        check("gpt-4", "gpt-4", true);
        check("gpt-4", "gpt-4o", false);
        check("gpt-*", "gpt-", true);
        check("*", "", true);
        check("*-mini", "gpt-4-mini", true);
        check("a*a", "a", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "acb", false);
        check("", "", true);
        check("", "x", false);
        check("**", "x", true);
    }

    #[test]
    fn all_that_is_set_must_match() {
        let rules = RouteRules {
            path_prefix: Some("/a".to_owned()),
            headers: vec![(header::HOST, Glob::new("*.example")), (header::ACCEPT, Glob::new("x"))],
            models: vec![Glob::new("m")],
            tenants: vec!["t".to_owned()],
        };
        let check = |uri: &str, headers: &[(&str, &str)], tenant: Option<&str>, expected: bool| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(rules.take_head(&uri, &headers, tenant), expected, "{uri} {headers:?}");
        };
        let host = ("host", "llm.example");
        check("/a/v1", &[host, ("accept", "x")], Some("t"), true);
        check("https://llm.example/a/v1", &[("accept", "x")], Some("t"), true);
        check("/a/v1", &[host, ("accept", "x"), ("accept", "y")], Some("t"), false);
        check("/a/v1", &[host], Some("t"), false);
        check("/a/v1", &[("accept", "x")], Some("t"), false);
        check("/a/v1", &[host, ("accept", "x")], Some("u"), false);
        check("/a/v1", &[host, ("accept", "x")], None, false);
        for path in ["/a", "/ab/v1", "/b/a/v1", "/A/v1"] {
            check(path, &[host, ("accept", "x")], Some("t"), false);
        }
        assert!(rules.take_model(Some("m")) && !rules.take_model(Some("n")) && !rules.take_model(None));
        assert!(RouteRules::default().take_model(None));
    }

    #[test]
    fn a_prefix_is_taken_away() {
        fn check(uri: &str, expected: Option<&str>) {
            let rules = RouteRules { path_prefix: Some("/a".to_owned()), ..RouteRules::default() };
            let found = rules.shorten(&uri.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected);
        }
        check("/a/v1/models?x=y", Some("/v1/models?x=y"));
        check("http://h/a/v1", Some("http://h/v1"));
        check("/a//v1", Some("//v1"));
        check("/b/v1", None);
        assert!(RouteRules::default().shorten(&"/a/v1".parse().unwrap()).is_none());
    }
}
