//! A log: its segments in order, one writer, many readers.
//!
//! Invariants:
//! * Indices are dense; base offset, term and append time never decrease; chains link up. An entry
//!   that breaks this is refused before anything is written.
//! * A suffix is never overwritten: a truncation leaves the file as it is and continues in a new
//!   one, so that slices that readers hold stay true and stale frames cannot link up again.
//! * Files are removed only after what makes them superfluous is durable.
//! * The log always has a segment to write to.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::context::Context;
use super::entry::{Entry, PAYLOAD_BYTES_MAX};
use super::error::{Error, Result};
use super::facts::{Closed, LogStart, Watermark};
use super::header::{Origin, SegmentHeader, Tip};
use super::journal::{Change, FactKind};
use super::reader::{LogReader, Shared};
use super::recovery::FaultyRange;
use super::retention::{self, SegmentFacts};
use super::segment::Segment;
use super::sync::LogSync;
use crate::types::LogId;

/// Gives the checkpoint for a segment that starts after the tip it is shown.
pub type CheckpointAt<'a> = &'a mut dyn FnMut(&Tip) -> Bytes;

/// The writer of one log.
#[derive(Debug)]
pub struct Log {
    pub(super) context: Arc<Context>,
    pub(super) id: LogId,
    pub(super) dir: Arc<Path>,
    pub(super) shared: Arc<Shared>,
    pub(super) sync: Arc<LogSync>,
    pub(super) tip: Tip,
    pub(super) next_generation: u64,
    /// Segments that are no longer part of the log, each with what has to be durable first.
    pub(super) condemned: Vec<(Arc<Segment>, Until)>,
    pub(super) lost_tail: Option<LostTail>,
}

/// When a dropped segment's file may go.
#[derive(Debug, Clone)]
pub(super) enum Until {
    /// This record of the journal is durable.
    Journaled(u64),
    /// This segment, which replaces it, has its name for good.
    Named(Arc<Segment>),
}

/// Entries at the end of a log that were on disk and are gone. The log keeps its promise of them:
/// it takes no others until they are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostTail {
    /// First index that is missing.
    pub first_index: u64,
    /// Last one, inclusive: what this replica promised to have.
    pub last_index: u64,
    /// Term of the last one, or a later term when it is not known.
    pub last_term: u64,
}

impl Log {
    /// Starts a log after `tip`, [`Tip::EMPTY`] for a new one. Nothing is durable until the first
    /// sync.
    pub(super) fn create(
        context: &Arc<Context>,
        id: LogId,
        tip: Tip,
        checkpoint: &[u8],
    ) -> Result<Self> {
        let dir: Arc<Path> = context.log_dir(id).into();
        let made = context.fs.create_dir_all(&dir);
        made.map_err(|error| Error::io("create", &dir, error))?;
        let origin = if tip == Tip::EMPTY { Origin::Rolled } else { Origin::Reset };
        let header = SegmentHeader {
            log: id,
            salt: context.fs.salt(),
            generation: 1,
            previous: tip,
            previous_base_index: 0,
            checkpoint_len: checkpoint_len(checkpoint),
            checkpoint_crc: crc32fast::hash(checkpoint),
            origin,
            has_checkpoint: true,
            is_recycled: false,
        };
        let segment = Segment::create(context, &dir, header, checkpoint, false)?;
        let sync = LogSync::new(context, id, tip.index, true);
        sync.note_appended(&segment, tip.index);
        let shared = Shared {
            segments: ArcSwap::from_pointee(vec![segment]),
            start_offset: tip.end_offset.into(),
            end_offset: tip.end_offset.into(),
            last_index: tip.index.into(),
            faulty: Vec::new().into(),
        };
        Ok(Self {
            context: context.clone(),
            id,
            dir,
            shared: Arc::new(shared),
            sync: Arc::new(sync),
            tip,
            next_generation: 2,
            condemned: Vec::new(),
            lost_tail: None,
        })
    }

    /// The log's id.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// What the next entry has to continue.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// A handle for readers.
    pub fn reader(&self) -> LogReader {
        LogReader { shared: self.shared.clone() }
    }

    /// The handle that sync threads need.
    pub fn syncer_handle(&self) -> Arc<LogSync> {
        self.sync.clone()
    }

    /// Entries at the end that were promised and are gone.
    pub fn lost_tail(&self) -> Option<LostTail> {
        self.lost_tail
    }

    /// Appends entries, rolling to new segments as they fill; `checkpoint` gives the state at the
    /// tip where one begins. Sets `chain` and `synced_index` in each entry's header.
    ///
    /// The payload CRCs are believed: they were computed or verified where the payloads came in.
    ///
    /// DURABILITY: nothing is synced here. The entries count once a sync of this log that began
    /// afterwards has succeeded.
    ///
    /// # Errors
    /// [`Error::Misordered`] or [`Error::TooLarge`]: nothing was appended. [`Error::NoSpace`]:
    /// entries up to [`Self::tip`] were appended, the rest can be tried again.
    /// [`Error::TailLost`], [`Error::Failed`]: the log takes no entries.
    pub fn append(&mut self, entries: &mut [Entry], checkpoint: CheckpointAt<'_>) -> Result<()> {
        self.check_writable()?;
        self.link(entries)?;
        let mut rest: &[Entry] = entries;
        while !rest.is_empty() {
            let active = self.active();
            let mut room = active.room();
            let fitting = rest.iter().take_while(|entry| {
                let frame = entry.header.frame_bytes();
                let fits = frame <= room;
                room = room.saturating_sub(frame);
                fits
            });
            let is_empty = active.base_index() > self.tip.index;
            let count = fitting.count().max(usize::from(is_empty));
            if count == 0 {
                self.roll(checkpoint)?;
                continue;
            }
            let (now, later) = rest.split_at(count);
            self.append_to_active(&active, now)?;
            rest = later;
        }
        Ok(())
    }

    fn append_to_active(&mut self, active: &Arc<Segment>, entries: &[Entry]) -> Result<()> {
        active.append(entries)?;
        let last = entries.last().expect("at least one entry is appended");
        assert!(last.header.index > self.tip.index, "the log goes forward from {:?}", self.tip);
        assert!(last.header.end_offset() >= self.tip.end_offset, "offsets never go back");
        self.tip = last.header.tip();
        self.sync.note_appended(active, self.tip.index);
        self.publish_tip();
        Ok(())
    }

    /// Checks that the entries continue the log and one another, and completes their headers.
    fn link(&self, entries: &mut [Entry]) -> Result<()> {
        let synced_index = self.sync.synced_index();
        let mut tip = self.tip;
        for Entry { header, payload } in entries {
            let index = header.index;
            tip.check_continued_by(header).map_err(|gap| Error::Misordered {
                index,
                field: gap.field,
                expected: gap.expected,
                found: gap.found,
            })?;
            if header.payload_len > PAYLOAD_BYTES_MAX
                || header.payload_len as usize != payload.len()
            {
                let (bytes, max) = (payload.len() as u64, u64::from(PAYLOAD_BYTES_MAX));
                return Err(Error::TooLarge { index, bytes, max });
            }
            header.synced_index = synced_index;
            header.chain = header.chain_after(tip.chain);
            tip = header.tip();
        }
        Ok(())
    }

    /// Seals the active segment and starts the next with a checkpoint of the state at the tip.
    ///
    /// # Errors
    /// [`Error::NoSpace`], or what the system said. The log goes on in the old segment.
    pub fn roll(&mut self, checkpoint: CheckpointAt<'_>) -> Result<()> {
        self.check_writable()?;
        let bytes = checkpoint(&self.tip);
        let previous = self.active();
        if previous.base_index() > self.tip.index {
            return Ok(());
        }
        let is_busy = previous.allocated_bytes() >= self.context.config.segment_bytes;
        let header =
            self.next_header(Origin::Rolled, self.tip, previous.base_index(), &bytes, true);
        let segment = Segment::create(&self.context, &self.dir, header, &bytes, is_busy)?;
        previous.seal();
        self.next_generation += 1;
        let mut segments = self.segments().to_vec();
        assert_eq!(segment.base_index(), self.tip.index + 1, "a segment starts after the tip");
        segments.push(segment.clone());
        self.shared.segments.store(Arc::new(segments));
        self.sync.note_appended(&segment, self.tip.index);
        Ok(())
    }

    /// Removes the entry at `first_index` and all after it; `committed_index` says what must stay.
    ///
    /// The log continues in a new segment, whose checkpoint `checkpoint` gives; with `None` it has
    /// none, and the state is replayed from an older one.
    ///
    /// DURABILITY: the cut is durable with the new segment's name, before any entry in it counts.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`], or what the system said; the log is then as it was.
    ///
    /// # Panics
    /// If a committed entry would go (RELIABILITY D8).
    pub fn truncate_suffix(
        &mut self,
        first_index: u64,
        committed_index: u64,
        checkpoint: Option<&[u8]>,
    ) -> Result<()> {
        assert!(
            first_index > committed_index,
            "log {}: entry {first_index} must not be removed, {committed_index} is committed",
            self.id
        );
        self.context.failure.check()?;
        let reader = self.reader();
        let (first, last) = (reader.first_index(), self.tip.index);
        if first_index < first || first_index > last + 1 {
            return Err(Error::IndexOutOfRange { requested: first_index, first, last });
        }
        let tip = reader.tip_at(first_index - 1, super::Access::MayBlock)?;
        self.cut_to(tip, checkpoint)
    }

    /// Ends the log at `tip`, an entry of it, and continues in a new segment.
    pub(super) fn cut_to(&mut self, tip: Tip, checkpoint: Option<&[u8]>) -> Result<()> {
        let old = self.segments();
        let kept = old.partition_point(|segment| segment.base_index() <= tip.index);
        let previous_base = kept.checked_sub(1).map_or(0, |n| old[n].base_index());
        self.restart(Origin::Truncated, tip, previous_base, checkpoint, kept)?;
        self.mark_repaired_from(tip.index + 1);
        self.lost_tail = self.lost_tail.filter(|lost| lost.first_index <= tip.index);
        Ok(())
    }

    /// Drops everything and starts anew after `tip`: a snapshot of another replica takes the place
    /// of this log.
    ///
    /// DURABILITY: durable with the new segment's name; until then a crash brings the old log back.
    ///
    /// # Errors
    /// What the system said; the log is then as it was.
    pub fn reset(&mut self, tip: Tip, checkpoint: &[u8]) -> Result<()> {
        self.context.failure.check()?;
        self.restart(Origin::Reset, tip, 0, Some(checkpoint), 0)?;
        self.shared.start_offset.store(tip.end_offset, Ordering::Release);
        self.mark_repaired_from(0);
        self.lost_tail = None;
        Ok(())
    }

    /// Keeps the first `kept` segments and adds a new one after `tip`.
    fn restart(
        &mut self,
        origin: Origin,
        tip: Tip,
        previous_base: u64,
        checkpoint: Option<&[u8]>,
        kept: usize,
    ) -> Result<()> {
        let bytes = checkpoint.unwrap_or_default();
        let header = self.next_header(origin, tip, previous_base, bytes, checkpoint.is_some());
        let segment = Segment::create(&self.context, &self.dir, header, bytes, false)?;
        self.next_generation += 1;
        let old = self.segments();
        assert!(kept <= old.len(), "{kept} of {} segments are kept", old.len());
        assert!(
            old[..kept].iter().all(|segment| segment.base_index() <= tip.index + 1),
            "log {}: a kept segment starts beyond entry {}",
            self.id,
            tip.index
        );
        let mut segments = old[..kept].to_vec();
        segments.iter().for_each(|segment| segment.seal());
        segments.push(segment.clone());
        // Readers must not look for entries that the new list does not have.
        self.tip = tip;
        self.publish_tip();
        self.shared.segments.store(Arc::new(segments));
        let first_void = old.get(kept).map_or(u64::MAX, |segment| segment.base_index());
        self.sync.note_truncated(tip.index, first_void);
        self.sync.note_appended(&segment, tip.index);
        let replaced = old[kept..].iter();
        self.condemned.extend(replaced.map(|s| (s.clone(), Until::Named(segment.clone()))));
        Ok(())
    }

    fn next_header(
        &self,
        origin: Origin,
        previous: Tip,
        previous_base_index: u64,
        checkpoint: &[u8],
        has_checkpoint: bool,
    ) -> SegmentHeader {
        SegmentHeader {
            log: self.id,
            salt: self.context.fs.salt(),
            generation: self.next_generation,
            previous,
            previous_base_index,
            checkpoint_len: checkpoint_len(checkpoint),
            checkpoint_crc: crc32fast::hash(checkpoint),
            origin,
            has_checkpoint,
            is_recycled: false,
        }
    }

    /// Moves the log start to `offset` and drops the segments that end before it. The first one
    /// that stays has a checkpoint.
    ///
    /// DURABILITY: the new start is recorded in the journal; files go in [`Self::reclaim`], once
    /// that record is durable (RELIABILITY D10).
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] beyond the end. An `offset` below the start changes nothing.
    pub fn advance_log_start(&mut self, offset: u64) -> Result<()> {
        self.context.failure.check()?;
        let (log_start, log_end) = (self.reader().log_start_offset(), self.tip.end_offset);
        if offset > log_end {
            return Err(Error::OffsetOutOfRange { requested: offset, log_start, log_end });
        }
        if offset <= log_start {
            return Ok(());
        }
        let old = self.segments();
        let can_start = |n: &usize| {
            let header = old[*n].header();
            header.base_offset() <= offset && header.has_checkpoint
        };
        let first = (1..old.len()).rev().find(can_start).unwrap_or(0);
        assert!(old[first].base_offset() <= offset, "the log must still hold offset {offset}");
        let start = LogStart { offset, first_index: old[first].base_index() };
        let sequence = self.record(FactKind::LogStart, start.encode())?;
        self.shared.start_offset.store(offset, Ordering::Release);
        self.shared.segments.store(Arc::new(old[first..].to_vec()));
        let dropped = old[..first].iter();
        self.condemned.extend(dropped.map(|s| (s.clone(), Until::Journaled(sequence))));
        Ok(())
    }

    /// Applies a retention policy and returns how many segments it dropped.
    ///
    /// # Errors
    /// As [`Self::advance_log_start`].
    pub fn retain(&mut self, policy: &retention::Policy, now_ms: i64) -> Result<usize> {
        let segments = self.segments();
        let facts: Vec<SegmentFacts> = (0..segments.len()).map(|n| self.facts_of(n)).collect();
        let count = retention::choose(&facts, policy, now_ms);
        if count > 0 {
            self.advance_log_start(facts[count].base_offset)?;
        }
        Ok(count)
    }

    fn facts_of(&self, n: usize) -> SegmentFacts {
        let segments = self.segments();
        let tip = segments.get(n + 1).map_or(self.tip, |next| next.header().previous);
        SegmentFacts {
            base_offset: segments[n].base_offset(),
            end_offset: tip.end_offset,
            last_append_time_ms: tip.append_time_ms,
            bytes: segments[n].allocated_bytes(),
            has_checkpoint: segments[n].header().has_checkpoint,
        }
    }

    /// Removes or recycles the files of dropped segments, as far as that is safe by now, and
    /// returns how many went. Touches the disk: not for a latency-critical thread.
    ///
    /// # Errors
    /// What the system said; the rest is tried again next time.
    pub fn reclaim(&mut self) -> Result<usize> {
        let synced = self.context.journal.synced_sequence();
        let first = self.segments()[0].clone();
        let before = self.condemned.len();
        let mut waiting = Vec::new();
        for (segment, until) in std::mem::take(&mut self.condemned) {
            let is_safe = match &until {
                Until::Journaled(sequence) => synced >= *sequence && first.is_durably_named(),
                Until::Named(successor) => successor.is_durably_named() || successor.is_void(),
            };
            let removed = if is_safe { segment.remove().map(|()| true) } else { Ok(false) };
            match removed {
                Ok(true) => {}
                Ok(false) => waiting.push((segment, until)),
                Err(error) => {
                    waiting.push((segment, until));
                    self.condemned.append(&mut waiting);
                    return Err(error);
                }
            }
        }
        self.condemned.append(&mut waiting);
        Ok(before - self.condemned.len())
    }

    /// Makes everything appended so far durable on the calling thread.
    ///
    /// # Errors
    /// Any error is final for the data directory.
    pub fn sync(&self) -> Result<u64> {
        self.sync.sync()
    }

    /// Highest index known on disk.
    pub fn synced_index(&self) -> u64 {
        self.sync.synced_index()
    }

    /// Records in the journal how far the log is on disk, so that damage to its last entries is
    /// told apart from a torn tail. For a log that goes idle (RELIABILITY D23).
    ///
    /// # Errors
    /// As [`super::Journal::record`].
    pub fn record_watermark(&self) -> Result<u64> {
        let index = self.sync.synced_index();
        assert!(index <= self.tip.index, "entry {index} is on disk, the log ends before it");
        let term = self.reader().term_at(index, super::Access::MayBlock)?;
        let mark = Watermark { generation: self.next_generation - 1, index, term };
        self.record(FactKind::Watermark, mark.encode())
    }

    /// Syncs and records how the log ends, so that it opens without being read.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(super) fn close(self) -> Result<()> {
        if self.lost_tail.is_some() {
            return Ok(());
        }
        let synced = self.sync()?;
        assert_eq!(synced, self.tip.index, "log {}: a sync covers the whole log", self.id);
        self.record_watermark()?;
        let active = self.active();
        let generation = active.header().generation;
        let closed = Closed { generation, end: active.end(), tip: self.tip };
        if let Err(error) = active.write_index() {
            tracing::warn!(log = %self.id, %error, "an index was not written");
        }
        self.record(FactKind::Closed, closed.encode()).map(drop)
    }

    pub(super) fn record(&self, kind: FactKind, value: Bytes) -> Result<u64> {
        self.context.journal.record(&[Change { log: self.id, kind, value: Some(value) }])
    }

    /// Forgets the faulty ranges from `index` on.
    pub(super) fn mark_repaired_from(&self, index: u64) {
        let mut faulty = self.shared.faulty.write().expect("no holder of the list panics");
        faulty.retain(|range: &FaultyRange| range.first_index < index);
    }

    pub(super) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.shared.segments.load_full()
    }

    pub(super) fn active(&self) -> Arc<Segment> {
        self.shared.segments.load().last().expect("a log has a segment to write to").clone()
    }

    pub(super) fn publish_tip(&self) {
        self.shared.end_offset.store(self.tip.end_offset, Ordering::Release);
        self.shared.last_index.store(self.tip.index, Ordering::Release);
    }

    fn check_writable(&self) -> Result<()> {
        self.context.failure.check()?;
        match self.lost_tail {
            Some(LostTail { first_index: first, last_index: last, .. }) => {
                Err(Error::TailLost { log: self.id, first, last })
            }
            None => Ok(()),
        }
    }
}

/// Length of a checkpoint as the segment header holds it.
pub(super) fn checkpoint_len(checkpoint: &[u8]) -> u32 {
    u32::try_from(checkpoint.len()).expect("a checkpoint is below four gigabytes")
}
