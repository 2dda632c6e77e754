//! Slow bodies: a call that is no stream has to bring its request in time.
//!
//! A time limit for the whole call would cut reads short that wait for records. This one is only
//! for what the client has to do.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tower::{Layer, Service};

/// Methods whose requests are streams, by the end of their paths.
const STREAMS: [&str; 5] =
    ["/ProduceStream", "/Subscribe", "/Consume", "/Exchange", "/ServerReflectionInfo"];

/// Gives each request of a call that is no stream a time to arrive.
#[derive(Debug, Clone, Copy)]
pub struct SlowBodyLayer {
    timeout: Duration,
}

impl SlowBodyLayer {
    /// Requests have to arrive within `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl<S> Layer<S> for SlowBodyLayer {
    type Service = SlowBodyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SlowBodyService { inner, timeout: self.timeout }
    }
}

/// See [`SlowBodyLayer`].
#[derive(Debug, Clone)]
pub struct SlowBodyService<S> {
    inner: S,
    timeout: Duration,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for SlowBodyService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if STREAMS.iter().any(|method| path.ends_with(method)) {
            return self.inner.call(request);
        }
        let timeout = self.timeout;
        self.inner.call(request.map(|body| {
            let late = Box::pin(tokio::time::sleep(timeout));
            Body::new(TimedBody { body, late })
        }))
    }
}

/// A body that fails once it is late.
struct TimedBody {
    body: Body,
    late: Pin<Box<Sleep>>,
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let status = || Status::deadline_exceeded("the request did not arrive in time");
        self.late.as_mut().poll(cx).map(|()| Some(Err(status())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
