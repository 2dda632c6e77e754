//! Measuring: what the node's metrics are read from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::ports::IsReady;
use crate::cluster::Node;
use crate::cluster::command::Partition;
use crate::raft::Role;
use crate::rpc::{Context, Counters};
use crate::telemetry::{self, Metrics};
use crate::types::ReplicaId;

const PUSH_EVERY: Duration = Duration::from_secs(1);
/// A node that was not heard for so long counts as dead.
const ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// What is read of a server when its metrics are.
#[derive(Debug, Clone)]
struct Read {
    node: Weak<Node>,
    context: Context,
    is_ready: IsReady,
    low_water_bytes: u64,
}

/// Has `metrics` read what there is to read of a node.
pub(super) fn connect(
    metrics: &Metrics,
    context: &Context,
    is_ready: IsReady,
    low_water_bytes: u64,
) {
    let node = Arc::downgrade(context.node());
    let read = Read { node, context: context.clone(), is_ready, low_water_bytes };
    let (one, two, three, four) = (read.clone(), read.clone(), read.clone(), read);
    metrics.read_replication(move || one.replication());
    metrics.read_storage(move || two.storage());
    metrics.read_cluster(move || three.cluster());
    metrics.read_groups(move || four.groups());
}

impl Read {
    fn replication(&self) -> telemetry::Replication {
        let Some(node) = self.node.upgrade() else { return telemetry::Replication::default() };
        let handles = node.registry().handles();
        let leads = |status: &crate::raft::Published| status.role == Role::Leader;
        let leaders = handles.iter().filter(|handle| leads(&handle.status())).count();
        let counts = node.partition_host().counts();
        telemetry::Replication {
            replicas: handles.len() as u64,
            leaders: leaders as u64,
            bundles_dropped: counts.bundles_dropped,
            frames_refused: counts.frames_refused,
            frames_lost: counts.frames_lost,
            appends_stalled: counts.appends_stalled,
            cold_reads: counts.cold_reads,
            ..telemetry::Replication::default()
        }
    }

    fn storage(&self) -> telemetry::Storage {
        let Some(node) = self.node.upgrade() else { return telemetry::Storage::default() };
        telemetry::Storage {
            disk_free_bytes: node.dir().free_bytes().unwrap_or(0),
            disk_low_water_bytes: self.low_water_bytes,
            has_failed: node.dir().check().is_err(),
        }
    }

    fn groups(&self) -> telemetry::Groups {
        let Some(node) = self.node.upgrade() else { return telemetry::Groups::default() };
        let state = node.state();
        let groups = || state.groups().iter();
        let counters = self.context.counters();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let assignments = groups().flat_map(|group| &group.assignments);
        telemetry::Groups {
            groups: groups().len() as u64,
            members: groups().map(|group| group.members.len() as u64).sum(),
            sessions: self.context.sessions().len() as u64,
            moving: assignments.filter(|assignment| assignment.is_revoked()).count() as u64,
            offsets_committed: count(&counters.offsets_committed),
            offsets_refused: count(&counters.offsets_refused),
            records_missed: count(&counters.records_missed),
            members_expired: count(&counters.members_expired),
        }
    }

    fn cluster(&self) -> telemetry::Cluster {
        let Some(node) = self.node.upgrade() else { return telemetry::Cluster::default() };
        let state = node.state();
        let is_alive = |id| id == node.id() || node.heard().is_alive(id, ALIVE_WITHIN);
        let partitions = || {
            state.topics().flat_map(|topic| {
                let numbered = topic.partitions.iter().enumerate();
                numbered.map(|(n, partition)| (topic.log_id(n as u32), partition))
            })
        };
        let is_short = |partition: &Partition| {
            let mut replicas = partition.replicas.iter().copied().map(ReplicaId);
            !partition.target.is_empty() || replicas.any(|replica| !is_alive(replica.node()))
        };
        telemetry::Cluster {
            metadata_index: state.applied_index(),
            nodes: state.nodes().len() as u64,
            nodes_alive: state.nodes().filter(|node| is_alive(node.node_id())).count() as u64,
            topics: state.topics().len() as u64,
            partitions: state.partitions() as u64,
            partitions_leaderless: partitions()
                .filter(|(log, _)| node.leader_of(*log).is_none())
                .count() as u64,
            partitions_under_replicated: partitions()
                .filter(|(_, partition)| is_short(partition))
                .count() as u64,
            is_ready: self.is_ready.borrow().is_ok(),
            is_draining: self.context.is_draining(),
        }
    }
}

/// Carries what the services count over to the metrics, for ever.
pub(super) async fn push(metrics: Arc<Metrics>, counters: Arc<Counters>) {
    let mut ticks = interval(PUSH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = [0; 3];
    loop {
        ticks.tick().await;
        let now = [&counters.bytes_in, &counters.bytes_out, &counters.connections_taken]
            .map(|counter: &AtomicU64| counter.load(Ordering::Relaxed));
        let rpc = &metrics.rpc;
        let shown = [&rpc.received_bytes, &rpc.sent_bytes, &rpc.connections_opened];
        for (shown, (now, last)) in shown.into_iter().zip(now.iter().zip(&last)) {
            shown.inc_by(now - last);
        }
        last = now;
    }
}
