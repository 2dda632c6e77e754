//! From one topic into another, each record once: consume, transform, produce.
//!
//! A [`Transform`] is a member of a group. What it makes from a record it stores in the output
//! topic exactly once, although members die, hang and come back at any point: a record that is
//! handed out again after a crash is not written again.
//!
//! * All that comes of a source partition goes to one output partition (the same number, modulo how
//!   many there are), in order, and through one producer with sequence numbers.
//! * All that is made from one record is in one batch, and each output record says in the header
//!   [`SOURCE_HEADER`] which record that was.
//! * What is committed with a source offset is the producer's id and where the output ended.
//! * Whoever gets a source partition raises the producer's epoch, which keeps out the one before,
//!   then reads the output from where it ended at the last commit, and goes on after the last
//!   source record that it finds there. So the committed offset is a hint, and the output itself
//!   says what is done.
//!
//! It holds for one group per output topic and as long as the output keeps what was written since
//! the last commit. The function may be called more than once for a record; its effects beside the
//! output are its own to make repeatable.

mod lane;
mod marker;
mod writer;

use std::collections::BTreeMap;

use bytes::Bytes;

use self::lane::Lane;
use self::writer::Place;
use super::{
    Assigned, Client, Commit, Error, ErrorReason, GroupConsumer, GroupConsumerConfig, GroupEvent,
    Header, Record, TopicPartition,
};
use crate::batch::Codec;

pub use self::marker::SOURCE_HEADER;

/// Events that one step takes at most before it stores what came of them.
const EVENTS_MAX: usize = 10_000;

/// What to transform, and where to.
#[derive(Debug, Clone)]
pub struct TransformConfig {
    /// How to be a member of the group. Its commits are the transformation's to make.
    pub source: GroupConsumerConfig,
    /// The topic that is written.
    pub output: String,
    /// How batches are compressed. Default: not at all.
    pub codec: Codec,
    /// Bytes at which a batch is full, at most 3.5 MiB. Default: 256 KiB.
    pub batch_bytes: usize,
}

/// The largest batch that every server takes whose configuration is the default.
const BATCH_BYTES_MAX: usize = 3_670_016;

impl TransformConfig {
    /// The default configuration to go from a group's topics to another topic.
    pub fn new(group: impl Into<String>, output: impl Into<String>) -> Self {
        Self {
            source: GroupConsumerConfig::new(group),
            output: output.into(),
            codec: Codec::None,
            batch_bytes: 256 << 10,
        }
    }
}

/// A record to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// The key. Absent is not the same as empty.
    pub key: Option<Bytes>,
    /// The value. Absent is not the same as empty.
    pub value: Option<Bytes>,
    /// The headers. [`SOURCE_HEADER`] is added to them.
    pub headers: Vec<Header>,
    /// When the event happened, in milliseconds since the Unix epoch.
    pub event_time_ms: Option<i64>,
}

/// See the module.
#[derive(Debug)]
pub struct Transform {
    client: Client,
    config: TransformConfig,
    output_id: String,
    output_partitions: u32,
    consumer: GroupConsumer,
    lanes: BTreeMap<TopicPartition, Lane>,
}

impl Client {
    /// Begins a transformation. It keeps to the partitions that the output has now: give that its
    /// partitions before the first one begins, and no more later.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no output topic, [`Error::Unavailable`].
    pub async fn transform(&self, config: TransformConfig) -> Result<Transform, Error> {
        let topology = self.fetch_topology(&config.output).await?;
        let source = GroupConsumerConfig { commit: Commit::Manual, ..config.source.clone() };
        let batch_bytes = config.batch_bytes.clamp(1, BATCH_BYTES_MAX);
        let config = TransformConfig { batch_bytes, ..config };
        Ok(Transform {
            client: self.clone(),
            output_id: topology.topic_id.clone(),
            output_partitions: topology.partitions(),
            consumer: self.group_consumer(source),
            lanes: BTreeMap::new(),
            config,
        })
    }
}

impl Transform {
    /// Waits for records, writes what `make` makes from them, and commits them. Returns how many
    /// records it was asked for. Call it again and again.
    ///
    /// # Errors
    /// As [`GroupConsumer::next`], and what the output says; [`Error::Record`] if what was made
    /// from a record is over a limit: that record is left out. The next call goes on.
    ///
    /// # Cancel safety
    /// Cancel safe: what was made and not stored is stored by the next call.
    pub async fn step(
        &mut self,
        mut make: impl FnMut(&Record) -> Vec<Output>,
    ) -> Result<u64, Error> {
        let mut made = 0;
        let mut event = Some(self.consumer.next().await?);
        for _ in 0..EVENTS_MAX {
            match event {
                None => break,
                Some(GroupEvent::Record(record)) => made += self.take(&record, &mut make)?,
                Some(GroupEvent::Gap(gap)) => {
                    let at = TopicPartition { topic: gap.topic, partition: gap.partition };
                    self.lanes
                        .get_mut(&at)
                        .into_iter()
                        .for_each(|lane| lane.skip_to(gap.to_offset));
                }
                Some(GroupEvent::Assigned(assigned)) => self.on_assigned(&assigned)?,
                Some(GroupEvent::Revoked(revoked)) => {
                    self.flush().await?;
                    self.drop_lanes(&revoked.partitions);
                }
                Some(GroupEvent::Lost(lost)) => self.drop_lanes(&lost.partitions),
            }
            if self.lanes.values().any(|lane| lane.made_bytes() >= self.config.batch_bytes) {
                break;
            }
            event = self.consumer.next_buffered();
        }
        self.flush().await?;
        Ok(made)
    }

    fn on_assigned(&mut self, assigned: &[Assigned]) -> Result<(), Error> {
        for assigned in assigned {
            let place = Place {
                topic: self.config.output.clone(),
                topic_id: self.output_id.clone(),
                partition: assigned.partition % self.output_partitions,
            };
            let lane = Lane::new(assigned, place)?;
            self.lanes.insert(lane.source.clone(), lane);
        }
        Ok(())
    }

    fn drop_lanes(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|at| drop(self.lanes.remove(at)));
    }

    fn take(
        &mut self,
        record: &Record,
        make: impl FnOnce(&Record) -> Vec<Output>,
    ) -> Result<u64, Error> {
        let at = TopicPartition { topic: record.topic.clone(), partition: record.partition };
        let Some(lane) = self.lanes.get_mut(&at) else {
            return Ok(0);
        };
        if lane.has_written(record.offset) {
            lane.skip_to(record.offset + 1);
            return Ok(0);
        }
        let taken = lane.take(record, make(record));
        lane.skip_to(record.offset + 1);
        taken.map(|()| 1)
    }

    /// Stores and commits all that was made.
    async fn flush(&mut self) -> Result<(), Error> {
        let mut started = Vec::new();
        let lanes: Vec<TopicPartition> = self.lanes.keys().cloned().collect();
        for at in lanes {
            let Some(lane) = self.lanes.get_mut(&at) else { continue };
            match lane.flush(&self.client, &mut self.consumer, &self.config).await {
                Ok(committing) => started.extend(committing.map(|committing| (at, committing))),
                Err(error) if is_elsewhere(&error) => drop(self.lanes.remove(&at)),
                Err(error) => return Err(error),
            }
        }
        for (at, committing) in started {
            match committing.await {
                Err(error) if is_elsewhere(&error) => drop(self.lanes.remove(&at)),
                committed => committed?,
            }
        }
        Ok(())
    }

    /// Stores and commits what was made, and leaves the group.
    ///
    /// # Errors
    /// As [`Transform::step`]. The member has ended all the same.
    ///
    /// # Cancel safety
    /// Cancelled, it is as if the transformation was dropped: others go on where it was.
    pub async fn close(mut self) -> Result<(), Error> {
        let flushed = self.flush().await;
        self.consumer.close().await?;
        flushed
    }
}

/// Whether a commit was refused because the partition is somebody else's. The consumer tells.
fn is_elsewhere(error: &Error) -> bool {
    matches!(error.reason(), ErrorReason::NotOwner | ErrorReason::IllegalGeneration)
}
