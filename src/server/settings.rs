//! Settings: what a server is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::bootstrap::Seed;
use crate::config::{self, ServerConfig};
use crate::types::NodeId;
use crate::{raft, rpc, storage};

/// How often retention looks at the partitions.
const RETENTION_EVERY: Duration = Duration::from_secs(10);
/// Longer than any connection lives.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node.
    pub node: NodeId,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// Where it listens for clients. Port 0 takes any.
    pub listen: SocketAddr,
    /// Where it listens for other nodes.
    pub peer_listen: SocketAddr,
    /// Where it listens for metrics and health, if at all.
    pub http_listen: Option<SocketAddr>,
    /// What clients are told to connect to. Port 0 stands for the one that it listens on.
    pub advertise: String,
    /// What other nodes are told to connect to. Port 0 stands for the one that it listens on.
    pub peer_advertise: String,
    /// The nodes to found or find a cluster with, this one maybe among them. Nothing for a cluster
    /// of one.
    pub seeds: Vec<Seed>,
    /// Join a cluster, and never found one.
    pub is_joining: bool,
    /// The rack; may be nothing.
    pub rack: String,
    /// Threads that run partitions.
    pub shards: usize,
    /// Threads that read from disk for followers far behind.
    pub readers: usize,
    /// Bytes of appends that may wait.
    pub append_room_bytes: u32,
    /// The storage engine.
    pub storage: storage::Config,
    /// Raft.
    pub raft: raft::Config,
    /// How often retention looks at the partitions.
    pub retention_every: Duration,
    /// How long a node that stops tries to hand over what it leads.
    pub drain_timeout: Duration,
    /// Connections to the port for metrics and health.
    pub http_connections_max: usize,
    /// What clients may ask for.
    pub limits: rpc::Limits,
}

impl Settings {
    /// What `config` says, for a node whose data is in `data_dir`.
    pub fn new(config: &ServerConfig, data_dir: PathBuf) -> Self {
        Self {
            node: config.node_id,
            data_dir,
            listen: config.listen,
            peer_listen: config.peer_listen,
            http_listen: Some(config.http_listen),
            advertise: config.advertise.clone(),
            peer_advertise: config.peer_advertise.clone(),
            seeds: config.seeds.clone(),
            is_joining: config.join,
            rack: config.rack.clone(),
            shards: config.shards,
            readers: config.raft.reader_threads,
            append_room_bytes: config.append_room_bytes,
            storage: storage_config(&config.storage),
            raft: raft_config(&config.raft),
            retention_every: RETENTION_EVERY,
            drain_timeout: config.drain_timeout,
            http_connections_max: config.limits.http_connections_max,
            limits: limits(&config.limits),
        }
    }
}

fn storage_config(told: &config::Storage) -> storage::Config {
    storage::Config {
        segment_bytes: told.segment_bytes,
        index_interval_bytes: told.index_interval_bytes,
        allocation_bytes_first: told.allocation_bytes_first,
        allocation_bytes_max: told.allocation_bytes_max,
        spares_max: told.spares_max,
        open_segments_max: told.open_segments_max,
        low_water_bytes: told.low_water_bytes,
        reserve_bytes: told.reserve_bytes,
        sync_threads: told.sync_threads,
        sync_filesystem_from: told.sync_filesystem_from,
        journal_rewrite_bytes: told.journal_rewrite_bytes,
    }
}

fn raft_config(told: &config::Raft) -> raft::Config {
    raft::Config {
        tick_ms: told.tick_ms,
        election_ticks: told.election_ticks,
        heartbeat_ticks: told.heartbeat_ticks,
        append_bytes_max: told.append_bytes_max,
        appends_in_flight_max: told.appends_in_flight_max,
        tail_bytes_max: told.tail_bytes_max,
        slow_disk_ticks: told.slow_disk_ticks,
        cold_reads_max: told.cold_reads_max,
        ..raft::Config::default()
    }
}

fn limits(told: &config::Limits) -> rpc::Limits {
    let age_max = Some(told.connection_age_max).filter(|age| !age.is_zero());
    rpc::Limits {
        connections_max: told.connections_max,
        connections_per_address_max: told.connections_per_ip_max,
        preface_timeout: told.preface_timeout,
        connection_age_max: age_max.unwrap_or(NEVER),
        streams_max: told.streams_per_connection_max,
        calls_max: told.requests_in_flight_max,
        ..rpc::Limits::default()
    }
}
