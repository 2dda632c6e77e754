//! The table of all keys.

use std::time::Duration;

use super::key::Fallback::{Derived, Required, Text};
use super::key::{Fallback, Key, Kind, Set};
use super::server::LogFormat;
use super::unit::Unit;
use crate::types::NodeId;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;

/// Every key of the server, section by section.
pub static KEYS: &[Key] = &[
    // The node and its place in a cluster.
    key(
        "node_id",
        Required("1"),
        things(1, NodeId::MAX, |c, v| c.node_id = NodeId(v)),
        "Identity of this node in its cluster. Never give it to another node",
    ),
    key(
        "data_dir",
        Required("/var/lib/quipu"),
        Kind::Directory(|c, v| c.data_dir = Some(v)),
        "Where this node keeps its logs. With dev: a directory that goes when the server ends",
    ),
    key(
        "dev",
        Text("false"),
        Kind::Switch(|c, v| c.dev = v),
        "Run one node for trying things out: node 1, founding a cluster of its own",
    ),
    key(
        "seeds",
        Required("1@127.0.0.1:7501"),
        Kind::Seeds(|c, v| c.seeds = v),
        "The nodes that found the cluster, this one too: the same list on all of them. With join: \
         some nodes of the cluster",
    ),
    key(
        "join",
        Text("false"),
        Kind::Switch(|c, v| c.join = v),
        "Join the cluster of the seeds instead of founding one",
    ),
    key(
        "rack",
        Text(""),
        Kind::Label(|c, v| c.rack = v),
        "What this node may fail together with: a rack or a zone. Copies are spread over them",
    ),
    // Addresses.
    key(
        "listen",
        Text("127.0.0.1:7401"),
        Kind::Address(|c, v| c.listen = v),
        "Where clients call (gRPC)",
    ),
    key(
        "peer_listen",
        Text("127.0.0.1:7501"),
        Kind::Address(|c, v| c.peer_listen = v),
        "Where the other nodes call (gRPC). Not for clients: anyone who can call here is trusted",
    ),
    key(
        "http_listen",
        Text("127.0.0.1:7601"),
        Kind::Address(|c, v| c.http_listen = v),
        "Where /metrics, /healthz and /readyz are (HTTP)",
    ),
    key(
        "advertise",
        Derived("listen", "log-1.example.org:7401"),
        Kind::Endpoint(|c, v| c.advertise = v),
        "Where clients are told to call this node",
    ),
    key(
        "peer_advertise",
        Derived("peer_listen", "log-1.example.org:7501"),
        Kind::Endpoint(|c, v| c.peer_advertise = v),
        "Where other nodes are told to call this node",
    ),
    // Resources.
    key(
        "shards",
        Derived("one for each core", "4"),
        things(1, 256, |c, v| c.shards = v as usize),
        "Threads that run the replicas",
    ),
    key(
        "append_room_bytes",
        Text("256MiB"),
        bytes(8 * MIB, 3 * GIB, |c, v| c.append_room_bytes = v as u32),
        "Memory for appends that are under way; more of them are told to come back",
    ),
    key(
        "drain_timeout_ms",
        Text("30s"),
        time(0, HOUR, |c, v| c.drain_timeout = v),
        "How long a stop may take to hand over what this node leads. A second signal stops at once",
    ),
    key(
        "log.level",
        Text("info"),
        Kind::Filter(|c, v| c.log.level = v),
        "What is logged, to standard error",
    ),
    key(
        "log.format",
        Text("text"),
        Kind::Word { allowed: &["text", "json"], set: |c, v| c.log.format = log_format(&v) },
        "How a line of the log looks",
    ),
    key(
        "storage.segment_bytes",
        Text("64MiB"),
        bytes(MIB, GIB, |c, v| c.storage.segment_bytes = v),
        "Length of a segment file; a partition with retention_bytes has some of a quarter of that, \
         if they are shorter, and not below 1MiB. Retention deletes whole segments",
    ),
    key(
        "storage.index_interval_bytes",
        Text("4KiB"),
        bytes(256, MIB, |c, v| c.storage.index_interval_bytes = v),
        "Bytes of a log that one row of its index stands for",
    ),
    key(
        "storage.allocation_bytes_first",
        Text("16KiB"),
        bytes(8 * KIB, GIB, |c, v| c.storage.allocation_bytes_first = v),
        "Length of a new segment file; it grows from there",
    ),
    key(
        "storage.allocation_bytes_max",
        Text("1MiB"),
        bytes(8 * KIB, GIB, |c, v| c.storage.allocation_bytes_max = v),
        "A segment file grows by at most this at a time",
    ),
    key(
        "storage.spares_max",
        Text("32"),
        things(0, 1024, |c, v| c.storage.spares_max = v as usize),
        "Segment files kept for another use, or as many bytes in shorter ones; one is prepared",
    ),
    key(
        "storage.open_segments_max",
        Text("4096"),
        things(16, 60_000, |c, v| c.storage.open_segments_max = v as usize),
        "Segment files open at a time. The limit of open files must be well above",
    ),
    key(
        "storage.low_water_bytes",
        Text("256MiB"),
        bytes(0, TIB, |c, v| c.storage.low_water_bytes = v),
        "Appends are refused when less than this would stay free on the disk",
    ),
    key(
        "storage.reserve_bytes",
        Text("64MiB"),
        bytes(0, 16 * GIB, |c, v| c.storage.reserve_bytes = v),
        "Space kept aside for votes and other small writes on a full disk",
    ),
    key(
        "storage.sync_threads",
        Text("2"),
        things(1, 64, |c, v| c.storage.sync_threads = v as usize),
        "Threads that sync files",
    ),
    key(
        "storage.sync_filesystem_from",
        Text("8"),
        things(2, 1 << 20, |c, v| c.storage.sync_filesystem_from = v as usize),
        "From this many files to sync at a time, the whole file system is synced instead",
    ),
    key(
        "storage.journal_rewrite_bytes",
        Text("16MiB"),
        bytes(64 * KIB, GIB, |c, v| c.storage.journal_rewrite_bytes = v),
        "The journal of votes is rewritten when it is this long and mostly outdated",
    ),
    key(
        "raft.tick_ms",
        Text("100"),
        things(10, 10 * SECOND, |c, v| c.raft.tick_ms = v),
        "Length of a tick in milliseconds. Have all raft keys alike on all nodes",
    ),
    key(
        "raft.election_ticks",
        Text("10"),
        things(3, 1000, |c, v| c.raft.election_ticks = v as usize),
        "A follower that hears nothing for this many ticks, up to twice as many, seeks election",
    ),
    key(
        "raft.heartbeat_ticks",
        Text("2"),
        things(1, 500, |c, v| c.raft.heartbeat_ticks = v as usize),
        "A leader speaks at least this often, in ticks",
    ),
    key(
        "raft.append_bytes_max",
        Text("256KiB"),
        bytes(4 * KIB, 4 * MIB, |c, v| c.raft.append_bytes_max = v),
        "Payload of one message to a follower, unless a single batch is larger",
    ),
    key(
        "raft.appends_in_flight_max",
        Text("32"),
        things(1, 4096, |c, v| c.raft.appends_in_flight_max = v as usize),
        "Messages with entries on their way to one follower",
    ),
    key(
        "raft.tail_bytes_max",
        Text("256KiB"),
        bytes(0, GIB, |c, v| c.raft.tail_bytes_max = v as usize),
        "Entries that a partition keeps in memory for followers that lack them",
    ),
    key(
        "raft.slow_disk_ticks",
        Text("20"),
        things(1, 10_000, |c, v| c.raft.slow_disk_ticks = v),
        "A leader that waits this many ticks for its disk hands over",
    ),
    key(
        "raft.cold_reads_max",
        Text("64"),
        things(1, 4096, |c, v| c.raft.cold_reads_max = v as usize),
        "Reads from disk for followers far behind that wait for a thread",
    ),
    key(
        "raft.reader_threads",
        Text("2"),
        things(1, 64, |c, v| c.raft.reader_threads = v as usize),
        "Threads that read from disk for followers far behind",
    ),
    key(
        "limits.connections_max",
        Text("8192"),
        things(1, 1 << 20, |c, v| c.limits.connections_max = v as usize),
        "Connections of clients, all together. The limit of open files must be well above",
    ),
    key(
        "limits.connections_per_ip_max",
        Text("256"),
        things(1, 1 << 20, |c, v| c.limits.connections_per_ip_max = v as usize),
        "Connections of clients from one address",
    ),
    key(
        "limits.http_connections_max",
        Text("64"),
        things(1, 4096, |c, v| c.limits.http_connections_max = v as usize),
        "Connections to the HTTP port",
    ),
    key(
        "limits.streams_per_connection_max",
        Text("100"),
        things(1, 10_000, |c, v| c.limits.streams_per_connection_max = v as u32),
        "Calls under way on one connection",
    ),
    key(
        "limits.requests_in_flight_max",
        Text("20000"),
        things(1, 1 << 20, |c, v| c.limits.requests_in_flight_max = v as usize),
        "Calls under way on all connections; more of them are told to come back",
    ),
    key(
        "limits.message_bytes_max",
        Text("8MiB"),
        bytes(64 * KIB, 64 * MIB, |c, v| c.limits.message_bytes_max = v as usize),
        "Length of one message from a client. Batches must fit in",
    ),
    key(
        "limits.header_list_bytes_max",
        Text("16KiB"),
        bytes(KIB, MIB, |c, v| c.limits.header_list_bytes_max = v as u32),
        "Length of the headers of one call",
    ),
    key(
        "limits.request_timeout_ms",
        Text("10s"),
        time(100, HOUR, |c, v| c.limits.request_timeout = v),
        "How long a call that is not a stream may take, unless its caller gives it less",
    ),
    key(
        "limits.preface_timeout_ms",
        Text("5s"),
        time(100, HOUR, |c, v| c.limits.preface_timeout = v),
        "A new connection that says nothing for this long is closed",
    ),
    key(
        "limits.keepalive_interval_ms",
        Text("20s"),
        time(SECOND, HOUR, |c, v| c.limits.keepalive_interval = v),
        "A connection that is silent for this long is asked whether it lives",
    ),
    key(
        "limits.keepalive_timeout_ms",
        Text("10s"),
        time(SECOND, HOUR, |c, v| c.limits.keepalive_timeout = v),
        "A connection that does not answer for this long is closed",
    ),
    key(
        "limits.connection_age_max_ms",
        Text("0"),
        time(0, 24 * HOUR, |c, v| c.limits.connection_age_max = v),
        "A connection this old is closed in order, so that clients spread again; 0 for never",
    ),
    key(
        "limits.batch_bytes_max",
        Text("4MiB"),
        bytes(4 * KIB, 32 * MIB, |c, v| c.limits.batch.batch_bytes_max = v as u32),
        "Length of a record batch",
    ),
    key(
        "limits.batch_uncompressed_bytes_max",
        Text("16MiB"),
        bytes(4 * KIB, 256 * MIB, |c, v| c.limits.batch.uncompressed_bytes_max = v as u32),
        "Length of a record batch when it is decompressed",
    ),
    key(
        "limits.batch_compression_ratio_max",
        Text("100"),
        things(1, 10_000, |c, v| c.limits.batch.compression_ratio_max = v as u32),
        "How many times longer a batch may become when it is decompressed",
    ),
    key(
        "limits.batch_records_max",
        Text("131072"),
        things(1, 1 << 24, |c, v| c.limits.batch.records_max = v as u32),
        "Records of a batch",
    ),
    key(
        "limits.record_bytes_max",
        Text("1MiB"),
        bytes(KIB, 32 * MIB, |c, v| c.limits.batch.record_bytes_max = v as u32),
        "Length of a record with its key and headers",
    ),
    key(
        "limits.record_headers_max",
        Text("128"),
        things(0, 65_536, |c, v| c.limits.batch.headers_max = v as u32),
        "Headers of a record",
    ),
    key(
        "limits.record_header_name_bytes_max",
        Text("256"),
        bytes(1, 64 * KIB, |c, v| c.limits.batch.header_name_bytes_max = v as u32),
        "Length of the name of a header",
    ),
];

const fn key(name: &'static str, fallback: Fallback, kind: Kind, doc: &'static str) -> Key {
    Key { name, fallback, doc, kind }
}

const fn things(min: u64, max: u64, set: Set<u64>) -> Kind {
    Kind::Number { unit: Unit::Things, min, max, set }
}

const fn bytes(min: u64, max: u64, set: Set<u64>) -> Kind {
    Kind::Number { unit: Unit::Bytes, min, max, set }
}

const fn time(min_ms: u64, max_ms: u64, set: Set<Duration>) -> Kind {
    Kind::Time { min_ms, max_ms, set }
}

fn log_format(word: &str) -> LogFormat {
    if word == "json" { LogFormat::Json } else { LogFormat::Text }
}
