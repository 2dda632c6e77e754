//! Quiescence: a group in which nothing happens costs nothing.
//!
//! When a leader has had nothing to do for a while and all its followers have everything, it tells
//! them so and stops ticking, and they stop too: no heartbeats, no timeouts. In their place nodes
//! tell each other that they are alive, once for all their groups. Whatever then happens to a group
//! wakes it: a message, an ask, the death of a node that has a part in it.
//!
//! Only time stands still for a quiescent group. Every promise about terms, votes and entries holds
//! as before, so that two replicas that disagree about who sleeps lose time and nothing else: one
//! that is awake and hears no leader asks for votes, and that wakes the others.

use super::super::envelope::{Envelope, Lane, MessageKind};
use super::{Group, Role};
use crate::types::{NodeId, ReplicaId};

impl Group {
    /// True if the group does not tick.
    pub fn is_quiescent(&self) -> bool {
        self.is_quiescent
    }

    /// Lets the group tick again.
    pub fn wake(&mut self) {
        if self.is_quiescent {
            self.is_quiescent = false;
            self.last_busy_tick = self.ticks;
        }
    }

    /// Notes that a node is not heard of any more: a quiescent group in which it has a part has to
    /// find out what that means. Followers of a leader there need not wait another timeout.
    pub fn node_died(&mut self, node: NodeId) {
        if !self.is_quiescent || !self.membership.all().any(|replica| replica.node() == node) {
            return;
        }
        self.wake();
        if self.leader().is_some_and(|leader| leader.node() == node) {
            self.node.raft.election_elapsed = self.config.election_ticks;
        }
    }

    /// Lets the group sleep if there is nothing to stay awake for.
    pub(super) fn try_quiesce(&mut self) {
        let idle_ticks = self.config.election_ticks as u64 / 2;
        if self.ticks <= self.last_busy_tick + idle_ticks || !self.has_nothing_to_do() {
            return;
        }
        assert_eq!(
            self.committed(),
            self.last_index(),
            "{}: a group sleeps when all of it is committed",
            self.id
        );
        self.fall_asleep();
        let others: Vec<u64> = self
            .node
            .raft
            .prs()
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| *id != self.replica.0)
            .collect();
        for to in others {
            let envelope = self.quiesce(ReplicaId(to));
            self.outbox.push((Lane::Control, envelope));
        }
    }

    fn fall_asleep(&mut self) {
        self.is_quiescent = true;
        self.is_commit_due = true;
        self.free_buffers();
    }

    /// Gives back the library's buffers, which grow with the load and stay so.
    pub(super) fn free_buffers(&mut self) {
        self.node.raft.raft_log.unstable.entries.shrink_to_fit();
        self.node.raft.maybe_free_inflight_buffers();
    }

    fn has_nothing_to_do(&self) -> bool {
        let last_index = self.last_index();
        let raft = &self.node.raft;
        let is_settled = self.is_writable()
            && self.is_quiet()
            && self.settled() == last_index
            && !self.membership.is_joint()
            && raft.lead_transferee.is_none()
            && raft.pending_read_count() == 0;
        is_settled
            && raft.prs().iter().all(|(id, progress)| {
                let has_all = progress.matched == last_index
                    && progress.committed_index == last_index
                    && progress.recent_active;
                *id == self.replica.0 || has_all
            })
    }

    fn quiesce(&self, to: ReplicaId) -> Envelope {
        let mut envelope = Envelope::new(MessageKind::Quiesce, self.id, self.replica, to);
        envelope.term = self.term();
        envelope.index = self.last_index();
        envelope.commit = self.committed();
        envelope
    }

    /// Follows a leader to sleep, if all it says is true here.
    pub(super) fn follow_to_sleep(&mut self, envelope: &Envelope) {
        let is_alike = envelope.term == self.term()
            && self.role() == Role::Follower
            && self.leader() == Some(envelope.from)
            && self.is_quiet()
            && envelope.index == self.last_index()
            && envelope.commit == self.committed()
            && self.settled() == self.last_index();
        if is_alike {
            self.fall_asleep();
            // The leader was heard of just now: what asks for votes next has to wait for its time.
            self.node.raft.election_elapsed = 0;
        }
    }
}
