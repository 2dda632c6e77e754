//! Calls that a server has to refuse: batches that are none, names and numbers without sense, ids
//! of nobody.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::client::group_service_client::GroupServiceClient;
use quipu::proto::client::topic_service_client::TopicServiceClient;
use quipu::proto::client::{
    CommitOffsetsRequest, CreateTopicRequest, DeleteTopicRequest, OffsetCommit,
};
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::{FetchRequest, ProduceRequest, ProducerStamp};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::Attack;
use crate::clients::TOPIC;
use crate::rng::Rng;

/// Every one of them is sent to every node, again and again.
pub(super) fn gather(attack: &Arc<Attack>, rng: &mut Rng) -> Vec<JoinHandle<()>> {
    let places = 0..attack.targets.len();
    places.map(|place| tokio::spawn(live(attack.clone(), place, Rng::new(rng.next())))).collect()
}

async fn live(attack: Arc<Attack>, place: usize, mut rng: Rng) {
    while !attack.is_over() {
        let address = attack.targets[place][0];
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let endpoint = endpoint.local_address(Some(attack.from)).timeout(Duration::from_secs(10));
        let Ok(channel) = endpoint.connect_timeout(Duration::from_secs(2)).connect().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        for _ in 0..20 {
            if attack.is_over() {
                return;
            }
            produce(&attack, &channel, &mut rng).await;
            fetch(&attack, &channel).await;
            administer(&attack, &channel, &mut rng).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn good_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    let record = Record { value: Some(b"of nobody"), ..Record::default() };
    builder.append(&record).unwrap();
    builder.build(Codec::None).unwrap()
}

/// Batches and stamps that have to be refused, with what is wrong with them.
fn bad_batches(rng: &mut Rng) -> Vec<(&'static str, ProduceRequest)> {
    let good = good_batch();
    let partition = rng.below(8) as u32;
    let with = |batch: Bytes| ProduceRequest {
        topic: TOPIC.to_owned(),
        partition,
        batch,
        ..ProduceRequest::default()
    };
    let noise: Vec<u8> = (0..rng.between(1, 5_000)).map(|_| rng.next() as u8 | 0x80).collect();
    let frame = *b"\x04\x22\x4d\x18";
    let compressed = |head: &[u8]| with(Bytes::from([head, b"\x2a\x04", &frame].concat()));
    let stamp = |producer_id, producer_epoch, base_sequence| ProduceRequest {
        producer: Some(ProducerStamp { producer_id, producer_epoch, base_sequence }),
        ..with(good.clone())
    };
    vec![
        ("nothing", with(Bytes::new())),
        ("half a batch", with(good.slice(..good.len() / 2))),
        ("noise", with(Bytes::from(noise))),
        ("lengths that overlap", with(Bytes::from_static(b"\x12\x7f\x0a"))),
        ("another checksum", ProduceRequest { crc: Some(1), ..with(good.clone()) }),
        ("a bomb", compressed(b"\x08\x01\x18\x01\x20\xff\xff\xff\xff\x0f")),
        ("four billion records", compressed(b"\x08\x01\x18\xff\xff\xff\xff\x0f\x20\x10")),
        ("an unknown codec", with(Bytes::from_static(b"\x08\x63\x18\x01\x20\x10\x2a\x01\x00"))),
        ("unknown acks", ProduceRequest { acks: 77, ..with(good.clone()) }),
        ("a message of 5 MiB", with(Bytes::from(vec![0; 5 << 20]))),
        ("an id of nobody", stamp(rng.next(), 0, 0)),
        ("an epoch beyond all", stamp(1, u32::MAX, 0)),
        ("a gap", stamp(rng.next(), 1, 77)),
        ("no such partition", ProduceRequest { partition: 1 << 31, ..with(good.clone()) }),
        ("no such topic", ProduceRequest { topic: "nowhere".to_owned(), ..with(good.clone()) }),
        ("no name", ProduceRequest { topic: "../../etc".to_owned(), ..with(good.clone()) }),
        ("no id", ProduceRequest { topic_id: "x".repeat(10_000), ..with(good) }),
    ]
}

async fn produce(attack: &Attack, channel: &Channel, rng: &mut Rng) {
    let mut client = LogServiceClient::new(channel.clone());
    for (what, request) in bad_batches(rng) {
        let outcome = client.produce(request).await;
        attack.expect_refusal(what, outcome.is_err());
    }
}

async fn fetch(attack: &Attack, channel: &Channel) {
    let mut client = LogServiceClient::new(channel.clone());
    let of = |topic: &str, partition, offset| FetchRequest {
        topic: topic.to_owned(),
        partition,
        offset,
        ..FetchRequest::default()
    };
    for (what, request) in [
        ("an offset beyond the end", of(TOPIC, 0, 1 << 50)),
        ("the last offset there is", of(TOPIC, 0, u64::MAX)),
        ("no such partition", of(TOPIC, u32::MAX, 0)),
        ("a name with a null", of("a\0b", 0, 0)),
        ("a long name", of(&"x".repeat(5_000), 0, 0)),
    ] {
        attack.expect_refusal(what, client.fetch(request).await.is_err());
    }
    // Numbers without bounds are brought within bounds.
    let all = FetchRequest { max_bytes: u32::MAX, ..of(TOPIC, 0, 0) };
    let _ = client.fetch(all).await;
}

async fn administer(attack: &Attack, channel: &Channel, rng: &mut Rng) {
    let mut topics = TopicServiceClient::new(channel.clone());
    let create = |name: &str, partitions, replicas| CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        replicas,
        ..CreateTopicRequest::default()
    };
    for (what, request) in [
        ("four billion partitions", create("many", u32::MAX, 3)),
        ("a thousand replicas", create("wide", 1, 1_000)),
        ("a topic that is there", create(TOPIC, 1, 3)),
        ("a topic of the server's own", create("__metadata", 1, 3)),
        ("a topic above", create("..", 1, 3)),
    ] {
        attack.expect_refusal(what, topics.create_topic(request).await.is_err());
    }
    let delete = DeleteTopicRequest { name: format!("no-{}", rng.next()), ..Default::default() };
    attack.expect_refusal("a topic that is not there", topics.delete_topic(delete).await.is_err());
    let offset = OffsetCommit {
        topic: TOPIC.to_owned(),
        partition: 0,
        next_offset: u64::MAX,
        generation: rng.next(),
        ..OffsetCommit::default()
    };
    let (group, member_id) = (format!("no-{}", rng.next()), "nobody".to_owned());
    let commit = CommitOffsetsRequest { group, member_id, offsets: vec![offset] };
    let mut groups = GroupServiceClient::new(channel.clone());
    attack.expect_refusal("a commit of nobody", groups.commit_offsets(commit).await.is_err());
}
