//! A lazy view of the records of a verified batch. Nothing is copied or allocated.

use super::skim::{batch_field, header_field, record_field};
use super::wire::Wire;

/// Why reading cannot fail: the same bytes passed the skimmer.
const SKIMMED: &str = "the batch was skimmed";

/// The records of a batch in order. See [`Verified::records`](super::Verified::records).
#[derive(Clone, Debug)]
pub struct Records<'a> {
    /// What follows the record returned last. It passed the skimmer.
    wire: Wire<'a>,
    /// The number of records in `wire`.
    remaining: u32,
}

impl<'a> Records<'a> {
    /// `plain` must have passed the skimmer as a plain batch of `record_count` records.
    pub(super) fn new(plain: &'a [u8], record_count: u32) -> Self {
        Self { wire: Wire::new(plain), remaining: record_count }
    }

    /// Steps over the next record and returns its message.
    #[inline]
    fn next_message(&mut self) -> Option<Wire<'a>> {
        self.remaining = self.remaining.checked_sub(1)?;
        let message = next_message(&mut self.wire, batch_field::RECORDS);
        assert!(message.is_some(), "a batch ended {} records before its count", self.remaining + 1);
        message
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        self.next_message().map(RecordView::read)
    }

    fn nth(&mut self, n: usize) -> Option<RecordView<'a>> {
        for _ in 0..n {
            self.next_message()?;
        }
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining as usize, Some(self.remaining as usize))
    }
}

impl ExactSizeIterator for Records<'_> {}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// The key. Absent is not the same as empty.
    pub key: Option<&'a [u8]>,
    /// The value. Absent is not the same as empty.
    pub value: Option<&'a [u8]>,
    /// When the event happened, in milliseconds since the Unix epoch.
    pub event_time_ms: Option<i64>,
    /// The whole record. It passed the skimmer.
    wire: Wire<'a>,
}

impl<'a> RecordView<'a> {
    /// Returns the headers as pairs of name and value, in the producer's order.
    pub fn headers(&self) -> Headers<'a> {
        Headers { wire: self.wire }
    }

    /// Returns the size of the encoded record, in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.wire.remaining()
    }

    fn read(wire: Wire<'a>) -> Self {
        let mut view = Self { key: None, value: None, event_time_ms: None, wire };
        let mut rest = wire;
        while !rest.is_empty() {
            let start = rest.position();
            match rest.key().expect(SKIMMED) {
                record_field::KEY => view.key = Some(rest.slice().expect(SKIMMED)),
                record_field::VALUE => view.value = Some(rest.slice().expect(SKIMMED)),
                record_field::EVENT_TIME_MS => {
                    view.event_time_ms = Some(rest.varint().expect(SKIMMED).cast_signed());
                }
                record_field::HEADERS => {
                    rest.slice().expect(SKIMMED);
                }
                key => {
                    rest = rest.skip_value(key, start).expect(SKIMMED);
                }
            }
        }
        view
    }
}

/// The headers of a record as pairs of name and value. See [`RecordView::headers`].
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    wire: Wire<'a>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = next_message(&mut self.wire, record_field::HEADERS)?;
        Some(read_header(header))
    }
}

fn read_header(mut wire: Wire<'_>) -> (&str, &[u8]) {
    let (mut name, mut value): (_, &[u8]) = ("", &[]);
    while !wire.is_empty() {
        let start = wire.position();
        match wire.key().expect(SKIMMED) {
            header_field::NAME => {
                name = std::str::from_utf8(wire.slice().expect(SKIMMED)).expect(SKIMMED);
            }
            header_field::VALUE => value = wire.slice().expect(SKIMMED),
            key => {
                wire = wire.skip_value(key, start).expect(SKIMMED);
            }
        }
    }
    (name, value)
}

/// Steps over the fields before the next one of key `wanted` and over that one, and returns its
/// message.
#[inline]
fn next_message<'a>(wire: &mut Wire<'a>, wanted: u32) -> Option<Wire<'a>> {
    while !wire.is_empty() {
        let start = wire.position();
        let key = wire.key().expect(SKIMMED);
        if key == wanted {
            return Some(wire.message().expect(SKIMMED));
        }
        *wire = wire.skip_value(key, start).expect(SKIMMED);
    }
    None
}
