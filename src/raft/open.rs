//! Making replicas, and bringing them back after a restart.
//!
//! All of it may wait for a disk, so it is done before a group is handed to its shard.

use bytes::Bytes;

use super::effects::Fault;
use super::group::{Boot, Durability};
use super::hard_state::{Checkpoint, HardState, Promise};
use super::log_view::TermStart;
use super::machine::Machine;
use super::membership::Membership;
use super::planted::{Bug, planted};
use crate::storage::{
    self, Access, Change, Class, DataDir, Entry, FactKind, Kind, Log, LogReader, RecoveryReport,
    Tip,
};
use crate::types::{LogId, ReplicaId};

/// Index of the entry that a group's first members start after. Whoever joins later has nothing and
/// so always begins with a snapshot, which tells it the membership.
const FOUNDING_INDEX: u64 = 1;
const FOUNDING_TERM: u64 = 1;
/// Payload bytes read at a time while a log is opened.
const READ_BYTES: usize = 1024 * 1024;

/// A replica that was brought back.
#[derive(Debug)]
pub struct Opened<M> {
    /// Its log.
    pub log: Log,
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
    /// The state machine refused an entry.
    #[error("log {log}: {fault}")]
    Fault {
        /// The log.
        log: LogId,
        /// Why.
        fault: Fault,
    },
}

/// Makes a new replica's log. `members` are the replicas of a group that is being founded,
/// alike on all of them; `None` for a replica that joins a group and has to be brought up by
/// its leader.
///
/// DURABILITY: nothing is on disk before the log and the journal are synced.
///
/// # Errors
/// As [`DataDir::create_log`].
pub fn create_replica<M: Machine>(
    dir: &DataDir,
    group: LogId,
    members: Option<&Membership>,
) -> storage::Result<Log> {
    let (tip, hard_state) = match members {
        Some(_) => (founding_tip(group), HardState::founding()),
        None => (Tip::EMPTY, HardState::default()),
    };
    let state = M::new(tip.index);
    let state = state.initial_checkpoint();
    let checkpoint = Checkpoint { membership: members.cloned().unwrap_or_default(), state };
    let log = dir.create_log(group, tip, &checkpoint.encode())?;
    let value = Some(hard_state.encode());
    let journal = dir.journal();
    journal.record(&[Change { log: group, kind: FactKind::HardState, value }])?;
    Ok(log)
}

/// Opens a replica's log and works out where its group starts.
///
/// # Errors
/// [`OpenError`]; the log is not used then.
pub fn open_replica<M: Machine>(
    dir: &DataDir,
    group: LogId,
    replica: ReplicaId,
    durability: Durability,
) -> Result<Opened<M>, OpenError> {
    let (mut log, report) = dir.open_log(group)?;
    keep_promise(dir, &mut log)?;
    // DURABILITY: raft-rs takes everything that it can read for durable.
    if !planted(Bug::OpenWithoutSync) {
        log.sync()?;
    }
    let reader = log.reader();
    let (start, tip) = (reader.tip_at(reader.first_index() - 1, Access::MayBlock)?, log.tip());
    let mut hard_state = hard_state_of(dir, group)?;
    if tip.term > hard_state.term && !planted(Bug::OldVoteKept) {
        // The vote of an earlier term says nothing about this one.
        hard_state = move_to_term(dir, group, tip.term, hard_state)?;
    }
    if durability == Durability::Memory && report.class != Class::Clean && tip.index > 0 {
        // Entries that this replica acknowledged may be gone, while the leader counts on them.
        // A later term makes whoever leads ask again.
        hard_state = move_to_term(dir, group, hard_state.term + 1, hard_state)?;
    }
    let last = Promise { term: tip.term, index: tip.index };
    hard_state.promise = hard_state.promise.filter(|promise| *promise > last);
    if !planted(Bug::CommitNotClamped) {
        hard_state.commit = hard_state.commit.clamp(start.index, tip.index);
    }
    let (from, checkpoint) = checkpoint_at(group, &reader, hard_state.commit)?;
    let membership = membership_of(dir, group, &checkpoint)?;
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
    assert!(
        applied.index == commit && commit <= tip.index,
        "{group}: {} is applied, {commit} committed, the log ends at {}",
        applied.index,
        tip.index
    );
    hard_state.commit = commit;
    let terms = term_starts(&reader, start, tip)?;
    let (id, entries) = (group, kept);
    let boot =
        Boot { id, replica, durability, hard_state, membership, start, terms, applied, entries };
    Ok(Opened { log, boot, machine, report })
}

/// Lets a log that lost its end go on without it. The replica keeps the promise of what it lost in
/// its hard state, and moves to a later term: a leader that counts on what is gone asks again there.
///
/// DURABILITY: the promise is on disk before the log forgets that it lost anything.
fn keep_promise(dir: &DataDir, log: &mut Log) -> Result<(), OpenError> {
    let Some(lost) = log.lost_tail() else { return Ok(()) };
    let (group, tip) = (log.id(), log.tip());
    let hard_state = hard_state_of(dir, group)?;
    // No entry that was acknowledged is of a later term than this.
    let term_max = hard_state.term.max(tip.term);
    let lost = Promise { term: lost.last_term.min(term_max), index: lost.last_index };
    assert!(lost.index > tip.index, "{group}: {lost:?} was lost, the log ends with {tip:?}");
    let promise = hard_state.promise.max(Some(lost));
    let commit = hard_state.commit.min(tip.index);
    tracing::error!(%group, ?promise, ends_at = tip.index, "the end of a log is lost");
    move_to_term(dir, group, term_max + 1, HardState { commit, promise, ..hard_state })?;
    log.forget_lost_tail()?;
    log.sync()?;
    Ok(())
}

fn move_to_term(
    dir: &DataDir,
    log: LogId,
    term: u64,
    hard_state: HardState,
) -> storage::Result<HardState> {
    let moved = HardState { term, vote: 0, ..hard_state };
    let (kind, value) = (FactKind::HardState, Some(moved.encode()));
    let journal = dir.journal();
    journal.record(&[Change { log, kind, value }])?;
    journal.sync()?;
    Ok(moved)
}

pub(super) fn hard_state_of(dir: &DataDir, group: LogId) -> Result<HardState, OpenError> {
    match dir.journal().get(group, FactKind::HardState) {
        Some(bytes) => HardState::decode(&bytes)
            .ok_or(OpenError::Unreadable { log: group, what: "hard state" }),
        None => Ok(HardState::default()),
    }
}

/// The latest checkpoint at or before `commit` that can be read.
fn checkpoint_at(
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
fn membership_of(
    dir: &DataDir,
    group: LogId,
    checkpoint: &Checkpoint,
) -> Result<Membership, OpenError> {
    let Some(bytes) = dir.journal().get(group, FactKind::Membership) else {
        return Ok(checkpoint.membership.clone());
    };
    let journaled = Membership::decode(&bytes);
    let journaled = journaled.ok_or(OpenError::Unreadable { log: group, what: "membership" })?;
    let is_later = journaled.index > checkpoint.membership.index;
    Ok(if is_later { journaled } else { checkpoint.membership.clone() })
}

impl HardState {
    fn founding() -> Self {
        Self { term: FOUNDING_TERM, vote: 0, commit: FOUNDING_INDEX, promise: None }
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
