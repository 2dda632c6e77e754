//! Faults that are a story: several things in one order, which chance would take long to find.

use std::time::Duration;

use anyhow::Result;
use quipu::proto::client::Topic;
use tokio::time::{sleep, timeout};

use super::{Fault, Schedule, note};
use crate::bed::{End, Weather};
use crate::clients::TOPIC;
use crate::cluster::Cluster;

/// Longer than the first of two candidates is given to be elected.
const SYNC_DELAY: Duration = Duration::from_secs(8);
/// How long the first one is given. That it leads cannot be seen: nobody takes what it would store.
const FIRST: Duration = Duration::from_secs(4);
/// How long the next one is given, from the start of its process on.
const NEXT_MAX: Duration = Duration::from_secs(10);
/// Elections do not end all at once.
const MORE: Duration = Duration::from_millis(500);
/// How long a leader takes records that nobody else gets. It steps down after a second or so.
const ALONE: Duration = Duration::from_millis(400);
/// How long a disk stays full under a node that is told of what was committed without it. Room that
/// it had set aside is given up twice a second, and taken from it again.
const FULL: Duration = Duration::from_millis(600);
const FULL_TIMES: u32 = 4;

/// Two nodes seek the same voter's votes in the same terms, one after the other, and neither hears
/// of the other. In between the voter loses its power, and with it what it has not synced. Who
/// voted before its vote was on the disk votes again, for another leader of the same term.
pub(super) async fn forget_votes(schedule: &mut Schedule, cluster: &mut Cluster) -> Result<()> {
    let voter = schedule.one(cluster);
    let mut others = cluster.places();
    others.retain(|place| *place != voter);
    if schedule.rng.chance(500) {
        others.reverse();
    }
    let [first, next] = others[..] else { return Ok(()) };
    note(cluster, Fault::ForgottenVotes, &[voter, first, next]);
    part(cluster, first, next);
    cluster.bed.control(voter).set_sync_delay(SYNC_DELAY.as_micros() as u32);
    cluster.kill(next).await?;
    sleep(FIRST).await;
    part(cluster, first, voter);
    cluster.node(voter).may_end = true;
    cluster.bed.cut_power(voter, &mut schedule.rng)?;
    cluster.kill(voter).await?;
    cluster.bed.restore_power(voter)?;
    cluster.bed.control(voter).set_sync_delay(0);
    cluster.spawn(voter)?;
    cluster.spawn(next)?;
    // Whatever keeps it from that will be seen when all is healed.
    let _ = timeout(NEXT_MAX, until_led_without(cluster, first)).await;
    sleep(MORE).await;
    Ok(())
}

/// A leader takes records while nobody hears it, and others are committed in their place. It is
/// told so when its disk has no room to take its own back. What it gives to readers from then on
/// has to be what was committed, and not what is on its disk.
pub(super) async fn overtake(schedule: &mut Schedule, cluster: &mut Cluster) -> Result<()> {
    let place = match cluster.leading_place(&mut schedule.rng).await {
        Some(place) => place,
        None => schedule.one(cluster),
    };
    note(cluster, Fault::Overtaken, &[place]);
    let mut others = cluster.places();
    others.retain(|other| *other != place);
    others.iter().for_each(|other| part(cluster, place, *other));
    sleep(ALONE).await;
    cluster.node(place).may_end = true;
    cluster.bed.fill(place)?;
    // As above.
    let _ = timeout(NEXT_MAX, until_led_without(cluster, place)).await;
    sleep(MORE).await;
    cluster.bed.clear();
    for _ in 0..FULL_TIMES {
        cluster.bed.fill(place)?;
        sleep(FULL).await;
    }
    Ok(())
}

/// Waits until the others see all partitions led by one of them.
async fn until_led_without(cluster: &mut Cluster, place: usize) {
    let id = cluster.node(place).id;
    let others: Vec<_> = cluster.places().into_iter().filter(|other| *other != place).collect();
    let client = cluster.client_of(others[0]);
    let is_led = |topic: &Topic| topic.partitions.iter().all(|p| p.leader != 0 && p.leader != id);
    while !client.describe_topic(TOPIC).await.is_ok_and(|topic| is_led(&topic)) {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Neither of two nodes hears the other any more.
fn part(cluster: &Cluster, one: usize, other: usize) {
    for (from, to) in [(one, other), (other, one)] {
        cluster.bed.set_weather(End::Place(from), End::Place(to), Weather::CUT);
    }
}
