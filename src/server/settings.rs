//! Settings: what a server is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::bootstrap::Seed;
use crate::types::NodeId;
use crate::{raft, storage};

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
    /// What clients are told to connect to; nothing for where it listens.
    pub advertise: Option<String>,
    /// What other nodes are told to connect to; nothing for where it listens.
    pub peer_advertise: Option<String>,
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
}
