//! A producer that stays: it keeps its numbers for as long as the run lasts, sends every record
//! until it is stored, and now and then the one before once more. The answer must be the same,
//! whatever has happened to the nodes in between.

use std::sync::Arc;
use std::time::Duration;

use quipu::proto::client::ErrorReason;
use quipu::proto::server::ProducerStamp;

use super::World;
use super::stamped::{Log, init, note, send};
use crate::rng::Rng;
use crate::value::Value;

/// A record that is stored: the stamp that it was sent with, and where it is.
#[derive(Clone, Copy)]
struct Stored {
    value: Value,
    stamp: ProducerStamp,
    offset: u64,
}

/// Produces until it is over.
pub(super) async fn live(world: Arc<World>, mut rng: Rng) {
    let number = world.number();
    let mut counter = 0;
    let mut last: Vec<Option<Stored>> = vec![None; world.partitions as usize];
    while !world.is_over() {
        let partition = rng.below(world.partitions.into()) as u32;
        let known = &mut last[partition as usize];
        match *known {
            Some(stored) if rng.below(2) == 0 => {
                ask_again(&world, partition, stored, &mut rng).await;
            }
            _ => {
                let value = Value { producer: number, counter };
                counter += 1;
                *known = produce(&world, partition, value, *known, &mut rng).await.or(*known);
            }
        }
        world.pause(Duration::from_millis(rng.between(5, 30))).await;
    }
}

/// Sends a record that comes after `before` until it is stored, or it is all over.
async fn produce(
    world: &World,
    partition: u32,
    value: Value,
    before: Option<Stored>,
    rng: &mut Rng,
) -> Option<Stored> {
    let next = |stored: Stored| {
        let base_sequence = stored.stamp.base_sequence + 1;
        ProducerStamp { base_sequence, ..stored.stamp }
    };
    let mut stamp = before.map(next);
    let invoked = world.history.now();
    while !world.is_over() {
        let Some(channel) = world.connect_any(rng).await else {
            world.pause(Duration::from_millis(50)).await;
            continue;
        };
        let mut client = Log::new(channel);
        if stamp.is_none() {
            stamp = init(&mut client, partition, 0).await;
        }
        let Some(stamp) = stamp else {
            world.pause(Duration::from_millis(20)).await;
            continue;
        };
        match send(&mut client, value, partition, stamp).await {
            Ok(offset) => {
                note(world, invoked, value, partition, Some(offset));
                return Some(Stored { value, stamp, offset });
            }
            Err(reason) => check_known(world, partition, stamp, reason),
        }
        world.pause(Duration::from_millis(20)).await;
    }
    note(world, invoked, value, partition, None);
    None
}

/// Sends what is stored once more.
async fn ask_again(world: &World, partition: u32, stored: Stored, rng: &mut Rng) {
    let Some(channel) = world.connect_any(rng).await else { return };
    let Stored { value, stamp, offset } = stored;
    match send(&mut Log::new(channel), value, partition, stamp).await {
        Ok(again) if again != offset => {
            let what = format!("{value:?} is at {offset} of {partition}, and again at {again}");
            world.history.breach(what);
        }
        Ok(_) => {}
        Err(reason) => check_known(world, partition, stamp, reason),
    }
}

/// A server may have no answer, but it must not say that it does not know what it has acknowledged.
fn check_known(world: &World, partition: u32, stamp: ProducerStamp, reason: Option<ErrorReason>) {
    let has_forgotten = matches!(
        reason,
        Some(
            ErrorReason::UnknownProducer
                | ErrorReason::OutOfOrderSequence
                | ErrorReason::SequenceReused
                | ErrorReason::ProducerFenced
        )
    );
    if has_forgotten {
        let what = format!("partition {partition} has forgotten {stamp:?}: {reason:?}");
        world.history.breach(what);
    }
}
