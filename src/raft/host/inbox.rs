//! An inbox: the bounded queue of mails to one shard, and where its thread sleeps.
//!
//! Whoever brings a mail to a shard that sleeps is given its turn, and either wakes the thread or
//! takes the turn itself. All mails are taken at once.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// What putting a mail means for whoever did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Put {
    /// Somebody is at work and will find it.
    Queued,
    /// The thread sleeps: [`Inbox::wake`] it, or take its turn and [`Inbox::give_back`] what is
    /// left to do.
    TurnGiven,
}

/// Why a mail was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Too many wait already.
    Full,
    /// Nobody takes mails any more.
    Gone,
}

/// * `mails` are at most `mails_max`.
/// * Whoever is counted in `blocked` waits for `emptied`.
/// * While the thread sleeps, mails wait only for the one whose turn it is.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    mails_max: usize,
    state: Mutex<State<T>>,
    /// The thread is to wake up.
    roused: Condvar,
    emptied: Condvar,
}

#[derive(Debug)]
struct State<T> {
    mails: Vec<T>,
    is_gone: bool,
    blocked: usize,
    /// Until when the thread sleeps, if it does.
    sleeps_until: Option<Instant>,
    /// Somebody was given the turn of the sleeping thread, or the thread is being woken.
    is_given: bool,
    /// Somebody left work while the thread was about to sleep.
    is_restless: bool,
}

impl<T> Inbox<T> {
    /// An inbox for `mails_max` mails.
    pub(super) fn new(mails_max: usize) -> Self {
        assert!(mails_max > 0, "an inbox without room takes no mail");
        let state = State {
            mails: Vec::new(),
            is_gone: false,
            blocked: 0,
            sleeps_until: None,
            is_given: false,
            is_restless: false,
        };
        let (state, roused, emptied) = (Mutex::new(state), Condvar::new(), Condvar::new());
        Self { mails_max, state, roused, emptied }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("nobody panics with an inbox")
    }

    /// Puts a mail in unless too many wait.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub(super) fn try_put(&self, mail: T) -> Result<Put, NotTaken> {
        let state = self.lock();
        if state.is_gone {
            return Err(NotTaken::Gone);
        }
        if state.mails.len() >= self.mails_max {
            return Err(NotTaken::Full);
        }
        Ok(put(state, mail))
    }

    /// Puts a mail in, and waits for room if too many wait.
    ///
    /// # Errors
    /// [`NotTaken::Gone`].
    pub(super) fn put(&self, mail: T) -> Result<Put, NotTaken> {
        let mut state = self.lock();
        while !state.is_gone && state.mails.len() >= self.mails_max {
            state.blocked += 1;
            state = self.emptied.wait(state).expect("nobody panics with an inbox");
            state.blocked -= 1;
        }
        if state.is_gone {
            return Err(NotTaken::Gone);
        }
        Ok(put(state, mail))
    }

    /// Wakes the thread, for whoever was given its turn.
    pub(super) fn wake(&self) {
        self.roused.notify_one();
    }

    /// Gives a turn back that was taken for the thread. The thread is woken if mails have come
    /// since, or if the next turn is due before it would wake up; none is due at once.
    pub(super) fn give_back(&self, due: Option<Instant>) {
        let mut state = self.lock();
        let is_early = |until: Instant| due.is_none_or(|due| due < until);
        let is_needed = state.sleeps_until.is_some_and(is_early) || !state.mails.is_empty();
        state.is_given = is_needed;
        // It may have made up its mind about when to wake up before.
        state.is_restless = state.sleeps_until.is_none();
        drop(state);
        if is_needed {
            self.wake();
        }
    }

    /// Takes all mails there are.
    pub(super) fn take(&self, mails: &mut Vec<T>) {
        assert!(mails.is_empty(), "{} mails were taken and left", mails.len());
        let mut state = self.lock();
        mem::swap(&mut state.mails, mails);
        let is_awaited = state.blocked > 0;
        drop(state);
        if is_awaited {
            self.emptied.notify_all();
        }
    }

    /// Sleeps until there are mails, until it is woken, or until `due`. For the thread alone. It
    /// may return for no reason.
    pub(super) fn wait(&self, due: Instant) {
        let mut state = self.lock();
        let left = due.saturating_duration_since(Instant::now());
        if mem::take(&mut state.is_restless) || !state.mails.is_empty() || left.is_zero() {
            return;
        }
        (state.sleeps_until, state.is_given) = (Some(due), false);
        let waited = self.roused.wait_timeout(state, left);
        state = waited.expect("nobody panics with an inbox").0;
        (state.sleeps_until, state.is_given) = (None, false);
    }

    /// Takes no more mails, and drops those that wait: whoever waits for an answer to one of them
    /// is told by this.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_gone = true;
        let mails = mem::take(&mut state.mails);
        drop(state);
        self.emptied.notify_all();
        drop(mails);
    }
}

fn put<T>(mut state: MutexGuard<'_, State<T>>, mail: T) -> Put {
    state.mails.push(mail);
    if state.sleeps_until.is_none() || mem::replace(&mut state.is_given, true) {
        return Put::Queued;
    }
    Put::TurnGiven
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn taken<T>(inbox: &Inbox<T>) -> Vec<T> {
        let mut mails = Vec::new();
        inbox.take(&mut mails);
        mails
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Returns when a thread sleeps in `wait`.
    fn sleeps<T>(inbox: &Inbox<T>) {
        while inbox.lock().sleeps_until.is_none() {
            thread::yield_now();
        }
    }

    #[test]
    fn mails_are_taken_all_at_once_and_in_order() {
        let inbox = Inbox::new(3);
        assert!(taken(&inbox).is_empty());
        for mail in 1..=3 {
            assert_eq!(inbox.try_put(mail), Ok(Put::Queued));
        }
        assert_eq!(inbox.try_put(4), Err(NotTaken::Full));
        assert_eq!(taken(&inbox), [1, 2, 3]);
        assert!(taken(&inbox).is_empty());
    }

    #[test]
    fn the_turn_of_a_sleeping_thread_is_given_once() {
        let inbox = Inbox::new(9);
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| inbox.wait(later()));
            sleeps(&inbox);
            assert_eq!(inbox.try_put(1), Ok(Put::TurnGiven));
            assert_eq!(inbox.try_put(2), Ok(Put::Queued));
            assert_eq!(taken(&inbox), [1, 2]);
            inbox.give_back(Some(later()));
            assert!(!sleeper.is_finished());
            assert_eq!(inbox.try_put(3), Ok(Put::TurnGiven));
            inbox.wake();
            sleeper.join().unwrap();
            assert_eq!(taken(&inbox), [3]);
        });
    }

    #[test]
    fn the_thread_is_woken_for_what_a_guest_leaves() {
        let leave: [fn(&Inbox<u32>); 3] = [
            |inbox| {
                assert_eq!(inbox.try_put(2), Ok(Put::Queued));
                inbox.give_back(Some(later() + Duration::from_secs(20)));
            },
            |inbox| inbox.give_back(Some(Instant::now())),
            |inbox| inbox.give_back(None),
        ];
        for leave in leave {
            let inbox = Inbox::new(9);
            thread::scope(|scope| {
                let sleeper = scope.spawn(|| inbox.wait(later()));
                sleeps(&inbox);
                assert_eq!(inbox.try_put(1), Ok(Put::TurnGiven));
                assert_eq!(taken(&inbox), [1]);
                leave(&inbox);
                sleeper.join().unwrap();
            });
        }
    }

    #[test]
    fn the_thread_looks_again_if_a_turn_came_back_while_it_was_awake() {
        let inbox = Inbox::<u32>::new(9);
        inbox.give_back(Some(later()));
        inbox.wait(later());
        inbox.wait(Instant::now());
    }

    #[test]
    fn nobody_sleeps_over_a_mail_or_past_what_is_due() {
        let inbox = Inbox::new(9);
        inbox.wait(Instant::now());
        assert_eq!(inbox.try_put(1), Ok(Put::Queued));
        inbox.wait(later());
        assert_eq!(taken(&inbox), [1]);
    }

    #[test]
    fn whoever_finds_no_room_can_wait_for_it() {
        let inbox = Inbox::new(1);
        assert_eq!(inbox.put(0), Ok(Put::Queued));
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for mail in 1..100 {
                    let _ = inbox.put(mail).unwrap();
                }
            });
            let mut all = Vec::new();
            while all.len() < 100 {
                all.extend(taken(&inbox));
            }
            sender.join().unwrap();
            assert!(all.into_iter().eq(0..100));
        });
    }

    #[test]
    fn an_inbox_that_is_closed_drops_its_mails_and_takes_none() {
        let inbox = Inbox::new(1);
        let mail = Arc::new(());
        assert_eq!(inbox.put(mail.clone()), Ok(Put::Queued));
        thread::scope(|scope| {
            let blocked = scope.spawn(|| inbox.put(Arc::new(())));
            while inbox.lock().blocked == 0 {
                thread::yield_now();
            }
            inbox.close();
            assert_eq!(blocked.join().unwrap(), Err(NotTaken::Gone));
        });
        assert_eq!(Arc::strong_count(&mail), 1);
        assert_eq!(inbox.try_put(mail), Err(NotTaken::Gone));
    }
}
