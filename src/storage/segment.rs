//! One segment file: entries appended at its end, read through its mapping.
//!
//! Invariants:
//! * Bytes below [`Segment::end`] are never written again: borrowed slices stay true.
//! * `end` moves only after the bytes below it were written, and only the log's writer moves it.
//! * The file has its final name only after its head and first entries were synced
//!   (RELIABILITY D10); until then it stands among the spares, where recovery does not look.
//! * The file never shrinks, so a page below `end` never vanishes from under a mapping.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use super::context::Context;
use super::entry::{Entry, EntryHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX, frame_bytes};
use super::error::{Damage, Error, IoContext as _, Result};
use super::fs::{File, Fs, Map, OpenMode, read_exact_at};
use super::header::{CHECKPOINT_POSITION, COPY_POSITIONS, SegmentHeader};
use super::index::{Row, SparseIndex};
use super::scan::Scan;
use super::walk::Walk;

/// Entries that go out in one vectored write: two parts each, below the kernel's 1,024.
const WRITE_ENTRIES_MAX: usize = 32;
const PADDING: [u8; 8] = [0; 8];

/// A segment of a log.
#[derive(Debug)]
pub struct Segment {
    context: Arc<Context>,
    dir: Arc<Path>,
    header: SegmentHeader,
    seed: u32,
    name: Mutex<Name>,
    open: ArcSwapOption<OpenFile>,
    /// Serializes opening, so that a file is mapped once, and not any more while it is removed.
    opening: Mutex<()>,
    /// Shared with every mapping of the file for as long as a slice of it is alive.
    lease: Arc<()>,
    /// Position after the last published entry; the file length for a segment that was sealed
    /// before this process opened it, whose entries end where the next segment begins.
    end: AtomicU64,
    /// File length.
    allocated: AtomicU64,
    index: RwLock<Option<SparseIndex>>,
    is_dirty: AtomicBool,
    /// No entry comes any more: the index may leave memory.
    is_sealed: AtomicBool,
    /// The segment was dropped from its log and must not get a name.
    is_void: AtomicBool,
    was_used: AtomicBool,
}

/// Which name the file has.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// One among the spares, where recovery does not look.
    Spare(PathBuf),
    /// Its final name, which a power cut may still take away.
    Final,
    /// Its final name for good.
    Durable,
}

/// File and mapping, closed together.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: Arc<dyn File>,
    pub(super) map: Box<dyn Map>,
}

/// May a read wait for a disk?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No: pages that are not in memory are [`Error::Cold`].
    Hot,
    /// Yes: the calling thread is there to wait.
    MayBlock,
}

impl Segment {
    /// Makes a new segment with its checkpoint, in a spare file if one of full length is ready and
    /// `is_full_length` asks for it. It has no name yet; [`Self::take_name`] gives it one.
    ///
    /// # Errors
    /// [`Error::NoSpace`], or what the system said. The log is as it was.
    pub(super) fn create(
        context: &Arc<Context>,
        dir: &Arc<Path>,
        mut header: SegmentHeader,
        checkpoint: &[u8],
        is_full_length: bool,
    ) -> Result<Arc<Self>> {
        let full_bytes = context.config.segment_bytes;
        let spare = if is_full_length { context.spares.take(full_bytes) } else { None };
        let (path, mode) = match spare {
            Some(path) => (path, OpenMode::Write),
            None => (context.spares.new_path(), OpenMode::Create),
        };
        header.is_recycled = mode == OpenMode::Write;
        let file = context.fs.open(&path, mode).at("open", &path)?;
        let allocated = if mode == OpenMode::Write { full_bytes } else { 0 };
        let name = Name::Spare(path.clone());
        let segment = Self::assemble(context, dir, header, allocated, name);
        let written = segment.write_head(&*file, checkpoint);
        if let Err(error) = written {
            match mode {
                OpenMode::Write => context.spares.put_back(path, full_bytes),
                _ => context.fs.remove_file(&path).at("remove", &path)?,
            }
            return Err(error);
        }
        *segment.index.write().expect("no holder of the index panics") =
            Some(SparseIndex::default());
        segment.is_dirty.store(true, Ordering::Release);
        let segment = Arc::new(segment);
        segment.install(file, &path)?;
        Ok(segment)
    }

    /// Takes over a file that recovery found, with nothing published yet.
    pub(super) fn adopt(
        context: &Arc<Context>,
        dir: &Arc<Path>,
        header: SegmentHeader,
        file_bytes: u64,
    ) -> Arc<Self> {
        Arc::new(Self::assemble(context, dir, header, file_bytes, Name::Durable))
    }

    fn assemble(
        context: &Arc<Context>,
        dir: &Arc<Path>,
        header: SegmentHeader,
        allocated: u64,
        name: Name,
    ) -> Self {
        let is_new = name != Name::Durable;
        Self {
            context: context.clone(),
            dir: dir.clone(),
            seed: header.seed(),
            name: Mutex::new(name),
            open: ArcSwapOption::empty(),
            opening: Mutex::new(()),
            lease: Arc::new(()),
            end: AtomicU64::new(if is_new { header.entries_position() } else { allocated }),
            allocated: AtomicU64::new(allocated),
            index: RwLock::new(None),
            is_dirty: AtomicBool::new(false),
            is_sealed: AtomicBool::new(false),
            is_void: AtomicBool::new(false),
            was_used: AtomicBool::new(false),
            header,
        }
    }

    /// Writes both copies of the header and the checkpoint, allocating room for them.
    fn write_head(&self, file: &dyn File, checkpoint: &[u8]) -> Result<()> {
        let path = self.path();
        let first = self.context.config.allocation_bytes_first;
        self.allocate_in(file, self.header.entries_position().max(first))?;
        let encoded = self.header.encode();
        for position in COPY_POSITIONS {
            file.write_at(&[IoSlice::new(&encoded)], position).at("write", &path)?;
        }
        file.write_at(&[IoSlice::new(checkpoint)], CHECKPOINT_POSITION).at("write", &path)
    }

    /// The segment's header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Index of its first entry.
    pub fn base_index(&self) -> u64 {
        self.header.base_index()
    }

    /// Offset of its first record.
    pub fn base_offset(&self) -> u64 {
        self.header.base_offset()
    }

    /// Position after the last published entry.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// True while file and mapping are open.
    pub fn is_open(&self) -> bool {
        self.open.load().is_some()
    }

    /// File length in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Bytes of entries that still fit before the segment is full.
    pub(super) fn room(&self) -> u64 {
        self.context.config.segment_bytes.saturating_sub(self.end())
    }

    /// Where the file stands now.
    pub(super) fn path(&self) -> PathBuf {
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
    pub(super) fn index_path(&self) -> PathBuf {
        self.final_path().with_extension("idx")
    }

    /// Start value of the entry header CRCs.
    pub(super) fn seed(&self) -> u32 {
        self.seed
    }

    /// Distance of the index's rows in bytes.
    pub(super) fn index_interval_bytes(&self) -> u64 {
        self.context.config.index_interval_bytes
    }

    /// Begins to make the segment durable: the file to sync. What is appended from here on makes
    /// the segment dirty again.
    pub(super) fn begin_sync(self: &Arc<Self>) -> Result<Arc<OpenFile>> {
        let open = self.open_file(Access::MayBlock)?;
        self.is_dirty.store(false, Ordering::Release);
        Ok(open)
    }

    /// Syncs the file. Any error is final for the data directory.
    pub(super) fn sync_file(&self, open: &OpenFile) -> Result<()> {
        open.file.sync().map_err(|error| self.context.fail("sync", &self.path(), error))
    }

    /// Gives the file its final name, if it does not have it, after its bytes were synced.
    ///
    /// DURABILITY: write, sync, rename, sync the directory (RELIABILITY D10). The caller syncs the
    /// directory and then calls [`Self::confirm_name`]; true says that it must.
    pub(super) fn take_name(&self) -> Result<bool> {
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
    pub(super) fn confirm_name(&self) {
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
    pub(super) fn is_durably_named(&self) -> bool {
        *self.lock_name() == Name::Durable
    }

    /// True once the segment was removed.
    pub(super) fn is_void(&self) -> bool {
        self.is_void.load(Ordering::Acquire)
    }

    /// The directory that the file's name is in.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes consecutive entries at the end and publishes them. The headers are complete.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the file cannot grow: nothing was appended. Any other error is
    /// final.
    pub(super) fn append(self: &Arc<Self>, entries: &[Entry]) -> Result<()> {
        let bytes: u64 = entries.iter().map(|entry| entry.header.frame_bytes()).sum();
        let open = self.open_file(Access::MayBlock)?;
        let start = self.end.load(Ordering::Relaxed);
        assert!(!self.is_sealed(), "segment {} takes no more entries", self.base_index());
        assert!(!self.is_void(), "segment {} was removed", self.base_index());
        assert!(start.is_multiple_of(8), "frames start at multiples of eight, not at {start}");
        self.allocate(&*open.file, start + bytes)?;
        let mut position = start;
        for chunk in entries.chunks(WRITE_ENTRIES_MAX) {
            // Measured: room for one frame only saves 50 of the 210 ns before the system call.
            let written = match chunk {
                [_] => self.write_chunk::<1>(&*open.file, chunk, position),
                _ => self.write_chunk::<WRITE_ENTRIES_MAX>(&*open.file, chunk, position),
            };
            position += written.map_err(|error| self.write_failed(bytes, error))?;
        }
        assert_eq!(position, start + bytes, "frames take the bytes they were measured with");
        assert!(position <= self.allocated_bytes(), "entries end at {position}, beyond the file");
        self.note_in_index(entries, start);
        self.is_dirty.store(true, Ordering::Release);
        self.end.store(position, Ordering::Release);
        Ok(())
    }

    /// Writes up to `N` frames in one call, payloads from where they are.
    fn write_chunk<const N: usize>(
        &self,
        file: &dyn File,
        entries: &[Entry],
        position: u64,
    ) -> std::io::Result<u64> {
        let mut headers = [[0; HEADER_BYTES]; N];
        for (bytes, entry) in headers.iter_mut().zip(entries) {
            *bytes = entry.header.encode(self.seed);
        }
        let mut parts = [[IoSlice::new(&[]); 3]; N];
        let mut written = 0;
        for ((parts, header), entry) in parts.iter_mut().zip(&headers).zip(entries) {
            let frame = entry.header.frame_bytes();
            let padding = frame as usize - HEADER_BYTES - entry.payload.len();
            *parts = [header, &*entry.payload, &PADDING[..padding]].map(IoSlice::new);
            written += frame;
        }
        file.write_at(parts[..entries.len()].as_flattened(), position)?;
        Ok(written)
    }

    /// A full disk found in a write leaves nothing published and may be retried (copy-on-write file
    /// systems allocate then); whatever else failed is final.
    fn write_failed(&self, bytes: u64, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return self.context.no_space(bytes);
        }
        self.context.fail("write", &self.path(), error)
    }

    fn note_in_index(&self, entries: &[Entry], start: u64) {
        let interval = self.context.config.index_interval_bytes;
        let mut index = self.index.write().expect("no holder of the index panics");
        let index = index.as_mut().expect("the segment being written has its index in memory");
        let mut position = start;
        for entry in entries {
            index.note(&entry.header, position, interval);
            position += entry.header.frame_bytes();
        }
    }

    /// Grows the file so that it reaches `upto`.
    fn allocate(&self, file: &dyn File, upto: u64) -> Result<()> {
        if upto <= self.allocated_bytes() { Ok(()) } else { self.allocate_in(file, upto) }
    }

    /// Grows the file fourfold, within bounds, and at least to `upto`.
    fn allocate_in(&self, file: &dyn File, upto: u64) -> Result<()> {
        let config = &self.context.config;
        let from = self.allocated_bytes();
        if upto <= from {
            return Ok(());
        }
        let step = (3 * from).min(config.allocation_bytes_max);
        let stepped = (from + step).min(config.segment_bytes).max(upto);
        let to = stepped.next_multiple_of(512);
        self.context.check_room(to - from)?;
        file.write_zeros(from, to).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => self.context.no_space(to - from),
            _ => Error::io("extend", &self.path(), error),
        })?;
        self.allocated.store(to, Ordering::Release);
        if to > config.segment_bytes / 2 {
            self.context.spares.want(config.segment_bytes);
        }
        Ok(())
    }

    /// The open file, opening it if need be and if `access` allows to wait. Counted against the
    /// bound on open segments.
    pub(super) fn open_file(self: &Arc<Self>, access: Access) -> Result<Arc<OpenFile>> {
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
    pub(super) fn open_fresh(&self) -> Result<Arc<dyn File>> {
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
        let map = file.map(self.reserve_bytes(), self.lease.clone()).at("map", path)?;
        let open = Arc::new(OpenFile { file, map });
        self.open.store(Some(open.clone()));
        Ok(open)
    }

    /// Keeps the file of a new segment open.
    fn install(self: &Arc<Self>, file: Arc<dyn File>, path: &Path) -> Result<()> {
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
    pub(super) fn close_if_idle(&self) -> bool {
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

    /// Says that no entry comes any more.
    pub(super) fn seal(&self) {
        self.is_sealed.store(true, Ordering::Release);
    }

    /// True once no entry comes any more.
    pub(super) fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }

    /// Removes the segment's files, or keeps the file as a spare. The caller has made durable what
    /// makes the segment superfluous.
    pub(super) fn remove(&self) -> Result<()> {
        let fs = &*self.context.fs;
        let _opening = self.opening.lock().expect("no opener of a segment panics");
        let name = self.lock_name();
        self.is_void.store(true, Ordering::Release);
        self.open.store(None);
        let path = self.path_named(&name);
        let bytes = self.allocated_bytes();
        // Nobody can map the file from here on. Whoever did holds the lease, up to the last slice.
        let is_borrowed = Arc::strong_count(&self.lease) > 1;
        let is_reusable = bytes == self.context.config.segment_bytes && !is_borrowed;
        if !(is_reusable && self.context.spares.recycle(fs, &path, bytes)?) {
            fs.remove_file(&path).at("remove", &path)?;
        }
        remove_if_there(fs, &self.index_path())
    }

    /// Bytes of the checkpoint, verified.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when they are not what was written.
    pub fn checkpoint(self: &Arc<Self>) -> Result<Bytes> {
        let path = self.path();
        let mut bytes = vec![0; self.header.checkpoint_len as usize];
        let open = self.open_file(Access::MayBlock)?;
        read_exact_at(&*open.file, &mut bytes, CHECKPOINT_POSITION).at("read", &path)?;
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
    pub(super) fn drop_index(&self) -> Result<()> {
        *self.index.write().expect("no holder of the index panics") = None;
        remove_if_there(&*self.context.fs, &self.index_path())
    }

    /// Gives a sealed segment the index that a scan built, which leads around damage.
    pub(super) fn publish_index(&self, index: SparseIndex) {
        *self.index.write().expect("no holder of the index panics") = Some(index);
    }

    /// Gives the segment the index that recovery built and the end it found.
    pub(super) fn publish(&self, index: SparseIndex, end: u64) {
        *self.index.write().expect("no holder of the index panics") = Some(index);
        self.end.store(end, Ordering::Release);
    }

    /// Writes the index beside the file. Called for a segment that takes no more entries.
    pub(super) fn write_index(&self) -> Result<()> {
        let path = self.index_path();
        let index = self.index.read().expect("no holder of the index panics");
        let Some(index) = index.as_ref() else {
            return Ok(());
        };
        match self.context.fs.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
        let file = self.context.fs.open(&path, OpenMode::Create).at("create", &path)?;
        index.write_to(&*file, self.seed, self.end()).at("write", &path)
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
    pub(super) fn read_closed_index(&self, end: u64) -> Option<SparseIndex> {
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
    pub(super) fn seek(
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
    pub(super) fn read(
        self: &Arc<Self>,
        from_index: u64,
        last_index: u64,
        bytes_max: usize,
        access: Access,
        out: &mut Vec<Entry>,
    ) -> Result<()> {
        let row = self.row(access, |index| index.at_or_before_index(from_index))?;
        let mut walk = Walk::new(self, row, last_index, access)?;
        walk.look_ahead(bytes_max as u64 + self.context.config.index_interval_bytes);
        let mut bytes = 0;
        while let Some((header, position)) = walk.next_header()? {
            if header.index < from_index {
                continue;
            }
            let len = header.payload_len as usize;
            if bytes > 0 && bytes + len > bytes_max {
                break;
            }
            bytes += len;
            out.push(Entry { header, payload: walk.payload(&header, position)? });
        }
        Ok(())
    }

    /// The error for bytes of this file that are not what was written.
    pub(super) fn damage(&self, position: u64, what: String) -> Error {
        Error::Corrupt(Damage { file: self.path(), position, what })
    }
}

/// Removes a file that may not exist.
pub(super) fn remove_if_there(fs: &dyn Fs, path: &Path) -> Result<()> {
    match fs.remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}
