//! What is read on a scrape: the samples that other parts give, and the metrics made of them.

use prometheus_client::registry::Unit;

use super::pulled::{Pulled, Read};
use super::timing::Timing;
use crate::telemetry::process::Process;

/// What a node's host of replicas says of itself. Counters count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replication {
    /// Replicas on the node.
    pub replicas: u64,
    /// Of these, leaders.
    pub leaders: u64,
    /// Elections that replicas of the node began.
    pub elections: u64,
    /// Times that a replica of the node learned of another leader.
    pub leader_changes: u64,
    /// Messages that were dropped, by reason.
    pub messages_dropped: Vec<(&'static str, u64)>,
    /// Bundles of messages for which a shard had no room.
    pub bundles_dropped: u64,
    /// Frames that were damaged, foreign or malformed.
    pub frames_refused: u64,
    /// Frames that the network did not take.
    pub frames_lost: u64,
    /// Times that entries waited for space on the disk.
    pub appends_stalled: u64,
    /// Reads from disk for followers far behind.
    pub cold_reads: u64,
}

/// What a node's log engine says of itself.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Bytes that can still be allocated on the disk of the data directory.
    pub disk_free_bytes: u64,
    /// Appends are refused when less than this would stay free.
    pub disk_low_water_bytes: u64,
    /// A sync or write failed; the node must be restarted.
    pub has_failed: bool,
    /// How long syncs took.
    pub syncs: Timing,
}

/// What a node knows of its cluster, from the metadata as far as it has come here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The index up to which the node has applied the metadata.
    pub metadata_index: u64,
    /// Nodes that are members.
    pub nodes: u64,
    /// Of these, the ones that this node hears.
    pub nodes_alive: u64,
    /// Topics.
    pub topics: u64,
    /// Partitions of all topics.
    pub partitions: u64,
    /// Of these, the ones whose leader is not known.
    pub partitions_leaderless: u64,
    /// Of these, the ones with a replica that is missing, dead or behind.
    pub partitions_under_replicated: u64,
    /// The node takes calls.
    pub is_ready: bool,
    /// The node is handing over what it leads.
    pub is_draining: bool,
}

/// What a node knows of consumer groups. Counters are of what it did itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    /// Groups of the cluster.
    pub groups: u64,
    /// Their members.
    pub members: u64,
    /// Members that have a stream on this node.
    pub sessions: u64,
    /// Partitions that are on their way from one member to another.
    pub moving: u64,
    /// Offsets that were committed.
    pub offsets_committed: u64,
    /// Offsets whose commit was refused or whose fate is unknown.
    pub offsets_refused: u64,
    /// Records that were gone before a group had read them.
    pub records_missed: u64,
    /// Members that were out because they were silent or away for too long.
    pub members_expired: u64,
}

const fn counter<S>(name: &'static str, read: fn(&S) -> u64, help: &'static str) -> Pulled<S> {
    Pulled { name, unit: None, help, read: Read::Counter(read) }
}

const fn gauge<S>(name: &'static str, read: fn(&S) -> u64, help: &'static str) -> Pulled<S> {
    Pulled { name, unit: None, help, read: Read::Gauge(read) }
}

const fn bytes<S>(name: &'static str, read: fn(&S) -> u64, help: &'static str) -> Pulled<S> {
    Pulled { name, unit: Some(Unit::Bytes), help, read: Read::Gauge(read) }
}

pub(super) static REPLICATION: &[Pulled<Replication>] = &[
    gauge("replication_replicas", |s| s.replicas, "Replicas on the node"),
    gauge("replication_leaders", |s| s.leaders, "Replicas on the node that lead"),
    counter("replication_elections", |s| s.elections, "Elections that replicas here began"),
    counter(
        "replication_leader_changes",
        |s| s.leader_changes,
        "Times that a replica here learned of another leader",
    ),
    Pulled {
        name: "replication_messages_dropped",
        unit: None,
        help: "Messages of other nodes that were dropped, by reason",
        read: Read::Counters("reason", |s| s.messages_dropped.clone()),
    },
    counter(
        "replication_bundles_dropped",
        |s| s.bundles_dropped,
        "Bundles of messages for which a shard had no room",
    ),
    counter(
        "replication_frames_refused",
        |s| s.frames_refused,
        "Frames of other nodes that were damaged, foreign or malformed",
    ),
    counter(
        "replication_frames_lost",
        |s| s.frames_lost,
        "Frames to other nodes that the network did not take",
    ),
    counter(
        "replication_appends_stalled",
        |s| s.appends_stalled,
        "Times that entries waited for space on the disk",
    ),
    counter("replication_cold_reads", |s| s.cold_reads, "Reads from disk for followers far behind"),
];

pub(super) static STORAGE: &[Pulled<Storage>] = &[
    bytes("storage_disk_free", |s| s.disk_free_bytes, "Free space on the disk of the logs"),
    bytes(
        "storage_disk_low_water",
        |s| s.disk_low_water_bytes,
        "Appends are refused when less than this would stay free",
    ),
    gauge(
        "storage_failed",
        |s| s.has_failed.into(),
        "1 after a write or sync failed: the node must be restarted",
    ),
    Pulled {
        name: "storage_sync_duration",
        unit: Some(Unit::Seconds),
        help: "How long one sync of files took",
        read: Read::Timing(|s| s.syncs.clone()),
    },
];

pub(super) static CLUSTER: &[Pulled<Cluster>] = &[
    gauge(
        "cluster_metadata_index",
        |s| s.metadata_index,
        "Index up to which the node has applied the metadata",
    ),
    gauge("cluster_nodes", |s| s.nodes, "Nodes of the cluster"),
    gauge("cluster_nodes_alive", |s| s.nodes_alive, "Nodes of the cluster that this node hears"),
    gauge("cluster_topics", |s| s.topics, "Topics of the cluster"),
    gauge("cluster_partitions", |s| s.partitions, "Partitions of the cluster"),
    gauge(
        "cluster_partitions_leaderless",
        |s| s.partitions_leaderless,
        "Partitions whose leader this node does not know",
    ),
    gauge(
        "cluster_partitions_under_replicated",
        |s| s.partitions_under_replicated,
        "Partitions with a replica that is missing, dead or behind, as this node sees it",
    ),
    gauge("node_ready", |s| s.is_ready.into(), "1 while the node takes calls"),
    gauge("node_draining", |s| s.is_draining.into(), "1 while the node hands over what it leads"),
];

pub(super) static GROUPS: &[Pulled<Groups>] = &[
    gauge("groups", |s| s.groups, "Consumer groups of the cluster"),
    gauge("group_members", |s| s.members, "Members of all groups"),
    gauge("group_sessions", |s| s.sessions, "Members of groups that this node serves"),
    gauge(
        "group_partitions_moving",
        |s| s.moving,
        "Partitions that are on their way from one member to another",
    ),
    counter(
        "group_offsets_committed",
        |s| s.offsets_committed,
        "Offsets of groups that were committed through this node",
    ),
    counter(
        "group_offsets_refused",
        |s| s.offsets_refused,
        "Offsets of groups whose commit was refused, or whose fate is unknown",
    ),
    counter(
        "group_records_missed",
        |s| s.records_missed,
        "Records that were gone before the group had read them",
    ),
    counter(
        "group_members_expired",
        |s| s.members_expired,
        "Members that were out because they were silent or away for too long",
    ),
];

pub(super) static PROCESS: &[Pulled<Process>] = &[
    bytes("process_resident_memory", |s| s.resident_bytes, "Memory that the process has in use"),
    gauge("process_open_files", |s| s.open_files, "Files and connections that are open"),
    gauge("process_open_files_max", |s| s.open_files_max, "How many of them there can be"),
];
