//! Leaders: who leads what, as nodes tell each other.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use crate::types::{LogId, NodeId};

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The node.
    pub node: NodeId,
    /// The term in which it leads.
    pub term: u64,
}

/// Who leads what. Only a hint: Raft decides.
///
/// * For each log, the leader of the highest term that was heard of.
#[derive(Debug, Default)]
pub struct Leaders {
    by_log: RwLock<HashMap<LogId, Leader>>,
}

impl Leaders {
    /// The leader of a log, as far as is known.
    pub fn get(&self, log: LogId) -> Option<Leader> {
        self.by_log.read().expect("nobody panics with the lock").get(&log).copied()
    }

    /// Takes note of leaders, all on one node.
    pub fn learn(&self, node: NodeId, led: impl IntoIterator<Item = (LogId, u64)>) {
        let mut by_log = self.by_log.write().expect("nobody panics with the lock");
        for (log, term) in led {
            let known = by_log.entry(log).or_insert(Leader { node, term });
            if known.term <= term {
                *known = Leader { node, term };
            }
        }
    }

    /// Forgets that `node` leads anything.
    pub fn forget_node(&self, node: NodeId) {
        let mut by_log = self.by_log.write().expect("nobody panics with the lock");
        by_log.retain(|_, leader| leader.node != node);
    }

    /// Forgets logs that are gone.
    pub fn retain(&self, is_there: impl Fn(LogId) -> bool) {
        let mut by_log = self.by_log.write().expect("nobody panics with the lock");
        by_log.retain(|log, _| is_there(*log));
    }

    /// How many logs each node leads.
    pub fn counts(&self) -> HashMap<NodeId, usize> {
        let by_log = self.by_log.read().expect("nobody panics with the lock");
        let mut counts = HashMap::new();
        by_log.values().for_each(|leader| *counts.entry(leader.node).or_default() += 1);
        counts
    }
}

/// When each node was last heard.
///
/// * A node that was never heard counts from when this began to listen, so that nobody is taken for
///   dead by someone who has just come.
#[derive(Debug)]
pub struct Heard {
    since: Instant,
    by_node: RwLock<HashMap<NodeId, (u64, Instant)>>,
    /// Where nodes said they are, of which the metadata here says nothing yet.
    addresses: RwLock<HashMap<NodeId, String>>,
}

/// Addresses of nodes that the metadata does not know, at most.
const ADDRESSES_MAX: usize = 64;

impl Default for Heard {
    fn default() -> Self {
        Self { since: Instant::now(), by_node: RwLock::default(), addresses: RwLock::default() }
    }
}

impl Heard {
    /// Takes note of a sign of life. True if this incarnation of the node was not heard before.
    pub fn hear(&self, node: NodeId, incarnation: u64, has_told_all: bool) -> bool {
        let mut by_node = self.by_node.write().expect("nobody panics with the lock");
        let is_known = by_node.get(&node).is_some_and(|(known, _)| *known == incarnation);
        if is_known || has_told_all {
            by_node.insert(node, (incarnation, Instant::now()));
        }
        !is_known
    }

    /// Forgets a node that has said it stops.
    pub fn forget(&self, node: NodeId) {
        self.by_node.write().expect("nobody panics with the lock").remove(&node);
    }

    /// Takes note of where a node says that it is.
    pub fn note_address(&self, node: NodeId, address: &str) {
        let mut addresses = self.addresses.write().expect("nobody panics with the lock");
        if addresses.len() < ADDRESSES_MAX || addresses.contains_key(&node) {
            addresses.insert(node, address.to_owned());
        }
    }

    /// Where a node said that it is.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.read().expect("nobody panics with the lock").get(&node).cloned()
    }

    /// How long this incarnation of a node has been silent.
    pub fn silence(&self, node: NodeId, incarnation: u64) -> Duration {
        let by_node = self.by_node.read().expect("nobody panics with the lock");
        let heard = by_node.get(&node).filter(|(known, _)| *known == incarnation);
        heard.map_or(self.since, |(_, at)| *at).elapsed()
    }

    /// True if the node was heard within `limit`.
    pub fn is_alive(&self, node: NodeId, limit: Duration) -> bool {
        let by_node = self.by_node.read().expect("nobody panics with the lock");
        by_node.get(&node).is_some_and(|(_, at)| at.elapsed() < limit)
    }
}
