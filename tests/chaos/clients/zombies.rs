//! Producers that come twice: a batch that is sent again is stored once, and who was taken over
//! stores nothing any more (A22).

use std::sync::Arc;
use std::time::Duration;

use quipu::proto::server::ProducerStamp;

use super::World;
use super::stamped::{Log, init, note, send};
use crate::rng::Rng;
use crate::value::Value;

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
    let offset = send(&mut client, first, partition, stamp).await.ok();
    // Again, through any node, whatever became of it.
    let mut other = world.connect_any(rng).await.map_or(client, Log::new);
    let again = send(&mut other, first, partition, stamp).await.ok();
    note(world, invoked, first, partition, again.or(offset));
    if offset.zip(again).is_some_and(|(offset, again)| offset != again) {
        world.history.breach(format!("{first:?} was at {offset:?}, and is at {again:?}"));
    }
    again?;
    let next = init(&mut other, partition, stamp.producer_id).await?;
    let second = Value { counter: first.counter + 1, ..first };
    let late = ProducerStamp { base_sequence: 1, ..stamp };
    let invoked = world.history.now();
    let stored = send(&mut other, second, partition, late).await.ok();
    note(world, invoked, second, partition, stored);
    if let Some(offset) = stored {
        let what = format!("{second:?} of {stamp:?} is at {offset}, although {next:?} was given");
        world.history.breach(what);
    }
    Some(())
}
