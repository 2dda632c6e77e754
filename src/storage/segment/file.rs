//! The file of a segment: its names, opening and closing it, and its end.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::super::entry::{PAYLOAD_BYTES_MAX, frame_bytes};
use super::super::error::{Error, IoContext as _, Result};
use super::super::fs::{File, Fs, OpenMode};
use super::super::spare::Recycled;
use super::{Access, Name, OpenFile, Segment};

impl Segment {
    /// True while file and mapping are open.
    pub fn is_open(&self) -> bool {
        self.open.load().is_some()
    }

    /// Where the file stands now.
    pub(in super::super) fn path(&self) -> PathBuf {
        self.path_named(&self.lock_name())
    }

    fn path_named(&self, name: &Name) -> PathBuf {
        match name {
            Name::Spare(path) => path.clone(),
            Name::Final | Name::Durable => self.final_path(),
        }
    }

    fn lock_name(&self) -> MutexGuard<'_, Name> {
        self.name.lock().expect("no holder of the name panics")
    }

    fn final_path(&self) -> PathBuf {
        self.dir.join(self.header.file_name())
    }

    /// Where the segment's index is kept.
    pub(in super::super) fn index_path(&self) -> PathBuf {
        self.final_path().with_extension("idx")
    }

    /// Begins to make the segment durable: the file to sync. What is appended from here on makes
    /// the segment dirty again.
    pub(in super::super) fn begin_sync(self: &Arc<Self>) -> Result<Arc<OpenFile>> {
        let open = self.open_file(Access::MayBlock)?;
        self.is_dirty.store(false, Ordering::Release);
        Ok(open)
    }

    /// Syncs the file. Any error is final for the data directory.
    pub(in super::super) fn sync_file(&self, open: &OpenFile) -> Result<()> {
        open.file.sync().map_err(|error| self.context.fail("sync", &self.path(), error))
    }

    /// Gives the file its final name, if it does not have it, after its bytes were synced.
    ///
    /// DURABILITY: write, sync, rename, sync the directory. The caller syncs the
    /// directory and then calls [`Self::confirm_name`]; true says that it must.
    pub(in super::super) fn take_name(&self) -> Result<bool> {
        let mut name = self.lock_name();
        if self.is_void.load(Ordering::Acquire) {
            return Ok(false);
        }
        if let Name::Spare(path) = &*name {
            let renamed = self.context.fs.rename(path, &self.final_path());
            renamed.map_err(|error| self.context.fail("rename", path, error))?;
            *name = Name::Final;
        }
        Ok(*name == Name::Final)
    }

    /// Notes that the segment's directory was synced after the file got its name.
    pub(in super::super) fn confirm_name(&self) {
        let mut name = self.lock_name();
        assert!(
            !matches!(*name, Name::Spare(_)) || self.is_void(),
            "segment {} has no name to be sure of",
            self.base_index()
        );
        if *name == Name::Final {
            *name = Name::Durable;
        }
    }

    /// True once no power cut can take the file's name away.
    pub(in super::super) fn is_durably_named(&self) -> bool {
        *self.lock_name() == Name::Durable
    }

    /// True once the segment was removed.
    pub(in super::super) fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Acquire)
    }

    /// The directory that the file's name is in.
    pub(in super::super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The open file, opening it if need be and if `access` allows to wait. Counted against the
    /// bound on open segments.
    pub(in super::super) fn open_file(self: &Arc<Self>, access: Access) -> Result<Arc<OpenFile>> {
        if let Some(open) = self.open.load_full() {
            self.was_used.store(true, Ordering::Relaxed);
            return Ok(open);
        }
        if access == Access::Hot {
            return Err(Error::Cold);
        }
        let path = self.path();
        let file = self.context.fs.open(&path, OpenMode::Write).at("open", &path)?;
        let open = self.map_and_keep(file, &path)?;
        self.context.open_segments.note_opened(self);
        Ok(open)
    }

    /// Opens the file anew, with its clean pages forgotten: to judge the disk and not the cache.
    pub(in super::super) fn open_fresh(&self) -> Result<Arc<dyn File>> {
        let path = self.path();
        let file = self.context.fs.open(&path, OpenMode::Write).at("open", &path)?;
        file.drop_cache().at("drop the cache of", &path)?;
        Ok(file)
    }

    fn map_and_keep(&self, file: Arc<dyn File>, path: &Path) -> Result<Arc<OpenFile>> {
        let _opening = self.opening.lock().expect("no opener of a segment panics");
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        if self.is_void() {
            return Err(Error::io("open", path, std::io::ErrorKind::NotFound.into()));
        }
        let reserve = self.reserve_bytes();
        assert!(reserve >= self.allocated_bytes(), "{reserve} bytes do not cover the file");
        let map = file.map(reserve, self.lease.clone()).at("map", path)?;
        self.mapped_bytes.store(reserve, Ordering::Release);
        let open = Arc::new(OpenFile { file, map });
        self.open.store(Some(open.clone()));
        Ok(open)
    }

    /// Keeps the file of a new segment open.
    pub(super) fn install(self: &Arc<Self>, file: Arc<dyn File>, path: &Path) -> Result<()> {
        self.map_and_keep(file, path)?;
        self.context.open_segments.note_opened(self);
        Ok(())
    }

    /// Address space for the whole life of the segment: one oversized entry may exceed its bound.
    fn reserve_bytes(&self) -> u64 {
        let longest = self.header.entries_position() + frame_bytes(PAYLOAD_BYTES_MAX);
        self.context.config.segment_bytes.max(self.allocated_bytes()).max(longest)
    }

    /// Closes file, mapping and index unless the segment was used lately or must stay open.
    pub(in super::super) fn close_if_idle(&self) -> bool {
        let must_stay = self.was_used.swap(false, Ordering::Relaxed)
            || self.is_dirty.load(Ordering::Acquire)
            || !self.is_durably_named();
        if must_stay {
            return false;
        }
        if self.is_sealed.load(Ordering::Acquire) {
            *self.index.write().expect("no holder of the index panics") = None;
        }
        self.open.store(None);
        true
    }

    /// Removes the segment's files, or has the spares recycle the file. The caller has made durable
    /// what makes the segment superfluous.
    pub(in super::super) fn remove(&self, recycled: &mut Recycled) -> Result<()> {
        let (fs, spares) = (&*self.context.fs, &self.context.spares);
        let _opening = self.opening.lock().expect("no opener of a segment panics");
        let name = self.lock_name();
        self.is_void.store(true, Ordering::SeqCst);
        self.open.store(None);
        let path = self.path_named(&name);
        // It gets no other name from here on, and who asks for it need not wait for the disk.
        drop(name);
        let bytes = self.allocated_bytes();
        // Nobody can map the file from here on. Whoever did holds the lease, up to the last slice.
        let is_borrowed = Arc::strong_count(&self.lease) > 1;
        let is_reusable = bytes == self.full_bytes() && !is_borrowed;
        if !(is_reusable && spares.recycle(&self.context, &path, bytes, recycled)?) {
            remove_if_there(fs, &path)?;
        }
        // Looking for one that is not there takes as long as removing it.
        if self.has_index_file.load(Ordering::SeqCst) {
            remove_if_there(fs, &self.index_path())?;
        }
        Ok(())
    }

    /// As [`Self::remove`], alone.
    pub(in super::super) fn remove_now(&self) -> Result<()> {
        let mut recycled = Recycled::default();
        let removed = self.remove(&mut recycled);
        removed.and(self.context.spares.take_in(&self.context, recycled))
    }
}

/// Removes a file that may not exist.
pub(in super::super) fn remove_if_there(fs: &dyn Fs, path: &Path) -> Result<()> {
    match fs.remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}
