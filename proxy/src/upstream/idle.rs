//! A body that fails when nothing arrives for too long, or when it takes too long as a whole.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::{Body, BoxError};

/// Why an upstream's answer broke off.
#[derive(Debug, thiserror::Error)]
enum TooLong {
    #[error("the upstream sent nothing for {} ms (the setting `idle_timeout_ms` of the upstream)", .0.as_millis())]
    Idle(Duration),
    #[error("the upstream's answer took longer than {} ms (the setting `total_timeout_ms` of the upstream)", .0.as_millis())]
    Total(Duration),
}

pub(super) struct IdleTimeout {
    inner: Body,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// When all must be over, and how long that was from the beginning.
    end: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl IdleTimeout {
    pub(super) fn new(inner: Body, limit: Duration, end: Option<(Instant, Duration)>) -> Self {
        let end = end.map(|(end, total)| (Box::pin(sleep_until(end)), total));
        Self { inner, limit, timer: Box::pin(sleep(limit)), end }
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
        // First, so that an upstream that always has something to say can't hold it up.
        if let Some((end, total)) = &mut this.end
            && end.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(Box::new(TooLong::Total(*total)))));
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.timer.as_mut().reset(Instant::now() + this.limit);
            return Poll::Ready(frame);
        }
        ready!(this.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Box::new(TooLong::Idle(this.limit)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
