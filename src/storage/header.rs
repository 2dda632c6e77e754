//! The head of a segment file: who it belongs to, where it starts, and the state before it.
//!
//! The header stands in the file twice, at bytes 0 and 4096, so that one bad sector does not take
//! the segment's salt, and with it every checksum, away. A checkpoint of the partition's state
//! follows, then the entries.
//!
//! ```text
//!  0 [u8; 8] "quipuseg"      8 u32 version           12 u32 CRC-32 of bytes 0..12 and 16..128
//! 16 [u8; 16] log id        32 [u8; 16] salt          48 u64 generation
//! 56 u64 base index         64 u64 base offset        72 u64 previous term
//! 80 i64 previous time, ms  88 u64 previous base      96 u32 chain
//! 100 u32 checkpoint length 104 u32 checkpoint CRC   108 u8 origin   109 u8 flags
//! 112 u64 birth             120..128 reserved, 0
//! ```

use uuid::Uuid;

use super::entry::{ALIGNMENT, EntryHeader, crc_from, u32_at, u64_at};
use crate::types::LogId;

const MAGIC: &[u8; 8] = b"quipuseg";
/// Version of the segment format that this program writes.
pub(super) const VERSION: u32 = 1;
/// Length of one copy of the header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 128;
/// Where the two copies of the header stand.
pub(super) const COPY_POSITIONS: [u64; 2] = [0, 4096];
/// Where the checkpoint starts.
pub(super) const CHECKPOINT_POSITION: u64 = 4096 + 512;

/// How a segment came to be, which decides what it says about older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Origin {
    /// It continues the one before, which was full, or is the first of its log.
    Rolled = 1,
    /// It cuts the log at its base index: whatever older segments hold from there on is void.
    Truncated = 2,
    /// It starts the log anew at its base index: every older segment is void.
    Reset = 3,
}

/// The state of a log right before an entry: what that entry has to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Tip {
    /// Index of the last entry; 0 before the first one.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Next offset to be assigned.
    pub end_offset: u64,
    /// Its append time in milliseconds.
    pub append_time_ms: i64,
    /// Its chain value.
    pub chain: u32,
}

impl Tip {
    /// The tip of a log without entries.
    pub const EMPTY: Self =
        Self { index: 0, term: 0, end_offset: 0, append_time_ms: i64::MIN, chain: 0 };

    /// Checks that an entry may come next, its chain aside.
    ///
    /// # Errors
    /// The first field that breaks the order.
    pub fn check_continued_by(&self, next: &EntryHeader) -> Result<(), Discontinuity> {
        let check = |is_good: bool, field, expected, found| {
            if is_good { Ok(()) } else { Err(Discontinuity { field, expected, found }) }
        };
        let (time, next_time) = (self.append_time_ms, next.append_time_ms);
        check(next.index == self.index + 1, "index", self.index + 1, next.index)?;
        check(next.term >= self.term, "term", self.term, next.term)?;
        let (offset, next_offset) = (self.end_offset, next.base_offset);
        check(next_offset == offset, "base offset", offset, next_offset)?;
        let (expected, found) = (time.cast_unsigned(), next_time.cast_unsigned());
        check(next_time >= time, "append time", expected, found)
    }

    /// Checks that the chain of the entry that comes next is computed from this tip.
    ///
    /// # Errors
    /// Says what was expected.
    pub fn check_chain_to(&self, next: &EntryHeader) -> Result<(), String> {
        let (expected, found) = (next.chain_after(self.chain), next.chain);
        if expected == found {
            return Ok(());
        }
        Err(format!("chain of entry {} is {found:#010x}, expected {expected:#010x}", next.index))
    }
}

/// What keeps an entry from being the next one of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found} where {expected} continues the log")]
pub struct Discontinuity {
    /// Name of the field.
    pub field: &'static str,
    /// The least value, or the only one, that continues the log.
    pub expected: u64,
    /// What the entry has.
    pub found: u64,
}

/// Header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SegmentHeader {
    /// The log.
    pub log: LogId,
    /// Random bytes that make this file's checksums its own.
    #[serde(skip)]
    pub salt: [u8; 16],
    /// Grows with every segment the log creates; of two that disagree, the later one holds.
    pub generation: u64,
    /// The generation at which the log ended right before this segment. A segment that was repaired
    /// keeps it, and with it the place in history of the one it replaces.
    pub birth: u64,
    /// What the first entry continues. Its index is one below the segment's base index.
    pub previous: Tip,
    /// Base index of the segment before this one when it was created; 0 for none.
    pub previous_base_index: u64,
    /// Length of the checkpoint in bytes.
    pub checkpoint_len: u32,
    /// CRC-32 of the checkpoint.
    pub checkpoint_crc: u32,
    /// How it came to be.
    pub origin: Origin,
    /// A checkpoint of the state before the first entry stands in the file, maybe an empty one.
    pub has_checkpoint: bool,
    /// The file held another segment before: what follows the entries is its remains, not zeros.
    pub is_recycled: bool,
}

/// Why bytes are not a segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    /// The first bytes are not the magic.
    #[error("this is not a segment file")]
    Magic,
    /// Written by a later version.
    #[error("segment format version {found} is not known")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The CRC does not match.
    #[error("segment header checksum is {found:#010x}, the header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The CRC matches but a field is out of its range.
    #[error("segment header field {0} is out of range")]
    Field(&'static str),
}

impl SegmentHeader {
    /// True if the segment replaces a damaged one.
    pub fn is_repaired(&self) -> bool {
        self.generation > self.birth
    }

    /// Index of the first entry.
    pub fn base_index(&self) -> u64 {
        self.previous.index + 1
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> u64 {
        self.previous.end_offset
    }

    /// Start value of the entry header CRCs of this segment.
    pub fn seed(&self) -> u32 {
        crc_from(crc_from(0, self.log.0.as_bytes()), &self.salt)
    }

    /// Position of the first entry.
    pub fn entries_position(&self) -> u64 {
        (CHECKPOINT_POSITION + u64::from(self.checkpoint_len)).next_multiple_of(ALIGNMENT)
    }

    /// File name, `<base index>-<generation>.seg`.
    pub fn file_name(&self) -> String {
        format!("{:020}-{:08}.seg", self.base_index(), self.generation)
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        assert!(self.birth > 0, "generations count from 1");
        assert!(self.generation >= self.birth, "a repair comes after the birth {}", self.birth);
        assert!(
            self.previous_base_index < self.base_index(),
            "segment {} cannot follow segment {}",
            self.base_index(),
            self.previous_base_index
        );
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, self.log.0.as_bytes());
        put(32, &self.salt);
        put(48, &self.generation.to_le_bytes());
        put(56, &self.base_index().to_le_bytes());
        put(64, &self.previous.end_offset.to_le_bytes());
        put(72, &self.previous.term.to_le_bytes());
        put(80, &self.previous.append_time_ms.to_le_bytes());
        put(88, &self.previous_base_index.to_le_bytes());
        put(96, &self.previous.chain.to_le_bytes());
        put(100, &self.checkpoint_len.to_le_bytes());
        put(104, &self.checkpoint_crc.to_le_bytes());
        let flags = u8::from(self.has_checkpoint) | u8::from(self.is_recycled) << 1;
        put(108, &[self.origin as u8, flags]);
        put(112, &self.birth.to_le_bytes());
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes one copy of a header and checks it.
    ///
    /// # Errors
    /// Says which check failed.
    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, SegmentHeaderError> {
        if &bytes[..8] != MAGIC {
            return Err(SegmentHeaderError::Magic);
        }
        let (expected, found) = (u32_at(bytes, 12), checksum(bytes));
        if expected != found {
            return Err(SegmentHeaderError::Checksum { expected, found });
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(SegmentHeaderError::Version { found: version });
        }
        Self::decode_fields(bytes)
    }

    fn decode_fields(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, SegmentHeaderError> {
        let array = |at: usize| -> [u8; 16] {
            bytes[at..at + 16].try_into().expect("sixteen bytes make an id")
        };
        let origin = match bytes[108] {
            1 => Origin::Rolled,
            2 => Origin::Truncated,
            3 => Origin::Reset,
            _ => return Err(SegmentHeaderError::Field("origin")),
        };
        let base_index = u64_at(bytes, 56);
        Ok(Self {
            log: LogId(Uuid::from_bytes(array(16))),
            salt: array(32),
            generation: u64_at(bytes, 48),
            birth: u64_at(bytes, 112),
            previous: Tip {
                index: base_index.checked_sub(1).ok_or(SegmentHeaderError::Field("base index"))?,
                term: u64_at(bytes, 72),
                end_offset: u64_at(bytes, 64),
                append_time_ms: u64_at(bytes, 80).cast_signed(),
                chain: u32_at(bytes, 96),
            },
            previous_base_index: u64_at(bytes, 88),
            checkpoint_len: u32_at(bytes, 100),
            checkpoint_crc: u32_at(bytes, 104),
            origin,
            has_checkpoint: bytes[109] & 1 != 0,
            is_recycled: bytes[109] & 2 != 0,
        })
    }
}

/// CRC-32 of a header's bytes without the field that holds it.
fn checksum(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
    crc_from(crc_from(0, &bytes[..12]), &bytes[16..])
}

/// Reads base index and generation from a segment's file name.
///
/// Returns `None` for any other name.
pub(super) fn parse_file_name(name: &str) -> Option<(u64, u64)> {
    let (base, generation) = name.strip_suffix(".seg")?.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if base.len() != 20 || generation.len() < 8 || !digits(base) || !digits(generation) {
        return None;
    }
    Some((base.parse().ok()?, generation.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            log: LogId(Uuid::from_u128(7)),
            salt: [3; 16],
            generation: 12,
            birth: 11,
            previous: Tip { index: 41, term: 2, end_offset: 99, append_time_ms: -5, chain: 17 },
            previous_base_index: 30,
            checkpoint_len: 13,
            checkpoint_crc: 0xABCD,
            origin: Origin::Truncated,
            has_checkpoint: true,
            is_recycled: false,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        let header = sample();
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        assert_eq!(header.entries_position(), 4608 + 16);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let mut bytes = sample().encode();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(SegmentHeaderError::Version { found: 2 }));
    }

    #[test]
    fn file_names_are_read_strictly() {
        assert_eq!(parse_file_name(&sample().file_name()), Some((42, 12)));
        for name in ["42-12.seg", "00000000000000000042-00000012.idx", "x", "-.seg"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
