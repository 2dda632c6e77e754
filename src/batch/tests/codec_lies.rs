//! Every way in which a compressed batch can be wrong, with the exact refusal.

use bytes::Bytes;
use prost::Message;

use super::lies::{corrupt, refused, refused_by};
use super::{CODECS, GOLDEN};
use crate::batch::{Codec, Error, Fault, Limits, Measure, Scratch, verify};
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
    client::RecordBatch { codec, ..Default::default() }
}

/// Compresses `plain` as the body of `claim`.
pub(super) fn lz4(claim: client::RecordBatch, plain: &[u8]) -> Vec<u8> {
    let codec = client::Codec::Lz4.into();
    compressed(client::RecordBatch { codec, ..claim }, &frame(Codec::Lz4, plain))
}

fn frame(codec: Codec, plain: &[u8]) -> Vec<u8> {
    crate::batch::compress::compress(codec, plain).unwrap()
}

fn compressions() -> impl Iterator<Item = Codec> {
    CODECS.iter().copied().filter(|codec| *codec != Codec::None)
}

#[test]
fn the_limits_hold_inside_a_compressed_batch() {
    let limits = Limits { record_bytes_max: 29, ..Limits::default() };
    let measure = Measure::Bytes;
    let error = Error::RecordTooLarge { ordinal: 0, measure, found: 30, max: 29 };
    assert_eq!(refused_by(&lz4(client::RecordBatch::default(), GOLDEN), &limits), error);
}

#[cfg(not(feature = "zstd"))]
#[test]
fn a_zstd_batch_is_refused_by_a_build_without_it() {
    let payload = compressed(batch(Codec::Zstd), b"any frame");
    assert_eq!(crate::batch::skim(&payload, &Limits::default()).unwrap().codec, Codec::Zstd);
    assert_eq!(refused(&payload), Error::UnsupportedCodec { codec: 2 });
}

#[test]
fn a_batch_of_both_forms_is_refused() {
    let both = client::RecordBatch { records: vec![Default::default()], ..Default::default() };
    assert_eq!(refused(&lz4(both, GOLDEN)), corrupt(8, Fault::BothForms));
}

#[test]
fn a_compressed_form_without_its_parts_is_refused() {
    assert_eq!(refused(b"\x08\x01\x18\x03\x20\x28"), corrupt(0, Fault::NoCompressed));
    assert_eq!(refused(b"\x12\x00\x2a\x01x"), corrupt(2, Fault::NoCodec));
    assert_eq!(refused(b"\x12\x00\x18\x01"), corrupt(0, Fault::NoCodec));
    assert_eq!(refused(b"\x08\x01\x20\x28\x2a\x01x"), Error::Empty);
}

#[test]
fn a_wrong_record_count_is_refused() {
    for declared in [2, 4] {
        let claim = client::RecordBatch { record_count: declared, ..Default::default() };
        let fault = Fault::RecordCount { declared, found: 3 };
        assert_eq!(refused(&lz4(claim, GOLDEN)), corrupt(6, fault));
    }
}

#[test]
fn a_wrong_decompressed_size_is_refused() {
    for codec in compressions() {
        let claim = |uncompressed_bytes| {
            let claim = client::RecordBatch { uncompressed_bytes, ..batch(codec) };
            refused(&compressed(claim, &frame(codec, GOLDEN)))
        };
        assert_eq!(claim(39), corrupt(6, Fault::UncompressedLong { declared: 39 }), "{codec}");
        let fault = Fault::UncompressedShort { declared: 41, found: 40 };
        assert_eq!(claim(41), corrupt(6, fault), "{codec}");
    }
}

#[test]
fn a_bomb_is_refused_before_it_is_decompressed() {
    let bomb = vec![0; 16 << 20];
    let mut scratch = Scratch::default();
    for codec in compressions() {
        let frame = frame(codec, &bomb);
        let claim = client::RecordBatch { uncompressed_bytes: 16 << 20, ..batch(codec) };
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
        let claim = client::RecordBatch { uncompressed_bytes: 1_000, ..batch(codec) };
        let mut scratch = Scratch::default();
        let payload = compressed(claim, &frame);
        let refused = verify(&payload, None, &Limits::default(), &mut scratch).unwrap_err();
        assert_eq!(refused, corrupt(7, Fault::UncompressedLong { declared: 1_000 }), "{codec}");
        assert_eq!(scratch.bytes_held(), 1_024);
    }
}

#[test]
fn a_declared_size_above_the_cap_is_refused() {
    let frame = vec![0; 1 << 20];
    let claim = client::RecordBatch { uncompressed_bytes: u32::MAX, ..batch(Codec::Lz4) };
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
    let outer = client::RecordBatch { uncompressed_bytes, ..Default::default() };
    assert_eq!(refused(&lz4(outer, &inner)), corrupt(6, Fault::NestedCompression));
}

#[test]
fn a_codec_inside_a_compressed_batch_is_refused() {
    let inner = [b"\x08\x01", GOLDEN].concat();
    let uncompressed_bytes = u32::try_from(inner.len()).unwrap();
    let outer = client::RecordBatch { uncompressed_bytes, ..Default::default() };
    let error = corrupt(0, Fault::NestedCompression);
    assert_eq!(refused(&lz4(outer, &inner)), error);
}

#[test]
fn bytes_after_the_frame_are_refused() {
    for codec in compressions() {
        let one = frame(codec, GOLDEN);
        for tail in [b"x".as_slice(), &one] {
            let payload = compressed(batch(codec), &[&one, tail].concat());
            assert_eq!(refused(&payload), corrupt(6, Fault::TrailingBytes), "{codec}");
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
        let head = [0x28, 0xB5, 0x2F, 0xFD, 0x00, window, size[0], size[1], size[2]];
        [&head[..], GOLDEN].concat()
    };
    let fault = Fault::Window { window_bytes: 16 << 20, max: 8 << 20 };
    assert_eq!(refused(&compressed(batch(Codec::Zstd), &frame(14 << 3))), corrupt(6, fault));
    let accepted = compressed(batch(Codec::Zstd), &frame(13 << 3));
    assert_eq!(super::verified_records(&accepted), super::verified_records(GOLDEN));
}
