//! Which requests the guard reads, which pass unread, and which are denied.

use http::Method;

use crate::{
    api::{self, WireFormat},
    config::PathRules,
    reply::Error,
};

pub(super) enum Reading {
    /// Asks for an answer in this format: the guard reads it.
    Guarded(&'static dyn WireFormat),
    /// Goes upstream unread, by a rule.
    Pass,
}

/// Only exact matches go anywhere. A path that a server might still take for one that the guard reads never passes unread,
/// whatever the rules say.
pub(super) fn reading(rules: &PathRules, method: &Method, path: &str) -> Result<Reading, Error> {
    let shown = || path.chars().take(200).collect::<String>();
    let format = api::find(path);
    match format {
        Some(format) if method == Method::POST => return Ok(Reading::Guarded(format)),
        None if api::resembles(path) => return Err(Error::PathUnclear { path: shown() }),
        _ => {}
    }
    let asks = format.is_some() && !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if !asks && rules.passes(method, path) {
        return Ok(Reading::Pass);
    }
    Err(Error::PathDenied { method: method.clone(), path: shown() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathRule;

    #[test]
    fn nothing_that_looks_like_a_guarded_path_passes_unread() {
        let rules = PathRules { pass: vec![PathRule::parse("* /**").unwrap()], deny: vec![] };
        let check = |method: &Method, path: &str, expected: Option<&str>| {
            let found = reading(&rules, method, path).ok().map(|reading| match reading {
                Reading::Guarded(format) => format.name(),
                Reading::Pass => "pass",
            });
            assert_eq!(found, expected, "{method} {path}");
        };
        check(&Method::POST, "/v1/chat/completions", Some("openai-chat"));
        check(&Method::GET, "/v1/chat/completions", Some("pass"));
        check(&Method::GET, "/v1/chat/completions/chatcmpl-1", Some("pass"));
        check(&Method::POST, "/v1/embeddings", Some("pass"));
        check(&Method::PUT, "/v1/chat/completions", None);
        check(&Method::POST, "/v1beta/models/m:generateContent", Some("gemini"));
        check(&Method::POST, "/v1beta/models/m:embedContent", Some("pass"));
        check(&Method::PUT, "/v1beta/models/m:generateContent", None);
        for path in [
            "//v1/chat/completions",
            "/v1/chat/completions/",
            "/v1/chat/completions//",
            "/v1/./chat/completions",
            "/v1/x/../chat/completions",
            "/v1/Chat/Completions",
            "/V1/chat/completions",
            "/v1/chat%2fcompletions",
            "/v1/%63hat/completions",
            "/v1/chat/completions%2f",
            "/v1/chat/completion%73",
            "/v1/chat\\completions",
            "/v1/chat;x/completions",
            "/v1/chat/completions;x=y",
            "/chat/completions",
            "/openai/v1/chat/completions",
            "/v1/messages/",
            "/v1/Responses",
            "/api/./chat",
            "/v1beta/models/m%3AgenerateContent",
            "/v1beta/models/m:GenerateContent",
            "/v1beta/models/%6d:generateContent",
            "/v1beta/models/a/b:generateContent",
            "*",
        ] {
            check(&Method::POST, path, None);
        }
    }
}
