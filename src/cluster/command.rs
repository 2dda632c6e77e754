//! Commands: what the metadata log is made of, and how it is encoded.
//!
//! Commands, refusals and checkpoints are protobuf messages; the tag of a field is its name on disk
//! and is never given to another one. A verb that this version does not know stops the replica: to
//! pass over it would make its state another than that of the others.

use prost::Message;
use uuid::Uuid;

use super::group::{
    CreateGroup, DeleteGroup, Group, JoinGroup, LeaveGroups, PlanGroup, ReleaseAssignments,
    RenewAssignments,
};
use crate::types::{LogId, NodeId, ReplicaId};

/// An id of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct Id {
    /// Its upper half.
    #[prost(fixed64, tag = "1")]
    pub high: u64,
    /// Its lower half.
    #[prost(fixed64, tag = "2")]
    pub low: u64,
}

impl From<Uuid> for Id {
    fn from(id: Uuid) -> Self {
        let (high, low) = id.as_u64_pair();
        Self { high, low }
    }
}

impl Id {
    /// The id as a UUID.
    pub fn uuid(self) -> Uuid {
        Uuid::from_u64_pair(self.high, self.low)
    }
}

/// What a node is meant to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeState {
    /// Everything.
    Active = 0,
    /// Everything but to lead.
    Draining = 1,
    /// To give up its replicas and leave.
    Decommissioning = 2,
}

/// A node, as the metadata has it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Node {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Which of the directories it has had this is; part of its metadata replica's id.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// Id of that directory.
    #[prost(message, required, tag = "3")]
    pub directory: Id,
    /// Where clients reach it.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Where other nodes reach it.
    #[prost(string, tag = "5")]
    pub peer_address: String,
    /// Its rack, or nothing.
    #[prost(string, tag = "6")]
    pub rack: String,
    /// Its version.
    #[prost(string, tag = "7")]
    pub version: String,
    /// What it is meant to do.
    #[prost(enumeration = "NodeState", tag = "8")]
    pub state: i32,
    /// Address for metrics and health; may be nothing.
    #[prost(string, tag = "9")]
    pub http_address: String,
}

impl Node {
    /// Its id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.id)
    }

    /// Its replica of the metadata.
    pub fn metadata_replica(&self) -> ReplicaId {
        ReplicaId::new(self.node_id(), self.incarnation)
    }
}

/// A topic's configuration. Absent values are the defaults.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TopicConfig {
    /// Batches count as stored when the operating system has them.
    #[prost(bool, tag = "1")]
    pub is_memory: bool,
    /// How long records are kept, in milliseconds.
    #[prost(uint64, optional, tag = "2")]
    pub retention_ms: Option<u64>,
    /// How large a partition may grow, in bytes.
    #[prost(uint64, optional, tag = "3")]
    pub retention_bytes: Option<u64>,
    /// The largest record, in bytes.
    #[prost(uint32, optional, tag = "4")]
    pub record_bytes_max: Option<u32>,
    /// The largest batch, in bytes.
    #[prost(uint32, optional, tag = "5")]
    pub batch_bytes_max: Option<u32>,
    /// Records are kept until every group of the topic has committed past them.
    #[prost(bool, tag = "6")]
    pub is_kept_until_consumed: bool,
}

/// A partition, as the metadata has it. Replicas are ids as in [`ReplicaId`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Partition {
    /// The replicas that make up the group, the preferred leader first.
    #[prost(uint64, repeated, tag = "1")]
    pub replicas: Vec<u64>,
    /// The replicas that are to make it up; nothing if those that do.
    #[prost(uint64, repeated, tag = "2")]
    pub target: Vec<u64>,
    /// The replicas that founded the group: only they begin without being brought up.
    #[prost(uint64, repeated, tag = "3")]
    pub founders: Vec<u64>,
}

impl Partition {
    /// Every replica that there is or is to be.
    pub fn all_replicas(&self) -> impl Iterator<Item = ReplicaId> {
        let is_new = |id: &&u64| !self.replicas.contains(id);
        let all = self.replicas.iter().chain(self.target.iter().filter(is_new));
        all.copied().map(ReplicaId)
    }

    /// The replica on `node` that the metadata wants: of two, the later one.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.all_replicas().filter(|replica| replica.node() == node).max()
    }
}

/// A topic, as the metadata has it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Topic {
    /// Its id. The lowest 32 bits are 0: they number the logs of its partitions.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its configuration.
    #[prost(message, required, tag = "3")]
    pub config: TopicConfig,
    /// Its partitions by number.
    #[prost(message, repeated, tag = "4")]
    pub partitions: Vec<Partition>,
}

impl Topic {
    /// The log of one of its partitions.
    pub fn log_id(&self, partition: u32) -> LogId {
        log_of(self.id, partition)
    }
}

/// The log of a partition of a topic.
pub fn log_of(topic: Id, partition: u32) -> LogId {
    assert!(topic.low as u32 == 0, "a topic's id leaves room for its partitions");
    LogId(Uuid::from_u64_pair(topic.high, topic.low | u64::from(partition + 1)))
}

/// The topic and the partition whose log this is.
pub fn topic_of(log: LogId) -> Option<(Id, u32)> {
    let (high, low) = log.0.as_u64_pair();
    let partition = (low as u32).checked_sub(1)?;
    Some((Id { high, low: low >> 32 << 32 }, partition))
}

/// A topic that was deleted. Its logs go wherever they are found.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Tombstone {
    /// The topic's id.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// How many partitions it had.
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
}

/// A node makes itself known, or says what has changed about it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RegisterNode {
    /// The node; its incarnation and state are not taken from here.
    #[prost(message, required, tag = "1")]
    pub node: Node,
    /// It is one of the cluster's founders, of incarnation 1.
    #[prost(bool, tag = "2")]
    pub is_founder: bool,
    /// The directory that this one takes the place of: it is lost for good.
    #[prost(message, optional, tag = "3")]
    pub replaces: Option<Id>,
}

/// What a node is meant to do changes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SetNodeState {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// What it is meant to do.
    #[prost(enumeration = "NodeState", tag = "2")]
    pub state: i32,
}

/// A node that has nothing any more leaves the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RemoveNode {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

/// The nodes of one partition.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Placement {
    /// The nodes, the preferred leader first.
    #[prost(uint64, repeated, tag = "1")]
    pub nodes: Vec<u64>,
}

/// A topic is made.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateTopic {
    /// Its id, chosen at random.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its configuration.
    #[prost(message, required, tag = "3")]
    pub config: TopicConfig,
    /// Where its partitions are.
    #[prost(message, repeated, tag = "4")]
    pub partitions: Vec<Placement>,
}

/// A topic's configuration changes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AlterTopic {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// All of its new configuration.
    #[prost(message, required, tag = "2")]
    pub config: TopicConfig,
}

/// A topic gets more partitions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AddPartitions {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// How many it has.
    #[prost(uint32, tag = "2")]
    pub from: u32,
    /// Where the new ones are.
    #[prost(message, repeated, tag = "3")]
    pub partitions: Vec<Placement>,
}

/// A topic is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DeleteTopic {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
}

/// The replicas of a partition are to be on other nodes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MovePartition {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The replicas that whoever asks knows of.
    #[prost(uint64, repeated, tag = "3")]
    pub replicas: Vec<u64>,
    /// The nodes, the preferred leader first.
    #[prost(uint64, repeated, tag = "4")]
    pub nodes: Vec<u64>,
}

/// One replica is lost for good: its node makes another one.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplaceReplica {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The replica.
    #[prost(uint64, tag = "3")]
    pub replica: u64,
}

/// The target of a partition is reached.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FinishMove {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The target.
    #[prost(uint64, repeated, tag = "3")]
    pub target: Vec<u64>,
}

/// Producer ids are given to a node.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AllocateProducerIds {
    /// How many.
    #[prost(uint64, tag = "1")]
    pub count: u64,
}

/// What is done.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Verb {
    /// See [`RegisterNode`].
    #[prost(message, tag = "1")]
    RegisterNode(RegisterNode),
    /// See [`SetNodeState`].
    #[prost(message, tag = "2")]
    SetNodeState(SetNodeState),
    /// See [`RemoveNode`].
    #[prost(message, tag = "3")]
    RemoveNode(RemoveNode),
    /// See [`CreateTopic`].
    #[prost(message, tag = "4")]
    CreateTopic(CreateTopic),
    /// See [`AlterTopic`].
    #[prost(message, tag = "5")]
    AlterTopic(AlterTopic),
    /// See [`AddPartitions`].
    #[prost(message, tag = "6")]
    AddPartitions(AddPartitions),
    /// See [`DeleteTopic`].
    #[prost(message, tag = "7")]
    DeleteTopic(DeleteTopic),
    /// See [`MovePartition`].
    #[prost(message, tag = "8")]
    MovePartition(MovePartition),
    /// See [`ReplaceReplica`].
    #[prost(message, tag = "9")]
    ReplaceReplica(ReplaceReplica),
    /// See [`FinishMove`].
    #[prost(message, tag = "10")]
    FinishMove(FinishMove),
    /// See [`AllocateProducerIds`].
    #[prost(message, tag = "11")]
    AllocateProducerIds(AllocateProducerIds),
    /// See [`CreateGroup`].
    #[prost(message, tag = "12")]
    CreateGroup(CreateGroup),
    /// See [`DeleteGroup`].
    #[prost(message, tag = "13")]
    DeleteGroup(DeleteGroup),
    /// See [`JoinGroup`].
    #[prost(message, tag = "14")]
    JoinGroup(JoinGroup),
    /// See [`LeaveGroups`].
    #[prost(message, tag = "15")]
    LeaveGroups(LeaveGroups),
    /// See [`PlanGroup`].
    #[prost(message, tag = "16")]
    PlanGroup(PlanGroup),
    /// See [`ReleaseAssignments`].
    #[prost(message, tag = "17")]
    ReleaseAssignments(ReleaseAssignments),
    /// See [`RenewAssignments`].
    #[prost(message, tag = "18")]
    RenewAssignments(RenewAssignments),
}

/// One entry of the metadata log.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Command {
    /// What is done; absent if a later version wrote it.
    #[prost(
        oneof = "Verb",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18"
    )]
    pub verb: Option<Verb>,
}

impl From<Verb> for Command {
    fn from(verb: Verb) -> Self {
        Self { verb: Some(verb) }
    }
}

/// The state right after an entry.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Checkpoint {
    /// Index of the entry.
    #[prost(uint64, tag = "1")]
    pub applied_index: u64,
    /// The nodes by id.
    #[prost(message, repeated, tag = "2")]
    pub nodes: Vec<Node>,
    /// The topics by id.
    #[prost(message, repeated, tag = "3")]
    pub topics: Vec<Topic>,
    /// The topics that were deleted, by id.
    #[prost(message, repeated, tag = "4")]
    pub tombstones: Vec<Tombstone>,
    /// The next incarnation of a node or a replica.
    #[prost(uint64, tag = "5")]
    pub next_incarnation: u64,
    /// The next producer id.
    #[prost(uint64, tag = "6")]
    pub next_producer_id: u64,
    /// Directories of nodes that have left.
    #[prost(message, repeated, tag = "7")]
    pub gone: Vec<Id>,
    /// The groups by id.
    #[prost(message, repeated, tag = "8")]
    pub groups: Vec<Group>,
}
