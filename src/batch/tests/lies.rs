//! Every way in which the wire form can be wrong, with the exact refusal.

use super::{GOLDEN, codec_lies};
use crate::batch::{Error, Fault, Limits, Measure, Scratch, skim, verify};
use crate::proto::client;

pub(super) fn refused_by(payload: &[u8], limits: &Limits) -> Error {
    let mut scratch = Scratch::default();
    verify(payload, None, limits, &mut scratch).map(|batch| batch.summary()).unwrap_err()
}

pub(super) fn refused(payload: &[u8]) -> Error {
    refused_by(payload, &Limits::default())
}

pub(super) fn corrupt(position: usize, fault: Fault) -> Error {
    Error::Corrupt { position, fault }
}

#[test]
fn a_batch_without_records_is_refused() {
    assert_eq!(refused(b""), Error::Empty);
    assert_eq!(refused(b"\xa0\x06\x01"), Error::Empty);
}

#[test]
fn a_length_past_the_end_is_refused_at_every_level() {
    assert_eq!(refused(b"\x12\x05\x0a\x01k"), corrupt(1, Fault::PastEnd));
    assert_eq!(refused(b"\x12\x03\x0a\x02k"), corrupt(3, Fault::PastEnd));
    assert_eq!(refused(b"\x12\x05\x1a\x03\x0a\x02k"), corrupt(5, Fault::PastEnd));
}

#[test]
fn a_field_that_ends_in_its_parents_sibling_is_refused() {
    let batch = b"\x12\x03\x0a\x03k\x12\x00";
    assert_eq!(refused(batch), corrupt(3, Fault::PastEnd));
}

#[test]
fn huge_declared_lengths_are_refused() {
    for length in [&b"\xff\xff\xff\xff\x0f"[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"] {
        assert_eq!(refused(&[b"\x12", length].concat()), corrupt(1, Fault::PastEnd));
        let key = [b"\x12\x0b\x0a", length, b"0123456789"].concat();
        assert_eq!(refused(&key), corrupt(3, Fault::PastEnd));
    }
}

#[test]
fn a_batch_cut_anywhere_is_refused_or_has_fewer_records() {
    let starts = [32, 34];
    for end in 0..GOLDEN.len() {
        let found = skim(&GOLDEN[..end], &Limits::default());
        assert_eq!(found.is_ok(), starts.contains(&end), "{end}: {found:?}");
    }
}

#[test]
fn a_varint_that_never_ends_is_refused() {
    assert_eq!(refused(b"\x12\x80"), corrupt(1, Fault::PastEnd));
    assert_eq!(refused(&[0xFF; 20]), corrupt(0, Fault::Varint));
    assert_eq!(
        refused(b"\x12\x0c\x20\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"),
        corrupt(3, Fault::Varint)
    );
}

#[test]
fn a_varint_above_64_bits_is_refused() {
    let most = b"\x12\x0b\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(skim(most, &Limits::default()).unwrap().record_count, 1);
    let more = b"\x12\x0b\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02";
    assert_eq!(refused(more), corrupt(3, Fault::Varint));
}

#[test]
fn the_field_zero_is_refused() {
    assert_eq!(refused(b"\x00\x00"), corrupt(0, Fault::FieldKey));
    assert_eq!(refused(b"\x12\x02\x02\x00"), corrupt(2, Fault::FieldKey));
    assert_eq!(refused(b"\x12\x04\x1a\x02\x02\x00"), corrupt(4, Fault::FieldKey));
}

#[test]
fn a_field_key_above_32_bits_is_refused() {
    assert_eq!(refused(b"\x82\x80\x80\x80\x10\x00"), corrupt(0, Fault::FieldKey));
}

#[test]
fn groups_are_refused() {
    for (start, wire_type) in [(b"\xa3\x06", 3), (b"\xa4\x06", 4)] {
        let fault = Fault::WireType { field: 100, wire_type };
        assert_eq!(refused(&[start, &b"\xa4\x06"[..]].concat()), corrupt(0, fault));
    }
    // A group in the place of a record.
    assert_eq!(refused(b"\x13\x14"), corrupt(0, Fault::WireType { field: 2, wire_type: 3 }));
}

#[test]
fn wire_types_that_do_not_exist_are_refused() {
    assert_eq!(refused(b"\xa6\x06"), corrupt(0, Fault::WireType { field: 100, wire_type: 6 }));
    assert_eq!(refused(b"\xa7\x06"), corrupt(0, Fault::WireType { field: 100, wire_type: 7 }));
}

#[test]
fn a_known_field_of_another_type_is_refused_at_every_level() {
    assert_eq!(refused(b"\x10\x00"), corrupt(0, Fault::FieldType { field: 2, wire_type: 0 }));
    assert_eq!(
        refused(b"\x12\x02\x22\x00"),
        corrupt(2, Fault::FieldType { field: 4, wire_type: 2 })
    );
    assert_eq!(
        refused(b"\x12\x04\x1a\x02\x08\x00"),
        corrupt(4, Fault::FieldType { field: 1, wire_type: 0 })
    );
}

#[test]
fn an_unknown_field_past_the_end_is_refused() {
    assert_eq!(refused(b"\xa1\x06aaaaaaa"), corrupt(2, Fault::PastEnd));
    assert_eq!(refused(b"\xa5\x06aaa"), corrupt(2, Fault::PastEnd));
    assert_eq!(refused(b"\xa2\x06\x02a"), corrupt(2, Fault::PastEnd));
}

#[test]
fn a_repeated_field_is_refused_at_every_level() {
    assert_eq!(refused(b"\x08\x00\x08\x00"), corrupt(2, Fault::Repeated { field: 1 }));
    assert_eq!(refused(b"\x12\x04\x0a\x00\x0a\x00"), corrupt(4, Fault::Repeated { field: 1 }));
    assert_eq!(refused(b"\x12\x04\x20\x01\x20\x01"), corrupt(4, Fault::Repeated { field: 4 }));
    assert_eq!(
        refused(b"\x12\x06\x1a\x04\x12\x00\x12\x00"),
        corrupt(6, Fault::Repeated { field: 2 })
    );
}

#[test]
fn a_header_name_that_is_not_utf8_is_refused() {
    assert_eq!(refused(b"\x12\x05\x1a\x03\x0a\x01\xff"), corrupt(4, Fault::HeaderName));
}

#[test]
fn a_batch_over_its_limits_is_refused() {
    let limits = Limits { batch_bytes_max: 10, ..Limits::default() };
    let error = Error::BatchTooLarge { measure: Measure::Bytes, found: 40, max: 10 };
    assert_eq!(refused_by(GOLDEN, &limits), error);
    let limits = Limits { records_max: 2, ..Limits::default() };
    let error = Error::BatchTooLarge { measure: Measure::Records, found: 3, max: 2 };
    assert_eq!(refused_by(GOLDEN, &limits), error);
    let claim = client::RecordBatch { record_count: u32::MAX, ..Default::default() };
    let found = u64::from(u32::MAX);
    let error = Error::BatchTooLarge { measure: Measure::Records, found, max: 1 << 17 };
    assert_eq!(refused(&codec_lies::lz4(claim, GOLDEN)), error);
}

#[test]
fn a_record_over_its_limits_is_refused_with_its_ordinal() {
    let batch = [b"\x12\x00", GOLDEN].concat();
    let refusal = |measure, found, max| Error::RecordTooLarge { ordinal: 1, measure, found, max };
    let limits = Limits { record_bytes_max: 29, ..Limits::default() };
    assert_eq!(refused_by(&batch, &limits), refusal(Measure::Bytes, 30, 29));
    let limits = Limits { headers_max: 1, ..Limits::default() };
    assert_eq!(refused_by(&batch, &limits), refusal(Measure::Headers, 2, 1));
    let limits = Limits { header_name_bytes_max: 0, ..Limits::default() };
    assert_eq!(refused_by(&batch, &limits), refusal(Measure::HeaderNameBytes, 1, 0));
}

#[test]
fn an_unknown_codec_is_refused() {
    assert_eq!(refused(b"\x08\x03"), Error::UnsupportedCodec { codec: 3 });
    assert_eq!(
        refused(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        Error::UnsupportedCodec { codec: u64::MAX }
    );
    // A number that an implementation with 32-bit enums would take for none.
    assert_eq!(
        refused(b"\x08\x80\x80\x80\x80\x10\x12\x00"),
        Error::UnsupportedCodec { codec: 1 << 32 }
    );
}
