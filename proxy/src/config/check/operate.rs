//! The admin listener and traces.

use std::{fmt, net::SocketAddr};

use sha2::{Digest, Sha256};

use super::{Check, address};
use crate::config::{RawAdmin, RawTelemetry};

/// The listener for those who operate the proxy.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What it asks for; never `None` where other machines can reach it.
    pub token: Option<Token>,
}

/// A token that is known by its hash alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// The token of this text.
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether `text` is it. How long that takes says nothing of where they differ.
    pub fn is(&self, text: &str) -> bool {
        *self == Self::new(text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// The collector's URL for traces.
    pub endpoint: String,
    /// The name that spans carry.
    pub service_name: String,
    /// Share of requests that are traced.
    pub sample_ratio: f64,
}

impl Check<'_> {
    pub(super) fn admin(&mut self, raw: &RawAdmin) -> Option<AdminConfig> {
        let token = self.secret("admin.token", raw.token_env.as_deref(), raw.token_file.as_deref());
        let listen = self.parsed("admin.listen", address(raw.listen.as_ref()?))?;
        let named = raw.token_env.is_some() || raw.token_file.is_some();
        self.require("admin.listen", listen.ip().is_loopback() || named, || {
            format!(
                "{listen} can be reached from other machines: set `admin.token_file` or `admin.token_env`, or listen on \
                 127.0.0.1"
            )
        });
        Some(AdminConfig { listen, token: token.as_deref().map(Token::new) })
    }

    pub(super) fn telemetry(&mut self, raw: &RawTelemetry) -> Option<TelemetryConfig> {
        let RawTelemetry { otlp, service_name, sample_ratio } = raw;
        self.require("telemetry.sample_ratio", (0.0..=1.0).contains(sample_ratio), || {
            format!("must be from 0 to 1, not {sample_ratio}")
        });
        self.require("telemetry.service_name", !service_name.trim().is_empty(), || {
            "must not be empty".to_owned()
        });
        let otlp = otlp.as_ref()?.trim_end_matches('/');
        let uri = otlp.parse::<http::Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && !otlp.contains('@')
        });
        let uri = uri.ok_or_else(|| {
            "must be the URL of a collector, without user and password, such as http://127.0.0.1:4318"
                .to_owned()
        });
        let uri = self.parsed("telemetry.otlp", uri)?;
        // A URL without a path is a collector's base, by the specification of OTLP.
        let endpoint = if uri.path() == "/" { format!("{otlp}/v1/traces") } else { otlp.to_owned() };
        Some(TelemetryConfig { endpoint, service_name: service_name.clone(), sample_ratio: *sample_ratio })
    }

    /// A secret by the name of a variable or by a file: `{at}_env`, `{at}_file`. Messages name those, never what they hold.
    pub(super) fn secret(&mut self, at: &str, env: Option<&str>, file: Option<&str>) -> Option<String> {
        let (key, text) = match (env, file) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                self.note(&format!("{at}_file"), format!("`{at}_env` is set too; keep one"));
                return None;
            }
            (Some(name), None) => {
                let text = std::env::var(name)
                    .map_err(|_| format!("the environment variable `{name}` is not set, or is not UTF-8"));
                (format!("{at}_env"), text)
            }
            (None, Some(path)) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| format!("can't read `{path}`: {error}"));
                (format!("{at}_file"), text)
            }
        };
        let text = text.and_then(|text| match text.trim() {
            "" => Err("it is empty".to_owned()),
            text => Ok(text.to_owned()),
        });
        self.parsed(&key, text)
    }
}
