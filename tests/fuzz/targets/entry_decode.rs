//! Takes the input for a segment's seed and an entry header. Whatever decodes must be encoded to
//! the same bytes again; with its checksum made right, nearly everything decodes.

use quipu::storage::{EntryHeader, HEADER_BYTES, HeaderError, PAYLOAD_BYTES_MAX};

/// Bytes of a header that the format reserves.
const RESERVED: std::ops::Range<usize> = 74..76;

pub(crate) fn run(input: &[u8]) {
    let Some((seed, rest)) = input.split_first_chunk::<4>() else { return };
    let Some(bytes) = rest.first_chunk::<HEADER_BYTES>() else { return };
    let seed = u32::from_le_bytes(*seed);
    match EntryHeader::decode(bytes, seed) {
        Err(HeaderError::Checksum { found, expected }) => {
            assert_ne!(found, expected);
            let mut bytes = *bytes;
            bytes[..4].copy_from_slice(&found.to_le_bytes());
            check(&bytes, seed);
        }
        _ => check(bytes, seed),
    }
}

/// Checks a header whose checksum is right.
fn check(bytes: &[u8; HEADER_BYTES], seed: u32) {
    let header = match EntryHeader::decode(bytes, seed) {
        Ok(header) => header,
        Err(HeaderError::Field(_)) => return,
        Err(HeaderError::Kind { found }) => return assert_eq!(found, bytes[44]),
        Err(HeaderError::Length { found }) => return assert!(found > PAYLOAD_BYTES_MAX),
        Err(error) => panic!("the checksum is right: {error}"),
    };
    let encoded = header.encode(seed);
    assert_eq!(EntryHeader::decode(&encoded, seed), Ok(header));
    if bytes[RESERVED] == [0; 2] {
        assert_eq!(encoded, *bytes);
    }
    assert!(EntryHeader::decode(bytes, !seed).is_err(), "another segment's header");
    let frame = header.frame_bytes();
    assert!(frame.is_multiple_of(8) && frame >= (HEADER_BYTES as u64));
    assert_ne!(header.chain_after(1), header.chain_after(2));
}
