//! Writes to the output partition as the one incarnation of a producer that may.

use bytes::Bytes;

use super::marker::{Progress, source_offset};
use crate::batch::payload_crc;
use crate::client::call::{Effect, Target};
use crate::client::wire::{self, Produce};
use crate::client::{
    Acks, Client, ConsumerConfig, Error, ErrorReason, Event, Start, TopicPartition,
};
use crate::proto::client::{InitProducerRequest, ProducerStamp};

/// An output partition.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) topic: String,
    pub(super) topic_id: String,
    pub(super) partition: u32,
}

/// A batch that is to be stored once.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) bytes: Bytes,
    pub(super) record_count: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    client: Client,
    place: Place,
    /// Who writes, and the number of the next record.
    stamp: ProducerStamp,
}

impl Writer {
    /// Becomes the incarnation of a producer that may write; 0 for a new producer. What an earlier
    /// one still sends is refused from now on.
    pub(super) async fn take_over(
        client: &Client,
        place: &Place,
        producer_id: u64,
    ) -> Result<Self, Error> {
        match init(client, place, producer_id).await {
            // Whoever wrote under an id that is forgotten cannot write any more either.
            Err(error) if error.reason() == ErrorReason::UnknownProducer => {
                init(client, place, 0).await
            }
            taken => taken,
        }
    }

    pub(super) fn producer_id(&self) -> u64 {
        self.stamp.producer_id
    }

    /// Finds the last record of a source that something was written for, from an offset of the
    /// output on. What others wrote before this one took over is found.
    pub(super) async fn last_source(
        &self,
        source: &TopicPartition,
        from: u64,
    ) -> Result<Option<u64>, Error> {
        let Place { topic, partition, .. } = &self.place;
        let offsets = self.client.list_offsets(topic, vec![*partition], Start::Latest).await?;
        let Some(end) = offsets.first() else { return Ok(None) };
        let from = from.max(end.log_start_offset);
        if from >= end.offset {
            return Ok(None);
        }
        let start = Start::Offset(from);
        let config = ConsumerConfig {
            partitions: vec![(*partition, start)],
            ..ConsumerConfig::new(topic, start)
        };
        let mut consumer = self.client.consumer(config);
        let mut last = None;
        let mut at = from;
        while at < end.offset {
            match consumer.next().await? {
                Event::Record(record) => {
                    last = last.max(source_offset(&record, source));
                    at = record.offset + 1;
                }
                Event::Gap(gap) => at = gap.to_offset,
            }
        }
        Ok(last)
    }

    /// Stores a batch, once however often it is tried. Returns the output offset after it.
    ///
    /// Cancel safe: tried again, it is stored once all the same.
    pub(super) async fn store(&mut self, batch: &Batch) -> Result<u64, Error> {
        let Place { topic, topic_id, partition } = &self.place;
        let produce = Produce {
            topic: topic.clone(),
            topic_id: topic_id.clone(),
            partition: *partition,
            batch: batch.bytes.clone(),
            crc: Some(payload_crc(&batch.bytes)),
            acks: Acks::Quorum.into(),
            producer: Some(self.stamp),
        };
        let target = Target::Leader { topic, partition: *partition };
        let call = self.client.call(Effect::Repeatable, target, |route, timeout| {
            let request = route.request(produce.clone(), timeout);
            async move { wire::produce(&route, request).await }
        });
        let stored = call.await?;
        self.stamp.base_sequence = self.stamp.base_sequence.wrapping_add(batch.record_count);
        Ok(stored.base_offset + u64::from(batch.record_count))
    }
}

async fn init(client: &Client, place: &Place, producer_id: u64) -> Result<Writer, Error> {
    let Place { topic, topic_id, partition } = place;
    let (partition, topic_id) = (*partition, topic_id.clone());
    let request = InitProducerRequest { topic: topic.clone(), topic_id, partition, producer_id };
    let target = Target::Leader { topic, partition };
    let call = client.call(Effect::Repeatable, target, |route, timeout| {
        let request = route.request(request.clone(), timeout);
        async move { route.log().init_producer(request).await }
    });
    let answer = call.await?;
    let stamp = ProducerStamp {
        producer_id: answer.producer_id,
        producer_epoch: answer.producer_epoch,
        base_sequence: answer.next_sequence,
    };
    Ok(Writer { client: client.clone(), place: place.clone(), stamp })
}

/// Where the output ends: what is written from now on is there or above.
pub(super) async fn output_end(client: &Client, place: &Place) -> Result<Progress, Error> {
    let partitions = vec![place.partition];
    let offsets = client.list_offsets(&place.topic, partitions, Start::Latest).await?;
    let output_offset = offsets.first().map_or(0, |end| end.offset);
    Ok(Progress { producer_id: 0, output_offset })
}
