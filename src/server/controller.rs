//! The controller: what the metadata's leader does for the cluster.
//!
//! * Every registered node gets a replica of the metadata; up to five of them vote.
//! * Replicas go off a node that is to leave; once it has none, it is taken out.
//! * On a node that drains, somebody else leads the metadata.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::bootstrap::VOTERS_MAX;
use super::mover::may_lead;
use crate::cluster::command::{MovePartition, NodeState, RemoveNode, Verb};
use crate::cluster::{FOUNDING_INCARNATION, Node, State, placement};
use crate::raft::{Inspection, Operation, Role};
use crate::rpc::Context;
use crate::types::ReplicaId;

const STEP_EVERY: Duration = Duration::from_millis(250);
/// Partitions that are being moved at a time because their node leaves.
const MOVES_AT_ONCE_MAX: usize = 16;
const CAUGHT_UP_ENTRIES: u64 = 64;
const DEADLINE: Duration = Duration::from_secs(5);

/// Controls for ever, whenever this node leads the metadata.
pub(super) async fn control(context: Context) {
    let (node, proposer) = (context.node().clone(), context.proposer());
    let mut ticks = interval(STEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !node.leads_metadata() {
            continue;
        }
        let Some(group) = node.inspect_metadata().await else { continue };
        if group.role != Role::Leader {
            continue;
        }
        let state = node.state();
        if let Some(operations) = next_operations(&state, &group) {
            tracing::info!(?operations, "the metadata's replicas change");
            if let Ok(begun) = node.metadata_host().change(node.metadata_log(), operations) {
                // Looked at again with the next step.
                let _ = begun.await;
            }
        }
        if !may_lead_metadata(&state, &node) {
            hand_over(&node, &group);
        }
        if let Some(verb) = next_command(&state, &group)
            && let Err(error) = proposer.propose(verb, Instant::now() + DEADLINE).await
        {
            tracing::warn!(%error, "a node cannot leave yet");
        }
    }
}

fn may_lead_metadata(state: &State, node: &Node) -> bool {
    state.node(node.id()).is_none_or(|own| own.state() == NodeState::Active)
}

/// Gives the leadership of the metadata to a voter on another node that may lead.
pub(super) fn hand_over(node: &Node, group: &Inspection) {
    let able = group.followers.iter().filter(|follower| {
        let is_voter = group.membership.voters.contains(&follower.replica);
        is_voter && may_lead(node, follower.replica.node())
    });
    if let Some(to) = able.max_by_key(|follower| follower.matched) {
        // Tried again as long as it is wanted.
        let _ = node.metadata_host().transfer(node.metadata_log(), to.replica);
    }
}

/// The change that brings the metadata's replicas nearer to one on each node.
fn next_operations(state: &State, group: &Inspection) -> Option<Vec<Operation>> {
    let membership = &group.membership;
    if membership.is_joint() {
        return None;
    }
    let stays = |node: &&crate::cluster::command::Node| {
        node.state() != NodeState::Decommissioning || has_replicas(state, node.id)
    };
    let wanted: BTreeSet<_> =
        state.nodes().filter(stays).map(crate::cluster::command::Node::metadata_replica).collect();
    if let Some(new) = wanted.iter().find(|id| !membership.contains(**id)) {
        return Some(vec![Operation::Learner(*new)]);
    }
    // A founder that has not registered yet is no stranger.
    let is_known = |id: &ReplicaId| {
        let is_founder = *id == ReplicaId::new(id.node(), FOUNDING_INCARNATION);
        wanted.contains(id) || (is_founder && state.node(id.node()).is_none())
    };
    if let Some(stray) = membership.learners.iter().find(|id| !is_known(id)) {
        return Some(vec![Operation::Remove(*stray)]);
    }
    let gone = membership.voters.iter().find(|id| !is_known(id)).copied();
    let stay = membership.voters.iter().filter(|id| is_known(id)).count();
    let ready = group.followers.iter().find(|follower| {
        let is_learner = membership.learners.contains(&follower.replica);
        is_learner && follower.matched + CAUGHT_UP_ENTRIES >= group.committed
    });
    // An even number of voters bears no more failures than the odd one below it.
    let voters_wanted = match wanted.len().min(VOTERS_MAX) {
        even if even > 0 && even % 2 == 0 => even - 1,
        odd => odd,
    };
    let come = ready.filter(|_| stay < voters_wanted).map(|f| Operation::Voter(f.replica));
    let is_safe = stay > 0 || come.is_some();
    let go = gone.filter(|_| is_safe).map(Operation::Remove);
    let operations: Vec<_> = come.into_iter().chain(go).collect();
    (!operations.is_empty()).then_some(operations)
}

fn has_replicas(state: &State, node: u64) -> bool {
    let mut partitions = state.topics().flat_map(|topic| &topic.partitions);
    partitions.any(|partition| partition.all_replicas().any(|id| id.node().0 == node))
}

/// The command that brings a node nearer to leaving.
fn next_command(state: &State, group: &Inspection) -> Option<Verb> {
    let is_leaving =
        |node: &&crate::cluster::command::Node| node.state() == NodeState::Decommissioning;
    for node in state.nodes().filter(is_leaving) {
        if let Some(verb) = next_move(state, node.id) {
            return Some(verb);
        }
        let is_out = !group.membership.contains(node.metadata_replica());
        if is_out && !has_replicas(state, node.id) {
            return Some(Verb::RemoveNode(RemoveNode { node: node.id }));
        }
    }
    None
}

/// The next partition that is to leave a node.
fn next_move(state: &State, node: u64) -> Option<Verb> {
    let partitions = || state.topics().flat_map(|topic| &topic.partitions);
    let moving = partitions().filter(|partition| !partition.target.is_empty()).count();
    if moving >= MOVES_AT_ONCE_MAX {
        return None;
    }
    for topic in state.topics() {
        for (n, partition) in topic.partitions.iter().enumerate() {
            let mut replicas = partition.replicas.iter();
            let is_there = replicas.any(|id| ReplicaId(*id).node().0 == node);
            if !is_there || !partition.target.is_empty() {
                continue;
            }
            let Ok(nodes) = placement::without(state, partition, node) else { continue };
            let (id, n, replicas) = (topic.id, n as u32, partition.replicas.clone());
            return Some(Verb::MovePartition(MovePartition { id, partition: n, replicas, nodes }));
        }
    }
    None
}
