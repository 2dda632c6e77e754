//! Producers that come twice: a batch that is sent again is stored once, and who was taken over
//! stores nothing any more (A22).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quipu::batch::{BatchBuilder, Codec, Limits, Record};
use quipu::proto::server::log_service_client::LogServiceClient;
use quipu::proto::server::{InitProducerRequest, ProduceRequest, ProducerStamp};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{CALL_MAX, TOPIC, World};
use crate::history::{Append, Event};
use crate::rng::Rng;
use crate::value::Value;

type Log = LogServiceClient<Channel>;

/// Comes and comes again until it is over.
pub(super) async fn live(world: Arc<World>, mut rng: Rng) {
    let (number, mut counter) = (world.number(), 0);
    while !world.is_over() {
        let partition = rng.below(world.partitions.into()) as u32;
        if come_twice(&world, Value { producer: number, counter }, partition, &mut rng)
            .await
            .is_none()
        {
            world.pause(Duration::from_millis(50)).await;
        }
        counter += 2;
        world.pause(Duration::from_millis(rng.between(5, 100))).await;
    }
}

/// `None` if somebody did not answer, so that nothing can be said.
async fn come_twice(world: &World, first: Value, partition: u32, rng: &mut Rng) -> Option<()> {
    let mut client = Log::new(world.connect_any(rng).await?);
    let stamp = init(&mut client, partition, 0).await?;
    let invoked = world.history.now();
    let offset = send(&mut client, first, partition, stamp).await;
    // Again, through any node, whatever became of it.
    let mut other = world.connect_any(rng).await.map_or(client, Log::new);
    let again = send(&mut other, first, partition, stamp).await;
    note(world, invoked, first, partition, again.or(offset));
    if offset.zip(again).is_some_and(|(offset, again)| offset != again) {
        world.history.breach(format!("{first:?} was at {offset:?}, and is at {again:?}"));
    }
    again?;
    let next = init(&mut other, partition, stamp.producer_id).await?;
    let second = Value { counter: first.counter + 1, ..first };
    let late = ProducerStamp { base_sequence: 1, ..stamp };
    let invoked = world.history.now();
    let stored = send(&mut other, second, partition, late).await;
    note(world, invoked, second, partition, stored);
    if let Some(offset) = stored {
        let what = format!("{second:?} of {stamp:?} is at {offset}, although {next:?} was given");
        world.history.breach(what);
    }
    Some(())
}

async fn init(client: &mut Log, partition: u32, producer_id: u64) -> Option<ProducerStamp> {
    let topic = TOPIC.to_owned();
    let request =
        InitProducerRequest { topic, partition, producer_id, ..InitProducerRequest::default() };
    let answer = timeout(CALL_MAX, client.init_producer(request)).await.ok()?.ok()?.into_inner();
    Some(ProducerStamp {
        producer_id: answer.producer_id,
        producer_epoch: answer.producer_epoch,
        base_sequence: answer.next_sequence,
    })
}

/// Sends one record under a stamp. Returns its offset, if it was acknowledged.
async fn send(client: &mut Log, value: Value, partition: u32, stamp: ProducerStamp) -> Option<u64> {
    let batch = batch_of(value);
    let (topic, producer) = (TOPIC.to_owned(), Some(stamp));
    let request = ProduceRequest { topic, partition, batch, producer, ..ProduceRequest::default() };
    let answer = timeout(CALL_MAX, client.produce(request)).await;
    answer.ok().and_then(Result::ok).map(|answer| answer.into_inner().base_offset)
}

fn note(world: &World, invoked: Duration, value: Value, partition: u32, offset: Option<u64>) {
    let times = (invoked, world.history.now());
    world.history.note(Event::Append(Append::of_one(times, partition, value, offset)));
}

fn batch_of(value: Value) -> Bytes {
    let bytes = value.bytes();
    let mut builder = BatchBuilder::new(Limits::default());
    builder.append(&Record { value: Some(&bytes), ..Record::default() }).expect("it is small");
    builder.build(Codec::None).expect("it is small")
}
