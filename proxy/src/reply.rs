//! Every answer that is not the upstream's own: one map from errors to HTTP, told in the caller's own format.
//!
//! Messages say what, where, and what to do. They never hold prompt text, keys or what an upstream wrote.

use std::time::Duration;

use bytes::Bytes;
use forethought_core::{generate::GenerateError, guard::GuardError, policy::PolicyFailure};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::{Body, api::Voice};

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// When an overloaded guard or model may be asked again, in seconds. Clients back off further by themselves.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// Why a request got no answer from the upstream, and no refusal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "{method} {path} is not read by the guard, and no rule passes it on: add `{method} {path}` to the setting \
         `paths.pass` to send such requests upstream unread"
    )]
    PathDenied { method: Method, path: String },
    #[error("{path} can be read in more than one way, so it is not passed on: write the path plainly")]
    PathUnclear { path: String },
    #[error(
        "the request must show a key of this server, in `authorization` (after `Bearer`), `x-api-key` or `x-goog-api-key`"
    )]
    Unauthenticated,
    #[error("this key's tenant may ask again in {} s (the setting `tenants.NAME.requests_per_minute`)", .after.as_secs_f64().ceil())]
    RateLimited { after: Duration },
    #[error(
        "this key's tenant has as many requests under way as it may (the setting `tenants.NAME.concurrency`)"
    )]
    TooManyRunning,
    #[error("no route takes this request (the setting `routes`)")]
    NoRoute,
    #[error("the request's content type must be application/json, in UTF-8")]
    ContentType,
    #[error("the request's content encoding is not supported: send the body as it is")]
    ContentEncoding,
    #[error("the request's body is larger than {limit} bytes (the setting `limits.body_bytes`)")]
    TooLarge { limit: usize },
    #[error("the request's body did not arrive within {} ms (the setting `limits.body_timeout_ms`)", .after.as_millis())]
    BodyTimeout { after: Duration },
    #[error("the request's body could not be read to its end")]
    BodyBroken,
    #[error("a {method} request must not have a body: some servers take it for the next request")]
    BodyUnexpected { method: Method },
    #[error("the request's body is not the JSON it must be: {0}")]
    BadJson(serde_json::Error),
    #[error("`{param}` must be {expected}")]
    BadShape { param: String, expected: &'static str },
    #[error("{at} has a key that differs from `{key}` by case alone, which servers read in different ways")]
    KeyCase { at: String, key: String },
    #[error(
        "the guard can't read parts of the request ({kinds}), so it is not passed on (the setting `policy.on_unreadable`)"
    )]
    Unreadable { kinds: String },
    #[error(
        "the guard read {read} of the request's {tokens} tokens, so it is not passed on (the settings \
         `guard.max_tokens` and `policy.on_truncated`)"
    )]
    Truncated { read: usize, tokens: usize },
    #[error("{}", guard(.0))]
    Guard(GuardError),
    #[error("{0}, so the request is not passed on (the plugin's setting `on_failure`)")]
    Policy(PolicyFailure),
    #[error("too many requests wait for the policies to decide")]
    PolicyOverloaded,
    #[error("the policies failed, so the request is not passed on")]
    PolicyPanicked,
    #[error(
        "the policy rewrites part {part} of message {message}, which is not a single text in the request, so it is not \
         passed on"
    )]
    CantRewrite { message: usize, part: usize },
    #[error("the policy adds to the request what it has no place for, so it is not passed on")]
    CantAnnotate,
    #[error(
        "the policy `{policy}` chose an upstream that the configuration does not name (`[upstreams.NAME]`)"
    )]
    NoUpstream { policy: String },
    #[error("audit records can't be written, and the setting `audit.on_error` is `deny`")]
    Audit,
    #[error("the server is shutting down")]
    Stopping,
    #[error("the upstream could not be reached")]
    UpstreamUnreachable,
    #[error("the upstream did not answer within {} ms (its setting `{setting}`)", .after.as_millis())]
    UpstreamTimeout { after: Duration, setting: &'static str },
    #[error("the upstream broke off before it answered")]
    UpstreamBroken,
    #[error(
        "the guard can't read the upstream's answer ({why}), so it is not passed on (the setting `policy.on_unreadable`)"
    )]
    AnswerUnreadable { why: &'static str },
    #[error("the embedded model has no {path}")]
    NotFound { path: String },
    #[error("the model does not exist; the embedded model's name is `embedded`")]
    NoSuchModel,
    #[error("`{param}`: {message}")]
    Unsupported { param: String, message: &'static str },
    #[error(transparent)]
    Generate(GenerateError),
}

/// What callers are told of a guard's error: nothing of where its servers are, and how they do.
fn guard(error: &GuardError) -> String {
    match error {
        GuardError::Unreachable(_) => "no guard could be asked, so the request is not passed on".to_owned(),
        error => error.to_string(),
    }
}

/// Whether a client should send the same request again.
enum Retry {
    /// As its own rules say.
    ByStatus,
    Later,
    After(Duration),
    Never,
}

impl Error {
    pub(crate) fn bad_shape(param: &str, expected: &'static str) -> Self {
        Self::BadShape { param: param.to_owned(), expected }
    }

    /// The word for this error in answers, audit records and logs.
    pub(crate) fn code(&self) -> &'static str {
        self.map().1
    }

    fn map(&self) -> (StatusCode, &'static str, Retry) {
        use StatusCode as S;
        match self {
            Self::PathDenied { .. } => (S::FORBIDDEN, "path_denied", Retry::Never),
            Self::PathUnclear { .. } => (S::FORBIDDEN, "path_unclear", Retry::Never),
            Self::Unauthenticated => (S::UNAUTHORIZED, "invalid_api_key", Retry::Never),
            Self::RateLimited { after } => (S::TOO_MANY_REQUESTS, "rate_limited", Retry::After(*after)),
            Self::TooManyRunning => (S::TOO_MANY_REQUESTS, "too_many_running", Retry::Later),
            Self::NoRoute => (S::NOT_FOUND, "no_route", Retry::ByStatus),
            Self::ContentType => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", Retry::ByStatus),
            Self::ContentEncoding => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", Retry::ByStatus)
            }
            Self::TooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "body_too_large", Retry::ByStatus),
            Self::BodyTimeout { .. } => (S::REQUEST_TIMEOUT, "body_timeout", Retry::ByStatus),
            Self::BodyBroken => (S::BAD_REQUEST, "body_broken", Retry::ByStatus),
            Self::BodyUnexpected { .. } => (S::BAD_REQUEST, "unexpected_body", Retry::ByStatus),
            Self::BadJson(_) => (S::BAD_REQUEST, "bad_json", Retry::ByStatus),
            Self::BadShape { .. } => (S::BAD_REQUEST, "bad_shape", Retry::ByStatus),
            Self::KeyCase { .. } => (S::BAD_REQUEST, "ambiguous_key", Retry::ByStatus),
            Self::Unreadable { .. } => (S::FORBIDDEN, "unreadable_content", Retry::Never),
            Self::Truncated { .. } => (S::FORBIDDEN, "too_long_to_read", Retry::Never),
            Self::Guard(GuardError::Overloaded { .. }) => {
                (S::SERVICE_UNAVAILABLE, "guard_overloaded", Retry::Later)
            }
            Self::Guard(GuardError::Deadline { .. }) => (S::FORBIDDEN, "guard_deadline", Retry::Never),
            Self::Guard(GuardError::Unreachable(_)) => (S::FORBIDDEN, "guard_unreachable", Retry::Never),
            Self::Guard(GuardError::Model(_)) => (S::FORBIDDEN, "guard_failed", Retry::Never),
            Self::Guard(GuardError::Stopped) => (S::FORBIDDEN, "guard_stopped", Retry::Never),
            Self::Policy(failure) if failure.kind == "overloaded" => {
                (S::SERVICE_UNAVAILABLE, "policy_overloaded", Retry::Later)
            }
            Self::PolicyOverloaded => (S::SERVICE_UNAVAILABLE, "policy_overloaded", Retry::Later),
            Self::Policy(_) | Self::PolicyPanicked => (S::FORBIDDEN, "policy_failed", Retry::Never),
            Self::CantRewrite { .. } => (S::FORBIDDEN, "rewrite_failed", Retry::Never),
            Self::CantAnnotate => (S::FORBIDDEN, "annotate_failed", Retry::Never),
            Self::NoUpstream { .. } => (S::FORBIDDEN, "no_such_upstream", Retry::Never),
            Self::Audit => (S::SERVICE_UNAVAILABLE, "audit_unavailable", Retry::Later),
            Self::Stopping => (S::SERVICE_UNAVAILABLE, "shutting_down", Retry::Later),
            Self::UpstreamUnreachable => (S::BAD_GATEWAY, "upstream_unreachable", Retry::ByStatus),
            Self::UpstreamTimeout { .. } => (S::GATEWAY_TIMEOUT, "upstream_timeout", Retry::ByStatus),
            Self::UpstreamBroken => (S::BAD_GATEWAY, "upstream_broken", Retry::ByStatus),
            Self::AnswerUnreadable { .. } => (S::FORBIDDEN, "unreadable_answer", Retry::Never),
            Self::NotFound { .. } => (S::NOT_FOUND, "not_found", Retry::ByStatus),
            Self::NoSuchModel => (S::NOT_FOUND, "model_not_found", Retry::ByStatus),
            Self::Unsupported { .. } => (S::BAD_REQUEST, "unsupported_parameter", Retry::ByStatus),
            Self::Generate(GenerateError::Overloaded { .. }) => {
                (S::SERVICE_UNAVAILABLE, "model_overloaded", Retry::Later)
            }
            Self::Generate(GenerateError::TooLong { .. }) => {
                (S::BAD_REQUEST, "context_length_exceeded", Retry::ByStatus)
            }
            Self::Generate(GenerateError::Template(_)) => (S::BAD_REQUEST, "bad_messages", Retry::ByStatus),
            Self::Generate(GenerateError::Model(_)) => {
                (S::INTERNAL_SERVER_ERROR, "model_failed", Retry::ByStatus)
            }
            Self::Generate(GenerateError::Stopped) => (S::SERVICE_UNAVAILABLE, "shutting_down", Retry::Later),
        }
    }

    /// What is told of the error; `input` is the request's field that holds what the guard reads.
    pub(crate) fn body(&self, input: &str) -> ErrorBody {
        let (status, code, _) = self.map();
        let kind = match status {
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = match self {
            Self::BadShape { param, .. } => Some(param.clone()),
            Self::Unsupported { param, .. } => Some(param.clone()),
            Self::NoSuchModel => Some("model".to_owned()),
            Self::Unreadable { .. } | Self::Truncated { .. } => Some(input.to_owned()),
            _ => None,
        };
        ErrorBody { status, message: self.to_string(), kind, param, code }
    }

    /// The error as the caller's client expects it.
    pub(crate) fn response(&self, voice: Voice) -> Response<Body> {
        let (status, _, retry) = self.map();
        let mut response = json(status, &voice.error(&self.body(voice.input)));
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        match retry {
            Retry::ByStatus => {}
            Retry::Later => {
                response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            Retry::After(pause) => {
                let seconds = pause.as_secs_f64().ceil() as u64;
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            Retry::Never => never_retry(&mut response),
        }
        response
    }
}

/// What is told of an error, in whatever shape.
pub(crate) struct ErrorBody {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<String>,
    pub(crate) code: &'static str,
}

/// Tells clients not to send the same request again: the answer would be the same, and the guard's work wasted.
pub(crate) fn never_retry(response: &mut Response<Body>) {
    response.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
}

pub(crate) fn json(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A streamed answer.
pub(crate) fn stream(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
