//! Records in and out, one call at a time.

use std::time::{Duration, Instant};

use quipu::batch::Codec;
use quipu::cluster::command::TopicConfig;
use quipu::proto::server::start_position::Position;
use quipu::proto::server::{
    Acks, Durability, ErrorReason, FetchRequest, InitProducerRequest, ListOffsetsRequest,
    ProduceRequest, ProducerStamp, StartPosition,
};

use crate::support::{Client, Cluster, batch_of, reason, request};

fn fetch_at(topic: &str, offset: u64) -> FetchRequest {
    FetchRequest { topic: topic.to_owned(), offset, ..FetchRequest::default() }
}

fn list(topic: &str, position: Position) -> ListOffsetsRequest {
    let position = Some(StartPosition { position: Some(position) });
    ListOffsetsRequest { topic: topic.to_owned(), position, ..ListOffsetsRequest::default() }
}

async fn offset_of(client: &mut Client, topic: &str, position: Position) -> u64 {
    let request = ListOffsetsRequest { partitions: vec![0], ..list(topic, position) };
    client.list_offsets(request).await.unwrap().into_inner().offsets[0].offset
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_produced_is_fetched_byte_for_byte() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let mut sent = Vec::new();
    for (n, codec) in [Codec::None, Codec::Lz4, Codec::None].into_iter().enumerate() {
        let batch = batch_of([n as u64; 5], 1000, codec);
        let produce = ProduceRequest { batch: batch.clone(), ..request("t", 0, 0) };
        let produced = client.produce(produce).await.unwrap().into_inner();
        assert_eq!((produced.base_offset, produced.record_count), (n as u64 * 5, 5));
        assert_eq!(produced.durability(), Durability::Fsync);
        sent.push(batch);
    }
    let fetched = client.fetch(fetch_at("t", 0)).await.unwrap().into_inner();
    assert_eq!(fetched.batches.iter().map(|b| b.batch.clone()).collect::<Vec<_>>(), sent);
    assert_eq!(
        (fetched.next_offset, fetched.high_watermark, fetched.log_start_offset),
        (15, 15, 0)
    );
    let within = client.fetch(fetch_at("t", 7)).await.unwrap().into_inner();
    assert_eq!(within.batches[0].base_offset, 5, "the batch that holds the offset comes first");
    let one = FetchRequest { max_bytes: 1, ..fetch_at("t", 0) };
    assert_eq!(client.fetch(one).await.unwrap().into_inner().batches.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_waits_for_records_but_not_longer_than_asked() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let wait = |max_wait_ms| FetchRequest { max_wait_ms, ..fetch_at("t", 0) };
    let started = Instant::now();
    let nothing = client.fetch(wait(200)).await.unwrap().into_inner();
    assert!(nothing.batches.is_empty() && nothing.next_offset == 0);
    assert!((200..2_000).contains(&started.elapsed().as_millis()));
    let mut waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.fetch(wait(30_000)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    client.produce(request("t", 0, 7)).await.unwrap();
    let fetched = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(fetched.batches.len(), 1);
    assert!(started.elapsed() < Duration::from_secs(2), "the wait ends with the first record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_the_node_drains_and_nothing_else_is_let_in() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let mut waiting = client.clone();
    let wait = FetchRequest { max_wait_ms: 30_000, ..fetch_at("t", 0) };
    let waiting = tokio::spawn(async move { waiting.fetch(wait).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.nodes[0].context.drain();
    let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert!(ended.unwrap().into_inner().batches.is_empty());
    assert_eq!(reason(client.produce(request("t", 0, 1)).await), ErrorReason::Draining);
    assert_eq!(reason(client.fetch(fetch_at("t", 0)).await), ErrorReason::Draining);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_found_by_place_and_by_time() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 2).await;
    let mut client = cluster.nodes[0].client().await;
    for n in 0..3 {
        client.produce(request("t", 0, n)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fetched = client.fetch(fetch_at("t", 0)).await.unwrap().into_inner();
    let times: Vec<i64> = fetched.batches.iter().map(|batch| batch.append_time_ms).collect();
    assert_eq!(offset_of(&mut client, "t", Position::Earliest(true)).await, 0);
    assert_eq!(offset_of(&mut client, "t", Position::Latest(true)).await, 3);
    assert_eq!(offset_of(&mut client, "t", Position::Offset(2)).await, 2);
    assert_eq!(offset_of(&mut client, "t", Position::TimeMs(times[1])).await, 1);
    assert_eq!(offset_of(&mut client, "t", Position::TimeMs(times[1] + 1)).await, 2);
    assert_eq!(offset_of(&mut client, "t", Position::TimeMs(i64::MAX)).await, 3);
    assert_eq!(offset_of(&mut client, "t", Position::TimeMs(i64::MIN)).await, 0);
    let all = client.list_offsets(list("t", Position::Latest(true))).await.unwrap().into_inner();
    let ends: Vec<_> = all.offsets.iter().map(|at| (at.partition, at.offset)).collect();
    assert_eq!(ends, [(0, 3), (1, 0)]);
    let beyond = client.list_offsets(list("t", Position::Offset(4))).await;
    assert_eq!(reason(beyond), ErrorReason::OffsetOutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_is_stored_once_and_fenced_by_its_successor() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    let init = InitProducerRequest { topic: "t".into(), ..InitProducerRequest::default() };
    let producer = client.init_producer(init.clone()).await.unwrap().into_inner();
    assert_eq!((producer.producer_epoch, producer.next_sequence), (0, 0));
    let producer_id = producer.producer_id;
    let stamped = |number, producer_epoch, base_sequence| ProduceRequest {
        producer: Some(ProducerStamp { producer_id, producer_epoch, base_sequence }),
        ..request("t", 0, number)
    };
    for _ in 0..3 {
        let produced = client.produce(stamped(1, 0, 0)).await.unwrap().into_inner();
        assert_eq!(produced.base_offset, 0, "a duplicate is answered like the first");
    }
    assert_eq!(reason(client.produce(stamped(2, 0, 0)).await), ErrorReason::SequenceReused);
    assert_eq!(reason(client.produce(stamped(2, 0, 5)).await), ErrorReason::OutOfOrderSequence);
    let again = InitProducerRequest { producer_id, ..init.clone() };
    let again = client.init_producer(again).await.unwrap().into_inner();
    assert_eq!((again.producer_id, again.producer_epoch), (producer_id, 1));
    assert_eq!(reason(client.produce(stamped(2, 0, 1)).await), ErrorReason::ProducerFenced);
    client.produce(stamped(2, 1, 0)).await.unwrap();
    let unknown = InitProducerRequest { producer_id: 9_999_999, ..init.clone() };
    assert_eq!(reason(client.init_producer(unknown).await), ErrorReason::UnknownProducer);
    let other = client.init_producer(init).await.unwrap().into_inner();
    assert_ne!(other.producer_id, producer_id, "an id is given once");
    assert_eq!(cluster.high_watermark("t", 0).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_say_what_an_answer_waits_for() {
    let cluster = Cluster::of_one().await;
    let config = TopicConfig { is_memory: true, ..TopicConfig::default() };
    cluster.create("t", config, &[&[1]]).await;
    let mut client = cluster.nodes[0].client().await;
    for (n, acks) in [Acks::Quorum, Acks::Leader, Acks::None].into_iter().enumerate() {
        let produce = ProduceRequest { acks: acks.into(), ..request("t", 0, 0) };
        let produced = client.produce(produce).await.unwrap().into_inner();
        assert_eq!(produced.base_offset, n as u64);
        assert_eq!(produced.durability(), Durability::Memory);
    }
    assert_eq!(cluster.high_watermark("t", 0).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_can_be_read_at_once() {
    let cluster = Cluster::of_one().await;
    cluster.topic("t", 1).await;
    let mut client = cluster.nodes[0].client().await;
    for n in 0..1_000 {
        let stored = client.produce(request("t", 0, n)).await.unwrap().into_inner().base_offset;
        let fetched = client.fetch(fetch_at("t", stored)).await.unwrap().into_inner();
        assert_eq!(fetched.next_offset, stored + 1, "after {n} others");
    }
}
