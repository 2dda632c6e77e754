//! Making replicas, and bringing them back after a restart.
//!
//! All of it may wait for a disk, so it is done before a group is handed to its shard.

use bytes::Bytes;

use super::effects::{Damaged, Fault};
use super::group::{Boot, Durability};
use super::hard_state::{Checkpoint, HardState, Promise};
use super::input::Input;
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
    /// What it starts from.
    pub start: Start<M>,
    /// What recovery found.
    pub report: RecoveryReport,
}

/// What a replica starts from.
#[derive(Debug)]
pub enum Start<M> {
    /// The group and its state machine at the commit index. Its log may be damaged further back.
    Ready(Box<Boot>, M),
    /// Its log is damaged where it has to be read, and has to be mended first.
    Damaged(Damaged),
}

impl<M: Machine> Start<M> {
    /// The boot of a replica that can run; `None` for a damaged one.
    pub fn boot(&self) -> Option<&Boot> {
        match self {
            Self::Ready(boot, _) => Some(boot),
            Self::Damaged(_) => None,
        }
    }

    /// The news of it for its shard.
    pub fn into_input(self) -> Input<M> {
        match self {
            Self::Ready(boot, machine) => Input::Open(boot, machine),
            Self::Damaged(damaged) => Input::Damaged(damaged),
        }
    }
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
    if let Some(lost) = log.lost_tail() {
        let lost = Promise { term: lost.last_term, index: lost.last_index };
        keep_promise(dir, &log, lost, log.tip())?;
        log.forget_lost_tail()?;
        log.sync()?;
    }
    // DURABILITY: raft-rs takes everything that it can read for durable.
    if !planted(Bug::OpenWithoutSync) {
        log.sync()?;
    }
    let may_have_forgotten = durability == Durability::Memory && report.class != Class::Clean;
    let start = start_of(dir, &mut log, replica, durability, may_have_forgotten)?;
    Ok(Opened { log, start, report })
}

/// Works out what a replica starts from. If its log cannot be read where that is needed, all that
/// is suspected is looked into, so that it is known what is missing.
///
/// # Errors
/// [`OpenError`].
pub(super) fn start_of<M: Machine>(
    dir: &DataDir,
    log: &mut Log,
    replica: ReplicaId,
    durability: Durability,
    may_have_forgotten: bool,
) -> Result<Start<M>, OpenError> {
    let group = log.id();
    let hard_state = settled_hard_state(dir, log, may_have_forgotten)?;
    loop {
        let damage = match ready(dir, log, replica, durability, hard_state) {
            Ok((boot, machine)) => return Ok(Start::Ready(Box::new(boot), machine)),
            Err(OpenError::Storage(storage::Error::Corrupt(damage))) => damage,
            Err(error) => return Err(error),
        };
        let reader = log.reader();
        let mut is_news = false;
        for suspect in reader.take_suspects() {
            is_news |= reader.examine(suspect)?;
        }
        if is_news {
            continue;
        }
        if planted(Bug::DamageForgotten)
            && let Some(wound) = log.wound()
        {
            log.truncate_suffix(wound.missing[0].0, 0, None)?;
            continue;
        }
        tracing::error!(%group, %damage, "a replica waits for others to mend its log");
        return match (log.wound(), peers_of(dir, log)) {
            (Some(_), Some(peers)) => {
                let last = (log.tip().index, log.tip().term);
                Ok(Start::Damaged(Damaged { group, replica, durability, peers, last }))
            }
            _ => Err(storage::Error::Corrupt(damage).into()),
        };
    }
}

/// The replicas of a group, as far as the journal and the checkpoints say.
fn peers_of(dir: &DataDir, log: &Log) -> Option<Vec<ReplicaId>> {
    let (_, checkpoint) = checkpoint_at(log.id(), &log.reader(), u64::MAX).ok()?;
    let membership = membership_of(dir, log.id(), &checkpoint).ok()?;
    Some(membership.all().collect())
}

/// Term and vote as they have to be for a replica with this log.
fn settled_hard_state(
    dir: &DataDir,
    log: &Log,
    may_have_forgotten: bool,
) -> Result<HardState, OpenError> {
    let (group, tip) = (log.id(), log.tip());
    let mut hard_state = hard_state_of(dir, group)?;
    if tip.term > hard_state.term && !planted(Bug::OldVoteKept) {
        // The vote of an earlier term says nothing about this one.
        hard_state = move_to_term(dir, group, tip.term, hard_state)?;
    }
    if may_have_forgotten && tip.index > 0 {
        // Entries that this replica acknowledged may be gone, while the leader counts on them.
        // A later term makes whoever leads ask again.
        hard_state = move_to_term(dir, group, hard_state.term + 1, hard_state)?;
    }
    let last = Promise { term: tip.term, index: tip.index };
    hard_state.promise = hard_state.promise.filter(|promise| *promise > last);
    Ok(hard_state)
}

/// What a group starts from, if all of it can be read.
fn ready<M: Machine>(
    dir: &DataDir,
    log: &Log,
    replica: ReplicaId,
    durability: Durability,
    mut hard_state: HardState,
) -> Result<(Boot, M), OpenError> {
    let (group, reader) = (log.id(), log.reader());
    let (start, tip) = (reader.tip_at(reader.first_index() - 1, Access::MayBlock)?, log.tip());
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
    Ok((boot, machine))
}

/// Cuts a log right before its first damaged entry: the group went on without it, or begins after
/// it. That this replica had it remains a promise.
///
/// # Errors
/// What the system said.
pub(super) fn cut_at_wound(dir: &DataDir, log: &mut Log) -> Result<(), OpenError> {
    let Some(wound) = log.wound() else { return Ok(()) };
    let (first_index, _) = wound.missing[0];
    let lost = Promise { term: log.tip().term, index: log.tip().index };
    let last_index = log.tip().index;
    assert!(first_index <= last_index, "entry {first_index} of {last_index} is missing");
    let left = Tip { index: first_index - 1, ..log.tip() };
    keep_promise(dir, log, lost, left)?;
    log.truncate_suffix(first_index, first_index - 1, None)?;
    log.sync()?;
    Ok(())
}

/// Puts on record that a log that is to go on after `tip` went up to `lost`, and moves to a later
/// term: a leader that counts on what is gone asks again there.
///
/// DURABILITY: the promise is on disk before the log forgets that it lost anything.
fn keep_promise(dir: &DataDir, log: &Log, lost: Promise, tip: Tip) -> Result<(), OpenError> {
    let group = log.id();
    let hard_state = hard_state_of(dir, group)?;
    // No entry that was acknowledged is of a later term than this.
    let term_max = hard_state.term.max(tip.term);
    let lost = Promise { term: lost.term.min(term_max), index: lost.index };
    assert!(lost.index > tip.index, "{group}: {lost:?} was lost, the log ends with {tip:?}");
    let promise = hard_state.promise.max(Some(lost));
    let commit = hard_state.commit.min(tip.index);
    tracing::error!(%group, ?promise, ends_at = tip.index, "the end of a log is lost");
    move_to_term(dir, group, term_max + 1, HardState { commit, promise, ..hard_state })?;
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
            if reader.term_around(middle)? > after.term {
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
