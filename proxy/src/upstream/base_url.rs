//! The base URL of an OpenAI-compatible API.

use std::fmt;

use http::{
    Uri,
    uri::{Authority, Scheme},
};

/// A base URL as API clients take it, such as `https://llm.example/v1`: what follows `/v1` in a caller's path is
/// appended to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end.
    path: String,
}

impl BaseUrl {
    /// Reads a base URL. One without a path means `/v1`.
    ///
    /// # Errors
    /// What is wrong with it, without the URL itself, which may hold a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| {
            format!("must be `embedded` or a URL such as https://llm.example/v1 ({error})")
        })?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err("must be `embedded` or a whole URL such as https://llm.example/v1".to_owned());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(format!("has the scheme `{scheme}`; only http and https are spoken"));
        }
        if authority.as_str().contains('@') {
            return Err("holds a user or a password; use `upstream.api_key_env` or `upstream.api_key_file`"
                .to_owned());
        }
        let path = parts.path_and_query.as_ref().map_or("/", |p| p.path()).trim_end_matches('/').to_owned();
        if parts.path_and_query.is_some_and(|p| p.query().is_some()) {
            return Err("has a query, which a base URL can't".to_owned());
        }
        let path = if path.is_empty() { "/v1".to_owned() } else { path };
        Ok(Self { scheme, authority, path })
    }

    /// Whether connections are encrypted.
    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Where a caller's request goes: below the base URL for a path in `/v1`, else to the same path of the same host.
    /// `None` for a target that is no path, as `OPTIONS *` has.
    pub fn join(&self, target: &Uri) -> Option<Uri> {
        let path = target.path();
        if !path.starts_with('/') {
            return None;
        }
        let mut joined = match path.strip_prefix("/v1") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", self.path),
            _ => path.to_owned(),
        };
        if let Some(query) = target.query() {
            joined.push('?');
            joined.push_str(query);
        }
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(joined)
            .build()
            .ok()
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined() {
        fn check(base: &str, target: &str, expected: &str) {
            let joined = BaseUrl::parse(base).unwrap().join(&target.parse().unwrap()).unwrap();
            assert_eq!(joined.to_string(), expected);
        }
        check("http://h:1", "/v1/models?a=b", "http://h:1/v1/models?a=b");
        check("http://h/", "/v1/models", "http://h/v1/models");
        check("https://h/v1/", "/v1/chat/completions", "https://h/v1/chat/completions");
        check("https://h/v1beta/openai", "/v1/chat/completions", "https://h/v1beta/openai/chat/completions");
        check("https://h/x", "/health", "https://h/health");
        check("https://h/x", "/v10/y", "https://h/v10/y");
        assert!(BaseUrl::parse("http://h").unwrap().join(&"*".parse().unwrap()).is_none());
    }

    #[test]
    fn bad_urls_are_explained_without_showing_them() {
        fn check(url: &str, expected: &str) {
            let error = BaseUrl::parse(url).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
        check("llm.example/v1", "must be");
        check("embeded", "must be");
        check("ftp://h/v1", "scheme");
        check("http://user:hunter2@h/v1", "password");
        check("http://h/v1?key=hunter2", "query");
        check("", "must be");
    }
}
