//! Work on files that nobody may wait for: removing what was dropped, preparing what will be
//! needed.
//!
//! Removing a file, and giving it another name for good, waits for the disk more than once, and a
//! file system that tells its disk what is free waits for that, too. Whoever appends hands over
//! what it dropped, and a thread of lower standing takes it, one file at a time. It rests as long
//! as it works, so that at least half of what the disk can do is left to appends and their syncs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::context::{Context, RESERVE};
use super::error::{Error, IoContext as _, Result};
use super::fs::OpenMode;
use super::log::Condemned;
use super::segment::Segment;
use crate::types::LogId;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The longest rest, after work that took longer.
const REST_MAX: Duration = Duration::from_millis(100);

/// Dropped segments of one log whose files may go.
#[derive(Debug)]
pub(super) struct Departure {
    log: LogId,
    /// Where the log keeps what it has dropped. What cannot be removed goes back there.
    condemned: Arc<Mutex<Vec<Condemned>>>,
    due: VecDeque<Condemned>,
    /// The segment that the log begins with from here on, if it was to be looked at.
    new_start: Option<Arc<Segment>>,
    /// What is the matter with that.
    failure: Option<Error>,
}

impl Departure {
    pub(super) fn new(
        log: LogId,
        condemned: Arc<Mutex<Vec<Condemned>>>,
        due: Vec<Condemned>,
        new_start: Option<Arc<Segment>>,
    ) -> Self {
        let stays = |s: &Arc<Segment>| new_start.as_ref().is_some_and(|new| Arc::ptr_eq(s, new));
        assert!(!due.iter().any(|(segment, _)| stays(segment)), "{log}: what stays does not leave");
        Self { log, condemned, due: due.into(), new_start, failure: None }
    }

    /// Segments that wait.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// Removes or recycles the next file; `None` if there are no more.
    ///
    /// DURABILITY: the state up to the first segment that stays is only in its checkpoint once the
    /// older segments are gone, so the checkpoint is read back from the disk before.
    pub(super) fn remove_next(&mut self) -> Option<Result<()>> {
        let (segment, until) = self.due.pop_front()?;
        if let Some(start) = self.new_start.take() {
            self.failure = start.check_checkpoint().err();
        }
        let removed = match &self.failure {
            None => segment.remove(),
            Some(failure) => Err(failure.clone()),
        };
        if removed.is_err() {
            let mut condemned = self.condemned.lock().expect("no holder of the list panics");
            condemned.push((segment, until));
        }
        Some(removed)
    }
}

/// What was handed over to be removed.
#[derive(Debug, Default)]
pub(super) struct Departures {
    waiting: Mutex<VecDeque<Departure>>,
    /// Held while a file is removed.
    turn: Mutex<()>,
}

impl Departures {
    pub(super) fn hand_over(&self, departure: Departure) {
        self.lock().push_back(departure);
    }

    /// Removes one file; false if there was none.
    fn remove_next(&self) -> bool {
        let _turn = self.turn.lock().expect("no holder of the turn panics");
        let Some(mut departure) = self.lock().pop_front() else { return false };
        if let Some(Err(error)) = departure.remove_next() {
            tracing::warn!(log = %departure.log, %error, "a dropped segment stays for now");
        }
        if departure.len() > 0 {
            self.lock().push_front(departure);
        }
        true
    }

    /// Forgets what waits of a log, and returns when none of its files is being removed. Its
    /// directory may have another life from here on, in which the same names mean other files.
    pub(super) fn forget(&self, log: LogId) {
        self.lock().retain(|departure| departure.log != log);
        drop(self.turn.lock().expect("no holder of the turn panics"));
        self.lock().retain(|departure| departure.log != log);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Departure>> {
        self.waiting.lock().expect("no holder of the queue panics")
    }
}

/// Does what there is to do. After each piece of it `rest` hears how long that took.
pub(super) fn housekeep(context: &Context, rest: &dyn Fn(Duration)) {
    loop {
        let started = Instant::now();
        if !context.departures.remove_next() {
            break;
        }
        rest(started.elapsed());
    }
    let prepared = give_back_spares(context)
        .and_then(|()| context.spares.prepare(context, rest))
        .and_then(|_| restore_reserve(context));
    if let Err(error) = prepared {
        // Nothing is lost: appends find out by themselves when they need the room.
        tracing::warn!(%error, "housekeeping could not prepare ahead");
    }
}

/// Lets go of all spares if appends are short of room.
fn give_back_spares(context: &Context) -> Result<()> {
    if context.check_room(0).is_ok() { Ok(()) } else { context.spares.give_back(&*context.fs) }
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
    thread: Option<JoinHandle<()>>,
    /// Dropped to end the thread.
    alive: Option<Arc<()>>,
}

impl Housekeeper {
    pub(super) fn start(context: &Arc<Context>) -> Self {
        let alive = Arc::new(());
        let (context, watched) = (context.clone(), Arc::downgrade(&alive));
        let work = move || {
            context.spares.wake_when_wanted();
            let rest = |worked: Duration| {
                if watched.strong_count() > 0 {
                    thread::park_timeout(worked.min(REST_MAX));
                }
            };
            while watched.strong_count() > 0 {
                housekeep(&context, &rest);
                thread::park_timeout(LOOK_EVERY);
            }
        };
        let spawned = thread::Builder::new().name("quipu-housekeeping".to_owned()).spawn(work);
        Self { thread: Some(spawned.expect("the system starts a thread")), alive: Some(alive) }
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
    }
}
