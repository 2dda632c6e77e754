//! Peers: which other nodes there are, and which of them are alive. Pure bookkeeping.
//!
//! A node is known once a group here has spoken to it or heard from it. From then on it is told
//! every heartbeat that this node is alive, and taken for dead when nothing came from it for an
//! election timeout. What else goes there tells only one of its shards, so it is no greeting.
//!
//! A greeting names the sender's life. One of another life says that the node has started anew in
//! between: what its replicas had promised to do, they may have forgotten.

use std::collections::BTreeMap;

use crate::types::NodeId;

/// The other nodes that a shard knows.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<NodeId, Peer>,
    next_greeting_ms: u64,
}

#[derive(Debug, Default)]
struct Peer {
    /// When something last came from it; `None` before the first time.
    heard_ms: Option<u64>,
    is_dead: bool,
    /// The life that it last greeted from; 0 before the first time.
    life: u64,
    /// It has started anew since the last look.
    is_reborn: bool,
}

impl Peers {
    /// Notes that something came from `node`.
    pub(super) fn heard(&mut self, node: NodeId, now_ms: u64) {
        let peer = self.known.entry(node).or_default();
        (peer.heard_ms, peer.is_dead) = (Some(now_ms), false);
    }

    /// Notes a greeting of `node` from this life.
    pub(super) fn greeted(&mut self, node: NodeId, life: u64) {
        let peer = self.known.entry(node).or_default();
        peer.is_reborn |= peer.life != life && peer.life != 0;
        peer.life = life;
    }

    /// Notes that something goes to `node`.
    pub(super) fn said_to(&mut self, node: NodeId) {
        self.known.entry(node).or_default();
    }

    /// Nodes that are to be told that this one is alive.
    pub(super) fn due_greetings(&mut self, now_ms: u64, every_ms: u64) -> Vec<NodeId> {
        if now_ms < self.next_greeting_ms {
            return Vec::new();
        }
        self.next_greeting_ms = now_ms + every_ms;
        self.known.keys().copied().collect()
    }

    /// Nodes that nothing came from for `timeout_ms`, or that have started anew. Each is reported
    /// once.
    pub(super) fn newly_dead(&mut self, now_ms: u64, timeout_ms: u64) -> Vec<NodeId> {
        let mut dead = Vec::new();
        for (node, peer) in &mut self.known {
            let is_silent = peer.heard_ms.is_none_or(|heard| heard + timeout_ms < now_ms);
            let is_newly_silent = is_silent && !std::mem::replace(&mut peer.is_dead, is_silent);
            if std::mem::take(&mut peer.is_reborn) || is_newly_silent {
                dead.push(*node);
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_is_dead_once_and_alive_again_when_it_is_heard() {
        let mut peers = Peers::default();
        peers.heard(NodeId(2), 0);
        assert_eq!(peers.newly_dead(100, 100), []);
        assert_eq!(peers.newly_dead(101, 100), [NodeId(2)]);
        assert_eq!(peers.newly_dead(500, 100), []);
        peers.heard(NodeId(2), 600);
        assert_eq!(peers.newly_dead(650, 100), []);
        assert_eq!(peers.newly_dead(701, 100), [NodeId(2)]);
    }

    #[test]
    fn a_node_that_started_anew_counts_as_dead_once() {
        let mut peers = Peers::default();
        peers.heard(NodeId(2), 0);
        peers.greeted(NodeId(2), 7);
        assert_eq!(peers.newly_dead(1, 100), []);
        peers.greeted(NodeId(2), 8);
        assert_eq!(peers.newly_dead(2, 100), [NodeId(2)]);
        assert_eq!(peers.newly_dead(3, 100), []);
    }

    #[test]
    fn every_known_node_is_greeted_once_a_heartbeat() {
        let mut peers = Peers::default();
        peers.heard(NodeId(2), 0);
        peers.said_to(NodeId(3));
        assert_eq!(peers.due_greetings(0, 300), [NodeId(2), NodeId(3)]);
        assert_eq!(peers.due_greetings(299, 300), []);
        assert_eq!(peers.due_greetings(300, 300), [NodeId(2), NodeId(3)]);
    }
}
