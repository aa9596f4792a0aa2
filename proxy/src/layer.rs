//! The guard as a [`tower::Layer`], for axum, hyper and all else that speaks `tower`: what is allowed goes to the service
//! within, what is refused is answered in the caller's wire format and never reaches it.
//!
//! ```no_run
//! # use std::{error::Error, sync::Arc};
//! # use forethought_core::guard::Guard;
//! use forethought_proxy::{CheckedConfig, config::Sources, layer::GuardLayer};
//!
//! # fn app(guard: Arc<dyn Guard>) -> Result<GuardLayer, Box<dyn Error>> {
//! let config = CheckedConfig::load(&Sources::default())?;
//! Ok(GuardLayer::new(config, guard)?)
//! # }
//! ```
//!
//! It is the whole proxy, with the service in the upstream's place: modes, plugins, the response guard, tenants, the
//! verdict cache, audit records, metrics and traces are as configured; `listen`, `tls`, `upstream` and what concerns
//! connections are not looked at. Paths that no wire format reads are denied but for those in `paths.pass`: put the layer
//! around the routes that it guards, or let the others pass (`pass = ["* /**"]`).

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use forethought_core::{
    generate::{ChatEvent, ChatModel, ChatRequest, ChatStream, GenerateError},
    guard::Guard,
};
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

use crate::{
    AuditLog, Body, BoxError, CheckedConfig, Proxy,
    live::{BuildError, Models},
    metrics::Metrics,
    telemetry::Telemetry,
    upstream::App,
};

/// Why a layer can't be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The audit file can't be opened.
    #[error("can't open the audit file (the setting `audit.path`)")]
    Audit(#[source] io::Error),
    /// Traces can't be sent.
    #[error("can't send traces (`telemetry.otlp`): {0}")]
    Telemetry(BoxError),
    /// A plugin can't be loaded, or something else that the configuration names.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Puts the guard before a service. Clones share guard, audit file and metrics.
#[derive(Clone)]
pub struct GuardLayer {
    proxy: Arc<Proxy>,
}

impl GuardLayer {
    /// A layer that does what `config` describes. Needs a tokio runtime.
    ///
    /// # Errors
    /// Something that the configuration names can't be opened or loaded.
    pub fn new(config: CheckedConfig, guard: Arc<dyn Guard>) -> Result<Self, LayerError> {
        let audit = match &config.audit {
            Some(audit) => AuditLog::open(audit.clone()).map_err(LayerError::Audit)?,
            None => AuditLog::disabled(),
        };
        let telemetry = config.telemetry.as_ref().map(Telemetry::new).transpose();
        let telemetry = telemetry.map_err(LayerError::Telemetry)?;
        // All requests go to the service within; nothing asks this one.
        let models = Models { guard, chat: Some(Arc::new(NoModel)) };
        let proxy = Proxy::new(config, models, audit, Arc::new(Metrics::new()))?;
        Ok(Self { proxy: Arc::new(proxy.with_telemetry(telemetry)) })
    }

    /// The proxy that it is made of: its metrics, its audit log, and what an [admin listener](crate::admin::Admin) shows.
    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }
}

impl<S, B> Layer<S> for GuardLayer
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Service = Guarded;

    fn layer(&self, inner: S) -> Guarded {
        let inner = inner.map_err(Into::into).map_response(|response: Response<B>| {
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        });
        Guarded { proxy: self.proxy.clone(), app: App(BoxCloneSyncService::new(inner)) }
    }
}

/// A service with the guard before it.
#[derive(Clone)]
pub struct Guarded {
    proxy: Arc<Proxy>,
    app: App,
}

impl<B> Service<Request<B>> for Guarded
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    /// Always ready: the service within is waited for by each request.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        request.extensions_mut().insert(self.app.clone());
        let answer = self.proxy.clone().call(request);
        Box::pin(async move { Ok(answer.await.map(BodyExt::boxed_unsync)) })
    }
}

/// Stands where an upstream in process would.
struct NoModel;

impl ChatModel for NoModel {
    fn chat(&self, _: ChatRequest) -> ChatStream {
        let (events, stream) = ChatStream::channel();
        let _ = events.send(ChatEvent::Failed(GenerateError::Stopped));
        stream
    }
}
