//! The operating system's files on a machine whose boot id the test sets, so that a mount after a
//! power cut counts as another boot. It can also break the rules of durability, to prove that the
//! tests notice.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::{DirEntry, File, Fs, Lock, Map, OpenMode};
use serde::{Deserialize, Serialize};

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sabotage {
    /// None.
    None,
    /// Segments and the file system are said to be synced and are not.
    SkipSegmentSync,
    /// The same of the meta journal.
    SkipJournalSync,
    /// The same of directories.
    SkipDirectorySync,
    /// Segments get their names first and are synced then.
    RenameBeforeSync,
}

/// The operating system with a boot id and a habit.
#[derive(Debug)]
pub(crate) struct Machine {
    os: OsFs,
    boot: u64,
    sabotage: Sabotage,
    put_off: Arc<Mutex<PutOff>>,
}

/// Files whose sync waits until they have their names.
#[derive(Debug, Default)]
struct PutOff {
    waiting: Vec<(PathBuf, Arc<dyn File>)>,
    /// Former names of those that have theirs.
    renamed: BTreeSet<PathBuf>,
}

impl Machine {
    pub(crate) fn new(boot: u64, sabotage: Sabotage) -> Arc<Self> {
        Arc::new(Self { os: OsFs::new(), boot, sabotage, put_off: Arc::default() })
    }

    fn skips_names(&self) -> bool {
        self.sabotage == Sabotage::SkipDirectorySync
    }
}

impl Fs for Machine {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.os.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.os.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = self.os.open(path, mode)?;
        if self.sabotage == Sabotage::None {
            return Ok(file);
        }
        let (sabotage, put_off) = (self.sabotage, self.put_off.clone());
        Ok(Arc::new(Disk { file, path: path.to_path_buf(), sabotage, put_off }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.os.rename(from, to)?;
        let mut put_off = self.put_off.lock().expect("no holder of the list panics");
        if let Some(at) = put_off.waiting.iter().position(|(path, _)| path == from) {
            self.os.sync_dir(to.parent().expect("a file is in a directory"))?;
            put_off.waiting.swap_remove(at).1.sync()?;
        }
        put_off.renamed.insert(from.to_path_buf());
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.os.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.os.remove_dir(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.skips_names() { Ok(()) } else { self.os.sync_dir(dir) }
    }

    fn sync_filesystem(&self, path: &Path) -> io::Result<()> {
        let is_skipped = self.skips_names() || self.sabotage == Sabotage::SkipSegmentSync;
        if is_skipped { Ok(()) } else { self.os.sync_filesystem(path) }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.os.free_bytes(path)
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        self.os.try_lock(path)
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        self.os.is_locked(path)
    }

    fn salt(&self) -> [u8; 16] {
        self.os.salt()
    }

    fn boot_id(&self) -> [u8; 16] {
        u128::from(self.boot).to_le_bytes()
    }
}

/// A file of a machine that breaks a rule.
#[derive(Debug)]
struct Disk {
    file: Arc<dyn File>,
    path: PathBuf,
    sabotage: Sabotage,
    put_off: Arc<Mutex<PutOff>>,
}

impl Disk {
    fn is_in(&self, dir: &str) -> bool {
        self.path.parent().is_some_and(|parent| parent.ends_with(dir))
    }

    /// Leaves the sync to the rename that gives the file its name; false if that was already.
    fn is_put_off(&self) -> bool {
        let mut put_off = self.put_off.lock().expect("no holder of the list panics");
        let waits = self.is_in("spare") && !put_off.renamed.contains(&self.path);
        if waits {
            put_off.waiting.push((self.path.clone(), self.file.clone()));
        }
        waits
    }
}

impl File for Disk {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.file.write_at(parts, position)
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buf, position)
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        self.file.write_zeros(from, to)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        match self.sabotage {
            Sabotage::SkipSegmentSync if !self.is_in("meta") => Ok(()),
            Sabotage::SkipJournalSync if self.is_in("meta") => Ok(()),
            Sabotage::RenameBeforeSync if self.is_put_off() => Ok(()),
            _ => self.file.sync(),
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn read_ahead(&self) -> io::Result<()> {
        self.file.read_ahead()
    }

    fn map(&self, reserve: u64, lease: Arc<()>) -> io::Result<Box<dyn Map>> {
        self.file.map(reserve, lease)
    }
}
