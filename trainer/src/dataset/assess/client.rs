//! One request to a server of the OpenAI chat API, and what its answer means for the next one.
//!
//! Neither keys nor texts are ever part of a message.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::budget::estimate_tokens;
use super::status::{Failure, again, broken, failure, refused};
use crate::error::TrainError;

/// Most bytes of an answer.
const MOST_BYTES: u64 = 4 << 20;
/// Most ways of asking that are tried for one request.
const MOST_DIALECTS: usize = 8;

/// Where and how to ask.
#[derive(Clone)]
pub struct Server {
    /// The API's root, such as `https://api.example.com/v1`.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// The key, if it wants one.
    pub key: Option<String>,
    /// Time for one answer.
    pub timeout: Duration,
    /// Most tokens of an answer.
    pub max_tokens: u64,
}

/// A server that can be asked.
pub struct Teacher {
    agent: Agent,
    server: Server,
    dialect: Mutex<Dialect>,
}

/// What is sent beside model and messages: servers differ in what they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dialect {
    /// Asks for JSON by `response_format`.
    json: bool,
    /// Asks for the likeliest answer by `temperature`.
    temperature: bool,
    /// The limit's name is `max_completion_tokens` and not `max_tokens`.
    completion_tokens: bool,
    /// An answer to a request like this has come.
    is_proven: bool,
}

impl Dialect {
    const FIRST: Self = Self { json: true, temperature: true, completion_tokens: false, is_proven: false };

    /// Whether requests in `other` have the same parameters.
    fn sends_like(self, other: Self) -> bool {
        Self { is_proven: other.is_proven, ..self } == other
    }

    /// Leaves out what a refusal names; where it names nothing, what is refused most often, once. `None` where nothing
    /// is left to leave out, so that the refusal is about the row.
    fn without(self, refusal: &str) -> Option<Self> {
        let names = |name: &str| refusal.contains(name);
        if names("max_tokens") && !self.completion_tokens {
            Some(Self { completion_tokens: true, is_proven: false, ..self })
        } else if names("temperature") && self.temperature {
            Some(Self { temperature: false, is_proven: false, ..self })
        } else if self.json && (names("response_format") || names("json_object") || !self.is_proven) {
            Some(Self { json: false, is_proven: false, ..self })
        } else {
            None
        }
    }
}

/// An answer.
pub struct Reply {
    /// What the model wrote.
    pub content: String,
    /// Whether it was cut at the limit.
    pub cut: bool,
    /// Tokens sent, if the server counts.
    pub tokens_in: Option<u64>,
    /// Tokens received, if the server counts.
    pub tokens_out: Option<u64>,
}

impl Teacher {
    /// Makes a client; nothing is sent yet.
    ///
    /// # Errors
    /// The address or the key can't be used. The key is not shown.
    pub fn new(server: Server) -> Result<Self, TrainError> {
        let wrong = |problem: &str| Err(TrainError::Teacher(problem.into()));
        let url = server.url.trim_end_matches('/').to_owned();
        let Ok(uri) = url.parse::<Uri>() else { return wrong("--url is no address") };
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => {}
            (Some("http" | "https"), Some(_)) => return wrong("--url holds a password: use --api-key-env"),
            _ => return wrong("--url must begin with http:// or https:// and name a host"),
        }
        if server.key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()))
        {
            return wrong("the key is empty or holds a character that no key has");
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would send prompt and key to a host that nobody named.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(server.timeout))
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .build();
        let dialect = Mutex::new(Dialect::FIRST);
        Ok(Self { agent: config.into(), server: Server { url, ..server }, dialect })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.server.model
    }

    /// Most tokens of an answer.
    pub fn max_tokens(&self) -> u64 {
        self.server.max_tokens
    }

    /// Asks once; only a refusal of a parameter is met at once, by asking without it.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ask(&self, messages: &[Value]) -> Result<Reply, Failure> {
        let mut refusal = String::new();
        for _ in 0..MOST_DIALECTS {
            let dialect = *self.known();
            let (status, headers, body) = self.send(messages, dialect)?;
            match status {
                StatusCode::OK => {
                    let mut known = self.known();
                    known.is_proven |= known.sends_like(dialect);
                    drop(known);
                    return reply(&body);
                }
                StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::NOT_IMPLEMENTED => {
                    refusal = refused(status, &body);
                    let mut known = self.known();
                    if !known.sends_like(dialect) {
                        continue; // another request has found out more since
                    }
                    match known.without(&String::from_utf8_lossy(&body)) {
                        Some(next) => *known = next,
                        // It was about this row, and what was left out for it is no lesson.
                        None if !known.is_proven => {
                            *known = Dialect::FIRST;
                            break;
                        }
                        None => break,
                    }
                }
                status => return Err(failure(status, &headers, &body)),
            }
        }
        Err(Failure::Row(refusal))
    }

    fn known(&self) -> MutexGuard<'_, Dialect> {
        self.dialect.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        messages: &[Value],
        dialect: Dialect,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), Failure> {
        let limit = if dialect.completion_tokens { "max_completion_tokens" } else { "max_tokens" };
        let mut body = json!({"model": self.server.model, "messages": messages, "stream": false});
        body[limit] = self.server.max_tokens.into();
        if dialect.temperature {
            body["temperature"] = 0.into();
        }
        if dialect.json {
            body["response_format"] = json!({"type": "json_object"});
        }
        let mut request = self
            .agent
            .post(format!("{}/chat/completions", self.server.url))
            .header("content-type", "application/json");
        if let Some(key) = &self.server.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body.to_string()).map_err(broken)?;
        let headers = response.headers().clone();
        let body = response.body_mut().with_config().limit(MOST_BYTES).read_to_vec().map_err(broken)?;
        Ok((response.status(), headers, body))
    }
}

/// The machine's certificates; those built in if it has none.
fn roots() -> RootCerts {
    let native = rustls_native_certs::load_native_certs().certs;
    let certificates: Vec<_> = native.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    if certificates.is_empty() { RootCerts::WebPki } else { RootCerts::Specific(Arc::new(certificates)) }
}

fn reply(body: &[u8]) -> Result<Reply, Failure> {
    let body: Value = serde_json::from_slice(body).map_err(|_| again("the server's answer is not JSON"))?;
    let choice = &body["choices"][0];
    let message = &choice["message"];
    let finish = choice["finish_reason"].as_str().unwrap_or_default();
    if finish == "content_filter" || message["refusal"].as_str().is_some_and(|text| !text.is_empty()) {
        return Err(Failure::Row("the teacher refused".into()));
    }
    let content = message["content"].as_str().ok_or_else(|| again("the server's answer holds no message"))?;
    let tokens = |key: &str| body["usage"][key].as_u64();
    Ok(Reply {
        content: content.to_owned(),
        cut: finish == "length",
        tokens_in: tokens("prompt_tokens"),
        tokens_out: tokens("completion_tokens").or_else(|| Some(estimate_tokens(content))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_keys_are_checked_without_being_shown() {
        fn check(url: &str, key: Option<&str>, expected: Option<&str>) {
            let server = Server {
                url: url.into(),
                model: "m".into(),
                key: key.map(str::to_owned),
                timeout: Duration::from_secs(1),
                max_tokens: 1,
            };
            let error = Teacher::new(server).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{url}");
            let (error, expected) = (error.unwrap_or_default(), expected.unwrap_or_default());
            assert!(error.contains(expected) && !error.contains("hush"), "{error}");
        }
        check("http://127.0.0.1:1/v1/", Some("hush"), None);
        check("https://example.com", None, None);
        check("ftp://example.com", None, Some("http://"));
        check("example.com/v1", None, Some("--url"));
        check("https://me:hush@example.com", None, Some("--api-key-env"));
        check("https://example.com", Some("hush\n"), Some("the key"));
        check("https://example.com", Some(""), Some("the key"));
    }

    #[test]
    fn a_refusal_is_about_a_parameter_until_one_was_taken() {
        let proven = Dialect { is_proven: true, ..Dialect::FIRST };
        fn check(dialect: Dialect, refusal: &str, expected: Option<Dialect>) {
            assert_eq!(dialect.without(refusal), expected, "{refusal}");
        }
        let first = Dialect::FIRST;
        check(first, "`response_format` is unknown", Some(Dialect { json: false, ..first }));
        check(first, "what?", Some(Dialect { json: false, ..first }));
        check(
            first,
            "use max_completion_tokens, not max_tokens",
            Some(Dialect { completion_tokens: true, ..first }),
        );
        check(proven, "temperature must be 1", Some(Dialect { temperature: false, ..first }));
        check(proven, "the prompt is too long", None);
        check(Dialect { json: false, ..first }, "what?", None);
    }
}
