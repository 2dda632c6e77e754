//! The producer under faults: order is kept, nothing is stored twice, memory and retries have
//! bounds.

use std::collections::HashMap;
use std::time::Duration;

use quipu::batch::{Codec, Record};
use quipu::client::{Delivery, Error, ErrorReason, Producer, ProducerConfig};

use crate::fake::{Fake, Fault, TOPIC};

/// Small batches, so that there are many.
fn config() -> ProducerConfig {
    ProducerConfig {
        batch_bytes: 100,
        batches_in_flight: 4,
        linger: Duration::from_millis(1),
        ..ProducerConfig::new(TOPIC)
    }
}

async fn producer(fake: &Fake) -> Producer {
    fake.client().producer(config()).await.unwrap()
}

async fn send(producer: &Producer, value: &str) -> Delivery {
    send_to(producer, 0, value).await
}

async fn send_to(producer: &Producer, partition: u32, value: &str) -> Delivery {
    let record = Record { value: Some(value.as_bytes()), ..Default::default() };
    producer.send_to(partition, &record).await.unwrap()
}

/// Sends numbered records to partition 0 and waits for their fates.
async fn send_numbers(producer: &Producer, count: usize) -> Vec<Result<u64, Error>> {
    let mut deliveries = Vec::new();
    for n in 0..count {
        deliveries.push(send(producer, &numbered(n)).await);
    }
    let mut fates = Vec::new();
    for delivery in deliveries {
        fates.push(delivery.await.map(|receipt| receipt.offset));
    }
    fates
}

async fn eventually(is_so: impl Fn() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is not so");
}

fn numbered(n: usize) -> String {
    format!("record {n:06}")
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(numbered).collect()
}

/// Whatever happened, a record was only ever sent under one number of one incarnation.
fn assert_one_number_per_record(fake: &Fake) {
    let mut numbers = HashMap::new();
    for seen in &fake.state().seen {
        for value in &seen.values {
            let stamp = *numbers.entry(value.clone()).or_insert(seen.stamp);
            assert_eq!(stamp, seen.stamp, "`{value}` was sent under two numbers");
        }
    }
}

#[tokio::test]
async fn records_are_stored_in_order_and_their_offsets_are_told() {
    let fake = Fake::start(1).await;
    let producer = producer(&fake).await;
    let fates = send_numbers(&producer, 1000).await;
    let offsets: Vec<_> = fates.into_iter().map(Result::unwrap).collect();
    assert_eq!(offsets, (0..1000).collect::<Vec<_>>());
    assert_eq!(fake.stored(0), numbers(1000));
    assert!(fake.state().seen.iter().all(|seen| seen.node == 1), "the leader was asked directly");
}

#[tokio::test]
async fn records_of_a_key_stay_together_and_others_are_spread() {
    let fake = Fake::start(3).await;
    let producer = producer(&fake).await;
    for n in 0..300 {
        let (key, value) = (format!("key {}", n % 10), numbered(n));
        let key = (n % 2 == 0).then_some(key.as_bytes());
        let record = Record { key, value: Some(value.as_bytes()), ..Default::default() };
        producer.send(&record).await.unwrap();
    }
    producer.close().await;
    let mut all = Vec::new();
    for partition in 0..3 {
        let state = fake.state();
        let records = state.partitions[partition].batches.iter().flat_map(|b| &b.batch);
        for record in records.flat_map(|batch| &batch.records) {
            if let Some(key) = &record.key {
                assert_eq!(crc32fast::hash(key) as usize % 3, partition);
            }
            all.push(String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap());
        }
        drop(state);
        assert!(!fake.stored(partition).is_empty());
    }
    all.sort();
    assert_eq!(all, numbers(300));
}

/// The first batch of a partition need not wait until the producer is known there.
#[tokio::test]
async fn a_producer_makes_itself_known_while_a_batch_is_filled() {
    let fake = Fake::start(4).await;
    let config = ProducerConfig { linger: Duration::from_secs(3600), ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    let known = || fake.state().partitions.iter().filter(|one| one.producers() > 0).count();
    let record = Record { value: Some(&[0; 60]), ..Default::default() };
    let first = producer.send(&record).await.unwrap();
    eventually(|| known() == 1).await;
    assert!(fake.state().seen.is_empty(), "the batch is still being filled");
    let second = producer.send(&record).await.unwrap();
    let place = first.await.unwrap().partition;
    assert_eq!(known(), 1, "one batch may be all that there is");
    let third = producer.send(&record).await.unwrap();
    eventually(|| known() == 3).await;
    assert_eq!(fake.state().seen.len(), 1, "the next partition is made ready ahead");
    producer.close().await;
    assert_eq!(second.await.unwrap().partition, place);
    assert_eq!(third.await.unwrap().partition, (place + 1) % 4);
}

/// More than the streams that a connection may have.
#[tokio::test]
async fn partitions_of_a_node_share_a_stream() {
    let fake = Fake::start(300).await;
    let producer = producer(&fake).await;
    for partition in 0..300 {
        send_to(&producer, partition, &numbered(partition as usize)).await;
    }
    producer.close().await;
    (0..300).for_each(|partition| assert_eq!(fake.stored(partition), [numbered(partition)]));
    assert_eq!(fake.state().streams, 1);
}

#[tokio::test]
async fn a_break_for_one_partition_harms_none_of_those_that_share_the_stream() {
    let (partitions, records) = (20, 50);
    let fake = Fake::start(partitions).await;
    let faults = [
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Refuse(ErrorReason::Overloaded),
        Fault::StoreAndSay(ErrorReason::OutcomeUnknown),
    ];
    // Between two of them there is time for others to be on their way.
    let spread = |fault| std::iter::repeat_n(Fault::None, 13).chain([fault]);
    fake.state().faults = faults.into_iter().cycle().take(12).flat_map(spread).collect();
    let producer = producer(&fake).await;
    let mut deliveries = Vec::new();
    for n in 0..records {
        for partition in 0..partitions as u32 {
            let value = numbered(partition as usize * records + n);
            deliveries.push((n, send_to(&producer, partition, &value).await));
        }
    }
    for (n, delivery) in deliveries {
        assert_eq!(delivery.await.unwrap().offset, n as u64);
    }
    let all: Vec<_> = (0..partitions).flat_map(|partition| fake.stored(partition)).collect();
    assert_eq!(all, numbers(partitions * records));
    assert_one_number_per_record(&fake);
    assert!(fake.state().streams > 4, "the stream was cut");
}

#[tokio::test]
async fn broken_streams_lose_nothing_and_store_nothing_twice() {
    let fake = Fake::start(1).await;
    let faults = [
        Fault::None,
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::None,
        Fault::None,
        Fault::StoreAndSay(ErrorReason::OutcomeUnknown),
        Fault::Refuse(ErrorReason::Overloaded),
        Fault::CutAfter,
    ];
    fake.state().faults = faults.into_iter().cycle().take(80).collect();
    let producer = producer(&fake).await;
    let fates = send_numbers(&producer, 400).await;
    let offsets: Vec<_> = fates.into_iter().map(Result::unwrap).collect();
    assert_eq!(offsets, (0..400).collect::<Vec<_>>());
    assert_eq!(fake.stored(0), numbers(400));
    assert_one_number_per_record(&fake);
    assert!(fake.state().faults.is_empty(), "all faults happened");
}

#[tokio::test]
async fn a_hint_leads_to_the_leader() {
    let fake = Fake::start(1).await;
    fake.state().partitions[0].leader = 2;
    fake.state().rumor = Some(1);
    let producer = producer(&fake).await;
    send_numbers(&producer, 20).await.into_iter().for_each(|fate| assert!(fate.is_ok()));
    let nodes: Vec<_> = fake.state().seen.iter().map(|seen| seen.node).collect();
    assert_eq!(nodes.first(), Some(&1), "{nodes:?}");
    assert_eq!(nodes.last(), Some(&2), "{nodes:?}");
    assert_eq!(fake.stored(0), numbers(20));
    assert_one_number_per_record(&fake);
}

#[tokio::test]
async fn leadership_that_moves_in_the_middle_is_followed() {
    let fake = Fake::start(1).await;
    let producer = producer(&fake).await;
    for round in 0..6 {
        for n in 0..50 {
            send(&producer, &numbered(round * 50 + n)).await;
        }
        let mut state = fake.state();
        let partition = &mut state.partitions[0];
        partition.leader = 3 - partition.leader;
    }
    producer.close().await;
    assert_eq!(fake.stored(0), numbers(300));
    assert_one_number_per_record(&fake);
}

#[tokio::test]
async fn a_refused_batch_fails_alone() {
    let fake = Fake::start(1).await;
    let refuse = Fault::Refuse(ErrorReason::RecordTooLarge);
    fake.state().faults = [Fault::None, refuse].into();
    let producer = producer(&fake).await;
    let fates = send_numbers(&producer, 100).await;
    let refused: Vec<_> = (0..100).filter(|n| fates[*n].is_err()).collect();
    assert!(!refused.is_empty() && refused.len() < 20, "{refused:?}");
    let is_refusal = |n: &usize| matches!(fates[*n], Err(Error::InvalidRequest(_)));
    assert!(refused.iter().all(is_refusal));
    let kept = (0..100).filter(|n| !refused.contains(n)).map(numbered);
    assert_eq!(fake.stored(0), kept.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_forgotten_producer_goes_on_under_a_new_id() {
    let fake = Fake::start(1).await;
    fake.state().faults = [Fault::None, Fault::Forget].into();
    let producer = producer(&fake).await;
    send_numbers(&producer, 100).await.into_iter().for_each(|fate| assert!(fate.is_ok()));
    assert_eq!(fake.stored(0), numbers(100));
}

#[tokio::test]
async fn an_unknown_batch_of_a_forgotten_producer_is_reported_as_unknown() {
    let fake = Fake::start(1).await;
    fake.state().faults = [Fault::CutAfter, Fault::Forget].into();
    let producer = producer(&fake).await;
    let fate = send(&producer, "first").await.await;
    assert!(matches!(fate, Err(Error::OutcomeUnknown(_))), "{fate:?}");
    assert_eq!(send(&producer, "second").await.await.unwrap().offset, 1);
    assert_eq!(fake.stored(0), ["first", "second"]);
    assert_one_number_per_record(&fake);
}

#[tokio::test]
async fn without_sequence_numbers_nothing_is_sent_twice() {
    let fake = Fake::start(1).await;
    fake.state().faults = [Fault::CutAfter, Fault::Refuse(ErrorReason::Overloaded)].into();
    let config = ProducerConfig { is_idempotent: false, ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    let fate = send(&producer, "first").await.await;
    assert!(matches!(fate, Err(Error::OutcomeUnknown(_))), "{fate:?}");
    send(&producer, "second").await.await.unwrap();
    assert_eq!(fake.stored(0), ["first", "second"]);
}

#[tokio::test]
async fn senders_wait_for_room_while_acknowledgements_are_slow() {
    let fake = Fake::start(1).await;
    fake.answers.send_replace(false);
    let config = ProducerConfig { buffer_bytes: 8 << 20, batch_bytes: 256 << 10, ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    let value = "x".repeat(64 << 10);
    let mut taken = 0;
    while tokio::time::timeout(Duration::from_millis(300), send(&producer, &value)).await.is_ok() {
        taken += 1;
        assert!(taken < 1000, "nothing holds the sender back");
    }
    assert!((120..=128).contains(&taken), "{taken} records of 64 KiB are in a buffer of 8 MiB");
    fake.answers.send_replace(true);
    send(&producer, &value).await.await.unwrap();
    assert_eq!(fake.stored(0).len(), taken + 1, "the one that gave up waiting was not taken");
}

#[tokio::test]
async fn a_record_is_given_up_when_its_time_is_over() {
    let fake = Fake::start(1).await;
    fake.state().always = Some(Fault::Refuse(ErrorReason::NoLeader));
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(1), ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    // Right before its time is over, a last attempt may be too late for its answer.
    let mut fate = send(&producer, "a").await.await;
    for _ in 0..3 {
        if matches!(fate, Err(Error::OutcomeUnknown(_))) {
            fate = send(&producer, "a").await.await;
        }
    }
    assert!(matches!(fate, Err(Error::Unavailable(_))), "{fate:?}");
    fake.state().always = Some(Fault::CutAfter);
    let fate = send(&producer, "b").await.await;
    assert!(matches!(fate, Err(Error::OutcomeUnknown(_))), "{fate:?}");
    fake.state().always = None;
    send(&producer, "c").await.await.unwrap();
    assert_eq!(fake.stored(0), ["b", "c"]);
}

#[tokio::test]
async fn retries_of_all_partitions_share_one_budget() {
    const PARTITIONS: usize = 200;
    let fake = Fake::start(PARTITIONS).await;
    fake.state().always = Some(Fault::Refuse(ErrorReason::Overloaded));
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(3), ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    let record = Record { value: Some(b"a"), ..Default::default() };
    for partition in 0..PARTITIONS as u32 {
        producer.send_to(partition, &record).await.unwrap();
    }
    producer.close().await;
    let retries = fake.state().seen.len() - PARTITIONS;
    // 100 at once, 10 each second, and one for every ten successful calls.
    assert!((50..200).contains(&retries), "{retries} retries");
}

#[tokio::test]
async fn compressed_batches_arrive() {
    let fake = Fake::start(1).await;
    let config = ProducerConfig { codec: Codec::Lz4, batch_bytes: 64 << 10, ..config() };
    let producer = fake.client().producer(config).await.unwrap();
    let value: String = (0..2000).map(numbered).collect();
    send(&producer, &value).await.await.unwrap();
    let state = fake.state();
    let batch = state.partitions[0].batches[0].batch.as_ref().unwrap();
    assert_eq!((batch.codec, batch.record_count), (1, 1));
    assert!(batch.compressed.len() < value.len());
}

#[tokio::test]
async fn a_closed_producer_takes_no_more() {
    let fake = Fake::start(1).await;
    let producer = producer(&fake).await;
    let clone = producer.clone();
    producer.close().await;
    let record = Record { value: Some(b"late"), ..Default::default() };
    assert!(matches!(clone.send(&record).await, Err(Error::Closed)));
    let error = fake.client().producer(ProducerConfig::new("nowhere")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[tokio::test]
async fn records_that_cannot_be_are_refused_at_once() {
    let fake = Fake::start(1).await;
    let producer = producer(&fake).await;
    let value = vec![0; 2 << 20];
    let record = Record { value: Some(&value), ..Default::default() };
    assert!(matches!(producer.send(&record).await, Err(Error::Record(_))));
    assert!(matches!(producer.send_to(9, &record).await, Err(Error::NotFound(_))));
    assert!(fake.state().seen.is_empty());
}

#[test]
fn no_more_batches_are_on_their_way_than_a_server_recognizes() {
    let remembered = quipu::partition::RECENT_BATCHES_MAX;
    assert_eq!(quipu::client::BATCHES_IN_FLIGHT_MAX, remembered);
    assert!(ProducerConfig::new("t").batches_in_flight <= remembered);
}
