//! From stored batches to records that the application keeps.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::wire::Stored;
use super::{Error, Header, Record};
use crate::batch::{self, Codec, Limits, RecordView, Scratch};

/// Takes batches apart. Has the memory that compressed ones are decompressed in.
#[derive(Default)]
pub(super) struct Decoder {
    scratch: Scratch,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decoder({} bytes)", self.scratch.bytes_held())
    }
}

impl Decoder {
    /// Checks batches of a partition and hands their records from `from` on to `take`.
    ///
    /// The records of a plain batch share its memory; those of a compressed one are copied out.
    ///
    /// # Errors
    /// [`Error::DamagedBatch`]: no record of that batch or of one after it was handed on.
    pub(super) fn decode(
        &mut self,
        (topic, partition): (&Arc<str>, u32),
        batches: &[Stored],
        from: u64,
        mut take: impl FnMut(Record),
    ) -> Result<(), Error> {
        for stored in batches {
            let of_partition = |record| Record { topic: topic.clone(), partition, ..record };
            self.decode_one(stored, from, |record| take(of_partition(record))).map_err(
                |source| Error::DamagedBatch { partition, base_offset: stored.base_offset, source },
            )?;
        }
        Ok(())
    }

    fn decode_one(
        &mut self,
        stored: &Stored,
        from: u64,
        take: impl FnMut(Record),
    ) -> Result<(), batch::Error> {
        let payload = &stored.batch;
        let limits = Limits::default();
        let verified = batch::verify(payload, Some(stored.crc), &limits, &mut self.scratch)?;
        let is_plain = verified.summary().codec == Codec::None;
        let own = |bytes: &[u8]| {
            if is_plain { payload.slice_ref(bytes) } else { Bytes::copy_from_slice(bytes) }
        };
        let numbered = (stored.base_offset..).zip(verified.records());
        let wanted = numbered.filter(|(offset, _)| *offset >= from);
        let (append_time_ms, leader_epoch) = (stored.append_time_ms, stored.leader_epoch);
        let whole = |(offset, view): (u64, RecordView<'_>)| Record {
            offset,
            append_time_ms,
            leader_epoch,
            ..record(&view, own)
        };
        wanted.map(whole).for_each(take);
        Ok(())
    }
}

fn record(view: &RecordView<'_>, own: impl Fn(&[u8]) -> Bytes) -> Record {
    let header = |(name, value): (&str, &[u8])| Header { name: name.into(), value: own(value) };
    Record {
        key: view.key.map(&own),
        value: view.value.map(&own),
        headers: view.headers().map(header).collect(),
        event_time_ms: view.event_time_ms,
        ..Record::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, payload_crc};

    fn stored(codec: Codec) -> Stored {
        let mut builder = BatchBuilder::new(Limits::default());
        for n in 0..100_u8 {
            let headers: &[(&str, &[u8])] = &[("h", b"1")];
            let (key, value) = ([n], [7; 50]);
            let (key, value) = (Some(&key[..]), Some(&value[..]));
            let record = batch::Record { key, value, headers, event_time_ms: Some(-1) };
            builder.append(&record).unwrap();
        }
        let batch = builder.build(codec).unwrap();
        let crc = payload_crc(&batch);
        let (base_offset, record_count, append_time_ms) = (1000, 100, 5);
        Stored { base_offset, record_count, append_time_ms, leader_epoch: 1, crc, batch }
    }

    #[test]
    fn records_come_out_as_they_went_in_from_the_offset_wanted() {
        for codec in [Codec::None, Codec::Lz4] {
            let mut records = Vec::new();
            let (mut decoder, batches) = (Decoder::default(), [stored(codec)]);
            let take = |record| records.push(record);
            decoder.decode((&"t".into(), 3), &batches, 1098, take).unwrap();
            let expected = |offset: u64, key: u8| Record {
                topic: "t".into(),
                partition: 3,
                offset,
                leader_epoch: 1,
                append_time_ms: 5,
                key: Some(vec![key].into()),
                value: Some(vec![7; 50].into()),
                headers: vec![Header { name: "h".into(), value: "1".into() }],
                event_time_ms: Some(-1),
            };
            assert_eq!(records, [expected(1098, 98), expected(1099, 99)]);
        }
    }

    #[test]
    fn a_damaged_batch_yields_nothing() {
        let mut damaged = stored(Codec::None);
        let mut bytes = damaged.batch.to_vec();
        bytes[60] ^= 1;
        damaged.batch = bytes.into();
        let take = |record| panic!("{record:?} came out of a damaged batch");
        let decoded = Decoder::default().decode((&"t".into(), 0), &[damaged], 0, take);
        let error = decoded.unwrap_err();
        assert!(matches!(error, Error::DamagedBatch { base_offset: 1000, .. }), "{error}");
    }
}
