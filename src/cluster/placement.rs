//! Placement: which nodes get the replicas of new partitions, and where replicas of a node that
//! leaves go. Pure functions of the metadata.
//!
//! The rules, the strongest first: replicas of one partition are on different nodes; they are on
//! different racks as far as there are racks; nodes have about equally many replicas; nodes are
//! about equally often the preferred leader.

use std::collections::BTreeMap;

use super::command::{NodeState, Partition, Placement};
use super::state::State;
use crate::types::ReplicaId;

/// Why nothing was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{replicas} replicas need as many nodes, there are {nodes} that take replicas")]
pub struct TooFewNodes {
    /// Replicas of a partition.
    pub replicas: usize,
    /// Nodes that take replicas.
    pub nodes: usize,
}

/// How much a node has to do.
#[derive(Debug, Clone, Default)]
struct Load {
    rack: String,
    replicas: usize,
    preferred: usize,
}

/// The nodes that take replicas, with what they have to do.
#[derive(Debug, Clone)]
struct Loads(BTreeMap<u64, Load>);

impl Loads {
    fn of(state: &State) -> Self {
        let takes = |state: NodeState| state != NodeState::Decommissioning;
        let nodes = state.nodes().filter(|node| takes(node.state()));
        let load = |rack: &String| Load { rack: rack.clone(), ..Load::default() };
        let mut loads = Self(nodes.map(|node| (node.id, load(&node.rack))).collect());
        for partition in state.topics().flat_map(|topic| &topic.partitions) {
            let is_moving = !partition.target.is_empty();
            let wanted = if is_moving { &partition.target } else { &partition.replicas };
            let nodes: Vec<_> = wanted.iter().map(|id| ReplicaId(*id).node().0).collect();
            loads.count(&nodes);
        }
        loads
    }

    fn count(&mut self, nodes: &[u64]) {
        for (n, node) in nodes.iter().enumerate() {
            if let Some(load) = self.0.get_mut(node) {
                load.replicas += 1;
                load.preferred += usize::from(n == 0);
            }
        }
    }

    /// Adds nodes to `chosen` until there are `replicas` of them.
    fn choose(&self, chosen: &mut Vec<u64>, replicas: usize) {
        while chosen.len() < replicas {
            let racks: Vec<_> = chosen.iter().filter_map(|node| self.rack(*node)).collect();
            let is_free = |node: &&u64| !chosen.contains(node);
            let cost = |node: &&u64| {
                let load = &self.0[*node];
                let shares_rack = !load.rack.is_empty() && racks.contains(&load.rack.as_str());
                (shares_rack, load.replicas, load.preferred, **node)
            };
            let best = self.0.keys().filter(is_free).min_by_key(cost).copied();
            chosen.push(best.expect("there are as many nodes as replicas"));
        }
    }

    fn rack(&self, node: u64) -> Option<&str> {
        self.0.get(&node).map(|load| load.rack.as_str())
    }

    /// Puts the node first that is the preferred leader of the fewest partitions.
    fn prefer(&self, chosen: &mut [u64]) {
        let preferred = |node: &u64| self.0.get(node).map_or(usize::MAX, |load| load.preferred);
        chosen.sort_by_key(|node| (preferred(node), *node));
    }
}

/// Places `partitions` new partitions of `replicas` replicas each.
///
/// # Errors
/// [`TooFewNodes`].
pub fn place(
    state: &State,
    partitions: usize,
    replicas: usize,
) -> Result<Vec<Placement>, TooFewNodes> {
    let mut loads = Loads::of(state);
    if loads.0.len() < replicas {
        return Err(TooFewNodes { replicas, nodes: loads.0.len() });
    }
    let mut placements = Vec::with_capacity(partitions);
    for _ in 0..partitions {
        let mut nodes = Vec::with_capacity(replicas);
        loads.choose(&mut nodes, replicas);
        loads.prefer(&mut nodes);
        loads.count(&nodes);
        placements.push(Placement { nodes });
    }
    Ok(placements)
}

/// The nodes of a partition once `leaving` has given up its replica there: the others keep theirs.
///
/// # Errors
/// [`TooFewNodes`].
pub fn without(
    state: &State,
    partition: &Partition,
    leaving: u64,
) -> Result<Vec<u64>, TooFewNodes> {
    let loads = Loads::of(state);
    let nodes = partition.replicas.iter().map(|id| ReplicaId(*id).node().0);
    let mut kept: Vec<_> = nodes.filter(|node| *node != leaving).collect();
    let has_others = loads.0.keys().any(|node| !kept.contains(node) && *node != leaving);
    let replicas = partition.replicas.len();
    if kept.len() < replicas && !has_others {
        return Err(TooFewNodes { replicas, nodes: loads.0.len() });
    }
    loads.choose(&mut kept, replicas);
    Ok(kept)
}
