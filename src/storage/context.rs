//! What all logs of one data directory share: the file system, sizes, spare files, the bound on
//! open files, and the one bit that says that writing is over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use super::config::Config;
use super::error::{Error, Result};
use super::fs::{Fs, Lock};
use super::housekeeping::Departures;
use super::journal::Journal;
use super::segment::Segment;
use super::spare::Spares;
use super::sync::LogSync;
use crate::telemetry::Timing;
use crate::types::LogId;

/// Name of the file that keeps space aside.
pub(super) const RESERVE: &str = "reserve";
/// Segments that one call looks at to find some to close.
const STEPS_MAX: usize = 64;
/// Segments among which it is not worth to look for those that are gone.
const SWEEP_MIN: usize = 64;

/// Shared by every log of a data directory.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) root: PathBuf,
    pub(super) config: Config,
    pub(super) journal: Journal,
    pub(super) spares: Spares,
    pub(super) departures: Departures,
    pub(super) open_segments: OpenSegments,
    pub(super) failure: Arc<Failure>,
    /// Counts changes of what is damaged or suspected, in all logs.
    pub(super) damage_news: Arc<AtomicU64>,
    /// How long syncs took.
    pub(super) syncs: Timing,
    /// What there is to sync of each log that was opened.
    pub(super) logs: Mutex<BTreeMap<LogId, Weak<LogSync>>>,
    /// Held as long as anything of the directory is.
    /// Given back when the directory is closed.
    pub(super) lock: Mutex<Option<Box<dyn Lock>>>,
}

impl Context {
    /// Directory of all logs.
    pub(super) fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Directory of one log.
    pub(super) fn log_dir(&self, log: LogId) -> PathBuf {
        self.logs_dir().join(log.to_string())
    }

    /// Remembers how a log is synced.
    pub(super) fn note_log(&self, log: LogId, sync: &Arc<LogSync>) {
        self.logs.lock().expect("no holder of the list panics").insert(log, Arc::downgrade(sync));
    }

    /// Forgets a log, and returns how it is synced if anybody still does.
    pub(super) fn forget_log(&self, log: LogId) -> Option<Arc<LogSync>> {
        self.logs.lock().expect("no holder of the list panics").remove(&log)?.upgrade()
    }

    /// Gives up the reserve; true if there was one. For what must be written on a full disk.
    pub(super) fn make_room(&self) -> bool {
        self.fs.remove_file(&self.root.join(RESERVE)).is_ok()
    }

    /// Refuses to use `bytes` more of the disk when that would go below the low-water mark.
    pub(super) fn check_room(&self, bytes: u64) -> Result<()> {
        let wanted = bytes + self.config.low_water_bytes;
        match self.fs.free_bytes(&self.root) {
            Ok(free) if free < wanted => Err(self.no_space(bytes)),
            _ => Ok(()),
        }
    }

    /// The error for an allocation of `bytes` that found no room.
    pub(super) fn no_space(&self, bytes: u64) -> Error {
        let free = self.fs.free_bytes(&self.root).unwrap_or(0);
        let wanted = bytes + self.config.low_water_bytes;
        Error::NoSpace { path: self.root.clone(), free, wanted }
    }

    /// Turns a failed write or sync into the end of all writing; a full disk only into a refusal.
    ///
    /// DURABILITY: after a failed sync nobody knows what is on disk, and a later sync that succeeds
    /// says nothing about it. Only a restart that reads the disk finds out.
    pub(super) fn fail(
        &self,
        operation: &'static str,
        path: &Path,
        error: std::io::Error,
    ) -> Error {
        let error = Error::io(operation, path, error);
        self.failure.set(&error);
        error
    }
}

/// Set once by the first write or sync that failed.
#[derive(Debug, Default)]
pub struct Failure(OnceLock<Arc<str>>);

impl Failure {
    /// Remembers the first failure.
    pub(super) fn set(&self, error: &Error) {
        if self.0.set(error.to_string().into()).is_ok() {
            tracing::error!(%error, "storage failed, no more writes until restart");
        }
    }

    /// Refuses if something failed.
    pub(super) fn check(&self) -> Result<()> {
        match self.0.get() {
            Some(reason) => Err(Error::Failed { reason: reason.clone() }),
            None => Ok(()),
        }
    }
}

/// Bounds how many segments are open and mapped: a clock over those that are.
///
/// A segment that was used since the hand last passed is spared once; one that is dirty or still
/// has no name stays open, so the bound is exceeded while more than that many are dirty.
#[derive(Debug)]
pub(super) struct OpenSegments {
    max: usize,
    clock: Mutex<Clock>,
}

#[derive(Debug, Default)]
struct Clock {
    segments: Vec<Weak<Segment>>,
    hand: usize,
    /// How many there have to be for a look at which are gone.
    sweep_from: usize,
}

impl OpenSegments {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), clock: Mutex::default() }
    }

    /// Notes that `segment` was opened and closes others while there are too many.
    pub(super) fn note_opened(&self, segment: &Arc<Segment>) {
        let mut clock = self.lock();
        clock.note(Arc::downgrade(segment));
        assert!(!clock.segments.is_empty(), "the clock has the segment that was just opened");
        clock.trim(self.max);
    }

    /// Closes segments while there are too many; some may have had to stay open before.
    pub(super) fn trim(&self) {
        self.lock().trim(self.max);
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().expect("no holder of the clock panics")
    }
}

impl Clock {
    /// Takes a segment, and forgets those that are gone whenever there are twice as many as the
    /// last time: what was removed would keep its memory here, and take the place of others.
    fn note(&mut self, segment: Weak<Segment>) {
        if self.segments.len() >= self.sweep_from {
            self.segments.retain(|segment| segment.strong_count() > 0);
            self.sweep_from = SWEEP_MIN.max(2 * self.segments.len());
        }
        self.segments.push(segment);
    }

    /// Closes what is idle while there are too many. Looks at a bounded number a call: where most
    /// are dirty, going round them all each time would be quadratic.
    fn trim(&mut self, max: usize) {
        let mut steps = (2 * self.segments.len()).min(STEPS_MAX);
        while self.segments.len() > max && steps > 0 {
            steps -= 1;
            self.step();
        }
    }

    /// Looks at the segment under the hand: closes and forgets it, or moves on.
    fn step(&mut self) {
        self.hand %= self.segments.len();
        let segment = self.segments[self.hand].upgrade();
        if segment.is_some_and(|segment| !segment.close_if_idle()) {
            self.hand += 1;
        } else {
            self.segments.swap_remove(self.hand);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_are_gone_are_forgotten() {
        let mut clock = Clock::default();
        for _ in 0..10_000 {
            clock.note(Weak::new());
            assert!(clock.segments.len() <= SWEEP_MIN, "{} are kept", clock.segments.len());
        }
    }
}
