//! Compresses and decompresses whole batches, within bounds.
//!
//! A batch declares its decompressed size. [`Scratch`] gives a codec exactly that much room, and
//! only after the size was held against the bytes received (`Limits`). A codec that needs more
//! room, leaves some of it, or leaves input, has been lied about.

use super::error::{Error, Fault};
use super::skim::{Compressed, Summary};
use super::wire::corrupt;
use super::{Codec, lz4};

/// The largest window of a Zstandard frame, in bytes: what RFC 8878 asks every decoder to have.
#[cfg(feature = "zstd")]
const ZSTD_WINDOW_BYTES_MAX: u64 = 8 << 20;

/// `ZSTD_error_dstSize_tooSmall`, one of the numbers that zstd's `zstd_errors.h` calls stable.
#[cfg(feature = "zstd")]
const ZSTD_OUTPUT_TOO_SMALL: usize = 70;

/// Space for the decompressed form of one batch, to be used for many, one after another.
///
/// It grows to the largest batch it has seen, at most the uncompressed limit rounded up to a power
/// of two, and stays that large.
#[derive(Default)]
pub struct Scratch {
    plain: Vec<u8>,
    #[cfg(feature = "zstd")]
    zstd: zstd::zstd_safe::DCtx<'static>,
}

impl Scratch {
    /// Returns the size of the space held, in bytes.
    pub fn bytes_held(&self) -> usize {
        self.plain.capacity()
    }

    /// Decompresses the body of a skimmed batch and returns its plain form, which has not been
    /// skimmed.
    pub(super) fn decompress(
        &mut self,
        summary: &Summary,
        compressed: Compressed<'_>,
    ) -> Result<&[u8], Error> {
        let declared = summary.uncompressed_bytes;
        self.grow(declared as usize);
        let plain = &mut self.plain[..declared as usize];
        let found = match summary.codec {
            Codec::None => Ok(0),
            Codec::Lz4 => lz4::decompress(compressed.frame, plain),
            #[cfg(feature = "zstd")]
            Codec::Zstd => decompress_zstd(&mut self.zstd, compressed.frame, plain),
            #[cfg(not(feature = "zstd"))]
            Codec::Zstd => return Err(unsupported(Codec::Zstd)),
        };
        let found = found.map_err(|fault| corrupt(compressed.position, fault))? as u64;
        if found != u64::from(declared) {
            let fault = Fault::UncompressedShort { declared, found };
            return Err(corrupt(compressed.position, fault));
        }
        Ok(plain)
    }

    fn grow(&mut self, bytes: usize) {
        if self.plain.len() < bytes {
            // The old space goes first, so that the two never exist at once.
            self.plain = Vec::new();
            self.plain = vec![0; bytes.next_power_of_two()];
        }
    }
}

/// Compresses the plain form of a batch into one frame.
pub(super) fn compress(codec: Codec, plain: &[u8]) -> Result<Vec<u8>, Error> {
    let frame = match codec {
        Codec::None => Ok(plain.to_vec()),
        Codec::Lz4 => lz4::compress(plain),
        #[cfg(feature = "zstd")]
        Codec::Zstd => zstd::bulk::compress(plain, zstd::DEFAULT_COMPRESSION_LEVEL),
        #[cfg(not(feature = "zstd"))]
        Codec::Zstd => return Err(unsupported(Codec::Zstd)),
    };
    Ok(frame.expect("compression into memory does not fail"))
}

#[cfg(not(feature = "zstd"))]
fn unsupported(codec: Codec) -> Error {
    Error::UnsupportedCodec { codec: codec.number() }
}

/// Decompresses one Zstandard frame into `plain` and returns the number of bytes written.
#[cfg(feature = "zstd")]
fn decompress_zstd(
    context: &mut zstd::zstd_safe::DCtx<'static>,
    frame: &[u8],
    plain: &mut [u8],
) -> Result<usize, Fault> {
    use zstd::zstd_safe;

    check_zstd_window(frame)?;
    match zstd_safe::find_frame_compressed_size(frame) {
        Ok(bytes) if bytes == frame.len() => {}
        Ok(_) => return Err(Fault::TrailingBytes),
        Err(_) => return Err(Fault::Frame),
    }
    let declared = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    context.decompress(plain, frame).map_err(|code| match code.wrapping_neg() {
        ZSTD_OUTPUT_TOO_SMALL => Fault::UncompressedLong { declared },
        _ => Fault::Frame,
    })
}

/// Checks the frame's header (RFC 8878, section 3.1.1.1) for the window that readers must have.
///
/// Decompression here needs no window, the output is at hand as a whole. Streaming readers do.
#[cfg(feature = "zstd")]
fn check_zstd_window(frame: &[u8]) -> Result<(), Fault> {
    const SINGLE_SEGMENT: u8 = 0x20;
    let [0x28, 0xB5, 0x2F, 0xFD, descriptor, window, ..] = *frame else {
        return Err(Fault::Frame);
    };
    if descriptor & SINGLE_SEGMENT != 0 {
        return Ok(());
    }
    let base = 1_u64 << (10 + (window >> 3));
    let window_bytes = base + base / 8 * u64::from(window & 7);
    if window_bytes > ZSTD_WINDOW_BYTES_MAX {
        return Err(Fault::Window { window_bytes, max: ZSTD_WINDOW_BYTES_MAX });
    }
    Ok(())
}
