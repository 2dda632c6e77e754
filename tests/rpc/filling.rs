//! A disk that has no room for more, as long as it is told so.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::{DirEntry, File, Fs, Lock, OpenMode};

/// The real file system, but for how much of it is free.
#[derive(Debug)]
pub struct FillingFs {
    real: OsFs,
    is_full: Arc<AtomicBool>,
}

impl FillingFs {
    pub fn new(is_full: &Arc<AtomicBool>) -> Self {
        Self { real: OsFs::new(), is_full: is_full.clone() }
    }
}

impl Fs for FillingFs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.real.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.real.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.real.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.real.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.real.remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.real.sync_dir(dir)
    }

    fn sync_filesystem(&self, path: &Path) -> io::Result<()> {
        self.real.sync_filesystem(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        match self.is_full.load(Ordering::Relaxed) {
            true => Ok(0),
            false => self.real.free_bytes(path),
        }
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.real.try_lock(path)
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.real.is_locked(path)
    }

    fn salt(&self) -> [u8; 16] {
        self.real.salt()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.real.boot_id()
    }
}
