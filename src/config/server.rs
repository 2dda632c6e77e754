//! The typed form of the configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::load;
use crate::batch;
use crate::types::NodeId;

/// What a server is told about itself. `table.rs` says what each key means.
///
/// * Everything is within the bounds of its key, and the keys fit each other.
/// * Where a key has a default that is worked out, the field has the outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// This node.
    pub node_id: NodeId,
    /// Where the logs are; `None` with `dev`, for a directory that goes when the server ends.
    pub data_dir: Option<PathBuf>,
    /// One node for trying things out.
    pub dev: bool,
    /// Where clients call.
    pub listen: SocketAddr,
    /// Where other nodes call.
    pub peer_listen: SocketAddr,
    /// Where metrics and health are.
    pub http_listen: SocketAddr,
    /// What clients are told to call: `host:port`. Port 0 stands for the one that was bound.
    pub advertise: String,
    /// What other nodes are told to call: `host:port`. Port 0 stands for the one that was bound.
    pub peer_advertise: String,
    /// With `join`, nodes of the cluster; else all the nodes that found it, this one too.
    pub seeds: Vec<(NodeId, String)>,
    /// Join a cluster instead of founding one.
    pub join: bool,
    /// Nodes of one rack may fail together; empty for none.
    pub rack: String,
    /// Threads that run replicas.
    pub shards: usize,
    /// Bytes of appends under way.
    pub append_room_bytes: u32,
    /// How long a stop may take to hand over what this node leads.
    pub drain_timeout: Duration,
    /// Logging.
    pub log: Log,
    /// The log engine.
    pub storage: Storage,
    /// Replication.
    pub raft: Raft,
    /// What one client, and all together, may ask for.
    pub limits: Limits,
}

impl ServerConfig {
    /// Addresses and a node for the setters to overwrite.
    pub(super) fn blank() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            node_id: NodeId(0),
            data_dir: None,
            dev: false,
            listen: nowhere,
            peer_listen: nowhere,
            http_listen: nowhere,
            advertise: String::new(),
            peer_advertise: String::new(),
            seeds: Vec::new(),
            join: false,
            rack: String::new(),
            shards: 0,
            append_room_bytes: 0,
            drain_timeout: Duration::ZERO,
            log: Log::default(),
            storage: Storage::default(),
            raft: Raft::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for ServerConfig {
    /// The configuration of `quipu serve --dev`.
    fn default() -> Self {
        load::dev()
    }
}

/// How the server logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// A level, and levels for single targets: `info,quipu::raft=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the server's log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// Sizes and bounds of the log engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Storage {
    pub segment_bytes: u64,
    pub index_interval_bytes: u64,
    pub allocation_bytes_first: u64,
    pub allocation_bytes_max: u64,
    pub spares_max: usize,
    pub open_segments_max: usize,
    pub low_water_bytes: u64,
    pub reserve_bytes: u64,
    pub sync_threads: usize,
    pub sync_filesystem_from: usize,
    pub journal_rewrite_bytes: u64,
}

/// Times and bounds of replication.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Raft {
    pub tick_ms: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub append_bytes_max: u64,
    pub appends_in_flight_max: usize,
    pub tail_bytes_max: usize,
    pub slow_disk_ticks: u64,
    pub cold_reads_max: usize,
    pub reader_threads: usize,
}

/// What clients may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Limits {
    pub connections_max: usize,
    pub connections_per_ip_max: usize,
    pub http_connections_max: usize,
    pub streams_per_connection_max: u32,
    pub requests_in_flight_max: usize,
    pub message_bytes_max: usize,
    pub header_list_bytes_max: u32,
    pub request_timeout: Duration,
    pub preface_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// Zero for connections of any age.
    pub connection_age_max: Duration,
    /// What a batch may hold.
    pub batch: batch::Limits,
}
