//! What the engine itself keeps in the meta journal about a log, and how it is encoded.
//!
//! All values are little-endian numbers one after the other. A value of another length counts as
//! absent: the journal's own checksums have passed, so this program cannot have written it.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::header::{SegmentHeader, Tip};

/// Where a log starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogStart {
    /// First offset that can be read.
    pub(super) offset: u64,
    /// First index that is kept.
    pub(super) first_index: u64,
}

impl LogStart {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16);
        bytes.put_u64_le(self.offset);
        bytes.put_u64_le(self.first_index);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let is_whole = bytes.len() == 16;
        is_whole.then(|| Self { offset: bytes.get_u64_le(), first_index: bytes.get_u64_le() })
    }
}

/// How far a log is known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watermark {
    /// Generation of the segment that the entry is in, or of a later one. A truncation below the
    /// entry that came after has a higher one.
    pub(super) generation: u64,
    /// Highest index on disk.
    pub(super) index: u64,
    /// Its term.
    pub(super) term: u64,
}

impl Watermark {
    /// Of a log that the journal says nothing about.
    pub(super) const UNKNOWN: Self = Self { generation: 0, index: 0, term: 0 };

    /// The watermark without what truncations that came after it removed.
    pub(super) fn cut_back<'a>(mut self, live: impl Iterator<Item = &'a SegmentHeader>) -> Self {
        for header in live {
            // When the segment was born the log ended right before it.
            if header.birth > self.generation {
                let tip = header.previous;
                let is_cut = tip.index < self.index;
                self.term = if is_cut { tip.term } else { self.term };
                self.index = self.index.min(tip.index);
            }
        }
        self
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(24);
        bytes.put_u64_le(self.generation);
        bytes.put_u64_le(self.index);
        bytes.put_u64_le(self.term);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        (bytes.len() == 24).then(|| Self {
            generation: bytes.get_u64_le(),
            index: bytes.get_u64_le(),
            term: bytes.get_u64_le(),
        })
    }
}

/// How a log ended when it was closed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    /// Generation of the last segment.
    pub(super) generation: u64,
    /// Where its entries end.
    pub(super) end: u64,
    /// The log's tip.
    pub(super) tip: Tip,
}

impl Closed {
    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(52);
        bytes.put_u64_le(self.generation);
        bytes.put_u64_le(self.end);
        bytes.put_u64_le(self.tip.index);
        bytes.put_u64_le(self.tip.term);
        bytes.put_u64_le(self.tip.end_offset);
        bytes.put_i64_le(self.tip.append_time_ms);
        bytes.put_u32_le(self.tip.chain);
        bytes.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        (bytes.len() == 52).then(|| Self {
            generation: bytes.get_u64_le(),
            end: bytes.get_u64_le(),
            tip: Tip {
                index: bytes.get_u64_le(),
                term: bytes.get_u64_le(),
                end_offset: bytes.get_u64_le(),
                append_time_ms: bytes.get_i64_le(),
                chain: bytes.get_u32_le(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_come_back_as_they_were_and_other_lengths_are_refused() {
        let start = LogStart { offset: 5, first_index: 3 };
        assert_eq!(LogStart::decode(start.encode()), Some(start));
        let mark = Watermark { generation: 1, index: 2, term: 3 };
        assert_eq!(Watermark::decode(mark.encode()), Some(mark));
        let tip = Tip { index: 9, term: 2, end_offset: 40, append_time_ms: -7, chain: 11 };
        let closed = Closed { generation: 4, end: 5000, tip };
        assert_eq!(Closed::decode(closed.encode()), Some(closed));
        assert_eq!(Closed::decode(mark.encode()), None);
    }
}
