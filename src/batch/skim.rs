//! Walks a batch's wire form and checks it, without decoding or allocating anything.
//!
//! What passes here, a protobuf decoder turns into the same records. The reverse holds for what
//! honest encoders write; beyond that the skimmer is stricter: it refuses groups, repetitions of
//! fields that are not lists, and mixtures of a batch's two forms, so that a batch has one meaning
//! for every reader.

use super::error::{Error, Fault, Measure};
use super::wire::{LENGTH_DELIMITED, VARINT, Wire, corrupt, key};
use super::{Codec, Limits};

/// The fields of the messages in `proto/quipu/v1/record.proto`.
pub(super) mod batch_field {
    use super::{LENGTH_DELIMITED, VARINT, key};
    pub(in super::super) const CODEC: u32 = key(1, VARINT);
    pub(in super::super) const RECORDS: u32 = key(2, LENGTH_DELIMITED);
    pub(in super::super) const RECORD_COUNT: u32 = key(3, VARINT);
    pub(in super::super) const UNCOMPRESSED_BYTES: u32 = key(4, VARINT);
    pub(in super::super) const COMPRESSED: u32 = key(5, LENGTH_DELIMITED);
    pub(in super::super) const END: u32 = 6;
}

/// See [`batch_field`].
pub(super) mod record_field {
    use super::{LENGTH_DELIMITED, VARINT, key};
    pub(in super::super) const KEY: u32 = key(1, LENGTH_DELIMITED);
    pub(in super::super) const VALUE: u32 = key(2, LENGTH_DELIMITED);
    pub(in super::super) const HEADERS: u32 = key(3, LENGTH_DELIMITED);
    pub(in super::super) const EVENT_TIME_MS: u32 = key(4, VARINT);
    pub(in super::super) const END: u32 = 5;
}

/// See [`batch_field`].
pub(super) mod header_field {
    use super::{LENGTH_DELIMITED, key};
    pub(in super::super) const NAME: u32 = key(1, LENGTH_DELIMITED);
    pub(in super::super) const VALUE: u32 = key(2, LENGTH_DELIMITED);
    pub(in super::super) const END: u32 = 3;
}

/// What a batch's outermost message says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How the records are compressed.
    pub codec: Codec,
    /// The number of records, at least 1. Of a compressed batch that was only skimmed it is what
    /// the batch declares.
    pub record_count: u32,
    /// The size of the payload, in bytes.
    pub payload_bytes: u32,
    /// The size of the plain form, in bytes: that of the payload if it is not compressed. Of a
    /// compressed batch that was only skimmed it is what the batch declares.
    pub uncompressed_bytes: u32,
}

/// Checks the wire form of an encoded `RecordBatch` and counts its records.
///
/// The insides of a compressed batch are not looked at: [`verify`](super::verify) does that.
///
/// # Errors
/// Every [`Error`] but [`Error::BadChecksum`].
pub fn skim(payload: &[u8], limits: &Limits) -> Result<Summary, Error> {
    skim_with_body(payload, limits).map(|(summary, _)| summary)
}

/// The compressed field of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Compressed<'a> {
    pub(super) frame: &'a [u8],
    /// Where the field begins in the payload.
    pub(super) position: usize,
}

/// Does what [`skim`] does and returns the compressed field too.
pub(super) fn skim_with_body<'a>(
    payload: &'a [u8],
    limits: &Limits,
) -> Result<(Summary, Compressed<'a>), Error> {
    let payload_bytes = payload_bytes(payload, limits)?;
    let form = Form::read(payload, limits)?;
    let codec =
        Codec::from_number(form.codec).ok_or(Error::UnsupportedCodec { codec: form.codec })?;
    let (record_count, uncompressed_bytes) = match codec {
        Codec::None => (form.check_plain(limits)?, payload_bytes),
        Codec::Lz4 | Codec::Zstd => form.check_compressed(limits)?,
    };
    let summary = Summary { codec, record_count, payload_bytes, uncompressed_bytes };
    Ok((summary, form.compressed))
}

/// Returns the payload's size if a batch may be that large.
pub(super) fn payload_bytes(payload: &[u8], limits: &Limits) -> Result<u32, Error> {
    at_most(payload.len() as u64, limits.batch_bytes_max).map_err(|found| Error::BatchTooLarge {
        measure: Measure::Bytes,
        found,
        max: limits.batch_bytes_max,
    })
}

/// Skims the decompressed form of a batch, which must be a plain one, and returns the number of
/// its records.
pub(super) fn skim_decompressed(plain: &[u8], limits: &Limits) -> Result<u32, Error> {
    let form = Form::read(plain, limits)?;
    if form.codec != 0 || form.has_compressed_fields() {
        return Err(corrupt(form.compressed.position, Fault::NestedCompression));
    }
    form.check_plain(limits)
}

/// The fields of a batch, its records counted and checked.
#[derive(Default)]
struct Form<'a> {
    codec: u64,
    records_found: u64,
    record_count: u64,
    uncompressed_bytes: u64,
    compressed: Compressed<'a>,
}

impl<'a> Form<'a> {
    #[inline]
    fn read(payload: &'a [u8], limits: &Limits) -> Result<Self, Error> {
        let mut form = Self::default();
        let mut seen = Seen::default();
        let mut wire = Wire::new(payload);
        while !wire.is_empty() {
            let start = wire.position();
            let key = wire.key()?;
            if key == batch_field::RECORDS {
                skim_record(wire.message()?, limits)
                    .map_err(|error| with_ordinal(error, form.records_found))?;
                form.records_found += 1;
            } else {
                wire = form.read_rare_field(wire, key, start, &mut seen)?;
            }
        }
        Ok(form)
    }

    #[inline(never)]
    fn read_rare_field(
        &mut self,
        mut wire: Wire<'a>,
        key: u32,
        start: usize,
        seen: &mut Seen,
    ) -> Result<Wire<'a>, Error> {
        match key {
            batch_field::CODEC => self.codec = wire.varint()?,
            batch_field::RECORD_COUNT => self.record_count = wire.varint()?,
            batch_field::UNCOMPRESSED_BYTES => self.uncompressed_bytes = wire.varint()?,
            batch_field::COMPRESSED => {
                self.compressed = Compressed { frame: wire.slice()?, position: start };
            }
            _ => return wire.skip_unknown(key, start, batch_field::END),
        }
        seen.once(key, start)?;
        Ok(wire)
    }

    /// Returns the number of records if this is a sound plain batch.
    fn check_plain(&self, limits: &Limits) -> Result<u32, Error> {
        if self.has_compressed_fields() {
            return Err(corrupt(self.compressed.position, Fault::NoCodec));
        }
        record_count(self.records_found, limits)
    }

    /// Returns the declared number of records and uncompressed bytes if this may be a sound
    /// compressed batch.
    fn check_compressed(&self, limits: &Limits) -> Result<(u32, u32), Error> {
        if self.records_found > 0 {
            return Err(corrupt(self.compressed.position, Fault::BothForms));
        }
        if self.compressed.frame.is_empty() {
            return Err(corrupt(self.compressed.position, Fault::NoCompressed));
        }
        let records = record_count(self.record_count, limits)?;
        let max = limits.uncompressed_bytes_max(self.compressed.frame.len());
        let bytes = at_most(self.uncompressed_bytes, max).map_err(|uncompressed_bytes| {
            Error::CompressionLimit {
                compressed_bytes: self.compressed.frame.len() as u64,
                uncompressed_bytes,
                uncompressed_bytes_max: u64::from(max),
            }
        })?;
        Ok((records, bytes))
    }

    fn has_compressed_fields(&self) -> bool {
        !self.compressed.frame.is_empty() || self.record_count != 0 || self.uncompressed_bytes != 0
    }
}

/// The fields that a message has had so far.
#[derive(Default)]
struct Seen(u32);

impl Seen {
    /// Notes a field that may occur once. Its number must be below 32.
    #[inline]
    fn once(&mut self, key: u32, start: usize) -> Result<(), Error> {
        let field = key >> 3;
        let bit = 1 << field;
        if self.0 & bit != 0 {
            return Err(corrupt(start, Fault::Repeated { field }));
        }
        self.0 |= bit;
        Ok(())
    }
}

/// Skims one record. Its ordinal in errors is 0.
#[inline]
fn skim_record(mut wire: Wire<'_>, limits: &Limits) -> Result<(), Error> {
    if wire.remaining() > limits.record_bytes_max as usize {
        let found = wire.remaining();
        return Err(record_too_large(Measure::Bytes, found, limits.record_bytes_max));
    }
    let mut seen = Seen::default();
    let mut rare = RareFields::default();
    while !wire.is_empty() {
        let start = wire.position();
        let key = wire.key()?;
        // A test and not a `match`, which would become an indirect jump: that took a quarter of
        // the time of a skim.
        if key == record_field::KEY || key == record_field::VALUE {
            wire.message()?;
            seen.once(key, start)?;
        } else {
            wire = rare.skim(wire, key, start, limits)?;
        }
    }
    if rare.headers > limits.headers_max as usize {
        return Err(record_too_large(Measure::Headers, rare.headers, limits.headers_max));
    }
    Ok(())
}

/// What a record has beside its key and value.
#[derive(Default)]
struct RareFields {
    seen: Seen,
    headers: usize,
}

impl RareFields {
    #[inline(never)]
    fn skim<'a>(
        &mut self,
        mut wire: Wire<'a>,
        key: u32,
        start: usize,
        limits: &Limits,
    ) -> Result<Wire<'a>, Error> {
        match key {
            record_field::HEADERS => {
                skim_header(wire.message()?, limits)?;
                self.headers += 1;
            }
            record_field::EVENT_TIME_MS => {
                wire.varint()?;
                self.seen.once(key, start)?;
            }
            _ => wire = wire.skip_unknown(key, start, record_field::END)?,
        }
        Ok(wire)
    }
}

fn skim_header(mut wire: Wire<'_>, limits: &Limits) -> Result<(), Error> {
    let mut seen = Seen::default();
    while !wire.is_empty() {
        let start = wire.position();
        let key = wire.key()?;
        match key {
            header_field::NAME => check_header_name(wire.slice()?, start, limits)?,
            header_field::VALUE => {
                wire.message()?;
            }
            _ => {
                wire = wire.skip_unknown(key, start, header_field::END)?;
                continue;
            }
        }
        seen.once(key, start)?;
    }
    Ok(())
}

fn check_header_name(name: &[u8], start: usize, limits: &Limits) -> Result<(), Error> {
    let max = limits.header_name_bytes_max;
    if name.len() > max as usize {
        return Err(record_too_large(Measure::HeaderNameBytes, name.len(), max));
    }
    match std::str::from_utf8(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(corrupt(start, Fault::HeaderName)),
    }
}

/// Returns a number of records if a batch may have that many.
fn record_count(found: u64, limits: &Limits) -> Result<u32, Error> {
    if found == 0 {
        return Err(Error::Empty);
    }
    at_most(found, limits.records_max).map_err(|found| Error::BatchTooLarge {
        measure: Measure::Records,
        found,
        max: limits.records_max,
    })
}

/// Returns `found` if it is not above `max`, and as it is in the error.
fn at_most(found: u64, max: u32) -> Result<u32, u64> {
    u32::try_from(found).ok().filter(|found| *found <= max).ok_or(found)
}

#[cold]
fn record_too_large(measure: Measure, found: usize, max: u32) -> Error {
    Error::RecordTooLarge { ordinal: 0, measure, found: found as u64, max }
}

/// Sets the ordinal of an error of one record.
#[cold]
fn with_ordinal(error: Error, record: u64) -> Error {
    match error {
        Error::RecordTooLarge { measure, found, max, .. } => {
            let ordinal = u32::try_from(record).unwrap_or(u32::MAX);
            Error::RecordTooLarge { ordinal, measure, found, max }
        }
        other => other,
    }
}
