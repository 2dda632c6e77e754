//! A cursor over the protobuf wire form. It knows varints, lengths and wire types, and no message.

use super::error::{Error, Fault};

/// Wire types as they stand in the low three bits of a field key.
pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
pub(super) const LENGTH_DELIMITED: u32 = 2;
pub(super) const FIXED32: u32 = 5;
const TYPES: [u32; 4] = [VARINT, FIXED64, LENGTH_DELIMITED, FIXED32];

/// The key of a field: its number and wire type as they are encoded.
pub(super) const fn key(field: u32, wire_type: u32) -> u32 {
    field << 3 | wire_type
}

/// A place in a message.
///
/// * `at <= bytes.len()`.
/// * `bytes` begins where the payload begins and ends where the message ends, so `at` is a position
///   in the payload however deep the message is nested.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Wire<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// Returns the position in the payload.
    #[inline]
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Returns the number of bytes left in the message.
    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads a field key. Whether its parts make sense is seen when the value is read.
    #[inline]
    pub(super) fn key(&mut self) -> Result<u32, Error> {
        let start = self.at;
        u32::try_from(self.varint()?).map_err(|_| corrupt(start, Fault::FieldKey))
    }

    /// Reads a varint of up to ten bytes. Encodings longer than they need be are valid protobuf,
    /// some writers leave room for a length that way, and are accepted.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let (value, end) = match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => (u64::from(byte), self.at + 1),
            _ => long_varint(self.bytes, self.at)?,
        };
        self.at = end;
        Ok(value)
    }

    /// Reads a length and the message it delimits, and steps over it.
    #[inline]
    pub(super) fn message(&mut self) -> Result<Wire<'a>, Error> {
        let (start, bytes) = self.delimited()?;
        Ok(Wire { bytes, at: start })
    }

    /// Reads a length and the bytes it delimits.
    #[inline]
    pub(super) fn slice(&mut self) -> Result<&'a [u8], Error> {
        let (start, bytes) = self.delimited()?;
        Ok(&bytes[start..])
    }

    /// Steps over the value of a field whose key is not one of the message's, which has the fields
    /// below `fields_end` and keeps the others for later versions. `start` is the key's position.
    ///
    /// The cursor goes in and comes out by value: behind a reference it would live in memory
    /// instead of registers, and every step would wait for it.
    #[cold]
    pub(super) fn skip_unknown(
        self,
        key: u32,
        start: usize,
        fields_end: u32,
    ) -> Result<Self, Error> {
        let (field, wire_type) = (key >> 3, key & 7);
        if (1..fields_end).contains(&field) && TYPES.contains(&wire_type) {
            return Err(corrupt(start, Fault::FieldType { field, wire_type }));
        }
        self.skip_value(key, start)
    }

    /// Steps over the value of any field. `start` is the position of its key.
    pub(super) fn skip_value(mut self, key: u32, start: usize) -> Result<Self, Error> {
        let (field, wire_type) = (key >> 3, key & 7);
        if field == 0 {
            return Err(corrupt(start, Fault::FieldKey));
        }
        match wire_type {
            VARINT => self.varint().map(drop),
            LENGTH_DELIMITED => self.slice().map(drop),
            FIXED64 => self.advance(8),
            FIXED32 => self.advance(4),
            _ => Err(corrupt(start, Fault::WireType { field, wire_type })),
        }?;
        Ok(self)
    }

    /// Reads a length and returns where the bytes it delimits start, and everything up to where
    /// they end.
    #[inline]
    fn delimited(&mut self) -> Result<(usize, &'a [u8]), Error> {
        let position = self.at;
        let length = self.varint()?;
        let start = self.at;
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        match end.and_then(|end| self.bytes.get(..end)) {
            Some(bytes) => {
                self.at = bytes.len();
                Ok((start, bytes))
            }
            None => Err(corrupt(position, Fault::PastEnd)),
        }
    }

    fn advance(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes > self.remaining() {
            return Err(corrupt(self.at, Fault::PastEnd));
        }
        self.at += bytes;
        Ok(())
    }
}

/// Reads a varint of any size and returns it and where it ends.
#[inline]
fn long_varint(bytes: &[u8], start: usize) -> Result<(u64, usize), Error> {
    match bytes.get(start..start + 2) {
        Some(&[low, high]) if high < 0x80 => {
            Ok((u64::from(low & 0x7F) | u64::from(high) << 7, start + 2))
        }
        _ => longer_varint(bytes, start),
    }
}

#[cold]
fn longer_varint(bytes: &[u8], start: usize) -> Result<(u64, usize), Error> {
    let mut value = 0;
    for (at, shift) in (start..).zip((0..70).step_by(7)) {
        let Some(&byte) = bytes.get(at) else {
            return Err(corrupt(start, Fault::PastEnd));
        };
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok((value, at + 1));
        }
    }
    Err(corrupt(start, Fault::Varint))
}

#[cold]
pub(super) fn corrupt(position: usize, fault: Fault) -> Error {
    Error::Corrupt { position, fault }
}
