//! The meta journal: the small things of a data directory that change seldom.
//!
//! Terms, votes, replica sets, log starts and watermarks of all logs go into one append-only file,
//! so that a thousand elections cost one sync. The file is kept twice, written and synced alike: a
//! vote that was cast must not be forgotten because one sector went bad. When most of it is
//! outdated it is rewritten under the next generation number.
//!
//! Invariants:
//! * A change counts once [`Journal::sync`] has returned after it was recorded.
//! * Every frame says how far the journal was known to be durable when it was written, so that a
//!   torn end is told apart from a lost promise ([`Error::Amnesia`]).
//! * An older generation is removed only after the newer one has been read back from disk.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use self::format::Head;
pub use self::format::{Change, FactKind};
use self::generation::{
    copy_fault, copy_path, list_generations, read_generation, write_generation,
};
use super::context::Failure;
use super::error::{Damage, Error, IoContext as _, Result};
use super::fs::{File, Fs};
use super::segment::remove_if_there;
use crate::types::LogId;

mod format;
mod generation;

/// Files grow by this many zero bytes at a time, so that most appends change no length.
const GROWTH_BYTES: u64 = 64 * 1024;
const COPIES: [&str; 2] = ["a", "b"];
/// Tries to make room on a full disk; true if it freed something.
type MakeRoom = Box<dyn Fn() -> bool + Send + Sync>;

/// The journal of one data directory. All calls may come from any thread.
pub struct Journal {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    rewrite_bytes: u64,
    make_room: MakeRoom,
    failure: Arc<Failure>,
    state: Mutex<State>,
    /// Highest sequence that is durable in both copies.
    synced: AtomicU64,
    /// Length of the journal when it was last written anew, when nothing in it was outdated.
    live_bytes: AtomicU64,
}

/// A file pair and what it says.
struct State {
    head: Head,
    files: [Arc<dyn File>; 2],
    /// Where the next frame goes.
    position: u64,
    allocated: u64,
    /// Sequence of the last frame.
    sequence: u64,
    /// Sequence of the last frame that somebody may wait for.
    promised: u64,
    facts: BTreeMap<(LogId, FactKind), Bytes>,
}

/// What reading a journal finds, copy by copy.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) generation: u64,
    /// Sequence of the last change.
    pub(super) sequence: u64,
    pub(super) facts: BTreeMap<(LogId, FactKind), Bytes>,
    /// What one copy lacks and the other has.
    pub(super) damage: Vec<Damage>,
}

impl Journal {
    /// Opens the journal in `dir`, or starts one there when there is none.
    ///
    /// Damage to one copy is repaired from the other before this returns.
    ///
    /// # Errors
    /// [`Error::Amnesia`] when a durable change is in neither copy, [`Error::FutureVersion`], or
    /// what the system said. Nothing was changed.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        is_new: bool,
        rewrite_bytes: u64,
        make_room: MakeRoom,
        failure: Arc<Failure>,
    ) -> Result<Self> {
        fs.create_dir_all(dir).at("create", dir)?;
        let generations = list_generations(&*fs, dir)?;
        let (facts, sequence, generation) = match generations.last() {
            None if is_new => (BTreeMap::new(), 0, 0),
            None => return Err(Error::Amnesia { path: dir.to_path_buf(), sequence: 0 }),
            Some(generation) => {
                let recovered = read_generation(&*fs, dir, *generation)?;
                (recovered.facts, recovered.sequence, *generation)
            }
        };
        // DURABILITY: a journal is never continued after a restart but written anew: that drops a
        // torn end for good and heals a damaged copy, whatever the page cache held.
        let write =
            |facts| write_generation(&*fs, dir, generation + 1, sequence, facts, &mut false);
        let state = match write(facts.clone()) {
            Err(error) if error.is_full_disk() && make_room() => write(facts),
            written => written,
        }?;
        let synced = AtomicU64::new(state.sequence);
        let live_bytes = AtomicU64::new(state.position);
        let journal = Self {
            fs,
            dir: dir.to_path_buf(),
            rewrite_bytes,
            make_room,
            failure,
            state: Mutex::new(state),
            synced,
            live_bytes,
        };
        journal.remove_generations(&generations)?;
        Ok(journal)
    }

    /// Reads what the journal in `dir` says without changing anything.
    ///
    /// Returns an empty table when there is no journal.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn peek(fs: &dyn Fs, dir: &Path) -> Result<BTreeMap<(LogId, FactKind), Bytes>> {
        match list_generations(fs, dir)?.last() {
            Some(generation) => Ok(read_generation(fs, dir, *generation)?.facts),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Reads the journal in `dir` as [`Self::peek`] does, and also finds damage that the other copy
    /// makes up for. Returns `None` when there is no journal.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn examine(fs: &dyn Fs, dir: &Path) -> Result<Option<Examined>> {
        let generations = list_generations(fs, dir)?;
        let Some(generation) = generations.last().copied() else {
            return Ok(None);
        };
        let recovered = read_generation(fs, dir, generation)?;
        let closed = recovered.facts.contains_key(&(LogId::NIL, FactKind::CleanShutdown));
        // Whoever closes in order has synced all of it.
        let durable = if closed { recovered.sequence } else { recovered.durable };
        let mut damage = Vec::new();
        for copy in COPIES {
            let path = copy_path(dir, generation, copy);
            // A crash between two renames leaves one copy, and then also the generation before.
            let may_be_missing = generations.len() > 1;
            if let Some((position, what)) =
                copy_fault(fs, &path, generation, durable, may_be_missing)?
            {
                damage.push(Damage { file: path, position, what });
            }
        }
        // A process that uses the journal may have rewritten it between two looks.
        if !damage.is_empty() && list_generations(fs, dir)? != generations {
            return Self::examine(fs, dir);
        }
        let facts = recovered.facts;
        Ok(Some(Examined { generation, sequence: recovered.sequence, facts, damage }))
    }

    /// Writes changes in order, all in one write, and returns the sequence of the last one.
    ///
    /// DURABILITY: nothing is synced here. The changes count once [`Self::synced_sequence`] has
    /// reached what this returns.
    ///
    /// # Errors
    /// A full disk refuses and changes nothing. Any other error is final for the data directory:
    /// whether the changes will be found after a restart is unknown.
    pub fn record(&self, changes: &[Change]) -> Result<u64> {
        let mut state = self.lock_state();
        self.write(&mut state, changes)?;
        state.promised = state.sequence;
        Ok(state.sequence)
    }

    /// Writes changes that nobody waits for, as [`Self::record`] does: with a thousand logs there
    /// are some at any time, and syncs of the logs need not wait for them.
    ///
    /// DURABILITY: they become durable with whatever is recorded after them, or when somebody syncs
    /// the journal because it [is dirty](Self::is_dirty).
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn note(&self, changes: &[Change]) -> Result<()> {
        self.write(&mut self.lock_state(), changes)
    }

    fn write(&self, state: &mut State, changes: &[Change]) -> Result<()> {
        self.failure.check()?;
        let mut bytes = Vec::new();
        let synced = self.synced.load(Ordering::Acquire);
        assert!(
            synced <= state.sequence,
            "change {synced} is durable, only {} were recorded",
            state.sequence
        );
        for (n, change) in (1..).zip(changes) {
            let sequence = state.sequence + n;
            format::encode_frame(&mut bytes, state.head.seed(), sequence, synced, change);
        }
        self.allocate(state, bytes.len() as u64)?;
        for (file, copy) in state.files.iter().zip(COPIES) {
            let path = copy_path(&self.dir, state.head.generation, copy);
            let written = file.write_at(&[IoSlice::new(&bytes)], state.position);
            written.at("write", &path).inspect_err(|error| self.failure.set(error))?;
        }
        state.position += bytes.len() as u64;
        state.sequence += changes.len() as u64;
        assert!(
            state.position <= state.allocated,
            "the journal's frames end at {}, its file at {}",
            state.position,
            state.allocated
        );
        for change in changes {
            apply(&mut state.facts, change);
        }
        Ok(())
    }

    /// Records that nothing is known about `log` any more.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn forget(&self, log: LogId) -> Result<u64> {
        let kinds: Vec<FactKind> = {
            let state = self.lock_state();
            state.facts.keys().filter(|(id, _)| *id == log).map(|(_, kind)| *kind).collect()
        };
        let changes: Vec<Change> =
            kinds.into_iter().map(|kind| Change { log, kind, value: None }).collect();
        self.record(&changes)
    }

    /// The current value of a fact, durable or not.
    pub fn get(&self, log: LogId, kind: FactKind) -> Option<Bytes> {
        self.lock_state().facts.get(&(log, kind)).cloned()
    }

    /// Highest sequence known to be durable.
    pub fn synced_sequence(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// True if [recorded](Self::record) changes wait for a sync.
    pub fn owes_sync(&self) -> bool {
        let state = self.lock_state();
        assert!(state.promised <= state.sequence, "nobody waits for what was not recorded");
        state.promised > self.synced_sequence()
    }

    /// True if any changes wait for a sync, [noted](Self::note) ones among them.
    pub fn is_dirty(&self) -> bool {
        self.lock_state().sequence > self.synced_sequence()
    }

    /// Makes every change recorded so far durable and returns the last one's sequence. Rewrites
    /// the journal when most of it is outdated.
    ///
    /// # Errors
    /// An error is final: the caller stops using the data directory.
    pub fn sync(&self) -> Result<u64> {
        self.failure.check()?;
        let (files, generation, sequence) = {
            let state = self.lock_state();
            (state.files.clone(), state.head.generation, state.sequence)
        };
        if sequence > self.synced_sequence() {
            for (file, copy) in files.iter().zip(COPIES) {
                let path = copy_path(&self.dir, generation, copy);
                let synced = file.sync().at("sync", &path);
                synced.inspect_err(|error| self.failure.set(error))?;
            }
            self.synced.fetch_max(sequence, Ordering::AcqRel);
        }
        self.rewrite_if_outdated();
        Ok(sequence)
    }

    /// Writes the journal anew when most of it is outdated. A failure before the new files have
    /// their names costs nothing: the old ones serve on.
    fn rewrite_if_outdated(&self) {
        let mut state = self.lock_state();
        let live = self.live_bytes.load(Ordering::Relaxed);
        if state.position < self.rewrite_bytes.max(4 * live) {
            return;
        }
        let old = state.head.generation;
        let (facts, mut is_named) = (state.facts.clone(), false);
        let sequence = state.sequence;
        match write_generation(&*self.fs, &self.dir, old + 1, sequence, facts, &mut is_named) {
            Ok(new) => {
                self.synced.fetch_max(new.sequence, Ordering::AcqRel);
                self.live_bytes.store(new.position, Ordering::Relaxed);
                *state = new;
            }
            Err(error) if is_named => return self.failure.set(&error),
            Err(error) => {
                tracing::warn!(%error, "the journal could not be written anew");
                // Tried again when it has doubled once more.
                self.live_bytes.store(state.position / 2, Ordering::Relaxed);
                return;
            }
        }
        drop(state);
        if let Err(error) = self.remove_generations(&[old]) {
            tracing::warn!(%error, "an old journal stays until the next start");
        }
    }

    /// Makes sure that `bytes` more fit into both files.
    fn allocate(&self, state: &mut State, bytes: u64) -> Result<()> {
        let end = state.position + bytes;
        if end <= state.allocated {
            return Ok(());
        }
        let target = end.next_multiple_of(GROWTH_BYTES);
        for (file, copy) in state.files.iter().zip(COPIES) {
            let path = copy_path(&self.dir, state.head.generation, copy);
            let mut grown = file.write_zeros(state.allocated, target);
            if grown.is_err() && (self.make_room)() {
                grown = file.write_zeros(state.allocated, target);
            }
            grown.at("extend", &path)?;
        }
        state.allocated = target;
        Ok(())
    }

    fn remove_generations(&self, generations: &[u64]) -> Result<()> {
        for generation in generations {
            for copy in COPIES {
                remove_if_there(&*self.fs, &copy_path(&self.dir, *generation, copy))?;
            }
        }
        self.fs.sync_dir(&self.dir).at("sync", &self.dir)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the journal panics")
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn apply(facts: &mut BTreeMap<(LogId, FactKind), Bytes>, change: &Change) {
    match &change.value {
        Some(value) => facts.insert((change.log, change.kind), value.clone()),
        None => facts.remove(&(change.log, change.kind)),
    };
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::fs::sim::SimFs;
    use super::*;

    fn open(fs: &SimFs) -> Result<Journal> {
        let (fs, failure) = (Arc::new(fs.clone()), Arc::default());
        Journal::open(fs, Path::new("/meta"), true, 4096, Box::new(|| false), failure)
    }

    fn vote(log: u128, value: &'static str) -> Change {
        let value = Some(Bytes::from_static(value.as_bytes()));
        Change { log: LogId(Uuid::from_u128(log)), kind: FactKind::HardState, value }
    }

    fn value(journal: &Journal, log: u128) -> Option<Bytes> {
        journal.get(LogId(Uuid::from_u128(log)), FactKind::HardState)
    }

    #[test]
    fn synced_changes_survive_a_power_cut_and_others_may_not() {
        let fs = SimFs::new();
        let journal = open(&fs).unwrap();
        journal.record(&[vote(1, "one"), vote(2, "two")]).unwrap();
        journal.sync().unwrap();
        journal.record(&[vote(1, "uno")]).unwrap();
        fs.power_cut(|_| false);
        let journal = open(&fs).unwrap();
        assert_eq!(value(&journal, 1), Some(Bytes::from_static(b"one")));
        assert_eq!(value(&journal, 2), Some(Bytes::from_static(b"two")));
    }

    #[test]
    fn a_note_is_owed_to_nobody_and_durable_with_what_is() {
        let fs = SimFs::new();
        let journal = open(&fs).unwrap();
        journal.note(&[vote(1, "one")]).unwrap();
        assert!(journal.is_dirty() && !journal.owes_sync());
        journal.record(&[vote(2, "two")]).unwrap();
        journal.note(&[vote(3, "three")]).unwrap();
        assert!(journal.owes_sync());
        journal.sync().unwrap();
        assert!(!journal.is_dirty() && !journal.owes_sync());
        fs.power_cut(|_| false);
        let journal = open(&fs).unwrap();
        assert_eq!(value(&journal, 1), Some(Bytes::from_static(b"one")));
    }

    #[test]
    fn forgotten_logs_stay_forgotten() {
        let fs = SimFs::new();
        let journal = open(&fs).unwrap();
        journal.record(&[vote(1, "one"), vote(2, "two")]).unwrap();
        journal.forget(LogId(Uuid::from_u128(1))).unwrap();
        journal.sync().unwrap();
        let journal = open(&fs).unwrap();
        assert_eq!(value(&journal, 1), None);
        assert_eq!(value(&journal, 2), Some(Bytes::from_static(b"two")));
    }

    #[test]
    fn a_long_journal_is_rewritten_and_keeps_the_latest_values() {
        let fs = SimFs::new();
        let journal = open(&fs).unwrap();
        for n in 0..500u128 {
            journal.record(&[vote(n % 3, if n < 490 { "old" } else { "new" })]).unwrap();
            journal.sync().unwrap();
        }
        let journals = fs.paths().into_iter().filter(|path| path.starts_with("/meta")).count();
        assert_eq!(journals, 2, "older generations are removed");
        fs.power_cut(|_| false);
        let journal = open(&fs).unwrap();
        assert_eq!(value(&journal, 2), Some(Bytes::from_static(b"new")));
    }

    #[test]
    fn losing_a_durable_change_in_both_copies_refuses_to_open_and_changes_nothing() {
        let fs = SimFs::new();
        let journal = open(&fs).unwrap();
        journal.record(&[vote(1, "one")]).unwrap();
        journal.sync().unwrap();
        journal.record(&[vote(2, "two")]).unwrap();
        journal.sync().unwrap();
        for path in fs.paths() {
            fs.damage(&path, |bytes| bytes[format::HEAD_BYTES + 50] ^= 4);
        }
        let before = fs.paths();
        assert!(matches!(open(&fs), Err(Error::Amnesia { sequence: 1, .. })));
        assert_eq!(fs.paths(), before);
    }

    #[test]
    fn a_journal_of_a_later_version_is_left_alone() {
        let fs = SimFs::new();
        drop(open(&fs).unwrap());
        for path in fs.paths() {
            fs.damage(&path, |bytes| {
                bytes[8] = 9;
                let crc = super::super::entry::crc_from(0, &bytes[..12]);
                let crc = super::super::entry::crc_from(crc, &bytes[16..56]);
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            });
        }
        assert!(matches!(open(&fs), Err(Error::FutureVersion { found: 9, .. })));
    }
}
