//! Checking batches: what a producer sends becomes a [`Batch`] once everything about it is sound.
//!
//! Small batches are checked where they come in. Large compressed ones take milliseconds and are
//! checked on other threads, a few at a time.

use std::cell::RefCell;

use super::super::context::{Context, Target};
use super::super::convert;
use super::super::error::Error;
use crate::batch::{self, Codec, Limits, Scratch};
use crate::partition::{Acks, Batch};
use crate::proto::server::ProduceRequest;

/// Compressed batches above this many bytes are checked on other threads.
const CHECK_HERE_MAX: usize = 64 << 10;

thread_local! {
    /// Space for what small compressed batches decompress to: at most 100 times their size.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A request of which everything is checked.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) target: Target,
    pub(super) batch: Batch,
    pub(super) acks: Acks,
    /// What other nodes are sent.
    pub(super) request: ProduceRequest,
}

impl Checked {
    /// True if the batch is stored once, whatever is repeated.
    pub(super) fn is_stamped(&self) -> bool {
        self.batch.producer_id != 0
    }
}

/// A request whose partition is known, and whose batch is yet to be checked.
pub(super) struct Unchecked {
    target: Target,
    acks: Acks,
    request: ProduceRequest,
}

impl Unchecked {
    /// Checks everything but the batch.
    pub(super) fn new(request: ProduceRequest, target: Target) -> Result<Self, Error> {
        let acks = convert::acks(request.acks)?;
        if let Some(stamp) = &request.producer {
            if stamp.producer_id == 0 {
                return Err(Error::field("producer.producer_id", "an id that InitProducer gave"));
            }
            if u16::try_from(stamp.producer_epoch).is_err() {
                return Err(Error::field("producer.producer_epoch", "at most 65535"));
            }
        }
        Ok(Self { target, acks, request })
    }

    /// True if checking takes too long to be done where others wait.
    pub(super) fn is_heavy(&self) -> bool {
        let (batch, limits) = (&self.request.batch, convert::batch_limits(&self.target.config));
        // A look at tags and lengths; what is wrong with them is found once more.
        batch.len() > CHECK_HERE_MAX
            && batch::skim(batch, &limits).is_ok_and(|summary| summary.codec != Codec::None)
    }

    /// Checks the batch here.
    pub(super) fn check(self) -> Result<Checked, Error> {
        SCRATCH.with_borrow_mut(|scratch| self.check_with(scratch))
    }

    /// Checks the batch on another thread.
    pub(super) async fn check_elsewhere(self, context: &Context) -> Result<Checked, Error> {
        context.run_check(move || self.check_with(&mut Scratch::default())).await?
    }

    fn check_with(self, scratch: &mut Scratch) -> Result<Checked, Error> {
        let limits = convert::batch_limits(&self.target.config);
        let Self { target, acks, request } = self;
        let batch = verify(&request, &limits, scratch)?;
        Ok(Checked { target, batch, acks, request })
    }
}

fn verify(
    request: &ProduceRequest,
    limits: &Limits,
    scratch: &mut Scratch,
) -> Result<Batch, Error> {
    let verified = batch::verify(&request.batch, request.crc, limits, scratch)?;
    let summary = verified.summary();
    let stamp = request.producer.unwrap_or_default();
    Ok(Batch {
        payload_crc: verified.crc(),
        payload: request.batch.clone(),
        record_count: summary.record_count,
        format: summary.codec.number() as u8,
        producer_id: stamp.producer_id,
        producer_epoch: stamp.producer_epoch as u16,
        base_sequence: stamp.base_sequence,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::batch::{BatchBuilder, Record};
    use crate::cluster::command::TopicConfig;
    use crate::proto::server::{ErrorReason, ProducerStamp};
    use crate::types::LogId;

    fn target(config: TopicConfig) -> Target {
        Target { topic_id: Uuid::nil(), partition: 0, log: LogId(Uuid::nil()), config }
    }

    fn batch(codec: Codec, records: usize, len: usize) -> Bytes {
        let mut builder = BatchBuilder::new(Limits::default());
        for n in 0..records {
            let mut value = vec![n as u8; len];
            value[..8].copy_from_slice(&(n as u64).to_le_bytes());
            let record = Record { value: Some(&value), ..Record::default() };
            builder.append(&record).unwrap();
        }
        builder.build(codec).unwrap()
    }

    fn check(request: ProduceRequest, config: TopicConfig) -> Result<Checked, Error> {
        Unchecked::new(request, target(config))?.check()
    }

    fn reason(outcome: Result<Checked, Error>) -> ErrorReason {
        outcome.unwrap_err().reason().unwrap()
    }

    #[test]
    fn a_sound_batch_is_taken_as_it_is() {
        let batch = batch(Codec::None, 3, 100);
        let request = ProduceRequest { batch: batch.clone(), ..ProduceRequest::default() };
        let checked = check(request, TopicConfig::default()).unwrap();
        assert_eq!(checked.batch.payload.as_ptr(), batch.as_ptr(), "the batch was copied");
        assert_eq!((checked.batch.record_count, checked.batch.format), (3, 0));
        assert!(!checked.is_stamped());
    }

    #[test]
    fn what_is_not_sound_is_refused_with_its_reason() {
        let good = batch(Codec::None, 3, 100);
        let with = |batch: Bytes| ProduceRequest { batch, ..ProduceRequest::default() };
        let none = TopicConfig::default();
        assert_eq!(reason(check(with(Bytes::new()), none)), ErrorReason::CorruptBatch);
        assert_eq!(reason(check(with(good.slice(..50)), none)), ErrorReason::CorruptBatch);
        let wrong_crc = ProduceRequest { crc: Some(1), ..with(good.clone()) };
        assert_eq!(reason(check(wrong_crc, none)), ErrorReason::BadChecksum);
        let small_records = TopicConfig { record_bytes_max: Some(50), ..none };
        let refused = check(with(good.clone()), small_records);
        assert_eq!(reason(refused), ErrorReason::RecordTooLarge);
        let small_batches = TopicConfig { batch_bytes_max: Some(50), ..none };
        let refused = check(with(good.clone()), small_batches);
        assert_eq!(reason(refused), ErrorReason::BatchTooLarge);
        let bad_acks = ProduceRequest { acks: 9, ..with(good.clone()) };
        assert_eq!(reason(check(bad_acks, none)), ErrorReason::InvalidField);
        for (producer_id, producer_epoch) in [(0, 0), (1, 65_536)] {
            let stamp = ProducerStamp { producer_id, producer_epoch, base_sequence: 0 };
            let stamped = ProduceRequest { producer: Some(stamp), ..with(good.clone()) };
            assert_eq!(reason(check(stamped, none)), ErrorReason::InvalidField);
        }
    }

    #[test]
    fn only_large_compressed_batches_are_heavy() {
        let is_heavy = |batch| {
            let request = ProduceRequest { batch, ..ProduceRequest::default() };
            Unchecked::new(request, target(TopicConfig::default())).unwrap().is_heavy()
        };
        assert!(!is_heavy(batch(Codec::None, 1_000, 100)));
        assert!(!is_heavy(batch(Codec::Lz4, 10, 100)));
        assert!(is_heavy(batch(Codec::Lz4, 40_000, 16)));
    }
}
