//! A feed: records of many partitions, in turn, as they come.
//!
//! It reads from the replica at hand, or through another node, what there is credit for. A
//! partition that cannot be read, or that is far away, keeps no other one waiting.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::super::call::{Call, Origin};
use super::super::context::{Context, Target};
use super::super::convert::encoded_bytes;
use super::super::counters::add;
use super::super::error::{Effect, Error};
use super::fetch;
use crate::proto::server::{FetchRequest, FetchResponse, StoredBatch};

/// Bytes of a message with records, roughly.
const MESSAGE_BYTES: u32 = 1 << 20;
/// Reads that go on at a time.
const READS_MAX: usize = 4;
/// How long another node is asked to wait for records at a time.
const REMOTE_WAIT: Duration = Duration::from_secs(5);
/// How long a partition rests that cannot be read at the moment.
const REST: Duration = Duration::from_millis(100);
/// How long a partition may be unreadable before that is an error.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a partition of a feed stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc) struct Position {
    /// The next offset that is read.
    pub(in crate::rpc) next_offset: u64,
    /// First offset that is not committed, as far as was heard.
    pub(in crate::rpc) high_watermark: u64,
    /// First offset that can be read, as far as was heard.
    pub(in crate::rpc) log_start_offset: u64,
}

/// What became of a partition's turn.
#[derive(Debug)]
pub(in crate::rpc) enum Turn {
    /// Records.
    Data {
        /// The batches, in order.
        batches: Vec<StoredBatch>,
        /// Where the partition stands after them.
        position: Position,
        /// The credit that they take.
        cost_bytes: u32,
    },
    /// Records are gone that were not read.
    Gap {
        /// The first offset that is missed.
        from_offset: u64,
        /// The offset at which reading goes on.
        to_offset: u64,
    },
    /// The partition cannot be read, for good or for too long. It is not tried again.
    Failed(Error),
}

/// What a partition of a feed is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// It stands in the queue of those that may have something.
    Ready,
    /// It is being read.
    Read,
    /// It waits for something to come.
    Wait,
    /// It failed.
    Failed,
}

/// A partition of a feed.
#[derive(Debug)]
struct Part {
    topic: String,
    target: Target,
    position: Position,
    at: At,
    is_paused: bool,
    /// Since when it cannot be read.
    failing_since: Option<Instant>,
    /// Ends the wait for records when the partition is taken out.
    _stay: oneshot::Sender<()>,
    gone: Option<oneshot::Receiver<()>>,
}

/// A read: of which partition, with how much of the credit, and what it found.
type Read = Pin<Box<dyn Future<Output = (u64, u32, Result<FetchResponse, Error>)> + Send>>;
/// A partition has something to read, maybe.
type Wait = Pin<Box<dyn Future<Output = (u64, oneshot::Receiver<()>)> + Send>>;

/// Reads partitions, each under a number that its owner chose and never uses again.
///
/// * A partition is read by one read at a time, so that its records come in order.
/// * `reserved` is the part of the credit that reads under way may use.
pub(in crate::rpc) struct Feed {
    context: Context,
    origin: Origin,
    parts: BTreeMap<u64, Part>,
    ready: VecDeque<u64>,
    reading: FuturesUnordered<Read>,
    waiting: FuturesUnordered<Wait>,
    /// Bytes that may be read. Below zero after a batch that was larger than what was left.
    credit: i64,
    reserved: i64,
    /// There is something to read, and no credit for it.
    is_stalled: bool,
}

impl Feed {
    pub(in crate::rpc) fn new(context: Context, origin: Origin, credit: i64) -> Self {
        Self {
            context,
            origin,
            is_stalled: false,
            parts: BTreeMap::new(),
            ready: VecDeque::new(),
            reading: FuturesUnordered::new(),
            waiting: FuturesUnordered::new(),
            credit,
            reserved: 0,
        }
    }

    /// The credit that is left.
    pub(in crate::rpc) fn credit(&self) -> i64 {
        self.credit
    }

    /// Gives credit.
    pub(in crate::rpc) fn give(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_add(i64::from(bytes));
        self.is_stalled &= self.credit <= 0;
    }

    /// Takes in a partition under a new number.
    pub(in crate::rpc) fn add(
        &mut self,
        key: u64,
        topic: String,
        target: Target,
        position: Position,
    ) {
        let (stay, gone) = oneshot::channel();
        let part = Part {
            topic,
            target,
            position,
            at: At::Ready,
            is_paused: false,
            failing_since: None,
            _stay: stay,
            gone: Some(gone),
        };
        let before = self.parts.insert(key, part);
        assert!(before.is_none(), "the number {key} was used before");
        self.ready.push_back(key);
    }

    /// Takes out a partition. What is being read of it comes to nobody.
    pub(in crate::rpc) fn remove(&mut self, key: u64) {
        self.parts.remove(&key);
        self.ready.retain(|ready| *ready != key);
    }

    /// Has a partition wait, or go on.
    pub(in crate::rpc) fn pause(&mut self, key: u64, is_paused: bool) {
        let Some(part) = self.parts.get_mut(&key) else { return };
        let was_paused = std::mem::replace(&mut part.is_paused, is_paused);
        // It may have kept its place in the queue.
        if was_paused && !is_paused && !self.ready.contains(&key) {
            self.enqueue(key);
        }
    }

    /// Where each partition stands.
    pub(in crate::rpc) fn positions(&self) -> impl Iterator<Item = (u64, Position)> {
        self.parts.iter().map(|(key, part)| (*key, part.position))
    }

    /// Waits for the next turn of a partition that has something to tell.
    ///
    /// Cancel safe: what was begun goes on with the next call.
    pub(in crate::rpc) async fn next(&mut self) -> (u64, Turn) {
        loop {
            self.start_reads();
            let is_stalled = self.credit <= 0 && !self.ready.is_empty();
            if is_stalled && !std::mem::replace(&mut self.is_stalled, is_stalled) {
                add(&self.context.counters().credit_stalls, 1);
            }
            tokio::select! {
                Some((key, reserved, found)) = self.reading.next() => {
                    self.reserved -= i64::from(reserved);
                    if let Some(turn) = self.settle(key, found) {
                        return (key, turn);
                    }
                }
                Some((key, gone)) = self.waiting.next() => self.wake(key, gone),
                else => std::future::pending().await,
            }
        }
    }

    fn enqueue(&mut self, key: u64) {
        let Some(part) = self.parts.get_mut(&key).filter(|part| !part.is_paused) else { return };
        if part.at == At::Ready {
            self.ready.push_back(key);
        }
    }

    fn start_reads(&mut self) {
        while self.reading.len() < READS_MAX && self.credit > self.reserved {
            let Some(key) = self.ready.pop_front() else { return };
            let left = u32::try_from(self.credit - self.reserved).unwrap_or(u32::MAX);
            let bytes = left.min(MESSAGE_BYTES);
            let Some(part) = self.parts.get_mut(&key).filter(|part| !part.is_paused) else {
                continue;
            };
            part.at = At::Read;
            self.reserved += i64::from(bytes);
            let request = request(part, bytes, Duration::ZERO);
            let (context, call) = (self.context.clone(), Call::within_stream(self.origin));
            self.reading.push(Box::pin(async move {
                (key, bytes, fetch::fetch(&context, request, call).await)
            }));
        }
    }

    /// Takes in what a read found. `None` if there is nothing to tell of it.
    fn settle(&mut self, key: u64, found: Result<FetchResponse, Error>) -> Option<Turn> {
        let part = self.parts.get_mut(&key)?;
        match found {
            Ok(found) => self.deliver(key, found),
            Err(error) => {
                let from_offset = part.position.next_offset;
                if let Some(to_offset) = error.log_start().filter(|start| *start > from_offset) {
                    part.position.next_offset = to_offset;
                    part.position.log_start_offset = to_offset;
                    part.at = At::Ready;
                    self.enqueue(key);
                    return Some(Turn::Gap { from_offset, to_offset });
                }
                self.stumble(key, error)
            }
        }
    }

    fn deliver(&mut self, key: u64, found: FetchResponse) -> Option<Turn> {
        let part = self.parts.get_mut(&key)?;
        part.failing_since = None;
        let position = &mut part.position;
        position.high_watermark = position.high_watermark.max(found.high_watermark);
        position.log_start_offset = found.log_start_offset;
        if found.batches.is_empty() {
            self.wait_for_more(key);
            return None;
        }
        position.next_offset = found.next_offset;
        part.at = At::Ready;
        let position = part.position;
        let bytes: usize = found.batches.iter().map(encoded_bytes).sum();
        let cost_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.credit -= i64::from(cost_bytes);
        self.enqueue(key);
        Some(Turn::Data { batches: found.batches, position, cost_bytes })
    }

    /// Bears with a partition that cannot be read, for a while.
    fn stumble(&mut self, key: u64, error: Error) -> Option<Turn> {
        let part = self.parts.get_mut(&key)?;
        let is_passing = error.effect() != Effect::Final;
        let since = *part.failing_since.get_or_insert_with(Instant::now);
        if !is_passing || since.elapsed() > PATIENCE {
            part.at = At::Failed;
            return Some(Turn::Failed(error));
        }
        self.wait(key, sleep(REST));
        None
    }

    /// Has the partition looked at again when there is more in it.
    fn wait_for_more(&mut self, key: u64) {
        let Some(part) = self.parts.get(&key) else { return };
        let offset = part.position.next_offset;
        if let Some(handle) = self.context.node().replica(part.target.log) {
            return self.wait(key, async move {
                if handle.wait_beyond(offset).await <= offset {
                    // The replica has stopped.
                    sleep(REST).await;
                }
            });
        }
        let (context, origin) = (self.context.clone(), self.origin);
        let request = request(part, 1, REMOTE_WAIT);
        self.wait(key, async move {
            let call = Call::within_stream(origin);
            // What it says is asked again, with the bytes that there is credit for.
            if fetch::fetch(&context, request, call).await.is_err() {
                sleep(REST).await;
            }
        });
    }

    fn wait(&mut self, key: u64, until: impl Future<Output = ()> + Send + 'static) {
        let Some(part) = self.parts.get_mut(&key) else { return };
        part.at = At::Wait;
        let Some(mut gone) = part.gone.take() else { return };
        self.waiting.push(Box::pin(async move {
            tokio::select! {
                () = until => {}
                _ = &mut gone => {}
            }
            (key, gone)
        }));
    }

    fn wake(&mut self, key: u64, gone: oneshot::Receiver<()>) {
        let Some(part) = self.parts.get_mut(&key) else { return };
        part.gone = Some(gone);
        part.at = At::Ready;
        self.enqueue(key);
    }
}

fn request(part: &Part, max_bytes: u32, wait: Duration) -> FetchRequest {
    FetchRequest {
        topic: part.topic.clone(),
        topic_id: part.target.topic_id.to_string(),
        partition: part.target.partition,
        offset: part.position.next_offset,
        max_bytes,
        max_wait_ms: wait.as_millis() as u32,
        from_leader: false,
    }
}
