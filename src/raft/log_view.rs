//! The log as the Raft library sees it: in memory, without a single read of a file.
//!
//! A view knows where the log starts and ends, where each term begins, and the entries of its tail:
//! at least everything that is not applied yet, with the payloads that arrived since the replica
//! started. Older entries stay on disk. When a follower needs them the view answers "not now" and
//! remembers who asked; whoever may wait for a disk reads them and hands them in.
//!
//! Invariants:
//! * `tail` is contiguous and ends at `tip`; `base` is the tip right before its first entry.
//! * `terms` ascend in both fields; the first one begins at or before the log's first index.
//! * What raft-rs reads for its own use is a stub: index, term and type. It never sees a payload
//!   that it does not send.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ::raft::eraftpb::{Entry as RaftEntry, EntryType, Snapshot};
use ::raft::{GetEntriesContext, RaftState, Storage, StorageError};
use bytes::Bytes;

use super::hard_state::HardState;
use super::membership::Membership;
use crate::storage::{Discontinuity, Entry, EntryHeader, Kind, Tip};

/// The first entry of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: u64,
    /// Index of its first entry in this log.
    pub first_index: u64,
}

/// Where a snapshot is taken: the log's first segment starts with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The tip right before the log's first entry.
    pub tip: Tip,
    /// The state there, as the state machine encoded it.
    pub state: Bytes,
}

/// A follower waits for entries that are not in memory.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) context: GetEntriesContext,
    pub(super) first_index: u64,
}

/// Entries that were read for a follower.
#[derive(Debug)]
struct Fetched {
    first_index: u64,
    entries: Vec<RaftEntry>,
}

#[derive(Debug)]
pub(super) struct LogView {
    hard_state: HardState,
    membership: Membership,
    start: Tip,
    terms: Vec<TermStart>,
    base: Tip,
    tail: VecDeque<Entry>,
    /// Bytes of the payloads in `tail`.
    tail_bytes: usize,
    tip: Tip,
    /// Indices of membership entries in `tail`, ascending.
    changes: VecDeque<u64>,
    wanted: RefCell<Vec<Wanted>>,
    fetched: Option<Fetched>,
    wants_snapshot: Cell<bool>,
    snapshot: Option<Snapshot>,
}

impl LogView {
    /// A view of a log that starts after `start` and ends with `entries`; the first of them comes
    /// after the tip `base`.
    pub(super) fn new(
        hard_state: HardState,
        membership: Membership,
        start: Tip,
        terms: Vec<TermStart>,
        base: Tip,
        entries: Vec<Entry>,
    ) -> Self {
        assert!(base.index >= start.index, "{base:?} comes before the log's start {start:?}");
        let tip = entries.last().map_or(base, |entry| entry.header.tip());
        assert_eq!(tip.index, base.index + entries.len() as u64, "the tail is contiguous");
        let changes = entries.iter().filter(|entry| entry.header.kind == Kind::Membership);
        Self {
            hard_state,
            membership,
            start,
            terms,
            base,
            changes: changes.map(|entry| entry.header.index).collect(),
            tail_bytes: entries.iter().map(|entry| entry.payload.len()).sum(),
            tail: entries.into(),
            tip,
            wanted: RefCell::default(),
            fetched: None,
            wants_snapshot: Cell::default(),
            snapshot: None,
        }
    }

    pub(super) fn start(&self) -> Tip {
        self.start
    }

    pub(super) fn tip(&self) -> Tip {
        self.tip
    }

    pub(super) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Indices of the membership entries that are not applied.
    pub(super) fn changes(&self) -> &VecDeque<u64> {
        &self.changes
    }

    /// The entry at `index`, if it is in memory. Its payload may be missing.
    pub(super) fn entry(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.base.index + 1)?;
        self.tail.get(usize::try_from(at).ok()?)
    }

    /// The tip as it was when `index` was the last entry, for the tail and the entry before it.
    pub(super) fn tip_at(&self, index: u64) -> Option<Tip> {
        if index == self.base.index {
            return Some(self.base);
        }
        self.entry(index).map(|entry| entry.header.tip())
    }

    /// Adds entries that continue the log.
    ///
    /// # Errors
    /// Says which of them does not: the histories of two replicas differ.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), Divergence> {
        for entry in entries {
            let header = &entry.header;
            self.tip.check_continued_by(header)?;
            let expected = header.chain_after(self.tip.chain);
            if header.chain != expected {
                let (index, found) = (header.index, header.chain);
                return Err(Divergence::Chain { index, expected, found });
            }
            if self.terms.last().is_none_or(|last| last.term < header.term) {
                let before = self.terms.last().map_or(0, |term| term.first_index);
                assert!(
                    before < header.index,
                    "term {} begins at {}, the one before at {before}",
                    header.term,
                    header.index
                );
                self.terms.push(TermStart { term: header.term, first_index: header.index });
            }
            if header.kind == Kind::Membership {
                self.changes.push_back(header.index);
            }
            self.tip = header.tip();
            self.tail_bytes += entry.payload.len();
            self.tail.push_back(entry.clone());
        }
        Ok(())
    }

    /// Drops the entries after `last_index`.
    pub(super) fn truncate(&mut self, last_index: u64) {
        assert!(
            last_index >= self.base.index,
            "entries after {last_index} are to go, those up to {} are applied",
            self.base.index
        );
        while self.tail.back().is_some_and(|entry| entry.header.index > last_index) {
            let entry = self.tail.pop_back().expect("the tail has a last entry");
            self.tail_bytes -= entry.payload.len();
        }
        self.tip = self.tail.back().map_or(self.base, |entry| entry.header.tip());
        assert_eq!(self.tip.index, last_index, "the log ends where it was cut");
        self.terms.retain(|term| term.first_index <= last_index);
        self.changes.retain(|index| *index <= last_index);
        self.snapshot = None;
    }

    /// Begins anew after `tip`.
    pub(super) fn reset(&mut self, tip: Tip) {
        let base = self.base.index;
        assert!(tip.index >= base, "a log begins anew after {}, {base} is applied", tip.index);
        self.start = tip;
        self.base = tip;
        self.tip = tip;
        self.tail.clear();
        self.tail_bytes = 0;
        self.changes.clear();
        self.terms = vec![TermStart { term: tip.term, first_index: tip.index }];
        self.fetched = None;
        self.snapshot = None;
    }

    /// Notes that the log starts after `start` now.
    pub(super) fn advance_start(&mut self, start: Tip) {
        assert!(start.index >= self.start.index, "a log start goes forward, not to {start:?}");
        self.drop_up_to(start.index);
        self.start = start;
        let first = self.terms.partition_point(|term| term.first_index <= start.index);
        self.terms.drain(..first.saturating_sub(1));
        self.snapshot = None;
    }

    /// Forgets entries up to `spare`, and those up to `index` while the payloads in memory are more
    /// than `bytes_max`. With 0 it also gives back the room that a load took.
    pub(super) fn trim(&mut self, spare: u64, index: u64, bytes_max: usize) {
        let last_index = self.tip.index;
        assert!(
            spare <= index && index <= last_index,
            "{spare} are spare and {index} applied of {last_index} in the log"
        );
        self.drop_up_to(spare);
        while self.base.index < index && (self.tail_bytes > bytes_max || bytes_max == 0) {
            self.drop_up_to(self.base.index + 1);
        }
        if self.tail.is_empty() && bytes_max == 0 {
            self.tail.shrink_to_fit();
        }
    }

    fn drop_up_to(&mut self, index: u64) {
        while self.tail.front().is_some_and(|entry| entry.header.index <= index) {
            let entry = self.tail.pop_front().expect("the tail has a first entry");
            self.tail_bytes -= entry.payload.len();
            self.base = entry.header.tip();
        }
    }

    /// Notes that membership entries up to `index` are applied.
    pub(super) fn changes_applied(&mut self, index: u64) {
        while self.changes.front().is_some_and(|change| *change <= index) {
            self.changes.pop_front();
        }
    }

    /// Takes what followers wait for.
    pub(super) fn take_wanted(&mut self) -> Vec<Wanted> {
        self.wanted.take()
    }

    pub(super) fn offer(&mut self, first_index: u64, entries: &[Entry]) {
        let found = entries.first().map_or(first_index, |entry| entry.header.index);
        assert!(found == first_index, "entry {first_index} was to be read, {found} was");
        let entries = entries.iter().map(to_raft_cold).collect();
        self.fetched = Some(Fetched { first_index, entries });
    }

    pub(super) fn end_offer(&mut self) {
        self.fetched = None;
    }

    pub(super) fn take_wants_snapshot(&self) -> bool {
        self.wants_snapshot.take()
    }

    pub(super) fn offer_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(snapshot);
    }

    pub(super) fn forget_snapshot(&mut self) {
        self.snapshot = None;
    }

    fn stubs(&self, low: u64, high: u64) -> Vec<RaftEntry> {
        let stub = |index| {
            let entry = self.entry(index);
            let entry = entry.expect("entries that are not applied are in memory");
            stub_of(&entry.header)
        };
        (low..high).map(stub).collect()
    }

    fn hot(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<RaftEntry>> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        for index in low..high {
            let entry = self.entry(index)?;
            if entry.payload.len() as u64 != u64::from(entry.header.payload_len) {
                // Its payload was left on disk when the replica started.
                return (!entries.is_empty()).then_some(entries);
            }
            bytes += entry.header.frame_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(to_raft(entry));
        }
        Some(entries)
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        let mut hard_state = ::raft::eraftpb::HardState::default();
        hard_state.term = self.hard_state.term;
        hard_state.vote = self.hard_state.vote;
        hard_state.commit = self.hard_state.commit;
        Ok(RaftState::new(hard_state, self.membership.to_conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> ::raft::Result<Vec<RaftEntry>> {
        assert!(high <= self.tip.index + 1, "entry {high} is beyond {}", self.tip.index);
        if low <= self.start.index {
            return Err(StorageError::Compacted.into());
        }
        if !context.can_async() {
            return Ok(self.stubs(low, high));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if let Some(entries) = self.hot(low, high, bytes_max) {
            return Ok(entries);
        }
        if let Some(fetched) = &self.fetched
            && fetched.first_index == low
        {
            return Ok(fetched.entries.clone());
        }
        self.wanted.borrow_mut().push(Wanted { context, first_index: low });
        Err(StorageError::LogTemporarilyUnavailable.into())
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        if index < self.start.index {
            return Err(StorageError::Compacted.into());
        }
        if index == self.start.index {
            return Ok(self.start.term);
        }
        if index > self.tip.index {
            return Err(StorageError::Unavailable.into());
        }
        let at = self.terms.partition_point(|term| term.first_index <= index);
        Ok(self.terms[at.checked_sub(1).expect("the first term begins with the log")].term)
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.start.index + 1)
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.tip.index)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> ::raft::Result<Snapshot> {
        self.snapshot.clone().ok_or_else(|| {
            self.wants_snapshot.set(true);
            StorageError::SnapshotTemporarilyUnavailable.into()
        })
    }
}

/// Two replicas have different entries where Raft says that they are the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// An entry does not continue the log.
    #[error("{0}")]
    Order(#[from] Discontinuity),
    /// The leader has another entry where this replica knows one to be committed.
    #[error("the leader has another entry {index}, of term {found}, than the committed one")]
    Committed {
        /// Index of the entry.
        index: u64,
        /// Term of the leader's.
        found: u64,
    },
    /// An entry continues another history.
    #[error("chain of entry {index} is {found:#010x}, this log's gives {expected:#010x}")]
    Chain {
        /// Index of the entry.
        index: u64,
        /// What this replica's history gives.
        expected: u32,
        /// What the entry says.
        found: u32,
    },
}

/// The type that raft-rs knows an entry by.
pub(super) fn type_of(kind: Kind) -> EntryType {
    match kind {
        Kind::Membership => EntryType::EntryConfChangeV2,
        Kind::Records | Kind::NoOp | Kind::Control | Kind::LogStart => EntryType::EntryNormal,
    }
}

fn stub_of(header: &EntryHeader) -> RaftEntry {
    let (index, term) = (header.index, header.term);
    let mut stub = RaftEntry { index, term, ..RaftEntry::default() };
    stub.set_entry_type(type_of(header.kind));
    stub
}

/// An entry whose header is found again by its index.
fn to_raft(entry: &Entry) -> RaftEntry {
    let mut raft = stub_of(&entry.header);
    raft.data = entry.payload.clone();
    raft
}

/// An entry that carries its header along.
pub(super) fn to_raft_cold(entry: &Entry) -> RaftEntry {
    let mut raft = to_raft(entry);
    raft.context = Bytes::copy_from_slice(&entry.header.encode(CARRIED_SEED));
    raft
}

/// The entry that [`to_raft_cold`] was given; `None` if there is no header.
pub(super) fn from_raft(raft: &RaftEntry) -> Option<Entry> {
    let header = raft.context.as_ref().try_into().ok()?;
    let header = EntryHeader::decode(header, CARRIED_SEED).expect("a header that was just encoded");
    Some(Entry { header, payload: raft.data.clone() })
}

/// Headers inside raft-rs stay in this process; their checksum needs no salt.
const CARRIED_SEED: u32 = 0;
