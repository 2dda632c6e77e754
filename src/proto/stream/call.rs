//! Calls that are streams: how they are asked and answered past the generated code.

use std::convert::Infallible;
use std::future::poll_fn;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, HeaderValue, TE};
use tonic::codegen::http::{self, Method, Uri, Version};
use tonic::codegen::{Service, StdError};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::incoming::{Inbound, of_answer, of_request};
use super::outgoing::{Outbound, Outgoing};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const ENCODING_HEADER: &str = "grpc-encoding";

/// Asks a call of which both sides are streams.
///
/// # Errors
/// What the server answered in place of a stream, or that it could not be reached.
pub async fn ask<C, S, Q, A>(
    channel: &mut C,
    path: &'static str,
    request: Request<S>,
    message_bytes_max: usize,
) -> Result<Streaming<A>, Status>
where
    C: Service<http::Request<Body>, Response = http::Response<Body>>,
    C::Error: Into<StdError>,
    S: Stream<Item = Result<Q, Status>> + Send + Unpin + 'static,
    Q: Outbound + 'static,
    A: Inbound,
{
    let (metadata, extensions, messages) = request.into_parts();
    let mut request = http::Request::new(Body::new(Outgoing::request(messages)));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_static(path);
    *request.headers_mut() = metadata.into_headers();
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, GRPC);
    *request.extensions_mut() = extensions;
    let failed = |error: C::Error| Status::from_error(error.into());
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(failed)?;
    of_answer(channel.call(request).await.map_err(failed)?, message_bytes_max)
}

/// Answers a request that is a stream, of messages no longer than `message_bytes_max`, with what
/// `serve` answers to them.
pub fn serve<Q, S, A, F>(
    request: http::Request<Body>,
    message_bytes_max: usize,
    serve: impl FnOnce(Request<Streaming<Q>>) -> F + Send + 'static,
) -> Answered
where
    Q: Inbound,
    S: Stream<Item = Result<A, Status>> + Send + Unpin + 'static,
    A: Outbound + 'static,
    F: Future<Output = Result<Response<S>, Status>> + Send,
{
    Answered::Stream(Box::pin(async move {
        let served = match requests(request, message_bytes_max) {
            Ok(requests) => serve(requests).await,
            Err(status) => Err(status),
        };
        served.map_or_else(Status::into_http, answer)
    }))
}

fn requests<Q: Inbound>(
    request: http::Request<Body>,
    message_bytes_max: usize,
) -> Result<Request<Streaming<Q>>, Status> {
    let encoding = request.headers().get(ENCODING_HEADER).map(HeaderValue::as_bytes);
    if encoding.is_some_and(|encoding| encoding != b"identity") {
        return Err(Status::unimplemented("the messages of a stream cannot be compressed"));
    }
    Ok(Request::from_http(request.map(|body| of_request(body, message_bytes_max))))
}

fn answer<S, A>(response: Response<S>) -> http::Response<Body>
where
    S: Stream<Item = Result<A, Status>> + Send + Unpin + 'static,
    A: Outbound + 'static,
{
    let (metadata, messages, extensions) = response.into_parts();
    let mut answer = http::Response::new(Body::new(Outgoing::answer(messages)));
    *answer.headers_mut() = metadata.into_headers();
    answer.headers_mut().insert(CONTENT_TYPE, GRPC);
    *answer.extensions_mut() = extensions;
    answer
}

/// Who is to answer a request.
#[allow(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub enum Answered {
    /// It is a stream, and this is its answer.
    Stream(BoxFuture<'static, http::Response<Body>>),
    /// It is none.
    NotHere(http::Request<Body>),
}

/// The calls of a service that are streams.
pub trait Streams {
    /// Answers a request if it is for a stream, by its path.
    fn answer(&self, request: http::Request<Body>) -> Answered;
}

/// A service whose streams are answered by `api`, and all else by the generated service.
#[derive(Debug, Clone)]
pub struct WithStreams<T, A> {
    generated: T,
    api: A,
}

impl<T, A> WithStreams<T, A> {
    /// Sets `api` before a generated service.
    pub fn new(generated: T, api: A) -> Self {
        Self { generated, api }
    }
}

impl<T: NamedService, A> NamedService for WithStreams<T, A> {
    const NAME: &'static str = T::NAME;
}

type Answering = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

impl<T, A> Service<http::Request<Body>> for WithStreams<T, A>
where
    T: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    A: Streams,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<T::Future, Answering>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.generated.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.api.answer(request) {
            Answered::Stream(answer) => Either::Right(Box::pin(async move { Ok(answer.await) })),
            Answered::NotHere(request) => Either::Left(self.generated.call(request)),
        }
    }
}
