//! The body of a request on its way in.

use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Method, Version, header, request};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use crate::{
    Body,
    audit::{Exit, Stage},
    config::Limits,
    reply::{self, Error},
    upstream::Sent,
};

/// A body that is still to come, or was received.
pub(super) struct Inbound {
    incoming: Option<Body>,
    received: Option<Bytes>,
}

impl Inbound {
    pub(super) fn new(body: Body) -> Self {
        Self { incoming: Some(body), received: None }
    }

    /// Receives the whole body, within the limits.
    pub(super) async fn receive(
        &mut self,
        exit: &mut Exit,
        headers: &HeaderMap,
        limits: &Limits,
    ) -> Result<Bytes, Error> {
        if let Some(bytes) = &self.received {
            return Ok(bytes.clone());
        }
        let since = Instant::now();
        let (limit, after) = (limits.body_bytes, limits.body_timeout);
        check_length(headers, limit)?;
        let Some(incoming) = self.incoming.as_mut() else { return Err(Error::BodyBroken) };
        // Boxed, as the compiler can't see otherwise that this may be sent between threads.
        let received = timeout(after, Limited::new(incoming, limit).collect().boxed()).await;
        let bytes = received.map_err(|_| Error::BodyTimeout { after })?.map_err(|error| {
            if error.is::<LengthLimitError>() { Error::TooLarge { limit } } else { Error::BodyBroken }
        })?;
        self.incoming = None;
        exit.stage(Stage::Body, since);
        Ok(self.received.insert(bytes.to_bytes()).clone())
    }

    /// The body for a request that nobody reads on the way; the size limit holds for it too.
    pub(super) async fn unread(&mut self, head: &request::Parts, limits: &Limits) -> Result<Sent, Error> {
        if let Some(bytes) = self.received.take() {
            return Ok(Sent::Read(bytes));
        }
        let limit = limits.body_bytes;
        check_length(&head.headers, limit)?;
        let mut incoming = self.incoming.take().ok_or(Error::BodyBroken)?;
        let bodiless = matches!(head.method, Method::GET | Method::HEAD);
        if bodiless && !incoming.is_end_stream() {
            let unexpected = || Error::BodyUnexpected { method: head.method.clone() };
            // Over HTTP/2 it may be said after the head that there is none.
            if head.version != Version::HTTP_2 || incoming.size_hint().lower() > 0 {
                self.incoming = Some(incoming);
                return Err(unexpected());
            }
            let after = limits.body_timeout;
            let rest = timeout(after, Limited::new(&mut incoming, 0).collect().boxed()).await;
            let error = match rest {
                Ok(Ok(_)) => return Ok(Sent::Unread(reply::full(Bytes::new()))),
                Ok(Err(error)) if error.is::<LengthLimitError>() => unexpected(),
                Ok(Err(_)) => Error::BodyBroken,
                Err(_) => Error::BodyTimeout { after },
            };
            self.incoming = Some(incoming);
            return Err(error);
        }
        // A body without bytes stays one, so that a `DELETE` does not become a chunked upload.
        Ok(Sent::Unread(if incoming.is_end_stream() {
            incoming
        } else {
            Limited::new(incoming, limit).boxed_unsync()
        }))
    }

    /// Reads away what is left, within bounds, so that the caller has sent all and reads our answer: a connection that is
    /// closed before is reset, and the answer lost. A caller that asked first is just not told to go on.
    pub(super) async fn discard(self, head: &request::Parts, limit: usize) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
        if let Some(body) = self.incoming.filter(|_| !head.headers.contains_key(header::EXPECT)) {
            let mut body = Limited::new(body, limit.saturating_mul(2));
            let rest = async { while let Some(Ok(_)) = body.frame().await {} }.boxed();
            let _ = timeout(PATIENCE, rest).await;
        }
    }
}

/// Rejects a body that says it is too long before any of it is sent.
fn check_length(headers: &HeaderMap, limit: usize) -> Result<(), Error> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > limit as u64) {
        Err(Error::TooLarge { limit })
    } else {
        Ok(())
    }
}
