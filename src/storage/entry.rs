//! Entries: the unit that Raft orders and a segment stores.
//!
//! A frame on disk is a header of 80 bytes, the payload as it came, and up to seven zero bytes so
//! that the next frame starts at a multiple of eight. All numbers are little-endian.
//!
//! ```text
//!  0 u32 header CRC        CRC-32 of bytes 4..80, started from the segment's seed
//!  4 u32 chain             CRC-32 of bytes 8..56 and 64..80, started from the chain before
//!  8 u64 index            16 u64 term               24 u64 base offset
//! 32 u32 record count     36 u32 payload length     40 u32 payload CRC
//! 44 u8  kind             45 u8  format and codec   46 u16 flags
//! 48 i64 append time, ms  56 u64 synced index (local: not part of the chain)
//! 64 u64 producer id      72 u16 producer epoch     74 u16 reserved, 0     76 u32 base sequence
//! ```
//!
//! The chain runs over everything that replicas agree on, so it is equal on all of them at the same
//! index and stands for the whole history before it. The header CRC starts from a seed that only
//! this segment has: since two CRCs of equally long inputs differ whenever their start values do, a
//! frame of a file's former life never passes for one of this.

use bytes::Bytes;

use super::header::Tip;

/// Length of an entry's header on disk.
pub const HEADER_BYTES: usize = 80;
/// Frames start at multiples of this.
pub(super) const ALIGNMENT: u64 = 8;
/// Longest payload the format takes. Limits for clients are lower and set elsewhere.
pub const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Kind {
    /// A record batch.
    Records = 1,
    /// Nothing: a new leader's first entry.
    NoOp = 2,
    /// A change of the replica set.
    Membership = 3,
    /// A command to the partition's state machine.
    Control = 4,
    /// A move of the log start that all replicas follow.
    LogStart = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Records,
            2 => Self::NoOp,
            3 => Self::Membership,
            4 => Self::Control,
            5 => Self::LogStart,
            _ => return None,
        })
    }
}

/// Everything about an entry but its payload.
///
/// * `base_offset` is the number of records in all entries before this one.
/// * `append_time_ms` never decreases from one entry to the next.
/// * `chain` and `synced_index` are set by [`super::Log::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct EntryHeader {
    /// Raft index.
    pub index: u64,
    /// Raft term.
    pub term: u64,
    /// Offset of the first record; of the next record to come when there is none here.
    pub base_offset: u64,
    /// Records in the payload. Only [`Kind::Records`] has any.
    pub record_count: u32,
    /// Payload length in bytes.
    pub payload_len: u32,
    /// CRC-32 of the payload, computed or verified where the payload entered the system.
    pub payload_crc: u32,
    /// What the payload is.
    pub kind: Kind,
    /// Which batch format and codec the payload has; opaque to storage.
    pub format: u8,
    /// Opaque to storage, replicated.
    pub flags: u16,
    /// When the leader appended the entry, in milliseconds since 1970.
    pub append_time_ms: i64,
    /// Producer that sent the batch, or 0.
    pub producer_id: u64,
    /// The producer's incarnation.
    pub producer_epoch: u16,
    /// Sequence number of the first record within the producer's stream.
    pub base_sequence: u32,
    /// Highest index known on this replica's disk when the entry was written.
    pub synced_index: u64,
    /// Digest of the log up to and including this entry.
    pub chain: u32,
}

impl EntryHeader {
    /// First offset after this entry's records, exclusive.
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.record_count)
    }

    /// Bytes the entry takes in a segment, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.payload_len)
    }

    /// The tip of a log that ends with this entry.
    pub fn tip(&self) -> Tip {
        Tip {
            index: self.index,
            term: self.term,
            end_offset: self.end_offset(),
            append_time_ms: self.append_time_ms,
            chain: self.chain,
        }
    }

    /// Computes the chain value of this entry from that of its predecessor.
    pub fn chain_after(&self, previous: u32) -> u32 {
        let bytes = self.encode_body();
        chain(previous, &bytes)
    }

    /// Encodes the header for a segment with `seed`; `chain` and `synced_index` as they stand.
    pub fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        assert!(self.index > 0, "indices count from 1");
        assert!(self.payload_len <= PAYLOAD_BYTES_MAX, "{} bytes are too many", self.payload_len);
        let mut bytes = self.encode_body();
        bytes[4..8].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc_from(seed, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Encodes everything from byte 8 on.
    fn encode_body(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(8, &self.index.to_le_bytes());
        put(16, &self.term.to_le_bytes());
        put(24, &self.base_offset.to_le_bytes());
        put(32, &self.record_count.to_le_bytes());
        put(36, &self.payload_len.to_le_bytes());
        put(40, &self.payload_crc.to_le_bytes());
        put(44, &[self.kind as u8, self.format]);
        put(46, &self.flags.to_le_bytes());
        put(48, &self.append_time_ms.to_le_bytes());
        put(56, &self.synced_index.to_le_bytes());
        put(64, &self.producer_id.to_le_bytes());
        put(72, &self.producer_epoch.to_le_bytes());
        put(76, &self.base_sequence.to_le_bytes());
        bytes
    }

    /// True if a few fields are in their ranges, so that a look at the CRC is worth while.
    pub(super) fn is_plausible(bytes: &[u8]) -> bool {
        Kind::from_byte(bytes[44]).is_some()
            && u32_at(bytes, 36) <= PAYLOAD_BYTES_MAX
            && bytes[74..76] == [0, 0]
    }

    /// Decodes a header and checks its CRC.
    ///
    /// # Errors
    /// Says which check failed; nothing of the header can then be believed.
    pub fn decode(bytes: &[u8; HEADER_BYTES], seed: u32) -> Result<Self, HeaderError> {
        let expected = u32_at(bytes, 0);
        let found = crc_from(seed, &bytes[4..]);
        if expected != found {
            return Err(HeaderError::Checksum { expected, found });
        }
        let header = Self {
            index: u64_at(bytes, 8),
            term: u64_at(bytes, 16),
            base_offset: u64_at(bytes, 24),
            record_count: u32_at(bytes, 32),
            payload_len: u32_at(bytes, 36),
            payload_crc: u32_at(bytes, 40),
            kind: Kind::from_byte(bytes[44]).ok_or(HeaderError::Kind { found: bytes[44] })?,
            format: bytes[45],
            flags: u16::from_le_bytes([bytes[46], bytes[47]]),
            append_time_ms: u64_at(bytes, 48).cast_signed(),
            synced_index: u64_at(bytes, 56),
            producer_id: u64_at(bytes, 64),
            producer_epoch: u16::from_le_bytes([bytes[72], bytes[73]]),
            base_sequence: u32_at(bytes, 76),
            chain: u32_at(bytes, 4),
        };
        if header.payload_len > PAYLOAD_BYTES_MAX {
            return Err(HeaderError::Length { found: header.payload_len });
        }
        header.check_numbers().map(|()| header)
    }

    /// Refuses numbers that nobody writes and that nobody could count on from.
    fn check_numbers(&self) -> Result<(), HeaderError> {
        let refuse = |field| Err(HeaderError::Field(field));
        if self.index == 0 || self.index == u64::MAX {
            return refuse("index");
        }
        if self.synced_index >= self.index {
            return refuse("synced index");
        }
        let end_offset = self.base_offset.checked_add(u64::from(self.record_count));
        end_offset.map_or_else(|| refuse("base offset"), |_| Ok(()))
    }
}

/// Why bytes are not an entry header of this segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The CRC does not match: torn, damaged, or of another file's life.
    #[error("entry header checksum is {found:#010x}, the header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The CRC matches but this program knows no such kind.
    #[error("entry kind {found} is unknown to this version")]
    Kind {
        /// The byte found.
        found: u8,
    },
    /// The CRC matches but the length exceeds the format's bound.
    #[error("payload length {found} exceeds the format's bound of {PAYLOAD_BYTES_MAX}")]
    Length {
        /// The length found.
        found: u32,
    },
    /// The CRC matches but a number is out of its range.
    #[error("entry header field {0} is out of range")]
    Field(&'static str),
}

/// One entry: header and payload, the payload shared and never copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Everything about it.
    pub header: EntryHeader,
    /// Its bytes, exactly as they were appended.
    pub payload: Bytes,
}

impl Entry {
    /// Makes an entry of a record batch whose CRC is known; the caller fills in what else it has.
    ///
    /// `producer_id`, `producer_epoch`, `base_sequence`, `format` and `flags` start as 0.
    ///
    /// # Panics
    /// If the payload is longer than four gigabytes.
    pub fn new(kind: Kind, index: u64, term: u64, payload: Bytes, payload_crc: u32) -> Self {
        let payload_len = u32::try_from(payload.len()).expect("a payload is below four gigabytes");
        let header = EntryHeader {
            index,
            term,
            base_offset: 0,
            record_count: 0,
            payload_len,
            payload_crc,
            kind,
            format: 0,
            flags: 0,
            append_time_ms: 0,
            producer_id: 0,
            producer_epoch: 0,
            base_sequence: 0,
            synced_index: 0,
            chain: 0,
        };
        Self { header, payload }
    }

    /// The same entry holding `record_count` records from `base_offset` on.
    pub fn with_records(mut self, base_offset: u64, record_count: u32) -> Self {
        self.header.base_offset = base_offset;
        self.header.record_count = record_count;
        self
    }

    /// True if the payload is what the header says.
    pub fn is_intact(&self) -> bool {
        self.payload.len() as u64 == u64::from(self.header.payload_len)
            && crc32fast::hash(&self.payload) == self.header.payload_crc
    }

    /// The same entry with an append time.
    pub fn at_time(mut self, append_time_ms: i64) -> Self {
        self.header.append_time_ms = append_time_ms;
        self
    }
}

/// Bytes that a payload takes in a segment: header, payload and padding.
pub fn frame_bytes(payload_len: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(payload_len)).next_multiple_of(ALIGNMENT)
}

/// CRC-32 of `bytes`, started from `seed`.
pub(super) fn crc_from(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

fn chain(previous: u32, header: &[u8; HEADER_BYTES]) -> u32 {
    // Both parts in one pass: a CRC of few bytes is mostly its start and its end.
    let mut covered = [0; 64];
    covered[..48].copy_from_slice(&header[8..56]);
    covered[48..].copy_from_slice(&header[64..]);
    crc_from(previous, &covered)
}

/// Reads a little-endian `u32` at a fixed place of a header.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes make a u32"))
}

/// Reads a little-endian `u64` at a fixed place of a header.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes make a u64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> EntryHeader {
        let mut entry =
            Entry::new(Kind::Records, 7, 3, Bytes::from_static(b"payload"), 0xDEAD_BEEF)
                .with_records(40, 2)
                .at_time(1_700_000_000_123);
        entry.header.format = 0x21;
        entry.header.flags = 0x8001;
        entry.header.producer_id = 99;
        entry.header.producer_epoch = 5;
        entry.header.base_sequence = 12;
        entry.header.synced_index = 6;
        entry.header.chain = entry.header.chain_after(0x1234_5678);
        entry.header
    }

    #[test]
    fn the_format_has_not_changed() {
        let golden = concat!(
            "0a7131da278098fb07000000000000000300000000000000280000000000000002000000",
            "07000000efbeadde012101807b68e5cf8b010000060000000000000063000000000000000500",
            "00000c000000"
        );
        let hex: String = sample().encode(0x0BAD_CAFE).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        let header = sample();
        assert_eq!(EntryHeader::decode(&header.encode(9), 9), Ok(header));
    }

    #[test]
    fn any_flipped_bit_is_a_checksum_error() {
        let bytes = sample().encode(1);
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let decoded = EntryHeader::decode(&flipped, 1);
            assert!(matches!(decoded, Err(HeaderError::Checksum { .. })), "bit {bit}: {decoded:?}");
        }
    }

    #[test]
    fn numbers_that_nobody_can_count_on_from_are_refused() {
        let of = |at: usize, number: u64| {
            let mut bytes = sample().encode(1);
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let crc = crc_from(1, &bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            EntryHeader::decode(&bytes, 1).map(|header| header.index)
        };
        assert_eq!(of(8, 0), Err(HeaderError::Field("index")));
        assert_eq!(of(8, u64::MAX), Err(HeaderError::Field("index")));
        assert_eq!(of(56, 7), Err(HeaderError::Field("synced index")));
        assert_eq!(of(24, u64::MAX - 1), Err(HeaderError::Field("base offset")));
        assert_eq!(of(24, u64::MAX - 2), Ok(7));
    }

    #[test]
    fn a_header_of_another_segment_never_passes() {
        let bytes = sample().encode(1);
        for seed in (0..1000).filter(|seed| *seed != 1) {
            assert!(EntryHeader::decode(&bytes, seed).is_err(), "seed {seed}");
        }
    }

    #[test]
    fn the_chain_covers_what_replicas_share_and_nothing_local() {
        let header = sample();
        let elsewhere = EntryHeader { synced_index: 1, chain: 0, ..header };
        assert_eq!(header.chain_after(5), elsewhere.chain_after(5));
        assert_ne!(header.chain_after(5), header.chain_after(6));
        let other = EntryHeader { payload_crc: 1, ..header };
        assert_ne!(header.chain_after(5), other.chain_after(5));
    }
}
