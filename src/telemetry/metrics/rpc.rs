//! What is counted where clients call.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;

use super::catalog::{Labeled, Registrar};
use super::timing::Timing;

/// Calls and connections of clients. A method is called `LogService/Produce`, a code `NOT_FOUND`.
#[derive(Debug)]
pub struct Rpc {
    /// Calls that were answered: method, gRPC code.
    pub requests: Labeled<Counter, 2>,
    /// How long calls took: method.
    pub request_duration: Labeled<Timing, 1>,
    /// Calls under way that are not streams.
    pub requests_in_flight: Gauge,
    /// Calls that were passed on to the leader: method.
    pub forwarded: Labeled<Counter, 1>,
    /// Input that was refused: the reason of the error.
    pub rejected: Labeled<Counter, 1>,
    /// Bytes of messages from clients.
    pub received_bytes: Counter,
    /// Bytes of messages to clients.
    pub sent_bytes: Counter,
    /// Connections of clients that are open.
    pub connections: Gauge,
    /// Connections of clients that were opened.
    pub connections_opened: Counter,
    /// Connections of clients that were refused: which limit.
    pub connections_refused: Labeled<Counter, 1>,
    /// Streams that are open: method.
    pub streams: Labeled<Gauge, 1>,
}

impl Rpc {
    pub(super) fn register(r: &mut Registrar) -> Self {
        let bytes = || Some(Unit::Bytes);
        Self {
            requests: r.labeled(
                "rpc_requests",
                None,
                ["method", "code"],
                "Calls that were answered, by method and gRPC code",
                Counter::default,
            ),
            request_duration: r.labeled(
                "rpc_request_duration",
                Some(Unit::Seconds),
                ["method"],
                "How long calls took that are not streams, from their first byte to their last",
                Timing::default,
            ),
            requests_in_flight: r.one(
                "rpc_requests_in_flight",
                None,
                "Calls under way that are not streams",
            ),
            forwarded: r.labeled(
                "rpc_forwarded",
                None,
                ["method"],
                "Calls that were passed on to the leader",
                Counter::default,
            ),
            rejected: r.labeled(
                "rpc_rejected",
                None,
                ["reason"],
                "Calls that were refused, by the reason in their error",
                Counter::default,
            ),
            received_bytes: r.one("rpc_received", bytes(), "Messages from clients"),
            sent_bytes: r.one("rpc_sent", bytes(), "Messages to clients"),
            connections: r.one("rpc_connections", None, "Connections of clients now"),
            connections_opened: r.one(
                "rpc_connections_opened",
                None,
                "Connections that clients opened",
            ),
            connections_refused: r.labeled(
                "rpc_connections_refused",
                None,
                ["limit"],
                "Connections of clients that were refused, by the limit they met",
                Counter::default,
            ),
            streams: r.labeled("rpc_streams", None, ["method"], "Streams now", Gauge::default),
        }
    }
}
