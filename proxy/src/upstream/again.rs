//! Bodies that may be sent again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::Sent;
use crate::{Body, BoxError};

/// A body, to be sent as often as it can be.
pub(super) enum Again {
    Read(Bytes),
    /// There until someone takes the first of it.
    Unread(Arc<Mutex<Option<Body>>>),
}

impl Again {
    pub(super) fn new(body: Sent) -> Self {
        match body {
            Sent::Read(bytes) => Self::Read(bytes),
            Sent::Unread(body) => Self::Unread(Arc::new(Mutex::new(Some(body)))),
        }
    }

    /// The body, unless some of it was taken already.
    pub(super) fn get(&self) -> Option<Sent> {
        match self {
            Self::Read(bytes) => Some(Sent::Read(bytes.clone())),
            Self::Unread(shared) => {
                let guard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let body = guard.as_ref()?;
                let (ended, hint) = (body.is_end_stream(), body.size_hint());
                let lent = Lent { shared: shared.clone(), taken: None, ended, hint };
                Some(Sent::Unread(lent.boxed_unsync()))
            }
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Read(_) => true,
            Self::Unread(shared) => shared.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        }
    }
}

/// A body that takes the shared one when it is first asked for data.
struct Lent {
    shared: Arc<Mutex<Option<Body>>>,
    taken: Option<Body>,
    /// How it was before it was taken.
    ended: bool,
    hint: SizeHint,
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.taken.is_none() {
            let body = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.taken = body;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.as_ref().map_or(self.ended, http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.taken.as_ref().map_or(self.hint, http_body::Body::size_hint)
    }
}
