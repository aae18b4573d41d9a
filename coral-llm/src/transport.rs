//! How requests of codecs travel: over a socket, from a cassette, or from a script.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use coral_core::ModelFault;
use futures_core::Stream;
use http_body::Body as _;
use hyper::body::Incoming;

use crate::failure::Failure;

pub(crate) mod cassette;
mod connect;
pub(crate) mod net;
mod tls;

/// Carries one HTTP exchange.
///
/// # Duties of an implementation
/// - Return as soon as the head of the response is there; the body streams.
/// - Tell [`ModelFault::Connect`] (nothing was sent) from [`ModelFault::Timeout`] and
///   [`ModelFault::Truncated`] (something may have been done and billed).
/// - Stop the exchange when the future or the body is dropped.
/// - Neither log nor print headers: they hold keys.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends `request` and returns the head of the response with its streaming body.
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Failure>;
}

/// A body to its end.
pub(crate) async fn read_whole(body: &mut Body, max: usize) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(piece) = body.next().await {
        whole.extend_from_slice(&piece?);
        if whole.len() > max {
            return Err(Failure::malformed(format!("the answer is longer than {max} bytes")));
        }
    }
    Ok(whole)
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// The streaming body of a response.
pub struct Body(Repr);

enum Repr {
    Net(Incoming),
    Stream(Pieces),
    Whole(Option<Bytes>),
}

impl Body {
    /// A body that is there already.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Body(Repr::Whole(Some(bytes.into())))
    }

    /// A body that comes in pieces.
    pub fn stream(pieces: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static) -> Self {
        Body(Repr::Stream(Box::pin(pieces)))
    }

    fn net(body: Incoming) -> Self {
        Body(Repr::Net(body))
    }

    /// The next piece, `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Failure>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.get_mut().0 {
            Repr::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Repr::Stream(pieces) => pieces.as_mut().poll_next(cx),
            Repr::Net(body) => loop {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(Err(error))) => {
                        let fault =
                            if net::timed_out(&error) { ModelFault::Timeout } else { ModelFault::Truncated };
                        let problem = format!("the answer broke off: {}", net::cause_of(&error));
                        return Poll::Ready(Some(Err(Failure::new(fault, problem))));
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        // Trailers say nothing about an answer.
                        if let Ok(data) = frame.into_data() {
                            return Poll::Ready(Some(Ok(data)));
                        }
                    }
                }
            },
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}
