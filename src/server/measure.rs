//! Measuring: what the node's metrics are read from.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::ports::IsReady;
use crate::cluster::Node;
use crate::cluster::command::Partition;
use crate::raft::Role;
use crate::rpc::{Context, Counters, Method, code_name};
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
        let dropped = counts.dropped.iter();
        telemetry::Replication {
            replicas: handles.len() as u64,
            leaders: leaders as u64,
            bundles_dropped: counts.bundles_dropped,
            frames_refused: counts.frames_refused,
            frames_lost: counts.frames_lost,
            appends_stalled: counts.appends_stalled,
            cold_reads: counts.cold_reads,
            elections: counts.elections,
            leader_changes: counts.leader_changes,
            messages_dropped: dropped.map(|(reason, count)| (reason.name(), *count)).collect(),
        }
    }

    fn storage(&self) -> telemetry::Storage {
        let Some(node) = self.node.upgrade() else { return telemetry::Storage::default() };
        telemetry::Storage {
            disk_free_bytes: node.dir().free_bytes().unwrap_or(0),
            disk_low_water_bytes: self.low_water_bytes,
            has_failed: node.dir().check().is_err(),
            syncs: node.dir().syncs(),
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

/// What was carried over so far.
#[derive(Debug, Default)]
struct Carried {
    calls: HashMap<(Method, i32), u64>,
    plain: [u64; 9],
    forwarded: HashMap<Method, u64>,
    topics: HashMap<Uuid, [u64; 4]>,
}

/// Carries what the services count over to the metrics, for ever: counting costs them no lock.
pub(super) async fn push(metrics: Arc<Metrics>, context: Context) {
    let mut ticks = interval(PUSH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut carried = Carried::default();
    loop {
        ticks.tick().await;
        carried.carry(&metrics, context.counters());
        let (used, limit) = context.node().registry().room().used_bytes();
        metrics.append_room_used_bytes.set(used as i64);
        metrics.append_room_limit_bytes.set(limit as i64);
        let state = context.node().state();
        let is_there = |id: Uuid| !state.is_deleted(id.into());
        context.counters().retain_topics(is_there);
        let (kept, gone) = carried.topics.into_iter().partition(|(id, _)| is_there(*id));
        carried.topics = kept;
        HashMap::<Uuid, [u64; 4]>::into_keys(gone).for_each(|id| metrics.forget_topic(id));
    }
}

impl Carried {
    fn carry(&mut self, metrics: &Metrics, counters: &Counters) {
        let rpc = &metrics.rpc;
        for (method, code, count) in counters.calls() {
            let last = self.calls.entry((method, code as i32)).or_default();
            let shown = rpc.requests.of([method.name(), code_name(code)]);
            shown.inc_by(count - std::mem::replace(last, count));
        }
        let refused = |limit| rpc.connections_refused.of([limit]);
        let plain = [
            (&counters.bytes_in, rpc.received_bytes.clone()),
            (&counters.bytes_out, rpc.sent_bytes.clone()),
            (&counters.connections_taken, rpc.connections_opened.clone()),
            (&counters.connections_refused, refused("all")),
            (&counters.connections_refused_of_address, refused("per_ip")),
            (&counters.batches_in, metrics.produced_batches.clone()),
            (&counters.duplicates, metrics.produced_duplicates.clone()),
            (&counters.batches_out, metrics.fetched_batches.clone()),
            (&counters.credit_stalls, metrics.subscribe_credit_stalls.clone()),
        ];
        for ((counter, shown), last) in plain.into_iter().zip(&mut self.plain) {
            let now = counter.load(Ordering::Relaxed);
            shown.inc_by(now - std::mem::replace(last, now));
        }
        let open = counters.connections_taken.load(Ordering::Relaxed);
        let open = open.saturating_sub(counters.connections_ended.load(Ordering::Relaxed));
        rpc.connections.set(open as i64);
        rpc.requests_in_flight.set(counters.in_flight.load(Ordering::Relaxed) as i64);
        for (method, forwarded, streams) in counters.by_method() {
            let last = self.forwarded.entry(method).or_default();
            let shown = rpc.forwarded.of([method.name()]);
            shown.inc_by(forwarded - std::mem::replace(last, forwarded));
            rpc.streams.of([method.name()]).set(streams as i64);
        }
        self.carry_topics(metrics, counters);
    }

    fn carry_topics(&mut self, metrics: &Metrics, counters: &Counters) {
        for (id, topic) in counters.topics().iter() {
            let now = [&topic.records_in, &topic.bytes_in, &topic.records_out, &topic.bytes_out]
                .map(|counter| counter.load(Ordering::Relaxed));
            let last = std::mem::replace(self.topics.entry(*id).or_default(), now);
            let shown = metrics.topic(*id);
            let shown = [
                shown.produced_records,
                shown.produced_bytes,
                shown.fetched_records,
                shown.fetched_bytes,
            ];
            for (shown, (now, last)) in shown.into_iter().zip(now.iter().zip(&last)) {
                shown.inc_by(now.saturating_sub(*last));
            }
        }
    }
}
