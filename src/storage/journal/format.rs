//! Bytes of the meta journal, and what two copies of it say together. Pure.
//!
//! ```text
//! file   0 [u8; 8] "quipujrn"   8 u32 version     12 u32 CRC-32 of bytes 0..12 and 16..56
//!       16 [u8; 16] salt       32 u64 generation  40 u64 first sequence  48 u64 snapshot end
//! frame  0 u32 CRC-32 of bytes 4.., started from the file's seed          4 u32 payload length
//!        8 u64 sequence        16 u64 synced sequence
//!       24 u8 kind             25 u8 operation    26..32 reserved, 0
//!       32 [u8; 16] log id     48 payload, then zeros up to a multiple of 8
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use super::super::entry::{crc_from, u32_at, u64_at};
use crate::types::LogId;

const MAGIC: &[u8; 8] = b"quipujrn";
/// Version of the journal format that this program writes.
pub(super) const VERSION: u32 = 1;
/// Length of a file's head; frames follow.
pub(super) const HEAD_BYTES: usize = 64;
const FRAME_HEAD_BYTES: usize = 48;
const HEAD_CHECKED_BYTES: usize = 56;
const ALIGNMENT: usize = 8;
/// Longest value of a fact.
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// What a fact is about. The value's meaning belongs to whoever records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum FactKind {
    /// Term, vote and commit of a Raft group.
    HardState = 1,
    /// Its replica set, with the index that set it.
    Membership = 2,
    /// Where a log starts.
    LogStart = 3,
    /// How far a log is known to be on disk.
    Watermark = 4,
    /// How a log ended when it was closed in order.
    Closed = 5,
    /// Which boot of the machine last opened the directory.
    Opened = 6,
    /// The directory was closed in order; absent while it is open.
    CleanShutdown = 7,
    /// Who the node is: cluster, node, incarnation.
    Identity = 8,
}

impl FactKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::HardState,
            2 => Self::Membership,
            3 => Self::LogStart,
            4 => Self::Watermark,
            5 => Self::Closed,
            6 => Self::Opened,
            7 => Self::CleanShutdown,
            8 => Self::Identity,
            _ => return None,
        })
    }
}

/// One change of one fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The log it is about, or [`LogId::NIL`].
    pub log: LogId,
    /// Which fact.
    pub kind: FactKind,
    /// Its new value; `None` forgets it.
    pub value: Option<Bytes>,
}

/// Head of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) salt: [u8; 16],
    pub(super) generation: u64,
    /// Sequence of the file's first frame.
    pub(super) first_sequence: u64,
    /// Sequence of the last frame that was durable before the file got its name.
    pub(super) snapshot_end: u64,
}

impl Head {
    pub(super) fn seed(&self) -> u32 {
        crc_from(0, &self.salt)
    }

    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.salt);
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.snapshot_end.to_le_bytes());
        let crc = head_checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes a head. `Err` holds the version of a head that is intact but of a later format;
    /// `Ok(None)` is damage.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, u32> {
        let intact = bytes.len() >= HEAD_BYTES
            && &bytes[..8] == MAGIC
            && u32_at(bytes, 12) == head_checksum(bytes);
        if !intact {
            return Ok(None);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(version);
        }
        Ok(Some(Self {
            salt: bytes[16..32].try_into().expect("sixteen bytes make a salt"),
            generation: u64_at(bytes, 32),
            first_sequence: u64_at(bytes, 40),
            snapshot_end: u64_at(bytes, 48),
        }))
    }
}

fn head_checksum(bytes: &[u8]) -> u32 {
    crc_from(crc_from(0, &bytes[..12]), &bytes[16..HEAD_CHECKED_BYTES])
}

/// Appends the frame of one change to `out`.
pub(super) fn encode_frame(
    out: &mut Vec<u8>,
    seed: u32,
    sequence: u64,
    synced_sequence: u64,
    change: &Change,
) {
    let value = change.value.as_deref().unwrap_or_default();
    assert!(value.len() <= VALUE_BYTES_MAX, "a fact of {} bytes is too long", value.len());
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&synced_sequence.to_le_bytes());
    out.extend_from_slice(&[change.kind as u8, u8::from(change.value.is_some())]);
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(change.log.0.as_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    let crc = crc_from(seed, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    sequence: u64,
    synced_sequence: u64,
    change: Change,
}

/// Decodes the frame at the start of `bytes`, with its length; `None` if there is no intact one.
fn decode_frame(bytes: &[u8], seed: u32) -> Option<(Frame, usize)> {
    let len = u32_at(bytes.get(..FRAME_HEAD_BYTES)?, 4) as usize;
    if len > VALUE_BYTES_MAX {
        return None;
    }
    let total = (FRAME_HEAD_BYTES + len).next_multiple_of(ALIGNMENT);
    let bytes = bytes.get(..total)?;
    if u32_at(bytes, 0) != crc_from(seed, &bytes[4..]) {
        return None;
    }
    let value = &bytes[FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + len];
    let id: [u8; 16] = bytes[32..48].try_into().expect("sixteen bytes make an id");
    let change = Change {
        log: LogId(Uuid::from_bytes(id)),
        kind: FactKind::from_byte(bytes[24])?,
        value: (bytes[25] == 1).then(|| Bytes::copy_from_slice(value)),
    };
    let frame = Frame { sequence: u64_at(bytes, 8), synced_sequence: u64_at(bytes, 16), change };
    Some((frame, total))
}

/// What the copies of a journal hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) facts: BTreeMap<(LogId, FactKind), Bytes>,
    /// Sequence of the last change taken over.
    pub(super) sequence: u64,
    /// Highest sequence that either copy says is durable.
    pub(super) durable: u64,
    /// False if the copies differ or something follows the last change.
    pub(super) is_clean: bool,
}

/// Merges the copies of one journal generation.
///
/// A change that either copy holds counts. The first change that neither holds ends the journal:
/// it was torn off by a crash if nothing says that it was durable, and is lost otherwise.
///
/// # Errors
/// The sequence of a change that was durable and is in neither copy.
pub(super) fn merge(copies: &[(Head, &[u8])]) -> Result<Recovered, u64> {
    let scans: Vec<_> = copies.iter().map(|(head, bytes)| scan(*head, bytes)).collect();
    let first = copies.iter().map(|(head, _)| head.first_sequence).max().unwrap_or(1);
    let head_end = copies.iter().map(|(head, _)| head.snapshot_end).max().unwrap_or(0);
    let frames_end = scans.iter().flat_map(|scan| scan.values()).map(|f| f.synced_sequence).max();
    let durable = head_end.max(frames_end.unwrap_or(0));
    let mut facts = BTreeMap::new();
    let mut next = first;
    while let Some(frame) = scans.iter().find_map(|scan| scan.get(&next)) {
        let Change { log, kind, value } = frame.change.clone();
        match value {
            Some(value) => facts.insert((log, kind), value),
            None => facts.remove(&(log, kind)),
        };
        next += 1;
    }
    if next <= durable {
        return Err(next);
    }
    let whole = |scan: &BTreeMap<u64, Frame>| scan.len() as u64 == next - first;
    assert!(next >= first, "merging went back from change {first} to {next}");
    let is_clean = copies.len() == 2 && scans.iter().all(whole);
    Ok(Recovered { facts, sequence: next - 1, durable, is_clean })
}

/// Finds the first change up to `durable` that one copy does not hold in its place: the position
/// and the change's sequence.
pub(super) fn first_fault(head: Head, bytes: &[u8], durable: u64) -> Option<(u64, u64)> {
    let (mut at, mut next) = (HEAD_BYTES, head.first_sequence);
    while next <= durable {
        match bytes.get(at..).and_then(|rest| decode_frame(rest, head.seed())) {
            Some((frame, len)) if frame.sequence == next => {
                at += len;
                next += 1;
            }
            _ => return Some((at as u64, next)),
        }
    }
    None
}

/// Finds every intact frame of a file, also behind damage.
fn scan(head: Head, bytes: &[u8]) -> BTreeMap<u64, Frame> {
    let seed = head.seed();
    let mut frames = BTreeMap::new();
    let mut at = HEAD_BYTES;
    while at + FRAME_HEAD_BYTES <= bytes.len() {
        match decode_frame(&bytes[at..], seed) {
            Some((frame, len)) => {
                // What stands further behind is older: the remains of a write that failed.
                frames.entry(frame.sequence).or_insert(frame);
                at += len;
            }
            None => at += ALIGNMENT,
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { salt: [5; 16], generation: 3, first_sequence: 10, snapshot_end: 11 }
    }

    fn change(n: u64) -> Change {
        let value = Some(Bytes::from(vec![n as u8; n as usize]));
        Change { log: LogId(Uuid::from_u128(u128::from(n))), kind: FactKind::HardState, value }
    }

    /// A journal of changes 10 to 14: the first two a snapshot, each later one synced before the
    /// next was written.
    fn journal() -> Vec<u8> {
        let mut bytes = head().encode().to_vec();
        for n in 10..15 {
            encode_frame(&mut bytes, head().seed(), n, (n - 1).max(11), &change(n));
        }
        bytes
    }

    #[test]
    fn two_equal_copies_are_clean() {
        let bytes = journal();
        let merged = merge(&[(head(), &bytes), (head(), &bytes)]).unwrap();
        assert!(merged.is_clean);
        assert_eq!(merged.sequence, 14);
        assert_eq!(merged.facts.len(), 5);
    }

    #[test]
    fn any_flipped_bit_in_one_copy_is_healed_by_the_other() {
        let good = journal();
        let expected = merge(&[(head(), &good), (head(), &good)]).unwrap().facts;
        for bit in HEAD_BYTES * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let merged = merge(&[(head(), &bad), (head(), &good)]).unwrap();
            assert_eq!(merged.facts, expected, "bit {bit}");
            assert!(!merged.is_clean, "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_head_is_noticed() {
        let bytes = head().encode();
        assert_eq!(Head::decode(&bytes), Ok(Some(head())));
        for bit in 0..HEAD_CHECKED_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&bad), Ok(None), "bit {bit}");
        }
    }

    #[test]
    fn the_same_durable_change_lost_in_both_copies_is_amnesia() {
        let mut bad = journal();
        let second = HEAD_BYTES + (FRAME_HEAD_BYTES + 10).next_multiple_of(ALIGNMENT);
        bad[second + 20] ^= 1;
        assert_eq!(merge(&[(head(), &bad), (head(), &bad)]), Err(11));
    }

    #[test]
    fn a_torn_last_change_was_never_promised_and_is_dropped() {
        let good = journal();
        let torn = &good[..good.len() - 8];
        let merged = merge(&[(head(), torn), (head(), torn)]).unwrap();
        assert_eq!(merged.sequence, 13);
        let one_has_it = merge(&[(head(), torn), (head(), &good)]).unwrap();
        assert_eq!(one_has_it.sequence, 14, "either copy is enough");
    }

    #[test]
    fn a_snapshot_cut_short_is_amnesia() {
        let bytes = &journal()[..HEAD_BYTES];
        assert_eq!(merge(&[(head(), bytes)]), Err(10));
    }
}
