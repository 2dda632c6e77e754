//! A bare tonic server: the messages of the log service both ways, and nothing done about them.
//!
//! Its windows, frames and socket options are those of Quipu's servers. It plays in a process of
//! its own, as Quipu does.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use quipu::proto::server as api;
use quipu::proto::server::log_service_server::{LogService, LogServiceServer};
use quipu::proto::server::produce_stream_response::Outcome;
use quipu::proto::server::subscribe_response::Message;
use quipu::rpc::limits::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::BATCHES;
use crate::processes::Process;
use crate::stream::{RECORDS, batch};

/// The role of a process that is a bare server.
pub(crate) const ROLE: &str = "bare-tonic";

/// Starts a bare server, and returns it with its address.
pub(crate) fn start(root: &Path) -> (Process, String) {
    let (process, mut conversation) = Process::play(ROLE, &[], &root.join("bare-tonic.log"));
    let address = conversation.hear();
    (process, address)
}

/// Serves until it is killed.
pub(crate) fn play(_: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("the system starts threads").block_on(async {
        let any = "127.0.0.1:0".parse().expect("it is an address");
        let incoming = TcpIncoming::bind(any).expect("a port is free").with_nodelay(Some(true));
        println!("{}", incoming.local_addr().expect("it listens"));
        let service = LogServiceServer::new(Bare::new())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX);
        let served = server_with(server, service).serve_with_incoming(incoming).await;
        served.expect("the server runs");
    });
}

fn server_with(
    mut server: Server,
    service: LogServiceServer<Bare>,
) -> tonic::transport::server::Router {
    server.add_service(service)
}

struct Bare {
    /// As many as are read in a lap, each in memory of its own, as those of a log are. One batch,
    /// sent again and again, would come out of the processor's cache.
    batches: Arc<[Bytes]>,
}

impl Bare {
    fn new() -> Self {
        let batch = batch();
        Self { batches: (0..BATCHES).map(|_| Bytes::copy_from_slice(&batch)).collect() }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl LogService for Bare {
    type ProduceStreamStream = Answers<api::ProduceStreamResponse>;
    type SubscribeStream = Answers<api::SubscribeResponse>;

    /// Answers each batch with what Quipu answers.
    async fn produce_stream(
        &self,
        request: Request<Streaming<api::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let answer = |request: Result<api::ProduceStreamRequest, Status>| {
            let request_id = request?.request_id;
            let produced = api::ProduceResponse {
                topic_id: uuid::Uuid::nil().to_string(),
                base_offset: request_id * u64::from(RECORDS),
                record_count: RECORDS,
                durability: api::Durability::Memory.into(),
            };
            let outcome = Some(Outcome::Produced(produced));
            Ok(api::ProduceStreamResponse { request_id, outcome })
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }

    /// Sends what it is asked for: a message for each "partition", with so many batches in it.
    async fn subscribe(
        &self,
        request: Request<Streaming<api::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let asked = request.into_inner().next().await.transpose()?;
        let start = asked.and_then(|asked| asked.message);
        let Some(api::subscribe_request::Message::Start(start)) = start else {
            return Err(Status::invalid_argument("a start"));
        };
        let parts: Vec<usize> =
            start.partitions.iter().map(|part| part.partition as usize).collect();
        let stored = api::StoredBatch {
            record_count: RECORDS,
            append_time_ms: 1_700_000_000_000,
            leader_epoch: 1,
            crc: 1,
            ..api::StoredBatch::default()
        };
        let (kept, mut sent) = (self.batches.clone(), 0);
        let message = move |count| {
            let next = (sent..sent + count).map(|n| kept[n % kept.len()].clone());
            let batches = next.map(|batch| api::StoredBatch { batch, ..stored.clone() }).collect();
            sent += count;
            let data = api::SubscribeData { batches, ..api::SubscribeData::default() };
            Ok(api::SubscribeResponse { message: Some(Message::Data(data)) })
        };
        Ok(Response::new(Box::pin(stream::iter(parts.into_iter().map(message)))))
    }

    async fn produce(
        &self,
        _: Request<api::ProduceRequest>,
    ) -> Result<Response<api::ProduceResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn fetch(
        &self,
        _: Request<api::FetchRequest>,
    ) -> Result<Response<api::FetchResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn list_offsets(
        &self,
        _: Request<api::ListOffsetsRequest>,
    ) -> Result<Response<api::ListOffsetsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn init_producer(
        &self,
        _: Request<api::InitProducerRequest>,
    ) -> Result<Response<api::InitProducerResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
