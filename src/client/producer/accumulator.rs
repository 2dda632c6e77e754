//! Where the records of one partition wait until they are a batch.
//!
//! Senders append under a lock that is held for the time of a copy; the partition's lane takes
//! closed batches from the other end.
//!
//! * `closed` holds batches in the order in which their records came; `open` comes after them.
//! * A batch is open for at most the linger time after its first record.
//! * `taken + closed.len()` batches were closed so far.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use super::partitioner::Partitioner;
use super::{Outcome, ProducerConfig};
use crate::batch::{self, BatchBuilder, Limits, Record};
use crate::client::Error;

/// Records of a batch, as many as every server accepts.
const RECORDS_MAX: u32 = 100_000;

/// Records that go together, not yet encoded as a batch.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) builder: BatchBuilder,
    pub(super) waiters: Vec<oneshot::Sender<Outcome>>,
    /// The room that its records take in the producer.
    pub(super) room: usize,
    pub(super) since: Instant,
}

/// The records of one partition that wait.
#[derive(Debug)]
pub(super) struct Accumulator {
    partition: u32,
    batch_bytes: usize,
    linger: Duration,
    partitioner: Arc<Partitioner>,
    state: Mutex<State>,
    has_lane: AtomicBool,
    /// Wakes the lane: a batch was begun or closed, or the producer is being closed.
    changed: Notify,
    /// How many batches the lane is done with, whatever became of them.
    done: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Closed>,
    closed: VecDeque<Closed>,
    /// Length of the last batch that was closed: the next one gets as much room from the start.
    usual_bytes: usize,
    /// Batches that the lane has taken.
    taken: u64,
    is_ending: bool,
}

/// What the lane gets.
#[derive(Debug)]
pub(super) enum Next {
    Batch(Closed),
    /// There will be no more.
    End,
}

impl Accumulator {
    pub(super) fn new(
        partition: u32,
        config: &ProducerConfig,
        partitioner: Arc<Partitioner>,
    ) -> Self {
        Self {
            partition,
            batch_bytes: config.batch_bytes,
            linger: config.linger,
            partitioner,
            state: Mutex::default(),
            has_lane: AtomicBool::new(false),
            changed: Notify::new(),
            done: watch::Sender::new(0),
        }
    }

    pub(super) fn partition(&self) -> u32 {
        self.partition
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with an accumulator")
    }

    /// True, once: whoever is told so starts the partition's lane.
    pub(super) fn claim_lane(&self) -> bool {
        // Asked for each record: a swap alone would write every time.
        !self.has_lane.load(Ordering::Relaxed) && !self.has_lane.swap(true, Ordering::Relaxed)
    }

    /// Appends a record that takes `room`.
    ///
    /// # Errors
    /// [`Error::Record`] if it is over a limit, [`Error::Closed`]: it was not appended.
    pub(super) fn append(
        &self,
        record: &Record<'_>,
        room: usize,
        waiter: oneshot::Sender<Outcome>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        if state.is_ending {
            return Err(Error::Closed);
        }
        if state.open.as_ref().is_some_and(|open| self.has_no_place(open, record)) {
            self.close_open(&mut state);
        }
        let usual_bytes = state.usual_bytes;
        let mut open = state.open.take().unwrap_or_else(|| Closed::new(usual_bytes));
        let is_first = open.builder.is_empty();
        let appended = open.append(record, room, waiter);
        let is_full = open.builder.encoded_bytes() >= self.batch_bytes;
        state.open = (!open.builder.is_empty()).then_some(open);
        appended?;
        if is_full {
            self.close_open(&mut state);
        }
        drop(state);
        if is_first || is_full {
            self.changed.notify_one();
        }
        Ok(())
    }

    fn has_no_place(&self, open: &Closed, record: &Record<'_>) -> bool {
        let bytes = open.builder.encoded_bytes() + BatchBuilder::growth_bytes(record);
        bytes > self.batch_bytes || open.builder.record_count() >= RECORDS_MAX
    }

    fn close_open(&self, state: &mut State) {
        if let Some(open) = state.open.take() {
            state.usual_bytes = open.builder.encoded_bytes();
            state.closed.push_back(open);
            self.partitioner.on_batch_closed(self.partition);
        }
    }

    /// Closes the batch that is open. Returns how many batches were closed so far: when the lane
    /// is done with that many, it is done with every record appended before the call.
    pub(super) fn close_batch(&self) -> u64 {
        let mut state = self.state();
        self.close_open(&mut state);
        let closed = state.taken + state.closed.len() as u64;
        drop(state);
        self.changed.notify_one();
        closed
    }

    /// Refuses further records and lets the lane end when it has taken those that wait.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_ending = true;
        self.close_open(&mut state);
        drop(state);
        self.changed.notify_one();
    }

    /// Notes that the lane is done with a batch.
    pub(super) fn on_done(&self) {
        self.done.send_modify(|done| *done += 1);
    }

    /// Waits until the lane is done with so many batches.
    pub(super) async fn wait_done(&self, batches: u64) {
        let mut done = self.done.subscribe();
        done.wait_for(|done| *done >= batches).await.expect("the sender is in `self`");
    }

    /// Waits for a batch that is full, has lingered or was closed. The batch stays where it is
    /// until then: cancel safe.
    pub(super) async fn next(&self) -> Next {
        loop {
            let changed = self.changed.notified();
            let lingers_until = match self.try_next(Instant::now()) {
                Ok(next) => return next,
                Err(until) => until,
            };
            match lingers_until {
                None => changed.await,
                Some(until) => {
                    let _ = tokio::time::timeout_at(until.into(), changed).await;
                }
            }
        }
    }

    /// Waits until there will be no more records and all that came were taken. Cancel safe.
    pub(super) async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state().has_ended() {
                return;
            }
            changed.await;
        }
    }

    /// Returns a batch, or until when the open one lingers, if one is open.
    fn try_next(&self, now: Instant) -> Result<Next, Option<Instant>> {
        let mut state = self.state();
        if state.closed.is_empty() {
            match state.open.as_ref().map(|open| open.since + self.linger) {
                Some(until) if until > now => return Err(Some(until)),
                Some(_) => self.close_open(&mut state),
                None if state.is_ending => return Ok(Next::End),
                None => return Err(None),
            }
        }
        state.taken += 1;
        Ok(Next::Batch(state.closed.pop_front().expect("a batch was closed")))
    }
}

impl State {
    fn has_ended(&self) -> bool {
        self.is_ending && self.open.is_none() && self.closed.is_empty()
    }
}

impl Closed {
    fn new(usual_bytes: usize) -> Self {
        let builder = BatchBuilder::with_capacity(Limits::default(), usual_bytes);
        Self { builder, waiters: Vec::new(), room: 0, since: Instant::now() }
    }

    fn append(
        &mut self,
        record: &Record<'_>,
        room: usize,
        waiter: oneshot::Sender<Outcome>,
    ) -> Result<(), batch::Error> {
        self.builder.append(record)?;
        self.waiters.push(waiter);
        self.room += room;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accumulator(batch_bytes: usize, linger: Duration) -> Accumulator {
        let config = ProducerConfig { batch_bytes, linger, ..ProducerConfig::new("t") };
        Accumulator::new(0, &config, Arc::new(Partitioner::new(1, 0)))
    }

    fn append(accumulator: &Accumulator, value: &[u8]) -> Result<(), Error> {
        let record = Record { value: Some(value), ..Default::default() };
        accumulator.append(&record, value.len(), oneshot::channel().0)
    }

    fn take(accumulator: &Accumulator, now: Instant) -> Option<(u32, usize)> {
        match accumulator.try_next(now) {
            Ok(Next::Batch(closed)) => Some((closed.builder.record_count(), closed.room)),
            Ok(Next::End) | Err(_) => None,
        }
    }

    #[test]
    fn a_batch_is_closed_when_it_is_full() {
        let accumulator = accumulator(100, Duration::from_secs(60));
        append(&accumulator, &[0; 40]).unwrap();
        append(&accumulator, &[0; 40]).unwrap();
        assert_eq!(take(&accumulator, Instant::now()), None);
        append(&accumulator, &[0; 40]).unwrap();
        assert_eq!(take(&accumulator, Instant::now()), Some((2, 80)));
        append(&accumulator, &[0; 200]).unwrap();
        assert_eq!(take(&accumulator, Instant::now()), Some((1, 40)));
        assert_eq!(take(&accumulator, Instant::now()), Some((1, 200)), "a record of its own");
    }

    #[test]
    fn a_batch_is_closed_when_it_has_lingered() {
        let accumulator = accumulator(1000, Duration::from_secs(60));
        append(&accumulator, &[0; 40]).unwrap();
        let now = Instant::now();
        assert!(matches!(accumulator.try_next(now), Err(Some(until)) if until > now));
        assert_eq!(take(&accumulator, now + Duration::from_secs(60)), Some((1, 40)));
        assert!(matches!(accumulator.try_next(now), Err(None)));
    }

    #[test]
    fn a_record_over_a_limit_leaves_the_others_alone() {
        let accumulator = accumulator(1000, Duration::ZERO);
        assert!(matches!(append(&accumulator, &[0; 2 << 20]), Err(Error::Record(_))));
        append(&accumulator, b"a").unwrap();
        assert!(append(&accumulator, &[0; 2 << 20]).is_err());
        assert_eq!(take(&accumulator, Instant::now()), Some((1, 1)));
    }

    #[test]
    fn what_was_appended_before_the_end_comes_out() {
        let accumulator = accumulator(1000, Duration::from_secs(60));
        append(&accumulator, b"a").unwrap();
        assert_eq!(accumulator.close_batch(), 1);
        append(&accumulator, b"b").unwrap();
        accumulator.end();
        assert!(matches!(append(&accumulator, b"c"), Err(Error::Closed)));
        assert_eq!(take(&accumulator, Instant::now()), Some((1, 1)));
        assert_eq!(take(&accumulator, Instant::now()), Some((1, 1)));
        assert!(matches!(accumulator.try_next(Instant::now()), Ok(Next::End)));
        assert_eq!(accumulator.close_batch(), 2);
    }
}
