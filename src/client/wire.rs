//! The messages with record batches in them, with each batch as bytes, and the calls they are for.
//!
//! The generated messages would take a batch apart. Its checksum is of the bytes that the producer
//! encoded, so a client has to see those: on the wire a message field and a `bytes` field are the
//! same. The numbers are those of `proto/quipu/v1/log.proto` and `record.proto`; a test holds them
//! against the generated types.

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Response, Status, Streaming};

use super::connection::{MESSAGE_BYTES_MAX, Route};
use crate::proto::client::{
    ProduceResponse, ProduceStreamResponse, ProducerStamp, SubscribeGap, SubscribePositions,
    SubscribeRequest, SubscribeStarted,
};
use crate::proto::codec::ExactCodec;
use crate::proto::path::{PRODUCE, PRODUCE_STREAM, SUBSCRIBE};
use crate::proto::stream::{self, InOnePiece, Inbound, Outbound, RopeMut};

/// `ProduceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Produce {
    #[prost(string, tag = "1")]
    pub(super) topic: String,
    #[prost(string, tag = "2")]
    pub(super) topic_id: String,
    #[prost(uint32, tag = "3")]
    pub(super) partition: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) batch: Bytes,
    #[prost(fixed32, optional, tag = "5")]
    pub(super) crc: Option<u32>,
    #[prost(enumeration = "crate::proto::client::Acks", tag = "6")]
    pub(super) acks: i32,
    #[prost(message, optional, tag = "7")]
    pub(super) producer: Option<ProducerStamp>,
}

/// `ProduceStreamRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamedProduce {
    #[prost(uint64, tag = "1")]
    pub(super) request_id: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) produce: Option<Produce>,
}

/// `StoredBatch`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Stored {
    #[prost(uint64, tag = "1")]
    pub(super) base_offset: u64,
    #[prost(uint32, tag = "2")]
    pub(super) record_count: u32,
    #[prost(int64, tag = "3")]
    pub(super) append_time_ms: i64,
    #[prost(uint64, tag = "4")]
    pub(super) leader_epoch: u64,
    #[prost(fixed32, tag = "5")]
    pub(super) crc: u32,
    #[prost(bytes = "bytes", tag = "6")]
    pub(super) batch: Bytes,
}

/// `SubscribeData`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Data {
    #[prost(uint32, tag = "1")]
    pub(super) partition: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) batches: Vec<Stored>,
    #[prost(uint64, tag = "3")]
    pub(super) next_offset: u64,
    #[prost(uint64, tag = "4")]
    pub(super) high_watermark: u64,
    #[prost(uint32, tag = "5")]
    pub(super) cost_bytes: u32,
}

/// `SubscribeResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Subscribed {
    #[prost(oneof = "Told", tags = "1, 2, 3, 4")]
    pub(super) message: Option<Told>,
}

/// What a subscriber is told.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Told {
    #[prost(message, tag = "1")]
    Started(SubscribeStarted),
    #[prost(message, tag = "2")]
    Data(Data),
    #[prost(message, tag = "3")]
    Gap(SubscribeGap),
    #[prost(message, tag = "4")]
    Positions(SubscribePositions),
}

/// Has one batch stored.
pub(super) async fn produce(
    route: &Route,
    request: Request<Produce>,
) -> Result<Response<ProduceResponse>, Status> {
    let mut grpc = Grpc::new(route.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    grpc.unary(request, PathAndQuery::from_static(PRODUCE), ExactCodec::default()).await
}

/// Opens a stream of batches to be stored. `requests` may hold some already.
pub(super) async fn produce_stream(
    route: &Route,
    requests: mpsc::Receiver<StreamedProduce>,
) -> Result<Streaming<ProduceStreamResponse>, Status> {
    open(route, requests, PRODUCE_STREAM).await
}

/// Opens a subscription. `requests` holds its start already.
pub(super) async fn subscribe(
    route: &Route,
    requests: mpsc::Receiver<SubscribeRequest>,
) -> Result<Streaming<Subscribed>, Status> {
    open(route, requests, SUBSCRIBE).await
}

/// Opens a stream in both directions.
pub(super) async fn open<Q, A>(
    route: &Route,
    requests: mpsc::Receiver<Q>,
    path: &'static str,
) -> Result<Streaming<A>, Status>
where
    Q: Outbound + Send + 'static,
    A: Inbound,
{
    let request = route.stream_request(ReceiverStream::new(requests).map(Ok));
    stream::ask(&mut route.channel(), path, request, MESSAGE_BYTES_MAX).await
}

impl Outbound for StreamedProduce {
    fn bytes(&self) -> usize {
        self.encoded_len()
    }

    fn put(self, out: &mut RopeMut) {
        let Self { request_id, produce } = self;
        Self { request_id, produce: None }.encode_raw(out.gather());
        if let Some(mut produce) = produce {
            let batch = std::mem::take(&mut produce.batch);
            out.put_message(2, &produce, (4, batch));
        }
    }
}

impl InOnePiece for SubscribeRequest {}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::client as api;

    fn batch() -> api::RecordBatch {
        let value = Some(Bytes::from_static(b"v"));
        api::RecordBatch {
            records: vec![api::Record { value, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_streamed_batch_is_what_the_api_says() {
        let stamp = ProducerStamp { producer_id: 1, producer_epoch: 2, base_sequence: 3 };
        let generated = api::ProduceStreamRequest {
            request_id: 7,
            produce: Some(api::ProduceRequest {
                topic: "t".into(),
                topic_id: "id".into(),
                partition: 4,
                batch: Some(batch()),
                crc: Some(5),
                acks: api::Acks::Leader.into(),
                producer: Some(stamp),
            }),
        };
        let bytes = generated.encode_to_vec();
        let own = StreamedProduce::decode(bytes.as_slice()).unwrap();
        assert_eq!(own.produce.as_ref().unwrap().batch, batch().encode_to_vec());
        assert_eq!(own.encode_to_vec(), bytes);
        let mut out = RopeMut::default();
        own.clone().put(&mut out);
        assert_eq!(out.bytes(), bytes.len());
        assert_eq!(api::ProduceStreamRequest::decode(out.finish()).unwrap(), generated);
    }

    #[test]
    fn what_a_subscriber_is_told_is_what_the_api_says() {
        use api::subscribe_response::Message as M;
        let stored = api::StoredBatch {
            base_offset: 1,
            record_count: 1,
            append_time_ms: 3,
            leader_epoch: 4,
            crc: 5,
            batch: Some(batch()),
        };
        let data = api::SubscribeData {
            partition: 1,
            batches: vec![stored],
            next_offset: 2,
            high_watermark: 3,
            cost_bytes: 4,
        };
        let gap = api::SubscribeGap { partition: 1, from_offset: 2, to_offset: 3 };
        let positions = vec![api::PartitionPosition { partition: 1, ..Default::default() }];
        for message in [
            M::Started(SubscribeStarted { topic_id: "id".into(), positions: positions.clone() }),
            M::Data(data),
            M::Gap(gap),
            M::Positions(SubscribePositions { positions }),
        ] {
            let generated = api::SubscribeResponse { message: Some(message) };
            let bytes = generated.encode_to_vec();
            let own = Subscribed::decode(bytes.as_slice()).unwrap();
            assert!(own.message.is_some());
            assert_eq!(own.encode_to_vec(), bytes);
        }
    }
}
