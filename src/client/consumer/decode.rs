//! From a stored batch to records that the application keeps.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Event, Header, Record};
use crate::batch::{self, Codec, Limits, RecordView, Scratch};
use crate::client::wire::Stored;

/// Checks a batch and adds its records from `from` on to `events`.
///
/// The records of a plain batch share its memory; those of a compressed one are copied out.
///
/// # Errors
/// Nothing was added.
pub(super) fn decode(
    partition: u32,
    stored: &Stored,
    from: u64,
    scratch: &mut Scratch,
    events: &mut VecDeque<Event>,
) -> Result<(), batch::Error> {
    let payload = &stored.batch;
    let verified = batch::verify(payload, Some(stored.crc), &Limits::default(), scratch)?;
    let is_plain = verified.summary().codec == Codec::None;
    let own = |bytes: &[u8]| {
        if is_plain { payload.slice_ref(bytes) } else { Bytes::copy_from_slice(bytes) }
    };
    let numbered = (stored.base_offset..).zip(verified.records());
    let wanted = numbered.filter(|(offset, _)| *offset >= from);
    events.extend(wanted.map(|(offset, view)| {
        let record = record(&view, own);
        let append_time_ms = stored.append_time_ms;
        Event::Record(Record { partition, offset, append_time_ms, ..record })
    }));
    Ok(())
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
            let mut events = VecDeque::new();
            decode(3, &stored(codec), 1098, &mut Scratch::default(), &mut events).unwrap();
            let expected = |offset: u64, key: u8| {
                Event::Record(Record {
                    partition: 3,
                    offset,
                    append_time_ms: 5,
                    key: Some(vec![key].into()),
                    value: Some(vec![7; 50].into()),
                    headers: vec![Header { name: "h".into(), value: "1".into() }],
                    event_time_ms: Some(-1),
                })
            };
            assert_eq!(events, [expected(1098, 98), expected(1099, 99)]);
        }
    }

    #[test]
    fn a_damaged_batch_yields_nothing() {
        let mut damaged = stored(Codec::None);
        let mut bytes = damaged.batch.to_vec();
        bytes[60] ^= 1;
        damaged.batch = bytes.into();
        let mut events = VecDeque::new();
        let error = decode(0, &damaged, 0, &mut Scratch::default(), &mut events).unwrap_err();
        assert!(matches!(error, batch::Error::BadChecksum { .. }) && events.is_empty());
    }
}
