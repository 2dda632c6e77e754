//! A node described by itself: what others cannot know of it.

use std::time::SystemTime;

use futures_util::stream::{self, StreamExt as _};

use super::super::context::Context;
use crate::cluster::command::topic_of;
use crate::partition::Handle;
use crate::proto::server as api;
use crate::raft::Inspection;
use crate::telemetry::Process;
use crate::types::LogId;

/// Partitions that are looked into for followers that lag, and how many at a time.
const LOOKED_INTO_MAX: usize = 1_000;
const LOOKED_INTO_AT_ONCE: usize = 32;
/// Followers that lag are named up to so many.
const LAGGING_MAX: usize = 100;
/// Entries that a follower may lack at any moment.
const LAG_ENTRIES: u64 = 1_000;

/// Describes the node that `context` is of.
pub(super) async fn describe(context: &Context) -> api::DescribeNodeResponse {
    let node = context.node();
    let (dir, counts, process) = (node.dir(), node.partition_host().counts(), Process::now());
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    api::DescribeNodeResponse {
        node: node.id().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time_ms: since_1970.as_millis() as i64,
        disk_free_bytes: dir.free_bytes().unwrap_or(0),
        disk_low_water_bytes: dir.low_water_bytes(),
        has_disk_failed: dir.check().is_err(),
        replicas: number(node.registry().len() as u64),
        stalled_replicas: number(counts.groups_stalled),
        damaged_logs: number(counts.logs_damaged),
        replicas_waiting_for_repair: number(counts.replicas_waiting),
        open_files: process.open_files,
        open_files_max: process.open_files_max,
        mappings: process.mappings,
        mappings_max: process.mappings_max,
        lagging_replicas: lagging(context).await,
    }
}

/// Followers that lack much of what this node leads.
async fn lagging(context: &Context) -> Vec<api::LaggingReplica> {
    let handles = context.node().registry().handles();
    let led: Vec<LogId> =
        handles.iter().filter(|handle| handle.is_leader()).map(Handle::group).collect();
    let looks = stream::iter(led.into_iter().take(LOOKED_INTO_MAX)).map(|log| async move {
        let group = context.node().inspect(log).await;
        group.map(|group| lagging_in(context, log, &group)).unwrap_or_default()
    });
    let found: Vec<_> = looks.buffer_unordered(LOOKED_INTO_AT_ONCE).collect().await;
    found.into_iter().flatten().take(LAGGING_MAX).collect()
}

fn lagging_in(context: &Context, log: LogId, group: &Inspection) -> Vec<api::LaggingReplica> {
    let state = context.node().state();
    let Some((topic, partition)) = topic_of(log) else { return Vec::new() };
    let Some(topic) = state.topic(topic) else { return Vec::new() };
    let behind = group.followers.iter().map(|follower| {
        let entries_behind = group.committed.saturating_sub(follower.matched);
        let (topic, node) = (topic.name.clone(), follower.replica.node().0);
        api::LaggingReplica { topic, partition, node, entries_behind }
    });
    behind.filter(|replica| replica.entries_behind > LAG_ENTRIES).collect()
}
