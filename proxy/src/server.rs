//! Connections: accepting, bounding and draining them.

mod listener;
mod repoll;

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

pub use self::listener::Listener;
use self::{listener::Accepted, repoll::Repoll};
use crate::Proxy;

/// Time that streams of our own have for their last chunks once the drain time is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a quiet HTTP/2 connection is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// A connection's two ways.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Tells running requests that their time to end properly is over.
#[derive(Clone)]
pub(crate) struct Cutoff(watch::Receiver<bool>);

impl Cutoff {
    pub(crate) fn new(sender: &watch::Sender<bool>) -> Self {
        Self(sender.subscribe())
    }

    pub(crate) fn is_reached(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the cutoff; for ever, if the proxy is gone without one.
    pub(crate) async fn reached(&mut self) {
        if self.0.wait_for(|reached| *reached).await.is_err() {
            pending().await
        }
    }

    /// What `work` gives, or `None` if the cutoff comes first.
    pub(crate) async fn or<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.reached() => None,
        }
    }
}

impl Proxy {
    /// Serves HTTP/1.1 and HTTP/2 (agreed on over TLS, with prior knowledge without) until `shutdown` ends. Then no connection is accepted any more,
    /// running requests have the drain time to end, and what still runs after it is cut: answers of our own with a
    /// proper last chunk, requests without an answer with status 503. All audit records are written before this returns.
    ///
    /// # Errors
    /// Never, once the listener listens: faults of single connections are logged.
    pub async fn serve(
        self: Arc<Self>,
        listener: impl Into<Listener>,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let most = self.live.load().config.limits.connections.min(Semaphore::MAX_PERMITS);
        let permits = Arc::new(Semaphore::new(most));
        let listener = listener.into();
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = permits.clone().acquire_owned().await.ok();
                listener.accept().await.map(|accepted| (accepted, permit))
            };
            tokio::select! {
                () = &mut shutdown => break,
                accepted = accepted => match accepted {
                    Ok((accepted, permit)) => {
                        let (proxy, watcher) = (self.clone(), graceful.watcher());
                        connections.spawn(async move {
                            match accepted {
                                Accepted::Tcp(stream) => {
                                    let _ = stream.set_nodelay(true);
                                    proxy.connection(stream, watcher).await;
                                }
                                #[cfg(unix)]
                                Accepted::Unix(stream) => proxy.connection(stream, watcher).await,
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        warn!("a connection could not be accepted: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                // Reaps what has ended.
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        self.stopping.store(true, Relaxed);
        let patience = self.live.load().config.limits.drain_timeout;
        info!(
            connections = most - permits.available_permits(),
            "stopping: running requests have {} ms to end",
            patience.as_millis()
        );
        let drained = graceful.shutdown();
        tokio::pin!(drained);
        let cutoff = Cutoff::new(&self.cut);
        let in_time = timeout(patience, cutoff.or(&mut drained)).await;
        if !matches!(in_time, Ok(Some(()))) {
            warn!("requests still run after the drain time (`limits.drain_timeout_ms`); they are cut");
            self.hurry();
            let _ = timeout(LAST_WORDS, &mut drained).await;
        }
        connections.shutdown().await;
        if !self.audit.finish().await {
            warn!("some audit records could not be written before the end");
        }
        if let Some(telemetry) = &self.telemetry {
            telemetry.finish().await;
        }
        Ok(())
    }

    /// Ends the drain time now: what still runs is cut.
    pub fn hurry(&self) {
        self.cut.send_replace(true);
    }

    /// Serves one connection, over TLS where the configuration in force says so.
    async fn connection(self: Arc<Self>, stream: impl Socket + 'static, watcher: Watcher) {
        let (tls, patience) = {
            let config = &self.live.load().config;
            (config.tls.clone(), config.limits.header_timeout)
        };
        let Some(tls) = tls else { return self.speak(stream, watcher).await };
        match timeout(patience, TlsAcceptor::from(tls.config()).accept(stream)).await {
            Ok(Ok(stream)) => self.speak(stream, watcher).await,
            Ok(Err(error)) => debug!("a connection was not secured: {error}"),
            Err(_) => debug!("a connection was not secured in time"),
        }
    }

    /// Speaks HTTP over one connection.
    async fn speak(self: Arc<Self>, stream: impl Socket + 'static, watcher: Watcher) {
        let head_timeout = self.live.load().config.limits.header_timeout;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING);
        let begun = Arc::new(AtomicBool::new(false));
        let service = service_fn(|request| {
            begun.store(true, Relaxed);
            let proxy = self.clone();
            let answer = proxy.call(request.map(|body: Incoming| body.map_err(Into::into).boxed_unsync()));
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = pin!(watcher.watch(builder.serve_connection(TokioIo::new(stream), service)));
        // hyper's own timer starts when it knows which HTTP is spoken; this one covers the time before.
        let silent = async {
            sleep(head_timeout).await;
            if begun.load(Relaxed) {
                pending::<()>().await;
            }
        };
        tokio::select! {
            ended = Repoll::new(connection) => if let Err(error) = ended {
                debug!("a connection ended early: {error}");
            },
            () = silent => debug!("a connection sent no request in time"),
        }
    }
}
