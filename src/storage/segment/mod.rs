//! One segment file: entries appended at its end, read through its mapping.
//!
//! Invariants:
//! * Bytes below [`Segment::end`] are never written again: borrowed slices stay true.
//! * `end` moves only after the bytes below it were written, and only the log's writer moves it.
//! * The file has its final name only after its head and first entries were synced;
//!   until then it stands among the spares, where recovery does not look.
//! * The file never shrinks, so a page below `end` never vanishes from under a mapping.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use arc_swap::ArcSwapOption;

use super::context::Context;
use super::entry::{Entry, HEADER_BYTES};
use super::error::{Error, IoContext as _, Result, is_full_disk};
use super::fs::{File, Map, OpenMode};
use super::header::{CHECKPOINT_POSITION, COPY_POSITIONS, SegmentHeader};
use super::index::SparseIndex;

mod file;
mod read;

pub(super) use self::file::remove_if_there;

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
    /// Length at which the segment is full.
    full: AtomicU64,
    /// Length of the present mapping.
    mapped_bytes: AtomicU64,
    index: RwLock<Option<SparseIndex>>,
    is_dirty: AtomicBool,
    /// No entry comes any more: the index may leave memory.
    is_sealed: AtomicBool,
    /// The segment was dropped from its log and must not get a name.
    is_void: AtomicBool,
    /// There may be a file with the index.
    has_index_file: AtomicBool,
    was_used: AtomicBool,
}

/// What a new segment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// More entries of a log that fills its segments: a prepared file of full length serves it.
    BusyLog,
    /// More entries of a log that may stay small.
    SmallLog,
    /// A cut, a snapshot or a repair: refusing it for want of space would block recovery.
    Recovery,
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
    /// Makes a new segment with its checkpoint that is full at `full_bytes`, in a spare file of
    /// that length if one is ready and the log is busy. It has no name yet; [`Self::take_name`]
    /// gives it one.
    ///
    /// # Errors
    /// [`Error::NoSpace`], or what the system said. The log is as it was.
    pub(super) fn create(
        context: &Arc<Context>,
        dir: &Arc<Path>,
        mut header: SegmentHeader,
        checkpoint: &[u8],
        purpose: Purpose,
        full_bytes: u64,
    ) -> Result<Arc<Self>> {
        let is_busy = purpose == Purpose::BusyLog;
        let spare = if is_busy { context.spares.take(full_bytes) } else { None };
        let (path, mode) = match spare {
            Some(path) => (path, OpenMode::Write),
            None => (context.spares.new_path(), OpenMode::Create),
        };
        header.is_recycled = mode == OpenMode::Write;
        let file = context.fs.open(&path, mode).at("open", &path)?;
        let allocated = if mode == OpenMode::Write { full_bytes } else { 0 };
        let name = Name::Spare(path.clone());
        let segment = Self::assemble(context, dir, header, allocated, name);
        segment.set_full_bytes(full_bytes);
        let written = segment.write_head(&*file, checkpoint, purpose);
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
            full: AtomicU64::new(context.config.segment_bytes),
            mapped_bytes: AtomicU64::new(u64::MAX),
            index: RwLock::new(None),
            is_dirty: AtomicBool::new(false),
            is_sealed: AtomicBool::new(false),
            is_void: AtomicBool::new(false),
            has_index_file: AtomicBool::new(!is_new),
            was_used: AtomicBool::new(false),
            header,
        }
    }

    /// Writes both copies of the header and the checkpoint, allocating room for them.
    fn write_head(&self, file: &dyn File, checkpoint: &[u8], purpose: Purpose) -> Result<()> {
        let path = self.path();
        let first = self.context.config.allocation_bytes_first;
        let upto = self.header.entries_position().max(first);
        let is_needed = purpose == Purpose::Recovery;
        match self.allocate_in(file, upto, is_needed) {
            // What keeps a log consistent may have the reserve, and space below the mark.
            Err(error) if is_needed && error.is_full_disk() && self.context.make_room() => {
                self.allocate_in(file, upto, is_needed)
            }
            allocated => allocated,
        }?;
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

    /// File length in bytes.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Length at which the segment is full, whatever its file has.
    pub(super) fn full_bytes(&self) -> u64 {
        self.full.load(Ordering::Acquire)
    }

    /// Makes the segment longer or shorter, as far as it is not written yet.
    pub(super) fn set_full_bytes(&self, bytes: u64) {
        assert!(bytes > 0, "segment {} is to hold something", self.base_index());
        self.full.store(bytes, Ordering::Release);
    }

    /// Bytes of entries that still fit before the segment is full. However long its checkpoint is,
    /// a segment has room for some entries.
    pub(super) fn room(&self) -> u64 {
        self.limit().saturating_sub(self.end())
    }

    /// Where entries end at the latest, unless a single one is longer.
    fn limit(&self) -> u64 {
        let full = self.full_bytes();
        full.max(self.header.entries_position() + full / 4)
    }

    /// Start value of the entry header CRCs.
    pub(super) fn seed(&self) -> u32 {
        self.seed
    }

    /// Distance of the index's rows in bytes.
    pub(super) fn index_interval_bytes(&self) -> u64 {
        self.context.config.index_interval_bytes
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
            // DURABILITY: final even on a full disk: frames that were written may come back after a
            // restart. Files are allocated before, so only copying file systems get here so.
            position += written.map_err(|error| self.context.fail("write", &self.path(), error))?;
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
        if upto <= self.allocated_bytes() {
            return Ok(());
        }
        self.allocate_in(file, upto, false)
    }

    /// Grows the file fourfold, within bounds, and at least to `upto`.
    fn allocate_in(&self, file: &dyn File, upto: u64, is_needed: bool) -> Result<()> {
        let (full, limit) = (self.full_bytes(), self.limit());
        let from = self.allocated_bytes();
        if upto <= from {
            return Ok(());
        }
        let step = (3 * from).min(self.context.config.allocation_bytes_max);
        let stepped = (from + step).min(limit).max(upto);
        let to = stepped.next_multiple_of(512);
        if !is_needed {
            let room = self.context.check_room(to - from);
            room.inspect_err(|_| self.context.spares.note_shortage())?;
        }
        file.write_zeros(from, to).map_err(|error| match is_full_disk(&error) {
            true => self.context.no_space(to - from),
            false => Error::io("extend", &self.path(), error),
        })?;
        self.allocated.store(to, Ordering::Release);
        if self.mapped_bytes.load(Ordering::Acquire) < to {
            // Only a repair makes a segment so long; its next reader maps it anew.
            self.open.store(None);
        }
        if to > full / 2 && limit == full {
            self.context.spares.want(full);
        }
        Ok(())
    }

    /// Says that no entry comes any more.
    pub(super) fn seal(&self) {
        self.is_sealed.store(true, Ordering::Release);
    }

    /// True once no entry comes any more.
    pub(super) fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }
}
