//! Retention: what the partitions on this node may give up.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cluster::State;
use crate::cluster::command::{Topic, TopicConfig, topic_of};
use crate::group::subscription;
use crate::partition::Handle;
use crate::rpc::Context;
use crate::storage::Policy;

/// How long after a log's start moved its files go: the shards sync what they recorded meanwhile.
const RECLAIM_AFTER: Duration = Duration::from_secs(1);

/// Applies retention to the partitions here, for ever.
///
/// The files of what a log gives up go with the next look, because its new start has to be on disk
/// first. So there is a second look soon after each, at which nothing more is given up for its age.
/// A log that is written to keeps to its size by itself, in between.
pub(super) async fn retain(context: Context, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        give_up(&context).await;
        sleep(RECLAIM_AFTER.min(every / 2)).await;
        for handle in context.node().registry().handles() {
            let _ = context.node().partition_host().reclaim(handle.group());
            tokio::task::yield_now().await;
        }
    }
}

async fn give_up(context: &Context) {
    // A group that this node has not heard of yet may need what all others have read.
    let knows_all_groups = context.try_refresh().await;
    let node = context.node();
    let state = node.state();
    for handle in node.registry().handles() {
        let found = topic_of(handle.group());
        let topic = found.and_then(|(topic, n)| Some((state.topic(topic)?, n)));
        let Some((topic, partition)) = topic else { continue };
        let policy = match topic.config.is_kept_until_consumed {
            true if !knows_all_groups => Policy { age_ms: None, ..of_time(&topic.config) },
            true => until_consumed(&state, topic, partition, &handle).await,
            false => of_time(&topic.config),
        };
        // An overloaded shard is asked again the next time.
        let _ = node.partition_host().retain(handle.group(), policy);
        tokio::task::yield_now().await;
    }
}

fn of_time(config: &TopicConfig) -> Policy {
    Policy { age_ms: config.retention_ms, bytes: config.retention_bytes, keep_from_offset: None }
}

/// What all groups have read goes at once, or when it is old enough if the topic says so.
async fn until_consumed(state: &State, topic: &Topic, partition: u32, handle: &Handle) -> Policy {
    let by_time = of_time(&topic.config);
    let Ok(positions) = handle.group_positions().await else {
        return Policy { age_ms: None, ..by_time };
    };
    let readers = state.groups().iter().filter(|group| subscription::reads(group, &topic.name));
    let position = |group: &crate::cluster::group::Group| {
        let id = group.id.uuid();
        let known = positions.iter().find(|(known, _)| known.as_bytes() == id.as_bytes());
        let known = known.and_then(|(_, offset)| *offset);
        known.unwrap_or_else(|| group.start_offset(topic.id, partition))
    };
    // Without readers nothing was read.
    let keep_from = readers.map(|group| position(group)).min().unwrap_or(0);
    let age_ms = Some(by_time.age_ms.unwrap_or(0));
    Policy { age_ms, keep_from_offset: Some(keep_from), ..by_time }
}
