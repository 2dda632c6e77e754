//! Leaders: who leads what, as nodes tell each other.

use std::collections::HashMap;
use std::sync::RwLock;

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
