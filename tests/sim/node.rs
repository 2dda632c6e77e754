//! One node: the production core over a modelled disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use quipu::partition::Replica;
use quipu::raft::{
    Config, Cure, Disk, Durability, Effects, HardState, Input, Membership, Now, OpenError, Outputs,
    Persist, Promise, Shard, Step, read_base, read_cold, read_supply,
};
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{self, Access, Case, DataDir, FactKind, Log, LogReader, Policy, Syncer, Tip};
use quipu::types::{LogId, NodeId, ReplicaId};

use crate::rng::Rng;
use crate::tally::Tally;

const ROOT: &str = "/data";

/// What the rounds of a syncer have reported.
type Rounds = Arc<Mutex<Vec<Result<Vec<u64>, storage::Error>>>>;

/// A node, up or down.
#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub fs: SimFs,
    /// Counts its lives: events of an earlier one find nobody.
    pub life: u64,
    pub live: Option<Live>,
    /// Which replicas are on its disk.
    pub replicas: BTreeMap<LogId, ReplicaId>,
    /// How far its wall clock is off, in milliseconds.
    pub skew_ms: i64,
    pub paused_until_us: u64,
    pub slow_until_us: u64,
    pub full_until_us: u64,
    /// How far each log was known to be on disk when the node went down.
    pub promised: BTreeMap<LogId, u64>,
}

/// What a running node has in memory.
#[derive(Debug)]
pub struct Live {
    pub shard: Shard<Replica>,
    pub inputs: Vec<Input<Replica>>,
    pub disk: Disk,
    syncer: Syncer,
    rounds: Rounds,
    /// Replicas that go with the next step.
    closing: Vec<LogId>,
    pub is_step_due: bool,
    pub is_sync_due: bool,
    /// What happened and is not yet counted elsewhere.
    pub tally: Tally,
}

pub fn raft_config() -> Config {
    Config {
        tick_ms: 20,
        election_ticks: 10,
        heartbeat_ticks: 2,
        append_bytes_max: 4 * 1024,
        appends_in_flight_max: 8,
        tail_bytes_max: 3 * 1024,
        slow_disk_ticks: 8,
        cold_reads_max: 8,
        term_jump_max: 1_000_000,
        tick_slices: 2,
    }
}

fn open_dir(fs: &SimFs) -> storage::Result<Arc<DataDir>> {
    DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), storage::Config::tiny()).map(Arc::new)
}

impl Node {
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            fs: SimFs::new(),
            life: 0,
            live: None,
            replicas: BTreeMap::new(),
            skew_ms: 0,
            paused_until_us: 0,
            slow_until_us: 0,
            full_until_us: 0,
            promised: BTreeMap::new(),
        }
    }

    pub fn now(&self, time_us: u64) -> Now {
        let wall_ms = 1_700_000_000_000 + (time_us / 1000).cast_signed() + self.skew_ms;
        Now { monotonic_ms: time_us / 1000, wall_ms }
    }

    /// Starts the node with all replicas on its disk.
    pub fn start(&mut self, time_us: u64, durability: Durability) -> storage::Result<()> {
        assert!(self.live.is_none(), "node {} runs already", self.id);
        self.life += 1;
        let dir = open_dir(&self.fs)?;
        for log in dir.logs()?.into_iter().filter(|log| !self.replicas.contains_key(log)) {
            // The node went down while it made or removed it.
            dir.delete_log(log)?;
        }
        let rounds = Rounds::default();
        let reports = rounds.clone();
        let syncer = dir.start_syncer(Box::new(move |round| {
            let round = round.map(<[u64]>::to_vec);
            reports.lock().unwrap().push(round);
        }));
        let shard = Shard::new(raft_config(), self.id.0 * 7919 + self.life, self.now(time_us));
        let disk = Disk::new(dir);
        let mut live = Live {
            shard,
            inputs: Vec::new(),
            disk,
            syncer,
            rounds,
            closing: Vec::new(),
            is_step_due: false,
            is_sync_due: false,
            tally: Tally::default(),
        };
        for (group, replica) in &self.replicas {
            live.open(*group, *replica, durability)?;
            let promised = self.promised.get(group).copied().unwrap_or(0);
            let found = live.promised(*group);
            assert!(
                found >= promised || durability == Durability::Memory,
                "node {} promised entry {promised} of {group} and comes back with {found}",
                self.id,
            );
        }
        self.live = Some(live);
        Ok(())
    }

    /// Ends the process. What it wrote is in the cache.
    pub fn crash(&mut self) {
        self.note_promises();
        self.live = None;
        self.fs.process_crash();
    }

    /// Cuts the power: of what was not synced, each sector survives by chance.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        self.note_promises();
        let keep = rng.below(1001);
        let mut rng = rng.clone();
        self.fs.power_cut(|_| rng.chance(keep));
        self.live = None;
    }

    fn note_promises(&mut self) {
        let Some(live) = &self.live else { return };
        for group in self.replicas.keys() {
            if let Some(log) = live.disk.log(*group) {
                let promised = log.synced_index().max(promise_of(live.disk.dir(), log));
                self.promised.insert(*group, promised);
            }
        }
    }

    /// Takes the disk away. Returns all that was ever promised.
    pub fn wipe(&mut self) -> BTreeMap<LogId, u64> {
        self.note_promises();
        self.live = None;
        self.fs = SimFs::new();
        self.replicas.clear();
        std::mem::take(&mut self.promised)
    }

    /// Makes a new replica on a running node and starts it.
    pub fn add_replica(
        &mut self,
        group: LogId,
        replica: ReplicaId,
        members: Option<&Membership>,
        durability: Durability,
    ) -> storage::Result<()> {
        let live = self.live.as_mut().expect("replicas are made on running nodes");
        live.disk.create::<Replica>(group, members)?;
        live.open(group, replica, durability)?;
        self.replicas.insert(group, replica);
        Ok(())
    }

    /// Takes back what a replica should not have kept, and starts it again.
    pub fn rewind(
        &mut self,
        group: LogId,
        index: u64,
        durability: Durability,
    ) -> storage::Result<()> {
        self.promised.remove(&group);
        let live = self.live.as_mut().expect("the node runs");
        live.inputs.push(Input::Close(group));
        live.disk.rewind::<Replica>(group, index).map_err(storage_error)?;
        live.open(group, self.replicas[&group], durability)
    }

    /// Removes a replica that no longer counts. Returns how far its log was on disk.
    pub fn remove_replica(&mut self, group: LogId) -> u64 {
        self.note_promises();
        let live = self.live.as_mut().expect("replicas are removed from running nodes");
        self.replicas.remove(&group);
        live.inputs.push(Input::Close(group));
        live.closing.push(group);
        self.promised.remove(&group).unwrap_or(0)
    }
}

impl Live {
    fn open(
        &mut self,
        group: LogId,
        replica: ReplicaId,
        durability: Durability,
    ) -> storage::Result<()> {
        let opened = self.disk.open::<Replica>(group, replica, durability);
        let (start, report) = opened.map_err(storage_error)?;
        match report.case {
            Case::TornTail => self.tally.add("tail-torn", 1),
            Case::TornOutOfOrder => self.tally.add("tail-torn-out-of-order", 1),
            Case::LostTail => self.tally.add("tail-lost", 1),
            Case::CorruptMiddle => self.tally.add("middle-damaged-at-start", 1),
            Case::Whole => {}
        }
        let log = self.disk.log(group).expect("a log that was opened is there");
        let (tip, synced) = (log.tip(), log.synced_index());
        let term = start.boot().map_or(tip.term, |boot| boot.hard_state.term);
        assert!(
            synced >= tip.index && term >= tip.term,
            "{group} starts at {tip:?} with {synced} on disk in term {term}"
        );
        self.tally.add("replica-waits-for-repair", u64::from(start.boot().is_none()));
        self.inputs.push(start.into_input());
        Ok(())
    }

    /// The last entry that a replica stands for, also if it has lost it.
    pub fn promised(&self, group: LogId) -> u64 {
        let log = self.disk.log(group);
        log.map_or(0, |log| log.tip().index.max(promise_of(self.disk.dir(), log)))
    }

    /// Mends damaged logs, and gives others what they lack.
    fn mend(&mut self, effects: &mut Effects) -> storage::Result<()> {
        for supply in std::mem::take(&mut effects.supplies) {
            if let Some(reader) = self.disk.reader(supply.read.group) {
                self.tally.add("entries-supplied", 1);
                self.inputs.push(read_supply(&reader, &supply));
            }
        }
        for mend in std::mem::take(&mut effects.mends) {
            let is_cut = matches!(mend.cure, Cure::Cut);
            let whole = self.disk.log(mend.group).map(Log::wound);
            self.inputs.extend(self.disk.mend(&mend)?);
            let is_mended = self.disk.log(mend.group).map(Log::wound) != whole;
            self.tally.add("damage-cut-for-a-leader", u64::from(is_cut && is_mended));
            self.tally.add("damage-mended", u64::from(!is_cut && is_mended));
            self.tally.add("repair-refused", u64::from(!is_mended));
        }
        self.tally.add("repair-in-vain", effects.unrepaired.len() as u64);
        effects.unrepaired.clear();
        Ok(())
    }

    /// Steps once and hands what is to be written to the disk.
    pub fn step(&mut self, now: Now) -> storage::Result<Outputs<Replica>> {
        let mut out = Outputs::default();
        self.shard.step(now, &mut self.inputs, &mut out);
        let mut done = Vec::new();
        let shard = &self.shard;
        let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
        let persists = std::mem::take(&mut out.effects.persists);
        persists.iter().for_each(|persist| count_steps(&mut self.tally, &self.disk, persist));
        self.disk.perform(persists, &mut checkpoint, &self.syncer, &mut done)?;
        self.inputs.extend(done.into_iter().map(Input::Stored));
        for group in std::mem::take(&mut self.closing) {
            self.disk.close(group)?;
            self.disk.dir().delete_log(group)?;
        }
        self.mend(&mut out.effects)?;
        Ok(out)
    }

    /// Tries again what did not fit on the disk.
    pub fn retry(&mut self) -> storage::Result<()> {
        let mut done = Vec::new();
        let shard = &self.shard;
        let mut checkpoint = |group, index| shard.checkpoint_at(group, index);
        self.disk.retry(&mut checkpoint, &self.syncer, &mut done)?;
        self.inputs.extend(done.into_iter().map(Input::Stored));
        Ok(())
    }

    /// Runs one round of syncs.
    pub fn sync(&mut self) -> storage::Result<()> {
        self.syncer.run_round();
        for round in std::mem::take(&mut *self.rounds.lock().unwrap()) {
            self.inputs.extend(round?.into_iter().map(Input::Stored));
        }
        Ok(())
    }

    /// What a shard does now and then; which logs it moved to keep them small, and to where.
    pub fn tend(&mut self, now: Now) -> storage::Result<Vec<(LogId, Tip)>> {
        let (suspects, changed) = self.disk.look_for_damage();
        self.inputs.extend(changed);
        for (reader, suspect) in suspects {
            self.tally.add("damage-met-while-up", 1);
            reader.examine(suspect)?;
        }
        let mut moved = Vec::new();
        for group in self.disk.overgrown() {
            moved.extend(self.retain_one(group, None, now)?);
        }
        self.disk.tend(&self.syncer)?;
        Ok(moved)
    }

    pub fn read_cold(&mut self, read: &quipu::raft::ColdRead) {
        let reader = self.disk.reader(read.group);
        let entries = reader.map(|reader| read_cold(&reader, read, Access::MayBlock));
        let entries = Some(entries.and_then(Result::ok).unwrap_or_default());
        let (group, first_index) = (read.group, read.first_index);
        self.inputs.push(Input::Fetched { group, first_index, entries });
    }

    pub fn read_base(&mut self, group: LogId) {
        let base = self.disk.reader(group).and_then(|reader| read_base(&reader).ok().flatten());
        self.inputs.push(Input::Base { group, base });
    }

    /// Applies retention to all logs; which logs it moved, and to where.
    pub fn retain(&mut self, policy: &Policy, now: Now) -> storage::Result<Vec<(LogId, Tip)>> {
        let mut moved = Vec::new();
        for group in self.shard.groups().collect::<Vec<_>>() {
            moved.extend(self.retain_one(group, Some(policy), now)?);
        }
        Ok(moved)
    }

    fn retain_one(
        &mut self,
        group: LogId,
        policy: Option<&Policy>,
        now: Now,
    ) -> storage::Result<Option<(LogId, Tip)>> {
        let (Some(found), Some(machine)) = (self.shard.group(group), self.shard.machine(group))
        else {
            return Ok(None);
        };
        let settled = if policy.is_some() { found.settled() } else { found.spared() };
        let log_start = machine.state().log_start();
        let start = self.disk.retain(group, policy, log_start, settled, now.wall_ms)?;
        if let Some(start) = start {
            self.inputs.push(Input::StartAdvanced { group, start });
        }
        Ok(start.map(|start| (group, start)))
    }

    pub fn is_full(&self) -> bool {
        self.disk.stalled().next().is_some()
    }
}

fn count_steps(tally: &mut Tally, disk: &Disk, persist: &Persist) {
    for step in &persist.steps {
        match step {
            Step::Reset { .. } => tally.add("snapshot-installed", 1),
            Step::Truncate { first_index, .. } => {
                tally.add("suffix-truncated", 1);
                let synced = disk.log(persist.group).map_or(0, Log::synced_index);
                let is_unsynced = *first_index > synced;
                tally.add("unsynced-suffix-truncated", u64::from(is_unsynced));
            }
            Step::Append(_) | Step::Record(..) | Step::Hint(..) => {}
        }
    }
}

/// True if `holds` would be true of a log after a power cut that keeps nothing it need not.
pub fn survives(fs: &SimFs, group: LogId, holds: impl Fn(&Log, u64) -> bool) -> bool {
    after_cut(fs, group).is_some_and(|(log, promised)| holds(&log, promised))
}

/// A log as a power cut would leave it that keeps nothing it need not, and the last entry that it
/// stands for.
fn after_cut(fs: &SimFs, group: LogId) -> Option<(Log, u64)> {
    let fork = fs.fork();
    fork.set_capacity(None);
    fork.power_cut(|_| false);
    let dir = open_dir(&fork).ok()?;
    let (log, _) = dir.open_log(group).ok()?;
    let lost = log.lost_tail().map_or(0, |lost| lost.last_index);
    let promised = log.tip().index.max(lost).max(promise_of(&dir, &log));
    Some((log, promised))
}

/// What is left of a log after such a power cut.
#[derive(Debug, Default)]
pub struct Kept {
    /// Chains of the entries that can be read, by index.
    pub chains: BTreeMap<u64, u32>,
    pub first_index: u64,
    pub last_index: u64,
    /// The last entry that the log stands for.
    pub promised: u64,
}

impl Kept {
    /// True if the log goes as far as it stands for.
    pub fn has_end(&self) -> bool {
        self.promised <= self.last_index
    }

    /// True if every entry is there.
    pub fn is_whole(&self) -> bool {
        let mut indices = self.first_index..=self.last_index;
        self.has_end() && indices.all(|index| self.chains.contains_key(&index))
    }
}

/// Reads all that is left of a log; `None` if it cannot be opened.
pub fn kept(fs: &SimFs, group: LogId) -> Option<Kept> {
    let (log, promised) = after_cut(fs, group)?;
    let reader = log.reader();
    for segment in reader.segments().iter() {
        reader.examine(segment.base_index()).ok()?;
    }
    let (first_index, last_index) = (reader.first_index(), reader.last_index());
    let indices = (first_index..=last_index).filter(|index| is_readable(&reader, *index));
    let chain = |index| reader.header(index, Access::MayBlock).map(|header| (index, header.chain));
    let chains = indices.filter_map(|index| chain(index).ok()).collect();
    Some(Kept { chains, first_index, last_index, promised })
}

/// True if an entry can be read, and is what it was.
pub fn is_readable(reader: &LogReader, index: u64) -> bool {
    reader.read(index, index, 1, Access::MayBlock, &mut Vec::new()).is_ok()
}

/// The last entry that a log which lost it stands for, as the journal says; 0 if there is none.
fn promise_of(dir: &DataDir, log: &Log) -> u64 {
    let value = dir.journal().get(log.id(), FactKind::HardState);
    let hard_state = value.and_then(|value| HardState::decode(&value));
    // One of an earlier term than the log's last entry is settled: a later leader has said what is
    // there.
    let last = Promise { term: log.tip().term, index: log.tip().index };
    let promise = hard_state.and_then(|state| state.promise).filter(|promise| *promise > last);
    promise.map_or(0, |promise| promise.index)
}

/// Term and vote that a power cut would leave which keeps nothing it need not.
pub fn recorded_after_cut(fs: &SimFs, group: LogId) -> HardState {
    let fork = fs.fork();
    fork.set_capacity(None);
    fork.power_cut(|_| false);
    let value = open_dir(&fork).unwrap().journal().get(group, FactKind::HardState);
    value.and_then(|value| HardState::decode(&value)).unwrap_or_default()
}

/// Anything else than a failing disk is a fault of the program.
fn storage_error(error: OpenError) -> storage::Error {
    match error {
        OpenError::Storage(error) => error,
        error => panic!("{error}"),
    }
}
