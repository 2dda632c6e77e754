//! One LZ4 frame, from memory into memory.
//!
//! The blocks are `lz4_flex`'s. The frame around them is walked here, because `lz4_flex`'s frame
//! reader allocates what a frame's header asks for, and takes a frame without its end mark for
//! whole.
//!
//! ```text
//! u32 magic   u8 flags   u8 block size   [u64 content size]   u8 header checksum
//! blocks: u32 size (high bit: stored)   bytes   [u32 checksum]
//! u32 end mark 0   [u32 content checksum]
//! ```
//! All little-endian; checksums are xxHash32. The format: `lz4_Frame_format.md` of the LZ4 project.

use std::io::{self, Write};

use lz4_flex::block::{self, DecompressError};
use lz4_flex::frame::{FrameEncoder, FrameInfo};
use twox_hash::XxHash32;

use super::error::Fault;

const MAGIC: u32 = 0x184D_2204;
const VERSION_MASK: u8 = 0xC0;
const VERSION: u8 = 0x40;
const INDEPENDENT_BLOCKS: u8 = 0x20;
const BLOCK_CHECKSUMS: u8 = 0x10;
const CONTENT_SIZE: u8 = 0x08;
const CONTENT_CHECKSUM: u8 = 0x04;
/// A bit that no version uses yet, and the one for dictionaries, which batches do not have.
const REFUSED_FLAGS: u8 = 0x03;
const BLOCK_STORED: u32 = 1 << 31;
/// How far back a block may refer.
const WINDOW_BYTES: usize = 64 << 10;

/// Compresses `plain` into one frame.
pub(super) fn compress(plain: &[u8]) -> io::Result<Vec<u8>> {
    let info = FrameInfo::new().content_size(Some(plain.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?)
}

/// Decompresses exactly one frame into `plain` and returns the number of bytes written.
pub(super) fn decompress(frame: &[u8], plain: &mut [u8]) -> Result<usize, Fault> {
    let mut input = Input(frame);
    let header = Header::read(&mut input)?;
    let mut output = Output { plain, written: 0 };
    loop {
        match input.u32()? {
            0 => break,
            size => output.block(&header, size, &mut input)?,
        }
    }
    let written = &output.plain[..output.written];
    if header.has(CONTENT_CHECKSUM) {
        input.checksum(written)?;
    }
    if header.content_size.is_some_and(|size| size != written.len() as u64) {
        return Err(Fault::Frame);
    }
    match input.0 {
        [] => Ok(written.len()),
        _ => Err(Fault::TrailingBytes),
    }
}

/// What a frame's header says about its blocks.
struct Header {
    flags: u8,
    block_bytes_max: usize,
    content_size: Option<u64>,
}

impl Header {
    fn read(input: &mut Input<'_>) -> Result<Self, Fault> {
        if input.u32()? != MAGIC {
            return Err(Fault::Frame);
        }
        let descriptor = input.0;
        let [flags, block_size] = input.array()?;
        let block_bytes_max = block_bytes_max(block_size).ok_or(Fault::Frame)?;
        if flags & VERSION_MASK != VERSION || flags & REFUSED_FLAGS != 0 {
            return Err(Fault::Frame);
        }
        let content_size = match flags & CONTENT_SIZE {
            0 => None,
            _ => Some(u64::from_le_bytes(input.array()?)),
        };
        let descriptor = &descriptor[..descriptor.len() - input.0.len()];
        let [checksum] = input.array()?;
        if XxHash32::oneshot(0, descriptor).to_le_bytes()[1] != checksum {
            return Err(Fault::Frame);
        }
        Ok(Self { flags, block_bytes_max, content_size })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn block_bytes_max(block_size: u8) -> Option<usize> {
    match block_size {
        0x40 => Some(64 << 10),
        0x50 => Some(256 << 10),
        0x60 => Some(1 << 20),
        0x70 => Some(4 << 20),
        _ => None,
    }
}

/// The frame's bytes not read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Fault::Frame)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Fault::Frame)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a checksum and holds it against `bytes`.
    fn checksum(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match self.u32()? == XxHash32::oneshot(0, bytes) {
            true => Ok(()),
            false => Err(Fault::Frame),
        }
    }
}

/// The room for the plain form. `written <= plain.len()`.
struct Output<'a> {
    plain: &'a mut [u8],
    written: usize,
}

impl Output<'_> {
    /// Reads one block of `size` (its high bit: stored) and its checksum, and decompresses it.
    fn block(&mut self, header: &Header, size: u32, input: &mut Input<'_>) -> Result<(), Fault> {
        let block = input.take((size & !BLOCK_STORED) as usize)?;
        if block.len() > header.block_bytes_max {
            return Err(Fault::Frame);
        }
        if header.has(BLOCK_CHECKSUMS) {
            input.checksum(block)?;
        }
        self.written += match size & BLOCK_STORED {
            0 => self.decompress(header, block)?,
            _ => self.store(block)?,
        };
        Ok(())
    }

    fn store(&mut self, block: &[u8]) -> Result<usize, Fault> {
        let too_long = self.too_long();
        let room = self.plain[self.written..].get_mut(..block.len()).ok_or(too_long)?;
        room.copy_from_slice(block);
        Ok(block.len())
    }

    fn decompress(&mut self, header: &Header, block: &[u8]) -> Result<usize, Fault> {
        let too_long = self.too_long();
        let (before, room) = self.plain.split_at_mut(self.written);
        let is_last_room = room.len() < header.block_bytes_max;
        let room_bytes = room.len().min(header.block_bytes_max);
        let room = &mut room[..room_bytes];
        let written = if before.is_empty() || header.has(INDEPENDENT_BLOCKS) {
            block::decompress_into(block, room)
        } else {
            let window = &before[before.len().saturating_sub(WINDOW_BYTES)..];
            block::decompress_into_with_dict(block, room, window)
        };
        written.map_err(|error| match error {
            DecompressError::OutputTooSmall { .. } if is_last_room => too_long,
            _ => Fault::Frame,
        })
    }

    fn too_long(&self) -> Fault {
        let declared = u32::try_from(self.plain.len()).unwrap_or(u32::MAX);
        Fault::UncompressedLong { declared }
    }
}

#[cfg(test)]
mod tests {
    use lz4_flex::frame::{BlockMode, BlockSize};

    use super::*;

    /// Words in an order that repeats far back but not near by.
    fn plain() -> Vec<u8> {
        let word = |at: u32| (at % 9_973).wrapping_mul(0x9E37_79B9).to_be_bytes();
        (0..50_000).flat_map(word).collect()
    }

    fn frame(info: FrameInfo, plain: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// Encodes a header with a right checksum.
    fn header(flags: u8, block_size: u8, content_size: &[u8]) -> Vec<u8> {
        let descriptor = [&[flags, block_size], content_size].concat();
        let checksum = XxHash32::oneshot(0, &descriptor).to_le_bytes()[1];
        [&MAGIC.to_le_bytes(), &descriptor[..], &[checksum]].concat()
    }

    fn stored(block: &[u8]) -> Vec<u8> {
        let size = u32::try_from(block.len()).unwrap() | BLOCK_STORED;
        [&size.to_le_bytes(), block].concat()
    }

    fn refusal(frame: &[u8]) -> Fault {
        decompress(frame, &mut vec![0; 1 << 20]).unwrap_err()
    }

    #[test]
    fn frames_of_all_options_are_read() {
        let plain = plain();
        let modes = [BlockMode::Independent, BlockMode::Linked];
        let sizes = [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max1MB];
        for options in 0..48_usize {
            let info = FrameInfo::new()
                .block_mode(modes[options & 1])
                .block_checksums(options & 2 != 0)
                .content_checksum(options & 4 != 0)
                .content_size((options & 8 != 0).then_some(plain.len() as u64))
                .block_size(sizes[options / 16]);
            let mut found = vec![0; plain.len()];
            assert_eq!(decompress(&frame(info, &plain), &mut found), Ok(plain.len()));
            assert!(found == plain, "options {options}");
        }
    }

    #[test]
    fn a_frame_is_refused_when_a_checksum_is_wrong() {
        let info = FrameInfo::new().block_checksums(true).content_checksum(true);
        let good = frame(info, b"some bytes");
        assert_eq!(decompress(&good, &mut [0; 10]), Ok(10));
        // The header's, the content's, and the block's, which stands before the end mark.
        for position in [6, good.len() - 1, good.len() - 9] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            assert_eq!(refusal(&bad), Fault::Frame, "position {position}");
        }
    }

    #[test]
    fn a_frame_is_refused_when_its_content_size_is_wrong() {
        for (size, found) in [(3, Ok(3)), (4, Err(Fault::Frame)), (2, Err(Fault::Frame))] {
            let head = header(VERSION | CONTENT_SIZE, 0x40, &u64::to_le_bytes(size));
            let frame = [head, stored(b"abc"), vec![0; 4]].concat();
            assert_eq!(decompress(&frame, &mut [0; 10]), found);
        }
    }

    #[test]
    fn a_block_larger_than_the_header_allows_is_refused() {
        for (bytes, found) in [(64 << 10, Ok(64 << 10)), ((64 << 10) + 1, Err(Fault::Frame))] {
            let block = stored(&vec![7; bytes]);
            let frame = [header(VERSION, 0x40, b""), block, vec![0; 4]].concat();
            assert_eq!(decompress(&frame, &mut vec![0; 1 << 20]), found);
        }
        // Inside a compressed block: 200,000 zeros in one of at most 64 KiB.
        let block = block::compress(&vec![0; 200_000]);
        let size = u32::try_from(block.len()).unwrap().to_le_bytes();
        let frame = [&header(VERSION, 0x40, b""), &size[..], &block, &[0; 4]].concat();
        assert_eq!(refusal(&frame), Fault::Frame);
    }

    #[test]
    fn headers_of_other_kinds_are_refused() {
        let rest = [stored(b"abc"), vec![0; 4]].concat();
        let read = |head: Vec<u8>| decompress(&[head, rest.clone()].concat(), &mut [0; 10]);
        assert_eq!(read(header(VERSION, 0x40, b"")), Ok(3));
        assert_eq!(read(header(VERSION | 1, 0x40, b"dict")), Err(Fault::Frame));
        assert_eq!(read(header(VERSION | 2, 0x40, b"")), Err(Fault::Frame));
        assert_eq!(read(header(0x80, 0x40, b"")), Err(Fault::Frame));
        assert_eq!(read(header(VERSION, 0x30, b"")), Err(Fault::Frame));
        assert_eq!(read(b"\x02\x21\x4c\x18".to_vec()), Err(Fault::Frame), "a legacy frame");
    }

    #[test]
    fn a_frame_without_its_end_mark_is_refused() {
        let frame = [header(VERSION, 0x40, b""), stored(b"abc")].concat();
        assert_eq!(refusal(&frame), Fault::Frame);
    }
}
