//! A desk: a shard, the mails that wait for it, and who takes its turns.
//!
//! The shard's own thread takes its turns while there is much to do. While it sleeps, whoever
//! brings a mail may take the turn instead (*flat combining*: Hendler, Incze, Shavit and Tzafrir,
//! 2010): the news of a sync or a frame of another node is then worked on by the thread that has
//! it, and a lone record crosses a cluster with half the switches of threads, which are most of the
//! time that it takes.
//!
//! A turn writes into the page cache, and may have to wait there for a disk in trouble. A thread
//! that serves others must not, so guests are let in one at a time, and none for a while after a
//! turn has taken long. What waits for a disk by its nature, they leave to the shard's thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::super::machine::Machine;
use super::Mail;
use super::inbox::{Inbox, NotTaken, Put};
use super::turn::{Turn, Who};

/// A turn that takes longer was held up.
const LONG_TURN: Duration = Duration::from_millis(5);
/// For how long no guest is let in after that.
const AFTER_LONG_TURN: Duration = Duration::from_secs(1);

/// Which guests of a host may take turns.
#[derive(Debug)]
pub(super) struct Guests {
    started: Instant,
    are_welcome: bool,
    is_one_here: AtomicBool,
    /// Milliseconds since `started` until which none is let in.
    barred_until_ms: AtomicU64,
}

impl Guests {
    /// Lets in nobody at all unless `are_welcome`.
    pub(super) fn new(are_welcome: bool) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            are_welcome,
            is_one_here: AtomicBool::new(false),
            barred_until_ms: AtomicU64::new(0),
        })
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn may_come(&self) -> bool {
        self.are_welcome && self.now_ms() >= self.barred_until_ms.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Option<Guest<'_>> {
        let may_come = self.may_come() && !self.is_one_here.swap(true, Ordering::Acquire);
        may_come.then(|| Guest(self))
    }

    fn note_turn(&self, took: Duration) {
        if took > LONG_TURN {
            let until_ms = self.now_ms() + AFTER_LONG_TURN.as_millis() as u64;
            self.barred_until_ms.store(until_ms, Ordering::Relaxed);
        }
    }
}

/// The one guest that is let in. Leaves when it is dropped.
struct Guest<'a>(&'a Guests);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.is_one_here.store(false, Ordering::Release);
    }
}

/// Where a shard is while somebody has its turn.
type Place<'a, M> = MutexGuard<'a, Option<Turn<M>>>;

/// A shard and its mails.
///
/// * Mails are taken by whoever holds `turn`, so that they are worked on in the order they came.
/// * `turn` is empty once the shard is over; only its own thread ends it, because closing logs
///   waits for the disk, and so does dropping the last of what syncs them.
pub(super) struct Desk<M: Machine> {
    inbox: Inbox<Mail<M>>,
    turn: Mutex<Option<Turn<M>>>,
    guests: Arc<Guests>,
}

impl<M: Machine> Desk<M> {
    /// A desk at which nobody works yet.
    pub(super) fn new(mails_max: usize, guests: &Arc<Guests>) -> Arc<Self> {
        let (inbox, turn) = (Inbox::new(mails_max), Mutex::new(None));
        Arc::new(Self { inbox, turn, guests: guests.clone() })
    }

    /// Brings a mail, unless too many wait, and leaves the work to the shard's thread.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) fn leave(&self, mail: Mail<M>) -> Result<(), NotTaken> {
        self.wake(self.inbox.try_put(mail)?);
        Ok(())
    }

    /// The same, and waits for room if too many mails wait.
    ///
    /// # Errors
    /// [`NotTaken::Gone`].
    pub(super) fn leave_surely(&self, mail: Mail<M>) -> Result<(), NotTaken> {
        self.wake(self.inbox.put(mail)?);
        Ok(())
    }

    /// Brings a mail, unless too many wait, and takes the turn if the shard sleeps and a guest may.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) fn bring(&self, mail: Mail<M>) -> Result<(), NotTaken> {
        let put = self.inbox.try_put(mail)?;
        let guest = (put == Put::TurnGiven).then(|| self.guests.enter()).flatten();
        match guest {
            Some(_guest) => self.take_given_turn(),
            None => self.wake(put),
        }
        Ok(())
    }

    /// Brings a mail, for which it waits for room, and takes the turn if the shard sleeps. For
    /// threads that may wait for a disk.
    ///
    /// # Errors
    /// [`NotTaken::Gone`].
    pub(super) fn bring_surely(&self, mail: Mail<M>) -> Result<(), NotTaken> {
        let put = self.inbox.put(mail)?;
        match put {
            Put::TurnGiven if self.guests.may_come() => self.take_given_turn(),
            _ => self.wake(put),
        }
        Ok(())
    }

    fn wake(&self, put: Put) {
        if put == Put::TurnGiven {
            self.inbox.wake();
        }
    }

    /// Takes the turn of the thread as its guest, unless somebody else is at it.
    fn take_given_turn(&self) {
        match self.turn.try_lock() {
            Ok(turn) => {
                let due = self.take_turn(turn, Who::Guest);
                self.inbox.give_back(due);
            }
            Err(TryLockError::WouldBlock) => self.inbox.wake(),
            Err(TryLockError::Poisoned(_)) => {
                panic!("whoever panics with a shard ends the process")
            }
        }
    }

    /// Takes a turn. Returns when the next one is due; none if the shard's thread has to see to the
    /// shard's end.
    fn take_turn(&self, mut turn: Place<'_, M>, who: Who) -> Option<Instant> {
        let _bomb = AbortOnPanic;
        let turn = turn.as_mut().filter(|turn| !turn.is_over())?;
        let started = Instant::now();
        turn.take(&self.inbox, who);
        self.guests.note_turn(started.elapsed());
        (!turn.is_over()).then(|| turn.due())
    }

    fn lock(&self) -> Place<'_, M> {
        self.turn.lock().expect("whoever panics with a shard ends the process")
    }

    /// The loop of the shard's thread: works until the host stops or the disk fails.
    pub(super) fn work(&self, turn: Turn<M>) {
        *self.lock() = Some(turn);
        while let Some(due) = self.take_turn(self.lock(), Who::Thread) {
            self.inbox.wait(due);
        }
        let _bomb = AbortOnPanic;
        let turn = self.lock().take();
        self.inbox.close();
        if let Some(turn) = turn {
            turn.end();
        }
    }
}

/// Ends the process when a shard panics: one of its promises is broken, and nobody would hear from
/// its groups any more.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a shard panicked; the process ends");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_come_one_at_a_time() {
        let guests = Guests::new(true);
        let guest = guests.enter();
        assert!(guest.is_some() && guests.enter().is_none());
        drop(guest);
        assert!(guests.enter().is_some());
        assert!(Guests::new(false).enter().is_none());
    }

    #[test]
    fn no_guest_is_let_in_after_a_turn_that_was_held_up() {
        let guests = Guests::new(true);
        guests.note_turn(LONG_TURN);
        assert!(guests.enter().is_some());
        guests.note_turn(LONG_TURN + Duration::from_millis(1));
        assert!(guests.enter().is_none());
        guests.barred_until_ms.store(0, Ordering::Relaxed);
        assert!(guests.enter().is_some());
    }
}
