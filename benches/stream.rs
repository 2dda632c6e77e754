//! Streams of batches to and from a server, Quipu's or a bare one: the same client for both.

#[path = "../src/cli/bench/noise.rs"]
mod noise;

use std::time::{Duration, Instant};

use bytes::Bytes;
pub(crate) use noise::noise;
use quipu::batch::{BatchBuilder, Codec, Limits, Record, payload_crc};
use quipu::proto::server as api;
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::produce_stream_response::Outcome;
use quipu::proto::server::subscribe_request::Message as Told;
use quipu::proto::server::subscribe_response::Message as Tell;
use quipu::rpc::limits::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Bytes of a batch, and records of 1 KiB in it.
pub(crate) const BATCH_BYTES: usize = 64 << 10;
pub(crate) const RECORDS: u32 = 64;

/// Keys and lengths of a record and of its value in a batch, in bytes.
const FRAMING_BYTES: usize = 6;
const CREDIT_BYTES: u32 = 64 << 20;

/// A batch of records of 1 KiB, as long as [`BATCH_BYTES`] says.
pub(crate) fn batch() -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    let value = noise(BATCH_BYTES / RECORDS as usize - FRAMING_BYTES);
    for _ in 0..RECORDS {
        let record = Record { value: Some(&value), ..Record::default() };
        builder.append(&record).expect("the record is within the limits");
    }
    let batch = builder.build(Codec::None).expect("the batch is within the limits");
    assert_eq!(batch.len(), BATCH_BYTES, "a batch has another length than the floor's");
    batch
}

/// A client over one connection, with the settings of Quipu's own clients.
pub(crate) async fn connect(address: &str) -> LogServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("it is an address");
    let endpoint = endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX);
    LogServiceClient::new(endpoint.connect().await.expect("the server listens"))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// How long a lap took, and how long after the one before each answer came.
pub(crate) struct Produced {
    pub(crate) took: Duration,
    pub(crate) waits: Vec<Duration>,
}

/// Stores the same batch `count` times over one stream, at most `in_flight` of them unanswered.
pub(crate) async fn produce(
    client: &mut LogServiceClient<Channel>,
    topic: &str,
    batch: &Bytes,
    (count, in_flight): (usize, usize),
) -> Produced {
    let produce = api::ProduceRequest {
        topic: topic.to_owned(),
        batch: batch.clone(),
        crc: Some(payload_crc(batch)),
        acks: api::Acks::Quorum.into(),
        ..api::ProduceRequest::default()
    };
    let (requests, receiver) = mpsc::channel(in_flight);
    let send = |request_id| {
        let request = api::ProduceStreamRequest { request_id, produce: Some(produce.clone()) };
        requests.try_send(request).expect("there is a place for each request in flight");
    };
    let started = Instant::now();
    let mut sent = in_flight.min(count);
    (0..sent as u64).for_each(send);
    let answers = client.produce_stream(ReceiverStream::new(receiver)).await;
    let mut answers = answers.expect("the stream is opened").into_inner();
    let (mut waits, mut before) = (Vec::with_capacity(count), started);
    for expected in 0..count as u64 {
        let answer = answers.message().await.expect("the stream goes on");
        let answer = answer.expect("each request is answered");
        let is_stored = matches!(&answer.outcome, Some(Outcome::Produced(_)));
        assert!(is_stored && answer.request_id == expected, "{answer:?}");
        if sent < count {
            send(sent as u64);
            sent += 1;
        }
        let now = Instant::now();
        waits.push(now - std::mem::replace(&mut before, now));
    }
    Produced { took: started.elapsed(), waits }
}

/// Where batches are read from.
pub(crate) enum Source<'a> {
    /// The beginning of partition 0 of a topic.
    Topic(&'a str),
    /// A bare server, with so many batches in a message.
    Bare { batches: usize },
}

/// Reads so many batches over one stream.
pub(crate) async fn consume(
    client: &mut LogServiceClient<Channel>,
    source: &Source<'_>,
    count: usize,
) -> Duration {
    let (requests, receiver) = mpsc::channel(64);
    let say = |message| api::SubscribeRequest { message: Some(message) };
    let started = Instant::now();
    requests.try_send(say(Told::Start(start(source, count)))).expect("there is a place for it");
    let answers = client.subscribe(ReceiverStream::new(receiver)).await;
    let mut answers = answers.expect("the stream is opened").into_inner();
    let mut records = 0;
    let wanted = count * RECORDS as usize;
    while records < wanted {
        let answer = answers.message().await.expect("the stream goes on");
        match answer.and_then(|answer| answer.message).expect("there is more") {
            Tell::Data(data) => {
                records += data.batches.iter().map(|b| b.record_count as usize).sum::<usize>();
                if data.cost_bytes > 0 {
                    let credit = api::SubscribeCredit { bytes: data.cost_bytes };
                    requests.send(say(Told::Credit(credit))).await.expect("the stream goes on");
                }
            }
            Tell::Started(_) | Tell::Positions(_) => {}
            Tell::Gap(gap) => panic!("records are gone before they are read: {gap:?}"),
        }
    }
    started.elapsed()
}

fn start(source: &Source<'_>, count: usize) -> api::SubscribeStart {
    match source {
        Source::Topic(topic) => {
            let position = api::start_position::Position::Earliest(true);
            let place = api::StartPosition { position: Some(position) };
            let partition = api::PartitionStart { partition: 0, start: Some(place) };
            api::SubscribeStart {
                topic: (*topic).to_owned(),
                partitions: vec![partition],
                credit_bytes: CREDIT_BYTES,
                ..api::SubscribeStart::default()
            }
        }
        Source::Bare { batches } => {
            let message = api::PartitionStart { partition: *batches as u32, start: None };
            let partitions = vec![message; count / batches];
            api::SubscribeStart { partitions, ..api::SubscribeStart::default() }
        }
    }
}
