//! What is left of a request's body when its answer is known.
//!
//! Most senders write all of a request before they read any of the answer. Where a connection is closed
//! while something of the body was not read, the kernel tells the sender of that and throws the answer
//! away: a 429 that says when to come again would never be seen, and a proxy in between makes a 502 of it.
//! So what is left is read and dropped, while the answer is on its way.

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::EXPECT;
use hyper::{Request, Version};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// How much is read of a body that nobody wants; after that the connection ends.
const REST_BYTES_MAX: u64 = 64 << 20;
/// How long that may take, and how long nothing may come in between.
const REST_TIME: Duration = Duration::from_secs(30);
const REST_PAUSE: Duration = Duration::from_secs(5);

/// Whether a request's body was left in a state that no other request can follow.
#[derive(Clone, Default)]
pub(super) struct Left(Arc<AtomicBool>);

impl Left {
    pub(super) fn ends_the_connection(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request's body. What is left of it when it is dropped is read all the same.
pub(super) struct Rest {
    body: Option<Incoming>,
    /// Its sender waits for a word before it sends the body, and sends none after an answer.
    waits: bool,
    left: Left,
}

impl Rest {
    pub(super) fn of(request: Request<Incoming>, left: &Left) -> Request<Self> {
        let waits = request.version() == Version::HTTP_11 && request.headers().contains_key(EXPECT);
        let left = left.clone();
        request.map(|body| Self {
            body: Some(body),
            waits,
            left,
        })
    }
}

impl Body for Rest {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // From here on it is told to send.
        self.waits = false;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Incoming::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        if self.waits || body.size_hint().lower() > REST_BYTES_MAX {
            self.left.0.store(true, Ordering::Relaxed);
        }
        if !self.waits {
            tokio::spawn(tokio::time::timeout(REST_TIME, read(body)));
        }
    }
}

/// Reads until the end, or a bound.
async fn read(mut body: Incoming) {
    use http_body_util::BodyExt as _;
    let mut bytes = 0;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(REST_PAUSE, body.frame()).await {
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if bytes > REST_BYTES_MAX {
            return;
        }
    }
}
