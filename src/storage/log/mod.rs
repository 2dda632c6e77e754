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
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::context::Context;
use super::entry::{Entry, PAYLOAD_BYTES_MAX};
use super::error::{Error, Result};
use super::facts::{Closed, Watermark};
use super::header::{Origin, SegmentHeader, Tip};
use super::journal::{Change, FactKind};
use super::reader::{LogReader, Shared};
use super::retention;
use super::segment::{Purpose, Segment};
use super::sync::LogSync;
use crate::types::LogId;

mod cut;
mod retain;

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
    /// Length at which a segment is full that begins now.
    pub(super) segment_bytes: u64,
    /// What the log may take, as retention was told last.
    pub(super) kept_bytes: Option<u64>,
    /// Segments that are no longer part of the log.
    pub(super) condemned: Arc<Mutex<Dropped>>,
    pub(super) lost_tail: Option<LostTail>,
}

/// What is no longer part of a log and still there.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    pub(super) segments: Vec<Condemned>,
    /// Some of it could not be removed: not to be tried again all the time.
    pub(super) has_failed: bool,
}

/// A dropped segment, and when its file may go.
pub(super) type Condemned = (Arc<Segment>, Until);

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
            birth: 1,
            previous: tip,
            previous_base_index: 0,
            checkpoint_len: checkpoint_len(checkpoint),
            checkpoint_crc: crc32fast::hash(checkpoint),
            origin,
            has_checkpoint: true,
            is_recycled: false,
        };
        let full = context.config.segment_bytes;
        let segment = Segment::create(context, &dir, header, checkpoint, Purpose::SmallLog, full)?;
        let sync = LogSync::new(context, id, tip.index, true);
        sync.note_appended(&segment, tip.index);
        let shared = Shared {
            segments: ArcSwap::from_pointee(vec![segment]),
            start_offset: tip.end_offset.into(),
            last_index: tip.index.into(),
            ends: (tip.index, tip.end_offset).into(),
            faulty: Vec::new().into(),
            suspects: Mutex::default(),
            damage_news: context.damage_news.clone(),
        };
        Ok(Self {
            context: context.clone(),
            id,
            dir,
            shared: Arc::new(shared),
            sync,
            tip,
            next_generation: 2,
            segment_bytes: full,
            kept_bytes: None,
            condemned: Arc::default(),
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
            assert!(synced_index < index, "entry {index} is on disk before it is appended");
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
        let is_full = previous.allocated_bytes() >= previous.full_bytes();
        let purpose = if is_full { Purpose::BusyLog } else { Purpose::SmallLog };
        let header =
            self.next_header(Origin::Rolled, self.tip, previous.base_index(), &bytes, true);
        let full = retention::with_checkpoint(
            self.segment_bytes,
            bytes.len() as u64,
            self.context.config.segment_bytes,
        );
        let segment = Segment::create(&self.context, &self.dir, header, &bytes, purpose, full)?;
        previous.seal();
        self.next_generation += 1;
        let mut segments = self.segments().to_vec();
        assert_eq!(segment.base_index(), self.tip.index + 1, "a segment starts after the tip");
        segments.push(segment.clone());
        self.shared.segments.store(Arc::new(segments));
        self.sync.note_appended(&segment, self.tip.index);
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
            birth: self.next_generation,
            previous,
            previous_base_index,
            checkpoint_len: checkpoint_len(checkpoint),
            checkpoint_crc: crc32fast::hash(checkpoint),
            origin,
            has_checkpoint,
            is_recycled: false,
        }
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
    /// told apart from a torn tail. For a log that goes idle.
    ///
    /// # Errors
    /// As [`super::Journal::record`].
    pub fn record_watermark(&self) -> Result<u64> {
        match self.watermark()? {
            Some(mark) => self.context.journal.record(&[mark]),
            None => Ok(self.context.journal.synced_sequence()),
        }
    }

    /// What [`Self::record_watermark`] records, to be recorded together with others'. `None` if
    /// nothing of the log is on disk.
    ///
    /// # Errors
    /// [`super::Error::Corrupt`] if the log cannot be read there, or what the system said.
    pub fn watermark(&self) -> Result<Option<Change>> {
        let index = self.sync.synced_index();
        if index + 1 < self.reader().first_index() {
            // The log was reset, or its start has moved beyond what is on disk.
            return Ok(None);
        }
        assert!(index <= self.tip.index, "entry {index} is on disk, the log ends before it");
        let is_tip = index == self.tip.index;
        let read = || self.reader().term_at(index, super::Access::MayBlock);
        let term = if is_tip { self.tip.term } else { read()? };
        let mark = Watermark { generation: self.next_generation - 1, index, term };
        let (kind, value) = (FactKind::Watermark, Some(mark.encode()));
        Ok(Some(Change { log: self.id, kind, value }))
    }

    /// Syncs and records how the log ends, so that it opens without being read.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub(super) fn close(self) -> Result<()> {
        let is_damaged = self.lost_tail.is_some() || !self.reader().faulty().is_empty();
        if is_damaged {
            // What is damaged is looked for again when the log is opened.
            return self.sync().map(drop);
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

    pub(super) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.shared.segments.load_full()
    }

    pub(super) fn active(&self) -> Arc<Segment> {
        self.shared.segments.load().last().expect("a log has a segment to write to").clone()
    }

    /// Tells readers how far the log goes: the index first, so that who knows of an offset finds
    /// its entry.
    pub(super) fn publish_tip(&self) {
        let ends = (self.tip.index, self.tip.end_offset);
        self.shared.last_index.store(self.tip.index, Ordering::Release);
        *self.shared.ends.lock().expect("no holder of the ends panics") = ends;
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
