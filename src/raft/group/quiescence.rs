//! Quiescence: a group in which nothing happens costs nothing.
//!
//! When a leader has had nothing to do for a tick and all its followers have everything, it tells
//! them so and stops ticking, and they stop too: no heartbeats, no timeouts. In their place nodes
//! tell each other that they are alive, once for all their groups. Whatever then happens to a group
//! wakes it: a message, an ask, the death of a node that has a part in it.
//!
//! The word to sleep is also the news that all is committed, so that a batch which comes alone to
//! its partition needs no heartbeat for that. It is said once and may be lost, and who has just
//! been started does not know whose word it is. So a follower that is awake and hears nothing for
//! half an election timeout asks its leader to wake, long before anybody seeks election: the leader
//! says again what there is to say. Learners, and replicas that must not seek election, have no
//! other way.
//!
//! A group that something woke after a long sleep goes back to it without waiting for a tick: if
//! its batches come seldom, a tick of all its replicas costs as much as a batch.
//!
//! Only time stands still for a quiescent group. Every promise about terms, votes and entries holds
//! as before, so that two replicas that disagree about who sleeps lose time and nothing else.

use super::super::envelope::{Envelope, Lane, MessageKind};
use super::super::error::Dropped;
use super::{Group, Role};
use crate::types::{NodeId, ReplicaId};

/// Ticks after which a group sleeps that has nothing to do: not the one in which it last had.
const IDLE_TICKS: u64 = 1;

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

    /// Wakes up, if it leads, for a replica that missed its word.
    pub(super) fn wake_for(&mut self, from: ReplicaId) -> Result<(), Dropped> {
        if !self.membership.contains(from) {
            return Err(Dropped::Stranger);
        }
        if self.role() == Role::Leader {
            self.wake();
        }
        Ok(())
    }

    /// Notes that a node is not heard of any more: a quiescent group in which it has a part has to
    /// find out what that means. Followers of a leader there need not wait another timeout; a
    /// leader sleeps again only if a quorum is left.
    pub fn node_died(&mut self, node: NodeId) {
        if !self.membership.all().any(|replica| replica.node() == node) {
            return;
        }
        if self.role() == Role::Leader {
            let progress = self.node.raft.mut_prs().iter_mut();
            let there = progress.filter(|(id, _)| ReplicaId(**id).node() == node);
            there.for_each(|(_, progress)| progress.recent_active = false);
            if self.is_quiescent {
                // The others have a whole timeout to show that they are a quorum.
                self.node.raft.election_elapsed = 0;
            }
        } else if self.is_quiescent && self.leader().is_some_and(|leader| leader.node() == node) {
            self.node.raft.election_elapsed = self.config.election_ticks;
        }
        self.wake();
    }

    /// Asks the leader to wake if nothing has come from it for a while.
    pub(super) fn look_for_leader(&mut self) {
        assert_eq!(self.role(), Role::Follower, "{}: who leads looks for nobody", self.id);
        let patience = (self.config.election_ticks / 2).max(1);
        if !self.node.raft.election_elapsed.is_multiple_of(patience) {
            return;
        }
        let is_asked = |id: &ReplicaId| match self.leader() {
            Some(leader) => *id == leader,
            None => *id != self.replica,
        };
        let asked: Vec<_> = self.membership.all().filter(is_asked).collect();
        for to in asked {
            // In no term: that of this replica may not be on its disk yet.
            let envelope = Envelope::new(MessageKind::Wake, self.id, self.replica, to);
            self.outbox.push((Lane::Control, envelope));
        }
    }

    /// Lets the group sleep if there is nothing to stay awake for, and says so to its followers.
    pub(super) fn try_quiesce(&mut self) {
        if self.ticks > self.last_busy_tick + IDLE_TICKS && self.has_nothing_to_do() {
            self.send_to_sleep();
        }
    }

    /// Says of a group that sleeps, and may be about to be woken, how long it has slept. Time does
    /// not pass for the group itself.
    pub fn has_slept(&mut self, ticks: u64) {
        assert!(self.is_quiescent, "{}: who is awake does not sleep", self.id);
        self.dozes = ticks > IDLE_TICKS;
    }

    /// Lets a group sleep again that leads and is done with what woke it, if that was something
    /// rare. True if it does now: [`Self::advance`] has something to say then.
    pub fn doze(&mut self) -> bool {
        let is_done = self.dozes
            && !self.is_quiescent
            && self.role() == Role::Leader
            && self.is_running()
            && self.has_nothing_to_do();
        if is_done {
            self.send_to_sleep();
        }
        is_done
    }

    /// Falls asleep as a leader, and has the followers do so.
    fn send_to_sleep(&mut self) {
        let (committed, last_index) = (self.committed(), self.last_index());
        assert_eq!(
            committed, last_index,
            "{}: a group sleeps when all of it is committed",
            self.id
        );
        self.fall_asleep();
        let others = self.membership.all().filter(|id| *id != self.replica);
        for to in others.collect::<Vec<_>>() {
            let mut envelope = Envelope::new(MessageKind::Quiesce, self.id, self.replica, to);
            (envelope.term, envelope.index, envelope.commit) = (self.term(), last_index, committed);
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
        let is_active = |id: ReplicaId| {
            id == self.replica || raft.prs().get(id.0).is_some_and(|p| p.recent_active)
        };
        is_settled
            && self.had_by_all(|_| true) >= last_index
            && self.membership.is_quorum(is_active)
    }

    /// Follows a leader to sleep, if all that it says is true here; false if not.
    ///
    /// All that its log holds is committed, and is on the disk of this replica as far as it knows.
    /// If that is so, this is the same log.
    pub(super) fn follow_to_sleep(&mut self, envelope: &Envelope) -> bool {
        let last_index = self.last_index();
        let is_alike = envelope.term == self.term()
            && self.role() == Role::Follower
            && self.leader() == Some(envelope.from)
            && self.is_quiet()
            && self.persisted() == last_index
            && (envelope.index, envelope.commit) == (last_index, last_index)
            && self.promise.is_none();
        if is_alike {
            let committed = self.committed();
            assert!(committed <= last_index, "{}: {committed} of {last_index} committed", self.id);
            // What is new of this is applied with the next [`Self::advance`].
            self.node.raft.raft_log.commit_to(last_index);
            self.fall_asleep();
            // The leader was heard of just now: what asks for votes next has to wait for its time.
            self.node.raft.election_elapsed = 0;
        }
        is_alike
    }
}
