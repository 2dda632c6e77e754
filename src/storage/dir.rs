//! A data directory: everything one node keeps on disk.
//!
//! ```text
//! quipu.dir        says that this is a data directory, and of which format
//! quipu.lock       locked by the process that uses it
//! meta/            the meta journal, two copies
//! logs/<log id>/   the segments of one log and their indices
//! spare/           segment files prepared ahead
//! quarantine/      what was found and not known; for a person to look at
//! reserve          space that the journal may have when the disk is full
//! ```

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;

use super::config::Config;
use super::context::{Context, Failure, OpenSegments, RESERVE};
use super::error::{Error, IoContext as _, Result};
use super::fs::{Fs, OpenMode, read_exact_at};
use super::header::Tip;
use super::housekeeping::{Departures, Housekeeper, housekeep};
use super::journal::{Change, FactKind, Journal};
use super::log::Log;
use super::open::{self, free_path};
use super::recovery::{Class, RecoveryReport};
use super::spare::Spares;
use super::sync::{OnRound, Syncer};
use crate::telemetry::Timing;
use crate::types::LogId;

pub(super) const MARKER: &str = "quipu.dir";
const MARKER_TEXT: &str = "quipu data directory, format ";
const FORMAT: u32 = 1;
pub(super) const LOCK: &str = "quipu.lock";

/// An open data directory. One process has it at a time: until this and all its logs are dropped.
#[derive(Debug)]
pub struct DataDir {
    context: Arc<Context>,
    class: Class,
    housekeeper: Mutex<Option<Housekeeper>>,
}

impl DataDir {
    /// Opens the data directory at `root`, making a new one where there is none.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a directory that holds other things, [`Error::FutureVersion`],
    /// [`Error::InUse`]: nothing was touched. [`Error::Amnesia`]: the node's votes are lost.
    pub fn open(fs: Arc<dyn Fs>, root: &Path, config: Config) -> Result<Self> {
        let is_new = check_marker(&*fs, root)?;
        fs.create_dir_all(root).at("create", root)?;
        let lock_path = root.join(LOCK);
        let lock = fs.try_lock(&lock_path).at("lock", &lock_path)?;
        let lock = lock.ok_or_else(|| Error::InUse { path: root.to_path_buf() })?;
        for dir in ["logs", "quarantine"] {
            let dir = root.join(dir);
            fs.create_dir_all(&dir).at("create", &dir)?;
        }
        let failure = Arc::new(Failure::default());
        let journal = open_journal(&fs, root, is_new, &config, &failure)?;
        if is_new {
            // DURABILITY: the marker comes last: a directory that has one has a journal, and one
            // whose journal is gone is not taken for new.
            write_marker(&*fs, root)?;
        }
        let class = start_boot(&*fs, &journal)?;
        if class == Class::ProcessCrash {
            // DURABILITY: names and bytes that the last process left in the cache are on disk
            // before anything is built on them.
            fs.sync_filesystem(root).at("sync", root)?;
        }
        let spares_bytes_max = config.spares_max as u64 * config.segment_bytes;
        let spares = Spares::open(&*fs, root.join("spare"), spares_bytes_max)?;
        let open_segments = OpenSegments::new(config.open_segments_max);
        let has_threads = config.has_threads();
        let context = Arc::new(Context {
            fs,
            root: root.to_path_buf(),
            config,
            journal,
            spares,
            departures: Departures::default(),
            open_segments,
            failure,
            damage_news: Arc::default(),
            syncs: Timing::default(),
            logs: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        });
        let housekeeper = has_threads.then(|| Housekeeper::start(&context));
        let directory = Self { context, class, housekeeper: Mutex::new(housekeeper) };
        if !has_threads {
            directory.housekeep();
        }
        Ok(directory)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.context.root
    }

    /// Bytes that can still be allocated on its disk.
    ///
    /// # Errors
    /// What the system said.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.fs.free_bytes(&self.context.root).at("look at", &self.context.root)
    }

    /// Appends are refused when less than this would stay free.
    pub fn low_water_bytes(&self) -> u64 {
        self.context.config.low_water_bytes
    }

    /// How long syncs took so far, and from now on.
    pub fn syncs(&self) -> Timing {
        self.context.syncs.clone()
    }

    /// Counts changes of what is damaged or suspected in the logs: who has seen a number need look
    /// at none of them before it is another.
    pub fn damage_news(&self) -> u64 {
        self.context.damage_news.load(Ordering::Acquire)
    }

    /// How the directory was left by the process before.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The meta journal.
    pub fn journal(&self) -> &Journal {
        &self.context.journal
    }

    /// Ids of all logs that have a directory, sorted.
    ///
    /// # Errors
    /// What the system said.
    pub fn logs(&self) -> Result<Vec<LogId>> {
        let dir = self.context.logs_dir();
        let names = self.context.fs.list(&dir).at("list", &dir)?;
        Ok(names.iter().filter_map(|entry| LogId::parse(&entry.name)).collect())
    }

    /// Creates a log. Its first segment starts after `tip` ([`Tip::EMPTY`] for a log from the
    /// beginning) with `checkpoint`. Nothing is durable until the log's first sync.
    ///
    /// # Errors
    /// [`Error::Foreign`] when the id is taken, [`Error::NoSpace`], or what the system said.
    pub fn create_log(&self, id: LogId, tip: Tip, checkpoint: &[u8]) -> Result<Log> {
        self.context.failure.check()?;
        let dir = self.context.log_dir(id);
        let is_taken = self.context.fs.list(&dir).is_ok_and(|names| !names.is_empty());
        if is_taken {
            let reason = "a log of this id exists already".to_owned();
            return Err(Error::Foreign { path: dir, reason });
        }
        self.forget_state(id)?;
        Log::create(&self.context, id, tip, checkpoint)
    }

    /// Opens a log and says what recovery found. Damage is no error here: it is in the report.
    ///
    /// # Errors
    /// [`Error::UnknownLog`], [`Error::FutureVersion`], [`Error::Foreign`], or what the system
    /// said.
    pub fn open_log(&self, id: LogId) -> Result<(Log, RecoveryReport)> {
        self.context.failure.check()?;
        let started = Instant::now();
        self.context.departures.forget(id);
        let dir = self.context.log_dir(id);
        if self.context.fs.list(&dir).is_err() {
            return Err(Error::UnknownLog { log: id, path: self.context.root.clone() });
        }
        let (log, mut report) = open::open(&self.context, id, self.class)?;
        report.elapsed = started.elapsed();
        tracing::debug!(log = %id, ?report, "recovered");
        Ok((log, report))
    }

    /// Syncs a log and records how it ends, so that it opens next time without being read.
    ///
    /// # Errors
    /// Any error is final for the data directory.
    pub fn close_log(&self, log: Log) -> Result<()> {
        log.close()
    }

    /// Deletes a log that its owner knows to be deleted for good. Its writer must be dropped.
    ///
    /// DURABILITY: what the journal says of the log is forgotten first, so that the facts of a log
    /// never meet the files of another of the same id.
    ///
    /// # Errors
    /// What the system said; whatever is left goes with the next try.
    pub fn delete_log(&self, id: LogId) -> Result<()> {
        self.context.departures.forget(id);
        if let Some(sync) = self.context.forget_log(id) {
            sync.abandon()?;
        }
        self.context.journal.forget(id)?;
        self.context.journal.sync()?;
        let dir = self.context.log_dir(id);
        for entry in self.context.fs.list(&dir).at("list", &dir)? {
            let path = dir.join(entry.name);
            self.context.fs.remove_file(&path).at("remove", &path)?;
        }
        self.context.fs.remove_dir(&dir).at("remove", &dir)?;
        let parent = self.context.logs_dir();
        self.context.fs.sync_dir(&parent).at("sync", &parent)
    }

    /// Sets a log aside that nobody knows. It is never opened again by itself.
    /// Its votes and its replica set stay in the journal; where it starts and ends is forgotten.
    ///
    /// # Errors
    /// What the system said.
    pub fn quarantine_log(&self, id: LogId) -> Result<PathBuf> {
        self.context.departures.forget(id);
        if let Some(sync) = self.context.forget_log(id) {
            sync.abandon()?;
        }
        self.forget_state(id)?;
        let fs = &*self.context.fs;
        let (from, aside) = (self.context.log_dir(id), self.context.root.join("quarantine"));
        let to = free_path(fs, &aside, &from)?;
        fs.rename(&from, &to).at("rename", &from)?;
        for dir in [&aside, &self.context.logs_dir()] {
            fs.sync_dir(dir).at("sync", dir)?;
        }
        Ok(to)
    }

    /// Forgets, durably, what the journal says of where a log starts and ends.
    fn forget_state(&self, log: LogId) -> Result<()> {
        let journal = &self.context.journal;
        let kinds = [FactKind::LogStart, FactKind::Watermark, FactKind::Closed];
        let known = kinds.into_iter().filter(|kind| journal.get(log, *kind).is_some());
        let changes: Vec<_> = known.map(|kind| Change { log, kind, value: None }).collect();
        if changes.is_empty() {
            return Ok(());
        }
        journal.record(&changes)?;
        journal.sync().map(drop)
    }

    /// Starts `sync_threads` threads that make logs durable and call `on_round` once a round. With
    /// none configured, the caller runs the rounds.
    pub fn start_syncer(&self, on_round: OnRound) -> Syncer {
        Syncer::start(&self.context, self.context.config.sync_threads, on_round)
    }

    /// Removes what was handed over, prepares a spare file if one is wanted and restores the
    /// reserve. Runs in the background by itself unless the directory was opened without sync
    /// threads.
    pub fn housekeep(&self) {
        housekeep(&self.context, &|_| true);
    }

    /// Why this directory takes no more writes, if so.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn check(&self) -> Result<()> {
        self.context.failure.check()
    }

    /// Closes the directory in order. Logs that were not closed before are recovered next time.
    ///
    /// # Errors
    /// Whatever keeps the journal from saying so; the next open then counts as after a crash.
    pub fn close(self) -> Result<()> {
        self.finish()
    }

    /// As [`Self::close`], for a directory that others hold too. None of them may write to it any
    /// more: another process can have it from here on.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub fn finish(&self) -> Result<()> {
        self.housekeeper.lock().expect("nobody panics with the lock").take();
        self.context.failure.check()?;
        let value = Some(Bytes::from_static(b"clean"));
        let clean = Change { log: LogId::NIL, kind: FactKind::CleanShutdown, value };
        self.context.journal.record(&[clean])?;
        self.context.journal.sync()?;
        self.context.lock.lock().expect("nobody panics with the lock").take();
        Ok(())
    }
}

/// Checks that `root` is a data directory, or can become one; true for the latter.
pub(super) fn check_marker(fs: &dyn Fs, root: &Path) -> Result<bool> {
    let marker = root.join(MARKER);
    let file = match fs.open(&marker, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return check_empty(fs, root).map(|()| true);
        }
        Err(error) => return Err(Error::io("open", &marker, error)),
    };
    let mut bytes = [0; 64];
    let len = file.length().at("measure", &marker)?.min(bytes.len() as u64) as usize;
    read_exact_at(&*file, &mut bytes[..len], 0).at("read", &marker)?;
    let text = std::str::from_utf8(&bytes[..len]).unwrap_or_default();
    let format = text.strip_prefix(MARKER_TEXT).and_then(|rest| rest.trim_end().parse().ok());
    match format {
        Some(FORMAT) => Ok(false),
        Some(found) => Err(Error::FutureVersion { path: marker, found, supported: FORMAT }),
        None => {
            let reason = "its marker file is not one of ours".to_owned();
            Err(Error::Foreign { path: root.to_path_buf(), reason })
        }
    }
}

/// A directory that is to become a data directory must be empty, or missing.
fn check_empty(fs: &dyn Fs, root: &Path) -> Result<()> {
    let names = match fs.list(root) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", root, error)),
    };
    // A crash in the midst of a first start leaves some of these, and no log yet.
    let begun = ["lost+found", LOCK, "meta", "logs", "quarantine"];
    let is_harmless = |name: &str| begun.contains(&name) || name == format!("{MARKER}.tmp");
    let has_logs = fs.list(&root.join("logs")).is_ok_and(|logs| !logs.is_empty());
    if has_logs {
        let reason = format!("it holds logs but no {MARKER}: its marker was lost, put it back");
        return Err(Error::Foreign { path: root.to_path_buf(), reason });
    }
    match names.iter().find(|entry| !is_harmless(&entry.name)) {
        None => Ok(()),
        Some(entry) => {
            let reason = format!(
                "this is not a data directory: it holds {:?} but no {MARKER}; choose an empty one",
                entry.name
            );
            Err(Error::Foreign { path: root.to_path_buf(), reason })
        }
    }
}

/// DURABILITY: write, sync, rename, sync the directory, before anything else is put there.
fn write_marker(fs: &dyn Fs, root: &Path) -> Result<()> {
    let (marker, temporary) = (root.join(MARKER), root.join(format!("{MARKER}.tmp")));
    let _ = fs.remove_file(&temporary);
    let file = fs.open(&temporary, OpenMode::Create).at("create", &temporary)?;
    let text = format!("{MARKER_TEXT}{FORMAT}\n");
    file.write_at(&[IoSlice::new(text.as_bytes())], 0).at("write", &temporary)?;
    file.sync().at("sync", &temporary)?;
    fs.rename(&temporary, &marker).at("rename", &temporary)?;
    fs.sync_dir(root).at("sync", root)
}

fn open_journal(
    fs: &Arc<dyn Fs>,
    root: &Path,
    is_new: bool,
    config: &Config,
    failure: &Arc<Failure>,
) -> Result<Journal> {
    let reserve = root.join(RESERVE);
    let (removing, failure) = (fs.clone(), failure.clone());
    let make_room = Box::new(move || removing.remove_file(&reserve).is_ok());
    let (meta, rewrite_bytes) = (root.join("meta"), config.journal_rewrite_bytes);
    Journal::open(fs.clone(), &meta, is_new, rewrite_bytes, make_room, failure)
}

/// Finds out how the directory was left, and records that it is in use from now on.
///
/// DURABILITY: synced before anything is written, so that a crash is never taken for a clean end.
fn start_boot(fs: &dyn Fs, journal: &Journal) -> Result<Class> {
    let boot = Bytes::copy_from_slice(&fs.boot_id());
    let opened = journal.get(LogId::NIL, FactKind::Opened);
    let was_closed = journal.get(LogId::NIL, FactKind::CleanShutdown).is_some();
    let class = match opened {
        None => Class::Clean,
        Some(_) if was_closed => Class::Clean,
        Some(before) if before == boot => Class::ProcessCrash,
        Some(_) => Class::MachineCrash,
    };
    let log = LogId::NIL;
    journal.record(&[
        Change { log, kind: FactKind::Opened, value: Some(boot) },
        Change { log, kind: FactKind::CleanShutdown, value: None },
    ])?;
    journal.sync()?;
    Ok(class)
}
