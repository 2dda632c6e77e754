//! The log service: records in and out.
//!
//! | method | file |
//! |---|---|
//! | Produce | `produce` |
//! | ProduceStream | `pipeline`, `item`, `lane`, `link` |
//! | Fetch | `fetch` |
//! | Subscribe | `subscribe`, `feed` |
//! | ListOffsets | `offsets` |
//! | InitProducer | `producer` |

mod check;
pub(super) mod feed;
mod fetch;
mod item;
mod lane;
mod link;
pub(super) mod offsets;
mod pipeline;
mod produce;
mod producer;
pub(super) mod subscribe;

use std::pin::Pin;

use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

pub(super) use self::fetch::read;
use self::pipeline::Pipeline;
use super::call::{Call, Origin};
use super::context::Context;
use super::counters::{Counters, Method};
use super::error::Error;
use super::limits::MESSAGE_BYTES_MAX;
use crate::proto::path::{PRODUCE_STREAM, SUBSCRIBE};
use crate::proto::server as api;
use crate::proto::server::log_service_server::{LogService, LogServiceServer};
use crate::proto::stream::{self, Answered, Streams, WithStreams};

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The log service of a node.
#[derive(Debug, Clone)]
pub struct LogApi {
    context: Context,
}

impl LogApi {
    /// The log service of the node that `context` is of.
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The service, with its limits, to be added to a server. The same one answers clients and
    /// other nodes.
    pub fn into_service(self) -> WithStreams<LogServiceServer<Self>, Self> {
        let generated = LogServiceServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        WithStreams::new(generated, self)
    }

    /// Answers a call that is no stream, and measures it.
    async fn answer<T>(
        &self,
        method: Method,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Response<T>, Status> {
        let measured = self.context.counters().begin(method);
        let outcome = work.await;
        measured.end(&outcome);
        outcome.map(Response::new).map_err(Status::from)
    }
}

impl Streams for LogApi {
    fn answer(&self, request: http::Request<Body>) -> Answered {
        let api = self.clone();
        match request.uri().path() {
            PRODUCE_STREAM => {
                stream::serve(request, MESSAGE_BYTES_MAX, move |requests| async move {
                    api.produce_stream(requests).await
                })
            }
            SUBSCRIBE => stream::serve(request, MESSAGE_BYTES_MAX, move |requests| async move {
                api.subscribe(requests).await
            }),
            _ => Answered::NotHere(request),
        }
    }
}

#[tonic::async_trait]
impl LogService for LogApi {
    async fn produce(
        &self,
        request: Request<api::ProduceRequest>,
    ) -> Result<Response<api::ProduceResponse>, Status> {
        let call = Call::of(request.metadata());
        let work = produce::produce(&self.context, request.into_inner(), call);
        self.answer(Method::Produce, work).await
    }

    type ProduceStreamStream = Answers<api::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<api::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let permit = self.context.enter()?;
        let held = (permit, Counters::open_stream(self.context.counters(), Method::ProduceStream));
        let origin = Origin::of(request.metadata());
        let pipeline = Pipeline::new(self.context.clone(), request.into_inner(), origin);
        let span = tracing::Span::current();
        let answers = unfold((pipeline, held), move |(mut pipeline, held)| {
            let next = async move {
                let answer = pipeline.next().await?;
                Some((answer, (pipeline, held)))
            };
            next.instrument(span.clone())
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch(
        &self,
        request: Request<api::FetchRequest>,
    ) -> Result<Response<api::FetchResponse>, Status> {
        let call = Call::waiting(request.metadata(), fetch::wait_of(request.get_ref()));
        let work = fetch::fetch(&self.context, request.into_inner(), call);
        self.answer(Method::Fetch, work).await
    }

    type SubscribeStream = Answers<api::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<api::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let permit = self.context.enter()?;
        let held = (permit, Counters::open_stream(self.context.counters(), Method::Subscribe));
        let origin = Origin::of(request.metadata());
        let (answers, stream) = mpsc::channel(subscribe::MESSAGES_MAX);
        let (context, requests) = (self.context.clone(), request.into_inner());
        let serving = async move {
            subscribe::subscribe(context, requests, origin, answers).await;
            drop(held);
        };
        tokio::spawn(serving.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_offsets(
        &self,
        request: Request<api::ListOffsetsRequest>,
    ) -> Result<Response<api::ListOffsetsResponse>, Status> {
        let call = Call::of(request.metadata());
        let work = offsets::list_offsets(&self.context, request.into_inner(), call);
        self.answer(Method::ListOffsets, work).await
    }

    async fn init_producer(
        &self,
        request: Request<api::InitProducerRequest>,
    ) -> Result<Response<api::InitProducerResponse>, Status> {
        let call = Call::of(request.metadata());
        let work = producer::init_producer(&self.context, request.into_inner(), call);
        self.answer(Method::InitProducer, work).await
    }
}
