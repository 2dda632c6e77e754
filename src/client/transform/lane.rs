//! One source partition on its way into its output partition.

use std::collections::VecDeque;

use super::marker::{Progress, SOURCE_HEADER, source_of};
use super::writer::{Batch, Place, Writer, output_end};
use super::{Output, TransformConfig};
use crate::batch::{self, BatchBuilder, Limits};
use crate::client::{Assigned, Client, Error, ErrorReason, Failure, GroupConsumer, Record};
use crate::client::{Committing, TopicPartition};

/// Of what is made from one record: a batch that every server takes whose configuration is the
/// default.
const BATCH_BYTES_MAX: u32 = 3_670_016;
/// Records of a batch that every server takes.
const RECORDS_MAX: usize = 1 << 17;

/// What was made from a record.
#[derive(Debug)]
struct Made {
    source_offset: u64,
    /// The value of [`SOURCE_HEADER`].
    source: String,
    outputs: Vec<Output>,
    bytes: usize,
}

/// A batch that may have been stored.
#[derive(Debug)]
struct Sent {
    batch: Batch,
    /// How many of the first of `made` it is of.
    made: usize,
}

/// See the module.
///
/// * All that was made from records below `position` is stored or in `made`.
/// * A batch has all that was made from a record, or nothing.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) source: TopicPartition,
    place: Place,
    /// None until the output was taken over, and after another one took it.
    writer: Option<Writer>,
    /// What is to be committed with the source offset; none if nothing was ever written.
    progress: Option<Progress>,
    committed: u64,
    /// The source offset to go on at.
    position: u64,
    /// Of records below it the output has all already.
    written: u64,
    /// What is to be stored, in order.
    made: VecDeque<Made>,
    made_bytes: usize,
    /// Sent again as it is until it is known to be stored, or another one took over.
    sent: Option<Sent>,
}

impl Lane {
    /// # Errors
    /// [`Error::InvalidRequest`] if the group was committed to by something else.
    pub(super) fn new(assigned: &Assigned, place: Place) -> Result<Self, Error> {
        let (topic, partition) = (assigned.topic.clone(), assigned.partition);
        let source = TopicPartition { topic, partition };
        let progress = match assigned.metadata.as_str() {
            "" => None,
            metadata => Some(metadata.parse().map_err(|()| {
                let message = format!(
                    "{source}: `{metadata}` was committed by something else than a transformation: \
                     use a group of its own"
                );
                Failure::invalid(message)
            })?),
        };
        Ok(Self {
            source,
            place,
            writer: None,
            progress,
            committed: assigned.next_offset,
            position: assigned.next_offset,
            written: assigned.next_offset,
            made: VecDeque::new(),
            made_bytes: 0,
            sent: None,
        })
    }

    /// Becomes the one that writes, and finds out how far the one before has come.
    ///
    /// The order is what makes it safe: who fences before it looks sees all that will ever be
    /// written before its own; a producer is committed before it writes, so whoever comes next can
    /// fence it; and only the owner of the partition can commit.
    async fn take_over(
        &mut self,
        client: &Client,
        consumer: &mut GroupConsumer,
    ) -> Result<(), Error> {
        let known = self.progress;
        if let Some(progress) = known {
            // Whoever is not the owner any more stops here, before it gets in the owner's way.
            self.commit_progress(consumer, progress).await?;
        }
        let known_id = known.map_or(0, |progress| progress.producer_id);
        let begin = match known {
            Some(progress) => progress,
            None => output_end(client, &self.place).await?,
        };
        let writer = Writer::take_over(client, &self.place, known_id).await?;
        let progress = Progress { producer_id: writer.producer_id(), ..begin };
        if known != Some(progress) {
            self.commit_progress(consumer, progress).await?;
        }
        let last = writer.last_source(&self.source, progress.output_offset).await?;
        self.written = last.map_or(self.written, |last| self.written.max(last + 1));
        while self.made.front().is_some_and(|made| made.source_offset < self.written) {
            self.forget(1);
        }
        self.writer = Some(writer);
        Ok(())
    }

    async fn commit_progress(
        &mut self,
        consumer: &mut GroupConsumer,
        progress: Progress,
    ) -> Result<(), Error> {
        let metadata = progress.to_string();
        consumer.commit_position(&self.source, self.committed, &metadata).await?;
        self.progress = Some(progress);
        Ok(())
    }

    /// Whether records of the source are in the output already.
    pub(super) fn has_written(&self, offset: u64) -> bool {
        offset < self.written
    }

    /// Takes what was made from a record.
    ///
    /// # Errors
    /// [`Error::Record`] if it is over a limit: nothing of it was taken.
    pub(super) fn take(&mut self, record: &Record, outputs: Vec<Output>) -> Result<(), Error> {
        let mut made =
            Made { source_offset: record.offset, source: source_of(record), outputs, bytes: 0 };
        // It has to fit into a batch as a whole.
        let uncompressed_bytes_max = BATCH_BYTES_MAX;
        let mut whole = BatchBuilder::new(Limits { uncompressed_bytes_max, ..Limits::default() });
        made.append_to(&mut whole)?;
        made.bytes = whole.encoded_bytes();
        self.made_bytes += made.bytes;
        self.made.push_back(made);
        Ok(())
    }

    /// Goes on after records that nothing is made from.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.position = self.position.max(offset);
    }

    /// Returns how much is to be stored.
    pub(super) fn made_bytes(&self) -> usize {
        self.made_bytes
    }

    fn forget(&mut self, count: usize) {
        for made in self.made.drain(..count) {
            self.made_bytes -= made.bytes;
        }
    }

    /// Puts as much as fits into a batch. None if there is nothing to be stored.
    fn next_batch(&self, config: &TransformConfig) -> Result<Option<Sent>, Error> {
        let mut builder = BatchBuilder::new(Limits::default());
        let mut count = 0;
        for made in &self.made {
            let bytes = builder.encoded_bytes() + made.bytes;
            let records = builder.record_count() as usize + made.outputs.len();
            let is_full = bytes > config.batch_bytes || records > RECORDS_MAX;
            if is_full && !builder.is_empty() {
                break;
            }
            made.append_to(&mut builder)?;
            count += 1;
        }
        if builder.is_empty() {
            return Ok(None);
        }
        let record_count = builder.record_count();
        let bytes = builder.build(config.codec)?;
        Ok(Some(Sent { batch: Batch { bytes, record_count }, made: count }))
    }

    /// Stores what there is, and begins to commit that.
    ///
    /// Cancel safe: what was not stored is stored the next time, and once.
    pub(super) async fn flush(
        &mut self,
        client: &Client,
        consumer: &mut GroupConsumer,
        config: &TransformConfig,
    ) -> Result<Option<Committing>, Error> {
        loop {
            if self.writer.is_none() {
                self.take_over(client, consumer).await?;
            }
            if self.sent.is_none() {
                self.sent = self.next_batch(config)?;
            }
            let writer = self.writer.as_mut().expect("it was just taken over");
            let Some(sent) = &self.sent else { break };
            match writer.store(&sent.batch).await {
                Ok(output_offset) => {
                    let producer_id = writer.producer_id();
                    self.progress = Some(Progress { producer_id, output_offset });
                    let count = sent.made;
                    self.sent = None;
                    self.forget(count);
                }
                Err(error) if has_lost_its_place(&error) => {
                    // What others wrote meanwhile may be a part of it.
                    self.sent = None;
                    self.writer = None;
                }
                Err(error) => return Err(error),
            }
        }
        // What nothing was made from leaves nothing to be stored, and is done with.
        self.made.clear();
        self.made_bytes = 0;
        self.commit(consumer).await
    }

    async fn commit(&mut self, consumer: &mut GroupConsumer) -> Result<Option<Committing>, Error> {
        let Some(progress) = self.progress.filter(|_| self.position > self.committed) else {
            return Ok(None);
        };
        let metadata = progress.to_string();
        let started = consumer.start_commit_at(&self.source, self.position, metadata).await?;
        self.committed = self.position;
        Ok(Some(started))
    }
}

/// Whether another incarnation of the producer may have written.
fn has_lost_its_place(error: &Error) -> bool {
    use ErrorReason as R;
    let reason = error.reason();
    matches!(reason, R::ProducerFenced | R::UnknownProducer)
        || matches!(reason, R::OutOfOrderSequence | R::SequenceReused)
}

impl Made {
    fn append_to(&self, builder: &mut BatchBuilder) -> Result<(), batch::Error> {
        for output in &self.outputs {
            let own = output.headers.iter().map(|header| (header.name.as_str(), &*header.value));
            let headers: Vec<_> = own.chain([(SOURCE_HEADER, self.source.as_bytes())]).collect();
            builder.append(&batch::Record {
                key: output.key.as_deref(),
                value: output.value.as_deref(),
                headers: &headers,
                event_time_ms: output.event_time_ms,
            })?;
        }
        Ok(())
    }
}
