//! Moving the start of a log, and removing the files that this leaves behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::facts::LogStart;
use super::super::housekeeping::Departure;
use super::super::journal::FactKind;
use super::super::retention::{self, SegmentFacts};
use super::super::spare::Recycled;
use super::super::{Error, Result};
use super::{Condemned, Log, Until};

impl Log {
    /// Moves the log start to `offset` and drops the segments that end before it. The first one
    /// that stays has a checkpoint, of entries up to `committed_index` at most.
    ///
    /// DURABILITY: the new start is recorded in the journal; files go in [`Self::reclaim`], once
    /// that record is durable.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] beyond the end. An `offset` below the start changes nothing.
    pub fn advance_log_start(&mut self, offset: u64, committed_index: u64) -> Result<()> {
        self.context.failure.check()?;
        let (log_start, log_end) = (self.reader().log_start_offset(), self.tip.end_offset);
        if offset > log_end {
            return Err(Error::OffsetOutOfRange { requested: offset, log_start, log_end });
        }
        let old = self.segments();
        let index_max = committed_index.saturating_add(1);
        let can_start = |n: &usize| {
            let header = old[*n].header();
            let is_below = header.base_offset() <= offset && header.base_index() <= index_max;
            is_below && header.has_checkpoint
        };
        let first = (1..old.len()).rev().find(can_start).unwrap_or(0);
        if first == 0 && offset <= log_start {
            return Ok(());
        }
        self.begin_at(first, offset.max(log_start))
    }

    /// Lets the log begin with segment `first` and its records at `offset`.
    fn begin_at(&mut self, first: usize, offset: u64) -> Result<()> {
        let old = self.segments();
        assert!(first < old.len(), "segment {first} of {} is to stay", old.len());
        assert!(old[first].base_offset() <= offset, "the log must still hold offset {offset}");
        let start = LogStart { offset, first_index: old[first].base_index() };
        let sequence = self.record(FactKind::LogStart, start.encode())?;
        self.shared.start_offset.store(offset, Ordering::Release);
        self.shared.segments.store(Arc::new(old[first..].to_vec()));
        let dropped = old[..first].iter();
        self.condemn(dropped.map(|s| (s.clone(), Until::Journaled(sequence))));
        Ok(())
    }

    /// Applies a retention policy to entries up to `committed_index` and returns how many segments
    /// it dropped. From here on segments have the length that suits the policy.
    ///
    /// # Errors
    /// As [`Self::advance_log_start`].
    pub fn retain(
        &mut self,
        policy: &retention::Policy,
        committed_index: u64,
        now_ms: i64,
    ) -> Result<usize> {
        self.context.failure.check()?;
        self.keep_within(policy.bytes);
        let segments = self.segments();
        let index_max = committed_index.saturating_add(1);
        let committed = segments.partition_point(|segment| segment.base_index() <= index_max);
        let facts: Vec<SegmentFacts> = (0..committed).map(|n| self.facts_of(n)).collect();
        let count = retention::choose(&facts, policy, now_ms);
        if count > 0 {
            let start = facts[count].base_offset.max(self.reader().log_start_offset());
            self.begin_at(count, start)?;
        }
        Ok(count)
    }

    /// True if the log takes more than it may, or if something of it waits to be removed.
    pub fn is_overgrown(&self) -> bool {
        let segments = self.segments();
        let bytes = || segments.iter().map(|segment| segment.allocated_bytes()).sum::<u64>();
        let is_over = self.kept_bytes.is_some_and(|kept| segments.len() > 1 && bytes() > kept);
        is_over || self.has_leaving()
    }

    /// True if segments wait to be removed that are not known to stay.
    pub fn has_leaving(&self) -> bool {
        let condemned = self.condemned.lock().expect("no holder of the list panics");
        !condemned.segments.is_empty() && !condemned.has_failed
    }

    /// True if something could not be removed, the last time.
    pub fn has_failed_to_reclaim(&self) -> bool {
        self.condemned.lock().expect("no holder of the list panics").has_failed
    }

    /// True if segments wait to be removed until the log is synced, which with acknowledgment from
    /// memory nobody may ask for otherwise.
    pub fn needs_sync_to_reclaim(&self) -> bool {
        self.has_leaving() && !self.segments()[0].is_durably_named()
    }

    /// What the log may take, as retention was told last.
    pub fn kept_bytes(&self) -> Option<u64> {
        self.kept_bytes
    }

    /// Sets what the log may take, as [`Self::retain`] does, and gives nothing up.
    pub fn keep_within(&mut self, kept_bytes: Option<u64>) {
        self.kept_bytes = kept_bytes;
        let bytes = retention::segment_bytes(kept_bytes, self.context.config.segment_bytes);
        if self.segment_bytes != bytes {
            self.segment_bytes = bytes;
            self.active().set_full_bytes(bytes);
        }
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

    /// Takes segments that are no longer part of the log.
    pub(in super::super) fn condemn(&self, segments: impl IntoIterator<Item = Condemned>) {
        let mut condemned = self.condemned.lock().expect("no holder of the list panics");
        condemned.segments.extend(segments);
    }

    /// Removes or recycles the files of dropped segments, as far as that is safe by now, and
    /// returns how many went. Touches the disk: not for a latency-critical thread.
    ///
    /// # Errors
    /// What the system said of the first file that could not be removed, or of the checkpoint that
    /// the log will begin with; whatever is left is tried again next time.
    pub fn reclaim(&mut self) -> Result<usize> {
        let mut departure = self.depart();
        let (count, mut result) = (departure.len(), Ok(()));
        let mut recycled = Recycled::default();
        while let Some(removed) = departure.remove_next(&mut recycled) {
            result = result.and(removed);
        }
        let taken_in = self.context.spares.take_in(&self.context, recycled);
        result.and(taken_in).map(|()| count)
    }

    /// Leaves to the housekeeping thread what [`Self::reclaim`] would do; or does it, if the
    /// directory was opened without threads.
    ///
    /// # Errors
    /// As [`Self::reclaim`], in a directory without threads.
    pub fn reclaim_in_background(&mut self) -> Result<()> {
        if !self.context.config.has_threads() {
            return self.reclaim().map(drop);
        }
        let departure = self.depart();
        if departure.len() > 0 {
            self.context.departures.hand_over(departure);
            self.context.spares.wake_preparer();
        }
        Ok(())
    }

    /// Takes the dropped segments whose files may go by now.
    ///
    /// DURABILITY: the log cannot begin with a segment that has no checkpoint, which a repair may
    /// have put where one with a checkpoint was. What is before such a one stays.
    fn depart(&mut self) -> Departure {
        let synced = self.context.journal.synced_sequence();
        let first = self.segments()[0].clone();
        assert!(!first.is_void(), "the first segment that stays was removed");
        let is_due = |(_, until): &Condemned| match until {
            Until::Journaled(sequence) => {
                synced >= *sequence && first.is_durably_named() && first.header().has_checkpoint
            }
            Until::Named(successor) => successor.is_durably_named() || successor.is_void(),
        };
        let mut condemned = self.condemned.lock().expect("no holder of the list panics");
        let all = std::mem::take(&mut *condemned).segments;
        let (due, waiting): (Vec<_>, Vec<_>) = all.into_iter().partition(is_due);
        condemned.segments = waiting;
        drop(condemned);
        let is_start = due.iter().any(|(_, until)| matches!(until, Until::Journaled(_)));
        let new_start = is_start.then_some(first);
        Departure::new(self.id, self.condemned.clone(), due, new_start)
    }
}
