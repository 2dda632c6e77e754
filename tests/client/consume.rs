//! The consumer under faults: no record is lost, none comes twice, and gaps are told.

use std::time::Duration;

use quipu::client::{Consumer, ConsumerConfig, Error, Event, Gap, Start};
use quipu::proto::client::start_position::Position;

use crate::fake::{Fake, TOPIC};

fn consumer(fake: &Fake, start: Start) -> Consumer {
    let config = ConsumerConfig { credit_bytes: 64 << 10, ..ConsumerConfig::new(TOPIC, start) };
    fake.client().consumer(config)
}

/// Reads events until there are none for a while.
async fn read_all(consumer: &mut Consumer) -> Vec<Event> {
    let mut events = Vec::new();
    let patience = Duration::from_millis(1500);
    while let Ok(event) = tokio::time::timeout(patience, consumer.next()).await {
        events.push(event.unwrap());
    }
    events
}

fn offsets(events: &[Event], wanted: u32) -> Vec<u64> {
    let offset = |event: &Event| match event {
        Event::Record(record) => (record.partition == wanted).then_some(record.offset),
        Event::Gap(_) => None,
    };
    events.iter().filter_map(offset).collect()
}

/// The offsets that the subscriptions began at, as they were asked for.
fn asked(fake: &Fake, partition: usize) -> Vec<Option<u64>> {
    let state = fake.state();
    let offset = |start: &quipu::proto::client::SubscribeStart| {
        let start = start.partitions.get(partition)?.start?;
        match start.position? {
            Position::Offset(offset) => Some(offset),
            _ => None,
        }
    };
    state.subscribed.iter().map(offset).collect()
}

#[tokio::test]
async fn a_broken_subscription_goes_on_at_the_exact_offset() {
    let fake = Fake::start(2).await;
    fake.fill(0, 200);
    fake.fill(1, 100);
    fake.state().cuts = [3, 0, 7, 1].into();
    let mut consumer = consumer(&fake, Start::Earliest);
    let events = read_all(&mut consumer).await;
    assert_eq!(offsets(&events, 0), (0..200).collect::<Vec<_>>());
    assert_eq!(offsets(&events, 1), (0..100).collect::<Vec<_>>());
    assert_eq!(asked(&fake, 0), [None, Some(30), Some(30), Some(100), Some(110)]);
    assert!(fake.state().subscribed[1..].iter().all(|start| !start.topic_id.is_empty()));
    assert_eq!(consumer.position(0), Some(200));
    assert_eq!(consumer.high_watermark(1), Some(100));
}

#[tokio::test]
async fn records_below_the_offset_wanted_are_left_out() {
    let fake = Fake::start(1).await;
    fake.fill(0, 50);
    let mut consumer = consumer(&fake, Start::Offset(17));
    let started: Vec<_> = consumer.start().await.unwrap().collect();
    assert_eq!(started, [(0, 17)]);
    let events = read_all(&mut consumer).await;
    assert_eq!(offsets(&events, 0), (17..50).collect::<Vec<_>>());
    let Event::Record(first) = &events[0] else { panic!("{:?}", events[0]) };
    assert_eq!(first.value.as_deref().unwrap(), format!("{:0100}", 17).as_bytes());
    assert_eq!(first.append_time_ms, 1_700_000_000_000);
}

#[tokio::test]
async fn credit_bounds_what_is_sent_ahead_and_comes_back() {
    let fake = Fake::start(1).await;
    fake.fill(0, 10_000);
    let mut consumer = consumer(&fake, Start::Earliest);
    for _ in 0..5 {
        consumer.next().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let batch_bytes = 1200;
    let owed_max = fake.state().owed_max;
    assert!(owed_max > 32 << 10, "{owed_max} bytes were sent ahead");
    assert!(owed_max < (64 << 10) + batch_bytes, "{owed_max} bytes were sent ahead");
    let events = read_all(&mut consumer).await;
    assert_eq!(offsets(&events, 0), (5..10_000).collect::<Vec<_>>());
    assert!(fake.state().owed_max < (64 << 10) + batch_bytes);
}

#[tokio::test]
async fn records_that_are_gone_are_told_as_a_gap() {
    let fake = Fake::start(1).await;
    fake.fill(0, 100);
    fake.state().cuts = [2].into();
    let mut consumer = consumer(&fake, Start::Earliest);
    for _ in 0..20 {
        consumer.next().await.unwrap();
    }
    fake.state().partitions[0].log_start_offset = 60;
    let events = read_all(&mut consumer).await;
    let topic = TOPIC.into();
    assert_eq!(events[0], Event::Gap(Gap { topic, partition: 0, from_offset: 20, to_offset: 60 }));
    assert_eq!(offsets(&events, 0), (60..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_damaged_batch_is_reported_and_not_passed_over() {
    let fake = Fake::start(1).await;
    fake.fill(0, 30);
    fake.state().partitions[0].batches[1].crc ^= 1;
    let mut consumer = consumer(&fake, Start::Earliest);
    for _ in 0..10 {
        consumer.next().await.unwrap();
    }
    let error = consumer.next().await.unwrap_err();
    assert!(matches!(error, Error::DamagedBatch { base_offset: 10, .. }), "{error}");
    fake.state().partitions[0].batches[1].crc ^= 1;
    let Event::Record(record) = consumer.next().await.unwrap() else { panic!("a gap") };
    assert_eq!(record.offset, 10);
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_not_waited_for() {
    let fake = Fake::start(1).await;
    let config = ConsumerConfig::new("nowhere", Start::Earliest);
    let error = fake.client().consumer(config).next().await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[tokio::test]
async fn cancelled_waits_lose_no_record() {
    let fake = Fake::start(1).await;
    fake.fill(0, 100);
    fake.state().cuts = [1, 1, 1, 1, 1].into();
    let mut consumer = consumer(&fake, Start::Earliest);
    let mut events = Vec::new();
    for _ in 0..2000 {
        let patience = Duration::from_micros(500);
        if let Ok(event) = tokio::time::timeout(patience, consumer.next()).await {
            events.push(event.unwrap());
        }
        if events.len() == 100 {
            break;
        }
    }
    assert_eq!(offsets(&events, 0), (0..100).collect::<Vec<_>>());
}
