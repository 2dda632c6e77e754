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
    if header
        .content_size
        .is_some_and(|size| size != written.len() as u64)
    {
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
        Ok(Self {
            flags,
            block_bytes_max,
            content_size,
        })
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
        let room = self.plain[self.written..]
            .get_mut(..block.len())
            .ok_or(too_long)?;
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
