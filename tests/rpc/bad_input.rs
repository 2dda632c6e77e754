//! Bad input: each is refused with its code and reason, changes nothing and harms nobody.

use bytes::Bytes;
use quipu::batch::Codec;
use quipu::cluster::command::TopicConfig;
use quipu::proto::server::start_position::Position;
use quipu::proto::server::{
    ErrorReason, FetchRequest, InitProducerRequest, ListOffsetsRequest, ProduceRequest,
    ProducerStamp, StartPosition,
};
use quipu::rpc::status;
use tonic::{Code, Request, Status};

use crate::support::{Client, Cluster, batch_of, reason, request};

const OTHER_ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::of_one().await;
    let config = TopicConfig { record_bytes_max: Some(1 << 10), ..TopicConfig::default() };
    cluster.create("t", config, &[&[1], &[1]]).await;
    let client = cluster.nodes[0].client().await;
    (cluster, client)
}

/// After each bad call: nothing was appended, and the next good one is answered.
async fn nothing_has_changed(cluster: &Cluster, client: &mut Client) {
    assert_eq!(cluster.high_watermark("t", 0).await, 0);
    let fetch = FetchRequest { topic: "t".into(), ..FetchRequest::default() };
    client.fetch(fetch).await.expect("the server still answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_are_not_sound_are_refused() {
    let (cluster, mut client) = cluster().await;
    let good = batch_of([1, 2, 3], 100, Codec::None);
    let with = |batch: Bytes| ProduceRequest { batch, ..request("t", 0, 0) };
    let bytes = |bytes: &'static [u8]| with(Bytes::from_static(bytes));
    let frame = *b"\x04\x22\x4d\x18";
    let compressed = |head: &[u8]| with(Bytes::from([head, b"\x2a\x04", &frame].concat()));
    let wrong_crc = ProduceRequest { crc: Some(1), ..with(good.clone()) };
    let wrong_acks = ProduceRequest { acks: 77, ..with(good.clone()) };
    let bomb = compressed(b"\x08\x01\x18\x01\x20\xff\xff\xff\xff\x0f");
    let many = compressed(b"\x08\x01\x18\xff\xff\xff\xff\x0f\x20\x10");
    let unknown_codec = bytes(b"\x08\x63\x18\x01\x20\x10\x2a\x01\x00");
    let cases = [
        ("nothing", with(Bytes::new()), ErrorReason::CorruptBatch),
        ("half a batch", with(good.slice(..good.len() / 2)), ErrorReason::CorruptBatch),
        ("noise", with(Bytes::from(vec![0xff; 64])), ErrorReason::CorruptBatch),
        ("lengths that overlap", bytes(b"\x12\x7f\x0a"), ErrorReason::CorruptBatch),
        ("another checksum", wrong_crc, ErrorReason::BadChecksum),
        ("a long record", with(batch_of([1], 2_000, Codec::None)), ErrorReason::RecordTooLarge),
        ("a bomb", bomb, ErrorReason::CompressionLimit),
        ("four billion records", many, ErrorReason::BatchTooLarge),
        ("an unknown codec", unknown_codec, ErrorReason::UnsupportedCodec),
        ("unknown acks", wrong_acks, ErrorReason::InvalidField),
    ];
    for (what, bad, expected) in cases {
        let outcome = client.produce(bad).await;
        let code = outcome.as_ref().unwrap_err().code();
        assert_eq!((reason(outcome), code), (expected, Code::InvalidArgument), "{what}");
        nothing_has_changed(&cluster, &mut client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_are_too_large_are_refused() {
    let cluster = Cluster::of_one().await;
    cluster.create("t", TopicConfig::default(), &[&[1]]).await;
    let mut client = cluster.nodes[0].client().await;
    let at_limit = batch_of(0..7, 520_000, Codec::None);
    assert!(at_limit.len() < 3_670_016);
    let over_limit = batch_of(0..8, 500_000, Codec::None);
    assert!((3_670_016..4 << 20).contains(&over_limit.len()));
    let over = ProduceRequest { batch: over_limit, ..request("t", 0, 0) };
    assert_eq!(reason(client.produce(over).await), ErrorReason::BatchTooLarge);
    let message = ProduceRequest { batch: Bytes::from(vec![0; 5 << 20]), ..request("t", 0, 0) };
    assert_eq!(client.produce(message).await.unwrap_err().code(), Code::OutOfRange);
    nothing_has_changed(&cluster, &mut client).await;
    let good = ProduceRequest { batch: at_limit.clone(), ..request("t", 0, 0) };
    client.produce(good).await.unwrap();
    let fetch = FetchRequest { topic: "t".into(), max_bytes: 1, ..FetchRequest::default() };
    let fetched = client.fetch(fetch).await.unwrap().into_inner();
    assert_eq!(fetched.batches[0].batch, at_limit, "a batch comes whole, however few bytes fit");
}

/// Calls every method with the same topic, and returns what each said.
async fn call_all(client: &mut Client, topic: &str, topic_id: &str, partition: u32) -> [Status; 4] {
    let (topic, topic_id) = (topic.to_owned(), topic_id.to_owned());
    let produce = ProduceRequest {
        topic: topic.clone(),
        topic_id: topic_id.clone(),
        ..request("t", partition, 1)
    };
    let fetch = FetchRequest {
        topic: topic.clone(),
        topic_id: topic_id.clone(),
        partition,
        ..FetchRequest::default()
    };
    let list = ListOffsetsRequest {
        topic: topic.clone(),
        topic_id: topic_id.clone(),
        partitions: vec![partition],
        position: Some(StartPosition { position: Some(Position::Latest(true)) }),
    };
    let init = InitProducerRequest { topic, topic_id, partition, producer_id: 0 };
    [
        client.produce(produce).await.unwrap_err(),
        client.fetch(fetch).await.unwrap_err(),
        client.list_offsets(list).await.unwrap_err(),
        client.init_producer(init).await.unwrap_err(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_ids_that_lead_nowhere_are_refused_by_every_method() {
    let (cluster, mut client) = cluster().await;
    let long = "x".repeat(250);
    let bad_names = ["", ".", "..", "../x", "/etc/x", "a\0b", "ä", "__internal", "a b", &long];
    for name in bad_names {
        for status in call_all(&mut client, name, "", 0).await {
            assert_eq!(status.code(), Code::InvalidArgument, "{name:?}");
            assert_eq!(status::reason_of(&status), Some(ErrorReason::BadName), "{name:?}");
        }
    }
    let cases = [
        ("nothing-of-that-name", "", 0, ErrorReason::UnknownTopic, Code::NotFound),
        ("CON", "", 0, ErrorReason::UnknownTopic, Code::NotFound),
        ("t", OTHER_ID, 0, ErrorReason::UnknownTopicId, Code::NotFound),
        ("t", "no-uuid", 0, ErrorReason::InvalidField, Code::InvalidArgument),
        ("t", "", 2, ErrorReason::UnknownPartition, Code::NotFound),
        ("t", "", u32::MAX, ErrorReason::UnknownPartition, Code::NotFound),
    ];
    for (topic, topic_id, partition, reason, code) in cases {
        for status in call_all(&mut client, topic, topic_id, partition).await {
            assert_eq!(status::reason_of(&status), Some(reason), "{topic} {topic_id} {partition}");
            assert_eq!(status.code(), code);
        }
        nothing_has_changed(&cluster, &mut client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_clamped_or_refused() {
    let (cluster, mut client) = cluster().await;
    let fetch = |offset| FetchRequest { topic: "t".into(), offset, ..FetchRequest::default() };
    for offset in [1, u64::MAX] {
        let status = client.fetch(fetch(offset)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
        let told = status::to_in_stream(&quipu::rpc::Error::from(status)).metadata;
        assert_eq!(told["requested"], offset.to_string());
        assert_eq!(told["log_start_offset"], "0");
        assert_eq!(told["high_watermark"], "0");
    }
    for max_bytes in [0, 1, u32::MAX] {
        let clamped = FetchRequest { max_bytes, ..fetch(0) };
        assert!(client.fetch(clamped).await.unwrap().into_inner().batches.is_empty());
    }
    let position = Some(StartPosition { position: Some(Position::Latest(true)) });
    let list = ListOffsetsRequest { topic: "t".into(), position, ..Default::default() };
    let many = ListOffsetsRequest { partitions: vec![0; 1_001], ..list.clone() };
    assert_eq!(reason(client.list_offsets(many).await), ErrorReason::InvalidField);
    let placeless = ListOffsetsRequest { position: None, ..list };
    assert_eq!(reason(client.list_offsets(placeless).await), ErrorReason::InvalidField);
    let stamp = |producer_id, producer_epoch| {
        let producer = Some(ProducerStamp { producer_id, producer_epoch, base_sequence: 0 });
        ProduceRequest { producer, ..request("t", 0, 1) }
    };
    assert_eq!(reason(client.produce(stamp(0, 0)).await), ErrorReason::InvalidField);
    assert_eq!(reason(client.produce(stamp(1, 65_536)).await), ErrorReason::InvalidField);
    assert_eq!(reason(client.produce(stamp(1, 0)).await), ErrorReason::UnknownProducer);
    nothing_has_changed(&cluster, &mut client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_asks_to_wait_for_a_day_is_answered_before_its_deadline() {
    let (_cluster, mut client) = cluster().await;
    let fetch = FetchRequest { topic: "t".into(), max_wait_ms: 86_400_000, ..Default::default() };
    let mut request = Request::new(fetch);
    request.set_timeout(std::time::Duration::from_millis(500));
    assert!(client.fetch(request).await.unwrap().into_inner().batches.is_empty());
}

/// Bytes that are sent as they are, whatever they mean.
#[derive(Debug, Default)]
struct Raw(Vec<u8>);

impl prost::Message for Raw {
    fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buf: &mut impl bytes::Buf,
        ctx: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_none_are_refused_and_harm_nobody() {
    let (cluster, mut client) = cluster().await;
    let mut grpc = tonic::client::Grpc::new(cluster.nodes[0].channel().await);
    let cases = [
        ("text that is none", b"\x0a\x02\xff\xfe".to_vec()),
        ("groups within groups", vec![0x0b; 10_000]),
        ("a length beyond the end", b"\x0a\xff\xff\xff\xff\x0f".to_vec()),
        ("a number without an end", vec![0xff; 64]),
        ("a field of another type", b"\x0d\x01\x00\x00\x00".to_vec()),
    ];
    for method in ["Produce", "Fetch", "ListOffsets", "InitProducer"] {
        for (what, bytes) in &cases {
            grpc.ready().await.unwrap();
            let path = format!("/quipu.v1.LogService/{method}").try_into().unwrap();
            let codec = tonic_prost::ProstCodec::<Raw, Raw>::default();
            let status = grpc.unary(Request::new(Raw(bytes.clone())), path, codec).await;
            let status = status.expect_err(what);
            assert_eq!(status.code(), Code::Internal, "{method}, {what}: {status}");
        }
        nothing_has_changed(&cluster, &mut client).await;
    }
    // An acknowledgment that nobody knows is not taken for one that is known.
    let produce = ProduceRequest { acks: i32::MIN, ..request("t", 0, 1) };
    assert_eq!(reason(client.produce(produce).await), ErrorReason::InvalidField);
}
