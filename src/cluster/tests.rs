//! The metadata's state: what commands do, refuse and keep.

use std::collections::BTreeSet;

use super::command::{
    AddPartitions, AllocateProducerIds, CreateTopic, DeleteTopic, FinishMove, Id, MovePartition,
    Node, NodeState, Placement, RegisterNode, RemoveNode, ReplaceReplica, SetNodeState, Topic,
    TopicConfig, Verb, log_of, topic_of,
};
use super::error::Refusal;
use super::placement;
use super::state::{FOUNDING_INCARNATION, Given, State};
use crate::types::{NodeId, ReplicaId};

/// A state with the index of its next entry.
struct Log(State);

impl Log {
    fn new() -> Self {
        Self(State::starting_after(1))
    }

    /// A cluster of founders on these racks.
    fn of_nodes(racks: &[&str]) -> Self {
        let mut log = Self::new();
        for (n, rack) in racks.iter().enumerate() {
            let node = Node { rack: (*rack).to_owned(), ..node(n as u64 + 1, 100 + n as u64) };
            log.follow(register(node, true)).unwrap();
        }
        log
    }

    fn follow(&mut self, verb: Verb) -> Result<Given, Refusal> {
        let index = self.0.applied_index() + 1;
        self.0.apply(index, &verb.into()).expect("a known verb")
    }

    fn create(&mut self, id: Id, name: &str, nodes: &[&[u64]]) -> Result<Given, Refusal> {
        let placement = |nodes: &&[u64]| Placement { nodes: nodes.to_vec() };
        let partitions = nodes.iter().map(placement).collect();
        let (name, config) = (name.to_owned(), TopicConfig::default());
        self.follow(Verb::CreateTopic(CreateTopic { id, name, config, partitions }))
    }

    fn topic(&self, id: Id) -> &Topic {
        self.0.topic(id).unwrap()
    }
}

fn directory(n: u64) -> Id {
    Id { high: 0, low: n }
}

fn topic_id(n: u64) -> Id {
    Id { high: n, low: 1 << 32 }
}

fn node(id: u64, directory_number: u64) -> Node {
    Node { id, directory: directory(directory_number), ..Node::default() }
}

fn register(node: Node, is_founder: bool) -> Verb {
    Verb::RegisterNode(RegisterNode { node, is_founder, replaces: None })
}

fn nodes_of(replicas: &[u64]) -> Vec<u64> {
    replicas.iter().map(|id| ReplicaId(*id).node().0).collect()
}

#[test]
fn a_node_is_one_directory_until_another_one_takes_its_place() {
    let mut log = Log::of_nodes(&["", "", ""]);
    assert_eq!(log.follow(register(node(1, 100), true)), Ok(FOUNDING_INCARNATION), "again");
    assert_eq!(log.follow(register(node(1, 7), false)), Err(Refusal::NodeInUse(1)));
    assert_eq!(log.follow(register(node(1, 7), true)), Err(Refusal::NodeInUse(1)));
    let joined = log.follow(register(node(4, 9), false)).unwrap();
    assert!(joined > FOUNDING_INCARNATION);

    log.create(topic_id(1), "t", &[&[1, 2, 3], &[2, 3, 4]]).unwrap();
    let before = log.topic(topic_id(1)).clone();
    let replaces = Some(directory(100));
    let new = RegisterNode { node: node(1, 7), is_founder: false, replaces };
    let incarnation = log.follow(Verb::RegisterNode(new)).unwrap();
    assert!(incarnation > joined, "incarnations are given out once");
    let topic = log.topic(topic_id(1));
    assert_eq!(topic.partitions[1], before.partitions[1], "it was not there");
    let partition = &topic.partitions[0];
    assert_eq!(partition.replicas, before.partitions[0].replicas);
    assert_eq!(nodes_of(&partition.target), [1, 2, 3]);
    assert_eq!(partition.target[1..], partition.replicas[1..], "the others stay who they are");
    let wanted = partition.replica_on(NodeId(1)).unwrap();
    assert!(wanted.0 == partition.target[0] && wanted.0 != partition.replicas[0]);
    assert!(!partition.founders.contains(&wanted.0), "it has to be brought up");
}

#[test]
fn a_topics_id_and_its_logs_are_never_used_again() {
    let mut log = Log::of_nodes(&["", "", ""]);
    log.create(topic_id(1), "t", &[&[1, 2, 3]]).unwrap();
    assert_eq!(
        log.create(topic_id(2), "t", &[&[1]]),
        Err(Refusal::TopicExists("t".into())),
        "of that name"
    );
    log.follow(Verb::DeleteTopic(DeleteTopic { id: topic_id(1) })).unwrap();
    assert!(log.0.is_deleted(topic_id(1)) && log.0.topic_named("t").is_none());
    assert!(log.create(topic_id(1), "u", &[&[1]]).is_err(), "of that id");
    log.create(topic_id(2), "t", &[&[1]]).unwrap();
    assert!(!log.0.is_deleted(topic_id(2)));
    let again = log.follow(Verb::DeleteTopic(DeleteTopic { id: topic_id(1) }));
    assert!(matches!(again, Err(Refusal::UnknownTopic(_))));
}

#[test]
fn logs_tell_their_topic_and_partition() {
    for partition in [0, 1, 9_999] {
        let log = log_of(topic_id(5), partition);
        assert_eq!(topic_of(log), Some((topic_id(5), partition)));
    }
    assert_ne!(log_of(topic_id(5), 0), log_of(topic_id(5), 1));
}

#[test]
fn bad_placements_are_refused() {
    let mut log = Log::of_nodes(&["", ""]);
    assert_eq!(log.create(topic_id(1), "t", &[&[1, 3]]), Err(Refusal::UnknownNode(3)));
    assert!(matches!(log.create(topic_id(1), "t", &[&[1, 1]]), Err(Refusal::Invalid(_))));
    assert!(matches!(log.create(topic_id(1), "t", &[&[]]), Err(Refusal::Invalid(_))));
    assert!(matches!(log.create(topic_id(1), "t", &[]), Err(Refusal::Invalid(_))));
    let odd = Id { high: 1, low: 1 };
    assert!(matches!(log.create(odd, "t", &[&[1]]), Err(Refusal::Invalid(_))));
    log.create(topic_id(1), "t", &[&[1]]).unwrap();
    let partitions = vec![Placement { nodes: vec![2] }];
    let stale = AddPartitions { id: topic_id(1), from: 2, partitions: partitions.clone() };
    assert_eq!(log.follow(Verb::AddPartitions(stale)), Err(Refusal::Stale));
    let add = AddPartitions { id: topic_id(1), from: 1, partitions };
    log.follow(Verb::AddPartitions(add)).unwrap();
    assert_eq!(log.0.partitions(), 2);
}

#[test]
fn a_move_ends_with_its_target_and_a_replica_that_comes_back_is_another_one() {
    let mut log = Log::of_nodes(&["", "", "", ""]);
    let id = topic_id(1);
    log.create(id, "t", &[&[1, 2, 3]]).unwrap();
    let first = log.topic(id).partitions[0].replicas.clone();
    let to = |nodes: &[u64], replicas: &[u64]| {
        let (nodes, replicas) = (nodes.to_vec(), replicas.to_vec());
        Verb::MovePartition(MovePartition { id, partition: 0, replicas, nodes })
    };
    assert_eq!(log.follow(to(&[2, 3, 4], &[1])), Err(Refusal::Stale));
    log.follow(to(&[2, 3, 4], &first)).unwrap();
    assert_eq!(log.follow(to(&[1], &first)), Err(Refusal::MovePending));
    let target = log.topic(id).partitions[0].target.clone();
    assert_eq!(target[..2], first[1..], "those that stay keep their ids");
    let finish =
        |target: &[u64]| Verb::FinishMove(FinishMove { id, partition: 0, target: target.to_vec() });
    assert_eq!(log.follow(finish(&first)), Err(Refusal::Stale));
    log.follow(finish(&target)).unwrap();
    assert_eq!(log.topic(id).partitions[0].replicas, target);

    log.follow(to(&[1, 2, 3], &target)).unwrap();
    let back = log.topic(id).partitions[0].target.clone();
    assert_eq!(nodes_of(&back), [1, 2, 3]);
    assert_ne!(back[0], first[0], "its log was deleted, and its votes with it");
}

#[test]
fn a_lost_replica_gets_a_successor_once() {
    let mut log = Log::of_nodes(&["", "", ""]);
    let id = topic_id(1);
    log.create(id, "t", &[&[1, 2, 3]]).unwrap();
    let lost = log.topic(id).partitions[0].replicas[1];
    let replace = Verb::ReplaceReplica(ReplaceReplica { id, partition: 0, replica: lost });
    let new = log.follow(replace.clone()).unwrap();
    assert_eq!(log.topic(id).partitions[0].replica_on(NodeId(2)), Some(ReplicaId(new)));
    assert_eq!(log.follow(replace), Err(Refusal::Stale));
}

#[test]
fn a_node_leaves_when_it_has_nothing_any_more_and_does_not_come_back_as_it_was() {
    let mut log = Log::of_nodes(&["", "", ""]);
    log.create(topic_id(1), "t", &[&[1]]).unwrap();
    let remove = |node| Verb::RemoveNode(RemoveNode { node });
    assert_eq!(log.follow(remove(1)), Err(Refusal::Stale), "nobody asked it to");
    for node in [1, 2] {
        let state = NodeState::Decommissioning.into();
        log.follow(Verb::SetNodeState(SetNodeState { node, state })).unwrap();
    }
    assert_eq!(log.follow(remove(1)), Err(Refusal::NodeHasReplicas(1)));
    log.follow(remove(2)).unwrap();
    assert!(log.0.node(NodeId(2)).is_none());
    assert!(matches!(log.follow(register(node(2, 101), true)), Err(Refusal::Invalid(_))));
    assert!(log.follow(register(node(2, 55), false)).unwrap() > FOUNDING_INCARNATION);
}

#[test]
fn producer_ids_are_given_out_once() {
    let mut log = Log::new();
    let allocate = Verb::AllocateProducerIds(AllocateProducerIds { count: 10 });
    let first = log.follow(allocate.clone()).unwrap();
    assert!(first > 0, "0 stands for none");
    assert_eq!(log.follow(allocate), Ok(first + 10));
}

#[test]
fn a_state_comes_back_from_its_checkpoint_and_nothing_else_does() {
    let mut log = Log::of_nodes(&["a", "b", "c"]);
    log.create(topic_id(1), "t", &[&[1, 2, 3], &[2, 3, 1]]).unwrap();
    log.create(topic_id(2), "u", &[&[3]]).unwrap();
    log.follow(Verb::DeleteTopic(DeleteTopic { id: topic_id(2) })).unwrap();
    let bytes = log.0.checkpoint();
    assert_eq!(State::from_checkpoint(&bytes).unwrap(), log.0);
    assert!(State::from_checkpoint(b"").is_err());
    assert!(State::from_checkpoint(b"\xff\xff\xff").is_err());
}

#[test]
fn replicas_are_spread_over_racks_and_nodes_and_so_is_leading() {
    let log = Log::of_nodes(&["a", "a", "b", "b", "c", "c"]);
    let placed = placement::place(&log.0, 12, 3).unwrap();
    let mut replicas = [0; 7];
    let mut preferred = [0; 7];
    for placement in &placed {
        let racks: BTreeSet<_> =
            placement.nodes.iter().map(|id| &log.0.node(NodeId(*id)).unwrap().rack).collect();
        assert_eq!(racks.len(), 3, "{:?} share a rack", placement.nodes);
        placement.nodes.iter().for_each(|node| replicas[*node as usize] += 1);
        preferred[placement.nodes[0] as usize] += 1;
    }
    assert_eq!(replicas[1..], [6; 6]);
    assert_eq!(preferred[1..], [2; 6]);
    assert!(placement::place(&log.0, 1, 7).is_err());
}

#[test]
fn a_node_that_leaves_gives_its_replica_to_one_that_has_none() {
    let mut log = Log::of_nodes(&["", "", "", ""]);
    log.create(topic_id(1), "t", &[&[1, 2, 3]]).unwrap();
    let state = NodeState::Decommissioning.into();
    log.follow(Verb::SetNodeState(SetNodeState { node: 2, state })).unwrap();
    let partition = &log.topic(topic_id(1)).partitions[0];
    let nodes = placement::without(&log.0, partition, 2).unwrap();
    assert_eq!(nodes, [1, 3, 4]);
    log.follow(Verb::SetNodeState(SetNodeState { node: 4, state })).unwrap();
    assert!(placement::without(&log.0, &log.topic(topic_id(1)).partitions[0], 2).is_err());
}
