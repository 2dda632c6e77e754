//! Identity: who a node is, as its data directory says.
//!
//! A directory gets a random id when it is first used. A node that comes with another directory is
//! another member of every group: what the old one promised died with it.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::command::Id;
use crate::storage::{self, Change, DataDir, FactKind};
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

/// A cluster at its beginning. Equal on all its founders.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Founding {
    /// The cluster's id.
    #[prost(message, required, tag = "1")]
    pub cluster: Id,
    /// Its first nodes, by id.
    #[prost(message, repeated, tag = "2")]
    pub founders: Vec<Founder>,
}

/// One of the first nodes of a cluster.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Founder {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Its directory.
    #[prost(message, required, tag = "2")]
    pub directory: Id,
    /// Where other nodes reach it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
}

impl Founding {
    /// The cluster.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(self.cluster.uuid())
    }

    /// The log of the metadata: it has the cluster's id.
    pub fn metadata_log(&self) -> LogId {
        LogId(self.cluster.uuid())
    }

    /// True if the directory is one of the founders'.
    pub fn is_founder(&self, node: NodeId, directory: Id) -> bool {
        let is_it = |founder: &Founder| founder.node == node.0 && founder.directory == directory;
        self.founders.iter().any(is_it)
    }
}

/// Who a node is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Identity {
    /// The node's id.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Its directory's id.
    #[prost(message, required, tag = "2")]
    pub directory: Id,
    /// The cluster it belongs to.
    #[prost(message, optional, tag = "3")]
    pub founding: Option<Founding>,
    /// The incarnation that the cluster gave it; 0 for none yet.
    #[prost(uint64, tag = "4")]
    pub incarnation: u64,
}

/// Why a directory cannot be used by a node.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What storage said.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The directory is another node's.
    #[error(
        "the data directory is that of node {found}, not of node {wanted}; use --node-id {found} \
         or another directory"
    )]
    OtherNode {
        /// The node that it is of.
        found: u64,
        /// The node that was started.
        wanted: u64,
    },
    /// What the journal says cannot be read.
    #[error("the identity in the data directory cannot be read; was a later version used on it?")]
    Unreadable,
}

impl Identity {
    /// Reads who this directory is, or makes it `node`'s.
    ///
    /// DURABILITY: the identity is on disk before anybody hears of it.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_create(dir: &DataDir, node: NodeId) -> Result<Self, IdentityError> {
        if let Some(bytes) = dir.journal().get(LogId::NIL, FactKind::Identity) {
            let identity = Self::decode(bytes).map_err(|_| IdentityError::Unreadable)?;
            if identity.node != node.0 {
                return Err(IdentityError::OtherNode { found: identity.node, wanted: node.0 });
            }
            return Ok(identity);
        }
        let directory = Uuid::new_v4().into();
        let identity = Self { node: node.0, directory, founding: None, incarnation: 0 };
        identity.store(dir)?;
        Ok(identity)
    }

    /// Writes it down for good.
    ///
    /// # Errors
    /// What storage said; the node must not go on.
    pub fn store(&self, dir: &DataDir) -> storage::Result<()> {
        let value = Some(Bytes::from(self.encode_to_vec()));
        dir.journal().record(&[Change { log: LogId::NIL, kind: FactKind::Identity, value }])?;
        dir.journal().sync().map(drop)
    }

    /// The node's id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }

    /// Its replica of the metadata.
    pub fn metadata_replica(&self) -> ReplicaId {
        ReplicaId::new(self.node_id(), self.incarnation)
    }
}

/// Which replica of a log is here. Written down before the log is made.
pub(super) fn replica_here(dir: &DataDir, log: LogId) -> Option<ReplicaId> {
    let bytes = dir.journal().get(log, FactKind::Identity)?;
    Some(ReplicaId(u64::from_le_bytes(bytes.as_ref().try_into().ok()?)))
}

/// Writes down which replica of a log is here. Durable with the journal's next sync.
///
/// # Errors
/// What storage said.
pub(super) fn note_replica(dir: &DataDir, log: LogId, replica: ReplicaId) -> storage::Result<()> {
    let value = Some(Bytes::copy_from_slice(&replica.0.to_le_bytes()));
    dir.journal().record(&[Change { log, kind: FactKind::Identity, value }]).map(drop)
}
