//! A disk: effects of groups, carried out on a data directory.
//!
//! Writes go into the page cache at once; syncs are the syncer's, and its rounds report the tokens.
//! A full disk is no fault: what does not fit is kept, in order, and tried again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::effects::{ColdRead, Persist, Step};
use super::group::Durability;
use super::hard_state::Checkpoint;
use super::log_view::Base;
use super::machine::Machine;
use super::membership::Membership;
use super::open::{OpenError, Start, create_replica, hard_state_of, open_replica};
use super::planted::{Bug, planted};
use crate::storage::{
    self, Access, Change, DataDir, Entry, FactKind, Log, LogReader, Policy, RecoveryReport,
    SyncRequest, Syncer, Tip, Wound,
};
use crate::types::{LogId, ReplicaId};

mod damage;

pub use self::damage::read_supply;

/// Reported for work that nobody waits for.
const NO_TOKEN: u64 = 0;

/// Gives the checkpoint of a group's state after an index.
pub type CheckpointOf<'a> = &'a mut dyn FnMut(LogId, u64) -> Checkpoint;

/// The logs of a shard's groups.
#[derive(Debug)]
pub struct Disk {
    dir: Arc<DataDir>,
    logs: FxHashMap<LogId, Log>,
    /// Work that waits for space, the oldest first.
    stalled: BTreeMap<LogId, VecDeque<Persist>>,
    /// What is to be recorded in passing, for each group the last it said.
    hints: BTreeMap<LogId, Change>,
    /// Logs that were written to since their watermark was recorded.
    written: BTreeSet<LogId>,
    /// Logs that took more than they may when that was looked at.
    shrinking: BTreeSet<LogId>,
    /// What logs lack, as it was last told.
    wounds: BTreeMap<LogId, Wound>,
    /// Up to where entries that logs lack were passed over, the last time.
    passed_over: BTreeMap<LogId, u64>,
    /// The news of damage that was looked into; 0 to look again.
    damage_seen: u64,
}

impl Disk {
    /// A disk without logs.
    pub fn new(dir: Arc<DataDir>) -> Self {
        Self {
            dir,
            logs: FxHashMap::default(),
            stalled: BTreeMap::new(),
            hints: BTreeMap::new(),
            written: BTreeSet::new(),
            shrinking: BTreeSet::new(),
            wounds: BTreeMap::new(),
            passed_over: BTreeMap::new(),
            damage_seen: 0,
        }
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

    /// Makes a new replica's log and syncs it; see [`create_replica`].
    ///
    /// # Errors
    /// As [`DataDir::create_log`].
    pub fn create<M: Machine>(
        &mut self,
        group: LogId,
        members: Option<&Membership>,
    ) -> storage::Result<()> {
        create_replica::<M>(&self.dir, group, members)?.sync()?;
        self.dir.journal().sync().map(drop)
    }

    /// Opens a replica's log and takes it over; see [`open_replica`].
    ///
    /// # Errors
    /// [`OpenError`]; the log is not used then.
    pub fn open<M: Machine>(
        &mut self,
        group: LogId,
        replica: ReplicaId,
        durability: Durability,
    ) -> Result<(Start<M>, RecoveryReport), OpenError> {
        let opened = open_replica(&self.dir, group, replica, durability)?;
        self.adopt(opened.log);
        Ok((opened.start, opened.report))
    }

    /// Takes over the log of a group that was opened.
    pub fn adopt(&mut self, log: Log) {
        self.damage_seen = 0;
        let other = self.logs.insert(log.id(), log);
        assert!(other.is_none(), "the log of a group is taken over once: {other:?}");
    }

    /// Takes back entry `index` of a group and all after it, although they were committed: a
    /// majority lost them to a power cut, with [`Durability::Memory`], and went on without. The
    /// group must have been closed; opened again, it follows its leader.
    ///
    /// # Errors
    /// As [`Log::truncate_suffix`].
    pub fn rewind<M: Machine>(&mut self, group: LogId, index: u64) -> Result<(), OpenError> {
        let (Some(mut log), _) = self.part_with(group) else { return Ok(()) };
        assert!(index > 0, "{group}: entry {index} is taken back, entries count from 1");
        let mut hard_state = hard_state_of(&self.dir, group)?;
        hard_state.commit = hard_state.commit.min(index - 1);
        // The leader counts on what it was told of these entries, or of a snapshot that seemed old.
        // A later term makes it ask again.
        (hard_state.term, hard_state.vote) = (hard_state.term + 1, 0);
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
        let (Some(log), hint) = self.part_with(group) else { return Ok(()) };
        self.record_hints(hint.as_slice())?;
        self.dir.close_log(log)
    }

    /// Forgets a group. Returns its log, and the hint that is not recorded.
    fn part_with(&mut self, group: LogId) -> (Option<Log>, Option<Change>) {
        self.stalled.remove(&group);
        self.wounds.remove(&group);
        self.passed_over.remove(&group);
        (self.logs.remove(&group), self.hints.remove(&group))
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
        let mut requests = Vec::new();
        for persist in persists {
            if let Some(waiting) = self.stalled.get_mut(&persist.group) {
                waiting.iter_mut().for_each(|earlier| earlier.yield_to(&persist));
                waiting.push_back(persist);
            } else if matches!(persist.steps[..], [Step::Hint(..)]) {
                self.take_hint(persist, done);
            } else {
                requests.extend(self.start(persist, checkpoint, done)?);
            }
        }
        // All at once, so that one round takes them.
        if !requests.is_empty() {
            syncer.submit_all(requests);
        }
        Ok(())
    }

    /// Keeps a hint for [`Self::tend`]: a busy disk records a thousand of them at once.
    fn take_hint(&mut self, persist: Persist, done: &mut Vec<u64>) {
        let Persist { group, token, steps, .. } = persist;
        done.push(token);
        for step in steps {
            if let Step::Hint(kind, value) = step {
                self.hints.insert(group, Change { log: group, kind, value: Some(value) });
            }
        }
    }

    /// Records what spares work, or tells more of damage, after a restart: a thousand groups have
    /// it to say at a time.
    ///
    /// DURABILITY: nothing that was promised rests on it, so a full disk may leave it out.
    fn record_hints(&self, hints: &[Change]) -> storage::Result<()> {
        if hints.is_empty() {
            return Ok(());
        }
        match self.dir.journal().note(hints) {
            Ok(()) | Err(storage::Error::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
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
            // One by one: of the same group, they keep their order.
            for persist in waiting {
                self.perform(vec![persist], checkpoint, syncer, done)?;
            }
        }
        Ok(())
    }

    /// Records how far logs are on disk that have gone idle, and what else is hinted at, and sees
    /// that the journal gets there too. To be called every tenth of a second or so.
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
        let mut marks = Vec::new();
        for log in idle.iter().filter_map(|group| logs.get(group)) {
            match log.watermark() {
                Ok(mark) => marks.extend(mark),
                Err(storage::Error::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        marks.extend(std::mem::take(&mut self.hints).into_values());
        // DURABILITY: without the watermarks, damage to what was synced last could pass for a torn
        // tail.
        self.record_hints(&marks)?;
        for log in self.shrinking.iter().filter_map(|group| self.logs.get(group)) {
            if log.needs_sync_to_reclaim() {
                let log = Some(log.syncer_handle());
                syncer.submit(SyncRequest { log, token: NO_TOKEN });
            }
        }
        if self.dir.journal().is_dirty() {
            syncer.submit(SyncRequest { log: None, token: NO_TOKEN });
        }
        Ok(())
    }

    /// Writes what can be written. Returns what is to be synced, if anything is.
    fn start(
        &mut self,
        mut persist: Persist,
        checkpoint: CheckpointOf<'_>,
        done: &mut Vec<u64>,
    ) -> storage::Result<Option<SyncRequest>> {
        match self.write(&mut persist, checkpoint) {
            Ok(log) if persist.is_synced && !planted(Bug::AckBeforeSync) => {
                return Ok(Some(SyncRequest { log, token: persist.token }));
            }
            Ok(_) => done.push(persist.token),
            Err(storage::Error::NoSpace { .. }) => {
                let waiting = self.stalled.entry(persist.group).or_default();
                waiting.push_back(persist);
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// Does the steps, and takes those out of `persist` that are done.
    fn write(
        &mut self,
        persist: &mut Persist,
        checkpoint: CheckpointOf<'_>,
    ) -> storage::Result<Option<Arc<storage::LogSync>>> {
        let group = persist.group;
        let log = self.logs.get_mut(&group).expect("a group with work for the disk has a log");
        // DURABILITY: a hint repeats the group's term and vote, and says which entry is there. It
        // must not come after a later record of them, nor after a cut.
        if !persist.steps.iter().all(|step| matches!(step, Step::Append(_))) {
            self.hints.remove(&group);
        }
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

    /// Logs that take more than they may, or have files that wait to go: for [`Self::retain`]. To
    /// be asked before [`Self::tend`].
    pub fn overgrown(&mut self) -> Vec<LogId> {
        let is_overgrown = |group: &LogId| self.logs.get(group).is_some_and(Log::is_overgrown);
        let before = std::mem::take(&mut self.shrinking);
        let looked_at = self.written.iter().chain(&before).copied();
        self.shrinking = looked_at.filter(is_overgrown).collect();
        self.shrinking.iter().copied().collect()
    }

    /// Sets what a group's log may take, from the next look on.
    pub fn keep_within(&mut self, group: LogId, kept_bytes: Option<u64>) {
        if let Some(log) = self.logs.get_mut(&group) {
            log.keep_within(kept_bytes);
            self.shrinking.insert(group);
        }
    }

    /// Applies a retention policy to a group's log, or without one the bound on its size that the
    /// last policy had, and moves its start to `log_start` at least. Only entries up to `settled`
    /// go, see [`super::Group::settled`]; and the files go of what was given up the last time.
    /// Returns the tip before the first entry if that has changed.
    ///
    /// # Errors
    /// As [`Log::retain`].
    pub fn retain(
        &mut self,
        group: LogId,
        policy: Option<&Policy>,
        log_start: u64,
        settled: u64,
        now_ms: i64,
    ) -> storage::Result<Option<Tip>> {
        let Some(log) = self.logs.get_mut(&group) else {
            return Ok(None);
        };
        if policy.is_some() || !log.has_failed_to_reclaim() {
            match log.reclaim_in_background() {
                // What the log would begin with is damaged: what is there stays.
                Ok(()) | Err(storage::Error::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let reader = log.reader();
        let first_index = reader.first_index();
        log.advance_log_start(log_start.min(reader.log_end_offset()), settled)?;
        let by_size = Policy { bytes: log.kept_bytes(), ..Policy::default() };
        log.retain(policy.unwrap_or(&by_size), settled, now_ms)?;
        if log.has_leaving() {
            self.shrinking.insert(group);
        }
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
    let linked = entries.last().map(|entry| (entry.header.index, entry.header.chain));
    let result = log.append(entries, &mut |tip| checkpoint(group, tip.index).encode());
    let tip = log.tip();
    assert!(
        linked.is_none_or(|(index, chain)| index > tip.index || chain == tip.chain),
        "{group}: the log ends with {tip:?}, in memory it is linked as {linked:?}"
    );
    entries.retain(|entry| entry.header.index > tip.index);
    result
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
