//! A model of a disk that behaves as badly as real ones do.
//!
//! Files live in memory twice: as processes see them and as the medium holds them. Writes reach the
//! medium sector by sector when a file is synced, or, in a crash, in whatever subset the crash
//! chooses; names reach it when their directory is synced, or one by one at the crash's choice.
//! Faults are set up ahead: a sync that fails *and marks its pages clean* (what Linux does), a
//! write cut short, a disk that is full, a sector that cannot be read, a flipped bit.
//!
//! The model is deterministic: salts count up, the crash's choices come from the caller.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use self::disk::{Disk, Faults, Inode, NameChange};
use super::{DirEntry, File, Fs, Lock, Map, OpenMode};

mod disk;

/// Unit in which writes survive or vanish.
pub const SECTOR_BYTES: usize = 512;

/// A file system in memory with faults on demand. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

/// A write or name change that a crash may keep or lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// One dirty sector of a file.
    Sector {
        /// The file's name, or its last one.
        path: PathBuf,
        /// Sector number in the file.
        sector: u64,
    },
    /// A grown length of a file.
    Length(PathBuf),
    /// A created, renamed or removed name.
    Name(PathBuf),
}

impl SimFs {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the bytes that all files together may have.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_disk().capacity = bytes;
    }

    /// Makes the sync after `skip` more fail once. The pages it covered are marked clean without
    /// having been written, as Linux does.
    pub fn fail_sync(&self, skip: u64) {
        self.lock_disk().faults.sync = Some(skip);
    }

    /// Makes the write after `skip` more fail after its first `kept` bytes.
    pub fn fail_write(&self, skip: u64, kept: usize) {
        self.lock_disk().faults.write = Some((skip, kept));
    }

    /// Makes every read return at most `bytes` bytes, as reads may.
    pub fn limit_reads(&self, bytes: Option<usize>) {
        self.lock_disk().faults.read_bytes_max = bytes;
    }

    /// Makes reads of one sector of a file fail, as a bad sector does.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn make_unreadable(&self, path: &Path, sector: u64) {
        self.lock_disk().file_mut(path).unreadable.insert(sector);
    }

    /// Changes bytes of a file behind everyone's back, on the medium and in memory.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock_disk();
        let file = disk.file_mut(path);
        change(&mut file.durable);
        file.seen.clone_from(&file.durable);
        file.dirty.clear();
    }

    /// Changes bytes of a file that decays while it is in use: on the medium and in the cache, what
    /// is not synced stays so.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn rot(&self, path: &Path, change: impl Fn(&mut [u8])) {
        let mut disk = self.lock_disk();
        let file = disk.file_mut(path);
        change(&mut file.durable);
        change(&mut file.seen);
    }

    /// The bytes of a file as the medium holds them; `None` if its name is not durable.
    pub fn durable_bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.lock_disk();
        disk.durable.get(path).map(|id| disk.files[*id].durable.clone())
    }

    /// Names of all files as processes see them, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock_disk().seen.keys().cloned().collect()
    }

    /// Bytes that all files together have.
    pub fn used_bytes(&self) -> u64 {
        self.lock_disk().used()
    }

    /// What a power cut now could lose, in a fixed order.
    pub fn pending(&self) -> Vec<Pending> {
        let disk = self.lock_disk();
        let mut pending = Vec::new();
        for file in &disk.files {
            let sector =
                |sector: &u64| Pending::Sector { path: file.path.clone(), sector: *sector };
            pending.extend(file.dirty.iter().map(sector));
            if file.seen.len() > file.durable.len() {
                pending.push(Pending::Length(file.path.clone()));
            }
        }
        pending.extend(disk.name_changes.iter().map(|change| Pending::Name(change.path.clone())));
        pending
    }

    /// Cuts the power: of what was not synced, only what `keep` says survives. Locks are gone, the
    /// boot id changes, and open files must no longer be used.
    pub fn power_cut(&self, mut keep: impl FnMut(&Pending) -> bool) {
        let mut disk = self.lock_disk();
        for file in &mut disk.files {
            file.cut(&mut keep);
        }
        disk.cut_names(&mut keep);
        disk.seen = disk.durable.clone();
        disk.locks.clear();
        disk.boots += 1;
    }

    /// Kills the process: what it wrote is in the page cache and stays, its locks are gone.
    pub fn process_crash(&self) {
        self.lock_disk().locks.clear();
    }

    /// A copy of the disk that goes its own way from here.
    pub fn fork(&self) -> Self {
        let disk = self.lock_disk();
        let copy = Disk {
            files: disk.files.iter().map(Inode::copy).collect(),
            seen: disk.seen.clone(),
            durable: disk.durable.clone(),
            name_changes: disk.name_changes.clone(),
            dirs: disk.dirs.clone(),
            gone_dirs: disk.gone_dirs.clone(),
            locks: disk.locks.clone(),
            salts: disk.salts,
            boots: disk.boots,
            capacity: disk.capacity,
            faults: Faults::default(),
            trace: None,
        };
        Self { disk: Arc::new(Mutex::new(copy)) }
    }

    /// Puts the disk back to what a fork of it holds. Files that were open then stay open.
    pub fn put_back(&self, fork: &Self) {
        let copy = fork.fork();
        std::mem::swap(&mut *self.lock_disk(), &mut *copy.lock_disk());
    }

    /// Starts to record what is done.
    pub fn start_trace(&self) {
        self.lock_disk().trace = Some(Vec::new());
    }

    /// What was done since tracing started or this was last called, one line an operation.
    pub fn take_trace(&self) -> Vec<String> {
        self.lock_disk().trace.replace(Vec::new()).unwrap_or_default()
    }

    fn lock_disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().expect("no holder of the disk panics")
    }
}

impl Fs for SimFs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        disk.dirs.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let disk = self.lock_disk();
        if !disk.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name_in = |path: &Path| {
            let name = path.file_name()?.to_str()?.to_owned();
            (path.parent() == Some(dir)).then_some(name)
        };
        let files = disk.seen.keys().filter_map(|path| name_in(path).map(|name| (name, false)));
        let dirs = disk.dirs.iter().filter_map(|path| name_in(path).map(|name| (name, true)));
        let mut names: Vec<_> =
            files.chain(dirs).map(|(name, is_dir)| DirEntry { name, is_dir }).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut disk = self.lock_disk();
        let id = match (disk.seen.get(path).copied(), mode) {
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => id,
            (None, OpenMode::Create) => {
                let id = disk.files.len();
                disk.files.push(Inode { path: path.to_path_buf(), ..Inode::default() });
                disk.seen.insert(path.to_path_buf(), id);
                let change = NameChange { path: path.to_path_buf(), file: Some(id), from: None };
                disk.name_changes.push(change);
                disk.note(|| format!("create {}", path.display()));
                id
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(disk);
        let file = SimFile { disk: self.disk.clone(), id };
        if mode == OpenMode::ReadDisk {
            file.drop_cache()?;
        }
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        let Some(id) = disk.seen.remove(from) else {
            return disk::rename_dir(&mut disk, from, to);
        };
        disk.seen.insert(to.to_path_buf(), id);
        disk.files[id].path = to.to_path_buf();
        // A name that was never durable and is gone cannot come back without the new one.
        disk.name_changes.retain(|change| change.path != from);
        let from_name = Some(from.to_path_buf());
        disk.name_changes.push(NameChange {
            path: to.to_path_buf(),
            file: Some(id),
            from: from_name,
        });
        disk.note(|| format!("rename {} -> {}", from.display(), to.display()));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        disk.seen.remove(path).ok_or(io::ErrorKind::NotFound)?;
        let change = NameChange { path: path.to_path_buf(), file: None, from: None };
        disk.name_changes.push(change);
        disk.note(|| format!("remove {}", path.display()));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        if disk.seen.keys().any(|file| file.starts_with(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        disk.dirs.remove(path);
        disk.gone_dirs.insert(path.to_path_buf());
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        disk.note(|| format!("sync-dir {}", dir.display()));
        disk.sync_names(dir);
        Ok(())
    }

    fn sync_filesystem(&self, _path: &Path) -> io::Result<()> {
        let mut disk = self.lock_disk();
        disk.note(|| "sync-filesystem".to_owned());
        for id in 0..disk.files.len() {
            disk.sync(id)?;
        }
        for change in std::mem::take(&mut disk.name_changes) {
            disk.apply_durably(&change);
        }
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let disk = self.lock_disk();
        let used = disk.used();
        Ok(disk.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used)))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let mut disk = self.lock_disk();
        if !disk.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        let boot = disk.boots;
        Ok(Some(Box::new(SimLock { disk: self.disk.clone(), path: path.to_path_buf(), boot })))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        Ok(self.lock_disk().locks.contains(path))
    }

    fn salt(&self) -> [u8; 16] {
        let mut disk = self.lock_disk();
        disk.salts += 1;
        u128::from(disk.salts).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_le_bytes()
    }

    fn boot_id(&self) -> [u8; 16] {
        u128::from(self.lock_disk().boots + 1).to_le_bytes()
    }
}

#[derive(Debug)]
struct SimLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
    boot: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock().expect("no holder of the disk panics");
        if disk.boots == self.boot {
            disk.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    id: usize,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Disk, usize) -> T) -> T {
        act(&mut self.disk.lock().expect("no holder of the disk panics"), self.id)
    }
}

impl File for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|disk, id| Ok(disk.files[id].seen.len() as u64))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.with(|disk, id| {
            let name = disk.files[id].path.display().to_string();
            disk.note(|| format!("write {name} {position}+{}", bytes.len()));
            disk.write(id, &bytes, position)
        })
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.with(|disk, id| {
            let file = &disk.files[id];
            let start = (position as usize).min(file.seen.len());
            let len = buf.len().min(file.seen.len() - start);
            let len = len.min(disk.faults.read_bytes_max.unwrap_or(len));
            file.check_readable(start, len)?;
            buf[..len].copy_from_slice(&file.seen[start..start + len]);
            Ok(len)
        })
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        self.with(|disk, id| {
            let name = disk.files[id].path.display().to_string();
            disk.note(|| format!("zero {name} {from}..{to}"));
            disk.write(id, &vec![0; (to - from) as usize], from)
        })
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.write_zeros(0, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|disk, id| {
            let name = disk.files[id].path.display().to_string();
            disk.note(|| format!("sync {name}"));
            disk.sync(id)
        })
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Dirty pages stay, clean ones are read again: after a failed sync that is the old content.
        self.with(|disk, id| {
            let file = &mut disk.files[id];
            let mut fresh = file.durable.clone();
            fresh.resize(file.seen.len().max(fresh.len()), 0);
            for sector in &file.dirty {
                let start = *sector as usize * SECTOR_BYTES;
                let end = (start + SECTOR_BYTES).min(file.seen.len());
                fresh[start..end].copy_from_slice(&file.seen[start..end]);
            }
            file.seen = fresh;
            Ok(())
        })
    }

    fn read_ahead(&self) -> io::Result<()> {
        Ok(())
    }

    fn map(&self, _reserve: u64, lease: Arc<()>) -> io::Result<Box<dyn Map>> {
        let file = SimFile { disk: self.disk.clone(), id: self.id };
        Ok(Box::new(SimMap { file, _lease: lease }))
    }
}

#[derive(Debug)]
struct SimMap {
    file: SimFile,
    /// Slices of this mapping are copies and need none.
    _lease: Arc<()>,
}

impl Map for SimMap {
    fn slice(&self, position: u64, len: usize) -> Bytes {
        let start = position as usize;
        self.file.with(|disk, id| Bytes::copy_from_slice(&disk.files[id].seen[start..start + len]))
    }

    fn is_resident(&self, position: u64, len: usize) -> bool {
        self.populate(position, len).is_ok()
    }

    fn populate(&self, position: u64, len: usize) -> io::Result<bool> {
        self.file.with(|disk, id| disk.files[id].check_readable(position as usize, len))?;
        Ok(true)
    }
}
