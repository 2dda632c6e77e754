//! Offset commits that wait to be sent or answered: bookkeeping only.
//!
//! * At most one commit of a partition waits to be sent: a later offset takes the place of an
//!   earlier one, and whoever waits for the earlier one is answered with it.
//! * A commit that failed and may succeed waits again, as does one whose stream broke: committing
//!   an offset twice does no harm.
//! * At most [`IN_FLIGHT_MAX`] requests are on their way.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::partitions::Slot;
use crate::client::error::Repeat;
use crate::client::retry::{Backoff, random_fraction};
use crate::client::{Error, ErrorReason, Failure};
use crate::proto::client::assignment_commit_outcome::Outcome;
use crate::proto::client::{AssignmentCommit, ConsumeCommit, ConsumeCommitted};

/// Requests that may wait for their answers.
const IN_FLIGHT_MAX: usize = 64;
/// Offsets in one request.
const OFFSETS_MAX: usize = 1000;

/// Resolves when an offset commit stands, or does not.
///
/// Dropping it does not take the commit back.
#[derive(Debug)]
pub struct Committing {
    outcome: oneshot::Receiver<Result<(), Error>>,
}

impl Future for Committing {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = || Err(Failure::cut("the consumer went away before the answer came").into());
        Pin::new(&mut self.outcome).poll(context).map(|outcome| outcome.unwrap_or_else(|_| gone()))
    }
}

/// Who waits for a commit, with the place that this takes.
#[derive(Debug)]
pub(super) struct Waiter {
    outcome: oneshot::Sender<Result<(), Error>>,
    _place: OwnedSemaphorePermit,
}

impl Waiter {
    pub(super) fn new(place: OwnedSemaphorePermit) -> (Self, Committing) {
        let (sender, outcome) = oneshot::channel();
        (Self { outcome: sender, _place: place }, Committing { outcome })
    }

    /// Whoever dropped the receiver does not want to know.
    fn tell(self, outcome: Result<(), Error>) {
        let _ = self.outcome.send(outcome);
    }
}

/// An offset that is to be committed.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) next_offset: u64,
    pub(super) leader_epoch: u64,
    pub(super) metadata: String,
}

impl Wanted {
    pub(super) fn new(next_offset: u64, metadata: String) -> Self {
        Self { next_offset, leader_epoch: 0, metadata }
    }
}

/// A commit, with all that wait for it.
#[derive(Debug)]
struct Entry {
    wanted: Wanted,
    /// Until when it is tried.
    deadline: Instant,
    waiters: Vec<Waiter>,
}

impl Entry {
    fn resolve(self, outcome: &Result<(), Error>) {
        self.waiters.into_iter().for_each(|waiter| waiter.tell(outcome.clone()));
    }

    /// Makes one of two, of which `self` was wanted later.
    fn merge(mut self, earlier: Self) -> Self {
        if earlier.wanted.next_offset > self.wanted.next_offset {
            self.wanted = earlier.wanted;
        }
        self.deadline = self.deadline.max(earlier.deadline);
        self.waiters.extend(earlier.waiters);
        self
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Commits {
    waiting: BTreeMap<Slot, Entry>,
    in_flight: BTreeMap<u64, Vec<(Slot, Entry)>>,
    /// The highest offset that is known to stand, by partition.
    standing: BTreeMap<Slot, u64>,
    last_request_id: u64,
    backoff: Backoff,
    /// Nothing is sent before, after a failure.
    not_before: Option<Instant>,
}

impl Commits {
    pub(super) fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            standing: BTreeMap::new(),
            last_request_id: 0,
            backoff: Backoff::new(),
            not_before: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Whether a commit of a partition waits to be sent or answered.
    pub(super) fn has(&self, slot: Slot) -> bool {
        let sent = self.in_flight.values().flatten();
        self.waiting.contains_key(&slot) || sent.into_iter().any(|(of, _)| *of == slot)
    }

    pub(super) fn want(
        &mut self,
        slot: Slot,
        wanted: Wanted,
        deadline: Instant,
        waiter: Option<Waiter>,
    ) {
        self.wait(slot, Entry { wanted, deadline, waiters: waiter.into_iter().collect() });
    }

    fn wait(&mut self, slot: Slot, entry: Entry) {
        let entry = match self.waiting.remove(&slot) {
            Some(earlier) => entry.merge(earlier),
            None => entry,
        };
        self.waiting.insert(slot, entry);
    }

    /// Returns the next commit to send, as sent. `assignment` numbers the partitions that the
    /// stream has; the others wait.
    pub(super) fn next_to_send(
        &mut self,
        now: Instant,
        assignment: impl Fn(Slot) -> Option<u64>,
    ) -> Option<ConsumeCommit> {
        if self.in_flight.len() >= IN_FLIGHT_MAX || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let ready = self.waiting.keys().filter_map(|slot| Some((*slot, assignment(*slot)?)));
        let ready: Vec<_> = ready.take(OFFSETS_MAX).collect();
        if ready.is_empty() {
            return None;
        }
        self.last_request_id += 1;
        let (mut offsets, mut entries) = (Vec::new(), Vec::new());
        for (slot, assignment) in ready {
            let entry = self.waiting.remove(&slot).expect("it was just found");
            let Wanted { next_offset, leader_epoch, metadata } = entry.wanted.clone();
            offsets.push(AssignmentCommit { assignment, next_offset, leader_epoch, metadata });
            entries.push((slot, entry));
        }
        self.in_flight.insert(self.last_request_id, entries);
        Some(ConsumeCommit { request_id: self.last_request_id, offsets })
    }

    /// Takes an answer. Returns the failures that nobody waits for and that will not mend
    /// themselves, by partition.
    pub(super) fn on_answer(
        &mut self,
        now: Instant,
        answer: ConsumeCommitted,
    ) -> Vec<(Slot, Error)> {
        let mut unheard = Vec::new();
        let entries = self.in_flight.remove(&answer.request_id).unwrap_or_default();
        let mut outcomes = answer.outcomes.into_iter().map(|outcome| outcome.outcome);
        for (slot, entry) in entries {
            match outcomes.next().flatten() {
                Some(Outcome::NextOffset(_)) => self.on_success(slot, entry),
                Some(Outcome::Error(error)) => {
                    unheard.extend(self.on_failure(now, slot, entry, error.into()));
                }
                None => {
                    let failure = Failure::cut("the server left an offset of a commit unanswered");
                    unheard.extend(self.on_failure(now, slot, entry, failure));
                }
            }
        }
        unheard
    }

    fn on_success(&mut self, slot: Slot, entry: Entry) {
        let standing = self.standing.entry(slot).or_default();
        *standing = entry.wanted.next_offset.max(*standing);
        entry.resolve(&Ok(()));
        self.backoff = Backoff::new();
        self.not_before = None;
    }

    fn on_failure(
        &mut self,
        now: Instant,
        slot: Slot,
        entry: Entry,
        failure: Failure,
    ) -> Option<(Slot, Error)> {
        let standing = self.standing.get(&slot).copied().unwrap_or(0);
        let is_regressed = failure.reason == ErrorReason::OffsetRegressed;
        if is_regressed && entry.wanted.next_offset <= standing {
            // One of this member's own that was sent later has overtaken it.
            entry.resolve(&Ok(()));
            return None;
        }
        if failure.repeat() != Repeat::Useless && now < entry.deadline {
            let pause = self.backoff.next(random_fraction(), failure.retry_after);
            self.not_before = Some(now + pause);
            self.put_back(slot, entry);
            return None;
        }
        self.give_up(slot, entry, failure.into())
    }

    /// Lets an entry wait that was sent before whatever waits now.
    fn put_back(&mut self, slot: Slot, entry: Entry) {
        let entry = match self.waiting.remove(&slot) {
            Some(later) => later.merge(entry),
            None => entry,
        };
        self.waiting.insert(slot, entry);
    }

    fn give_up(&mut self, slot: Slot, entry: Entry, error: Error) -> Option<(Slot, Error)> {
        let is_unheard = entry.waiters.is_empty();
        entry.resolve(&Err(error.clone()));
        is_unheard.then_some((slot, error))
    }

    /// Notes that the stream broke: what was not answered is sent again over the next one.
    pub(super) fn on_cut(&mut self) {
        for (slot, entry) in std::mem::take(&mut self.in_flight).into_values().flatten() {
            self.put_back(slot, entry);
        }
    }

    /// Gives up the commits of a partition that is the member's no more.
    pub(super) fn fail_slot(&mut self, slot: Slot, error: &Error) {
        self.standing.remove(&slot);
        let mut failed: Vec<_> = self.waiting.remove(&slot).into_iter().collect();
        for entries in self.in_flight.values_mut() {
            for (_, entry) in entries.iter_mut().filter(|(of, _)| *of == slot) {
                // The answer comes all the same, and its place among the others has to be known.
                let waiters = std::mem::take(&mut entry.waiters);
                let (wanted, deadline) = (entry.wanted.clone(), entry.deadline);
                failed.push(Entry { wanted, deadline, waiters });
            }
        }
        failed.into_iter().for_each(|entry| entry.resolve(&Err(error.clone())));
    }

    /// Gives up what was tried for long enough. Returns the failures that nobody waits for.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(Slot, Error)> {
        let late = |entry: &Entry| entry.deadline <= now;
        let slots: Vec<_> = self.waiting.iter().filter(|(_, e)| late(e)).map(|(s, _)| *s).collect();
        let mut unheard = Vec::new();
        for slot in slots {
            let entry = self.waiting.remove(&slot).expect("it was just found");
            unheard.extend(self.give_up(slot, entry, timed_out()));
        }
        let sent = self.in_flight.values_mut().flatten().map(|(_, entry)| entry);
        for entry in sent.filter(|entry| late(entry)) {
            let waiters = std::mem::take(&mut entry.waiters);
            waiters.into_iter().for_each(|waiter| waiter.tell(Err(timed_out())));
        }
        unheard
    }

    /// When something may have to be done without anything having happened.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let waiting = self.waiting.values().map(|entry| entry.deadline);
        let heard = |entry: &&(Slot, Entry)| !entry.1.waiters.is_empty();
        let sent = self.in_flight.values().flatten().filter(heard).map(|(_, e)| e.deadline);
        let retry = self.not_before.filter(|at| *at > now && !self.waiting.is_empty());
        waiting.chain(sent).chain(retry).min()
    }
}

fn timed_out() -> Error {
    Failure::cut("no answer to the offset commit came in time").into()
}
