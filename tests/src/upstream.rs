//! An upstream that records what it gets and answers as it is told.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// How to answer.
pub enum Respond {
    /// With this.
    Whole(Response<Bytes>),
    /// With this head, and whatever comes over the channel, each piece on its own, until all senders are gone. An error
    /// breaks the connection off.
    Pieces(http::response::Builder, mpsc::UnboundedReceiver<Result<Bytes, std::io::Error>>),
    /// Never.
    Hang,
}

type Handler = dyn Fn(&Seen) -> Respond + Send + Sync;

/// A server that stands for an LLM API.
pub struct FakeUpstream {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: watch::Sender<usize>,
    left: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl FakeUpstream {
    /// A server that answers as `respond` says.
    pub async fn start(respond: impl Fn(&Seen) -> Respond + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (arrived, left) = (watch::Sender::new(0), watch::Sender::new(0));
        let handler: Arc<Handler> = Arc::new(respond);
        let server = tokio::spawn({
            let (seen, arrived, left) = (seen.clone(), arrived.clone(), left.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let (handler, seen) = (handler.clone(), seen.clone());
                    let (arrived, left) = (arrived.clone(), left.clone());
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, handler.clone(), seen.clone(), arrived.clone(), left.clone())
                    });
                    tokio::spawn(async move {
                        let builder = auto::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            }
        });
        Self { address, seen, arrived, left, server }
    }

    /// A server that answers every request with this JSON.
    pub async fn answering(json: &'static str) -> Self {
        Self::start(move |_| {
            let response = Response::builder().header("content-type", "application/json");
            Respond::Whole(response.body(Bytes::from_static(json.as_bytes())).expect("a response"))
        })
        .await
    }

    /// Its base URL, as clients take it.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        self.arrived.subscribe().wait_for(|arrived| *arrived >= count).await.expect("the server lives");
    }

    /// Waits until the callers of this many answers have left before their end.
    pub async fn left(&self, count: usize) {
        self.left.subscribe().wait_for(|left| *left >= count).await.expect("the server lives");
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Counts its own drop, unless it was told that the answer has ended.
struct Leaving(Option<watch::Sender<usize>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(left) = &self.0 {
            left.send_modify(|left| *left += 1);
        }
    }
}

/// A stream that notices when it is dropped before its end.
struct Watched<S>(S, Leaving);

impl<S: Stream + Unpin> Stream for Watched<S> {
    type Item = S::Item;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let next = Pin::new(&mut self.0).poll_next(cx);
        if matches!(next, Poll::Ready(None)) {
            self.1.0 = None;
        }
        next
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: Arc<Handler>,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrived: watch::Sender<usize>,
    left: watch::Sender<usize>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let request = Seen { method: parts.method, uri: parts.uri, headers: parts.headers, body };
    seen.lock().expect("no panic").push(request.clone());
    let respond = handler(&request);
    arrived.send_modify(|arrived| *arrived += 1);
    let leaving = Leaving(Some(left));
    Ok(match respond {
        Respond::Whole(response) => {
            let mut leaving = leaving;
            leaving.0 = None;
            response.map(|bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
        }
        Respond::Pieces(head, pieces) => {
            let frames =
                Watched(UnboundedReceiverStream::new(pieces), leaving).map(|piece| piece.map(Frame::data));
            head.body(StreamBody::new(frames).boxed_unsync()).expect("a response")
        }
        Respond::Hang => {
            let _leaving = leaving;
            std::future::pending().await
        }
    })
}
