//! The producer: batches records, keeps many batches on their way, and stores each record once.
//!
//! A record is copied into the open batch of its partition ([`accumulator`]). A task per partition
//! ([`lane`]) sends the batches to the partition's leader, over a stream that all lanes to that
//! node share ([`link`]), and keeps account of what is on its way ([`window`]). There is no task
//! and no lock per record beyond that of its partition's batch.
//!
//! Memory is bounded: a record takes its room before it is copied, and gives it back when its batch
//! is done with.

mod accumulator;
mod lane;
mod link;
mod partitioner;
mod window;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, oneshot};

use self::accumulator::Accumulator;
use self::lane::{INTRODUCTIONS_MAX, Lane};
use self::link::Links;
use self::partitioner::Partitioner;
use super::retry::random_fraction;
use super::{Acks, Client, Error, Failure};
use crate::batch::{BatchBuilder, Codec, Record};
use crate::proto::client::ErrorReason;
use crate::types::TRACEPARENT;

/// Batches of a partition that can be on their way at once: a server recognizes so many when they
/// come again. With more of them, one that was stored and not answered could be taken for one out
/// of order.
pub const BATCHES_IN_FLIGHT_MAX: usize = 8;
/// The largest batch that every server takes whose configuration is the default.
const BATCH_BYTES_MAX: usize = 3_670_016;
/// Room for one record of the largest size and the batch that it waits behind.
const BUFFER_BYTES_MIN: usize = 8 << 20;
/// What a record takes beside its bytes, for the bookkeeping.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// What became of a record.
type Outcome = Result<Receipt, Error>;

/// How a producer works.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// The topic.
    pub topic: String,
    /// What a record's receipt stands for. Default: a quorum has it.
    pub acks: Acks,
    /// How batches are compressed. Default: not at all.
    pub codec: Codec,
    /// Bytes at which a batch is full, at most 3.5 MiB. Default: 256 KiB.
    pub batch_bytes: usize,
    /// How long a batch waits for more records. Default: 2 ms.
    pub linger: Duration,
    /// Batches of a partition that are on their way at once, 1 to [`BATCHES_IN_FLIGHT_MAX`].
    /// Default: 8.
    pub batches_in_flight: usize,
    /// Bytes of records that are not yet done with, at least 8 MiB. Default: 32 MiB.
    pub buffer_bytes: usize,
    /// How long a record is tried before it is given up. Default: 60 s.
    pub delivery_timeout: Duration,
    /// Whether batches carry sequence numbers, so that each is stored once whatever is retried.
    /// Without them one batch of a partition is on its way at a time. Default: yes.
    pub is_idempotent: bool,
}

impl ProducerConfig {
    /// The default configuration for a topic.
    pub fn new(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            acks: Acks::Quorum,
            codec: Codec::None,
            batch_bytes: 256 << 10,
            linger: Duration::from_millis(2),
            batches_in_flight: 8,
            buffer_bytes: 32 << 20,
            delivery_timeout: Duration::from_secs(60),
            is_idempotent: true,
        }
    }

    fn bounded(self) -> Self {
        Self {
            batch_bytes: self.batch_bytes.clamp(1, BATCH_BYTES_MAX),
            batches_in_flight: self.batches_in_flight.clamp(1, BATCHES_IN_FLIGHT_MAX),
            buffer_bytes: self.buffer_bytes.clamp(BUFFER_BYTES_MIN, u32::MAX as usize),
            ..self
        }
    }
}

/// Where a record is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The partition.
    pub partition: u32,
    /// The record's offset in it.
    pub offset: u64,
    /// When the answer came.
    pub received: Instant,
}

/// Resolves when a record is stored, or is not.
///
/// Dropping it does not take the record back.
#[derive(Debug)]
pub struct Delivery {
    outcome: oneshot::Receiver<Outcome>,
}

impl Delivery {
    /// Returns the outcome if it is known. It is returned once, here or by awaiting.
    pub fn try_outcome(&mut self) -> Option<Result<Receipt, Error>> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(gone())),
        }
    }
}

impl Future for Delivery {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome)
            .poll(context)
            .map(|outcome| outcome.unwrap_or_else(|_| Err(gone())))
    }
}

fn gone() -> Error {
    Failure::cut("the producer went away before the answer came").into()
}

/// Sends records to one topic.
///
/// Records of one partition are stored in the order in which they were sent, each of them once.
/// Clones send through the same batches. When the last one is dropped, what was taken is still
/// sent; use [`Producer::close`] to wait for that.
#[derive(Debug, Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    config: Arc<ProducerConfig>,
    topic_id: Arc<str>,
    partitioner: Arc<Partitioner>,
    /// By partition.
    accumulators: Vec<Arc<Accumulator>>,
    links: Arc<Links>,
    /// Room for records, in bytes.
    room: Arc<Semaphore>,
    introductions: Arc<Semaphore>,
}

impl Client {
    /// Makes a producer for a topic. It keeps to the partitions that the topic has now.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Unavailable`] if the cluster could not be asked.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, Error> {
        let config = Arc::new(config.bounded());
        let topology = self.fetch_topology(&config.topic).await?;
        let partitions = topology.partitions();
        let first = (random_fraction() * f64::from(partitions)) as u32;
        let partitioner = Arc::new(Partitioner::new(partitions, first));
        let accumulator =
            |partition| Arc::new(Accumulator::new(partition, &config, partitioner.clone()));
        Ok(Producer {
            inner: Arc::new(Inner {
                client: self.clone(),
                topic_id: topology.topic_id.as_str().into(),
                accumulators: (0..partitions).map(accumulator).collect(),
                links: Arc::default(),
                room: Arc::new(Semaphore::new(config.buffer_bytes)),
                introductions: Arc::new(Semaphore::new(INTRODUCTIONS_MAX)),
                partitioner,
                config,
            }),
        })
    }
}

impl Producer {
    /// Returns the number of partitions that records are spread over.
    pub fn partitions(&self) -> u32 {
        self.inner.partitioner.partitions()
    }

    /// Sends a record to the partition of its key, or to any if it has none.
    ///
    /// Waits for room, and returns when the record has its place among those of its partition. The
    /// [`Delivery`] then says when it is stored.
    ///
    /// # Errors
    /// [`Error::Record`] if the record is over a limit, [`Error::Closed`]: it was not taken.
    ///
    /// # Cancel safety
    /// Cancelled while it waits for room, the record was not taken.
    pub async fn send(&self, record: &Record<'_>) -> Result<Delivery, Error> {
        let partition = self.inner.partitioner.place(record.key);
        if record.key.is_none()
            && let Some(next) = self.inner.partitioner.ahead_of(partition)
        {
            // It makes the producer known there before the first batch is full.
            self.inner.start_lane(next);
        }
        self.send_to(partition, record).await
    }

    /// Sends a record to a partition. See [`Producer::send`].
    ///
    /// # Errors
    /// As [`Producer::send`], and [`Error::NotFound`] if the topic has no such partition.
    ///
    /// # Cancel safety
    /// As [`Producer::send`].
    pub async fn send_to(&self, partition: u32, record: &Record<'_>) -> Result<Delivery, Error> {
        let has_trace = || record.headers.iter().any(|(name, _)| *name == TRACEPARENT);
        match self.inner.client.config().trace.filter(|_| !has_trace()) {
            None => self.take(partition, record).await,
            Some(trace) => {
                let text = trace.to_string();
                let header: (&str, &[u8]) = (TRACEPARENT, text.as_bytes());
                let headers: Vec<_> = record.headers.iter().copied().chain([header]).collect();
                self.take(partition, &Record { headers: &headers, ..*record }).await
            }
        }
    }

    async fn take(&self, partition: u32, record: &Record<'_>) -> Result<Delivery, Error> {
        let inner = &*self.inner;
        let accumulator = inner.accumulators.get(partition as usize);
        let accumulator = accumulator.ok_or_else(|| inner.unknown_partition(partition))?;
        let room = BatchBuilder::growth_bytes(record) + RECORD_OVERHEAD_BYTES;
        // A record that does not fit at all is refused below, by its limit.
        let room = room.min(inner.config.buffer_bytes);
        let permits = u32::try_from(room).expect("the buffer is smaller than 4 GiB");
        let permit = inner.room.acquire_many(permits).await.map_err(|_| Error::Closed)?;
        let (waiter, outcome) = oneshot::channel();
        accumulator.append(record, room, waiter)?;
        permit.forget();
        inner.start_lane(partition);
        Ok(Delivery { outcome })
    }

    /// Sends what was taken so far without waiting for more, and waits until it is done with. Each
    /// record's [`Delivery`] says what became of it.
    ///
    /// # Cancel safety
    /// Cancelled, the records are sent all the same.
    pub async fn flush(&self) {
        let accumulators = &self.inner.accumulators;
        let closed: Vec<_> = accumulators.iter().map(|one| one.close_batch()).collect();
        for (accumulator, batches) in accumulators.iter().zip(closed) {
            accumulator.wait_done(batches).await;
        }
    }

    /// Takes no more records, from this handle or its clones, and waits until all are done with.
    ///
    /// # Cancel safety
    /// Cancelled, the records are sent all the same, and none are taken.
    pub async fn close(self) {
        self.inner.accumulators.iter().for_each(|accumulator| accumulator.end());
        self.flush().await;
    }
}

impl Inner {
    /// Starts the lane of a partition, unless it has one.
    fn start_lane(&self, partition: u32) {
        let accumulator = &self.accumulators[partition as usize];
        if !accumulator.claim_lane() {
            return;
        }
        let accumulator = accumulator.clone();
        let (client, config) = (self.client.clone(), self.config.clone());
        let (topic_id, links) = (self.topic_id.clone(), self.links.clone());
        let permits = [self.room.clone(), self.introductions.clone()];
        tokio::spawn(Lane::new(client, config, topic_id, accumulator, links, permits).run());
    }

    fn unknown_partition(&self, partition: u32) -> Error {
        let (topic, partitions) = (&self.config.topic, self.partitioner.partitions());
        let message = format!("topic `{topic}` has {partitions} partitions, and no {partition}");
        let reason = ErrorReason::UnknownPartition;
        Failure::local(tonic::Code::NotFound, reason, message).into()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.accumulators.iter().for_each(|accumulator| accumulator.end());
    }
}
