//! Where allowed requests go: an OpenAI-compatible API, or a small model in process.

mod base_url;
mod embedded;
mod idle;
mod url;

use std::sync::Arc;

use bytes::Bytes;
use forethought_core::generate::ChatModel;
use http::{HeaderMap, HeaderName, Request, Response, header};

pub use self::base_url::BaseUrl;
use self::{embedded::Embedded, url::Url};
use crate::{
    Body,
    config::{EmbeddedConfig, UrlUpstream},
    reply::Error,
    server::Cutoff,
};

/// Where allowed requests go.
pub struct Upstream(Kind);

enum Kind {
    Url(Box<Url>),
    Embedded(Embedded),
}

/// The body of a request on its way to the upstream.
pub(crate) enum Sent {
    /// The bytes that the guard read.
    Read(Bytes),
    /// A body that nobody reads on the way.
    Unread(Body),
}

impl Upstream {
    /// An OpenAI-compatible API, over pooled connections.
    ///
    /// # Errors
    /// If the system's certificate roots can't be loaded for an https URL.
    pub fn url(config: UrlUpstream) -> std::io::Result<Self> {
        Ok(Self(Kind::Url(Box::new(Url::new(config)?))))
    }

    /// A model in process, behind the OpenAI chat API, under the model name `embedded`.
    pub fn embedded(model: Arc<dyn ChatModel>, config: EmbeddedConfig) -> Self {
        Self(Kind::Embedded(Embedded::new(model, config)))
    }

    /// Sends a request on. When `cutoff` becomes true, answers that are made here end properly.
    pub(crate) async fn send(&self, request: Request<Sent>, cutoff: Cutoff) -> Result<Response<Body>, Error> {
        match &self.0 {
            Kind::Url(url) => url.send(request).await,
            Kind::Embedded(embedded) => embedded.send(request, cutoff).await,
        }
    }
}

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Request headers by which some frameworks take a request for another one than its first line says.
const REROUTING: [&str; 5] =
    ["x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Takes out what concerns one connection only, and our own headers.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let own = |name: &&HeaderName| {
        name.as_str().starts_with("x-forethought-") || name.as_str() == "proxy-connection"
    };
    let own: Vec<HeaderName> = headers.keys().filter(own).cloned().collect();
    for name in HOP_BY_HOP.iter().chain(&named).chain(&own) {
        headers.remove(name);
    }
}
