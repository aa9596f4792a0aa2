//! Which requests the guard reads, which pass unread, and which are denied.

use http::Method;

use crate::{config::PathRules, reply::Error};

/// The path of the OpenAI chat API.
const CHAT: &str = "/v1/chat/completions";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// The OpenAI chat API: the guard reads it.
    Chat,
    /// Goes upstream unread, by a rule.
    Pass,
}

/// Only exact matches go anywhere. A path that a server might still take for the chat API never passes unread, whatever
/// the rules say.
pub(super) fn route(rules: &PathRules, method: &Method, path: &str) -> Result<Route, Error> {
    let shown = || path.chars().take(200).collect::<String>();
    if path == CHAT && method == Method::POST {
        return Ok(Route::Chat);
    }
    let chat = path == CHAT && !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let alike = path != CHAT && path.to_ascii_lowercase().trim_end_matches('/').ends_with("chat/completions");
    if alike {
        return Err(Error::PathUnclear { path: shown() });
    }
    if !chat && rules.passes(method, path) {
        return Ok(Route::Pass);
    }
    Err(Error::PathDenied { method: method.clone(), path: shown() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathRule;

    #[test]
    fn nothing_that_looks_like_chat_passes_unread() {
        let rules = PathRules { pass: vec![PathRule::parse("* /**").unwrap()], deny: vec![] };
        let check = |method: &Method, path: &str, expected: Option<Route>| {
            assert_eq!(route(&rules, method, path).ok(), expected, "{method} {path}");
        };
        check(&Method::POST, "/v1/chat/completions", Some(Route::Chat));
        check(&Method::GET, "/v1/chat/completions", Some(Route::Pass));
        check(&Method::GET, "/v1/chat/completions/chatcmpl-1", Some(Route::Pass));
        check(&Method::POST, "/v1/embeddings", Some(Route::Pass));
        check(&Method::PUT, "/v1/chat/completions", None);
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
            "*",
        ] {
            check(&Method::POST, path, None);
        }
    }
}
