//! Names that every layer shares.
//!
//! Offsets, indices, terms and positions are plain `u64`: a name says which one it is
//! (`base_offset`, `last_index`, `position`), and one word never stands for two of them.

mod trace_context;

use std::fmt;

use uuid::Uuid;

pub use self::trace_context::{BadTraceparent, TRACEPARENT, TraceContext};

/// Identity of one partition log, unique for ever: a deleted log's id is never given to another.
///
/// Files and directories are named by it, never by text that a user chose.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub Uuid);

impl LogId {
    /// The id no log has. Journal facts about the whole data directory stand under it.
    pub const NIL: Self = Self(Uuid::nil());

    /// Reads an id from its hyphenated text form, as it appears in directory names.
    ///
    /// Returns `None` when the text is not exactly the form that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Self(Uuid::try_parse(text).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for LogId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identity of a cluster, given once when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub Uuid);

/// Identity of a node in its cluster: 1 to [`NodeId::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The highest id a node can have.
    pub const MAX: u64 = (1 << REPLICA_NODE_BITS) - 1;
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const REPLICA_NODE_BITS: u32 = 20;

/// Identity of one copy of one partition, unique for ever.
///
/// A replica that lost its disk never comes back under its old id: it would vote a second time, and
/// be taken for having what it had acknowledged. The id therefore names the incarnation as well as
/// the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    /// The replica of incarnation `incarnation` on `node`.
    ///
    /// # Panics
    /// If the node's id is 0 or does not fit, or the incarnation does not.
    pub fn new(node: NodeId, incarnation: u64) -> Self {
        assert!((1..=NodeId::MAX).contains(&node.0), "node id {node} is out of range");
        assert!(incarnation < 1 << (64 - REPLICA_NODE_BITS), "{incarnation} is out of range");
        Self(incarnation << REPLICA_NODE_BITS | node.0)
    }

    /// The node it is on.
    pub fn node(self) -> NodeId {
        NodeId(self.0 & NodeId::MAX)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node(), self.0 >> REPLICA_NODE_BITS)
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
