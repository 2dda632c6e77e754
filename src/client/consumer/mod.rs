//! The consumer: reads one topic's partitions as records come, and survives broken connections.
//!
//! * The next offset of each partition is what the server last said; after a break a new
//!   subscription begins exactly there. Records below it are dropped, so that none comes twice.
//! * Records that are gone before they were read are an [`Event::Gap`], never silence.
//! * The server sends no more bytes than it was given credit for. Credit goes back when the records
//!   of a message were handed out, so a slow application slows the server down.

mod subscription;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Code;

use self::subscription::Subscription;
use super::call::Target;
use super::decode::Decoder;
use super::error::Repeat;
use super::retry::{Backoff, random_fraction};
use super::wire::{Data, Told};
use super::{Client, Error, Failure, Gap, Record};
use crate::proto::client::start_position::Position as Place;
use crate::proto::client::{
    ErrorReason, PartitionPosition, PartitionStart, StartPosition, SubscribeGap, SubscribeStart,
    SubscribeStarted,
};

/// Partitions that one subscription can name.
const PARTITIONS_MAX: usize = 1000;
const CREDIT_BYTES_MIN: u32 = 64 << 10;
const CREDIT_BYTES_MAX: u32 = 64 << 20;
/// How long to wait when the retry budget is used up.
const BUDGET_PAUSE: Duration = Duration::from_millis(250);

/// Where in a partition to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first record that is kept.
    Earliest,
    /// After the last record there is.
    Latest,
    /// The record with this offset.
    Offset(u64),
    /// The first record appended at this time or later, in milliseconds since the Unix epoch.
    TimeMs(i64),
}

/// What a consumer reads.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// The topic.
    pub topic: String,
    /// The partitions, each with its start. Empty for all of the topic's.
    pub partitions: Vec<(u32, Start)>,
    /// Where to begin if `partitions` is empty.
    pub start: Start,
    /// Bytes that the server may send ahead, 64 KiB to 64 MiB. Default: 8 MiB.
    pub credit_bytes: u32,
}

impl ConsumerConfig {
    /// All partitions of a topic, from the same place in each.
    pub fn new(topic: impl Into<String>, start: Start) -> Self {
        Self { topic: topic.into(), partitions: Vec::new(), start, credit_bytes: 8 << 20 }
    }
}

/// What a consumer gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A record.
    Record(Record),
    /// Records are missed: retention or a deletion overtook the consumer.
    Gap(Gap),
}

/// Reads records from one topic. It connects when it is first used.
///
/// * `positions` is empty until the first subscription has begun, and then has every partition.
/// * `message_bytes` is the cost of the message that `events` came from.
#[derive(Debug)]
pub struct Consumer {
    client: Client,
    config: ConsumerConfig,
    topic: Arc<str>,
    topic_id: String,
    positions: BTreeMap<u32, PartitionPosition>,
    subscription: Option<Subscription>,
    events: VecDeque<Event>,
    message_bytes: u32,
    decoder: Decoder,
    backoff: Backoff,
    /// Since when nothing succeeds.
    failing_since: Option<Instant>,
}

impl Client {
    /// Makes a consumer.
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        let credit_bytes = config.credit_bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX);
        Consumer {
            client: self.clone(),
            topic: config.topic.as_str().into(),
            config: ConsumerConfig { credit_bytes, ..config },
            topic_id: String::new(),
            positions: BTreeMap::new(),
            subscription: None,
            events: VecDeque::new(),
            message_bytes: 0,
            decoder: Decoder::default(),
            backoff: Backoff::new(),
            failing_since: None,
        }
    }
}

impl Consumer {
    /// Waits until the subscription has begun. Returns where it begins in each partition.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    ///
    /// # Cancel safety
    /// Cancel safe: the next call goes on.
    pub async fn start(&mut self) -> Result<impl Iterator<Item = (u32, u64)>, Error> {
        while self.positions.is_empty() {
            self.advance().await?;
        }
        Ok(self.positions.values().map(|position| (position.partition, position.next_offset)))
    }

    /// Waits for the next record or gap.
    ///
    /// Broken connections are made anew, for as long as the client's timeout.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when nothing succeeded for that long, [`Error::NotFound`],
    /// [`Error::OffsetOutOfRange`], [`Error::DamagedBatch`], [`Error::DataLoss`] and what else the
    /// server says. The consumer is where it was: the next call tries again.
    ///
    /// # Cancel safety
    /// Cancel safe: no record is lost and none comes twice.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.advance().await?;
        }
    }

    /// Returns the next record or gap that has already arrived.
    pub fn next_buffered(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the offset that a partition was read up to, exclusive: where a new consumer goes on
    /// once all records that have arrived are handed out. `None` before it has begun.
    pub fn position(&self, partition: u32) -> Option<u64> {
        self.positions.get(&partition).map(|position| position.next_offset)
    }

    /// Returns the high watermark of a partition as the server last said: the first offset that
    /// was not committed.
    pub fn high_watermark(&self, partition: u32) -> Option<u64> {
        self.positions.get(&partition).map(|position| position.high_watermark)
    }

    /// Waits for one message and takes it in, or for a broken connection to be left behind.
    async fn advance(&mut self) -> Result<(), Error> {
        if let Some(subscription) = &mut self.subscription {
            subscription.give_back(std::mem::take(&mut self.message_bytes));
        }
        match self.told().await {
            Ok(told) => {
                self.failing_since = None;
                self.backoff = Backoff::new();
                self.take(told)
            }
            Err(failure) => self.recover(failure).await,
        }
    }

    async fn told(&mut self) -> Result<Told, Failure> {
        if self.subscription.is_none() {
            let route = self.client.nodes().any();
            let opened = Subscription::open(&route, self.subscribe_start()).await;
            self.subscription = Some(opened.map_err(|failure| {
                let failure = failure.asked_of(&route.address);
                self.client.note_failure(Target::Any, &route, &failure);
                failure
            })?);
            self.client.nodes().on_answer(&route.address);
        }
        let subscription = self.subscription.as_mut().expect("it was just opened");
        subscription.told().await
    }

    fn take(&mut self, told: Told) -> Result<(), Error> {
        match told {
            Told::Started(started) => self.on_started(started),
            Told::Data(data) => self.on_data(&data),
            Told::Gap(gap) => {
                let SubscribeGap { partition, from_offset, to_offset } = gap;
                self.position_mut(partition).next_offset = to_offset;
                let topic = self.topic.clone();
                self.events.push_back(Event::Gap(Gap { topic, partition, from_offset, to_offset }));
                Ok(())
            }
            Told::Positions(told) => {
                // What has arrived says how far this side is; the rest is news.
                for position in told.positions {
                    let known = self.position_mut(position.partition);
                    known.high_watermark = position.high_watermark;
                    known.log_start_offset = position.log_start_offset;
                    known.next_offset = known.next_offset.max(position.next_offset);
                }
                Ok(())
            }
        }
    }

    fn on_started(&mut self, started: SubscribeStarted) -> Result<(), Error> {
        if started.positions.len() > PARTITIONS_MAX {
            self.subscription = None;
            let message =
                format!("a consumer reads at most {PARTITIONS_MAX} partitions: name them");
            let reason = ErrorReason::InvalidField;
            return Err(Failure::local(Code::InvalidArgument, reason, message).into());
        }
        self.topic_id = started.topic_id;
        let positions = started.positions.into_iter();
        self.positions = positions.map(|position| (position.partition, position)).collect();
        Ok(())
    }

    fn on_data(&mut self, data: &Data) -> Result<(), Error> {
        let partition = data.partition;
        let from = self.position_mut(partition).next_offset;
        let events = &mut self.events;
        let take = |record| events.push_back(Event::Record(record));
        let decoded = self.decoder.decode((&self.topic, partition), &data.batches, from, take);
        if let Err(damaged) = decoded {
            self.events.clear();
            self.subscription = None;
            return Err(damaged);
        }
        let position = self.position_mut(partition);
        position.next_offset = data.next_offset.max(from);
        position.high_watermark = data.high_watermark;
        self.message_bytes = data.cost_bytes;
        Ok(())
    }

    fn position_mut(&mut self, partition: u32) -> &mut PartitionPosition {
        let unknown = PartitionPosition { partition, ..Default::default() };
        self.positions.entry(partition).or_insert(unknown)
    }

    /// What to ask for: at first what was configured, later where each partition is.
    fn subscribe_start(&self) -> SubscribeStart {
        let at = |partition, start| PartitionStart { partition, start: Some(place(start)) };
        let resumed = self.positions.values();
        let resumed = resumed.map(|p| at(p.partition, Start::Offset(p.next_offset)));
        let configured = self.config.partitions.iter().map(|(partition, s)| at(*partition, *s));
        let partitions = match self.positions.is_empty() {
            true => configured.collect(),
            false => resumed.collect(),
        };
        SubscribeStart {
            topic: self.config.topic.clone(),
            topic_id: self.topic_id.clone(),
            partitions,
            start: Some(place(self.config.start)),
            credit_bytes: self.config.credit_bytes,
        }
    }

    async fn recover(&mut self, failure: Failure) -> Result<(), Error> {
        self.subscription = None;
        self.message_bytes = 0;
        let now = Instant::now();
        let failing_for = now.duration_since(*self.failing_since.get_or_insert(now));
        if failure.repeat() == Repeat::Useless || failing_for >= self.client.config().timeout {
            self.failing_since = None;
            return Err(Error::of_read(failure));
        }
        tokio::time::sleep(self.backoff.next(random_fraction(), failure.retry_after)).await;
        while !self.client.try_retry() {
            tokio::time::sleep(BUDGET_PAUSE).await;
        }
        Ok(())
    }
}

/// Writes a start as the API has it.
pub(super) fn place(start: Start) -> StartPosition {
    let position = match start {
        Start::Earliest => Place::Earliest(true),
        Start::Latest => Place::Latest(true),
        Start::Offset(offset) => Place::Offset(offset),
        Start::TimeMs(time_ms) => Place::TimeMs(time_ms),
    };
    StartPosition { position: Some(position) }
}
