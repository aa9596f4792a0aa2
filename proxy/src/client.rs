//! A client for the proxy's own requests: to guards elsewhere, and to collectors of traces.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

use crate::BoxError;

/// Pooled connections; plain ones need no certificates, which a small container may not have.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Plain(Pool<HttpConnector, Full<Bytes>>),
    Tls(Pool<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Client {
    /// A client for `http`, or for `https` if `tls`.
    ///
    /// # Errors
    /// If the system's certificates can't be read.
    pub(crate) fn new(tls: bool, connect_timeout: Duration) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect_timeout));
        let mut builder = Pool::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
        Ok(if tls {
            let tls = HttpsConnectorBuilder::new().with_native_roots()?;
            Self::Tls(builder.build(tls.https_only().enable_all_versions().wrap_connector(tcp)))
        } else {
            Self::Plain(builder.build(tcp))
        })
    }

    /// Sends a request, and reads the whole answer: at most `limit` bytes, within `time`.
    ///
    /// # Errors
    /// The connection's, in a few words that hold nothing of either body.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limit: usize,
        time: Duration,
    ) -> Result<Response<Bytes>, BoxError> {
        let answer = async {
            let response = match self {
                Self::Plain(pool) => pool.request(request).await,
                Self::Tls(pool) => pool.request(request).await,
            };
            let response = response
                .map_err(|e| if e.is_connect() { "can't be reached" } else { "broke the connection off" })?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|_| "broke off in its answer, or wrote too much")?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        timeout(time, answer).await.unwrap_or_else(|_| Err("did not answer in time".into()))
    }
}
