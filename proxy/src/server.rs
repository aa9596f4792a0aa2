//! Connections: accepting, bounding and draining them.

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::Proxy;

/// Time that streams of our own have for their last chunks once the drain time is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a quiet HTTP/2 connection is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

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
    /// Serves HTTP/1.1 and HTTP/2 (with prior knowledge) until `shutdown` ends. Then no connection is accepted any more,
    /// running requests have the drain time to end, and what still runs after it is cut: answers of our own with a
    /// proper last chunk, requests without an answer with status 503. All audit records are written before this returns.
    ///
    /// # Errors
    /// Never, once the listener listens: faults of single connections are logged.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let limits = &self.config.limits;
        let permits = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = permits.clone().acquire_owned().await.ok();
                listener.accept().await.map(|(stream, _)| (stream, permit))
            };
            tokio::select! {
                () = &mut shutdown => break,
                accepted = accepted => match accepted {
                    Ok((stream, permit)) => {
                        let connection = self.clone().connection(stream, graceful.watcher());
                        connections.spawn(async move {
                            connection.await;
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
        let running = limits.connections.min(Semaphore::MAX_PERMITS) - permits.available_permits();
        info!(
            connections = running,
            "stopping: running requests have {} ms to end",
            limits.drain_timeout.as_millis()
        );
        let drained = graceful.shutdown();
        tokio::pin!(drained);
        let cutoff = Cutoff::new(&self.cut);
        let in_time = timeout(limits.drain_timeout, cutoff.or(&mut drained)).await;
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

    async fn connection(self: Arc<Self>, stream: TcpStream, watcher: hyper_util::server::graceful::Watcher) {
        let _ = stream.set_nodelay(true);
        let head_timeout = self.config.limits.header_timeout;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING);
        let begun = Arc::new(AtomicBool::new(false));
        let service = service_fn(|request| {
            begun.store(true, Relaxed);
            let proxy = self.clone();
            let answer = proxy.call(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service));
        // hyper's own timer starts when it knows which HTTP is spoken; this one covers the time before.
        let silent = async {
            sleep(head_timeout).await;
            if begun.load(Relaxed) {
                pending::<()>().await;
            }
        };
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!("a connection ended early: {error}");
            },
            () = silent => debug!("a connection sent no request in time"),
        }
    }
}
