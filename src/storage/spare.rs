//! Segment files prepared ahead of use.
//!
//! A file that was written once, full length, is synced about one and a half times faster than one
//! that grows, and a full disk is found out here instead of in an append. Spares are old segments
//! that retention dropped, or files filled with zeros in the background. What a spare holds does
//! not matter: the salt of its next life makes it invalid. On a disk that is short of room there
//! are none.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::Instant;

use super::context::Context;
use super::error::{IoContext as _, Result};
use super::fs::{File, Fs, OpenMode};
use super::housekeeping::Rest;

/// Zeros that are written and synced at a time: an append's sync may wait for so many.
const STEP_BYTES: u64 = 4 << 20;

/// The spare files of a data directory.
#[derive(Debug)]
pub(super) struct Spares {
    dir: PathBuf,
    /// Room that they may take. In bytes, so that logs with short segments have as many as they
    /// need when a lot of them become full at a time.
    bytes_max: u64,
    state: Mutex<State>,
    /// An append was refused for want of room.
    is_short: AtomicBool,
    /// Woken when a spare is wanted.
    preparer: OnceLock<Thread>,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<(PathBuf, u64)>,
    next_number: u64,
    /// Length of a spare that somebody will want soon.
    wanted_bytes: Option<u64>,
}

/// Files that have become spares, once their directories are synced.
#[derive(Debug, Default)]
pub(super) struct Recycled {
    files: Vec<(PathBuf, u64)>,
    /// Where they were before.
    dirs: BTreeSet<PathBuf>,
}

impl Spares {
    /// Takes over the directory, removing what an earlier process left: half-prepared files and
    /// segments that never got their names.
    pub(super) fn open(fs: &dyn Fs, dir: PathBuf, bytes_max: u64) -> Result<Self> {
        fs.create_dir_all(&dir).at("create", &dir)?;
        for entry in fs.list(&dir).at("list", &dir)? {
            let path = dir.join(&entry.name);
            fs.remove_file(&path).at("remove", &path)?;
        }
        Ok(Self {
            dir,
            bytes_max,
            state: Mutex::default(),
            is_short: AtomicBool::new(false),
            preparer: OnceLock::new(),
        })
    }

    /// Takes a spare of exactly `bytes`, if one is ready: the one that was used last, which is the
    /// likeliest to be in memory.
    pub(super) fn take(&self, bytes: u64) -> Option<PathBuf> {
        let mut state = self.lock();
        let at = state.ready.iter().rposition(|(_, len)| *len == bytes)?;
        let (path, len) = state.ready.remove(at)?;
        assert_eq!(len, bytes, "a spare has the length that was asked for");
        Some(path)
    }

    /// Puts a taken spare back that was not used after all.
    pub(super) fn put_back(&self, path: PathBuf, bytes: u64) {
        self.lock().ready.push_back((path, bytes));
    }

    /// A path for a new file in the spare directory.
    pub(super) fn new_path(&self) -> PathBuf {
        let mut state = self.lock();
        state.next_number += 1;
        self.dir.join(format!("{:08}.spare", state.next_number))
    }

    /// Says that a spare of `bytes` will be wanted; [`Self::prepare`] then makes one.
    pub(super) fn want(&self, bytes: u64) {
        let mut state = self.lock();
        let is_wanted =
            bytes <= self.bytes_max && !state.ready.iter().any(|(_, len)| *len == bytes);
        if is_wanted && state.wanted_bytes.replace(bytes).is_none() {
            self.wake_preparer();
        }
    }

    /// Wakes the thread that prepares spares, for whatever else it does.
    pub(super) fn wake_preparer(&self) {
        self.preparer.get().inspect(|thread| thread.unpark());
    }

    /// Makes the calling thread the one that is woken when a spare is wanted.
    pub(super) fn wake_when_wanted(&self) {
        let _ = self.preparer.set(thread::current());
    }

    /// Makes a spare if one is wanted and there is room for two. Takes as long as the disk does,
    /// and rests after each step, which may be the end of it.
    ///
    /// # Errors
    /// [`super::Error::NoSpace`], or what the system said; the half-made file is gone.
    pub(super) fn prepare(&self, context: &Context, rest: Rest<'_>) -> Result<()> {
        let Some(bytes) = self.lock().wanted_bytes.take() else {
            return Ok(());
        };
        context.check_room(2 * bytes)?;
        let fs = &*context.fs;
        let path = self.new_path();
        let file = fs.open(&path, OpenMode::Create).at("create", &path)?;
        let filled = fill(&*file, bytes, rest);
        if let Ok(true) = filled {
            self.lock().ready.push_back((path, bytes));
            return Ok(());
        }
        fs.remove_file(&path).at("remove", &path)?;
        filled.map(drop).at("prepare", &path)
    }

    /// Gives the file `from` of `bytes` a place among the spares, from where nobody takes it before
    /// [`Self::take_in`]. False if there are enough, or if less room is left than they take: the
    /// file is then where it was.
    ///
    /// # Errors
    /// What the system said; the file is where it was.
    pub(super) fn recycle(
        &self,
        context: &Context,
        from: &Path,
        bytes: u64,
        recycled: &mut Recycled,
    ) -> Result<bool> {
        if !self.has_place(context, bytes, recycled) {
            return Ok(false);
        }
        let path = self.new_path();
        match context.fs.rename(from, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            renamed => renamed.at("rename", from)?,
        }
        recycled.files.push((path, bytes));
        recycled.dirs.insert(from.parent().unwrap_or(Path::new(".")).to_path_buf());
        Ok(true)
    }

    /// Takes in what was recycled, all at once: their new directory is synced once for all.
    ///
    /// DURABILITY: all directories are synced before the files can be used again, so that after a
    /// crash an old name never leads to new content.
    ///
    /// # Errors
    /// A directory that cannot be synced is the end of all writing.
    pub(super) fn take_in(&self, context: &Context, recycled: Recycled) -> Result<()> {
        if recycled.files.is_empty() {
            return Ok(());
        }
        for dir in std::iter::once(&self.dir).chain(&recycled.dirs) {
            let synced = context.fs.sync_dir(dir);
            synced.map_err(|error| context.fail("sync", dir, error))?;
        }
        for (path, _) in &recycled.files {
            warm_up(&*context.fs, path);
        }
        self.lock().ready.extend(recycled.files);
        Ok(())
    }

    /// Whether there may be another spare of `bytes`. Those of other lengths give it their place,
    /// or lengths that nobody asks for any more would keep all of it.
    fn has_place(&self, context: &Context, bytes: u64, recycled: &Recycled) -> bool {
        let mut state = self.lock();
        let taken: u64 = state.ready.iter().chain(&recycled.files).map(|(_, len)| len).sum();
        let ready = state.ready.iter().map(|(_, len)| *len);
        let of_others: u64 = ready.filter(|len| *len != bytes).sum();
        let mut excess = (taken + bytes).saturating_sub(self.bytes_max);
        if excess > of_others || context.check_room(taken - excess + bytes).is_err() {
            return false;
        }
        let mut others = Vec::new();
        while excess > 0 {
            let at = state.ready.iter().position(|(_, len)| *len != bytes);
            let other = at.and_then(|at| state.ready.remove(at));
            let (path, len) = other.expect("others take as much as is too much");
            excess = excess.saturating_sub(len);
            others.push((path, len));
        }
        drop(state);
        for (path, len) in others {
            if let Err(error) = context.fs.remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a spare was not removed");
                self.lock().ready.push_back((path, len));
            }
        }
        true
    }

    /// Removes all spares.
    ///
    /// # Errors
    /// What the system said of the first that could not be removed.
    pub(super) fn give_back(&self, fs: &dyn Fs) -> Result<()> {
        let ready = std::mem::take(&mut self.lock().ready);
        let remove = |(path, _): (PathBuf, u64)| fs.remove_file(&path).at("remove", &path);
        ready.into_iter().map(remove).fold(Ok(()), Result::and)
    }

    /// Notes that an append was refused for want of room.
    pub(super) fn note_shortage(&self) {
        self.is_short.store(true, Ordering::Relaxed);
        self.wake_preparer();
    }

    /// Whether that has happened since the last time.
    pub(super) fn take_shortage(&self) -> bool {
        self.is_short.swap(false, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the spares panics")
    }
}

/// Fills a file with zeros; false if it was not to go on to the end.
///
/// DURABILITY: synced here, so that the zeros do not weigh on the first sync of the file's use.
fn fill(file: &dyn File, bytes: u64, rest: Rest<'_>) -> io::Result<bool> {
    for from in (0..bytes).step_by(STEP_BYTES as usize) {
        let started = Instant::now();
        file.write_zeros(from, bytes.min(from + STEP_BYTES))?;
        file.sync()?;
        if !rest(started.elapsed()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Brings a spare into memory. Frames do not end with pages: appended into a file that is not
/// there, each would wait until the rest of its last page was read, at a sixth of the speed.
fn warm_up(fs: &dyn Fs, path: &Path) {
    let warmed = fs.open(path, OpenMode::Read).and_then(|file| file.read_ahead());
    if let Err(error) = warmed {
        // Nothing is lost: appends will wait for what they need.
        tracing::warn!(path = %path.display(), %error, "a spare was not brought into memory");
    }
}
