//! Every way in which a batch can be wrong, with the exact refusal.

use bytes::Bytes;
use prost::Message;

use super::GOLDEN;
use crate::batch::{Codec, Error, Fault, Limits, Measure, Scratch, skim, verify};
use crate::proto::client;

/// Completes and encodes a compressed batch around a frame of [`GOLDEN`]; what is set stays.
pub(super) fn compressed(mut batch: client::RecordBatch, frame: &[u8]) -> Vec<u8> {
    if batch.record_count == 0 {
        batch.record_count = 3;
    }
    if batch.uncompressed_bytes == 0 {
        batch.uncompressed_bytes = u32::try_from(GOLDEN.len()).unwrap();
    }
    batch.compressed = Bytes::copy_from_slice(frame);
    batch.encode_to_vec()
}

/// Names the codec and nothing else.
pub(super) fn batch(codec: Codec) -> client::RecordBatch {
    let codec = i32::try_from(codec.number()).unwrap();
    client::RecordBatch {
        codec,
        ..Default::default()
    }
}

/// Compresses `plain` as the body of `claim`.
fn lz4(claim: client::RecordBatch, plain: &[u8]) -> Vec<u8> {
    let codec = client::Codec::Lz4.into();
    compressed(
        client::RecordBatch { codec, ..claim },
        &frame(Codec::Lz4, plain),
    )
}

fn compressions() -> impl Iterator<Item = Codec> {
    super::CODECS
        .iter()
        .copied()
        .filter(|codec| *codec != Codec::None)
}

fn frame(codec: Codec, plain: &[u8]) -> Vec<u8> {
    crate::batch::compress::compress(codec, plain).unwrap()
}

fn refused_by(payload: &[u8], limits: &Limits) -> Error {
    let mut scratch = Scratch::default();
    verify(payload, None, limits, &mut scratch)
        .map(|batch| batch.summary)
        .unwrap_err()
}

fn refused(payload: &[u8]) -> Error {
    refused_by(payload, &Limits::default())
}

fn corrupt(position: usize, fault: Fault) -> Error {
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
    assert_eq!(
        refused(b"\x12\x05\x1a\x03\x0a\x02k"),
        corrupt(5, Fault::PastEnd)
    );
}

#[test]
fn a_field_that_ends_in_its_parents_sibling_is_refused() {
    let batch = b"\x12\x03\x0a\x03k\x12\x00";
    assert_eq!(refused(batch), corrupt(3, Fault::PastEnd));
}

#[test]
fn huge_declared_lengths_are_refused() {
    for length in [
        &b"\xff\xff\xff\xff\x0f"[..],
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ] {
        assert_eq!(
            refused(&[b"\x12", length].concat()),
            corrupt(1, Fault::PastEnd)
        );
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
    assert_eq!(
        refused(b"\x12\x04\x1a\x02\x02\x00"),
        corrupt(4, Fault::FieldKey)
    );
}

#[test]
fn a_field_key_above_32_bits_is_refused() {
    assert_eq!(
        refused(b"\x82\x80\x80\x80\x10\x00"),
        corrupt(0, Fault::FieldKey)
    );
}

#[test]
fn groups_are_refused() {
    for (start, wire_type) in [(b"\xa3\x06", 3), (b"\xa4\x06", 4)] {
        let fault = Fault::WireType {
            field: 100,
            wire_type,
        };
        assert_eq!(
            refused(&[start, &b"\xa4\x06"[..]].concat()),
            corrupt(0, fault)
        );
    }
    // A group in the place of a record.
    assert_eq!(
        refused(b"\x13\x14"),
        corrupt(
            0,
            Fault::WireType {
                field: 2,
                wire_type: 3
            }
        )
    );
}

#[test]
fn wire_types_that_do_not_exist_are_refused() {
    assert_eq!(
        refused(b"\xa6\x06"),
        corrupt(
            0,
            Fault::WireType {
                field: 100,
                wire_type: 6
            }
        )
    );
    assert_eq!(
        refused(b"\xa7\x06"),
        corrupt(
            0,
            Fault::WireType {
                field: 100,
                wire_type: 7
            }
        )
    );
}

#[test]
fn a_known_field_of_another_type_is_refused_at_every_level() {
    assert_eq!(
        refused(b"\x10\x00"),
        corrupt(
            0,
            Fault::FieldType {
                field: 2,
                wire_type: 0
            }
        )
    );
    assert_eq!(
        refused(b"\x12\x02\x22\x00"),
        corrupt(
            2,
            Fault::FieldType {
                field: 4,
                wire_type: 2
            }
        )
    );
    assert_eq!(
        refused(b"\x12\x04\x1a\x02\x08\x00"),
        corrupt(
            4,
            Fault::FieldType {
                field: 1,
                wire_type: 0
            }
        )
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
    assert_eq!(
        refused(b"\x08\x00\x08\x00"),
        corrupt(2, Fault::Repeated { field: 1 })
    );
    assert_eq!(
        refused(b"\x12\x04\x0a\x00\x0a\x00"),
        corrupt(4, Fault::Repeated { field: 1 })
    );
    assert_eq!(
        refused(b"\x12\x04\x20\x01\x20\x01"),
        corrupt(4, Fault::Repeated { field: 4 })
    );
    assert_eq!(
        refused(b"\x12\x06\x1a\x04\x12\x00\x12\x00"),
        corrupt(6, Fault::Repeated { field: 2 })
    );
}

#[test]
fn a_header_name_that_is_not_utf8_is_refused() {
    assert_eq!(
        refused(b"\x12\x05\x1a\x03\x0a\x01\xff"),
        corrupt(4, Fault::HeaderName)
    );
}

#[test]
fn a_batch_over_its_limits_is_refused() {
    let limits = Limits {
        batch_bytes_max: 10,
        ..Limits::default()
    };
    let error = Error::BatchTooLarge {
        measure: Measure::Bytes,
        found: 40,
        max: 10,
    };
    assert_eq!(refused_by(GOLDEN, &limits), error);
    let limits = Limits {
        records_max: 2,
        ..Limits::default()
    };
    let error = Error::BatchTooLarge {
        measure: Measure::Records,
        found: 3,
        max: 2,
    };
    assert_eq!(refused_by(GOLDEN, &limits), error);
    let claim = client::RecordBatch {
        record_count: u32::MAX,
        ..Default::default()
    };
    let found = u64::from(u32::MAX);
    let error = Error::BatchTooLarge {
        measure: Measure::Records,
        found,
        max: 1 << 17,
    };
    assert_eq!(refused(&lz4(claim, GOLDEN)), error);
}

#[test]
fn a_record_over_its_limits_is_refused_with_its_ordinal() {
    let batch = [b"\x12\x00", GOLDEN].concat();
    let refusal = |measure, found, max| Error::RecordTooLarge {
        ordinal: 1,
        measure,
        found,
        max,
    };
    let limits = Limits {
        record_bytes_max: 29,
        ..Limits::default()
    };
    assert_eq!(refused_by(&batch, &limits), refusal(Measure::Bytes, 30, 29));
    let limits = Limits {
        headers_max: 1,
        ..Limits::default()
    };
    assert_eq!(refused_by(&batch, &limits), refusal(Measure::Headers, 2, 1));
    let limits = Limits {
        header_name_bytes_max: 0,
        ..Limits::default()
    };
    assert_eq!(
        refused_by(&batch, &limits),
        refusal(Measure::HeaderNameBytes, 1, 0)
    );
}

#[test]
fn the_limits_hold_inside_a_compressed_batch() {
    let limits = Limits {
        record_bytes_max: 29,
        ..Limits::default()
    };
    let measure = Measure::Bytes;
    let error = Error::RecordTooLarge {
        ordinal: 0,
        measure,
        found: 30,
        max: 29,
    };
    assert_eq!(
        refused_by(&lz4(client::RecordBatch::default(), GOLDEN), &limits),
        error
    );
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

#[cfg(not(feature = "zstd"))]
#[test]
fn a_zstd_batch_is_refused_by_a_build_without_it() {
    let payload = compressed(batch(Codec::Zstd), b"any frame");
    assert_eq!(
        skim(&payload, &Limits::default()).unwrap().codec,
        Codec::Zstd
    );
    assert_eq!(refused(&payload), Error::UnsupportedCodec { codec: 2 });
}

#[test]
fn a_batch_of_both_forms_is_refused() {
    let both = client::RecordBatch {
        records: vec![Default::default()],
        ..Default::default()
    };
    assert_eq!(refused(&lz4(both, GOLDEN)), corrupt(8, Fault::BothForms));
}

#[test]
fn a_compressed_form_without_its_parts_is_refused() {
    assert_eq!(
        refused(b"\x08\x01\x18\x03\x20\x28"),
        corrupt(0, Fault::NoCompressed)
    );
    assert_eq!(refused(b"\x12\x00\x2a\x01x"), corrupt(2, Fault::NoCodec));
    assert_eq!(refused(b"\x12\x00\x18\x01"), corrupt(0, Fault::NoCodec));
    assert_eq!(refused(b"\x08\x01\x20\x28\x2a\x01x"), Error::Empty);
}

#[test]
fn a_wrong_record_count_is_refused() {
    for declared in [2, 4] {
        let claim = client::RecordBatch {
            record_count: declared,
            ..Default::default()
        };
        let fault = Fault::RecordCount { declared, found: 3 };
        assert_eq!(refused(&lz4(claim, GOLDEN)), corrupt(6, fault));
    }
}

#[test]
fn a_wrong_decompressed_size_is_refused() {
    for codec in compressions() {
        let claim = |uncompressed_bytes| {
            let claim = client::RecordBatch {
                uncompressed_bytes,
                ..batch(codec)
            };
            refused(&compressed(claim, &frame(codec, GOLDEN)))
        };
        assert_eq!(
            claim(39),
            corrupt(6, Fault::UncompressedLong { declared: 39 }),
            "{codec}"
        );
        let fault = Fault::UncompressedShort {
            declared: 41,
            found: 40,
        };
        assert_eq!(claim(41), corrupt(6, fault), "{codec}");
    }
}

#[test]
fn a_bomb_is_refused_before_it_is_decompressed() {
    let bomb = vec![0; 16 << 20];
    let mut scratch = Scratch::default();
    for codec in compressions() {
        let frame = frame(codec, &bomb);
        let claim = client::RecordBatch {
            uncompressed_bytes: 16 << 20,
            ..batch(codec)
        };
        let payload = compressed(claim, &frame);
        let refused = verify(&payload, None, &Limits::default(), &mut scratch).unwrap_err();
        let error = Error::CompressionLimit {
            compressed_bytes: frame.len() as u64,
            uncompressed_bytes: 16 << 20,
            uncompressed_bytes_max: frame.len() as u64 * 100,
        };
        assert_eq!(refused, error, "{codec}");
        assert_eq!(scratch.bytes_held(), 0);
    }
}

#[test]
fn a_bomb_that_lies_about_its_size_gets_no_more_room_than_it_declares() {
    let bomb = vec![0; 16 << 20];
    for codec in compressions() {
        let frame = frame(codec, &bomb);
        let claim = client::RecordBatch {
            uncompressed_bytes: 1_000,
            ..batch(codec)
        };
        let mut scratch = Scratch::default();
        let payload = compressed(claim, &frame);
        let refused = verify(&payload, None, &Limits::default(), &mut scratch).unwrap_err();
        assert_eq!(
            refused,
            corrupt(7, Fault::UncompressedLong { declared: 1_000 }),
            "{codec}"
        );
        assert_eq!(scratch.bytes_held(), 1_024);
    }
}

#[test]
fn a_declared_size_above_the_cap_is_refused() {
    let frame = vec![0; 1 << 20];
    let claim = client::RecordBatch {
        uncompressed_bytes: u32::MAX,
        ..batch(Codec::Lz4)
    };
    let error = Error::CompressionLimit {
        compressed_bytes: 1 << 20,
        uncompressed_bytes: u32::MAX.into(),
        uncompressed_bytes_max: 16 << 20,
    };
    assert_eq!(refused(&compressed(claim, &frame)), error);
}

#[test]
fn a_batch_compressed_twice_is_refused() {
    let inner = lz4(client::RecordBatch::default(), GOLDEN);
    let uncompressed_bytes = u32::try_from(inner.len()).unwrap();
    let outer = client::RecordBatch {
        uncompressed_bytes,
        ..Default::default()
    };
    assert_eq!(
        refused(&lz4(outer, &inner)),
        corrupt(6, Fault::NestedCompression)
    );
}

#[test]
fn bytes_after_the_frame_are_refused() {
    for codec in compressions() {
        let one = frame(codec, GOLDEN);
        for tail in [b"x".as_slice(), &one] {
            let payload = compressed(batch(codec), &[&one, tail].concat());
            assert_eq!(
                refused(&payload),
                corrupt(6, Fault::TrailingBytes),
                "{codec}"
            );
        }
    }
}

#[test]
fn a_frame_cut_or_damaged_anywhere_is_refused_or_means_the_same() {
    for codec in compressions() {
        let whole = frame(codec, GOLDEN);
        for end in 1..whole.len() {
            let error = refused(&compressed(batch(codec), &whole[..end]));
            assert_eq!(error, corrupt(6, Fault::Frame), "{codec}, {end} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            super::accept_only_what_prost_accepts(&compressed(batch(codec), &damaged));
        }
    }
}

#[cfg(feature = "zstd")]
#[test]
fn a_zstd_frame_with_a_large_window_is_refused() {
    // A frame header without a content size and with a window of 16 MiB, then one stored block.
    let size = (u32::try_from(GOLDEN.len()).unwrap() << 3 | 1).to_le_bytes();
    let frame = |window| {
        let head = [
            0x28, 0xB5, 0x2F, 0xFD, 0x00, window, size[0], size[1], size[2],
        ];
        [&head[..], GOLDEN].concat()
    };
    let fault = Fault::Window {
        window_bytes: 16 << 20,
        max: 8 << 20,
    };
    assert_eq!(
        refused(&compressed(batch(Codec::Zstd), &frame(14 << 3))),
        corrupt(6, fault)
    );
    let accepted = compressed(batch(Codec::Zstd), &frame(13 << 3));
    assert_eq!(
        super::verified_records(&accepted),
        super::verified_records(GOLDEN)
    );
}
