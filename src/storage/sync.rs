//! Making logs durable: who is dirty, and the threads that sync.
//!
//! A caller appends to many logs and records in the journal, then hands over one [`SyncRequest`] a
//! log. Whatever waits when a round starts is made durable by that round, files side by side; what
//! comes meanwhile waits for the next. One sync of a file serves all appends before it, and each
//! round reports once. Above a measured number of dirty files one sync of the file system takes the
//! place of many.
//!
//! Invariants:
//! * A token is reported only after everything that was appended to its log and
//!   [recorded](super::Journal::record) in the journal before the request is on disk; one of no log
//!   also after what was only [noted](super::Journal::note) there.
//! * Waiting requests are bounded by the number of logs and tokens in flight: the same log takes
//!   one place however often it is asked for.
//! * After a failed sync no round succeeds again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::context::Context;
use super::error::{Error, Result};
use super::segment::{OpenFile, Segment};
use crate::types::LogId;

/// What of a log is not on disk yet. Shared by the log's writer and the sync threads.
#[derive(Debug)]
pub struct LogSync {
    context: Arc<Context>,
    log: LogId,
    state: Mutex<DirtyState>,
    /// Highest index known on disk.
    synced_index: AtomicU64,
    /// The log's directory may not be durable yet.
    is_new_dir: AtomicBool,
    /// Held by the one sync of this log that is under way.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct DirtyState {
    /// Segments with unsynced bytes, oldest first.
    segments: Vec<Arc<Segment>>,
    last_index: u64,
    /// Counts truncations, so that a sync that overlaps one does not raise the watermark.
    truncations: u64,
    /// The log was deleted: nothing of it becomes durable any more.
    is_abandoned: bool,
}

impl LogSync {
    pub(super) fn new(
        context: &Arc<Context>,
        log: LogId,
        synced_index: u64,
        is_new: bool,
    ) -> Arc<Self> {
        let sync = Arc::new(Self {
            context: context.clone(),
            log,
            state: Mutex::default(),
            synced_index: AtomicU64::new(synced_index),
            is_new_dir: AtomicBool::new(is_new),
            turn: Mutex::new(()),
        });
        context.note_log(log, &sync);
        sync
    }

    /// Highest index known on disk.
    pub fn synced_index(&self) -> u64 {
        self.synced_index.load(Ordering::Acquire)
    }

    /// Notes that `segment` has bytes up to entry `last_index` that are not synced.
    pub(super) fn note_appended(&self, segment: &Arc<Segment>, last_index: u64) {
        let mut state = self.lock_state();
        if state.is_abandoned {
            return;
        }
        if !state.segments.last().is_some_and(|last| Arc::ptr_eq(last, segment)) {
            state.segments.push(segment.clone());
        }
        assert!(
            last_index >= state.last_index || state.segments.len() == 1,
            "log {}: appended {last_index} after {}",
            self.log,
            state.last_index
        );
        state.last_index = last_index;
    }

    /// Notes that entries after `last_index` are gone and the segments from `first_void` on with
    /// them.
    pub(super) fn note_truncated(&self, last_index: u64, first_void: u64) {
        let mut state = self.lock_state();
        state.segments.retain(|segment| segment.base_index() < first_void);
        state.last_index = state.last_index.min(last_index);
        state.truncations += 1;
        self.synced_index.fetch_min(last_index, Ordering::AcqRel);
    }

    /// Makes everything appended so far durable and returns the highest index on disk.
    ///
    /// DURABILITY: segments are synced and named oldest first, so that a segment that has its name
    /// proves that every entry before it is on disk.
    ///
    /// # Errors
    /// Any error is final for the data directory.
    pub fn sync(&self) -> Result<u64> {
        let taken = self.take()?;
        for dirty in &taken.segments {
            dirty.segment.sync_file(&dirty.open)?;
            self.name(&dirty.segment)?;
        }
        self.sync_new_dir(&taken)?;
        self.settle(taken);
        self.context.open_segments.trim();
        Ok(self.synced_index())
    }

    /// Gives a synced segment its name and makes it durable.
    fn name(&self, segment: &Segment) -> Result<()> {
        if segment.take_name()? {
            self.sync_dir(segment.dir())?;
            segment.confirm_name();
        }
        Ok(())
    }

    /// Makes the name of a new log's directory durable.
    fn sync_new_dir(&self, taken: &Taken<'_>) -> Result<()> {
        if !taken.segments.is_empty() && self.is_new_dir.load(Ordering::Acquire) {
            self.sync_dir(&self.context.logs_dir())?;
        }
        Ok(())
    }

    /// Takes over what is dirty. Until it is settled nobody else syncs the log.
    fn take(&self) -> Result<Taken<'_>> {
        let turn = self.turn.lock().expect("no holder of the turn panics");
        self.context.failure.check()?;
        let mut state = self.lock_state();
        let dirty = std::mem::take(&mut state.segments);
        let (last_index, truncations) = (state.last_index, state.truncations);
        drop(state);
        let begin = |segment: Arc<Segment>| {
            let is_sealed = segment.is_sealed();
            match segment.begin_sync() {
                Ok(open) => Some(Ok(Dirty { segment, open, is_sealed })),
                // DURABILITY: a segment goes when what replaces it is on disk, and not before.
                Err(_) if segment.is_void() => None,
                Err(error) => Some(Err(error)),
            }
        };
        let segments = dirty.into_iter().filter_map(begin).collect::<Result<Vec<_>>>();
        let segments = segments.inspect_err(|error| self.context.failure.set(error))?;
        Ok(Taken { _turn: turn, segments, last_index, truncations })
    }

    /// Notes that what was taken is on disk, names included.
    fn settle(&self, taken: Taken<'_>) {
        let state = self.lock_state();
        if state.truncations == taken.truncations && !taken.segments.is_empty() {
            assert!(
                taken.last_index <= state.last_index,
                "log {}: entry {} is on disk, the log ends at {}",
                self.log,
                taken.last_index,
                state.last_index
            );
            self.is_new_dir.store(false, Ordering::Release);
            self.synced_index.fetch_max(taken.last_index, Ordering::AcqRel);
        }
        drop(state);
        self.write_indices(&taken.segments);
        // The turn ends here.
        drop(taken);
    }

    /// Ends all syncing of a log that is being deleted, and removes what has no name yet.
    pub(super) fn abandon(&self) -> Result<()> {
        let _turn = self.turn.lock().expect("no holder of the turn panics");
        let mut state = self.lock_state();
        state.is_abandoned = true;
        let dirty = std::mem::take(&mut state.segments);
        drop(state);
        dirty.iter().try_for_each(|segment| segment.remove_now())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let synced = self.context.fs.sync_dir(dir);
        synced.map_err(|error| self.context.fail("sync", dir, error))
    }

    /// Writes the indices of segments that are complete. They can be rebuilt, so that a failure
    /// costs time and nothing else.
    fn write_indices(&self, segments: &[Dirty]) {
        for dirty in segments.iter().filter(|dirty| dirty.is_sealed) {
            if let Err(error) = dirty.segment.write_index() {
                tracing::warn!(log = %self.log, %error, "an index was not written");
            }
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, DirtyState> {
        self.state.lock().expect("no holder of the dirty list panics")
    }
}

/// What a sync of a log is about to make durable.
struct Taken<'a> {
    /// One sync of a log at a time, so that its segments become durable in order.
    _turn: MutexGuard<'a, ()>,
    segments: Vec<Dirty>,
    last_index: u64,
    truncations: u64,
}

/// A segment with bytes to sync.
struct Dirty {
    segment: Arc<Segment>,
    open: Arc<OpenFile>,
    /// It was sealed when it was taken, so that this sync covers all that it will ever hold.
    is_sealed: bool,
}

/// Asks for durability of everything done to a log, or to the journal, so far.
#[derive(Debug, Clone)]
pub struct SyncRequest {
    /// The log; `None` when only the journal matters.
    pub log: Option<Arc<LogSync>>,
    /// Reported back when it is done. The caller's numbers; storage only carries them.
    pub token: u64,
}

/// Called once a round, on a sync thread, with the tokens whose requests are durable, or with the
/// error that ended all syncing. Two rounds may report at the same time.
pub type OnRound = Box<dyn Fn(Result<&[u64]>) + Send + Sync>;

/// Threads that make logs durable.
pub struct Syncer {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

struct Core {
    context: Arc<Context>,
    on_round: OnRound,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Round,
    running: Option<Running>,
    is_stopping: bool,
}

#[derive(Default)]
struct Round {
    logs: BTreeMap<LogId, Arc<LogSync>>,
    wants_journal: bool,
    tokens: Vec<u64>,
}

/// A round under way: what no thread has taken yet, and what threads are at.
struct Running {
    tasks: Vec<Task>,
    busy: usize,
    tokens: Vec<u64>,
    error: Option<Error>,
}

enum Task {
    Log(Arc<LogSync>),
    Journal,
    Filesystem(Vec<Arc<LogSync>>),
}

impl Syncer {
    /// Starts `threads` threads; with none, rounds run in [`Self::run_round`].
    pub(super) fn start(context: &Arc<Context>, threads: usize, on_round: OnRound) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let core = Arc::new(Core { context: context.clone(), on_round, state, changed });
        let spawn = |n| {
            let core = core.clone();
            let name = format!("quipu-sync-{n}");
            let spawned = thread::Builder::new().name(name).spawn(move || {
                let _bomb = AbortOnPanic;
                core.work();
            });
            spawned.expect("the system starts a thread")
        };
        Self { threads: (0..threads).map(spawn).collect(), core }
    }

    /// Queues a request and returns at once.
    pub fn submit(&self, request: SyncRequest) {
        self.submit_all([request]);
    }

    /// Queues requests, for the same round, and returns at once.
    pub fn submit_all(&self, requests: impl IntoIterator<Item = SyncRequest>) {
        let mut state = self.core.lock();
        for request in requests {
            match request.log {
                Some(log) => drop(state.waiting.logs.insert(log.log, log)),
                None => state.waiting.wants_journal = true,
            }
            state.waiting.tokens.push(request.token);
        }
        let is_idle = state.running.is_none() && !state.waiting.tokens.is_empty();
        drop(state);
        if is_idle {
            self.core.changed.notify_one();
        }
    }

    /// Runs one round on the calling thread; false if nothing waited.
    ///
    /// # Panics
    /// If the syncer has threads of its own.
    pub fn run_round(&self) -> bool {
        assert!(self.threads.is_empty(), "rounds run on the syncer's own threads");
        let mut state = self.core.lock();
        if !self.core.start_round(&mut state) {
            return false;
        }
        while let Some(task) = take_task(&mut state) {
            state = self.core.run_task(state, task);
        }
        true
    }
}

impl Drop for Syncer {
    /// Finishes the rounds that wait and ends the threads.
    fn drop(&mut self) {
        self.core.lock().is_stopping = true;
        self.core.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a sync thread panicked");
            }
        }
    }
}

impl std::fmt::Debug for Syncer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Syncer").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Core {
    /// The loop of a sync thread.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(task) = take_task(&mut state) {
                state = self.run_task(state, task);
            } else if self.start_round(&mut state) {
                let has_more = state.running.as_ref().is_some_and(|round| round.tasks.len() > 1);
                if has_more {
                    self.changed.notify_all();
                }
            } else if state.is_stopping && state.running.is_none() {
                return;
            } else {
                state = self.changed.wait(state).expect("no sync thread panics with the lock");
            }
        }
    }

    /// Turns what waits into a round, unless one is under way.
    fn start_round(&self, state: &mut State) -> bool {
        if state.running.is_some() || state.waiting.tokens.is_empty() {
            return false;
        }
        let round = std::mem::take(&mut state.waiting);
        let logs: Vec<_> = round.logs.into_values().collect();
        let mut tasks: Vec<Task> = if logs.len() >= self.context.config.sync_filesystem_from {
            vec![Task::Filesystem(logs)]
        } else {
            logs.into_iter().map(Task::Log).collect()
        };
        if round.wants_journal || self.context.journal.owes_sync() {
            tasks.push(Task::Journal);
        }
        assert!(!tasks.is_empty(), "who asks for a sync names a log, or means the journal");
        state.running = Some(Running { tasks, busy: 0, tokens: round.tokens, error: None });
        true
    }

    /// Runs a task without the lock and reports the round if it was the last.
    fn run_task<'a>(&'a self, state: MutexGuard<'a, State>, task: Task) -> MutexGuard<'a, State> {
        drop(state);
        let result = self.perform(task);
        let mut state = self.lock();
        let round = state.running.as_mut().expect("a round runs until its last task is done");
        assert!(round.busy > 0, "a task ended that no thread was at");
        round.busy -= 1;
        if let Err(error) = result {
            round.error.get_or_insert(error);
        }
        if round.busy > 0 || !round.tasks.is_empty() {
            return state;
        }
        let Some(done) = state.running.take() else {
            return state;
        };
        let has_more = !state.waiting.tokens.is_empty() || state.is_stopping;
        drop(state);
        if has_more {
            self.changed.notify_all();
        }
        (self.on_round)(done.error.map_or(Ok(&done.tokens), Err));
        self.lock()
    }

    fn perform(&self, task: Task) -> Result<()> {
        self.context.failure.check()?;
        let started = Instant::now();
        let done = match task {
            Task::Log(log) => log.sync().map(drop),
            Task::Journal => self.context.journal.sync().map(drop),
            Task::Filesystem(logs) => self.sync_filesystem(&logs),
        };
        self.context.syncs.observe(started.elapsed());
        done
    }

    /// Makes many logs durable with one sync of the file system, and with a second one if files got
    /// their names.
    ///
    /// DURABILITY: what is dirty is taken *before* the sync: entries that come while it runs are
    /// not covered by it. `syncfs` waits for every dirty page of the file system and reports write
    /// errors (Linux 5.8 and later), so it stands for a sync of each file and directory.
    fn sync_filesystem(&self, logs: &[Arc<LogSync>]) -> Result<()> {
        let taken = logs.iter().map(|log| log.take()).collect::<Result<Vec<_>>>()?;
        self.syncfs()?;
        let mut named = Vec::new();
        for (log, taken) in logs.iter().zip(&taken) {
            let Some((last, earlier)) = taken.segments.split_last() else { continue };
            // Names of one log become durable oldest first: only the last may wait for the others.
            for dirty in earlier {
                log.name(&dirty.segment)?;
            }
            if last.segment.take_name()? {
                named.push(last.segment.clone());
            }
        }
        if !named.is_empty() {
            self.syncfs()?;
        }
        named.iter().for_each(|segment| segment.confirm_name());
        for (log, taken) in logs.iter().zip(taken) {
            log.settle(taken);
        }
        self.context.open_segments.trim();
        Ok(())
    }

    fn syncfs(&self) -> Result<()> {
        let root = &self.context.root;
        let synced = self.context.fs.sync_filesystem(root);
        synced.map_err(|error| self.context.fail("sync", root, error))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no sync thread panics with the lock")
    }
}

/// Ends the process when a sync thread panics: the round it was at would never be reported, and
/// everybody who waits for it would wait for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a sync thread panicked; the process ends");
            std::process::abort();
        }
    }
}

/// Takes the next task of the round under way.
fn take_task(state: &mut State) -> Option<Task> {
    let round = state.running.as_mut()?;
    let task = round.tasks.pop()?;
    assert!(!round.tokens.is_empty(), "a round runs because somebody asked");
    round.busy += 1;
    Some(task)
}
