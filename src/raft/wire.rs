//! Frames: envelopes for one node, as bytes.
//!
//! ```text
//! frame      0 [u8; 4] "QPF1"       4 u32 CRC-32 of bytes 8 up to the head's length
//!            8 u32 length of the head   12 u32 count of envelopes   16 [u8; 16] cluster id
//!           32 u64 sending node    40 u64 receiving node    48 u64 length of what follows the head
//! envelope   0 [u8; 16] group      16 u64 from     24 u64 to      32 u64 term     40 u64 index
//!           48 u64 log term        56 u64 commit   64 u64 commit term, or reject hint
//!           72 u64 read            80 u8 kind      81 u8 flags (1 reject, 2 transfer, 4 read)
//!           82 u16 0               84 u32 count of entries   88 u32 length of the body
//!           92 u32 CRC-32 of the body, started from the group's id
//! ```
//!
//! The head is the frame's 56 bytes and the envelopes, each followed by the headers of its entries,
//! 80 bytes each as on disk, their checksums started from the group's id. Behind the head come the
//! payloads and bodies, in the same order, without padding: slices that nobody copies into a
//! message. All numbers are little-endian.
//!
//! A frame is checked whole before any of it is believed: cluster, nodes, the head's checksum, each
//! entry header's and each payload's. Nothing is allocated that the bytes at hand do not fill.

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use uuid::Uuid;

use super::envelope::{Envelope, MessageKind};
use super::planted::{Bug, planted};
use crate::storage::{Entry, EntryHeader, HEADER_BYTES};
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

const MAGIC: &[u8; 4] = b"QPF1";
const FRAME_BYTES: usize = 56;
const ENVELOPE_BYTES: usize = 96;

/// A payload that is less than this part of its frame is copied: whoever keeps it would keep the
/// whole frame in memory, and a quiet group keeps its last entries for long.
const SHARED_PARTS_MAX: usize = 16;

const REJECT: u8 = 1;
const TRANSFER: u8 = 2;
const READ: u8 = 4;

/// Who sends to whom in which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The cluster both are in.
    pub cluster: ClusterId,
    /// The sending node.
    pub from: NodeId,
    /// The receiving node.
    pub to: NodeId,
}

/// A frame on its way out: its head, then its payloads and bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Checksummed numbers.
    pub head: Bytes,
    /// What follows, borrowed from where it is.
    pub payloads: Vec<Bytes>,
    /// Who misses something if the frame is lost: an append or a snapshot.
    pub missed_by: Vec<(LogId, ReplicaId)>,
}

impl Frame {
    /// Encodes envelopes for one node. The payloads are shared, not copied.
    ///
    /// # Panics
    /// If there are more than four gigabytes of heads.
    pub fn encode(route: &Route, envelopes: &[Envelope]) -> Self {
        let entries: usize = envelopes.iter().map(|envelope| envelope.entries.len()).sum();
        let head_bytes = FRAME_BYTES + envelopes.len() * ENVELOPE_BYTES + entries * HEADER_BYTES;
        let mut head = BytesMut::with_capacity(head_bytes);
        let mut payloads = Vec::with_capacity(entries);
        head.resize(FRAME_BYTES, 0);
        for envelope in envelopes {
            encode_envelope(envelope, &mut head, &mut payloads);
        }
        assert_eq!(head.len(), head_bytes, "the head has the length it was given");
        let rest_bytes: u64 = payloads.iter().map(|payload| payload.len() as u64).sum();
        let head_len = u32::try_from(head_bytes).expect("a head is below four gigabytes");
        head[..4].copy_from_slice(MAGIC);
        head[8..12].copy_from_slice(&head_len.to_le_bytes());
        head[12..16].copy_from_slice(&(envelopes.len() as u32).to_le_bytes());
        head[16..32].copy_from_slice(route.cluster.0.as_bytes());
        head[32..40].copy_from_slice(&route.from.0.to_le_bytes());
        head[40..48].copy_from_slice(&route.to.0.to_le_bytes());
        head[48..56].copy_from_slice(&rest_bytes.to_le_bytes());
        let crc = crc32fast::hash(&head[8..]);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        let is_missed = |kind| matches!(kind, MessageKind::Append | MessageKind::Snapshot);
        let missed = envelopes.iter().filter(|envelope| is_missed(envelope.kind));
        let missed_by = missed.map(|envelope| (envelope.group, envelope.to)).collect();
        Self { head: head.freeze(), payloads, missed_by }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.head.len() + self.payloads.iter().map(Bytes::len).sum::<usize>()
    }

    /// The frame in one piece, copied.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.bytes());
        bytes.put_slice(&self.head);
        self.payloads.iter().for_each(|payload| bytes.put_slice(payload));
        bytes.freeze()
    }

    /// Decodes a frame that came by `route` and checks all of it. A payload that lies within one
    /// piece of the buffer is not copied.
    ///
    /// # Errors
    /// The first thing that is wrong; nothing of the frame is to be used.
    pub fn decode(route: &Route, mut bytes: impl Buf) -> Result<Vec<Envelope>, FrameError> {
        let frame_bytes = bytes.remaining();
        let head = take_head(route, &mut bytes)?;
        let count = u32_at(&head, 12) as usize;
        let mut decoder = Decoder { head: &head, at: FRAME_BYTES, frame_bytes, rest: bytes };
        let mut envelopes = Vec::with_capacity(count.min(head.len() / ENVELOPE_BYTES));
        for _ in 0..count {
            let envelope = decoder.envelope()?;
            let is_of_route = envelope.from.node() == route.from && envelope.to.node() == route.to;
            if !is_of_route {
                return Err(FrameError::Contradiction("replicas"));
            }
            envelope.check().map_err(FrameError::Contradiction)?;
            envelopes.push(envelope);
        }
        if decoder.at != head.len() || decoder.rest.has_remaining() {
            return Err(FrameError::Length);
        }
        Ok(envelopes)
    }
}

/// Takes the head off, whole and checked.
fn take_head(route: &Route, bytes: &mut impl Buf) -> Result<Bytes, FrameError> {
    let frame_bytes = bytes.remaining();
    let mut first = [0; FRAME_BYTES];
    bytes.try_copy_to_slice(&mut first).map_err(|_| FrameError::Magic)?;
    if &first[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let head_bytes = u32_at(&first, 8) as usize;
    let is_whole = head_bytes >= FRAME_BYTES
        && (head_bytes as u64).checked_add(u64_at(&first, 48)) == Some(frame_bytes as u64);
    if !is_whole {
        return Err(FrameError::Length);
    }
    let mut head = BytesMut::with_capacity(head_bytes);
    head.put_slice(&first);
    head.put(bytes.take(head_bytes - FRAME_BYTES));
    let (expected, found) = (u32_at(&head, 4), crc32fast::hash(&head[8..]));
    if expected != found {
        return Err(FrameError::Checksum);
    }
    if head[16..32] != *route.cluster.0.as_bytes() {
        return Err(FrameError::Cluster);
    }
    if u64_at(&head, 32) != route.from.0 || u64_at(&head, 40) != route.to.0 {
        return Err(FrameError::Node);
    }
    Ok(head.freeze())
}

/// Why bytes are not a frame for this node. Counted, and otherwise as if nothing had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else than a frame, or one of another version.
    #[error("not a frame")]
    Magic,
    /// The lengths in it do not add up.
    #[error("the frame's lengths do not add up")]
    Length,
    /// Damaged on its way.
    #[error("the frame's checksum does not match")]
    Checksum,
    /// From another cluster.
    #[error("the frame is from another cluster")]
    Cluster,
    /// From or for another node.
    #[error("the frame is from or for another node")]
    Node,
    /// An entry's header is damaged or of another group.
    #[error("an entry's header is damaged or of another group")]
    Entry,
    /// A payload or a body is damaged.
    #[error("a payload's checksum does not match")]
    Payload,
    /// No kind of envelope has this number.
    #[error("envelope kind {0} is unknown")]
    Kind(u8),
    /// An envelope contradicts itself.
    #[error("an envelope contradicts itself: {0}")]
    Contradiction(&'static str),
}

fn encode_envelope(envelope: &Envelope, head: &mut BytesMut, payloads: &mut Vec<Bytes>) {
    assert!(
        envelope.commit_term == 0 || envelope.reject_hint == 0,
        "the two share a place: commit terms are for votes, hints for appends and repairs"
    );
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    head.put_slice(envelope.group.0.as_bytes());
    for number in [
        envelope.from.0,
        envelope.to.0,
        envelope.term,
        envelope.index,
        envelope.log_term,
        envelope.commit,
        envelope.commit_term | envelope.reject_hint,
        envelope.read.unwrap_or(0),
    ] {
        head.put_u64_le(number);
    }
    head.put_u8(envelope.kind as u8);
    head.put_u8(
        flag(envelope.is_reject, REJECT)
            | flag(envelope.is_transfer, TRANSFER)
            | flag(envelope.read.is_some(), READ),
    );
    head.put_u16_le(0);
    head.put_u32_le(envelope.entries.len() as u32);
    head.put_u32_le(envelope.body.len() as u32);
    let seed = group_seed(envelope.group);
    head.put_u32_le(body_crc(seed, &envelope.body));
    for entry in &envelope.entries {
        head.put_slice(&entry.header.encode(seed));
        payloads.push(entry.payload.clone());
    }
    if !envelope.body.is_empty() {
        payloads.push(envelope.body.clone());
    }
}

/// A body's checksum: a snapshot of one group never passes for another's.
fn body_crc(seed: u32, body: &[u8]) -> u32 {
    let seed = if planted(Bug::SnapshotOfAnyGroup) { 0 } else { seed };
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(body);
    hasher.finalize()
}

/// Entry headers of one group never pass for another's.
fn group_seed(group: LogId) -> u32 {
    crc32fast::hash(group.0.as_bytes())
}

struct Decoder<'a, B> {
    head: &'a [u8],
    /// Where the next envelope or entry header stands.
    at: usize,
    frame_bytes: usize,
    /// From the next payload on.
    rest: B,
}

impl<B: Buf> Decoder<'_, B> {
    fn take_head(&mut self, count: usize) -> Result<&[u8], FrameError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.head.len());
        let end = end.ok_or(FrameError::Length)?;
        let taken = &self.head[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn take_payload(&mut self, count: usize, seed: u32, crc: u32) -> Result<Bytes, FrameError> {
        if count > self.rest.remaining() {
            return Err(FrameError::Length);
        }
        let payload = self.rest.copy_to_bytes(count);
        if body_crc(seed, &payload) != crc {
            return Err(FrameError::Payload);
        }
        let is_small = payload.len() < self.frame_bytes / SHARED_PARTS_MAX;
        Ok(if is_small { Bytes::copy_from_slice(&payload) } else { payload })
    }

    fn envelope(&mut self) -> Result<Envelope, FrameError> {
        let head = self.take_head(ENVELOPE_BYTES)?;
        let head: [u8; ENVELOPE_BYTES] = head.try_into().expect("exactly so many were taken");
        let kind = MessageKind::from_byte(head[80]).ok_or(FrameError::Kind(head[80]))?;
        let group = Uuid::from_bytes(head[..16].try_into().expect("sixteen bytes make an id"));
        let has_hint = matches!(
            kind,
            MessageKind::AppendResponse | MessageKind::RepairAsk | MessageKind::RepairAnswer
        );
        let shared = u64_at(&head, 64);
        let (commit_term, reject_hint) = if has_hint { (0, shared) } else { (shared, 0) };
        let mut envelope = Envelope {
            group: LogId(group),
            from: ReplicaId(u64_at(&head, 16)),
            to: ReplicaId(u64_at(&head, 24)),
            kind,
            term: u64_at(&head, 32),
            index: u64_at(&head, 40),
            log_term: u64_at(&head, 48),
            commit: u64_at(&head, 56),
            commit_term,
            reject_hint,
            is_reject: head[81] & REJECT != 0,
            is_transfer: head[81] & TRANSFER != 0,
            read: (head[81] & READ != 0).then(|| u64_at(&head, 72)),
            entries: Vec::new(),
            body: Bytes::new(),
        };
        envelope.entries = self.entries(u32_at(&head, 84) as usize, envelope.group)?;
        let seed = group_seed(envelope.group);
        envelope.body = self.take_payload(u32_at(&head, 88) as usize, seed, u32_at(&head, 92))?;
        Ok(envelope)
    }

    fn entries(&mut self, count: usize, group: LogId) -> Result<Vec<Entry>, FrameError> {
        let room = (self.head.len() - self.at) / HEADER_BYTES;
        if count > room {
            return Err(FrameError::Length);
        }
        let seed = group_seed(group);
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = self.take_head(HEADER_BYTES)?.try_into().expect("exactly one header");
            let header = EntryHeader::decode(bytes, seed).map_err(|_| FrameError::Entry)?;
            let payload = self.take_payload(header.payload_len as usize, 0, header.payload_crc)?;
            entries.push(Entry { header, payload });
        }
        Ok(entries)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes make a u32"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes make a u64"))
}
