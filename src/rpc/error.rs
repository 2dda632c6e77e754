//! Why a call failed, one variant for each thing that a caller does differently.
//!
//! What it becomes on the wire is [`super::status`]'s to say.

use tonic::{ConnectError, Status};

use super::status;
use crate::cluster::Refusal as MetadataRefusal;
use crate::cluster::placement::TooFewNodes;
use crate::partition::{AskError, FetchError, Refusal};
use crate::proto::server::ErrorReason;
use crate::types::NodeId;
use crate::{batch, raft, storage};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field has a value that it cannot have.
    #[error("{field} must be {expected}")]
    InvalidField {
        /// The field.
        field: &'static str,
        /// What it can be.
        expected: String,
    },
    /// A name that nothing can have.
    #[error(
        "{0:?} is no name: names have 1 to 249 of the characters A-Z a-z 0-9 . _ - and are not \
         \".\" or \"..\", nor do they begin with \"__\""
    )]
    BadName(String),
    /// A configuration key is unknown, or its value is not of its kind.
    #[error("the configuration key {key:?} must be {expected}")]
    InvalidConfig {
        /// The key.
        key: String,
        /// What it can be.
        expected: String,
    },
    /// There is no topic of that name.
    #[error("topic {0:?} does not exist")]
    UnknownTopic(String),
    /// There is no topic of that id any more.
    #[error("there is no topic of the id {0:?}: it was deleted, maybe made anew")]
    UnknownTopicId(String),
    /// The topic has no such partition.
    #[error("topic {topic:?} has no partition {partition}: it has {partitions}, counted from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// What was asked for.
        partition: u32,
        /// How many there are.
        partitions: usize,
    },
    /// There is no such node.
    #[error("node {0} does not exist")]
    UnknownNode(u64),
    /// Another node leads, and the call is not to be passed on.
    #[error("this node does not lead the partition")]
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
        /// Where clients reach it, if known.
        address: Option<String>,
    },
    /// No leader is known.
    #[error("no leader is known: an election goes on, or a majority cannot be reached; try again")]
    NoLeader,
    /// The node is on its way out.
    #[error("the node is stopping or being drained; use another one")]
    Draining,
    /// The node does not know the cluster yet.
    #[error("the node has just started and does not know the cluster's state yet; try again")]
    Starting,
    /// It was done or not.
    #[error("the outcome is unknown: it may have been done or not")]
    OutcomeUnknown,
    /// Too much at once.
    #[error("the node has too much to do; try again in a moment")]
    Overloaded,
    /// No more of these.
    #[error("{limit}: at most {max}")]
    LimitReached {
        /// What is limited.
        limit: &'static str,
        /// How many there may be.
        max: u64,
    },
    /// The client gives no credit, or does not read what it gave credit for.
    #[error("the client reads too slowly for what it has asked for")]
    SlowConsumer,
    /// The member of a group does not have the partition.
    #[error("the member does not have the partition; commit what is assigned to it")]
    NotOwner,
    /// The peer belongs to another cluster.
    #[error("this node belongs to another cluster, {cluster_id}")]
    ClusterMismatch {
        /// This node's cluster.
        cluster_id: String,
    },
    /// Something else has to be changed before.
    #[error("{0}")]
    Precondition(String),
    /// What cannot be.
    #[error("unexpected: {0}")]
    Unexpected(&'static str),
    /// The batch is not sound.
    #[error(transparent)]
    Batch(#[from] batch::Error),
    /// The partition's replica here did not do it.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The partition's replica here could not read it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The log could not be read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The metadata refused it.
    #[error(transparent)]
    Metadata(#[from] MetadataRefusal),
    /// There are too few nodes for so many replicas.
    #[error(transparent)]
    TooFewNodes(#[from] TooFewNodes),
    /// Another node's answer, passed on as it is.
    #[error("{}", .0.message())]
    Passed(Box<Status>),
}

/// What a call that failed has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing, and the same may succeed at once or later.
    NotDone,
    /// All of it or nothing.
    Unknown,
    /// Nothing, and the same will fail again.
    Final,
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Passed(Box::new(status))
    }
}

impl Error {
    /// A field that has a value that it cannot have.
    pub fn field(field: &'static str, expected: impl Into<String>) -> Self {
        Self::InvalidField { field, expected: expected.into() }
    }

    /// What the call has done, as far as is known.
    pub fn effect(&self) -> Effect {
        match self {
            Self::NotLeader { .. }
            | Self::NoLeader
            | Self::Starting
            | Self::Overloaded
            | Self::Storage(storage::Error::Cold | storage::Error::NoSpace { .. }) => {
                Effect::NotDone
            }
            Self::OutcomeUnknown => Effect::Unknown,
            Self::Ask(error) => effect_of_ask(error),
            Self::Passed(status) => effect_of_status(status),
            Self::InvalidField { .. }
            | Self::BadName(_)
            | Self::InvalidConfig { .. }
            | Self::UnknownTopic(_)
            | Self::UnknownTopicId(_)
            | Self::UnknownPartition { .. }
            | Self::UnknownNode(_)
            | Self::Draining
            | Self::LimitReached { .. }
            | Self::SlowConsumer
            | Self::NotOwner
            | Self::ClusterMismatch { .. }
            | Self::Precondition(_)
            | Self::Unexpected(_)
            | Self::Batch(_)
            | Self::Fetch(_)
            | Self::Storage(_)
            | Self::Metadata(_)
            | Self::TooFewNodes(_) => Effect::Final,
        }
    }

    /// Its reason. `None` if another node or the way there failed without giving one.
    pub fn reason(&self) -> Option<ErrorReason> {
        status::reason(self)
    }

    /// The generation that the error names: the one that holds in a partition.
    pub fn generation(&self) -> Option<u64> {
        match self {
            Self::Ask(AskError::Refused(Refusal::IllegalGeneration { current })) => Some(*current),
            Self::Passed(status) => status::generation_of(status),
            _ => None,
        }
    }

    /// The leader that the error names.
    pub fn leader(&self) -> Option<NodeId> {
        match self {
            Self::NotLeader { leader, .. } => *leader,
            Self::Ask(AskError::NotLeader { leader }) => leader.map(crate::types::ReplicaId::node),
            Self::Passed(status) => status::leader_of(status),
            _ => None,
        }
    }

    /// The first offset that can be read, if the one that was asked for is below it.
    pub fn log_start(&self) -> Option<u64> {
        match self {
            Self::Fetch(FetchError::OutOfRange { requested, log_start, .. }) => {
                Some(*log_start).filter(|start| start > requested)
            }
            Self::Passed(status) => status::log_start_of(status),
            _ => None,
        }
    }

    /// True if stored records could not be read where it was tried.
    pub fn is_damage(&self) -> bool {
        self.reason() == Some(ErrorReason::DataLoss)
    }
}

fn effect_of_ask(error: &AskError) -> Effect {
    match error {
        AskError::NotLeader { .. }
        | AskError::Transferring
        | AskError::DiskFull
        | AskError::NotTaken(raft::Refused::Overloaded) => Effect::NotDone,
        AskError::Unknown => Effect::Unknown,
        AskError::NotTaken(raft::Refused::Stopped) | AskError::Refused(_) => Effect::Final,
    }
}

fn effect_of_status(status: &Status) -> Effect {
    match status::reason_of(status) {
        Some(
            ErrorReason::NotLeader
            | ErrorReason::NoLeader
            | ErrorReason::Draining
            | ErrorReason::Starting
            | ErrorReason::DiskFull
            | ErrorReason::Overloaded,
        ) => Effect::NotDone,
        Some(ErrorReason::OutcomeUnknown) => Effect::Unknown,
        Some(_) => Effect::Final,
        None if was_never_sent(status) => Effect::NotDone,
        None => Effect::Unknown,
    }
}

/// True if no connection came about, so that nothing can have arrived.
fn was_never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
