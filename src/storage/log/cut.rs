//! Cutting a log: truncating its suffix, and starting it anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::header::{Origin, Tip};
use super::super::recovery::FaultyRange;
use super::super::segment::{Purpose, Segment};
use super::super::{Access, Error, Result};
use super::{Log, Until};

impl Log {
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
    /// If a committed entry would go.
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
        let tip = reader.tip_at(first_index - 1, Access::MayBlock)?;
        self.cut_to(tip, checkpoint)
    }

    /// Lets the log go on without the entries that it lost at its end. The caller has put on record
    /// that they were promised.
    ///
    /// DURABILITY: durable with the new segment's name; until then a crash brings the loss back.
    ///
    /// # Errors
    /// What the system said; the log is then as it was.
    pub fn forget_lost_tail(&mut self) -> Result<()> {
        self.context.failure.check()?;
        match self.lost_tail {
            Some(lost) => {
                assert!(lost.first_index == self.tip.index + 1, "{lost:?} was lost of {self:?}");
                self.cut_to(self.tip, None)
            }
            None => Ok(()),
        }
    }

    /// Ends the log at `tip`, an entry of it, and continues in a new segment.
    pub(in super::super) fn cut_to(&mut self, tip: Tip, checkpoint: Option<&[u8]>) -> Result<()> {
        let old = self.segments();
        let kept = old.partition_point(|segment| segment.base_index() <= tip.index);
        let replaced = old.get(kept).filter(|segment| segment.header().previous == tip);
        // A segment that goes as a whole leaves its checkpoint, which is of the very same state, to
        // the one that takes its place.
        let inherited = match (checkpoint, replaced) {
            (None, Some(segment)) if segment.header().has_checkpoint => segment.checkpoint().ok(),
            _ => None,
        };
        let checkpoint = checkpoint.or(inherited.as_deref());
        let previous_base = match (kept.checked_sub(1), replaced) {
            (Some(n), _) => old[n].base_index(),
            (None, Some(segment)) => segment.header().previous_base_index,
            (None, None) => 0,
        };
        self.restart(Origin::Truncated, tip, previous_base, checkpoint, kept)?;
        self.forget_faulty_from(tip.index + 1);
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
        self.forget_faulty_from(0);
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
        let (purpose, full) = (Purpose::Recovery, self.segment_bytes);
        let segment = Segment::create(&self.context, &self.dir, header, bytes, purpose, full)?;
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
        // Readers must not look for entries that the list of segments does not have.
        let is_shorter = tip.index <= self.tip.index;
        self.tip = tip;
        if is_shorter {
            self.publish_tip();
        }
        self.shared.segments.store(Arc::new(segments));
        if !is_shorter {
            self.publish_tip();
        }
        let first_void = old.get(kept).map_or(u64::MAX, |segment| segment.base_index());
        self.sync.note_truncated(tip.index, first_void);
        self.sync.note_appended(&segment, tip.index);
        let replaced = old[kept..].iter();
        self.condemn(replaced.map(|s| (s.clone(), Until::Named(segment.clone()))));
        Ok(())
    }

    /// Forgets what was faulty from `index` on.
    fn forget_faulty_from(&self, index: u64) {
        let mut faulty = self.shared.faulty.write().expect("no holder of the list panics");
        faulty.retain(|range: &FaultyRange| range.first_index < index);
        for range in faulty.iter_mut().filter(|range| range.last_index >= index) {
            range.last_index = index - 1;
        }
        drop(faulty);
        self.shared.note_damage_news();
    }
}
