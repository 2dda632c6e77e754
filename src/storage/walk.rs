//! Walking the frames of a segment through its mapping.

use std::sync::Arc;

use bytes::Bytes;

use super::entry::{EntryHeader, HEADER_BYTES};
use super::error::{Error, Result};
use super::fs::read_exact_at;
use super::index::Row;
use super::segment::{Access, OpenFile, Segment};

/// A walk over the frames of a segment, through its mapping.
///
/// Makes sure that pages are in memory before it touches them: a bad sector is an error, not a
/// signal. A page that the kernel drops between the check and the touch is read again by the fault;
/// should exactly that page have gone bad meanwhile, the process dies, which is the safe end.
pub(super) struct Walk<'a> {
    segment: &'a Arc<Segment>,
    open: Arc<OpenFile>,
    access: Access,
    position: u64,
    next_index: u64,
    last_index: u64,
    end: u64,
    /// Pages below this position are known to be in memory.
    resident_end: u64,
    /// How far to look ahead when pages are brought in.
    ahead_bytes: u64,
    /// A borrowed part of the mapping and where it starts.
    window: Bytes,
    window_start: u64,
}

impl<'a> Walk<'a> {
    /// Starts at the frame that `row` points to and goes up to `last_index`.
    pub(super) fn new(
        segment: &'a Arc<Segment>,
        row: Row,
        last_index: u64,
        access: Access,
    ) -> Result<Self> {
        let open = segment.open_file(access)?;
        Ok(Self {
            open,
            access,
            position: row.position,
            next_index: row.index,
            last_index,
            end: segment.end(),
            resident_end: row.position,
            ahead_bytes: 2 * segment.index_interval_bytes(),
            window: Bytes::new(),
            window_start: row.position,
            segment,
        })
    }

    /// Brings in pages this far ahead of what is touched.
    pub(super) fn look_ahead(&mut self, bytes: u64) {
        self.ahead_bytes = bytes;
    }

    /// Lets the walk go on beyond the published end, for a segment that is being repaired.
    pub(super) fn read_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// The next entry's header and position; `None` after `last_index`.
    pub(super) fn next_header(&mut self) -> Result<Option<(EntryHeader, u64)>> {
        if self.next_index > self.last_index {
            return Ok(None);
        }
        let position = self.position;
        if position + HEADER_BYTES as u64 > self.end {
            let what = format!("entry {} is missing, the entries end here", self.next_index);
            return Err(self.segment.damage(position, what));
        }
        let seed = self.segment.seed();
        let bytes = self.bytes(position, HEADER_BYTES)?;
        let bytes = bytes.try_into().expect("a header's bytes were asked for");
        let header = EntryHeader::decode(bytes, seed)
            .map_err(|error| self.segment.damage(position, error.to_string()))?;
        if header.index != self.next_index {
            let what = format!("entry {} stands where {} belongs", header.index, self.next_index);
            return Err(self.segment.damage(position, what));
        }
        self.position += header.frame_bytes();
        self.next_index += 1;
        assert!(self.position.is_multiple_of(8), "a frame ends at {}", self.position);
        if self.position > self.end {
            let what = format!("entry {} reaches beyond the segment's end", header.index);
            return Err(self.segment.damage(position, what));
        }
        Ok(Some((header, position)))
    }

    /// The payload of an entry, verified.
    pub(super) fn payload(&mut self, header: &EntryHeader, position: u64) -> Result<Bytes> {
        let start = position + HEADER_BYTES as u64;
        let len = header.payload_len as usize;
        self.bytes(start, len)?;
        let at = (start - self.window_start) as usize;
        let payload = self.window.slice(at..at + len);
        let found = crc32fast::hash(&payload);
        if found != header.payload_crc {
            let expected = header.payload_crc;
            let what = format!(
                "payload checksum of entry {} is {found:#010x}, expected {expected:#010x}",
                header.index
            );
            return Err(self.segment.damage(start, what));
        }
        Ok(payload)
    }

    /// Bytes of the file, brought into memory first if that is allowed.
    fn bytes(&mut self, position: u64, len: usize) -> Result<&[u8]> {
        let end = position + len as u64;
        if end > self.resident_end {
            self.bring_in(position, end)?;
        }
        if position < self.window_start || end > self.window_start + self.window.len() as u64 {
            self.window_start = position;
            let len = self.resident_end.max(end) - position;
            self.window = self.open.map.slice(position, len as usize);
        }
        assert!(end <= self.resident_end, "bytes {position}..{end} are not known to be in memory");
        let at = (position - self.window_start) as usize;
        Ok(&self.window[at..at + len])
    }

    fn bring_in(&mut self, position: u64, end: u64) -> Result<()> {
        let ahead = position.saturating_add(self.ahead_bytes);
        let mut upto = ahead.clamp(end, self.end.max(end));
        let mut len = (upto - position) as usize;
        if !self.open.map.is_resident(position, len) {
            if self.access == Access::Hot {
                (upto, len) = (end, (end - position) as usize);
                if !self.open.map.is_resident(position, len) {
                    return Err(Error::Cold);
                }
            }
            self.read_in(position, len)?;
        }
        assert!(upto >= end, "brought in {position}..{upto}, wanted {end}");
        self.resident_end = upto;
        Ok(())
    }

    /// Waits until the disk has delivered a range, or has said that it cannot.
    fn read_in(&self, position: u64, len: usize) -> Result<()> {
        let read = match self.open.map.populate(position, len) {
            Ok(true) => Ok(()),
            // The system cannot do it this way: reading brings the pages in as well.
            Ok(false) => read_exact_at(&*self.open.file, &mut vec![0; len], position),
            Err(error) => Err(error),
        };
        read.map_err(|error| {
            let what = format!("the disk cannot read {len} bytes: {error}");
            self.segment.damage(position, what)
        })
    }
}
