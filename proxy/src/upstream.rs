//! Where allowed requests go: OpenAI-compatible APIs, or a small model in process.

mod again;
mod app;
mod base_url;
mod dial;
mod embedded;
mod endpoint;
mod health;
mod idle;
mod pool;
mod url;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, header};

use self::pool::{Member, Pool};
pub(crate) use self::{app::App, endpoint::Endpoint};
pub use self::{base_url::BaseUrl, endpoint::UpstreamStatus};
use crate::{
    Body,
    config::{RouteConfig, Target},
    reply::Error,
    server::Cutoff,
};

/// Where allowed requests go: one upstream, or several that stand in for each other. Clones share connections and health.
#[derive(Clone)]
pub struct Upstream(Kind);

#[derive(Clone)]
enum Kind {
    One(Arc<Endpoint>),
    Pool(Arc<Pool>),
}

/// The body of a request on its way to the upstream.
pub(crate) enum Sent {
    /// The bytes that the guard read.
    Read(Bytes),
    /// A body that nobody reads on the way.
    Unread(Body),
}

/// Which upstream a request was sent to at last, and how often it was sent again. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Mutex<(Option<Arc<str>>, u32)>>);

impl Trail {
    fn sent(&self, name: &Arc<str>, again: bool) {
        let mut trail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trail.0 = Some(name.clone());
        trail.1 += u32::from(again);
    }

    /// The latest upstream's name, and how often the request was sent to another after the first.
    pub(crate) fn get(&self) -> (Option<Arc<str>>, u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Upstream {
    /// The upstreams of a route: each with its weight and priority, as in [`Target`](crate::config::Target).
    pub(crate) fn of_route(
        route: &RouteConfig,
        find: impl Fn(&str) -> Option<Arc<Endpoint>>,
    ) -> Option<Self> {
        let member = |target: &Target| {
            let &Target { ref name, weight, priority } = target;
            Some(Member { endpoint: find(name)?, weight, priority })
        };
        let mut members = route.upstreams.iter().map(member).collect::<Option<Vec<_>>>()?;
        Some(Self(match &members[..] {
            [_] => Kind::One(members.remove(0).endpoint),
            _ => Kind::Pool(Arc::new(Pool::new(members, route.tries, route.retry_unanswered))),
        }))
    }

    /// One upstream by itself.
    pub(crate) fn one(endpoint: Arc<Endpoint>) -> Self {
        Self(Kind::One(endpoint))
    }

    /// Sends a request on; its [`Trail`], if it has one, tells where. When `cutoff` becomes true, answers that are made
    /// here end properly.
    pub(crate) async fn send(&self, request: Request<Sent>, cutoff: Cutoff) -> Result<Response<Body>, Error> {
        if let Some(app) = request.extensions().get::<App>().cloned() {
            return app.send(request).await;
        }
        match &self.0 {
            Kind::One(endpoint) => {
                if let Some(trail) = request.extensions().get::<Trail>() {
                    trail.sent(&endpoint.name, false);
                }
                endpoint.send(request, cutoff).await
            }
            Kind::Pool(pool) => pool.send(request, cutoff).await,
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
