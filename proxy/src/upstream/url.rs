//! An OpenAI-compatible API as upstream.

use std::{error::Error as _, io};

use http::{HeaderName, Request, Response, header};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, ResponseFuture, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;
use tracing::warn;

use super::{REROUTING, Sent, idle::IdleTimeout, strip};
use crate::{
    Body,
    api::{Key, Voice},
    config::UrlUpstream,
    reply::{self, Error},
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

pub(super) struct Url {
    config: UrlUpstream,
    client: Client,
}

/// Pooled connections; plain ones need no certificates, which a small container may not have.
enum Client {
    Plain(legacy::Client<HttpConnector, Body>),
    Tls(legacy::Client<HttpsConnector<HttpConnector>, Body>),
}

impl Client {
    fn request(&self, request: Request<Body>) -> ResponseFuture {
        match self {
            Self::Plain(client) => client.request(request),
            Self::Tls(client) => client.request(request),
        }
    }
}

impl Url {
    pub(super) fn new(config: UrlUpstream) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.connect_timeout));
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
        let client = if config.base.is_https() {
            let tls = HttpsConnectorBuilder::new().with_native_roots()?;
            Client::Tls(builder.build(tls.https_only().enable_all_versions().wrap_connector(tcp)))
        } else {
            Client::Plain(builder.build(tcp))
        };
        Ok(Self { config, client })
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
        if let Some(key) = &self.config.key {
            [header::AUTHORIZATION, X_API_KEY, X_GOOG_API_KEY]
                .iter()
                .for_each(|name| drop(headers.remove(name)));
            let (name, value) = match voice.key() {
                Key::Bearer => (header::AUTHORIZATION, key.bearer()),
                Key::Anthropic => (X_API_KEY, key.plain()),
                Key::Google => (X_GOOG_API_KEY, key.plain()),
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

        let after = self.config.response_timeout;
        let answer = timeout(after, self.client.request(outgoing)).await;
        let response =
            answer.map_err(|_| Error::UpstreamTimeout { after })?.map_err(|error| fault(&error))?;
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
        let body = IdleTimeout::new(body.map_err(Into::into).boxed_unsync(), self.config.idle_timeout);
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
