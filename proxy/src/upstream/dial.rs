//! Connections to upstreams: over TCP, or over a unix socket whatever the URL says.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tower_service::Service;

use crate::{BoxError, server::Socket};

/// Opens connections.
#[derive(Clone)]
pub(super) enum Dial {
    Tcp(HttpConnector),
    #[cfg_attr(not(unix), allow(dead_code))]
    Unix(Arc<Path>, Duration),
}

/// An open connection.
pub(super) struct Dialled(TokioIo<Box<dyn Socket>>);

impl Dial {
    /// A connector that gives up after `patience`.
    pub(super) fn new(socket: Option<&Path>, patience: Duration) -> Self {
        match socket {
            Some(path) => Self::Unix(path.into(), patience),
            None => {
                let mut tcp = HttpConnector::new();
                tcp.enforce_http(false);
                tcp.set_nodelay(true);
                tcp.set_connect_timeout(Some(patience));
                Self::Tcp(tcp)
            }
        }
    }
}

impl Service<Uri> for Dial {
    type Response = Dialled;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Dialled, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Self::Unix(..) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        match self {
            Self::Tcp(tcp) => {
                let connecting = tcp.call(target);
                async { Ok(Dialled(TokioIo::new(Box::new(connecting.await?.into_inner())))) }.boxed()
            }
            Self::Unix(path, patience) => unix(path.clone(), *patience).boxed(),
        }
    }
}

#[cfg(unix)]
async fn unix(path: Arc<Path>, patience: Duration) -> Result<Dialled, BoxError> {
    let connecting = tokio::net::UnixStream::connect(&path);
    let stream = tokio::time::timeout(patience, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(Dialled(TokioIo::new(Box::new(stream))))
}

#[cfg(not(unix))]
async fn unix(_: Arc<Path>, _: Duration) -> Result<Dialled, BoxError> {
    Err(io::Error::from(io::ErrorKind::Unsupported).into())
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }
}
