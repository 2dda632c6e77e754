//! Builds record batches: the producers' side.

use bytes::{BufMut, Bytes, BytesMut};

use super::compress::compress;
use super::error::{Error, Measure};
use super::skim::{batch_field, header_field, record_field};
use super::{Codec, Limits};

/// A record to append to a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    /// The key. Absent is not the same as empty.
    pub key: Option<&'a [u8]>,
    /// The value. Absent is not the same as empty.
    pub value: Option<&'a [u8]>,
    /// Names and values of the headers. A name may occur several times.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// When the event happened, in milliseconds since the Unix epoch.
    pub event_time_ms: Option<i64>,
}

/// Encodes records into a batch as they are appended.
///
/// * `plain` is the encoding of a plain batch of `record_count` records, within the limits but for
///   `batch_bytes_max`, which is a matter of the codec.
#[derive(Debug)]
pub struct BatchBuilder {
    limits: Limits,
    plain: BytesMut,
    record_count: u32,
}

impl BatchBuilder {
    /// Creates a builder of batches that a server with these limits accepts.
    pub fn new(limits: Limits) -> Self {
        Self::with_capacity(limits, 0)
    }

    /// The same, with room for a batch of `bytes` from the start.
    pub fn with_capacity(limits: Limits, bytes: usize) -> Self {
        Self { limits, plain: BytesMut::with_capacity(bytes), record_count: 0 }
    }

    /// Returns the number of records appended since the last batch was built.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Returns whether no record was appended since the last batch was built.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Returns the size of the batch so far without compression, in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.plain.len()
    }

    /// Returns by how many bytes `record` would make the batch grow without compression.
    pub fn growth_bytes(record: &Record<'_>) -> usize {
        length_delimited_bytes(record_bytes(record))
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`] or [`Error::BatchTooLarge`]: the batch is as it was before.
    pub fn append(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let bytes = record_bytes(record);
        self.check_record(record, bytes)?;
        let plain_bytes = self.plain.len() + length_delimited_bytes(bytes);
        check_batch(Measure::Bytes, plain_bytes, self.limits.uncompressed_bytes_max)?;
        let record_count = self.record_count + 1;
        check_batch(Measure::Records, record_count as usize, self.limits.records_max)?;

        self.plain.reserve(plain_bytes - self.plain.len());
        put_length(&mut self.plain, batch_field::RECORDS, bytes);
        put_record(&mut self.plain, record);
        self.record_count = record_count;
        assert_eq!(self.plain.len(), plain_bytes, "a record's size was computed wrong");
        Ok(())
    }

    /// Returns the encoded batch and starts a new one.
    ///
    /// A batch that `codec` makes no smaller, or by more than the ratio that servers accept, is
    /// built plain.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::UnsupportedCodec`] or [`Error::BatchTooLarge`]: the records stay
    /// in the builder.
    pub fn build(&mut self, codec: Codec) -> Result<Bytes, Error> {
        if self.is_empty() {
            return Err(Error::Empty);
        }
        let compressed = match codec {
            Codec::None => None,
            Codec::Lz4 | Codec::Zstd => self.compressed(codec)?,
        };
        let bytes = compressed.as_ref().map_or(self.plain.len(), BytesMut::len);
        check_batch(Measure::Bytes, bytes, self.limits.batch_bytes_max)?;
        let plain = self.plain.split();
        self.record_count = 0;
        Ok(compressed.unwrap_or(plain).freeze())
    }

    /// Drops the records appended since the last batch was built.
    pub fn clear(&mut self) {
        self.plain.clear();
        self.record_count = 0;
    }

    /// Encodes the compressed form, if it is worth it and would be accepted.
    fn compressed(&self, codec: Codec) -> Result<Option<BytesMut>, Error> {
        let frame = compress(codec, &self.plain)?;
        let ratio_is_accepted =
            self.plain.len() <= self.limits.uncompressed_bytes_max(frame.len()) as usize;
        let mut batch = BytesMut::with_capacity(frame.len() + 32);
        put_varint_field(&mut batch, batch_field::CODEC, codec.number());
        put_varint_field(&mut batch, batch_field::RECORD_COUNT, self.record_count.into());
        put_varint_field(&mut batch, batch_field::UNCOMPRESSED_BYTES, self.plain.len() as u64);
        put_bytes(&mut batch, batch_field::COMPRESSED, &frame);
        Ok((ratio_is_accepted && batch.len() < self.plain.len()).then_some(batch))
    }

    fn check_record(&self, record: &Record<'_>, bytes: usize) -> Result<(), Error> {
        let limits = &self.limits;
        let name_bytes = record.headers.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let measures = [
            (Measure::Bytes, bytes, limits.record_bytes_max),
            (Measure::Headers, record.headers.len(), limits.headers_max),
            (Measure::HeaderNameBytes, name_bytes, limits.header_name_bytes_max),
        ];
        let over = measures.into_iter().find(|(_, found, max)| *found > *max as usize);
        over.map_or(Ok(()), |(measure, found, max)| {
            let ordinal = self.record_count;
            Err(Error::RecordTooLarge { ordinal, measure, found: found as u64, max })
        })
    }
}

fn check_batch(measure: Measure, found: usize, max: u32) -> Result<(), Error> {
    if found > max as usize {
        return Err(Error::BatchTooLarge { measure, found: found as u64, max });
    }
    Ok(())
}

fn record_bytes(record: &Record<'_>) -> usize {
    let key = record.key.map_or(0, |key| length_delimited_bytes(key.len()));
    let value = record.value.map_or(0, |value| length_delimited_bytes(value.len()));
    let time = record.event_time_ms.map_or(0, |time| 1 + varint_bytes(time.cast_unsigned()));
    let headers = record.headers.iter().map(|header| length_delimited_bytes(header_bytes(*header)));
    key + value + time + headers.sum::<usize>()
}

/// Empty names and values are not written: absent means empty here.
fn header_bytes((name, value): (&str, &[u8])) -> usize {
    let present = [name.len(), value.len()].into_iter().filter(|bytes| *bytes > 0);
    present.map(length_delimited_bytes).sum()
}

/// Returns the size of a field of `bytes` bytes with its key and length.
fn length_delimited_bytes(bytes: usize) -> usize {
    1 + varint_bytes(bytes as u64) + bytes
}

fn varint_bytes(value: u64) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

fn put_record(buffer: &mut BytesMut, record: &Record<'_>) {
    if let Some(key) = record.key {
        put_bytes(buffer, record_field::KEY, key);
    }
    if let Some(value) = record.value {
        put_bytes(buffer, record_field::VALUE, value);
    }
    for &(name, value) in record.headers {
        put_length(buffer, record_field::HEADERS, header_bytes((name, value)));
        put_present(buffer, header_field::NAME, name.as_bytes());
        put_present(buffer, header_field::VALUE, value);
    }
    if let Some(time) = record.event_time_ms {
        put_varint_field(buffer, record_field::EVENT_TIME_MS, time.cast_unsigned());
    }
}

fn put_present(buffer: &mut BytesMut, key: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_bytes(buffer, key, bytes);
    }
}

fn put_bytes(buffer: &mut BytesMut, key: u32, bytes: &[u8]) {
    put_length(buffer, key, bytes.len());
    buffer.put_slice(bytes);
}

fn put_length(buffer: &mut BytesMut, key: u32, bytes: usize) {
    put_varint_field(buffer, key, bytes as u64);
}

fn put_varint_field(buffer: &mut BytesMut, key: u32, value: u64) {
    put_varint(buffer, key.into());
    put_varint(buffer, value);
}

fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value.to_le_bytes()[0]);
}
