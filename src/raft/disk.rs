//! A disk: effects of groups, carried out on a data directory.
//!
//! Writes go into the page cache at once; syncs are the syncer's, and its rounds report the tokens.
//! A full disk is no fault: what does not fit is kept, in order, and tried again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::effects::{ColdRead, Fault, Persist, Step};
use super::group::{Boot, Durability};
use super::hard_state::{Checkpoint, HardState};
use super::log_view::{Base, TermStart};
use super::machine::Machine;
use super::membership::Membership;
use crate::storage::{
    self, Access, Change, Class, DataDir, Entry, FactKind, Kind, Log, LogReader, Policy,
    RecoveryReport, SyncRequest, Syncer, Tip,
};
use crate::types::{LogId, ReplicaId};

/// Index of the entry that a group's first members start after. Whoever joins later has nothing and
/// so always begins with a snapshot, which tells it the membership.
const FOUNDING_INDEX: u64 = 1;
const FOUNDING_TERM: u64 = 1;
/// Payload bytes read at a time while a log is opened.
const READ_BYTES: usize = 1024 * 1024;

/// Reported for work that nobody waits for.
const NO_TOKEN: u64 = 0;

/// Gives the checkpoint of a group's state after an index.
pub type CheckpointOf<'a> = &'a mut dyn FnMut(LogId, u64) -> Checkpoint;

/// The logs of a shard's groups.
#[derive(Debug)]
pub struct Disk {
    dir: Arc<DataDir>,
    logs: BTreeMap<LogId, Log>,
    /// Work that waits for space, the oldest first.
    stalled: BTreeMap<LogId, VecDeque<Persist>>,
    /// Logs that were written to since their watermark was recorded.
    written: BTreeSet<LogId>,
}

/// A replica that was brought back.
#[derive(Debug)]
pub struct Opened<M> {
    /// What the group starts from.
    pub boot: Boot,
    /// The state machine at the commit index.
    pub machine: M,
    /// What recovery found.
    pub report: RecoveryReport,
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What storage said.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The journal or a checkpoint holds something that this version does not know.
    #[error("log {log}: its {what} cannot be read; was it written by a later version?")]
    Unreadable {
        /// The log.
        log: LogId,
        /// What cannot be read.
        what: &'static str,
    },
    /// The log has no checkpoint that it could be opened from.
    #[error("log {log} has no checkpoint at or before entry {commit}")]
    NoCheckpoint {
        /// The log.
        log: LogId,
        /// The commit index.
        commit: u64,
    },
    /// Entries that this replica said it has are damaged. It cannot vote as if it never had them,
    /// nor take others in their place.
    #[error("log {log}: entries {first} to {last} were on disk and are gone; replace the replica")]
    TailLost {
        /// The log.
        log: LogId,
        /// The first entry that is missing.
        first: u64,
        /// The last one, inclusive.
        last: u64,
    },
    /// The state machine refused an entry.
    #[error("log {log}: {fault}")]
    Fault {
        /// The log.
        log: LogId,
        /// Why.
        fault: Fault,
    },
}

impl Disk {
    /// A disk without logs.
    pub fn new(dir: Arc<DataDir>) -> Self {
        Self { dir, logs: BTreeMap::new(), stalled: BTreeMap::new(), written: BTreeSet::new() }
    }

    /// The data directory.
    pub fn dir(&self) -> &Arc<DataDir> {
        &self.dir
    }

    /// A reader of a group's log.
    pub fn reader(&self, group: LogId) -> Option<LogReader> {
        self.logs.get(&group).map(Log::reader)
    }

    /// The log of a group.
    pub fn log(&self, group: LogId) -> Option<&Log> {
        self.logs.get(&group)
    }

    /// Groups that wait for space.
    pub fn stalled(&self) -> impl Iterator<Item = LogId> {
        self.stalled.keys().copied()
    }

    /// Makes a new replica's log. `members` are the replicas of a group that is being founded,
    /// alike on all of them; `None` for a replica that joins a group and has to be brought up by
    /// its leader.
    ///
    /// DURABILITY: the log is on disk when this returns.
    ///
    /// # Errors
    /// As [`DataDir::create_log`].
    pub fn create<M: Machine>(
        &mut self,
        group: LogId,
        members: Option<&Membership>,
    ) -> storage::Result<()> {
        let (tip, hard_state) = match members {
            Some(_) => (founding_tip(group), HardState::founding()),
            None => (Tip::EMPTY, HardState::default()),
        };
        let state = M::new(tip.index);
        let state = state.initial_checkpoint();
        let checkpoint = Checkpoint { membership: members.cloned().unwrap_or_default(), state };
        let log = self.dir.create_log(group, tip, &checkpoint.encode())?;
        let value = Some(hard_state.encode());
        let journal = self.dir.journal();
        journal.record(&[Change { log: group, kind: FactKind::HardState, value }])?;
        log.sync()?;
        journal.sync()?;
        drop(log);
        Ok(())
    }

    /// Opens a replica's log and works out where its group starts.
    ///
    /// # Errors
    /// [`OpenError`]; the log is not used then.
    pub fn open<M: Machine>(
        &mut self,
        group: LogId,
        replica: ReplicaId,
        durability: Durability,
    ) -> Result<Opened<M>, OpenError> {
        let (log, report) = self.dir.open_log(group)?;
        if let Some(lost) = log.lost_tail() {
            let (first, last) = (lost.first_index, lost.last_index);
            return Err(OpenError::TailLost { log: group, first, last });
        }
        // DURABILITY: raft-rs takes everything that it can read for durable.
        log.sync()?;
        let reader = log.reader();
        let (start, tip) = (reader.tip_at(reader.first_index() - 1, Access::MayBlock)?, log.tip());
        let mut hard_state = self.hard_state(group)?;
        if tip.term > hard_state.term {
            // The vote of an earlier term says nothing about this one.
            hard_state = self.move_to_term(group, tip.term, hard_state)?;
        }
        if durability == Durability::Memory && report.class != Class::Clean && tip.index > 0 {
            // Entries that this replica acknowledged may be gone, while the leader counts on them.
            // A later term makes whoever leads ask again.
            hard_state = self.move_to_term(group, hard_state.term + 1, hard_state)?;
        }
        hard_state.commit = hard_state.commit.clamp(start.index, tip.index);
        let (from, checkpoint) = self.checkpoint(group, &reader, hard_state.commit)?;
        let membership = self.membership(group, &checkpoint)?;
        // The change that made this membership was applied, so it is committed, and so is all that
        // is in the log before it. A removed replica may be the only one to know.
        hard_state.commit = hard_state.commit.max(membership.index.min(tip.index));
        let unreadable = |_: String| OpenError::Unreadable { log: group, what: "checkpoint" };
        let machine = M::restore(&checkpoint.state).map_err(unreadable)?;
        if machine.applied_index() != from.index {
            return Err(unreadable("it is of another entry".to_owned()));
        }
        let mut replay = Replay { machine, tip: from, commit: hard_state.commit, kept: Vec::new() };
        replay.run(&reader, &membership, tip.index).map_err(|error| match error {
            ReplayError::Storage(error) => OpenError::Storage(error),
            ReplayError::Fault(fault) => OpenError::Fault { log: group, fault },
        })?;
        let Replay { machine, tip: applied, commit, kept } = replay;
        hard_state.commit = commit;
        let terms = term_starts(&reader, start, tip)?;
        self.logs.insert(group, log);
        let (id, entries) = (group, kept);
        let boot = Boot {
            id,
            replica,
            durability,
            hard_state,
            membership,
            start,
            terms,
            applied,
            entries,
        };
        Ok(Opened { boot, machine, report })
    }

    fn move_to_term(
        &self,
        log: LogId,
        term: u64,
        hard_state: HardState,
    ) -> storage::Result<HardState> {
        let moved = HardState { term, vote: 0, ..hard_state };
        let (kind, value) = (FactKind::HardState, Some(moved.encode()));
        let journal = self.dir.journal();
        journal.record(&[Change { log, kind, value }])?;
        journal.sync()?;
        Ok(moved)
    }

    fn hard_state(&self, group: LogId) -> Result<HardState, OpenError> {
        match self.dir.journal().get(group, FactKind::HardState) {
            Some(bytes) => HardState::decode(&bytes)
                .ok_or(OpenError::Unreadable { log: group, what: "hard state" }),
            None => Ok(HardState::default()),
        }
    }

    /// The latest checkpoint at or before `commit` that can be read.
    fn checkpoint(
        &self,
        group: LogId,
        reader: &LogReader,
        commit: u64,
    ) -> Result<(Tip, Checkpoint), OpenError> {
        let mut before = commit;
        loop {
            match reader.checkpoint_before(before) {
                Ok(Some((tip, bytes))) => {
                    let unreadable = OpenError::Unreadable { log: group, what: "checkpoint" };
                    return Ok((tip, Checkpoint::decode(bytes).ok_or(unreadable)?));
                }
                Ok(None) => return Err(OpenError::NoCheckpoint { log: group, commit }),
                Err(error @ storage::Error::Corrupt(_)) => {
                    let segments = reader.segments();
                    let tips = segments.iter().rev().map(|segment| segment.header().previous);
                    let tip = tips.into_iter().find(|tip| tip.index <= before);
                    before = tip.and_then(|tip| tip.index.checked_sub(1)).ok_or(error)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The later of what the journal and the checkpoint say.
    fn membership(&self, group: LogId, checkpoint: &Checkpoint) -> Result<Membership, OpenError> {
        let Some(bytes) = self.dir.journal().get(group, FactKind::Membership) else {
            return Ok(checkpoint.membership.clone());
        };
        let journaled = Membership::decode(&bytes);
        let journaled =
            journaled.ok_or(OpenError::Unreadable { log: group, what: "membership" })?;
        let is_later = journaled.index > checkpoint.membership.index;
        Ok(if is_later { journaled } else { checkpoint.membership.clone() })
    }

    /// Takes back entry `index` of a group and all after it, although they were committed: a
    /// majority lost them to a power cut, with [`Durability::Memory`], and went on without. The
    /// group must have been closed; opened again, it follows its leader.
    ///
    /// # Errors
    /// As [`Log::truncate_suffix`].
    pub fn rewind<M: Machine>(&mut self, group: LogId, index: u64) -> Result<(), OpenError> {
        self.stalled.remove(&group);
        let Some(mut log) = self.logs.remove(&group) else {
            return Ok(());
        };
        let mut hard_state = self.hard_state(group)?;
        hard_state.commit = hard_state.commit.min(index - 1);
        let (kind, value) = (FactKind::HardState, Some(hard_state.encode()));
        self.dir.journal().record(&[Change { log: group, kind, value }])?;
        if index > log.reader().first_index() {
            log.truncate_suffix(index, index - 1, None)?;
        } else {
            // What is left of the leader's history is gone here: begin with its snapshot.
            let state = M::new(0).initial_checkpoint();
            let checkpoint = Checkpoint { membership: Membership::default(), state };
            log.reset(Tip::EMPTY, &checkpoint.encode())?;
        }
        log.sync()?;
        self.dir.journal().sync()?;
        Ok(())
    }

    /// Closes a group's log in order.
    ///
    /// # Errors
    /// As [`DataDir::close_log`].
    pub fn close(&mut self, group: LogId) -> storage::Result<()> {
        self.stalled.remove(&group);
        self.logs.remove(&group).map_or(Ok(()), |log| self.dir.close_log(log))
    }

    /// Carries out the work of one step. What is done once it is written goes to `done`; the rest
    /// is reported by the syncer's rounds.
    ///
    /// # Errors
    /// Any error is final for the data directory. A full disk is none: see [`Self::stalled`].
    pub fn perform(
        &mut self,
        persists: Vec<Persist>,
        checkpoint: CheckpointOf<'_>,
        syncer: &Syncer,
        done: &mut Vec<u64>,
    ) -> storage::Result<()> {
        for persist in persists {
            if let Some(waiting) = self.stalled.get_mut(&persist.group) {
                waiting.iter_mut().for_each(|earlier| earlier.yield_to(&persist));
                waiting.push_back(persist);
                continue;
            }
            self.start(persist, checkpoint, syncer, done)?;
        }
        Ok(())
    }

    /// Tries again what waits for space.
    ///
    /// # Errors
    /// As [`Self::perform`].
    pub fn retry(
        &mut self,
        checkpoint: CheckpointOf<'_>,
        syncer: &Syncer,
        done: &mut Vec<u64>,
    ) -> storage::Result<()> {
        for (_, waiting) in std::mem::take(&mut self.stalled) {
            self.perform(waiting.into(), checkpoint, syncer, done)?;
        }
        Ok(())
    }

    /// Records how far logs are on disk that have gone idle, and sees that the journal gets there
    /// too. To be called every tenth of a second or so.
    ///
    /// # Errors
    /// As [`Self::perform`].
    pub fn tend(&mut self, syncer: &Syncer) -> storage::Result<()> {
        let logs = &self.logs;
        let is_idle =
            |group: &LogId| logs.get(group).is_none_or(|log| log.synced_index() == log.tip().index);
        let (idle, busy) = std::mem::take(&mut self.written).into_iter().partition(is_idle);
        self.written = busy;
        let idle: BTreeSet<LogId> = idle;
        // DURABILITY: without it, damage to what was synced last could pass for a torn tail.
        let mut idle = idle.iter().filter_map(|group| logs.get(group));
        let recorded = idle.try_for_each(|log| log.record_watermark().map(drop));
        match recorded {
            Ok(()) | Err(storage::Error::NoSpace { .. }) => {}
            Err(error) => return Err(error),
        }
        if self.dir.journal().is_dirty() {
            syncer.submit(SyncRequest { log: None, token: NO_TOKEN });
        }
        Ok(())
    }

    fn start(
        &mut self,
        mut persist: Persist,
        checkpoint: CheckpointOf<'_>,
        syncer: &Syncer,
        done: &mut Vec<u64>,
    ) -> storage::Result<()> {
        match self.write(&mut persist, checkpoint) {
            Ok(log) if persist.is_synced => {
                syncer.submit(SyncRequest { log, token: persist.token });
            }
            Ok(_) => done.push(persist.token),
            Err(storage::Error::NoSpace { .. }) => {
                let waiting = self.stalled.entry(persist.group).or_default();
                waiting.push_back(persist);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Does the steps, and takes those out of `persist` that are done.
    fn write(
        &mut self,
        persist: &mut Persist,
        checkpoint: CheckpointOf<'_>,
    ) -> storage::Result<Option<Arc<storage::LogSync>>> {
        let group = persist.group;
        let log = self.logs.get_mut(&group).expect("a group with work for the disk has a log");
        while let Some(step) = persist.steps.first_mut() {
            match step {
                Step::Reset { base, membership } => {
                    let (membership, state) = (membership.clone(), base.state.clone());
                    log.reset(base.tip, &Checkpoint { membership, state }.encode())?;
                }
                Step::Truncate { first_index, committed_index } => {
                    let bytes = checkpoint(group, *first_index - 1).encode();
                    log.truncate_suffix(*first_index, *committed_index, Some(&bytes))?;
                }
                Step::Append(entries) => {
                    self.written.insert(group);
                    append(log, entries, checkpoint)?;
                }
                Step::Record(kind, value) | Step::Hint(kind, value) => {
                    let value = Some(value.clone());
                    self.dir.journal().record(&[Change { log: group, kind: *kind, value }])?;
                }
            }
            persist.steps.remove(0);
        }
        Ok(Some(log.syncer_handle()))
    }

    /// Applies a retention policy to a group's log and moves its start to `log_start` at least.
    /// Only entries up to `settled` go, see [`super::Group::settled`]. Returns the tip before the
    /// first entry if that has changed.
    ///
    /// # Errors
    /// As [`Log::retain`].
    pub fn retain(
        &mut self,
        group: LogId,
        policy: &Policy,
        log_start: u64,
        settled: u64,
        now_ms: i64,
    ) -> storage::Result<Option<Tip>> {
        let Some(log) = self.logs.get_mut(&group) else {
            return Ok(None);
        };
        log.reclaim()?;
        let reader = log.reader();
        let first_index = reader.first_index();
        log.advance_log_start(log_start.min(reader.log_end_offset()), settled)?;
        log.retain(policy, settled, now_ms)?;
        if reader.first_index() == first_index {
            return Ok(None);
        }
        reader.tip_at(reader.first_index() - 1, Access::MayBlock).map(Some)
    }
}

/// Appends, and keeps in `entries` what did not fit.
fn append(
    log: &mut Log,
    entries: &mut Vec<Entry>,
    checkpoint: CheckpointOf<'_>,
) -> storage::Result<()> {
    let group = log.id();
    let mut expected = entries.clone();
    let result = log.append(&mut expected, &mut |tip| checkpoint(group, tip.index).encode());
    let appended = log.tip().index;
    for (ours, theirs) in entries.iter().zip(&expected) {
        let is_appended = ours.header.index <= appended;
        assert!(
            !is_appended || ours.header.chain == theirs.header.chain,
            "{group}: entry {} is linked differently in memory and on disk",
            ours.header.index
        );
    }
    entries.retain(|entry| entry.header.index > appended);
    result
}

impl HardState {
    fn founding() -> Self {
        Self { term: FOUNDING_TERM, vote: 0, commit: FOUNDING_INDEX }
    }
}

fn founding_tip(group: LogId) -> Tip {
    Tip {
        index: FOUNDING_INDEX,
        term: FOUNDING_TERM,
        chain: crc32fast::hash(group.0.as_bytes()),
        ..Tip::EMPTY
    }
}

/// Where each term begins in a log that starts after `start` and ends at `tip`.
fn term_starts(reader: &LogReader, start: Tip, tip: Tip) -> storage::Result<Vec<TermStart>> {
    let mut terms = vec![TermStart { term: start.term, first_index: start.index }];
    let mut after = start;
    while after.term < tip.term {
        // The first entry of a later term lies in (after.index, tip.index].
        let (mut low, mut high) = (after.index, tip.index);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if reader.term_at(middle, Access::MayBlock)? > after.term {
                high = middle;
            } else {
                low = middle;
            }
        }
        after = reader.tip_at(high, Access::MayBlock)?;
        terms.push(TermStart { term: after.term, first_index: high });
    }
    Ok(terms)
}

/// Reads entries for a follower; none if that fails, and then why.
///
/// # Errors
/// As [`LogReader::read`].
pub fn read_cold(
    reader: &LogReader,
    read: &ColdRead,
    access: Access,
) -> storage::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let bytes_max = usize::try_from(read.bytes_max).unwrap_or(usize::MAX);
    reader.read(read.first_index, read.last_index, bytes_max, access, &mut entries)?;
    Ok(entries)
}

/// Reads what a log starts with.
///
/// # Errors
/// As [`LogReader::checkpoint_before`].
pub fn read_base(reader: &LogReader) -> storage::Result<Option<Base>> {
    let segments = reader.segments();
    let first = segments.first().expect("a log has a segment");
    let bytes = first.checkpoint()?;
    let checkpoint = Checkpoint::decode(bytes);
    Ok(checkpoint.map(|checkpoint| Base { tip: first.header().previous, state: checkpoint.state }))
}

enum ReplayError {
    Storage(storage::Error),
    Fault(Fault),
}

impl From<storage::Error> for ReplayError {
    fn from(error: storage::Error) -> Self {
        Self::Storage(error)
    }
}

/// Brings a machine from a checkpoint to the commit index and collects what comes after.
struct Replay<M> {
    machine: M,
    /// The tip that the machine is at.
    tip: Tip,
    commit: u64,
    kept: Vec<Entry>,
}

impl<M: Machine> Replay<M> {
    fn run(
        &mut self,
        reader: &LogReader,
        membership: &Membership,
        last_index: u64,
    ) -> Result<(), ReplayError> {
        let mut next = self.tip.index + 1;
        let mut entries = Vec::new();
        while next <= last_index {
            entries.clear();
            reader.read(next, last_index, READ_BYTES, Access::MayBlock, &mut entries)?;
            for entry in entries.drain(..) {
                next = entry.header.index + 1;
                self.take(entry, membership)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, mut entry: Entry, membership: &Membership) -> Result<(), ReplayError> {
        let header = entry.header;
        let is_new_change = header.kind == Kind::Membership && header.index > membership.index;
        if is_new_change && header.index <= self.commit {
            // The group has to apply it itself; so it learns again that it is committed.
            self.commit = header.index - 1;
        }
        if header.index <= self.commit {
            self.machine.replay(&entry).map_err(ReplayError::Fault)?;
            self.tip = header.tip();
            return Ok(());
        }
        if header.kind == Kind::Records {
            // The group reads it again where that may wait for a disk.
            entry.payload = Bytes::new();
        }
        // What is local to a replica's disk has no place in memory or on the wire.
        entry.header.synced_index = 0;
        self.kept.push(entry);
        Ok(())
    }
}
