//! The listener for those who operate the proxy, apart from the one that callers use: `/metrics`, `/healthz`, `/readyz`, and
//! `/reload`.
//!
//! It listens before the models are loaded, so that a probe sees a proxy that is starting. Where there is a token, all but
//! the two health paths ask for it; those tell in a word, and tell the rest to whoever has the token.

mod ready;

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{Body, Proxy, Reloader, config::AdminConfig, metrics, reply};

/// Connections served at once: a few scrapers and probes.
const CONNECTIONS: usize = 64;
/// Time for a request's head, and for an idle connection. Whoever holds connections open without a word must not keep
/// scrapers and probes out for long.
const HEAD: Duration = Duration::from_secs(10);
/// Time for a connection, whatever it does.
const CONNECTION: Duration = Duration::from_secs(300);
/// How long to wait after an error of `accept`, such as no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The operators' side of a proxy.
pub struct Admin {
    config: AdminConfig,
    /// Empty until the models are loaded.
    proxy: OnceLock<Arc<Proxy>>,
    /// Empty until then, too, and where nothing can be reloaded.
    reloader: OnceLock<Reloader>,
}

impl Admin {
    /// The operators' side of a proxy that is still to come.
    pub fn new(config: AdminConfig) -> Arc<Self> {
        Arc::new(Self { config, proxy: OnceLock::new(), reloader: OnceLock::new() })
    }

    /// The proxy is made, and what reloads it; a second one is not looked at.
    pub fn started(&self, proxy: Arc<Proxy>, reloader: Option<Reloader>) {
        let _ = self.proxy.set(proxy);
        if let Some(reloader) = reloader {
            let _ = self.reloader.set(reloader);
        }
    }

    /// Serves HTTP/1.1 until it is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok();
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("a connection of the admin listener could not be accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                match timeout(CONNECTION, connection).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!("a connection of the admin listener ended early: {error}"),
                    Err(_) => debug!("a connection of the admin listener was open for too long"),
                }
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let trusted = self.config.token.is_none() || self.has_token(request.headers());
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/healthz" if reads => text(StatusCode::OK, "ok"),
            "/readyz" if reads => self.readyz(trusted),
            _ if !trusted => unauthorized(),
            "/metrics" if reads => self.metrics(),
            // A page in a browser beside this proxy can send such requests too, and says where it is from.
            "/reload" if request.headers().contains_key(header::ORIGIN) => {
                error(StatusCode::FORBIDDEN, "this path is not for browsers")
            }
            "/reload" if *request.method() == Method::POST => self.reload().await,
            "/reload" => error(StatusCode::METHOD_NOT_ALLOWED, "this path is asked with POST"),
            "/healthz" | "/readyz" | "/metrics" => {
                error(StatusCode::METHOD_NOT_ALLOWED, "this path is read with GET")
            }
            _ => error(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /reload"),
        }
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let token = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        self.config.token.as_ref().zip(token).is_some_and(|(expected, token)| expected.is(token))
    }

    fn readyz(&self, trusted: bool) -> Response<Body> {
        let (is_ready, checks) = ready::checks(self.proxy.get().map(|proxy| &**proxy));
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut body = json!({ "ready": is_ready });
        if trusted {
            body["checks"] = checks;
        }
        no_store(reply::json(status, &body))
    }

    /// As SIGHUP does; says what came of it.
    async fn reload(&self) -> Response<Body> {
        let Some(reloader) = self.reloader.get() else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "nothing can be reloaded yet");
        };
        match reloader.reload().await {
            Ok(done) => no_store(reply::json(
                StatusCode::OK,
                &json!({
                    "config_sha256": &*done.config_sha256,
                    "guard": done.guard,
                    "at_next_start": done.at_next_start,
                }),
            )),
            Err(problem) => error(StatusCode::UNPROCESSABLE_ENTITY, &problem.to_string()),
        }
    }

    fn metrics(&self) -> Response<Body> {
        let Some(proxy) = self.proxy.get() else {
            return error(StatusCode::SERVICE_UNAVAILABLE, "the models are being loaded");
        };
        match proxy.render_metrics() {
            Ok(text) => {
                let mut response = Response::new(reply::full(text));
                let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                no_store(response)
            }
            Err(problem) => error(StatusCode::INTERNAL_SERVER_ERROR, &problem.to_string()),
        }
    }
}

fn unauthorized() -> Response<Body> {
    let mut response = error(
        StatusCode::UNAUTHORIZED,
        "send the token of `admin.token_file` or `admin.token_env` as `authorization: Bearer TOKEN`",
    );
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn error(status: StatusCode, message: &str) -> Response<Body> {
    no_store(reply::json(status, &Value::from_iter([("error", message)])))
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(reply::full(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    no_store(response)
}

fn no_store(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
