//! System calls that no safe interface offers.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`.
const SHUTDOWN: u64 = 0x8004_587D;

/// How much of the file system's journal still reaches the disk in a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The names and lengths so far, without the bytes.
    JournalFlushed = 1,
    /// Nothing.
    Nothing = 2,
}

/// Stops the ext4 file system of `mount` as a power cut would: whatever is not on its disk by now
/// never gets there, and every write or sync from now on fails.
pub(crate) fn cut_power(mount: &File, cut: Cut) -> io::Result<()> {
    let flags = cut as u32;
    // SAFETY: the call reads one `u32` behind the pointer, which outlives it, and keeps nothing.
    let done = unsafe { libc::ioctl(mount.as_raw_fd(), SHUTDOWN as _, &raw const flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes the dirty pages of a part of a file to the disk, and neither lengths nor names.
pub(crate) fn write_out(file: &File, position: u64, len: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (position, len) = (position.cast_signed(), len.cast_signed());
    // SAFETY: the call takes numbers only; the descriptor is open while `file` is borrowed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), position, len, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
