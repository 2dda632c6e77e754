//! Read-only mappings of segment files: the one place with `unsafe`.
//!
//! # Why this is sound
//! A mapping hands out `&[u8]` over memory that the kernel changes when the same file is written.
//! Rust allows that only while nobody looks at the changing bytes, and the log engine guarantees
//! it: a segment is written at positions at or above its published end, slices are cut below that
//! end, bytes below it are never written again with other content, and a file is reused for another
//! segment only when the lease that every mapping holds says that no slice is alive. Files are
//! never shortened, so a page below the end cannot vanish. Another process that writes or truncates
//! the files breaks this; the data directory's lock and permissions are there against it.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::Map;

const PAGE_BYTES: usize = 4096;

/// A mapping of a whole segment file.
#[derive(Debug)]
pub(super) struct FileMap {
    /// Owns the mapping; every slice that was handed out shares this owner.
    whole: Bytes,
}

impl FileMap {
    /// Maps `reserve` bytes of `file` for reading.
    pub(super) fn new(file: &fs::File, reserve: u64, lease: Arc<()>) -> io::Result<Self> {
        let len = usize::try_from(reserve).map_err(io::Error::other)?;
        // SAFETY: see the module docs: bytes that a slice covers are neither rewritten nor cut off.
        let map = unsafe { MmapOptions::new().len(len).map(file)? };
        Ok(Self { whole: Bytes::from_owner(Owner { map, _lease: lease }) })
    }

    /// The page-aligned start address and length that cover a range.
    fn pages(&self, position: u64, len: usize) -> (usize, usize) {
        let start = position as usize;
        assert!(
            start + len <= self.whole.len(),
            "range {start}+{len} leaves the mapping of {} bytes",
            self.whole.len()
        );
        let aligned = start & !(PAGE_BYTES - 1);
        (aligned, start + len - aligned)
    }
}

impl Map for FileMap {
    fn slice(&self, position: u64, len: usize) -> Bytes {
        let start = position as usize;
        self.whole.slice(start..start + len)
    }

    fn is_resident(&self, position: u64, len: usize) -> bool {
        let (mut start, mut left) = self.pages(position, len);
        let mut pages = [0u8; 64];
        while left > 0 {
            let chunk = left.min(pages.len() * PAGE_BYTES);
            let address = self.whole.as_ptr().wrapping_add(start).cast_mut().cast();
            // SAFETY: `address` is page-aligned (mmap returns aligned memory and `start` is a
            // multiple of the page size), the range lies inside the mapping (asserted by `pages`),
            // and `pages` has a byte for each page of `chunk`.
            let failed = unsafe { libc::mincore(address, chunk, pages.as_mut_ptr()) } != 0;
            let count = chunk.div_ceil(PAGE_BYTES);
            if failed || pages[..count].iter().any(|page| page & 1 == 0) {
                return false;
            }
            start += chunk;
            left -= chunk;
        }
        true
    }

    fn populate(&self, position: u64, len: usize) -> io::Result<bool> {
        let (start, len) = self.pages(position, len);
        let address = self.whole.as_ptr().wrapping_add(start).cast_mut().cast();
        // SAFETY: the range is page-aligned and inside the mapping, as above; this advice reads
        // pages in and changes nothing.
        let failed = unsafe { libc::madvise(address, len, libc::MADV_POPULATE_READ) } != 0;
        if !failed {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A page that cannot be read, or that the machine has marked as broken memory.
            Some(libc::EFAULT | libc::EHWPOISON) => Err(error),
            _ => Ok(false),
        }
    }
}

/// Lets [`Bytes`] own a mapping.
struct Owner {
    map: Mmap,
    /// Given back with the last slice.
    _lease: Arc<()>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
