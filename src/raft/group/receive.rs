//! What comes in: messages, and the news of what was written and read.
//!
//! Nothing is believed that would break a promise of the library's: what is out of range is dropped
//! as if it had been lost.

use super::super::Fault;
use super::super::envelope::{Envelope, MessageKind, SnapshotBody};
use super::super::error::Dropped;
use super::super::hard_state::Promise;
use super::super::log_view::{Base, Divergence};
use super::super::planted::{Bug, planted};
use super::{Group, Role};
use crate::storage::{Entry, EntryHeader, Tip};
use crate::types::ReplicaId;

impl Group {
    /// Takes a message.
    ///
    /// # Errors
    /// Why it was dropped; nothing has changed but what [`Dropped::Promised`] says.
    pub fn receive(&mut self, mut envelope: Envelope) -> Result<(), Dropped> {
        if planted(Bug::LearnerCounted) && self.membership.learners.contains(&envelope.from) {
            let mut voters = self.membership.voters.iter();
            envelope.from = *voters.find(|id| **id != self.replica).unwrap_or(&envelope.from);
        }
        self.check(&envelope)?;
        let is_lesser = self.is_less_than_promised(&envelope);
        if is_lesser && self.last_index() == 0 {
            return Err(Dropped::Promised);
        }
        if envelope.kind == MessageKind::TimeoutNow && !self.may_campaign() {
            return Err(Dropped::Busy);
        }
        if envelope.kind == MessageKind::Quiesce {
            if self.follow_to_sleep(&envelope) {
                return Ok(());
            }
            // Who cannot sleep may not know that leader yet.
            envelope.kind = MessageKind::Heartbeat;
        }
        if envelope.kind == MessageKind::Wake {
            return self.wake_for(envelope.from);
        }
        let kind = envelope.kind;
        if !matches!(kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse) {
            self.last_busy_tick = self.ticks;
        }
        // An answer to what a leader said before it went to sleep is no reason to wake up.
        let is_late_answer = envelope.term == self.term()
            && !envelope.is_reject
            && matches!(kind, MessageKind::AppendResponse | MessageKind::HeartbeatResponse);
        if !is_late_answer {
            self.wake();
        }
        self.check_history(&envelope)?;
        if is_lesser {
            // The library refuses who has nothing, and says what is committed: a candidate may have
            // to learn that a change of voters is, before it asks those who count.
            (envelope.index, envelope.log_term) = (0, 0);
        }
        let message = envelope.into_raft().ok_or(Dropped::OutOfRange)?;
        // The library refuses responses of strangers, which is what they are.
        self.node.step(message).map_err(|_| Dropped::Stranger)?;
        if is_lesser { Err(Dropped::Promised) } else { Ok(()) }
    }

    /// Refuses what the library would take for a broken promise, or believe against all reason.
    fn check(&self, envelope: &Envelope) -> Result<(), Dropped> {
        if envelope.to != self.replica {
            return Err(Dropped::WrongReplica);
        }
        if !self.is_running() {
            return Err(Dropped::Busy);
        }
        let (term, last_index) = (self.term(), self.last_index());
        // A new replica knows no term. It believes one that there are entries of.
        let is_new = term == 0 && last_index == 0;
        let known = if is_new { term.max(envelope.last_term()) } else { term };
        if envelope.term > known.saturating_add(self.config.term_jump_max) {
            return Err(Dropped::FutureTerm);
        }
        let is_in_range = match envelope.kind {
            // The library has every entry that there is not for one of term 0.
            MessageKind::Append => {
                envelope.index < u64::MAX && (envelope.log_term == 0) == (envelope.index == 0)
            }
            MessageKind::Heartbeat | MessageKind::Quiesce => envelope.commit <= last_index,
            MessageKind::AppendResponse => {
                envelope.index <= last_index && envelope.reject_hint <= envelope.index
            }
            MessageKind::Snapshot => self.is_good_snapshot(envelope),
            MessageKind::TimeoutNow => self.membership.is_voter(envelope.from),
            _ => envelope.index < u64::MAX && envelope.commit < u64::MAX,
        };
        // An answer to what an earlier life of this replica said is of an earlier term.
        let is_stale = envelope.term < term;
        if is_in_range || is_stale { Ok(()) } else { Err(Dropped::OutOfRange) }
    }

    /// True if it asks for a vote for who is not as far as this replica was before it lost the end
    /// of its log.
    fn is_less_than_promised(&self, envelope: &Envelope) -> bool {
        let is_asked = matches!(envelope.kind, MessageKind::PreVote | MessageKind::Vote);
        let found = Promise { term: envelope.log_term, index: envelope.index };
        let is_less = self.promise.is_some_and(|promise| found < promise);
        is_asked && is_less && !planted(Bug::VotesWithLostTail)
    }

    /// Stops the replica if its leader has another entry where one is committed. That happens only
    /// when a majority lost what it had acknowledged: to a power cut, with [`Durability::Memory`].
    fn check_history(&mut self, envelope: &Envelope) -> Result<(), Dropped> {
        if envelope.term < self.term() {
            return Ok(());
        }
        let before = match envelope.kind {
            MessageKind::Append => (envelope.index, envelope.log_term),
            MessageKind::Snapshot => {
                let body = SnapshotBody::decode(envelope.body.clone());
                let tip = body.ok_or(Dropped::OutOfRange)?.base.tip;
                (tip.index, tip.term)
            }
            _ => return Ok(()),
        };
        let (log, start) = (&self.node.raft.raft_log, self.start());
        let is_other = |&(index, term): &(u64, u64)| {
            if index < start.index {
                // Terms only grow: this log had none as high as this so early.
                return term > start.term;
            }
            index <= log.committed && log.term(index).is_ok_and(|known| known != term)
        };
        let entries = envelope.entries.iter().map(|entry| (entry.header.index, entry.header.term));
        let Some((index, found)) = std::iter::once(before).chain(entries).find(is_other) else {
            return Ok(());
        };
        self.pending_fault = Some(Fault::Diverged(Divergence::Committed { index, found }));
        Err(Dropped::Busy)
    }

    fn is_good_snapshot(&self, envelope: &Envelope) -> bool {
        let body = SnapshotBody::decode(envelope.body.clone());
        body.is_some_and(|body| {
            let terms = 1..=envelope.term;
            body.membership.contains(self.replica) && terms.contains(&body.base.tip.term)
        })
    }

    /// True if every membership change that must be committed is applied. Otherwise sees to it.
    pub(super) fn knows_voters(&mut self) -> bool {
        let changes = self.view().changes();
        if planted(Bug::StaleVoters) {
            return true;
        }
        let Some(before_last) = changes.len().checked_sub(2).map(|at| changes[at]) else {
            return true;
        };
        if before_last > self.committed() {
            let persisted = self.persisted();
            assert!(
                before_last <= self.last_index(),
                "{}: the change at {before_last} is in a log of {}, {persisted} stored",
                self.id,
                self.last_index()
            );
            self.incidents.inferred_commits += 1;
            self.node.raft.raft_log.commit_to(before_last);
        }
        false
    }

    /// Notes that everything handed out under `token` is durable, or stored as far as it is to be.
    pub fn stored(&mut self, token: u64) {
        if let Some(pass) = self.passes.iter_mut().find(|pass| pass.token == token) {
            pass.is_done = true;
        }
    }

    /// Takes entries that were read for followers: empty if they could not be read, none if they
    /// were not.
    pub fn fetched(&mut self, first_index: u64, entries: Option<&[Entry]>) {
        let contexts = self.fetching.remove(&first_index).unwrap_or_default();
        let Some(entries) = entries.filter(|_| self.is_running()) else { return };
        if entries.is_empty() {
            let is_kept = first_index > self.start().index && first_index <= self.persisted();
            if is_kept && self.role() == Role::Leader {
                self.miss(first_index);
            }
            return;
        }
        // Entries may have been replaced since they were asked for.
        let log = &self.node.raft.raft_log;
        let is_ours = |entry: &&Entry| {
            let EntryHeader { index, term, .. } = entry.header;
            log.term(index).is_ok_and(|known| known == term)
        };
        let count = entries.iter().take_while(is_ours).count();
        self.node.mut_store().offer(first_index, &entries[..count]);
        contexts.into_iter().for_each(|context| self.node.on_entries_fetched(context));
        self.node.mut_store().end_offer();
    }

    /// This leader's log is damaged where followers need it. They get the entry from another one,
    /// if that has it. If nobody is known to, and it is not committed, whoever can lead does
    /// without.
    fn miss(&mut self, index: u64) {
        let is_moving = self.node.raft.lead_transferee.is_some();
        if is_moving || self.hand_over(index) || index <= self.committed() {
            return;
        }
        // DURABILITY: whoever the others elect has all that is committed. What this log alone holds
        // behind the lost entry was acknowledged by no majority, and may go.
        self.incidents.stood_back += 1;
        self.stands_back_until_tick = self.ticks + 4 * self.config.election_ticks as u64;
        let term = self.term();
        self.node.raft.become_follower(term, 0);
    }

    /// Takes what the log starts with, for a follower that needs a snapshot.
    pub fn base_fetched(&mut self, base: Option<Base>) {
        self.is_fetching_base = false;
        let Some(base) = base.filter(|base| base.tip == self.start()) else {
            return;
        };
        let body = SnapshotBody { membership: self.membership.clone(), base };
        self.node.mut_store().offer_snapshot(body.to_raft());
        self.snapshot_until_tick = self.ticks + 2 * self.config.election_ticks as u64;
    }

    /// Notes that a message to `to` was lost.
    pub fn lost(&mut self, to: ReplicaId) {
        if self.role() == Role::Leader && self.is_running() {
            self.node.report_unreachable(to.0);
        }
    }

    /// Notes that retention moved the log's start, to no later than [`Self::settled`].
    pub fn start_advanced(&mut self, start: Tip) {
        let settled = self.settled();
        assert!(start.index <= settled, "the start moved to {}, past {settled}", start.index);
        // A snapshot may have moved it further in the meantime.
        if start.index > self.start().index {
            self.node.mut_store().advance_start(start);
        }
    }
}
