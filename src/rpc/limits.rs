//! Limits: what strangers may cost, in connections, streams, bytes and time.
//!
//! The defaults of the libraries below allow any number of streams and of half-open ones, and wait
//! for ever: every limit of a server is set here.

use std::time::Duration;

use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

use super::slow_body::SlowBodyLayer;
use super::traced::TraceLayer;

/// Longest message of any service, in bytes: what clients of all languages accept by default.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Longest message between nodes, in bytes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Longest answer that holds more than one batch, in bytes.
pub const ANSWER_BYTES_MAX: usize = 3_670_016;
/// Bytes of one stream that may be on their way.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of one connection that may be on their way.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Longest HTTP/2 frame, in bytes.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Longest header of a request, in bytes.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Partitions that one request may name.
pub const NAMED_PARTITIONS_MAX: usize = 1_000;

/// Streams that were refused and that the other side has not closed, of one connection.
const REFUSED_STREAMS_MAX: usize = 1024;
/// Streams that the other side has reset before they were looked at, of one connection.
const RESET_STREAMS_MAX: usize = 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who knocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Anybody.
    Clients,
    /// Nodes of the cluster.
    Peers,
}

/// How much there may be of everything that strangers can make.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of clients.
    pub connections_max: usize,
    /// Connections of clients from one address.
    pub connections_per_address_max: usize,
    /// How long a connection may take until it has shown that it speaks HTTP/2.
    pub preface_timeout: Duration,
    /// How long the request of a call that is no stream may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may stay connected; it is asked to come again then.
    pub connection_age_max: Duration,
    /// How long calls may go on after that.
    pub connection_age_grace: Duration,
    /// How long a client that reads records may be silent, or not read what it asked for.
    pub reader_silence_max: Duration,
    /// Streams of one connection of a client.
    pub streams_max: u32,
    /// Streams of one connection of a node.
    pub peer_streams_max: u32,
    /// Calls at the same time, streams among them.
    pub calls_max: usize,
    /// Reads at the same time that may wait for a disk.
    pub cold_reads_max: usize,
    /// Checks of large compressed batches at the same time.
    pub batch_checks_max: usize,
    /// Requests of one produce stream that wait for an answer.
    pub produce_requests_max: usize,
    /// Bytes of batches of one produce stream that wait for an answer.
    pub produce_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            connections_per_address_max: 256,
            preface_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            connection_age_max: Duration::from_secs(4 * 60 * 60),
            connection_age_grace: Duration::from_secs(10 * 60),
            reader_silence_max: Duration::from_secs(30),
            streams_max: 100,
            peer_streams_max: 4_096,
            calls_max: 20_000,
            cold_reads_max: 16,
            batch_checks_max: 2,
            produce_requests_max: 4_096,
            produce_bytes_max: 32 << 20,
        }
    }
}

/// A server of which everything is limited; services are yet to be added.
pub type Builder = Server<Stack<TraceLayer, Stack<SlowBodyLayer, Identity>>>;

/// A server for one of the doors, with all limits set.
///
/// What [`super::accept`] limits, it does not.
pub fn server_builder(door: Door, limits: &Limits) -> Builder {
    let streams_max = match door {
        Door::Clients => limits.streams_max,
        Door::Peers => limits.peer_streams_max,
    };
    let server = Server::builder()
        .max_concurrent_streams(streams_max)
        .concurrency_limit_per_connection(streams_max as usize)
        .load_shed(true)
        .http2_max_local_error_reset_streams(Some(REFUSED_STREAMS_MAX))
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .accept_http1(false);
    let server = match door {
        Door::Peers => server,
        Door::Clients => server
            .max_connection_age(limits.connection_age_max)
            .max_connection_age_grace(limits.connection_age_grace),
    };
    server.layer(SlowBodyLayer::new(limits.body_timeout)).layer(TraceLayer)
}
