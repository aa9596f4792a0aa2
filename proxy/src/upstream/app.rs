//! A service in this process in the upstream's place: see [`GuardLayer`](crate::layer::GuardLayer).

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, header};
use tower::{ServiceExt, util::BoxCloneSyncService};
use tracing::warn;

use super::Sent;
use crate::{
    Body, BoxError,
    reply::{self, Error},
};

/// The service that a request goes to; it travels with the request.
#[derive(Clone)]
pub(crate) struct App(pub(crate) BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl App {
    /// Hands the request to the service: as it came, but for a body that a policy has changed.
    pub(super) async fn send(self, request: Request<Sent>) -> Result<Response<Body>, Error> {
        let (mut head, body) = request.into_parts();
        let body = match body {
            Sent::Read(bytes) => {
                head.headers.remove(header::TRANSFER_ENCODING);
                head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                reply::full(bytes)
            }
            Sent::Unread(body) => body,
        };
        // Boxed, as the compiler can't see otherwise that it may be sent between threads.
        let answer: BoxFuture<'static, _> = self.0.oneshot(Request::from_parts(head, body)).boxed();
        answer.await.map_err(|error| {
            warn!("the service behind the guard failed: {error}");
            Error::UpstreamBroken
        })
    }
}
