//! The connection to a collector.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::client::Client;

/// Time for one batch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most of an answer that is read.
const ANSWER: usize = 64 * 1024;

pub(super) struct Collector {
    client: Client,
    /// The exporter has a thread of its own, with no runtime.
    runtime: Handle,
    failing: AtomicBool,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl Collector {
    pub(super) fn new(endpoint: &str) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let client = Client::new(endpoint.starts_with("https:"), TIMEOUT)?;
        Ok(Self { client, runtime, failing: AtomicBool::new(false) })
    }

    /// Says when sending begins to fail, and when it works again.
    fn note(&self, problem: Option<String>) {
        match problem {
            Some(problem) if !self.failing.swap(true, Relaxed) => {
                warn!("traces are lost, because the collector (`telemetry.otlp`) {problem}");
            }
            None if self.failing.swap(false, Relaxed) => info!("traces are sent again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let request = request.map(Full::new);
        let answer = self.runtime.spawn(async move { client.send(request, ANSWER, TIMEOUT).await }).await?;
        self.note(match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("answered with status {}", answer.status())),
            Err(error) => Some(error.to_string()),
        });
        answer
    }
}
