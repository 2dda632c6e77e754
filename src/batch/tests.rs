//! Tests of the record batch format: golden bytes, round trips, checksums. The refusals, one test
//! for each way to lie, are in `lies.rs` and `codec_lies.rs`.

mod codec_lies;
mod lies;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::{
    BatchBuilder, Codec, Error, Limits, Measure, Record, Scratch, Verified, payload_crc, skim,
    verify,
};
use crate::proto::client;

/// The codecs of this build.
const CODECS: &[Codec] = if cfg!(feature = "zstd") {
    &[Codec::None, Codec::Lz4, Codec::Zstd]
} else {
    &[Codec::None, Codec::Lz4]
};

/// A plain batch: a record with all fields, one without any, one with an empty key and an empty
/// header.
const GOLDEN: &[u8] =
    b"\x12\x1e\x0a\x01\x6b\x12\x02\x76\x31\x1a\x06\x0a\x01\x68\x12\x01\x78\x1a\x06\x0a\x01\
    \x68\x12\x01\x79\x20\x80\xd0\x95\xff\xbc\x31\x12\x00\x12\x04\x0a\x00\x1a\x00";
const GOLDEN_CRC: u32 = 0xDFB3E1BB;

/// [`GOLDEN`] as `lz4 -c` and `zstd -c` compress it.
const GOLDEN_LZ4: &[u8] =
    b"\x04\x22\x4d\x18\x64\x40\xa7\x27\x00\x00\x00\xf3\x02\x12\x1e\x0a\x01\x6b\x12\x02\x76\
    \x31\x1a\x06\x0a\x01\x68\x12\x01\x78\x08\x00\xf0\x01\x79\x20\x80\xd0\x95\xff\xbc\x31\
    \x12\x00\x12\x04\x0a\x00\x1a\x00\x00\x00\x00\x00\x2c\xbb\xa0\xd2";
const GOLDEN_ZSTD: &[u8] =
    b"\x28\xb5\x2f\xfd\x04\x58\x41\x01\x00\x12\x1e\x0a\x01\x6b\x12\x02\x76\x31\x1a\x06\x0a\
    \x01\x68\x12\x01\x78\x1a\x06\x0a\x01\x68\x12\x01\x79\x20\x80\xd0\x95\xff\xbc\x31\x12\
    \x00\x12\x04\x0a\x00\x1a\x00\x7c\xb4\xb8\xca";

fn golden_records() -> [Record<'static>; 3] {
    let full = Record {
        key: Some(b"k"),
        value: Some(b"v1"),
        headers: &[("h", b"x"), ("h", b"y")],
        event_time_ms: Some(1_700_000_000_000),
    };
    let empty = Record { key: Some(b""), headers: &[("", b"")], ..Record::default() };
    [full, Record::default(), empty]
}

fn build(records: &[Record<'_>], codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    for record in records {
        let bytes = builder.encoded_bytes() + BatchBuilder::growth_bytes(record);
        builder.append(record).unwrap();
        assert_eq!(builder.encoded_bytes(), bytes);
    }
    assert_eq!(builder.record_count() as usize, records.len());
    let batch = builder.build(codec).unwrap();
    assert!(builder.is_empty());
    batch
}

/// Copies the records of a verified batch into the generated types.
fn decoded(batch: &Verified<'_>) -> Vec<client::Record> {
    let records = batch.records().map(|record| client::Record {
        key: record.key.map(Bytes::copy_from_slice),
        value: record.value.map(Bytes::copy_from_slice),
        headers: record
            .headers()
            .map(|(name, value)| client::Header {
                name: name.into(),
                value: Bytes::copy_from_slice(value),
            })
            .collect(),
        event_time_ms: record.event_time_ms,
    });
    records.collect()
}

fn verified_records(payload: &[u8]) -> Vec<client::Record> {
    let mut scratch = Scratch::default();
    decoded(&verify(payload, None, &Limits::default(), &mut scratch).unwrap())
}

#[test]
fn a_plain_batch_has_the_golden_bytes() {
    let batch = build(&golden_records(), Codec::None);
    assert_eq!(batch, GOLDEN, "{}", batch.escape_ascii());
    assert_eq!(payload_crc(GOLDEN), GOLDEN_CRC);
}

#[test]
fn golden_bytes_are_read_as_the_golden_records() {
    let mut scratch = Scratch::default();
    let batch = verify(GOLDEN, Some(GOLDEN_CRC), &Limits::default(), &mut scratch).unwrap();
    assert_eq!(batch.summary().codec, Codec::None);
    assert_eq!(batch.summary().record_count, 3);
    assert_eq!(batch.summary().payload_bytes as usize, GOLDEN.len());
    assert_eq!(batch.summary().uncompressed_bytes as usize, GOLDEN.len());
    assert_eq!(batch.records().len(), 3);
    for (found, expected) in batch.records().zip(golden_records()) {
        assert_eq!(found.key, expected.key);
        assert_eq!(found.value, expected.value);
        assert_eq!(found.headers().collect::<Vec<_>>(), expected.headers);
        assert_eq!(found.event_time_ms, expected.event_time_ms);
    }
}

#[test]
fn golden_compressed_batches_are_read() {
    for &codec in CODECS {
        let payload = match codec {
            Codec::None => GOLDEN.to_vec(),
            Codec::Lz4 => codec_lies::compressed(codec_lies::batch(codec), GOLDEN_LZ4),
            Codec::Zstd => codec_lies::compressed(codec_lies::batch(codec), GOLDEN_ZSTD),
        };
        assert_eq!(verified_records(&payload), verified_records(GOLDEN), "{codec}");
    }
}

#[test]
fn a_record_is_found_by_its_ordinal() {
    let mut scratch = Scratch::default();
    let batch = verify(GOLDEN, None, &Limits::default(), &mut scratch).unwrap();
    assert_eq!(batch.record(0).unwrap().value, Some(b"v1".as_slice()));
    assert_eq!(batch.record(1).unwrap().value, None);
    assert_eq!(batch.record(2).unwrap().key, Some(b"".as_slice()));
    assert_eq!(batch.record(2).unwrap().encoded_bytes(), 4);
    assert!(batch.record(3).is_none());
    assert!(batch.record(u32::MAX).is_none());
}

#[test]
fn every_flipped_bit_gives_a_checksum_error() {
    let mut scratch = Scratch::default();
    for &codec in CODECS {
        let batch = repetitive(200, codec);
        let crc = payload_crc(&batch);
        for bit in 0..batch.len() * 8 {
            let mut damaged = batch.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = payload_crc(&damaged);
            let refused = verify(&damaged, Some(crc), &Limits::default(), &mut scratch);
            assert_eq!(refused.unwrap_err(), Error::BadChecksum { expected: crc, found });
        }
    }
}

#[test]
fn unknown_fields_are_skipped_at_every_level() {
    // Fields 100 of all four wire types, between and inside the known ones.
    let unknown = b"\xa0\x06\xff\x01\xa1\x06aaaaaaaa\xa2\x06\x02zz\xa5\x06bbbb".as_slice();
    let header = [unknown, b"\x0a\x01h", unknown].concat();
    let record = [unknown, b"\x0a\x01k\x1a", &[length(&header)], &header, unknown].concat();
    let batch = [unknown, b"\x12", &[length(&record)], &record, unknown].concat();
    let records = verified_records(&batch);
    assert_eq!(records, client::RecordBatch::decode(batch.as_slice()).unwrap().records);
    assert_eq!(records[0].key.as_deref(), Some(b"k".as_slice()));
    assert_eq!(records[0].headers[0].name, "h");
}

#[test]
fn lengths_that_are_longer_than_they_need_be_are_read() {
    let batch = b"\x92\x00\x87\x80\x80\x00\x0a\x83\x80\x00k12";
    assert_eq!(verified_records(batch)[0].key.as_deref(), Some(b"k12".as_slice()));
    assert_eq!(verified_records(batch), client::RecordBatch::decode(&batch[..]).unwrap().records);
}

#[test]
fn the_scratch_is_as_large_as_the_largest_batch_and_no_larger() {
    let mut scratch = Scratch::default();
    for (records, bytes) in [(10, 1 << 8), (1_000, 1 << 15), (10, 1 << 15)] {
        let batch = repetitive(records, Codec::Lz4);
        let found = verify(&batch, None, &Limits::default(), &mut scratch).unwrap();
        assert_eq!(found.summary().record_count, records);
        assert_eq!(scratch.bytes_held(), bytes);
    }
}

#[test]
fn a_batch_that_does_not_shrink_is_built_plain() {
    assert_eq!(build(&golden_records(), Codec::Lz4), GOLDEN);
}

#[test]
fn a_batch_that_shrinks_more_than_servers_accept_is_built_plain() {
    let value = vec![0; 100_000];
    let record = Record { value: Some(&value), ..Record::default() };
    for &codec in CODECS {
        let batch = build(&[record], codec);
        assert_eq!(skim(&batch, &Limits::default()).unwrap().codec, Codec::None);
    }
}

const TIGHT: Limits = Limits {
    batch_bytes_max: 100,
    uncompressed_bytes_max: 200,
    compression_ratio_max: 100,
    records_max: 20,
    record_bytes_max: 50,
    headers_max: 1,
    header_name_bytes_max: 3,
};

fn record_of(value: &[u8]) -> Record<'_> {
    Record { value: Some(value), ..Record::default() }
}

#[test]
fn the_builder_refuses_a_record_that_the_skimmer_would_refuse() {
    let mut builder = BatchBuilder::new(TIGHT);
    let mut refusal = |headers, value| {
        let record = Record { headers, ..record_of(value) };
        builder.append(&record).unwrap_err()
    };
    let refused = |measure, found, max| Error::RecordTooLarge { ordinal: 0, measure, found, max };
    assert_eq!(refusal(&[], &[7; 49]), refused(Measure::Bytes, 51, 50));
    let two = &[("", b"".as_slice()), ("", b"")];
    assert_eq!(refusal(two, b""), refused(Measure::Headers, 2, 1));
    let four = &[("four", b"".as_slice())];
    assert_eq!(refusal(four, b""), refused(Measure::HeaderNameBytes, 4, 3));
    assert!(builder.is_empty());
}

#[test]
fn the_builder_refuses_a_batch_that_the_skimmer_would_refuse() {
    let too_large = |measure, found, max| Error::BatchTooLarge { measure, found, max };
    let mut builder = BatchBuilder::new(TIGHT);
    assert_eq!(builder.build(Codec::None).unwrap_err(), Error::Empty);
    for _ in 0..3 {
        builder.append(&record_of(&[7; 48])).unwrap();
    }
    let error = builder.append(&record_of(&[7; 48])).unwrap_err();
    assert_eq!(error, too_large(Measure::Bytes, 208, 200));
    let error = builder.build(Codec::None).unwrap_err();
    assert_eq!(error, too_large(Measure::Bytes, 156, 100));
    let batch = builder.build(Codec::Lz4).unwrap();
    assert_eq!(skim(&batch, &TIGHT).unwrap().record_count, 3);

    for _ in 0..20 {
        builder.append(&Record::default()).unwrap();
    }
    let error = builder.append(&Record::default()).unwrap_err();
    assert_eq!(error, too_large(Measure::Records, 21, 20));
    builder.clear();
    assert_eq!((builder.record_count(), builder.encoded_bytes()), (0, 0));
}

/// Builds a batch of small records that compresses well, but not too well.
fn repetitive(records: u32, codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    for ordinal in 0..records {
        let value = format!("a value that recurs {}", ordinal % 97);
        let record = Record { value: Some(value.as_bytes()), ..Record::default() };
        builder.append(&record).unwrap();
    }
    builder.build(codec).unwrap()
}

fn length(bytes: &[u8]) -> u8 {
    u8::try_from(bytes.len()).unwrap()
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    let short = prop::collection::vec(any::<u8>(), 0..40);
    let long = (any::<u8>(), 100..20_000_usize).prop_map(|(byte, count)| vec![byte; count]);
    prop_oneof![9 => short, 1 => long].prop_map(Bytes::from)
}

prop_compose! {
    fn any_record()(
        key in prop::option::of(any_bytes()),
        value in prop::option::of(any_bytes()),
        headers in prop::collection::vec(("\\PC{0,20}", any_bytes()), 0..4),
        event_time_ms in prop::option::of(any::<i64>()),
    ) -> client::Record {
        let header = |(name, value)| client::Header { name, value };
        let headers = headers.into_iter().map(header).collect();
        client::Record { key, value, headers, event_time_ms }
    }
}

fn any_records() -> impl Strategy<Value = Vec<client::Record>> {
    prop::collection::vec(any_record(), 1..20)
}

fn build_from(records: &[client::Record], codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    for record in records {
        let headers: Vec<_> =
            record.headers.iter().map(|header| (header.name.as_str(), &header.value[..])).collect();
        let record = Record {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
            event_time_ms: record.event_time_ms,
        };
        builder.append(&record).unwrap();
    }
    builder.build(codec).unwrap()
}

proptest! {
    #[test]
    fn the_builder_encodes_as_prost_does(records in any_records()) {
        let built = build_from(&records, Codec::None);
        let batch = client::RecordBatch { records, ..Default::default() };
        prop_assert_eq!(built, batch.encode_to_vec());
    }

    #[test]
    fn what_was_built_is_read_back(
        records in any_records(),
        codec in prop::sample::select(CODECS),
    ) {
        let payload = build_from(&records, codec);
        let mut scratch = Scratch::default();
        let limits = Limits::default();
        let batch = verify(&payload, Some(payload_crc(&payload)), &limits, &mut scratch).unwrap();
        prop_assert_eq!(batch.summary(), skim(&payload, &limits).unwrap());
        prop_assert_eq!(batch.summary().record_count as usize, records.len());
        for (ordinal, expected) in (0..).zip(&records) {
            let found = batch.record(ordinal).unwrap();
            prop_assert_eq!(found.value, expected.value.as_deref());
        }
        prop_assert_eq!(decoded(&batch), records);
    }

    /// Whatever is accepted means the same to prost.
    #[test]
    fn a_damaged_batch_is_refused_or_read_as_prost_reads_it(
        records in any_records(),
        codec in prop::sample::select(CODECS),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut payload = build_from(&records, codec).to_vec();
        for (at, byte) in damage {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        accept_only_what_prost_accepts(&payload);
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_read_as_prost_reads_them(
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        accept_only_what_prost_accepts(&payload);
    }
}

fn accept_only_what_prost_accepts(payload: &[u8]) {
    let mut scratch = Scratch::default();
    let Ok(batch) = verify(payload, None, &Limits::default(), &mut scratch) else {
        return;
    };
    let prost = client::RecordBatch::decode(payload).unwrap();
    if batch.summary().codec == Codec::None {
        assert_eq!(prost.records, decoded(&batch));
    } else {
        assert_eq!(prost.record_count, batch.summary().record_count);
    }
}
