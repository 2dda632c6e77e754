//! What callers ask of a leader.

use std::collections::BTreeSet;

use ::raft::eraftpb::{Entry as RaftEntry, Message, MessageType};

use super::super::error::NotProposed;
use super::super::membership::{Change, Operation, REPLICAS_MAX};
use super::super::planted::{Bug, planted};
use super::{Draft, Group, Role};
use crate::storage::{Entry, Kind};
use crate::types::ReplicaId;

impl Group {
    /// Proposes an entry and returns it as it will be in the log.
    ///
    /// `now_ms` is the time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`NotProposed`]: nothing has changed.
    pub fn propose(&mut self, draft: Draft, now_ms: i64) -> Result<Entry, NotProposed> {
        assert!(draft.kind != Kind::Membership, "membership changes have a way of their own");
        if !self.is_writable() {
            return Err(NotProposed::NotLeader);
        }
        let entry = self.link(draft, now_ms);
        let raft = RaftEntry { data: entry.payload.clone(), ..RaftEntry::default() };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.replica.0;
        message.set_entries(vec![raft].into());
        self.node.step(message).map_err(|_| NotProposed::Transferring)?;
        self.note_proposed(entry.clone());
        Ok(entry)
    }

    /// Proposes a change of the replicas, and returns the first step's entry. The second step of a
    /// change of voters follows by itself.
    ///
    /// # Errors
    /// [`NotProposed`]: nothing has changed.
    pub fn propose_change(
        &mut self,
        operations: Vec<Operation>,
        now_ms: i64,
    ) -> Result<Entry, NotProposed> {
        let change = Change::of(operations, &self.membership);
        self.propose_step(&change, now_ms)
    }

    pub(super) fn propose_step(
        &mut self,
        change: &Change,
        now_ms: i64,
    ) -> Result<Entry, NotProposed> {
        if !self.is_writable() {
            return Err(NotProposed::NotLeader);
        }
        let is_leave = *change == Change::Leave;
        let is_applied = self.view().changes().is_empty();
        if self.node.raft.has_pending_conf()
            || !is_applied
            || self.membership.is_joint() != is_leave
        {
            return Err(NotProposed::ChangePending);
        }
        if !self.is_possible(change) {
            return Err(NotProposed::NoVoters);
        }
        let entry = self.link(Draft::new(Kind::Membership, change.encode()), now_ms);
        let proposed = self.node.propose_conf_change(Vec::new(), change.to_conf_change());
        proposed.map_err(|_| NotProposed::Transferring)?;
        self.note_proposed(entry.clone());
        Ok(entry)
    }

    /// True if every replica can follow the change: it names replicas, it leaves voters, and a
    /// membership can hold the outcome. What is in the log cannot be refused any more.
    fn is_possible(&self, change: &Change) -> bool {
        let operations = match change {
            Change::Single(operation) => std::slice::from_ref(operation),
            Change::EnterJoint(operations) => operations,
            Change::Leave => return true,
        };
        let mut voters = self.membership.voters.clone();
        for operation in operations {
            voters.retain(|id| *id != operation.replica());
            if let Operation::Voter(id) = operation {
                voters.push(*id);
            }
        }
        let named = || operations.iter().map(|operation| operation.replica());
        let all: BTreeSet<_> = self.membership.all().chain(named()).collect();
        let is_named = !operations.is_empty() && named().all(|id| id.0 != 0);
        let is_small = all.len() <= REPLICAS_MAX && operations.len() <= REPLICAS_MAX;
        is_named && is_small && !voters.is_empty()
    }

    /// Makes the entry that comes next.
    fn link(&self, draft: Draft, now_ms: i64) -> Entry {
        let tip = self.proposed.back().map_or(self.view().tip(), |entry| entry.header.tip());
        assert_eq!(tip.index, self.last_index(), "{}: a proposal continues the log", self.id);
        let counted = if planted(Bug::OffsetFromCommitted) { self.committed() } else { tip.index };
        let end_offset = self.tip_at(counted).unwrap_or(tip).end_offset;
        let mut entry =
            Entry::new(draft.kind, tip.index + 1, self.term(), draft.payload, draft.payload_crc)
                .with_records(end_offset, draft.record_count)
                .at_time(now_ms.max(tip.append_time_ms));
        entry.header.format = draft.format;
        entry.header.producer_id = draft.producer_id;
        entry.header.producer_epoch = draft.producer_epoch;
        entry.header.base_sequence = draft.base_sequence;
        entry.header.chain = entry.header.chain_after(tip.chain);
        entry
    }

    fn note_proposed(&mut self, entry: Entry) {
        let (index, last_index) = (entry.header.index, self.last_index());
        assert_eq!(index, last_index, "{}: the proposal is the last entry", self.id);
        self.last_busy_tick = self.ticks;
        self.wake();
        self.proposed.push_back(entry);
    }

    /// Asks a quorum whether this replica still leads; [`Self::take_reads`] answers with the
    /// number. No answer comes if it does not.
    ///
    /// # Errors
    /// [`NotProposed::NotLeader`].
    pub fn read_index(&mut self, number: u64) -> Result<(), NotProposed> {
        if !self.is_writable() {
            return Err(NotProposed::NotLeader);
        }
        self.node.read_index(number.to_le_bytes().to_vec());
        Ok(())
    }

    /// Numbers of reads that are confirmed, each with the index that must be applied first.
    pub fn take_reads(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.reads)
    }

    /// Hands leadership to `to`, once it has caught up; gives up after an election timeout.
    ///
    /// # Errors
    /// [`NotProposed::NotLeader`], or [`NotProposed::NotVoter`].
    pub fn transfer_leader(&mut self, to: ReplicaId) -> Result<(), NotProposed> {
        if self.role() != Role::Leader || !self.is_running() {
            return Err(NotProposed::NotLeader);
        }
        if !self.membership.is_voter(to) {
            return Err(NotProposed::NotVoter);
        }
        self.node.transfer_leader(to.0);
        Ok(())
    }
}
