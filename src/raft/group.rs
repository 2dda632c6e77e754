//! One replica of one group: raft-rs, driven by the rules that keep its promises.
//!
//! A group takes messages, proposals, ticks and the news of what is on disk, and says what is to be
//! written and sent. It reads and writes nothing itself.
//!
//! # Rules
//! * **What rests on the disk waits for the disk.** The messages of a follower or candidate leave
//!   in the order in which raft-rs made them, each after everything made before it is durable. A
//!   leader's leave at once, but not before its term and vote are durable.
//! * **The library hears of durability before the world does.** Else an answer could come back
//!   before it knows what it has on disk.
//! * **The commit index in the journal is of an entry on this disk.** After a power cut it would
//!   else say of an old, uncommitted entry that it is committed.
//! * **A snapshot is finished before anything else happens to the group.**
//! * **A replica applies all membership changes that must be committed before it seeks election.**
//!   raft-rs switches the membership when a change is applied, so a replica that is behind would
//!   count the wrong voters. A leader proposes a change only after applying the one before, so all
//!   changes in a log but the last one are committed, whatever the replica has been told.
//! * **A leader that is no voter any more steps down** when it applies the change.

use std::collections::{BTreeMap, VecDeque};

use ::raft::eraftpb::{Entry as RaftEntry, EntryType, Message, MessageType};
use ::raft::{GetEntriesContext, RawNode, Ready, SnapshotStatus, StateRole};
use bytes::Bytes;

use super::config::Config;
use super::effects::{ColdRead, Effects, Fault, Persist, Step};
use super::envelope::{Envelope, Lane, MessageKind, SnapshotBody};
use super::error::{Dropped, NotProposed};
use super::hard_state::HardState;
use super::log_view::{Base, Divergence, LogView, TermStart, from_raft};
use super::membership::{Change, Membership, Operation};
use crate::storage::{Entry, EntryHeader, FactKind, Kind, Tip};
use crate::types::{LogId, ReplicaId};

/// Waiting readers of the same entries; more of them ask again.
const CONTEXTS_MAX: usize = 8;

/// When an entry counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on disk.
    Fsync,
    /// Once the operating system has it: a power cut of a majority loses what was acknowledged.
    Memory,
}

/// Everything a group starts from: what its log and the journal say.
#[derive(Debug)]
pub struct Boot {
    /// The group.
    pub id: LogId,
    /// This replica.
    pub replica: ReplicaId,
    /// What entries wait for.
    pub durability: Durability,
    /// Term, vote and commit; the commit within the log.
    pub hard_state: HardState,
    /// The replicas.
    pub membership: Membership,
    /// The tip right before the log's first entry.
    pub start: Tip,
    /// Where terms begin, the first one at or before the log's first entry.
    pub terms: Vec<TermStart>,
    /// The tip at the commit index: what the state machine has applied.
    pub applied: Tip,
    /// All entries after that. Payloads of record batches may be missing.
    pub entries: Vec<Entry>,
}

/// An entry that is to be proposed: what its proposer knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Bytes,
    /// Their CRC-32, computed or verified where they came in.
    pub payload_crc: u32,
    /// Records in it.
    pub record_count: u32,
    /// Format and codec.
    pub format: u8,
    /// Producer, or 0.
    pub producer_id: u64,
    /// The producer's incarnation.
    pub producer_epoch: u16,
    /// Sequence number of the first record.
    pub base_sequence: u32,
}

impl Draft {
    /// A draft without records.
    pub fn new(kind: Kind, payload: Bytes) -> Self {
        let payload_crc = crc32fast::hash(&payload);
        Self {
            kind,
            payload,
            payload_crc,
            record_count: 0,
            format: 0,
            producer_id: 0,
            producer_epoch: 0,
            base_sequence: 0,
        }
    }
}

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows, or knows no leader.
    Follower,
    /// It seeks election.
    Candidate,
    /// It leads.
    Leader,
}

/// What was handed out to be made durable, and what waits for it.
#[derive(Debug)]
struct Pass {
    token: u64,
    /// The last ready of raft-rs that it covers.
    ready: u64,
    held: Vec<(Lane, Envelope)>,
    is_done: bool,
    /// It holds a term or a vote.
    has_vote: bool,
    /// Index of the snapshot it installs.
    restores: Option<u64>,
    since_tick: u64,
}

/// One replica of one group.
pub struct Group {
    id: LogId,
    replica: ReplicaId,
    durability: Durability,
    config: Config,
    node: RawNode<LogView>,
    membership: Membership,
    /// Entries of ours that raft-rs has taken and not yet handed out, in order.
    proposed: VecDeque<Entry>,
    passes: VecDeque<Pass>,
    /// What the journal was last told.
    recorded: HardState,
    /// A snapshot is being installed: nothing else happens until it is durable.
    is_restoring: bool,
    fault: Option<Fault>,
    /// Found while a message was taken; reported with the next [`Self::advance`].
    pending_fault: Option<Fault>,
    /// Followers that wait for entries from disk, by the first index they want.
    fetching: BTreeMap<u64, Vec<GetEntriesContext>>,
    is_fetching_base: bool,
    snapshot_until_tick: u64,
    /// Since when a follower is being sent a snapshot.
    snapshots_since: BTreeMap<u64, u64>,
    ticks: u64,
    last_busy_tick: u64,
    seed: u64,
    /// What the present election timeout was drawn for.
    drawn_for: (u64, StateRole, u64),
    draws: u64,
    reads: Vec<(u64, u64)>,
}

impl Group {
    /// Starts a replica from what is on its disk. `seed` decides its election timeouts.
    pub fn new(config: &Config, boot: Boot, seed: u64) -> Self {
        let Boot {
            id,
            replica,
            durability,
            hard_state,
            membership,
            start,
            terms,
            applied,
            entries,
        } = boot;
        assert!(
            start.index <= hard_state.commit && applied.index == hard_state.commit,
            "{id}: the log starts after {}, {} is applied, {} committed",
            start.index,
            applied.index,
            hard_state.commit
        );
        let is_new = start == Tip::EMPTY;
        assert!(is_new || !membership.voters.is_empty(), "{id}: a log has a membership");
        let view = LogView::new(hard_state, membership.clone(), start, terms, applied, entries);
        let raft = config.to_raft(replica.0, hard_state.commit);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft, view, &logger).expect("the configuration is valid");
        Self {
            id,
            replica,
            durability,
            config: config.clone(),
            node,
            membership,
            proposed: VecDeque::new(),
            passes: VecDeque::new(),
            recorded: hard_state,
            is_restoring: false,
            fault: None,
            pending_fault: None,
            fetching: BTreeMap::new(),
            is_fetching_base: false,
            snapshot_until_tick: 0,
            snapshots_since: BTreeMap::new(),
            ticks: 0,
            last_busy_tick: 0,
            seed,
            drawn_for: (u64::MAX, StateRole::Follower, 0),
            draws: 0,
            reads: Vec::new(),
        }
    }

    /// The group.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// What entries wait for.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// The replicas, as this one knows them.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// What the replica is.
    pub fn role(&self) -> Role {
        match self.node.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// The leader of the present term, if it is known.
    pub fn leader(&self) -> Option<ReplicaId> {
        let id = self.node.raft.leader_id;
        (id != 0).then_some(ReplicaId(id))
    }

    /// Highest index known to be committed.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Highest index that counts as stored on this replica.
    pub fn persisted(&self) -> u64 {
        self.node.raft.raft_log.persisted
    }

    /// Highest index that a state machine may apply: committed, and stored here as well. Were it
    /// ahead of the disk, there would be no state for the segments that are still to be begun.
    pub fn applicable(&self) -> u64 {
        self.committed().min(self.persisted())
    }

    /// Entries up to here are committed, stored and followed: retention may drop them.
    pub fn settled(&self) -> u64 {
        self.node.raft.raft_log.applied.min(self.applicable())
    }

    /// Index of the last entry, proposals included.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// The tip right before the log's first entry.
    pub fn start(&self) -> Tip {
        self.view().start()
    }

    /// Why the replica stopped, if it did.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// An entry that is in memory: any after the applied ones. The payload of a record batch may
    /// be missing.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let first_proposed = self.proposed.front().map_or(u64::MAX, |entry| entry.header.index);
        if index >= first_proposed {
            return self.proposed.get((index - first_proposed) as usize);
        }
        self.view().entry(index)
    }

    /// The tip as it was when `index` was the last entry; for what [`Self::entry`] has and the
    /// entry before.
    pub fn tip_at(&self, index: u64) -> Option<Tip> {
        self.view().tip_at(index)
    }

    /// Bytes of payloads kept in memory.
    pub fn tail_bytes(&self) -> usize {
        self.view().tail_bytes()
    }

    /// True if the replica leads and everything before its term is committed: proposals may come.
    pub fn is_writable(&self) -> bool {
        self.role() == Role::Leader && self.is_running() && self.node.raft.commit_to_current_term()
    }

    /// True if everything handed out is durable and nothing waits.
    pub fn is_quiet(&self) -> bool {
        self.passes.is_empty() && !self.node.has_ready()
    }

    fn is_running(&self) -> bool {
        !self.is_restoring && self.fault.is_none()
    }

    fn view(&self) -> &LogView {
        self.node.store()
    }

    /// Takes a message.
    ///
    /// # Errors
    /// Why it was dropped; nothing has changed.
    pub fn receive(&mut self, envelope: Envelope) -> Result<(), Dropped> {
        self.check(&envelope)?;
        let kind = envelope.kind;
        if kind == MessageKind::TimeoutNow && !self.knows_voters() {
            return Err(Dropped::Busy);
        }
        if !matches!(kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse) {
            self.last_busy_tick = self.ticks;
        }
        self.check_history(&envelope)?;
        let message = envelope.into_raft().ok_or(Dropped::OutOfRange)?;
        // The library refuses responses of strangers, which is what they are.
        self.node.step(message).map_err(|_| Dropped::Stranger)
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
        if envelope.term > term.saturating_add(self.config.term_jump_max) {
            return Err(Dropped::FutureTerm);
        }
        let is_in_range = match envelope.kind {
            MessageKind::Heartbeat => envelope.commit <= last_index,
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

    /// Stops the replica if its leader has another entry where one is committed. That happens only
    /// when a majority lost what it had acknowledged: to a power cut, with [`Durability::Memory`].
    fn check_history(&mut self, envelope: &Envelope) -> Result<(), Dropped> {
        if envelope.kind != MessageKind::Append || envelope.term < self.term() {
            return Ok(());
        }
        let (log, start) = (&self.node.raft.raft_log, self.start());
        let is_other = |entry: &&Entry| {
            let EntryHeader { index, term, .. } = entry.header;
            if index < start.index {
                // Terms only grow: this log had none as high as this so early.
                return term > start.term;
            }
            index <= log.committed && log.term(index).is_ok_and(|known| known != term)
        };
        let Some(other) = envelope.entries.iter().find(is_other) else {
            return Ok(());
        };
        let (index, found) = (other.header.index, other.header.term);
        self.pending_fault = Some(Fault::Diverged(Divergence::Committed { index, found }));
        Err(Dropped::Busy)
    }

    fn is_good_snapshot(&self, envelope: &Envelope) -> bool {
        let body = SnapshotBody::decode(envelope.body.clone());
        body.is_some_and(|body| {
            body.membership.contains(self.replica) && body.base.tip.term <= envelope.term
        })
    }

    /// True if every membership change that must be committed is applied. Otherwise sees to it.
    fn knows_voters(&mut self) -> bool {
        let changes = self.view().changes();
        let Some(before_last) = changes.len().checked_sub(2).map(|at| changes[at]) else {
            return true;
        };
        if before_last > self.committed() {
            self.node.raft.raft_log.commit_to(before_last);
        }
        false
    }

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
        let mut raft = RaftEntry::default();
        raft.data = entry.payload.clone();
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

    fn propose_step(&mut self, change: &Change, now_ms: i64) -> Result<Entry, NotProposed> {
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
        if !self.leaves_a_voter(change) {
            return Err(NotProposed::NoVoters);
        }
        let entry = self.link(Draft::new(Kind::Membership, change.encode()), now_ms);
        let proposed = self.node.propose_conf_change(Vec::new(), change.to_conf_change());
        proposed.map_err(|_| NotProposed::Transferring)?;
        self.note_proposed(entry.clone());
        Ok(entry)
    }

    /// True if a change leaves voters, in a set that its bytes can hold.
    fn leaves_a_voter(&self, change: &Change) -> bool {
        let Change::EnterJoint(operations) = change else {
            return true;
        };
        let mut voters = self.membership.voters.clone();
        for operation in operations {
            voters.retain(|id| *id != operation.replica());
            if let Operation::Voter(id) = operation {
                voters.push(*id);
            }
        }
        !voters.is_empty() && voters.len() + operations.len() <= super::membership::REPLICAS_MAX
    }

    /// Makes the entry that comes next.
    fn link(&self, draft: Draft, now_ms: i64) -> Entry {
        let tip = self.proposed.back().map_or(self.view().tip(), |entry| entry.header.tip());
        assert_eq!(tip.index, self.last_index(), "{}: a proposal continues the log", self.id);
        let mut entry =
            Entry::new(draft.kind, tip.index + 1, self.term(), draft.payload, draft.payload_crc)
                .with_records(tip.end_offset, draft.record_count)
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

    /// Notes that everything handed out under `token` is durable, or stored as far as it is to be.
    pub fn stored(&mut self, token: u64) {
        if let Some(pass) = self.passes.iter_mut().find(|pass| pass.token == token) {
            pass.is_done = true;
        }
    }

    /// Takes entries that were read for followers; none if they could not be read.
    pub fn fetched(&mut self, first_index: u64, entries: &[Entry]) {
        let contexts = self.fetching.remove(&first_index).unwrap_or_default();
        if entries.is_empty() || !self.is_running() {
            return;
        }
        self.node.mut_store().offer(first_index, entries);
        contexts.into_iter().for_each(|context| self.node.on_entries_fetched(context));
        self.node.mut_store().end_offer();
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

    /// Stops the replica for good.
    pub(super) fn stop(&mut self, fault: Fault, effects: &mut Effects) {
        effects.faults.push((self.id, fault.clone()));
        self.fault = Some(fault);
    }

    /// Forgets applied entries that are beyond what is kept in memory. `applied` is what the state
    /// machine has seen.
    pub fn trim(&mut self, applied: u64) {
        let index = applied.min(self.settled());
        let is_idle = self.ticks > self.last_busy_tick + 2 * self.config.election_ticks as u64;
        let bytes_max = if is_idle { 0 } else { self.config.tail_bytes_max };
        self.node.mut_store().trim(index, bytes_max);
    }

    /// Lets one tick pass.
    pub fn tick(&mut self, now_ms: i64) {
        self.ticks += 1;
        if !self.is_running() {
            return;
        }
        if self.role() == Role::Leader {
            self.tick_leader(now_ms);
        } else if self.may_campaign() {
            self.draw_election_timeout();
            self.node.tick();
        }
        if self.ticks > self.snapshot_until_tick {
            self.node.mut_store().forget_snapshot();
        }
        if self.ticks == self.last_busy_tick + 2 * self.config.election_ticks as u64 {
            // The library's buffers grow with the load and stay so.
            self.node.raft.raft_log.unstable.entries.shrink_to_fit();
            self.node.raft.maybe_free_inflight_buffers();
        }
    }

    /// A replica with entries that are not on its disk does not seek election: it would have to
    /// wait for them anyway, and a sole voter would lead before it has them.
    fn may_campaign(&mut self) -> bool {
        let is_stored = self.persisted() == self.last_index();
        self.knows_voters() && is_stored
    }

    fn tick_leader(&mut self, now_ms: i64) {
        self.draw_election_timeout();
        self.node.tick();
        self.give_up_snapshots();
        if self.membership.is_joint() {
            self.end_change(now_ms);
        }
        let oldest = self.passes.front().map_or(self.ticks, |pass| pass.since_tick);
        if self.ticks - oldest >= self.config.slow_disk_ticks {
            self.hand_over();
        }
    }

    /// Ends a change of voters, whoever began it. A leader that is to go hands over first: were it
    /// the one to leave, the others might not know that it may, and it could not tell them.
    fn end_change(&mut self, now_ms: i64) {
        if self.membership.voters.contains(&self.replica) {
            // A refusal is tried again with the next tick.
            let _ = self.propose_step(&Change::Leave, now_ms);
        } else {
            self.hand_over();
        }
    }

    /// A snapshot that got lost would leave its follower waiting for ever.
    fn give_up_snapshots(&mut self) {
        let is_sent =
            |progress: &::raft::Progress| progress.state == ::raft::ProgressState::Snapshot;
        let progress = self.node.raft.prs().iter();
        let sending: Vec<u64> = progress.filter(|(_, p)| is_sent(p)).map(|(id, _)| *id).collect();
        self.snapshots_since.retain(|id, _| sending.contains(id));
        for id in sending {
            let since = *self.snapshots_since.entry(id).or_insert(self.ticks);
            if self.ticks > since + 2 * self.config.election_ticks as u64 {
                self.snapshots_since.remove(&id);
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// Gives leadership to the voter that is furthest.
    fn hand_over(&mut self) {
        if self.node.raft.lead_transferee.is_some() {
            return;
        }
        let is_candidate = |id: u64, progress: &::raft::Progress| {
            let id = ReplicaId(id);
            id != self.replica && progress.recent_active && self.membership.voters.contains(&id)
        };
        let others = self.node.raft.prs().iter().filter(|(id, p)| is_candidate(**id, p));
        if let Some((id, _)) = others.max_by_key(|(id, progress)| (progress.matched, **id)) {
            let id = *id;
            self.node.transfer_leader(id);
        }
    }

    /// Sets the election timeout, because the library's own choice is not repeatable.
    fn draw_election_timeout(&mut self) {
        let raft = &self.node.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if now != self.drawn_for {
            self.drawn_for = now;
            self.draws += 1;
        }
        let spread = self.config.election_ticks as u64;
        let drawn = mix(self.seed ^ mix(self.replica.0 ^ mix(self.draws))) % spread;
        let timeout = self.config.election_ticks + drawn as usize;
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    /// Follows up on everything that has happened, and says what is to be done. `tokens` numbers
    /// what is handed out.
    pub fn advance(&mut self, tokens: &mut u64, effects: &mut Effects) {
        let mut steps = Vec::new();
        if let Some(fault) = self.pending_fault.take() {
            self.stop(fault, effects);
        }
        loop {
            self.settle(effects);
            if self.fault.is_some() || !self.node.has_ready() {
                break;
            }
            let token = *tokens;
            if let Err(fault) = self.handle_ready(token, &mut steps, effects) {
                self.stop(fault, effects);
            }
        }
        self.record_commit(*tokens, &mut steps);
        if !steps.is_empty() && self.fault.is_none() {
            let is_synced = steps.iter().any(|step| step.needs_sync(self.durability));
            effects.persists.push(Persist { group: self.id, token: *tokens, steps, is_synced });
            *tokens += 1;
        }
        self.fetch(effects);
    }

    /// Follows up on what has become durable, in order.
    fn settle(&mut self, effects: &mut Effects) {
        while self.passes.front().is_some_and(|pass| pass.is_done) {
            let pass = self.passes.pop_front().expect("there is a first pass");
            self.complete(pass.ready, pass.held, effects);
            if let Some(index) = pass.restores {
                self.node.advance_apply_to(index);
                self.is_restoring = false;
            }
        }
    }

    /// Tells the library that its readies up to `ready` are durable, and then the world.
    fn complete(&mut self, ready: u64, held: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        self.node.on_persist_ready(ready);
        effects.envelopes.extend(held);
    }

    fn handle_ready(
        &mut self,
        token: u64,
        steps: &mut Vec<Step>,
        effects: &mut Effects,
    ) -> Result<(), Fault> {
        let mut ready = self.node.ready();
        let mark = steps.len();
        let restores = self.take_snapshot(&ready, steps, effects)?;
        self.take_entries(&mut ready, steps)?;
        let has_vote = self.take_hard_state(&ready, steps);
        let reads = ready.take_read_states().into_iter();
        self.reads.extend(reads.filter_map(|read| {
            let number = read.request_ctx.as_slice().try_into().ok()?;
            Some((u64::from_le_bytes(number), read.index))
        }));
        let number = ready.number();
        let now = self.seal(ready.take_messages());
        let held = self.seal(ready.take_persisted_messages());
        let committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        if steps.len() > mark {
            self.open_pass(token, has_vote, restores);
        }
        self.wait(number, held, effects);
        self.send_or_hold(now, effects);
        self.apply(&committed, steps)
    }

    /// Sees that what was handed out under `token` is waited for.
    fn open_pass(&mut self, token: u64, has_vote: bool, restores: Option<u64>) {
        let since_tick = self.ticks;
        if self.passes.back().is_none_or(|pass| pass.token != token) {
            let (ready, held, is_done) = (0, Vec::new(), false);
            let pass =
                Pass { token, ready, held, is_done, has_vote: false, restores: None, since_tick };
            self.passes.push_back(pass);
        }
        let pass = self.passes.back_mut().expect("a pass was just opened");
        pass.has_vote |= has_vote;
        pass.restores = pass.restores.or(restores);
    }

    /// Lets a ready and its messages wait for all that was handed out before them.
    fn wait(&mut self, ready: u64, held: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        match self.passes.back_mut() {
            Some(pass) => {
                pass.ready = ready;
                pass.held.extend(held);
            }
            None => self.complete(ready, held, effects),
        }
    }

    /// Sends a leader's messages, unless its term and vote are not durable.
    fn send_or_hold(&mut self, envelopes: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        match self.passes.iter_mut().rev().find(|pass| pass.has_vote) {
            Some(pass) => pass.held.extend(envelopes),
            None => effects.envelopes.extend(envelopes),
        }
    }

    fn take_snapshot(
        &mut self,
        ready: &Ready,
        steps: &mut Vec<Step>,
        effects: &mut Effects,
    ) -> Result<Option<u64>, Fault> {
        if ready.snapshot().is_empty() {
            return Ok(None);
        }
        let body = SnapshotBody::decode(ready.snapshot().get_data().to_vec().into());
        let SnapshotBody { membership, base } = body.ok_or(Fault::Snapshot)?;
        let index = base.tip.index;
        self.proposed.clear();
        self.node.mut_store().reset(base.tip);
        self.is_restoring = true;
        self.membership = membership.clone();
        steps.push(Step::Reset { base: base.clone(), membership: membership.clone() });
        steps.push(Step::Record(FactKind::Membership, membership.encode()));
        effects.restored.push((self.id, base));
        Ok(Some(index))
    }

    fn take_entries(&mut self, ready: &mut Ready, steps: &mut Vec<Step>) -> Result<(), Fault> {
        let raft = ready.take_entries();
        let Some(first) = raft.first() else {
            return Ok(());
        };
        let (first_index, tip) = (first.index, self.view().tip());
        if first_index <= tip.index {
            let committed_index = self.committed();
            assert!(
                first_index > self.recorded.commit,
                "{}: entry {first_index} is to go, but {} is committed",
                self.id,
                self.recorded.commit
            );
            self.node.mut_store().truncate(first_index - 1);
            let committed_index = committed_index.min(first_index - 1);
            steps.push(Step::Truncate { first_index, committed_index });
        }
        let entries: Vec<Entry> = raft.iter().map(|entry| self.claim(entry)).collect();
        let entries = link_no_ops(self.view().tip(), entries);
        self.node.mut_store().append(&entries).map_err(Fault::Diverged)?;
        steps.push(Step::Append(entries));
        Ok(())
    }

    /// The entry that a raft entry stands for: a proposal of ours, one that came with its header,
    /// or a no-op of the library's own.
    fn claim(&mut self, raft: &RaftEntry) -> Entry {
        while let Some(entry) = self.proposed.pop_front() {
            // What was proposed in a term that ended before it was handed out is gone.
            if (entry.header.index, entry.header.term) == (raft.index, raft.term) {
                return entry;
            }
        }
        from_raft(raft).unwrap_or_else(|| {
            let is_no_op = raft.data.is_empty() && raft.get_entry_type() == EntryType::EntryNormal;
            assert!(is_no_op, "entry {} is neither ours nor a no-op", raft.index);
            Entry::new(Kind::NoOp, raft.index, raft.term, Bytes::new(), 0)
        })
    }

    /// Hands out term and vote if they changed; true if so.
    fn take_hard_state(&mut self, ready: &Ready, steps: &mut Vec<Step>) -> bool {
        let Some(found) = ready.hs() else {
            return false;
        };
        let is_new = (found.term, found.vote) != (self.recorded.term, self.recorded.vote);
        if is_new {
            let value = self.note_hard_state(found.term, found.vote);
            steps.push(Step::Record(FactKind::HardState, value));
        }
        is_new
    }

    /// DURABILITY: the commit index goes to the journal, the entries to the log; after a power cut
    /// there may be one without the other. Capped, it speaks of entries that are on disk.
    fn note_hard_state(&mut self, term: u64, vote: u64) -> Bytes {
        let commit = self.committed().min(self.persisted()).max(self.recorded.commit);
        self.recorded = HardState { term, vote, commit };
        self.recorded.encode()
    }

    /// Records the commit index now and then, so that a restart need not wait for a leader to apply
    /// what was applied before. Nothing depends on it, so nothing waits for it.
    fn record_commit(&mut self, token: u64, steps: &mut Vec<Step>) {
        let commit = self.committed().min(self.persisted());
        let is_due =
            self.ticks.is_multiple_of(COMMIT_RECORD_TICKS) && commit > self.recorded.commit;
        let is_own_pass = self.passes.back().is_some_and(|pass| pass.token == token);
        if is_due && !is_own_pass && steps.is_empty() && self.is_running() {
            let HardState { term, vote, .. } = self.recorded;
            let value = self.note_hard_state(term, vote);
            steps.push(Step::Hint(FactKind::HardState, value));
        }
    }

    /// Applies membership changes among the entries that are committed and stored.
    fn apply(&mut self, committed: &[RaftEntry], steps: &mut Vec<Step>) -> Result<(), Fault> {
        for stub in committed {
            let is_change = stub.get_entry_type() == EntryType::EntryConfChangeV2;
            // What the snapshot's membership has seen already comes by again with the log.
            if is_change && stub.index > self.membership.index {
                self.apply_change(stub.index, steps)?;
            }
        }
        if let Some(last) = committed.last() {
            self.node.mut_store().changes_applied(last.index);
            self.node.advance_apply_to(last.index);
        }
        Ok(())
    }

    fn apply_change(&mut self, index: u64, steps: &mut Vec<Step>) -> Result<(), Fault> {
        let entry = self.view().entry(index).expect("what is not applied is in memory");
        let change = Change::decode(&entry.payload).ok_or(Fault::UnknownChange { index })?;
        let applied = self.node.apply_conf_change(&change.to_conf_change());
        let state = applied.map_err(|_| Fault::UnknownChange { index })?;
        self.membership = Membership::from_conf_state(index, &state);
        self.node.mut_store().forget_snapshot();
        steps.push(Step::Record(FactKind::Membership, self.membership.encode()));
        if self.role() == Role::Leader && !self.membership.is_voter(self.replica) {
            let term = self.term();
            self.node.raft.become_follower(term, 0);
        }
        Ok(())
    }

    /// Makes envelopes of messages, with the entries that they stand for.
    fn seal(&self, messages: Vec<Message>) -> Vec<(Lane, Envelope)> {
        let entry = |raft: &RaftEntry| {
            let known = || {
                let entry = self.view().entry(raft.index);
                entry.filter(|entry| entry.header.term == raft.term).cloned()
            };
            from_raft(raft).or_else(known)
        };
        // A leader that was deposed within the same step may leave messages behind whose entries
        // are gone already: they are lost on their way.
        let seal_one = |message: Message| {
            // Only what was read from disk for a follower carries its header along.
            let is_cold = message.get_entries().iter().any(|entry| !entry.context.is_empty());
            let envelope = Envelope::from_raft(self.id, message, entry)?;
            Some((envelope.lane(is_cold), envelope))
        };
        messages.into_iter().filter_map(seal_one).collect()
    }

    /// Asks for what followers need from disk.
    fn fetch(&mut self, effects: &mut Effects) {
        let wanted = self.node.mut_store().take_wanted();
        for wanted in wanted {
            let waiting = self.fetching.entry(wanted.first_index).or_insert_with(|| {
                let last_index = self.node.raft.raft_log.last_index();
                effects.cold_reads.push(ColdRead {
                    group: self.id,
                    first_index: wanted.first_index,
                    last_index,
                    bytes_max: self.config.append_bytes_max,
                });
                Vec::new()
            });
            if waiting.len() < CONTEXTS_MAX {
                waiting.push(wanted.context);
            }
        }
        if self.view().take_wants_snapshot() && !self.is_fetching_base {
            self.is_fetching_base = true;
            effects.bases.push(self.id);
        }
    }
}

/// How often the commit index is recorded.
const COMMIT_RECORD_TICKS: u64 = 10;

/// Completes the no-ops among `entries`, which follow `tip`: everything about them follows from
/// their place, so that all replicas make the same of them.
fn link_no_ops(mut tip: Tip, mut entries: Vec<Entry>) -> Vec<Entry> {
    for entry in &mut entries {
        let header = &mut entry.header;
        if header.kind == Kind::NoOp && header.chain == 0 {
            header.base_offset = tip.end_offset;
            header.append_time_ms = tip.append_time_ms;
            header.chain = header.chain_after(tip.chain);
        }
        tip = header.tip();
    }
    entries
}

/// Spreads a number over all 64 bits (the finalizer of `SplitMix64`).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .field("replica", &self.replica)
            .field("role", &self.role())
            .field("term", &self.term())
            .field("committed", &self.committed())
            .field("last_index", &self.last_index())
            .finish_non_exhaustive()
    }
}
