//! Work on files that nobody may wait for: removing what was dropped, preparing what will be
//! needed.
//!
//! Removing a file, and giving it another name for good, waits for the disk more than once, and a
//! file system that tells its disk what is free waits for that, too. Whoever appends hands over
//! what it dropped, and a thread of lower standing takes it, a few files at a time. It rests as
//! long as it works, so that at least half of what the disk can do is left to appends and their
//! syncs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::context::{Context, RESERVE};
use super::error::{Error, IoContext as _, Result};
use super::fs::OpenMode;
use super::log::{Condemned, Dropped};
use super::segment::Segment;
use super::spare::Recycled;
use crate::types::LogId;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Files that wait to leave, from which on there is no rest: they take room, and whoever appends
/// has none of them to write to.
const BEHIND: usize = 64;
/// Files that leave together at most, and then there is a look at what else is to be done. Measured
/// with a thousand logs of 1 MiB: one by one they took 7 % of all time, a third of it to sync
/// directories.
const FILES_AT_A_TIME_MAX: usize = 16;
/// The longest rest, after work that took longer. Files that take longer leave in smaller numbers:
/// a log that is opened may have to wait for them.
const REST_MAX: Duration = Duration::from_millis(100);

/// Hears how long a piece of work took, and says whether there may be another.
pub(super) type Rest<'a> = &'a dyn Fn(Duration) -> bool;

/// Dropped segments of one log whose files may go.
#[derive(Debug)]
pub(super) struct Departure {
    log: LogId,
    /// Where the log keeps what it has dropped. What cannot be removed goes back there.
    condemned: Arc<Mutex<Dropped>>,
    due: VecDeque<Condemned>,
    /// The segment that the log begins with from here on, if it is to be looked at.
    new_start: Option<Arc<Segment>>,
}

impl Departure {
    pub(super) fn new(
        log: LogId,
        condemned: Arc<Mutex<Dropped>>,
        due: Vec<Condemned>,
        new_start: Option<Arc<Segment>>,
    ) -> Self {
        let stays = |s: &Arc<Segment>| new_start.as_ref().is_some_and(|new| Arc::ptr_eq(s, new));
        assert!(!due.iter().any(|(segment, _)| stays(segment)), "{log}: what stays does not leave");
        Self { log, condemned, due: due.into(), new_start }
    }

    /// Segments that wait.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// Removes or recycles the next file; `None` if there are no more. What is recycled is for
    /// [`Spares::take_in`](super::spare::Spares::take_in).
    ///
    /// DURABILITY: the state up to the first segment that stays is only in its checkpoint once the
    /// older segments are gone, so the checkpoint is read back from the disk before.
    pub(super) fn remove_next(&mut self, recycled: &mut Recycled) -> Option<Result<()>> {
        if self.due.is_empty() {
            return None;
        }
        if let Some(Err(error)) = self.new_start.take().map(|start| start.check_checkpoint()) {
            let all = std::mem::take(&mut self.due);
            self.give_back(all);
            return Some(Err(error));
        }
        let (segment, until) = self.due.pop_front()?;
        let removed = segment.remove(recycled);
        if removed.is_err() {
            self.give_back([(segment, until)]);
        }
        Some(removed)
    }

    fn give_back(&self, segments: impl IntoIterator<Item = Condemned>) {
        let mut condemned = self.condemned.lock().expect("no holder of the list panics");
        condemned.segments.extend(segments);
        condemned.has_failed = true;
    }
}

/// What was handed over to be removed.
#[derive(Debug, Default)]
pub(super) struct Departures {
    queue: Mutex<Queue>,
    /// Held while files are removed: how many of them at a time.
    turn: Mutex<AtATime>,
}

/// How many files leave together: as many as the disk can do in a short time.
#[derive(Debug)]
struct AtATime(usize);

impl Default for AtATime {
    fn default() -> Self {
        Self(1)
    }
}

impl AtATime {
    fn adapt(&mut self, took: Duration) {
        let now = if took > REST_MAX { self.0 / 2 } else { self.0 * 2 };
        self.0 = now.clamp(1, FILES_AT_A_TIME_MAX);
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Departure>,
    /// Nobody takes anything any more.
    is_closed: bool,
}

impl Departures {
    /// Takes over what is to be removed. After the end of the thread it is let go: the files stay
    /// until the log is opened the next time.
    pub(super) fn hand_over(&self, departure: Departure) {
        let mut queue = self.lock();
        if !queue.is_closed {
            queue.waiting.push_back(departure);
        }
    }

    /// Files that wait.
    fn len(&self) -> usize {
        self.lock().waiting.iter().map(Departure::len).sum()
    }

    /// Removes some files and returns how many.
    ///
    /// # Errors
    /// As [`Spares::take_in`](super::spare::Spares::take_in): the end of all writing.
    fn remove_some(&self, context: &Context) -> Result<usize> {
        let mut at_a_time = self.turn.lock().expect("no holder of the turn panics");
        let (started, mut recycled) = (Instant::now(), Recycled::default());
        let count = (0..at_a_time.0).take_while(|_| self.remove_next(&mut recycled)).count();
        context.spares.take_in(context, recycled)?;
        at_a_time.adapt(started.elapsed());
        Ok(count)
    }

    /// Removes one file; false if there was none. To be called with the turn held.
    fn remove_next(&self, recycled: &mut Recycled) -> bool {
        let Some(mut departure) = self.lock().waiting.pop_front() else { return false };
        let (log, count) = (departure.log, departure.len());
        match departure.remove_next(recycled) {
            // Who reads the log finds that, too.
            Some(Err(Error::Corrupt(damage))) => {
                tracing::debug!(%log, ?damage, "dropped segments stay for now");
            }
            Some(Err(error)) => tracing::warn!(%log, %error, "a dropped segment stays for now"),
            Some(Ok(())) | None => {}
        }
        assert!(departure.len() < count, "{log}: {count} segments never leave");
        if departure.len() > 0 {
            self.lock().waiting.push_front(departure);
        }
        true
    }

    /// Forgets what waits of a log, and returns when none of its files is being removed. Its
    /// directory may have another life from here on, in which the same names mean other files.
    pub(super) fn forget(&self, log: LogId) {
        // What was being removed may have come back into the queue.
        let _turn = self.turn.lock().expect("no holder of the turn panics");
        let mut queue = self.lock();
        let all = std::mem::take(&mut queue.waiting);
        let (gone, others) = all.into_iter().partition(|departure| departure.log == log);
        queue.waiting = others;
        drop(queue);
        drop::<VecDeque<Departure>>(gone);
    }

    /// Lets go of everything: what waits holds the directory.
    fn close(&self) {
        let mut queue = self.lock();
        queue.is_closed = true;
        let all = std::mem::take(&mut queue.waiting);
        drop(queue);
        drop(all);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the queue panics")
    }
}

/// Does what there is to do. After each piece of it `rest` hears how long that took, and says
/// whether to go on.
pub(super) fn housekeep(context: &Context, rest: Rest<'_>) {
    if context.failure.check().is_ok() && !let_go(context, rest) {
        return;
    }
    let prepared = give_back_spares(context)
        .and_then(|()| context.spares.prepare(context, rest))
        .and_then(|()| restore_reserve(context));
    if let Err(error) = prepared {
        // Nothing is lost: appends find out by themselves when they need the room.
        tracing::warn!(%error, "housekeeping could not prepare ahead");
    }
}

/// Lets some of the dropped files go; false if that is to be the end of the work.
fn let_go(context: &Context, rest: Rest<'_>) -> bool {
    let started = Instant::now();
    let is_behind = match context.departures.remove_some(context) {
        Ok(0) => return true,
        Ok(_) => context.departures.len() > BEHIND,
        Err(error) => {
            tracing::warn!(%error, "dropped files cannot be used again");
            return true;
        }
    };
    rest(if is_behind { Duration::ZERO } else { started.elapsed() })
}

/// Lets go of all spares if appends are short of room.
fn give_back_spares(context: &Context) -> Result<()> {
    let is_short = context.spares.take_shortage() || context.check_room(0).is_err();
    if is_short { context.spares.give_back(&*context.fs) } else { Ok(()) }
}

/// Takes the reserve again when there is room for it.
fn restore_reserve(context: &Context) -> Result<()> {
    let (path, bytes) = (context.root.join(RESERVE), context.config.reserve_bytes);
    let exists = context.fs.open(&path, OpenMode::Read).is_ok();
    if bytes == 0 || exists || context.check_room(2 * bytes).is_err() {
        return Ok(());
    }
    let file = context.fs.open(&path, OpenMode::Create).at("create", &path)?;
    if let Err(error) = file.reserve(bytes) {
        context.fs.remove_file(&path).at("remove", &path)?;
        return Err(Error::io("reserve", &path, error));
    }
    Ok(())
}

/// The thread that does this work.
#[derive(Debug)]
pub(super) struct Housekeeper {
    context: Arc<Context>,
    thread: Option<JoinHandle<()>>,
    /// Dropped to end the thread.
    alive: Option<Arc<()>>,
}

impl Housekeeper {
    pub(super) fn start(context: &Arc<Context>) -> Self {
        let alive = Arc::new(());
        let (working, watched) = (context.clone(), Arc::downgrade(&alive));
        let work = move || {
            working.spares.wake_when_wanted();
            let is_alive = || watched.strong_count() > 0;
            let rest = |worked: Duration| {
                let end = Instant::now() + worked.min(REST_MAX);
                // Whoever wants something wakes the thread; that can wait.
                while is_alive() && Instant::now() < end {
                    thread::park_timeout(end.saturating_duration_since(Instant::now()));
                }
                is_alive()
            };
            while is_alive() {
                housekeep(&working, &rest);
                if working.departures.len() == 0 || working.failure.check().is_err() {
                    thread::park_timeout(LOOK_EVERY);
                }
            }
        };
        let spawned = thread::Builder::new().name("quipu-housekeeping".to_owned()).spawn(work);
        let thread = Some(spawned.expect("the system starts a thread"));
        Self { context: context.clone(), thread, alive: Some(alive) }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.alive.take();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the housekeeping thread panicked");
            }
        }
        self.context.departures.close();
    }
}
