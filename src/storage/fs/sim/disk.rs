//! What the modelled disk holds, in memory and on the medium.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{Pending, SECTOR_BYTES};

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) files: Vec<Inode>,
    pub(super) seen: BTreeMap<PathBuf, usize>,
    pub(super) durable: BTreeMap<PathBuf, usize>,
    /// Name changes since their directory was synced, oldest first.
    pub(super) name_changes: Vec<NameChange>,
    pub(super) dirs: BTreeSet<PathBuf>,
    /// Directories that were removed since the one they were in was synced.
    pub(super) gone_dirs: BTreeSet<PathBuf>,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) salts: u64,
    pub(super) boots: u64,
    pub(super) capacity: Option<u64>,
    pub(super) faults: Faults,
    /// What was done, in words, when tracing is on.
    pub(super) trace: Option<Vec<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) path: PathBuf,
    pub(super) seen: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) dirty: BTreeSet<u64>,
    pub(super) unreadable: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct NameChange {
    pub(super) path: PathBuf,
    pub(super) file: Option<usize>,
    /// The name that a rename takes away. A file never loses both names, but may show under both.
    pub(super) from: Option<PathBuf>,
}

/// Countdowns: `Some(0)` fails the next call.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) sync: Option<u64>,
    pub(super) write: Option<(u64, usize)>,
    /// Reads return at most this many bytes.
    pub(super) read_bytes_max: Option<usize>,
}

impl Disk {
    pub(super) fn file_mut(&mut self, path: &Path) -> &mut Inode {
        let id = *self.seen.get(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        &mut self.files[id]
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    pub(super) fn apply_durably(&mut self, change: &NameChange) {
        match change.file {
            Some(id) => self.durable.insert(change.path.clone(), id),
            None => self.durable.remove(&change.path),
        };
        if let Some(from) = &change.from {
            self.durable.remove(from);
        }
    }

    /// Makes the changes of names in `dir` durable. Of a rename out of another directory, the old
    /// name stays until that one is synced too. With a directory that was removed goes all that was
    /// in it.
    pub(super) fn sync_names(&mut self, dir: &Path) {
        let gone = std::mem::take(&mut self.gone_dirs);
        let (gone, later) = gone.into_iter().partition(|path| path.parent() == Some(dir));
        self.gone_dirs = later;
        let gone: BTreeSet<PathBuf> = gone;
        let is_in = |path: &Path| {
            path.parent() == Some(dir) || path.parent().is_some_and(|parent| gone.contains(parent))
        };
        for mut change in std::mem::take(&mut self.name_changes) {
            let from = change.from.clone();
            if is_in(&change.path) && from.as_deref().is_some_and(|from| !is_in(from)) {
                change.from = None;
                self.apply_durably(&change);
                let path = from.expect("it is the name in another directory");
                if self.durable.contains_key(&path) {
                    self.name_changes.push(NameChange { path, file: None, from: None });
                }
            } else if is_in(&change.path) || from.as_deref().is_some_and(is_in) {
                self.apply_durably(&change);
            } else {
                self.name_changes.push(change);
            }
        }
    }

    /// Decides for each change of a name whether it survives a power cut.
    pub(super) fn cut_names(&mut self, keep: &mut impl FnMut(&Pending) -> bool) {
        for mut change in std::mem::take(&mut self.name_changes) {
            if !keep(&Pending::Name(change.path.clone())) {
                continue;
            }
            change.from = change.from.filter(|from| keep(&Pending::Name(from.clone())));
            self.apply_durably(&change);
        }
    }

    pub(super) fn used(&self) -> u64 {
        let ids: BTreeSet<usize> = self.seen.values().copied().collect();
        ids.into_iter().map(|id| self.files[id].seen.len() as u64).sum()
    }

    /// Room to make file `id` `len` bytes long.
    pub(super) fn has_room(&self, id: usize, len: u64) -> bool {
        let growth = len.saturating_sub(self.files[id].seen.len() as u64);
        growth == 0 || self.capacity.is_none_or(|capacity| self.used() + growth <= capacity)
    }

    pub(super) fn write(&mut self, id: usize, bytes: &[u8], position: u64) -> io::Result<()> {
        if !self.has_room(id, position + bytes.len() as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (kept, failed) = match &mut self.faults.write {
            Some((0, kept)) => (bytes.len().min(*kept), true),
            Some((skip, _)) => {
                *skip -= 1;
                (bytes.len(), false)
            }
            None => (bytes.len(), false),
        };
        self.files[id].write(&bytes[..kept], position);
        if failed {
            self.faults.write = None;
            return Err(io::Error::other("injected write error"));
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, id: usize) -> io::Result<()> {
        let failed = match &mut self.faults.sync {
            Some(0) => {
                self.faults.sync = None;
                true
            }
            Some(skip) => {
                *skip -= 1;
                false
            }
            None => false,
        };
        let file = &mut self.files[id];
        if failed {
            file.dirty.clear();
            return Err(io::Error::other("injected sync error"));
        }
        file.cut(&mut |_| true);
        Ok(())
    }
}

impl Inode {
    pub(super) fn copy(&self) -> Self {
        Self {
            path: self.path.clone(),
            seen: self.seen.clone(),
            durable: self.durable.clone(),
            dirty: self.dirty.clone(),
            unreadable: self.unreadable.clone(),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], position: u64) {
        if bytes.is_empty() {
            return;
        }
        let start = position as usize;
        let end = start + bytes.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[start..end].copy_from_slice(bytes);
        self.dirty.extend((start / SECTOR_BYTES) as u64..=((end - 1) / SECTOR_BYTES) as u64);
    }

    /// Lets the sectors that `keep` chooses reach the medium and drops the rest.
    pub(super) fn cut(&mut self, keep: &mut impl FnMut(&Pending) -> bool) {
        for sector in std::mem::take(&mut self.dirty) {
            if !keep(&Pending::Sector { path: self.path.clone(), sector }) {
                continue;
            }
            let start = sector as usize * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.seen.len());
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            self.durable[start..end].copy_from_slice(&self.seen[start..end]);
        }
        let grew = self.seen.len() > self.durable.len();
        if grew && keep(&Pending::Length(self.path.clone())) {
            self.durable.resize(self.seen.len(), 0);
        }
        self.seen.clone_from(&self.durable);
    }

    pub(super) fn check_readable(&self, start: usize, len: usize) -> io::Result<()> {
        let sectors =
            (start / SECTOR_BYTES) as u64..=((start + len.max(1) - 1) / SECTOR_BYTES) as u64;
        if self.unreadable.range(sectors).next().is_some() {
            return Err(io::Error::other("injected read error"));
        }
        Ok(())
    }
}

/// Moves every file below a directory; durable at once, which is all that quarantine needs.
pub(super) fn rename_dir(disk: &mut Disk, from: &Path, to: &Path) -> io::Result<()> {
    if !disk.dirs.remove(from) {
        return Err(io::ErrorKind::NotFound.into());
    }
    disk.dirs.insert(to.to_path_buf());
    let moved = |names: &BTreeMap<PathBuf, usize>| {
        let new_name = |path: &Path| path.strip_prefix(from).map(|rest| to.join(rest)).ok();
        names.iter().map(|(path, id)| (new_name(path).unwrap_or(path.clone()), *id)).collect()
    };
    disk.seen = moved(&disk.seen);
    disk.durable = moved(&disk.durable);
    Ok(())
}
