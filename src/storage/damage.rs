//! Damage of a log that is open: what is suspected, what is known, and what would mend it.
//!
//! A read that fails leaves a suspicion, of a whole segment. Whoever may wait for a disk examines
//! it, and what is damaged is known from then on: reads of it fail at once, reads around it do not,
//! and [`Log::wound`] says which entries [`Log::repair`] needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{Damage, Error, Result};
use super::log::Log;
use super::reader::{LogReader, Shared};
use super::recovery::{self, FaultyRange};
use super::scan::Scan;
use super::segment::{Access, Segment};

/// The entries that the oldest damaged segment of a log lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wound {
    /// Ranges of indices, inclusive and ascending; at least one.
    pub missing: Vec<(u64, u64)>,
    /// Index and term of an entry at or after the last missing one that was in the log for certain.
    pub anchor: (u64, u64),
}

impl Shared {
    /// Says that what is damaged or suspected has changed.
    pub(super) fn note_damage_news(&self) {
        self.damage_news.fetch_add(1, Ordering::Release);
    }
}

impl LogReader {
    /// True if no entry is known to be damaged.
    pub fn is_whole(&self) -> bool {
        let faulty = self.shared.faulty.read().expect("no holder of the list panics");
        faulty.iter().all(|range| range.first_index > range.last_index)
    }

    /// Takes the segments of which a read has failed since this was last asked, by base index.
    pub fn take_suspects(&self) -> Vec<u64> {
        let mut suspects = self.shared.suspects.lock().expect("no holder of the list panics");
        std::mem::take(&mut *suspects).into_iter().collect()
    }

    /// Notes the segment in which a read has met damage that is not known yet.
    pub(super) fn suspect(&self, damage: &Damage) {
        let faulty = self.shared.faulty.read().expect("no holder of the list panics");
        if faulty.iter().any(|range| range.damage == *damage) {
            return;
        }
        drop(faulty);
        let segments = self.segments();
        let mut suspects = self.shared.suspects.lock().expect("no holder of the list panics");
        let found = segments.iter().filter(|segment| segment.path() == damage.file);
        suspects.extend(found.map(|segment| segment.base_index()));
        self.shared.note_damage_news();
    }

    /// Reads the segment that begins at `base_index` from the disk, as far as it was written when
    /// this is called, and notes what is damaged. Returns whether anything new was found.
    ///
    /// # Errors
    /// What the system said about opening the file; a sector that cannot be read is damage.
    pub fn examine(&self, base_index: u64) -> Result<bool> {
        let log_last = self.last_index();
        let segments = self.segments();
        let Some(n) = segments.iter().position(|s| s.base_index() == base_index) else {
            return Ok(false);
        };
        let segment = &segments[n];
        let last_index = segments.get(n + 1).map_or(log_last, |next| next.base_index() - 1);
        let found = damaged_entries(segment, last_index.min(log_last));
        // What was replaced meanwhile is nobody's damage.
        let is_part = self.segments().iter().any(|part| Arc::ptr_eq(part, segment));
        match found {
            Ok(found) if is_part && !segment.is_void() => Ok(self.note_faulty(found)),
            Err(error) if is_part && !segment.is_void() => Err(error),
            _ => Ok(false),
        }
    }

    /// Adds to what is known to be damaged; true if any of it is new.
    fn note_faulty(&self, found: Vec<FaultyRange>) -> bool {
        let mut faulty = self.shared.faulty.write().expect("no holder of the list panics");
        let before = faulty.len();
        for range in found {
            let is_known = |known: &FaultyRange| {
                known.first_index <= range.first_index && range.last_index <= known.last_index
            };
            if !faulty.iter().any(is_known) {
                tracing::error!(damage = %range.damage, "entries are damaged");
                faulty.push(range);
            }
        }
        if faulty.len() > before {
            self.shared.note_damage_news();
        }
        faulty.len() > before
    }
}

impl Log {
    /// What the oldest damaged segment lacks; `None` if every entry is there, and for damage at a
    /// log's very start, which only a snapshot mends.
    pub fn wound(&self) -> Option<Wound> {
        self.wound_after(0)
    }

    /// The same, of segments that end after `index`.
    pub fn wound_after(&self, index: u64) -> Option<Wound> {
        let reader = self.reader();
        if reader.is_whole() {
            return None;
        }
        let segments = reader.segments();
        let mut faulty = reader.faulty();
        let start = segments[0].base_index();
        faulty.retain(|range| range.first_index.max(start).max(index + 1) <= range.last_index);
        faulty.sort_unstable_by_key(|range| range.first_index);
        let first_index = faulty.first()?.first_index;
        let n = segments.partition_point(|segment| segment.base_index() <= first_index);
        let n = n.checked_sub(1)?;
        let end = segments.get(n + 1).map_or(self.tip, |next| next.header().previous);
        let mut missing: Vec<(u64, u64)> = Vec::new();
        for range in faulty.iter().take_while(|range| range.first_index <= end.index) {
            let after = missing.last().map_or(0, |(_, last)| *last);
            let (first, last) = (range.first_index.max(after + 1), range.last_index);
            if first <= last {
                missing.push((first, last.min(end.index)));
            }
        }
        assert!(!missing.is_empty(), "entry {first_index} is missing before {end:?}");
        Some(Wound { missing, anchor: (end.index, end.term) })
    }
}

impl LogReader {
    /// Term of the entry at `index`, also of a damaged one if those around it are of one term.
    ///
    /// # Errors
    /// As [`LogReader::read`].
    pub fn term_around(&self, index: u64) -> Result<u64> {
        let read = self.term_at(index, Access::MayBlock);
        let is_hit = |range: &FaultyRange| range.first_index <= index && index <= range.last_index;
        let range = self.faulty().into_iter().find(is_hit);
        match (read, range) {
            (Err(Error::Corrupt(damage)), Some(range)) => {
                let before = self.term_at(range.first_index - 1, Access::MayBlock)?;
                let after = self.term_at(range.last_index + 1, Access::MayBlock)?;
                if before == after { Ok(before) } else { Err(Error::Corrupt(damage)) }
            }
            (read, _) => read,
        }
    }
}

/// Scans a segment whose entries go up to `last_index`.
fn damaged_entries(segment: &Arc<Segment>, last_index: u64) -> Result<Vec<FaultyRange>> {
    let path = segment.path();
    let file = segment.open_fresh()?;
    let interval = segment.index_interval_bytes();
    let scan = Scan::of(&*file, segment.header(), interval, &mut |_| {});
    let verdict = recovery::judge(&scan, last_index, true);
    let found = verdict.faulty.iter().zip(scan.runs.iter().zip(&scan.reasons));
    let ranges: Vec<FaultyRange> = found
        .map(|((first, last), (run, reason))| {
            let what = format!("entries {first} to {last}: {reason}");
            let damage = Damage { file: path.clone(), position: run.end, what };
            FaultyRange { first_index: *first, last_index: *last, damage }
        })
        .collect();
    if !ranges.is_empty() {
        segment.lead_around(scan.index);
    }
    Ok(ranges)
}
