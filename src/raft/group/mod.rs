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
//! * **A replica that lost the end of its log keeps its promise.** What it acknowledged may be
//!   committed because of it. Until its log is as far again as it was, in the order in which Raft
//!   compares logs, it votes only for who is as far, and does not seek election. A leader brings it
//!   there with ordinary appends: it has all that is committed, for nobody without it was elected.

mod inspect;
mod propose;
mod quiescence;
mod ready;
mod receive;
mod tail;
mod tick;

use std::collections::{BTreeMap, VecDeque};

pub use self::inspect::{Follower, Inspection, Look};
use ::raft::{GetEntriesContext, RawNode, StateRole};
use bytes::Bytes;

use super::config::Config;
use super::effects::{Effects, Fault};
use super::envelope::{Envelope, Lane};
use super::hard_state::{HardState, Promise};
use super::log_view::{LogView, TermStart};
use super::membership::Membership;
use super::planted::{Bug, planted};
use crate::storage::{Entry, Kind, Tip};
use crate::types::{LogId, ReplicaId};

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

/// How often things have happened to a replica that rarely do, since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Incidents {
    /// It learned that entries are committed from a later membership change in its log.
    pub inferred_commits: u64,
    /// It began to hand leadership over because its disk was slow.
    pub slow_disk_hand_overs: u64,
    /// It began to hand leadership over because it was to leave the voters.
    pub leaving_hand_overs: u64,
    /// Its log got as far again as it was before it lost its end.
    pub tails_repaired: u64,
    /// It gave leadership up, because it had lost an entry that nobody else was known to have.
    pub stood_back: u64,
    /// It waited long for a leader with what it lost at the end of its log, and none came.
    pub promises_in_vain: u64,
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
    /// Where the log ended before its end was lost; `None` once it is as far again.
    promise: Option<Promise>,
    /// A snapshot is being installed: nothing else happens until it is durable.
    is_restoring: bool,
    fault: Option<Fault>,
    /// Found while a message was taken; reported with the next [`Self::advance`].
    pending_fault: Option<Fault>,
    /// Followers that wait for entries from disk, by the first index they want.
    fetching: BTreeMap<u64, Vec<GetEntriesContext>>,
    is_fetching_base: bool,
    snapshot_until_tick: u64,
    /// It does not seek election before this tick.
    stands_back_until_tick: u64,
    /// Since when a follower is being sent a snapshot.
    snapshots_since: BTreeMap<u64, u64>,
    ticks: u64,
    last_busy_tick: u64,
    /// Time stands still: see `quiescence`.
    is_quiescent: bool,
    /// It was woken by something rare, and sleeps again as soon as it is done with that.
    dozes: bool,
    /// The commit index is to be recorded with the next [`Self::advance`].
    is_commit_due: bool,
    /// What was said between two calls of [`Self::advance`].
    outbox: Vec<(Lane, Envelope)>,
    seed: u64,
    /// What the present election timeout was drawn for.
    drawn_for: (u64, StateRole, u64),
    draws: u64,
    reads: Vec<(u64, u64)>,
    incidents: Incidents,
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
        let mut node = RawNode::new(&raft, view, &logger).expect("the configuration is valid");
        if membership.voters == [replica] && !membership.is_joint() {
            // There is nobody whose lead it could miss by not waiting.
            node.raft.election_elapsed = 2 * config.election_ticks;
        }
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
            promise: hard_state.promise,
            is_restoring: false,
            fault: None,
            pending_fault: None,
            fetching: BTreeMap::new(),
            is_fetching_base: false,
            snapshot_until_tick: 0,
            stands_back_until_tick: 0,
            snapshots_since: BTreeMap::new(),
            ticks: 0,
            last_busy_tick: 0,
            is_quiescent: false,
            dozes: false,
            is_commit_due: false,
            outbox: Vec::new(),
            seed,
            drawn_for: (u64::MAX, StateRole::Follower, 0),
            draws: 0,
            reads: Vec::new(),
            incidents: Incidents::default(),
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

    /// Entries up to here are committed, stored and followed: retention may drop them. None of them
    /// may go while this replica lacks the end of its log: whoever has that may be damaged itself
    /// and need what is here, before it can lead.
    pub fn settled(&self) -> u64 {
        if self.promise.is_some() { self.start().index } else { self.followed() }
    }

    /// Entries up to here no replica needs from this one any more, as far as it knows: a leader
    /// knows how far all others are. At most [`Self::settled`].
    ///
    /// What retention drops before a follower has it, the follower gets as a snapshot; were the
    /// start to move on all the time, it would never be done with that.
    pub fn spared(&self) -> u64 {
        self.settled().min(self.had_by_all(|_| true))
    }

    /// Entries up to here are committed, stored and followed.
    fn followed(&self) -> u64 {
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

    /// What rarely happens.
    pub fn incidents(&self) -> Incidents {
        self.incidents
    }

    /// Why the replica stopped, if it did.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// True if the replica leads and everything before its term is committed: proposals may come.
    pub fn is_writable(&self) -> bool {
        let is_known = self.node.raft.commit_to_current_term() || planted(Bug::WriteBeforeNoOp);
        self.role() == Role::Leader && self.is_running() && is_known
    }

    /// What the log ended with before its end was lost, if it is not as far again.
    pub fn promise(&self) -> Option<Promise> {
        self.promise
    }

    /// True if everything handed out is durable and nothing waits.
    pub fn is_quiet(&self) -> bool {
        self.passes.is_empty() && !self.node.has_ready()
    }

    /// False while a snapshot is being installed, also one that came with this very step: nothing
    /// else may happen to the group before it is done.
    fn is_running(&self) -> bool {
        let is_free = !self.is_restoring || planted(Bug::BusyWhileRestoring);
        is_free && self.fault.is_none() && self.node.snap().is_none()
    }

    /// True if a log may be cut before `first_index`, which cannot be read there. It has an entry
    /// at `anchor`, at or after that one, and ends with `last`; both are an index and a term. The
    /// last index is 0 for a replica that runs, which cuts nothing and only wants to know whether
    /// it waits for what is gone.
    ///
    /// All after `first_index` goes with it, so nothing of that may be missed. That is so if this
    /// replica leads in a later term without the anchor, for a leader has all that was ever
    /// committed. And if this log begins after the entry, so that it was settled, and has whatever
    /// may be needed of the rest: it goes as far as the other one, or it is a leader's.
    pub(super) fn may_be_cut(
        &self,
        first_index: u64,
        anchor: (u64, u64),
        last: (u64, u64),
    ) -> bool {
        let (start, is_leader) = (self.start().index, self.is_writable());
        let has_term = |(index, term): (u64, u64)| {
            self.node.raft.raft_log.term(index).is_ok_and(|found| found == term)
        };
        if first_index > start {
            let is_same = anchor.0 <= self.last_index() && has_term(anchor);
            return is_leader && self.term() > anchor.1 && !is_same;
        }
        let has_rest = last.0 <= start || (last.0 <= self.persisted() && has_term(last));
        has_rest || (is_leader && self.term() >= last.1)
    }

    /// Forgets the promise once what is stored is as far as what was lost.
    fn settle_promise(&mut self) {
        if self.promise.is_none() {
            return;
        }
        let index = self.persisted();
        let term = self.node.raft.raft_log.term(index).unwrap_or(0);
        let is_kept = |promise: &mut Promise| *promise <= Promise { term, index };
        if self.promise.take_if(is_kept).is_some() {
            assert!(index <= self.last_index(), "{}: {index} are stored of fewer", self.id);
            tracing::info!(group = %self.id, index, "the end of a log that was lost is back");
            self.incidents.tails_repaired += 1;
        }
    }

    fn view(&self) -> &LogView {
        self.node.store()
    }

    /// Stops the replica for good.
    pub(super) fn stop(&mut self, fault: Fault, effects: &mut Effects) {
        effects.faults.push((self.id, fault.clone()));
        self.fault = Some(fault);
    }
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
