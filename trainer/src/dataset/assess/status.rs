//! What an error of the connection, or a status other than success, means for the row and for the run.
//!
//! Bodies of errors may quote the prompt, so only short codes out of them are passed on.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::http::{HeaderMap, StatusCode};

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another attempt may have one.
    Again {
        /// What was met.
        reason: String,
        /// How long the server wants to be left alone.
        after: Option<Duration>,
    },
    /// There will be none for this row.
    Row(String),
    /// There will be none for any row.
    Fatal(String),
    /// The run is to end.
    Stopped,
}

/// What an error of the connection means. Its text names host and cause, never headers or bodies.
pub(super) fn broken(error: ureq::Error) -> Failure {
    use ureq::Error;
    match error {
        Error::Timeout(_) => again("no answer in time"),
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Io(_)
        | Error::Protocol(_)
        | Error::BodyStalled => again(&format!("the connection failed: {error}")),
        Error::BodyExceedsLimit(_) => Failure::Row("the answer is far too long".into()),
        error => Failure::Fatal(format!("the connection can't be made: {error}")),
    }
}

pub(super) fn again(reason: &str) -> Failure {
    Failure::Again { reason: reason.into(), after: None }
}

pub(super) fn failure(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let reason = refused(status, body);
    match status.as_u16() {
        // No pause fills an account.
        429 if reason.contains("insufficient_quota") => Failure::Fatal(reason),
        408 | 409 | 429 | 500.. => Failure::Again { reason, after: retry_after(headers) },
        401 | 403 => Failure::Fatal(format!("{reason}: is the key right (--api-key-env, --api-key-file)?")),
        404 | 405 => Failure::Fatal(format!("{reason}: are --url and --model right?")),
        300..=399 => Failure::Fatal(format!("{reason}: the server redirects; name the address it means")),
        413 => Failure::Row(reason),
        _ => Failure::Fatal(reason),
    }
}

/// The status, and the error's code if it looks like one.
pub(super) fn refused(status: StatusCode, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    let is_code = |text: &&str| {
        (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let code = ["code", "type"].iter().find_map(|key| error[key].as_str().filter(is_code));
    match code {
        Some(code) => format!("the server answered {} ({code})", status.as_u16()),
        None => format!("the server answered {}", status.as_u16()),
    }
}

/// Seconds or a date, or milliseconds as OpenAI's servers say them.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str, unit: f64| {
        let seconds = text.parse::<f64>().ok()? / unit;
        Duration::try_from_secs_f64(seconds).ok()
    };
    if let Some(after) = header("retry-after-ms").and_then(|text| number(text, 1000.0)) {
        return Some(after);
    }
    let text = header("retry-after")?;
    let until = || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
    number(text, 1.0).or_else(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_that_servers_ask_for() {
        fn check(name: &'static str, value: &str, expected: Option<Duration>) {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(retry_after(&headers), expected, "{name}: {value}");
        }
        check("retry-after", "7", Some(Duration::from_secs(7)));
        check("retry-after-ms", "250", Some(Duration::from_millis(250)));
        check("retry-after", "-1", None);
        check("retry-after", "soon", None);
        check("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", None);
        let far = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1000));
        let headers = HeaderMap::from_iter([("retry-after".parse().unwrap(), far.parse().unwrap())]);
        assert!(retry_after(&headers).is_some_and(|after| after > Duration::from_secs(900)));
    }

    #[test]
    fn failures_are_sorted_and_quote_nothing_but_codes() {
        fn check(status: u16, body: &str, expected: fn(&Failure) -> bool) {
            let found = failure(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes());
            assert!(expected(&found), "{status}: {found:?}");
            assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        }
        let again: fn(&Failure) -> bool = |f| matches!(f, Failure::Again { .. });
        for status in [408, 409, 429, 500, 503, 529] {
            check(status, r#"{"error": {"message": "secret", "code": "Secret secret"}}"#, again);
        }
        let fatal: fn(&Failure) -> bool = |f| matches!(f, Failure::Fatal(_));
        check(429, r#"{"error": {"code": "insufficient_quota"}}"#, fatal);
        for status in [301, 401, 403, 404] {
            check(status, "secret", fatal);
        }
        check(413, "", |f| matches!(f, Failure::Row(_)));
    }
}
