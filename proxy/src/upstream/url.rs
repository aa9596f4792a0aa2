//! An OpenAI-compatible API as upstream.

use std::{error::Error as _, io};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{REROUTING, Sent, dial::Dial, idle::IdleTimeout, strip};
use crate::{
    Body,
    api::{Key, Voice},
    config::{Http, Secret, UrlUpstream},
    reply::{self, Error},
    tenants::{KEY_HEADERS, OwnKey},
};

pub(super) struct Url {
    config: UrlUpstream,
    client: Client,
}

/// Pooled connections; plain ones need no certificates, which a small container may not have.
#[derive(Clone)]
enum Client {
    Plain(legacy::Client<Dial, Body>),
    Tls(legacy::Client<HttpsConnector<Dial>, Body>),
}

impl Client {
    fn request(&self, request: Request<Body>) -> ResponseFuture {
        match self {
            Self::Plain(client) => client.request(request),
            Self::Tls(client) => client.request(request),
        }
    }
}

/// What is asked for to see whether an upstream is well.
pub(super) struct Probe {
    client: Client,
    target: Uri,
    key: Option<Secret>,
}

impl Probe {
    pub(super) async fn is_good(&self) -> bool {
        let mut request = Request::new(reply::full(Bytes::new()));
        *request.uri_mut() = self.target.clone();
        if let Some(key) = &self.key {
            request.headers_mut().insert(header::AUTHORIZATION, key.bearer());
        }
        self.client.request(request).await.is_ok_and(|response| response.status().as_u16() < 400)
    }
}

impl Url {
    pub(super) fn new(config: UrlUpstream) -> io::Result<Self> {
        let dial = Dial::new(config.socket.as_deref(), config.connect_timeout);
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
        builder.http2_only(config.http == Http::Two);
        let client = if config.base.is_https() {
            let tls = HttpsConnectorBuilder::new().with_tls_config(config.tls.config()?).https_only();
            Client::Tls(builder.build(match config.http {
                Http::Auto => tls.enable_all_versions().wrap_connector(dial),
                Http::One => tls.enable_http1().wrap_connector(dial),
                Http::Two => tls.enable_http2().wrap_connector(dial),
            }))
        } else {
            Client::Plain(builder.build(dial))
        };
        Ok(Self { config, client })
    }

    /// A check that asks for `path`.
    pub(super) fn probe(&self, path: &str) -> Option<Probe> {
        let target = self.config.base.join(&path.parse().ok()?)?;
        Some(Probe { client: self.client.clone(), target, key: self.config.key.clone() })
    }

    pub(super) async fn send(&self, request: Request<Sent>) -> Result<Response<Body>, Error> {
        let (parts, body) = request.into_parts();
        let voice = Voice::of(&parts);
        let uri = self
            .config
            .base
            .join(&parts.uri)
            .ok_or(Error::PathUnclear { path: "the request's target".into() })?;
        let mut headers = parts.headers;
        strip(&mut headers);
        REROUTING.iter().for_each(|name| drop(headers.remove(*name)));
        // Host and length are written anew by hyper; an expectation was met when the body was read here.
        [header::HOST, header::CONTENT_LENGTH, header::EXPECT]
            .iter()
            .for_each(|name| drop(headers.remove(name)));
        if self.config.key.is_some() || parts.extensions.get::<OwnKey>().is_some() {
            KEY_HEADERS.iter().for_each(|name| drop(headers.remove(name)));
        }
        if let Some(key) = &self.config.key {
            let [bearer, anthropic, google] = KEY_HEADERS.clone();
            let (name, value) = match voice.key() {
                Key::Bearer => (bearer, key.bearer()),
                Key::Anthropic => (anthropic, key.plain()),
                Key::Google => (google, key.plain()),
            };
            headers.insert(name, value);
        }
        let body = match body {
            Sent::Read(bytes) => reply::full(bytes),
            Sent::Unread(body) => body,
        };
        let mut outgoing = Request::new(body);
        *outgoing.method_mut() = parts.method;
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = headers;

        let UrlUpstream { response_timeout, idle_timeout, total_timeout, .. } = self.config;
        let end = total_timeout.map(|total| (Instant::now() + total, total));
        let (after, setting) = match total_timeout.filter(|total| *total < response_timeout) {
            Some(total) => (total, "total_timeout_ms"),
            None => (response_timeout, "response_timeout_ms"),
        };
        let answer = timeout(after, self.client.request(outgoing)).await;
        let response =
            answer.map_err(|_| Error::UpstreamTimeout { after, setting })?.map_err(|error| fault(&error))?;
        let (mut parts, body) = response.into_parts();
        // Nobody asked for another protocol.
        if parts.status.is_informational() {
            warn!("the upstream failed: it answered with status {}", parts.status.as_u16());
            return Err(Error::UpstreamBroken);
        }
        // Chunks come before a length that contradicts them (RFC 9112, section 6.3); passed on, it would cut the answer.
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        strip(&mut parts.headers);
        let body = IdleTimeout::new(body.map_err(Into::into).boxed_unsync(), idle_timeout, end);
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

/// Logs the whole chain of causes, which names hosts; callers get the kind alone.
fn fault(error: &legacy::Error) -> Error {
    let mut causes = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        causes = format!("{causes}: {cause}");
        source = cause.source();
    }
    warn!("the upstream failed: {causes}");
    if error.is_connect() { Error::UpstreamUnreachable } else { Error::UpstreamBroken }
}
