//! What readers get: records, and what is missing between them.

use std::sync::Arc;

use bytes::Bytes;

/// A record as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The topic that it is in.
    pub topic: Arc<str>,
    /// The partition that it is in.
    pub partition: u32,
    /// Its offset there.
    pub offset: u64,
    /// The leader epoch in which it was appended.
    pub leader_epoch: u64,
    /// When the leader appended it, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// The key. Absent is not the same as empty.
    pub key: Option<Bytes>,
    /// The value. Absent is not the same as empty.
    pub value: Option<Bytes>,
    /// The headers, in the producer's order.
    pub headers: Vec<Header>,
    /// When the event happened by the producer's clock, in milliseconds since the Unix epoch.
    pub event_time_ms: Option<i64>,
}

/// A named value beside a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name.
    pub name: String,
    /// The value.
    pub value: Bytes,
}

/// Records that were gone before they could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The first offset that is missed.
    pub from_offset: u64,
    /// The offset at which reading goes on.
    pub to_offset: u64,
}
