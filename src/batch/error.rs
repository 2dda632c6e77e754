//! What can be wrong with a record batch.

use std::fmt;

/// Why a batch was refused. Nothing was kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not a record batch.
    ///
    /// `position` counts bytes from the start of the payload; for a fault in the records of a
    /// compressed batch, from the start of its decompressed form.
    #[error("corrupt record batch at byte {position}: {fault}")]
    Corrupt {
        /// The byte at which the faulty field, varint or frame begins.
        position: usize,
        /// What is wrong there.
        fault: Fault,
    },
    /// The producer's checksum does not fit the payload.
    #[error("bad checksum: expected {expected:#010x}, found {found:#010x}")]
    BadChecksum {
        /// The checksum that came with the payload.
        expected: u32,
        /// The checksum of the payload received.
        found: u32,
    },
    /// The batch holds no records.
    #[error("the record batch holds no records")]
    Empty,
    /// One record is over a limit. The others may be sent without it.
    #[error("record {ordinal} of the batch has {found} {measure}, the limit is {max}")]
    RecordTooLarge {
        /// The record's place in the batch, from 0.
        ordinal: u32,
        /// What was measured.
        measure: Measure,
        /// How many there are.
        found: u64,
        /// How many there may be.
        max: u32,
    },
    /// The batch as a whole is over a limit. Its records may be sent in smaller ones.
    #[error("the record batch has {found} {measure}, the limit is {max}")]
    BatchTooLarge {
        /// What was measured.
        measure: Measure,
        /// How many there are.
        found: u64,
        /// How many there may be.
        max: u32,
    },
    /// The batch grows too much when it is decompressed. It may be sent plain or in smaller ones.
    #[error(
        "{compressed_bytes} compressed bytes become {uncompressed_bytes}, \
         the limit is {uncompressed_bytes_max}"
    )]
    CompressionLimit {
        /// The size of the compressed field, in bytes.
        compressed_bytes: u64,
        /// The size that the batch declares, in bytes.
        uncompressed_bytes: u64,
        /// The size it may have: the smaller of the cap and what the ratio allows.
        uncompressed_bytes_max: u64,
    },
    /// The codec is unknown, or this build does not have it.
    #[error("codec {codec} is not supported")]
    UnsupportedCodec {
        /// The codec's number in the API.
        codec: u64,
    },
}

/// What a limit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Encoded bytes.
    Bytes,
    /// Records.
    Records,
    /// Headers.
    Headers,
    /// Bytes of a header's name.
    HeaderNameBytes,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Records => "records",
            Self::Headers => "headers",
            Self::HeaderNameBytes => "bytes in a header's name",
        })
    }
}

/// How the bytes of a batch break the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A value ends after the message it stands in.
    #[error("a value runs past the end of its message")]
    PastEnd,
    /// A varint has more than ten bytes or a value above 64 bits.
    #[error("a varint does not fit 64 bits")]
    Varint,
    /// A field key is above 32 bits or names the field 0.
    #[error("a field key is out of range")]
    FieldKey,
    /// A field has a group as its value, or a wire type that does not exist.
    #[error("field {field} has the wire type {wire_type}, which is not accepted")]
    WireType {
        /// The field's number.
        field: u32,
        /// The wire type found.
        wire_type: u32,
    },
    /// A known field has the wire type of another type.
    #[error("field {field} has the wire type {wire_type} of another type")]
    FieldType {
        /// The field's number.
        field: u32,
        /// The wire type found.
        wire_type: u32,
    },
    /// A field that is not a list occurs twice.
    #[error("field {field} is given twice")]
    Repeated {
        /// The field's number.
        field: u32,
    },
    /// A header's name is not UTF-8.
    #[error("a header's name is not UTF-8")]
    HeaderName,
    /// The batch has both plain and compressed records.
    #[error("the batch has both plain and compressed records")]
    BothForms,
    /// The batch has fields of the compressed form but names no codec.
    #[error("the batch has fields of a compressed batch but no codec")]
    NoCodec,
    /// The batch names a codec but has nothing compressed.
    #[error("the batch names a codec but has no compressed records")]
    NoCompressed,
    /// The decompressed form is compressed again.
    #[error("the decompressed batch is compressed again")]
    NestedCompression,
    /// The batch holds another number of records than it declares.
    #[error("{declared} records are declared, {found} are there")]
    RecordCount {
        /// The number in the batch.
        declared: u32,
        /// The number of records after decompression.
        found: u32,
    },
    /// The records decompress to fewer bytes than declared.
    #[error("{declared} uncompressed bytes are declared, {found} are there")]
    UncompressedShort {
        /// The number in the batch.
        declared: u32,
        /// The number of bytes after decompression.
        found: u64,
    },
    /// The records decompress to more bytes than declared.
    #[error("{declared} uncompressed bytes are declared, more are there")]
    UncompressedLong {
        /// The number in the batch.
        declared: u32,
    },
    /// The compressed bytes are not one frame of their codec.
    #[error("the compressed bytes are not a valid frame")]
    Frame,
    /// A compressed frame asks for a larger window than readers must have.
    #[error("the frame asks for a window of {window_bytes} bytes, the limit is {max}")]
    Window {
        /// The window asked for.
        window_bytes: u64,
        /// The largest window accepted.
        max: u64,
    },
    /// Bytes follow the compressed frame.
    #[error("bytes follow the compressed frame")]
    TrailingBytes,
}
