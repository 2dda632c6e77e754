//! File systems with faults that the model does not have.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::fs::{DirEntry, File, Fs, Lock, OpenMode};
use quipu::storage::{Change, FactKind, Log};

use crate::support::*;

/// The modelled disk with one more fault: syncing a directory fails.
#[derive(Clone, Default)]
pub struct DirFaultFs {
    pub inner: SimFs,
    pub broken: Arc<Mutex<Option<PathBuf>>>,
    /// Run once, right after the directory of [`LOG`] was synced; true makes the call fail.
    pub hook: Arc<Mutex<Option<Hook>>>,
}

pub type Hook = Box<dyn FnOnce() -> bool + Send>;

impl std::fmt::Debug for DirFaultFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirFaultFs")
    }
}

impl Fs for DirFaultFs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.inner.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.broken.lock().unwrap().as_deref() == Some(dir) {
            return Err(io::Error::other("injected directory sync error"));
        }
        self.inner.sync_dir(dir)?;
        let hook = if dir == log_dir() { self.hook.lock().unwrap().take() } else { None };
        match hook.is_some_and(|hook| hook()) {
            true => Err(io::Error::other("injected directory sync error")),
            false => Ok(()),
        }
    }
    fn sync_filesystem(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_filesystem(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.inner.is_locked(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.inner.try_lock(path)
    }
    fn salt(&self) -> [u8; 16] {
        self.inner.salt()
    }
    fn boot_id(&self) -> [u8; 16] {
        self.inner.boot_id()
    }
}

pub fn log_dir() -> PathBuf {
    Path::new(ROOT).join("logs").join(LOG.to_string())
}

/// Appends `count` entries of 100 bytes, each synced.
pub fn fill(log: &mut Log, count: u32) {
    for _ in 0..count {
        append(log, 1, 100).unwrap();
        log.sync().unwrap();
    }
}

pub fn break_both_headers(fs: &SimFs, path: &Path) {
    fs.damage(path, |bytes| {
        bytes[20] ^= 1;
        bytes[4096 + 20] ^= 1;
    });
}

pub fn vote(text: &[u8]) -> Change {
    Change { log: LOG, kind: FactKind::HardState, value: Some(Bytes::copy_from_slice(text)) }
}

/// The real file system, with a stop in the midst of a read: the reader has the mapping, no slice.
#[derive(Debug)]
pub struct PausingFs {
    pub inner: OsFs,
    pub pause: Arc<Pause>,
}

#[derive(Debug, Default)]
pub struct Pause {
    pub is_armed: AtomicBool,
    pub is_reached: AtomicBool,
    pub is_over: AtomicBool,
}

#[derive(Debug)]
pub struct PausingFile(Arc<dyn File>, Arc<Pause>);

#[derive(Debug)]
pub struct PausingMap(Box<dyn quipu::storage::fs::Map>, Arc<Pause>, Arc<()>);

/// A slice whose life is counted.
pub struct Counted(Bytes, #[expect(dead_code, reason = "counted")] Arc<()>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl quipu::storage::fs::Map for PausingMap {
    fn slice(&self, position: u64, len: usize) -> Bytes {
        Bytes::from_owner(Counted(self.0.slice(position, len), self.2.clone()))
    }
    fn is_resident(&self, position: u64, len: usize) -> bool {
        if self.1.is_armed.swap(false, Ordering::SeqCst) {
            self.1.is_reached.store(true, Ordering::SeqCst);
            while !self.1.is_over.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        self.0.is_resident(position, len)
    }
    fn populate(&self, position: u64, len: usize) -> io::Result<bool> {
        self.0.populate(position, len)
    }
}

impl File for PausingFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn write_at(&self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()> {
        self.0.write_at(parts, position)
    }
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buf, position)
    }
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        self.0.write_zeros(from, to)
    }
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.0.reserve(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.0.drop_cache()
    }
    fn read_ahead(&self) -> io::Result<()> {
        self.0.read_ahead()
    }
    fn map(&self, reserve: u64, lease: Arc<()>) -> io::Result<Box<dyn quipu::storage::fs::Map>> {
        Ok(Box::new(PausingMap(self.0.map(reserve, lease)?, self.1.clone(), Arc::default())))
    }
}

impl Fs for PausingFs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(PausingFile(self.inner.open(path, mode)?, self.pause.clone())))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn sync_filesystem(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_filesystem(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }
    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.inner.is_locked(path)
    }
    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.inner.try_lock(path)
    }
    fn salt(&self) -> [u8; 16] {
        self.inner.salt()
    }
    fn boot_id(&self) -> [u8; 16] {
        self.inner.boot_id()
    }
}
