//! The metadata's state, and what each command does to it. Pure: a function of the log.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;

use super::command::{
    AddPartitions, AlterTopic, Checkpoint, Command, CreateTopic, FinishMove, Id, MovePartition,
    Node, NodeState, Partition, Placement, RegisterNode, ReplaceReplica, SetNodeState, Tombstone,
    Topic, Verb,
};
use super::error::Refusal;
use super::group::{Group, Groups};
use crate::types::{NodeId, ReplicaId};

/// Incarnation of the nodes that founded the cluster.
pub const FOUNDING_INCARNATION: u64 = 1;
/// Partitions that a cluster may have.
pub const PARTITIONS_MAX: usize = 100_000;
/// Partitions that a topic may have.
pub const TOPIC_PARTITIONS_MAX: usize = 10_000;
/// Replicas that a partition may have.
pub const REPLICAS_MAX: usize = 7;
/// Nodes that a cluster may have.
pub const NODES_MAX: usize = 128;

/// Everything that the cluster has agreed on, up to and including one entry.
///
/// * Equal on all nodes at the same applied index.
/// * Incarnations and producer ids are given out once.
/// * The replicas of a partition are on different nodes, and so are those of its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    applied_index: u64,
    nodes: BTreeMap<u64, Node>,
    topics: BTreeMap<Id, Topic>,
    by_name: BTreeMap<String, Id>,
    tombstones: BTreeMap<Id, u32>,
    /// Directories of nodes that have left: what they promised in other groups is forgotten.
    gone: BTreeSet<Id>,
    groups: Groups,
    next_incarnation: u64,
    next_producer_id: u64,
}

/// What a command gave: an incarnation, a first producer id, a session, a generation, or nothing.
pub type Given = u64;

impl State {
    /// The state of a log that begins after entry `index`.
    pub fn starting_after(index: u64) -> Self {
        Self {
            applied_index: index,
            nodes: BTreeMap::new(),
            topics: BTreeMap::new(),
            by_name: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            gone: BTreeSet::new(),
            groups: Groups::default(),
            next_incarnation: FOUNDING_INCARNATION + 1,
            next_producer_id: 1,
        }
    }

    /// Index of the last entry that was applied.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The nodes by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node.0)
    }

    /// The topics by id.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.topics.values()
    }

    /// The topic with this id.
    pub fn topic(&self, id: Id) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// The topic with this name.
    pub fn topic_named(&self, name: &str) -> Option<&Topic> {
        self.by_name.get(name).map(|id| &self.topics[id])
    }

    /// The topics whose names are `from` or come after it, by name.
    pub fn topics_from(&self, from: &str) -> impl Iterator<Item = &Topic> {
        let names = self
            .by_name
            .range::<str, _>((std::ops::Bound::Included(from), std::ops::Bound::Unbounded));
        names.map(|(_, id)| &self.topics[id])
    }

    /// True if the topic was there and was deleted.
    pub fn is_deleted(&self, topic: Id) -> bool {
        self.tombstones.contains_key(&topic)
    }

    /// The consumer groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Partitions of all topics.
    pub fn partitions(&self) -> usize {
        self.topics.values().map(|topic| topic.partitions.len()).sum()
    }

    /// Passes over an entry that is no command.
    pub fn skip(&mut self, index: u64) {
        assert!(index == self.applied_index + 1, "{index} does not follow {}", self.applied_index);
        self.applied_index = index;
    }

    /// Applies a command, the entry at `index`. `None` if this version does not know it.
    ///
    /// # Panics
    /// If the entry does not follow the last one.
    pub fn apply(&mut self, index: u64, command: &Command) -> Option<Result<Given, Refusal>> {
        let verb = command.verb.as_ref()?;
        self.skip(index);
        Some(match verb {
            Verb::RegisterNode(register) => self.register(register),
            Verb::SetNodeState(set) => self.set_node_state(*set),
            Verb::RemoveNode(remove) => self.remove_node(remove.node),
            Verb::CreateTopic(create) => self.create_topic(create),
            Verb::AlterTopic(alter) => self.alter_topic(*alter),
            Verb::AddPartitions(add) => self.add_partitions(add),
            Verb::DeleteTopic(delete) => self.delete_topic(delete.id),
            Verb::MovePartition(r#move) => self.move_partition(r#move),
            Verb::ReplaceReplica(replace) => self.replace_replica(*replace),
            Verb::FinishMove(finish) => self.finish_move(finish),
            Verb::AllocateProducerIds(allocate) => {
                let first = self.next_producer_id;
                self.next_producer_id = first.saturating_add(allocate.count);
                Ok(first)
            }
            Verb::CreateGroup(create) => self.groups.create(create),
            Verb::DeleteGroup(delete) => self.groups.delete(*delete),
            Verb::JoinGroup(join) => self.groups.join(join),
            Verb::LeaveGroups(leave) => self.groups.leave(leave),
            Verb::PlanGroup(plan) => self.groups.plan(plan),
            Verb::ReleaseAssignments(release) => self.groups.release(release),
            Verb::RenewAssignments(renew) => self.groups.renew(renew),
        })
    }

    fn take_incarnation(&mut self) -> u64 {
        self.next_incarnation += 1;
        self.next_incarnation - 1
    }

    fn register(&mut self, register: &RegisterNode) -> Result<Given, Refusal> {
        let RegisterNode { node: told, is_founder, replaces } = register;
        if !(1..=NodeId::MAX).contains(&told.id) {
            return Err(Refusal::Invalid(format!("a node's id is 1 to {}", NodeId::MAX)));
        }
        if self.gone.contains(&told.directory) {
            let text = "this directory was that of a node that has left; use an empty one";
            return Err(Refusal::Invalid(text.to_owned()));
        }
        let known = self.nodes.get(&told.id);
        let is_same = known.is_some_and(|known| known.directory == told.directory);
        let is_replaced = known.is_some_and(|known| *replaces == Some(known.directory));
        if known.is_some() && !is_same && !is_replaced {
            return Err(Refusal::NodeInUse(told.id));
        }
        if known.is_none() && self.nodes.len() >= NODES_MAX {
            return Err(Refusal::LimitReached(NODES_MAX as u64));
        }
        let (incarnation, state) = match known {
            Some(known) if is_same => (known.incarnation, known.state),
            Some(known) => {
                let state = known.state;
                (self.take_incarnation(), state)
            }
            None if *is_founder => (FOUNDING_INCARNATION, NodeState::Active as i32),
            None => (self.take_incarnation(), NodeState::Active as i32),
        };
        self.nodes.insert(told.id, Node { incarnation, state, ..told.clone() });
        if is_replaced {
            self.replace_all_on(NodeId(told.id));
        }
        Ok(incarnation)
    }

    /// Gives every replica on a node a new one in its place: the node's disk is gone.
    fn replace_all_on(&mut self, node: NodeId) {
        for topic in self.topics.values_mut() {
            for partition in &mut topic.partitions {
                let is_there = |id: &u64| ReplicaId(*id).node() == node;
                if partition.replicas.iter().chain(&partition.target).any(is_there) {
                    let new = ReplicaId::new(node, self.next_incarnation);
                    self.next_incarnation += 1;
                    retarget(partition, node, new);
                }
            }
        }
    }

    fn set_node_state(&mut self, set: SetNodeState) -> Result<Given, Refusal> {
        let node = self.nodes.get_mut(&set.node).ok_or(Refusal::UnknownNode(set.node))?;
        node.state = set.state().into();
        Ok(0)
    }

    fn remove_node(&mut self, node: u64) -> Result<Given, Refusal> {
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode(node))?;
        if known.state() != NodeState::Decommissioning {
            return Err(Refusal::Stale);
        }
        let mut all = self.topics.values().flat_map(|topic| &topic.partitions);
        if all.any(|partition| partition.all_replicas().any(|id| id.node().0 == node)) {
            return Err(Refusal::NodeHasReplicas(node));
        }
        let removed = self.nodes.remove(&node);
        self.gone.extend(removed.map(|node| node.directory));
        Ok(0)
    }

    /// Makes partitions of new replicas.
    fn found(&mut self, placements: &[Placement]) -> Result<Vec<Partition>, Refusal> {
        let there_are = self.partitions();
        if there_are + placements.len() > PARTITIONS_MAX {
            return Err(Refusal::LimitReached(PARTITIONS_MAX as u64));
        }
        placements.iter().try_for_each(|placement| self.check_nodes(&placement.nodes))?;
        let found = |placement: &Placement| {
            let replicas: Vec<u64> =
                placement.nodes.iter().map(|node| self.new_replica(*node)).collect();
            Partition { founders: replicas.clone(), replicas, target: Vec::new() }
        };
        Ok(placements.iter().map(found).collect())
    }

    fn new_replica(&mut self, node: u64) -> u64 {
        ReplicaId::new(NodeId(node), self.take_incarnation()).0
    }

    fn check_nodes(&self, nodes: &[u64]) -> Result<(), Refusal> {
        if let Some(unknown) = nodes.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Refusal::UnknownNode(*unknown));
        }
        let different: BTreeSet<_> = nodes.iter().collect();
        if different.len() != nodes.len() || nodes.is_empty() || nodes.len() > REPLICAS_MAX {
            let text = format!("a partition has 1 to {REPLICAS_MAX} replicas on different nodes");
            return Err(Refusal::Invalid(text));
        }
        Ok(())
    }

    fn create_topic(&mut self, create: &CreateTopic) -> Result<Given, Refusal> {
        let is_taken = self.by_name.contains_key(&create.name)
            || self.topics.contains_key(&create.id)
            || self.tombstones.contains_key(&create.id);
        if is_taken {
            return Err(Refusal::TopicExists(create.name.clone()));
        }
        let count = create.partitions.len();
        if count == 0 || count > TOPIC_PARTITIONS_MAX || create.id.low as u32 != 0 {
            let text = format!("a topic has 1 to {TOPIC_PARTITIONS_MAX} partitions");
            return Err(Refusal::Invalid(text));
        }
        let partitions = self.found(&create.partitions)?;
        let CreateTopic { id, name, config, .. } = create.clone();
        self.by_name.insert(name.clone(), id);
        self.topics.insert(id, Topic { id, name, config, partitions });
        Ok(0)
    }

    fn alter_topic(&mut self, alter: AlterTopic) -> Result<Given, Refusal> {
        let topic = self.topics.get_mut(&alter.id).ok_or_else(|| unknown(alter.id))?;
        if topic.config.is_memory != alter.config.is_memory {
            return Err(Refusal::Invalid("durability is fixed when a topic is made".into()));
        }
        topic.config = alter.config;
        Ok(0)
    }

    fn add_partitions(&mut self, add: &AddPartitions) -> Result<Given, Refusal> {
        let topic = self.topics.get(&add.id).ok_or_else(|| unknown(add.id))?;
        let there_are = topic.partitions.len();
        if there_are != add.from as usize {
            return Err(Refusal::Stale);
        }
        if there_are + add.partitions.len() > TOPIC_PARTITIONS_MAX {
            return Err(Refusal::LimitReached(TOPIC_PARTITIONS_MAX as u64));
        }
        let partitions = self.found(&add.partitions)?;
        let topic = self.topics.get_mut(&add.id).expect("it was there a moment ago");
        topic.partitions.extend(partitions);
        Ok(0)
    }

    fn delete_topic(&mut self, id: Id) -> Result<Given, Refusal> {
        let topic = self.topics.remove(&id).ok_or_else(|| unknown(id))?;
        self.by_name.remove(&topic.name);
        self.tombstones.insert(id, topic.partitions.len() as u32);
        self.groups.forget_topic(id);
        Ok(0)
    }

    fn partition_mut(&mut self, id: Id, partition: u32) -> Result<&mut Partition, Refusal> {
        let topic = self.topics.get_mut(&id).ok_or_else(|| unknown(id))?;
        let found = topic.partitions.get_mut(partition as usize);
        found.ok_or(Refusal::UnknownPartition(partition.into()))
    }

    fn move_partition(&mut self, r#move: &MovePartition) -> Result<Given, Refusal> {
        self.check_nodes(&r#move.nodes)?;
        let partition = self.partition_mut(r#move.id, r#move.partition)?.clone();
        if partition.replicas != r#move.replicas {
            return Err(Refusal::Stale);
        }
        if !partition.target.is_empty() {
            return Err(Refusal::MovePending);
        }
        let kept = |node: &u64| {
            partition.replicas.iter().copied().find(|id| ReplicaId(*id).node().0 == *node)
        };
        let target: Vec<u64> = r#move
            .nodes
            .iter()
            .map(|node| kept(node).unwrap_or_else(|| self.new_replica(*node)))
            .collect();
        let found = self.partition_mut(r#move.id, r#move.partition)?;
        found.target = if target == found.replicas { Vec::new() } else { target };
        Ok(0)
    }

    fn replace_replica(&mut self, replace: ReplaceReplica) -> Result<Given, Refusal> {
        let partition = self.partition_mut(replace.id, replace.partition)?.clone();
        let lost = ReplicaId(replace.replica);
        if partition.replica_on(lost.node()) != Some(lost) {
            return Err(Refusal::Stale);
        }
        let new = ReplicaId(self.new_replica(lost.node().0));
        retarget(self.partition_mut(replace.id, replace.partition)?, lost.node(), new);
        Ok(new.0)
    }

    fn finish_move(&mut self, finish: &FinishMove) -> Result<Given, Refusal> {
        let partition = self.partition_mut(finish.id, finish.partition)?;
        if partition.target != finish.target || finish.target.is_empty() {
            return Err(Refusal::Stale);
        }
        partition.replicas = std::mem::take(&mut partition.target);
        Ok(0)
    }

    /// The state as bytes, equal for equal states.
    pub fn checkpoint(&self) -> Bytes {
        let tombstone =
            |(topic, partitions): (&Id, &u32)| Tombstone { topic: *topic, partitions: *partitions };
        let checkpoint = Checkpoint {
            applied_index: self.applied_index,
            nodes: self.nodes.values().cloned().collect(),
            topics: self.topics.values().cloned().collect(),
            tombstones: self.tombstones.iter().map(tombstone).collect(),
            next_incarnation: self.next_incarnation,
            next_producer_id: self.next_producer_id,
            gone: self.gone.iter().copied().collect(),
            groups: self.groups.iter().map(|group| Group::clone(group)).collect(),
        };
        checkpoint.encode_to_vec().into()
    }

    /// The state that [`Self::checkpoint`] made bytes of.
    ///
    /// # Errors
    /// Says what is wrong with the bytes.
    pub fn from_checkpoint(bytes: &[u8]) -> Result<Self, String> {
        let checkpoint = Checkpoint::decode(bytes).map_err(|error| error.to_string())?;
        if checkpoint.next_incarnation <= FOUNDING_INCARNATION || checkpoint.next_producer_id == 0 {
            return Err("a checkpoint of metadata counts from 1".into());
        }
        let names = checkpoint.topics.iter().map(|topic| (topic.name.clone(), topic.id));
        let tombstones = checkpoint.tombstones.iter();
        Ok(Self {
            applied_index: checkpoint.applied_index,
            by_name: names.collect(),
            tombstones: tombstones.map(|gone| (gone.topic, gone.partitions)).collect(),
            nodes: checkpoint.nodes.into_iter().map(|node| (node.id, node)).collect(),
            topics: checkpoint.topics.into_iter().map(|topic| (topic.id, topic)).collect(),
            gone: checkpoint.gone.into_iter().collect(),
            groups: Groups::of(checkpoint.groups),
            next_incarnation: checkpoint.next_incarnation,
            next_producer_id: checkpoint.next_producer_id,
        })
    }
}

/// Has the replica on `node` replaced by `new`, in what is wanted.
fn retarget(partition: &mut Partition, node: NodeId, new: ReplicaId) {
    let is_moving = !partition.target.is_empty();
    let wanted = if is_moving { &partition.target } else { &partition.replicas };
    let replaced = wanted.iter().map(|id| match ReplicaId(*id).node() == node {
        true => new.0,
        false => *id,
    });
    partition.target = replaced.collect();
    if partition.target == partition.replicas {
        partition.target.clear();
    }
}

fn unknown(id: Id) -> Refusal {
    Refusal::UnknownTopic(id.uuid().to_string())
}
