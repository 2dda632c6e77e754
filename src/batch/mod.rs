//! Record batches: checking, reading and building what producers send and the log stores.
//!
//! A batch is the wire form of a `RecordBatch` of `proto/quipu/v1/record.proto`. The server
//! never decodes it. It *skims* it: one walk over tags and lengths that allocates nothing, checks
//! everything a reader relies on and counts the records. This module owns that walk, the lazy view
//! of the records behind it, the codecs, and the builder that clients use. It knows neither the
//! generated API types nor the log.
//!
//! * [`skim`] checks the wire form; [`verify`] also checks the checksum and the insides of a
//!   compressed batch. What the server stores has been verified.
//! * [`Verified`] is the proof: records can be read only through it, and then cannot fail.
//! * Memory and time are bounded by the bytes received and by [`Limits`], never by a number that
//!   a batch declares.
//! * Fields that this version does not know are skipped and kept.
//!
//! Read next: `skim.rs` for the rules, `records.rs` for reading, `build.rs` for writing.

mod build;
mod compress;
mod error;
mod lz4;
mod records;
mod skim;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;

pub use build::{BatchBuilder, Record};
pub use compress::Scratch;
pub use error::{Error, Fault, Measure};
pub use records::{Headers, RecordView, Records};
pub use skim::{Summary, skim};

/// How large a batch and its parts may be. A part of exactly its limit is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an encoded batch as it is sent and stored. Default: 4 MiB.
    pub batch_bytes_max: u32,
    /// Bytes of a decompressed batch, and so of the scratch space. Default: 16 MiB.
    pub uncompressed_bytes_max: u32,
    /// Bytes of a decompressed batch for each compressed one. Default: 100.
    pub compression_ratio_max: u32,
    /// Records of a batch. Default: 131,072.
    pub records_max: u32,
    /// Bytes of one encoded record, its headers included. Default: 1 MiB.
    pub record_bytes_max: u32,
    /// Headers of one record. Default: 128.
    pub headers_max: u32,
    /// Bytes of a header's name. Default: 256.
    pub header_name_bytes_max: u32,
}

impl Limits {
    /// Returns the size that `compressed_bytes` may decompress to.
    fn uncompressed_bytes_max(&self, compressed_bytes: usize) -> u32 {
        let by_ratio = (compressed_bytes as u64).saturating_mul(self.compression_ratio_max.into());
        u32::try_from(by_ratio).map_or(self.uncompressed_bytes_max, |by_ratio| {
            by_ratio.min(self.uncompressed_bytes_max)
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_bytes_max: 4 << 20,
            uncompressed_bytes_max: 16 << 20,
            compression_ratio_max: 100,
            records_max: 1 << 17,
            record_bytes_max: 1 << 20,
            headers_max: 128,
            header_name_bytes_max: 256,
        }
    }
}

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// One LZ4 frame.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

impl Codec {
    /// Returns the codec of a number of the API's `Codec`.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|codec| codec.number() == number)
    }

    /// Returns the codec's number in the API.
    pub fn number(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// A batch that was found sound, and the way to its records. Only [`verify`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    summary: Summary,
    crc: u32,
    /// The plain form: the payload, or what it decompressed to. It passed the skimmer as a batch of
    /// `summary.record_count` records.
    plain: &'a [u8],
}

impl<'a> Verified<'a> {
    /// Returns what the batch says about itself, all of it proven.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Returns the CRC-32 of the payload.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Returns the records in order.
    pub fn records(&self) -> Records<'a> {
        Records::new(self.plain, self.summary.record_count)
    }

    /// Returns the record at a place in the batch, counted from 0. Takes time in proportion to it.
    pub fn record(&self, ordinal: u32) -> Option<RecordView<'a>> {
        self.records().nth(ordinal as usize)
    }
}

/// Returns the CRC-32 (IEEE) of an encoded batch.
pub fn payload_crc(payload: &[u8]) -> u32 {
    crc32fast::hash(payload)
}

/// Checks a batch completely: its size, its checksum if the producer sent one, its wire form, and
/// if it is compressed what is inside.
///
/// The size is checked before anything is computed. `scratch` takes the decompressed form and is
/// there to be reused.
///
/// # Errors
/// Every [`Error`]. `scratch` can be used again.
pub fn verify<'a>(
    payload: &'a [u8],
    expected_crc: Option<u32>,
    limits: &Limits,
    scratch: &'a mut Scratch,
) -> Result<Verified<'a>, Error> {
    skim::payload_bytes(payload, limits)?;
    let crc = payload_crc(payload);
    if let Some(expected) = expected_crc.filter(|expected| *expected != crc) {
        return Err(Error::BadChecksum { expected, found: crc });
    }
    let (summary, compressed) = skim::skim_with_body(payload, limits)?;
    if summary.codec == Codec::None {
        return Ok(Verified { summary, crc, plain: payload });
    }
    let plain = scratch.decompress(&summary, compressed)?;
    let found = skim::skim_decompressed(plain, limits)?;
    let declared = summary.record_count;
    if found != declared {
        let fault = Fault::RecordCount { declared, found };
        return Err(wire::corrupt(compressed.position, fault));
    }
    Ok(Verified { summary, crc, plain })
}
