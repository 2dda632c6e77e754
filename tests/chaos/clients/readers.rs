//! Readers of the library: a subscriber to everything, and one who asks where the ends are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quipu::client::{self, Consumer, ConsumerConfig, Start};

use super::{TOPIC, World};
use crate::history::{Event, Poll, Tail};
use crate::rng::Rng;
use crate::value::Value;

/// Records that are noted together.
const AT_ONCE: usize = 2_000;

/// Subscribes to all partitions from the beginning, until it is over.
pub(super) async fn subscribe(world: Arc<World>) {
    let reader = world.number();
    let mut consumer = world.client().consumer(ConsumerConfig::new(TOPIC, Start::Earliest));
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    while !world.is_over() {
        let invoked = world.history.now();
        let wait = Duration::from_millis(200);
        match tokio::time::timeout(wait, consumer.next()).await {
            Err(_) => {}
            Ok(Ok(event)) => take(&world, reader, invoked, event, &mut consumer, &mut next),
            // It begins anew by itself where that helps.
            Ok(Err(error)) if error.is_retriable() => world.pause(wait).await,
            Ok(Err(error)) => {
                world.history.breach(format!("a subscriber: {error}"));
                world.pause(wait).await;
            }
        }
    }
}

/// Takes note of an event and of all that came with it.
fn take(
    world: &World,
    reader: u32,
    invoked: Duration,
    event: client::Event,
    consumer: &mut Consumer,
    next: &mut BTreeMap<u32, u64>,
) {
    let mut read: BTreeMap<u32, Vec<(u64, Option<Value>)>> = BTreeMap::new();
    let rest = std::iter::from_fn(|| consumer.next_buffered());
    for event in std::iter::once(event).chain(rest.take(AT_ONCE)) {
        match event {
            client::Event::Record(record) => {
                let value = record.value.as_deref().and_then(Value::parse);
                read.entry(record.partition).or_default().push((record.offset, value));
            }
            client::Event::Gap(gap) => world.history.breach(format!("a subscriber: {gap:?}")),
        }
    }
    let ended = world.history.now();
    for (partition, records) in read {
        let from = next.get(&partition).copied().unwrap_or(0);
        let last = records.last().expect("there is one").0;
        next.insert(partition, last + 1);
        let poll = Poll {
            invoked,
            ended,
            reader,
            session: 0,
            place: None,
            partition,
            from,
            next: last + 1,
            high_watermark: consumer.high_watermark(partition).filter(|end| *end > last),
            log_start: None,
            records,
        };
        world.history.note(Event::Poll(poll));
    }
}

/// Asks for the ends of all partitions, now and then.
pub(super) async fn watch_tails(world: Arc<World>, mut rng: Rng) {
    let client = world.client();
    while !world.is_over() {
        let invoked = world.history.now();
        let found = client.list_offsets(TOPIC, Vec::new(), Start::Latest).await;
        let ended = world.history.now();
        for found in found.unwrap_or_default() {
            let (partition, end) = (found.partition, found.offset);
            world.history.note(Event::Tail(Tail { invoked, ended, partition, end }));
        }
        world.pause(Duration::from_millis(rng.between(20, 200))).await;
    }
}
