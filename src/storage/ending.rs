//! Finding where a log ends, when it is opened.

use std::sync::Arc;

use super::error::{Damage, IoContext as _, Result};
use super::facts::Closed;
use super::fs::File;
use super::header::Tip;
use super::log::LostTail;
use super::open::Opening;
use super::recovery::{self, Case, Class, Verdict};
use super::scan::{Run, Scan};
use super::segment::{Access, Segment, remove_if_there};
use super::walk::Walk;

/// How a log ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) case: Case,
    pub(super) tip: Tip,
    pub(super) watermark: u64,
    pub(super) tail_cut_bytes: u64,
    pub(super) lost_tail: Option<LostTail>,
    /// Frames stand behind the end that must never be taken for entries again.
    pub(super) has_stale_frames: bool,
}

impl Opening {
    /// Finds where the log ends.
    pub(super) fn find_end(&mut self, class: Class) -> Result<End> {
        let active = self.segments.last().expect("a log has a segment").clone();
        if let Some(closed) = self.facts.closed
            && is_as_closed(&active, &closed)
        {
            return Ok(End {
                case: Case::Whole,
                tip: closed.tip,
                watermark: closed.tip.index,
                tail_cut_bytes: 0,
                lost_tail: None,
                has_stale_frames: false,
            });
        }
        // An index that tells of entries which were never synced must not outlive them.
        remove_if_there(&*self.context.fs, &active.index_path())?;
        if class == Class::MachineCrash && self.segments.len() > 1 {
            let sealed = self.segments[self.segments.len() - 2].clone();
            self.check_sealed(&sealed, active.base_index() - 1)?;
        }
        self.scan_active(&active)
    }

    /// Reads a segment that was synced before its successor got its name: any damage is damage.
    fn check_sealed(&mut self, segment: &Arc<Segment>, last_index: u64) -> Result<()> {
        let (scan, _) = scan(segment)?;
        let verdict = recovery::judge(&scan, last_index, true);
        self.mark_verdict(segment, &scan, &verdict);
        segment.publish_index(scan.index);
        Ok(())
    }

    fn scan_active(&mut self, active: &Arc<Segment>) -> Result<End> {
        let (scan, file) = scan(active)?;
        let header = *active.header();
        let closed = self.facts.closed.map_or(0, |closed| closed.tip.index);
        let watermark = self.facts.watermark.index.max(closed).max(scan.synced_index);
        // The segment has its name, so everything before it is on disk.
        let watermark = watermark.max(header.previous.index);
        let verdict = recovery::judge(&scan, watermark, header.is_recycled);
        self.mark_verdict(active, &scan, &verdict);
        assert!(verdict.runs_kept <= scan.runs.len(), "{} runs are kept", verdict.runs_kept);
        let last = &scan.runs[verdict.runs_kept - 1];
        assert!(
            verdict.is_tail_lost || last.tip.index >= watermark,
            "log {}: entry {watermark} was on disk, recovery kept only {}",
            self.id,
            last.tip.index
        );
        if self.facts.closed.is_none() {
            rewrite(&*file, &scan, watermark, last).at("rewrite", &active.path())?;
        }
        let bytes_end = if header.is_recycled { 0 } else { scan.bytes_end };
        if bytes_end > last.end && scan.frames_end <= last.end && !verdict.is_tail_lost {
            // DURABILITY: the remains of a torn write go, so that they are not found and told
            // again.
            let erased = file.write_zeros(last.end, bytes_end).and_then(|()| file.sync());
            erased.at("erase", &active.path())?;
        }
        let lost_tail = verdict.is_tail_lost.then(|| LostTail {
            first_index: last.tip.index + 1,
            last_index: watermark,
            last_term: self.lost_term(&scan, &last.tip, watermark),
        });
        active.publish(scan.index.clone(), last.end);
        Ok(End {
            case: verdict.case,
            tip: last.tip,
            watermark,
            tail_cut_bytes: scan.frames_end.max(bytes_end).saturating_sub(last.end),
            lost_tail,
            has_stale_frames: scan.frames_end > last.end,
        })
    }

    /// Term of the last promised entry, or one that is at least as high: then the promise is of no
    /// less.
    fn lost_term(&self, scan: &Scan, last: &Tip, watermark: u64) -> u64 {
        let mark = self.facts.watermark;
        if mark.index == watermark { mark.term } else { scan.term_max.max(last.term) }
    }

    fn mark_verdict(&mut self, segment: &Segment, scan: &Scan, verdict: &Verdict) {
        let found = verdict.faulty.iter().zip(scan.runs.iter().zip(&scan.reasons));
        for ((first, last), (run, reason)) in found {
            let what = format!("entries {first} to {last}: {reason}");
            let damage = Damage { file: segment.path(), position: run.end, what };
            self.mark_faulty(*first, *last, damage);
        }
    }
}

/// Reads a whole segment from the disk.
fn scan(segment: &Arc<Segment>) -> Result<(Scan, Arc<dyn File>)> {
    let file = segment.open_fresh()?;
    let interval = segment.index_interval_bytes();
    let scan = Scan::of(&*file, segment.header(), interval, &mut |_| {});
    Ok((scan, file))
}

/// Publishes the active segment of a log that was closed in order, from its index, if its last
/// entries are what the journal says.
fn is_as_closed(active: &Arc<Segment>, closed: &Closed) -> bool {
    let header = active.header();
    if header.generation != closed.generation || closed.tip.index < header.previous.index {
        return false;
    }
    let Some(index) = active.read_closed_index(closed.end) else { return false };
    let row = index.at_or_before_index(closed.tip.index);
    active.publish(index, closed.end);
    let Some(row) = row else { return closed.tip == header.previous };
    let walked = Walk::new(active, row, closed.tip.index, Access::MayBlock).and_then(|mut walk| {
        let mut last = None;
        while let Some((header, position)) = walk.next_header()? {
            walk.payload(&header, position)?;
            last = Some((header.tip(), position + header.frame_bytes()));
        }
        Ok(last)
    });
    matches!(walked, Ok(Some(last)) if last == (closed.tip, closed.end))
}

/// Writes again what was not known to be on disk, and syncs it.
///
/// DURABILITY: after a crash of the process alone, entries may be in the page cache only, even
/// marked clean by a sync that failed. Writing them again makes them dirty, so that the sync that
/// follows means what it says.
fn rewrite(file: &dyn File, scan: &Scan, watermark: u64, last: &Run) -> std::io::Result<()> {
    if last.tip.index <= watermark {
        return Ok(());
    }
    let row = scan.index.at_or_before_index(watermark.saturating_add(1));
    let mut position = row.map_or(last.position, |row| row.position.max(last.position));
    assert!(position <= last.end, "entries from {position} on end at {}", last.end);
    let mut buffer = vec![0; last.end.saturating_sub(position).min(1024 * 1024) as usize];
    while position < last.end {
        let len = buffer.len().min((last.end - position) as usize);
        super::fs::read_exact_at(file, &mut buffer[..len], position)?;
        file.write_at(&[std::io::IoSlice::new(&buffer[..len])], position)?;
        position += len as u64;
    }
    file.sync()
}
