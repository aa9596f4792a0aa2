//! A body that fails when nothing arrives for too long.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::{Body, BoxError};

/// Why an upstream's answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("the upstream sent nothing for {} ms (the setting `upstream.idle_timeout_ms`)", .0.as_millis())]
struct Idle(Duration);

pub(super) struct IdleTimeout {
    inner: Body,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl IdleTimeout {
    pub(super) fn new(inner: Body, limit: Duration) -> Self {
        Self { inner, limit, timer: Box::pin(sleep(limit)) }
    }
}

impl http_body::Body for IdleTimeout {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.timer.as_mut().reset(Instant::now() + this.limit);
            return Poll::Ready(frame);
        }
        ready!(this.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Box::new(Idle(this.limit)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
