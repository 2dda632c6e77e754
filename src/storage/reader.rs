//! Reading a log, from any thread, while its writer appends.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::entry::{Entry, EntryHeader, Kind};
use super::error::{Error, Result};
use super::header::Tip;
use super::recovery::FaultyRange;
use super::segment::{Access, Segment};

/// What a log's writer and its readers share.
///
/// The writer publishes in this order: the list of segments, the bytes of entries, `last_index`. A
/// reader loads in the opposite order, so every index it may ask for is in a segment it sees.
#[derive(Debug)]
pub(super) struct Shared {
    /// Oldest first; never empty.
    pub(super) segments: ArcSwap<Vec<Arc<Segment>>>,
    /// First offset that can be read.
    pub(super) start_offset: AtomicU64,
    /// Index of the last entry.
    pub(super) last_index: AtomicU64,
    /// Index of the last entry and the next offset to be assigned, which belong together: a reader
    /// that took one from before and one from after an append would pass entries over.
    pub(super) ends: Mutex<(u64, u64)>,
    /// Entries that were on disk and cannot be read.
    pub(super) faulty: RwLock<Vec<FaultyRange>>,
    /// Segments in which a read has met damage that is not among those, by base index.
    pub(super) suspects: Mutex<BTreeSet<u64>>,
    /// Raised with every change of these two.
    pub(super) damage_news: Arc<AtomicU64>,
}

/// A read handle on one log; a cheap clone.
///
/// Reads return what is appended, committed or not: callers bound them by the high watermark.
#[derive(Debug, Clone)]
pub struct LogReader {
    pub(super) shared: Arc<Shared>,
}

/// The segments at one moment, and the last index they hold.
struct View {
    segments: Arc<Vec<Arc<Segment>>>,
    last_index: u64,
}

impl View {
    /// The number of the segment that holds `index`.
    fn segment_of(&self, index: u64) -> usize {
        self.segments.partition_point(|segment| segment.base_index() <= index).saturating_sub(1)
    }

    /// Last index of segment `n`.
    fn last_index_of(&self, n: usize) -> u64 {
        assert!(n < self.segments.len(), "segment {n} of {}", self.segments.len());
        let next = self.segments.get(n + 1).map(|next| next.base_index() - 1);
        next.unwrap_or(self.last_index).min(self.last_index)
    }

    fn check_index(&self, requested: u64) -> Result<()> {
        assert!(!self.segments.is_empty(), "a log has a segment");
        let (first, last) = (self.segments[0].base_index(), self.last_index);
        if requested < first || requested > last {
            return Err(Error::IndexOutOfRange { requested, first, last });
        }
        Ok(())
    }
}

impl LogReader {
    /// Index of the first entry that is kept.
    pub fn first_index(&self) -> u64 {
        self.shared.segments.load()[0].base_index()
    }

    /// Index of the last entry; one below [`Self::first_index`] when there is none.
    pub fn last_index(&self) -> u64 {
        self.shared.last_index.load(Ordering::Acquire)
    }

    /// First offset that can be read.
    pub fn log_start_offset(&self) -> u64 {
        self.shared.start_offset.load(Ordering::Acquire)
    }

    /// Next offset to be assigned.
    pub fn log_end_offset(&self) -> u64 {
        self.ends().1
    }

    /// Entries that were on disk and cannot be read until they are repaired.
    pub fn faulty(&self) -> Vec<FaultyRange> {
        self.shared.faulty.read().expect("no holder of the list panics").clone()
    }

    /// Reads entries from `from_index` up to `last_index` into `out`.
    ///
    /// Stops when the payloads together would exceed `bytes_max`, but returns at least one entry,
    /// and at the end of a segment: callers ask again from where it stopped. Payloads are slices
    /// of the mapped file, verified against their checksums, not copies.
    ///
    /// # Errors
    /// [`Error::Cold`] if `access` forbids to wait and a page is not in memory;
    /// [`Error::IndexOutOfRange`]; [`Error::Corrupt`] at the first bad entry, with the good ones
    /// before it in `out`.
    pub fn read(
        &self,
        from_index: u64,
        last_index: u64,
        bytes_max: usize,
        access: Access,
        out: &mut Vec<Entry>,
    ) -> Result<()> {
        let kept = out.len();
        self.with_view(|view| {
            out.truncate(kept);
            view.check_index(from_index)?;
            let n = view.segment_of(from_index);
            let last = last_index.min(view.last_index_of(n));
            let Some(bad) = self.first_faulty(from_index, last) else {
                return view.segments[n].read(from_index, last, bytes_max, access, out);
            };
            // Such an entry may pass every check of its own and still not be what was appended.
            if from_index < bad.first_index {
                view.segments[n].read(from_index, bad.first_index - 1, bytes_max, access, out)?;
                if out.last().is_some_and(|entry| entry.header.index + 1 < bad.first_index) {
                    return Ok(());
                }
            }
            Err(Error::Corrupt(bad.damage))
        })
    }

    /// The first range of faulty entries that a read from `from_index` to `last_index` would meet.
    fn first_faulty(&self, from_index: u64, last_index: u64) -> Option<FaultyRange> {
        let faulty = self.shared.faulty.read().expect("no holder of the list panics");
        let is_met = |range: &&FaultyRange| {
            from_index.max(range.first_index) <= last_index.min(range.last_index)
        };
        faulty.iter().filter(is_met).min_by_key(|range| range.first_index).cloned()
    }

    /// The header of one entry.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn header(&self, index: u64, access: Access) -> Result<EntryHeader> {
        self.with_view(|view| {
            view.check_index(index)?;
            let n = view.segment_of(index);
            let found = view.segments[n].seek(
                view.last_index_of(n),
                access,
                |rows| rows.at_or_before_index(index),
                |header| header.index == index,
            )?;
            Ok(found.expect("a walk that does not fail passes every index of its segment"))
        })
    }

    /// The tip of the log as it was when `index` was its last entry; one below
    /// [`Self::first_index`] is allowed.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn tip_at(&self, index: u64, access: Access) -> Result<Tip> {
        let view = self.view();
        let after = view.segments[view.segment_of(index + 1)].header().previous;
        if after.index == index {
            return Ok(after);
        }
        self.header(index, access).map(|header| header.tip())
    }

    /// Term of the entry at `index`; one below [`Self::first_index`] is allowed.
    ///
    /// Terms never decrease, so a segment that begins and ends in one term is not looked into.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn term_at(&self, index: u64, access: Access) -> Result<u64> {
        let view = self.view();
        let n = view.segment_of(index);
        let before = view.segments[n].header().previous;
        let after = view.segments.get(n + 1).map(|next| next.header().previous.term);
        if after == Some(before.term) && index >= before.index {
            return Ok(before.term);
        }
        Ok(self.tip_at(index, access)?.term)
    }

    /// Index of the entry that holds the record at `offset`; that of the entry that will hold it
    /// next when `offset` is the end of the log.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], or as [`Self::read`].
    pub fn index_of_offset(&self, offset: u64, access: Access) -> Result<u64> {
        let (log_start, (last_index, log_end)) = (self.log_start_offset(), self.ends());
        if offset < log_start || offset > log_end {
            return Err(Error::OffsetOutOfRange { requested: offset, log_start, log_end });
        }
        if offset == log_end {
            return Ok(last_index + 1);
        }
        self.with_view(|view| {
            // Retention may have overtaken the reader by now.
            let log_start = self.log_start_offset();
            if offset < log_start {
                return Err(Error::OffsetOutOfRange { requested: offset, log_start, log_end });
            }
            let starts = view.segments.partition_point(|s| s.base_offset() <= offset);
            let n = starts.saturating_sub(1);
            let found = view.segments[n].seek(
                view.last_index_of(n),
                access,
                |rows| rows.at_or_before_offset(offset),
                |header| header.base_offset <= offset && offset < header.end_offset(),
            )?;
            let gone = Error::OffsetOutOfRange { requested: offset, log_start, log_end };
            found.map(|header| header.index).ok_or(gone)
        })
    }

    /// The first record batch appended at `time_ms` or later: its base offset and index. `None`
    /// when every batch is older.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn offset_for_time(&self, time_ms: i64, access: Access) -> Result<Option<(u64, u64)>> {
        let start_offset = self.log_start_offset();
        self.with_view(|view| {
            let ends_before = |next: &Arc<Segment>| next.header().previous.append_time_ms < time_ms;
            let first = view.segments[1..].partition_point(ends_before);
            for n in first..view.segments.len() {
                let found = view.segments[n].seek(
                    view.last_index_of(n),
                    access,
                    |rows| rows.before_time(time_ms),
                    |header| {
                        header.append_time_ms >= time_ms
                            && header.kind == Kind::Records
                            && header.end_offset() > start_offset
                    },
                )?;
                if let Some(header) = found {
                    return Ok(Some((header.base_offset.max(start_offset), header.index)));
                }
            }
            Ok(None)
        })
    }

    /// The latest checkpoint at or below `index`, and the tip it is the state at.
    ///
    /// `None` when no segment that is kept starts with one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is damaged; an earlier one may still be good.
    pub fn checkpoint_before(&self, index: u64) -> Result<Option<(Tip, Bytes)>> {
        let view = self.view();
        let mut candidates = view.segments.iter().rev();
        let found = candidates.find(|segment| {
            segment.header().has_checkpoint && segment.header().previous.index <= index
        });
        found.map(|segment| Ok((segment.header().previous, segment.checkpoint()?))).transpose()
    }

    /// The segments, oldest first, as they are now.
    pub fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.shared.segments.load_full()
    }

    fn ends(&self) -> (u64, u64) {
        *self.shared.ends.lock().expect("no holder of the ends panics")
    }

    fn view(&self) -> View {
        let last_index = self.last_index();
        View { segments: self.segments(), last_index }
    }

    /// Runs `read` on a view, and once more if the log was changed under a read that failed: a
    /// truncation or a repair then explains the failure.
    fn with_view<T>(&self, mut read: impl FnMut(&View) -> Result<T>) -> Result<T> {
        let view = self.view();
        let result = read(&view);
        let has_changed = || {
            !Arc::ptr_eq(&view.segments, &self.segments()) || self.last_index() < view.last_index
        };
        if matches!(&result, Err(Error::Corrupt(_) | Error::Io { .. })) && has_changed() {
            return self.noting(read(&self.view()));
        }
        self.noting(result)
    }

    /// Remembers where a read has met damage.
    fn noting<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Corrupt(damage)) = &result {
            self.suspect(damage);
        }
        result
    }
}
