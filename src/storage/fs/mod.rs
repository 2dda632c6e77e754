//! The seam between the log engine and an operating system.
//!
//! Every file the engine opens, renames, writes or syncs goes through [`Fs`] and [`File`]. There
//! are two implementations: [`os::OsFs`] for production and [`sim::SimFs`], a model of a disk that
//! loses, tears and damages what was not synced. Salts and the boot id come in through the seam
//! too, so that a run over the model is a function of its seed.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

mod map;
pub mod os;
pub mod sim;

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing, for reading.
    Read,
    /// Existing, for reading what the disk has, whatever is in memory; where the system cannot do
    /// that, the file's clean pages are forgotten.
    ReadDisk,
    /// Existing, for reading and writing.
    Write,
    /// New, for reading and writing; fails when the name is taken.
    Create,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// True for a directory.
    pub is_dir: bool,
}

/// A file system.
pub trait Fs: Send + Sync + fmt::Debug {
    /// Creates a directory and its missing parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Lists a directory, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Renames a file or directory, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name. Mappings of it stay readable.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything on the file system of `path` durable.
    fn sync_filesystem(&self, path: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged process can still allocate where `path` lies.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes the exclusive lock `path`, held until the guard is dropped; `None` when another
    /// process holds it. The file is created if it is missing.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;
    /// True while a process holds the lock `path`. Creates nothing, and keeps nothing.
    fn is_locked(&self, path: &Path) -> io::Result<bool>;
    /// Fresh randomness.
    fn salt(&self) -> [u8; 16];
    /// Identity of this boot of the machine: equal before and after a process crash, different
    /// after a machine crash.
    fn boot_id(&self) -> [u8; 16];
}

/// An exclusive lock, released on drop.
pub trait Lock: Send + Sync + fmt::Debug {}

/// An open file.
pub trait File: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Writes the concatenation of `parts` at `position`: all of it, or an error after which any
    /// part of it may have been written.
    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Reads up to `buf.len()` bytes at `position`: none only at the end of the file, but fewer at
    /// any time. [`read_exact_at`] reads on.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes zeros from `from` to `to`, so that later writes there neither allocate nor grow.
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()>;
    /// Takes `bytes` of the disk for the file without writing them.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable. An error is final: nothing is known about what
    /// was written since the last success, not even if a later call succeeds.
    fn sync(&self) -> io::Result<()>;
    /// Asks the system to forget the file's clean pages, so that later reads judge the disk.
    fn drop_cache(&self) -> io::Result<()>;
    /// Asks the system to bring the whole file into memory, without waiting for it.
    fn read_ahead(&self) -> io::Result<()>;
    /// Maps the first `reserve` bytes for reading; they may lie beyond the end of the file as long
    /// as they are not touched. The mapping holds `lease` until its last slice is gone, so that
    /// the owner of the file knows when nobody looks at it any more.
    fn map(&self, reserve: u64, lease: Arc<()>) -> io::Result<Box<dyn Map>>;
}

/// A read-only view of a file that sees later writes to it.
pub trait Map: Send + Sync + fmt::Debug {
    /// Borrows bytes. The slice keeps the mapping alive.
    ///
    /// # Panics
    /// If the range leaves the mapping. The caller keeps it inside the file.
    fn slice(&self, position: u64, len: usize) -> Bytes;
    /// True if touching the range will not wait for a disk, as far as the system knows.
    fn is_resident(&self, position: u64, len: usize) -> bool;
    /// Brings the range into memory, waiting for the disk; a bad sector is an error here and not a
    /// signal. False if the system cannot do this just now, or not at all.
    fn populate(&self, position: u64, len: usize) -> io::Result<bool>;
}

/// Reads exactly `buf.len()` bytes at `position`.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] when the file ends before.
pub fn read_exact_at(file: &dyn File, buf: &mut [u8], position: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], position + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}
