//! Rules for paths that no guard reads.

use http::Method;

/// Pass and deny rules; what none of them names is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    /// Requests that go upstream unread.
    pub pass: Vec<PathRule>,
    /// Exceptions from `pass`.
    pub deny: Vec<PathRule>,
}

impl PathRules {
    /// Whether a request goes upstream unread. A path that two servers could read differently never does.
    pub fn passes(&self, method: &Method, path: &str) -> bool {
        let any = |rules: &[PathRule]| rules.iter().any(|rule| rule.matches(method, path));
        is_plain(path) && any(&self.pass) && !any(&self.deny)
    }
}

/// Requests for which no model writes an answer.
pub(super) const WRITES_NOTHING: [&str; 19] = [
    "GET /v1/models",
    "GET /v1/models/*",
    "POST /v1/embeddings",
    "GET /v1/files",
    "POST /v1/files",
    "GET /v1/files/**",
    "DELETE /v1/files/*",
    "POST /v1/messages/count_tokens",
    "GET /api/tags",
    "GET /api/ps",
    "GET /api/version",
    "POST /api/show",
    "POST /api/embed",
    "POST /api/embeddings",
    "GET /v1beta/models",
    "GET /v1beta/models/*",
    "POST /v1beta/models/*:countTokens",
    "POST /v1beta/models/*:embedContent",
    "POST /v1beta/models/*:batchEmbedContents",
];

/// A method and a path, such as `GET /v1/models/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `None` is any.
    method: Option<Method>,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(String),
    /// One segment that ends so, and has something before.
    Ends(String),
    /// One segment.
    Any,
    /// One segment or more, to the end.
    Rest,
}

impl PathRule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence that follows "the rule".
    pub fn parse(rule: &str) -> Result<Self, String> {
        let (method, path) = rule
            .trim()
            .split_once(' ')
            .ok_or("needs a method (or `*`) and a path, such as `GET /v1/models`".to_owned())?;
        let method = match method {
            "*" => None,
            name if name.bytes().all(|b| b.is_ascii_uppercase()) => {
                Some(name.parse().map_err(|_| format!("has an unusable method `{name}`"))?)
            }
            name => return Err(format!("has the method `{name}`, which must be in capitals")),
        };
        let path = path.trim();
        if path.contains('?') {
            return Err("has a query; rules match the path alone".to_owned());
        }
        if !is_plain(path) {
            return Err(format!(
                "has the path `{path}`, which must start with `/` and hold no empty or dot segments"
            ));
        }
        let segments: Vec<_> = segments(path)
            .map(|segment| match segment {
                "*" => Segment::Any,
                "**" => Segment::Rest,
                segment => match segment.strip_prefix('*') {
                    Some(end) => Segment::Ends(end.to_owned()),
                    None => Segment::Exact(segment.to_owned()),
                },
            })
            .collect();
        if segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest) {
            return Err("has `**` before its end".to_owned());
        }
        Ok(Self { method, segments })
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        let mut given = segments(path);
        let path_matches = self.segments.iter().all(|segment| match (segment, given.next()) {
            (Segment::Exact(exact), Some(segment)) => exact == segment,
            (Segment::Ends(end), Some(segment)) => segment.len() > end.len() && segment.ends_with(end),
            (Segment::Any, Some(_)) => true,
            (Segment::Rest, Some(_)) => {
                given.by_ref().for_each(drop);
                true
            }
            (_, None) => false,
        });
        path_matches && given.next().is_none() && self.method.as_ref().is_none_or(|m| m == method)
    }

    /// Whether requests of this rule may have a model write: any method but `GET`, `HEAD` and `OPTIONS`, and none of the
    /// default rules.
    pub fn may_ask(&self) -> bool {
        let is_default = || WRITES_NOTHING.iter().any(|rule| Self::parse(rule).as_ref() == Ok(self));
        !matches!(self.method, Some(Method::GET | Method::HEAD | Method::OPTIONS)) && !is_default()
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// Whether every server reads this path the same way: it starts with `/`, has no empty, `.` or `..` segments, no
/// backslash, no `;`, and escapes nothing that could be written plainly or that splits segments.
pub(crate) fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && segments(path).all(|segment| {
            !matches!(segment, "" | "." | "..")
                && !segment.contains(['\\', ';'])
                && escapes_are_needed(segment)
        })
}

fn escapes_are_needed(segment: &str) -> bool {
    segment.split('%').skip(1).all(|rest| {
        let byte = rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        byte.is_some_and(|b| {
            !b.is_ascii_alphanumeric() && !b.is_ascii_control() && !b"-._~/\\%;".contains(&b)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_what_they_name() {
        fn check(rule: &str, method: Method, path: &str, expected: bool) {
            let rules = PathRules { pass: vec![PathRule::parse(rule).unwrap()], deny: vec![] };
            assert_eq!(rules.passes(&method, path), expected, "{rule} / {method} {path}");
        }
        check("GET /v1/models", Method::GET, "/v1/models", true);
        check("GET /v1/models", Method::POST, "/v1/models", false);
        check("GET /v1/models", Method::HEAD, "/v1/models", false);
        check("GET /v1/models", Method::GET, "/v1/models/", false);
        check("GET /v1/models", Method::GET, "/V1/models", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/gpt-4.1:latest", true);
        check("GET /v1/models/*", Method::GET, "/v1/models/llama3%3A8b", true);
        check("GET /v1/models/*", Method::GET, "/v1/models", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/a/b", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/..", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/%2e%2e", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/%2fchat", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/%", false);
        check("GET /v1/models/*", Method::GET, "/v1/models/a;b", false);
        check("GET /v1/models/**", Method::GET, "/v1/models/a/b", true);
        check("GET /v1/models/**", Method::GET, "/v1/models", false);
        check("POST /v1beta/models/*:countTokens", Method::POST, "/v1beta/models/m:countTokens", true);
        check("POST /v1beta/models/*:countTokens", Method::POST, "/v1beta/models/:countTokens", false);
        check("POST /v1beta/models/*:countTokens", Method::POST, "/v1beta/models/m:embedContent", false);
        check("* /v1/**", Method::DELETE, "/v1/files/1", true);
        check("* /v1/**", Method::POST, "/v1/./files", false);
        check("* /v1/**", Method::POST, "/v1//files", false);
        check("* /v1/**", Method::OPTIONS, "*", false);
    }

    #[test]
    fn deny_comes_first() {
        let rule = |text| vec![PathRule::parse(text).unwrap()];
        let rules = PathRules { pass: rule("* /v1/**"), deny: rule("POST /v1/completions") };
        assert!(rules.passes(&Method::POST, "/v1/embeddings"));
        assert!(!rules.passes(&Method::POST, "/v1/completions"));
    }

    #[test]
    fn default_rules_ask_no_model() {
        fn check(rule: &str, expected: bool) {
            assert_eq!(PathRule::parse(rule).unwrap().may_ask(), expected, "{rule}");
        }
        check("GET /v1/batches", false);
        check("POST /v1/batches", true);
        check("* /v1/models", true);
        for rule in WRITES_NOTHING {
            check(rule, false);
        }
    }

    #[test]
    fn bad_rules_are_named() {
        fn check(rule: &str, expected: &str) {
            let error = PathRule::parse(rule).unwrap_err();
            assert!(error.contains(expected), "{rule}: {error}");
        }
        check("/v1/models", "needs a method");
        check("get /v1/models", "capitals");
        check("GET v1/models", "must start with");
        check("GET /v1//models", "empty or dot");
        check("GET /v1/models?x", "query");
        check("GET /**/models", "before its end");
    }
}
