//! Traces: a call that comes with a `traceparent` is answered in a span that names its trace.
//!
//! Every line that is logged on its behalf then says which trace it belongs to. A call that comes
//! without one costs nothing more.

use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::metadata::{MetadataMap, MetadataValue};
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::telemetry::tracing::request_span;
use crate::types::{TRACEPARENT, TraceContext};

const STATUS_HEADER: &str = "grpc-status";

/// The trace that a header names. What is no `traceparent` is as good as none, as the
/// recommendation has it.
pub(super) fn trace_of(header: &MetadataMap) -> Option<TraceContext> {
    header.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// Lets a request belong to a trace.
pub(super) fn put_trace<T>(request: &mut tonic::Request<T>, trace: Option<TraceContext>) {
    if let Some(trace) = trace {
        let value = MetadataValue::try_from(trace.child().to_string());
        request.metadata_mut().insert(TRACEPARENT, value.expect("a traceparent is ASCII"));
    }
}

/// Puts calls that belong to a trace into spans.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = TraceService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TraceService { inner }
    }
}

/// See [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct TraceService<S> {
    inner: S,
}

impl<S, B, C> Service<Request<B>> for TraceService<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let header = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
        let Some(trace) = header.and_then(|text| text.parse::<TraceContext>().ok()) else {
            return Either::Left(self.inner.call(request));
        };
        let span = request_span(request.uri().path().trim_start_matches('/'), &trace);
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let answered = answer.await;
            let header = answered.as_ref().map(Response::headers).ok();
            tracing::debug!(status = header.and_then(status_of), "answered");
            answered
        };
        Either::Right(Box::pin(answer.instrument(span)))
    }
}

/// The code of a call that has failed; a call that goes well says so later.
fn status_of(header: &HeaderMap) -> Option<&str> {
    header.get(STATUS_HEADER)?.to_str().ok()
}
