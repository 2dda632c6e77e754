//! Reading a segment: its checkpoint, its index, its entries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::entry::{Entry, EntryHeader};
use super::super::error::{Damage, Error, IoContext as _, Result};
use super::super::fs::{File, OpenMode, read_exact_at};
use super::super::header::CHECKPOINT_POSITION;
use super::super::index::{Row, SparseIndex};
use super::super::scan::Scan;
use super::super::walk::Walk;
use super::{Access, Segment, remove_if_there};

impl Segment {
    /// Bytes of the checkpoint, verified.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when they are not what was written.
    pub fn checkpoint(self: &Arc<Self>) -> Result<Bytes> {
        let open = self.open_file(Access::MayBlock)?;
        self.read_checkpoint(&*open.file)
    }

    /// Reads the checkpoint from the disk, not from the cache.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(in super::super) fn check_checkpoint(&self) -> Result<()> {
        // Readers still use the entries, so they stay in memory.
        let path = self.path();
        let file = self.context.fs.open(&path, OpenMode::ReadDisk).at("open", &path)?;
        self.read_checkpoint(&*file).map(drop)
    }

    fn read_checkpoint(&self, file: &dyn File) -> Result<Bytes> {
        let path = self.path();
        let mut bytes = vec![0; self.header.checkpoint_len as usize];
        read_exact_at(file, &mut bytes, CHECKPOINT_POSITION).map_err(|error| {
            self.damage(CHECKPOINT_POSITION, format!("the checkpoint cannot be read: {error}"))
        })?;
        let found = crc32fast::hash(&bytes);
        let expected = self.header.checkpoint_crc;
        if found != expected {
            let what = format!("checkpoint checksum is {found:#010x}, expected {expected:#010x}");
            let position = CHECKPOINT_POSITION;
            return Err(Error::Corrupt(Damage { file: path, position, what }));
        }
        Ok(bytes.into())
    }

    /// Forgets the index of a sealed segment, in memory and on disk.
    pub(in super::super) fn drop_index(&self) -> Result<()> {
        *self.index.write().expect("no holder of the index panics") = None;
        remove_if_there(&*self.context.fs, &self.index_path())
    }

    /// Gives a sealed segment the index that a scan built, which leads around damage.
    pub(in super::super) fn publish_index(&self, index: SparseIndex) {
        *self.index.write().expect("no holder of the index panics") = Some(index);
    }

    /// Adds the rows of an index that a scan built, which leads around damage. For the segment that
    /// is being written as well: no row goes.
    pub(in super::super) fn lead_around(&self, found: SparseIndex) {
        let mut index = self.index.write().expect("no holder of the index panics");
        match index.as_mut() {
            Some(index) => index.merge(found),
            None => *index = Some(found),
        }
    }

    /// Gives the segment the index that recovery built and the end it found.
    pub(in super::super) fn publish(&self, index: SparseIndex, end: u64) {
        *self.index.write().expect("no holder of the index panics") = Some(index);
        self.end.store(end, Ordering::Release);
    }

    /// Writes the index beside the file. Called for a segment that takes no more entries.
    pub(in super::super) fn write_index(&self) -> Result<()> {
        let path = self.index_path();
        let index = self.index.read().expect("no holder of the index panics").clone();
        let Some(index) = index else { return Ok(()) };
        self.has_index_file.store(true, Ordering::SeqCst);
        remove_if_there(&*self.context.fs, &path)?;
        let file = self.context.fs.open(&path, OpenMode::Create).at("create", &path)?;
        let written = index.write_to(&*file, self.seed, self.end()).at("write", &path);
        if self.is_void.load(Ordering::SeqCst) {
            // Whoever removed the segment may have looked for the index before it was there.
            remove_if_there(&*self.context.fs, &path)?;
        }
        written
    }

    /// Loads the index from beside the file, or rebuilds it from the segment.
    fn load_index(&self) -> Result<SparseIndex> {
        let loaded = self.context.fs.open(&self.index_path(), OpenMode::Read).ok();
        match loaded.and_then(|file| SparseIndex::read_from(&*file, self.seed)) {
            Some((index, _)) => Ok(index),
            None => self.rebuild_index(),
        }
    }

    /// The index that was written when the log was closed with its entries ending at `end`.
    pub(in super::super) fn read_closed_index(&self, end: u64) -> Option<SparseIndex> {
        let file = self.context.fs.open(&self.index_path(), OpenMode::Read).ok()?;
        let (index, index_end) = SparseIndex::read_from(&*file, self.seed)?;
        (index_end == end).then_some(index)
    }

    /// Reads the whole segment. Entries behind a damaged one get a row of their own, so that they
    /// are found without passing it.
    fn rebuild_index(&self) -> Result<SparseIndex> {
        let file = self.open_fresh()?;
        let scan = Scan::of(&*file, &self.header, self.index_interval_bytes(), &mut |_| {});
        let mut index = scan.index;
        index.trim();
        Ok(index)
    }

    /// The row of the index that `find` chooses, or the start of the entries.
    fn row(&self, access: Access, find: impl Fn(&SparseIndex) -> Option<Row>) -> Result<Row> {
        let chosen = |index: &SparseIndex| find(index).unwrap_or_else(|| self.first_row());
        let in_memory = self.index.read().expect("no holder of the index panics");
        if let Some(index) = in_memory.as_ref() {
            return Ok(chosen(index));
        }
        drop(in_memory);
        if access == Access::Hot {
            return Err(Error::Cold);
        }
        let index = self.load_index()?;
        let row = chosen(&index);
        *self.index.write().expect("no holder of the index panics") = Some(index);
        Ok(row)
    }

    fn first_row(&self) -> Row {
        Row {
            index: self.base_index(),
            base_offset: self.base_offset(),
            append_time_ms: self.header.previous.append_time_ms,
            position: self.header.entries_position(),
        }
    }

    /// Finds the first entry up to `last_index` for which `is_it` holds, starting where the index
    /// row that `find` chooses points.
    pub(in super::super) fn seek(
        self: &Arc<Self>,
        last_index: u64,
        access: Access,
        find: impl Fn(&SparseIndex) -> Option<Row>,
        is_it: impl Fn(&EntryHeader) -> bool,
    ) -> Result<Option<EntryHeader>> {
        let row = self.row(access, find)?;
        let mut walk = Walk::new(self, row, last_index, access)?;
        while let Some((header, _)) = walk.next_header()? {
            if is_it(&header) {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Reads entries from `from_index` to `last_index` into `out` until their payloads exceed
    /// `bytes_max`; at least one, however large.
    pub(in super::super) fn read(
        self: &Arc<Self>,
        from_index: u64,
        last_index: u64,
        bytes_max: usize,
        access: Access,
        out: &mut Vec<Entry>,
    ) -> Result<()> {
        let row = self.row(access, |index| index.at_or_before_index(from_index))?;
        let mut walk = Walk::new(self, row, last_index, access)?;
        walk.look_ahead((bytes_max as u64).saturating_add(self.index_interval_bytes()));
        let mut bytes = 0;
        while let Some((header, position)) = walk.next_header()? {
            if header.index < from_index {
                continue;
            }
            let len = header.payload_len as usize;
            if bytes > 0 && len > bytes_max.saturating_sub(bytes) {
                break;
            }
            bytes += len;
            out.push(Entry { header, payload: walk.payload(&header, position)? });
        }
        Ok(())
    }

    /// The error for bytes of this file that are not what was written.
    pub(in super::super) fn damage(&self, position: u64, what: String) -> Error {
        Error::Corrupt(Damage { file: self.path(), position, what })
    }
}
