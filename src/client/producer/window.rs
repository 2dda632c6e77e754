//! The batches of one partition that are on their way: pure bookkeeping, no clock and no network.
//!
//! This is what makes a record be stored once and in order:
//!
//! * Batches are sent, and answered, in the order in which they came.
//! * A batch gets its sequence number when it is first sent. After its fate became unknown (the
//!   stream broke before its answer) it is only ever sent again under the *same* number, which the
//!   server recognizes.
//! * A batch gets a *new* number only when it is sure that no attempt at it was stored or will be,
//!   and no batch before or behind it is unknown: then the producer's place in the partition is
//!   made anew ("repair"). A number above the one that is due shows only that nothing was stored
//!   *yet*: what was sent over an earlier stream may still arrive, until the repair keeps it out
//!   and says where the numbers ended.
//! * While a repair is pending, nothing is sent for the first time.
//! * Without sequence numbers, one batch at a time is on its way, and one whose fate became unknown
//!   is not sent again.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Outcome;
use crate::client::error::Repeat;
use crate::client::{Failure, Origin};
use crate::proto::client::{ErrorReason, ProducerStamp};

/// An encoded batch and those who wait for it.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Bytes,
    pub(super) crc: u32,
    pub(super) record_count: u32,
    pub(super) waiters: Vec<oneshot::Sender<Outcome>>,
    pub(super) room: usize,
    /// When to give up.
    pub(super) deadline: Instant,
}

/// A batch in the window.
#[derive(Debug)]
struct Entry {
    batch: Batch,
    state: State,
    stamp: Option<ProducerStamp>,
    /// An attempt ended without an answer.
    is_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be sent on the present stream, or the next.
    Waiting,
    /// Sent on the present stream under this request id.
    Sent(u32),
    /// Refused for good under its stamp. If earlier attempts are unknown, these will be refused,
    /// too, or have been stored since: the repair tells.
    Refused,
}

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) request_id: u32,
    pub(super) bytes: Bytes,
    pub(super) crc: u32,
    pub(super) stamp: Option<ProducerStamp>,
}

/// A batch that is done with, and how it ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) batch: Batch,
    pub(super) result: Result<u64, Fate>,
}

/// How a batch failed.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    /// It is not stored.
    Refused(Failure),
    /// It may be stored.
    Unknown(Failure),
}

/// What an answer asks for.
#[derive(Debug)]
pub(super) enum Step {
    /// A batch is done with.
    Done(Done),
    /// Nothing yet.
    Wait,
    /// Begin a new stream and send again what was not answered.
    Restart(Failure),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    entries: VecDeque<Entry>,
    batches_max: usize,
    /// Whether batches carry sequence numbers.
    is_idempotent: bool,
    /// Who the producer is in this partition, with the next sequence number.
    identity: Option<ProducerStamp>,
    /// The identity is of no use any more.
    needs_repair: bool,
    next_request_id: u32,
}

impl Window {
    pub(super) fn new(batches_max: usize, is_idempotent: bool) -> Self {
        assert!(batches_max > 0, "a window of no batches never moves");
        Self {
            entries: VecDeque::with_capacity(batches_max),
            batches_max: if is_idempotent { batches_max } else { 1 },
            is_idempotent,
            identity: None,
            needs_repair: false,
            next_request_id: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < self.batches_max
    }

    pub(super) fn push(&mut self, batch: Batch) {
        assert!(self.has_room(), "{} batches are in a full window", self.entries.len());
        self.entries.push_back(Entry {
            batch,
            state: State::Waiting,
            stamp: None,
            is_unknown: false,
        });
    }

    /// The number of the next request. They begin anew after 2^32.
    pub(super) fn next_request_id(&self) -> u32 {
        self.next_request_id
    }

    /// When the first batch is to be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.batch.deadline)
    }

    /// Whether an identity has to be asked for before anything else can be sent.
    pub(super) fn needs_identity(&self) -> bool {
        let is_clear = self.entries.iter().all(Entry::is_clear);
        let is_missing = self.identity.is_none() || self.needs_repair;
        self.is_idempotent && is_missing && is_clear && !self.entries.is_empty()
    }

    /// The identity whose earlier attempts a new one has to keep out, if there is one.
    pub(super) fn identity(&self) -> Option<&ProducerStamp> {
        self.identity.as_ref()
    }

    /// Forgets an id that the partition does not know any more.
    pub(super) fn forget_identity(&mut self) {
        self.identity = None;
    }

    /// Takes a new identity. What is not stored under the old one is sent under this one; returned
    /// is what may be. `ended` is the number at which those of the old one ended, if it is known.
    pub(super) fn set_identity(
        &mut self,
        identity: ProducerStamp,
        ended: Option<u32>,
    ) -> Vec<Done> {
        assert!(
            self.entries.iter().all(Entry::is_clear),
            "a batch whose fate is unknown would get a new sequence number"
        );
        let is_beyond =
            |stamp: &ProducerStamp, ended: u32| stamp.base_sequence.wrapping_sub(ended) < 1 << 31;
        let is_absent = |entry: &Entry| {
            entry.stamp.as_ref().zip(ended).is_some_and(|(stamp, ended)| is_beyond(stamp, ended))
        };
        let failure = Failure::cut("whether an earlier attempt was stored cannot be told any more");
        let open = self.take(|entry| entry.is_unknown && !is_absent(entry), &failure);
        for entry in &mut self.entries {
            (entry.state, entry.stamp, entry.is_unknown) = (State::Waiting, None, false);
        }
        self.identity = Some(identity);
        self.needs_repair = false;
        open
    }

    /// Returns the next batch to send on the present stream, as sent.
    pub(super) fn next_to_send(&mut self) -> Option<Outgoing> {
        let holds_back = self.needs_repair || (self.is_idempotent && self.identity.is_none());
        let may_go =
            |entry: &Entry| entry.state == State::Waiting && (!holds_back || entry.stamp.is_some());
        let at = self.entries.iter().position(may_go)?;
        let stamp = match self.entries[at].stamp {
            Some(stamp) => Some(stamp),
            None => self.take_stamp(self.entries[at].batch.record_count),
        };
        let request_id = self.next_request_id;
        self.next_request_id = request_id.wrapping_add(1);
        let entry = &mut self.entries[at];
        entry.stamp = stamp;
        entry.state = State::Sent(request_id);
        Some(Outgoing { request_id, bytes: entry.batch.bytes.clone(), crc: entry.batch.crc, stamp })
    }

    fn take_stamp(&mut self, record_count: u32) -> Option<ProducerStamp> {
        let identity = self.identity.as_mut().filter(|_| self.is_idempotent)?;
        let stamp = *identity;
        identity.base_sequence = identity.base_sequence.wrapping_add(record_count);
        Some(stamp)
    }

    /// Takes the answer to a request: the offset of the batch, or why it was not stored.
    ///
    /// Answers come in the order of the requests; one that does not ends the stream.
    pub(super) fn on_answer(&mut self, request_id: u32, answer: Result<u64, Failure>) -> Step {
        let first = self.entries.iter().position(Entry::is_sent);
        let expected = first.filter(|at| self.entries[*at].state == State::Sent(request_id));
        let Some(at) = expected else {
            return Step::Restart(Failure::cut("an answer came out of order"));
        };
        match answer {
            Ok(base_offset) => self.done(at, Ok(base_offset)),
            Err(failure) => self.on_refusal(at, failure),
        }
    }

    fn on_refusal(&mut self, at: usize, failure: Failure) -> Step {
        let entry = &mut self.entries[at];
        let repeat = failure.repeat();
        entry.is_unknown |= repeat == Repeat::Risky;
        let may_repeat = repeat == Repeat::Harmless || self.is_idempotent;
        if repeat != Repeat::Useless && may_repeat {
            entry.state = State::Waiting;
            return Step::Restart(failure);
        }
        self.needs_repair |= self.is_idempotent;
        if entry.is_unknown && !is_ahead(&failure) {
            return self.done(at, Err(Fate::Unknown(failure)));
        }
        if has_lost_its_place(&failure) {
            entry.state = State::Refused;
            return Step::Wait;
        }
        self.done(at, Err(Fate::Refused(failure)))
    }

    fn done(&mut self, at: usize, result: Result<u64, Fate>) -> Step {
        let entry = self.entries.remove(at).expect("the batch was found there");
        Step::Done(Done { batch: entry.batch, result })
    }

    /// The stream ended: what was sent and not answered is unknown, if there ever was a connection.
    /// Returns what can therefore not be sent again.
    pub(super) fn on_cut(&mut self, failure: &Failure) -> Vec<Done> {
        for entry in &mut self.entries {
            if entry.is_sent() {
                entry.is_unknown |= failure.origin != Origin::NotSent;
                entry.state = State::Waiting;
            }
        }
        let is_lost = |entry: &Entry| entry.is_unknown && entry.stamp.is_none();
        self.take(is_lost, failure)
    }

    /// Gives up batches whose time has passed.
    pub(super) fn expire(&mut self, now: Instant, failure: &Failure) -> Vec<Done> {
        self.take(|entry| entry.batch.deadline <= now, failure)
    }

    /// Gives up everything.
    pub(super) fn fail_all(&mut self, failure: &Failure) -> Vec<Done> {
        self.take(|_| true, failure)
    }

    /// Takes batches out unanswered. The numbers of those that were sent are used or not, nobody
    /// knows: the identity has to be made anew.
    fn take(&mut self, is_taken: impl Fn(&Entry) -> bool, failure: &Failure) -> Vec<Done> {
        let (taken, kept): (Vec<_>, Vec<_>) =
            self.entries.drain(..).partition(|entry| is_taken(entry));
        self.entries.extend(kept);
        self.needs_repair |= self.is_idempotent && taken.iter().any(|e| e.stamp.is_some());
        let done = |entry: Entry| {
            let fate =
                if entry.is_unknown || entry.is_sent() { Fate::Unknown } else { Fate::Refused };
            Done { batch: entry.batch, result: Err(fate(failure.clone())) }
        };
        taken.into_iter().map(done).collect()
    }
}

impl Entry {
    fn is_sent(&self) -> bool {
        matches!(self.state, State::Sent(_))
    }

    /// Whether a repair settles what became of it.
    fn is_clear(&self) -> bool {
        !self.is_sent() && (!self.is_unknown || self.state == State::Refused)
    }
}

/// Whether the batch may be stored in another place in the producer's order.
fn has_lost_its_place(failure: &Failure) -> bool {
    let reason = failure.reason;
    matches!(reason, ErrorReason::UnknownProducer | ErrorReason::OutOfOrderSequence)
}

/// Whether the batch's number is above the one that the partition waits for.
fn is_ahead(failure: &Failure) -> bool {
    let number = |name| failure.metadata.get(name)?.parse::<u32>().ok();
    let (expected, found) = (number("expected"), number("found"));
    let ahead = found.zip(expected).map(|(found, expected)| found.wrapping_sub(expected));
    failure.reason == ErrorReason::OutOfOrderSequence
        && ahead.is_some_and(|ahead| (1..1 << 31).contains(&ahead))
}

#[cfg(test)]
mod tests;
