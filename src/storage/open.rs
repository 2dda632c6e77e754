//! Opening an existing log: gathers the evidence that [`super::recovery`] judges, and carries the
//! verdict out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::context::Context;
use super::error::{Damage, Error, IoContext as _, Result};
use super::facts::{Closed, LogStart, Watermark};
use super::files::{Files, SegmentFile};
use super::fs::{File, OpenMode};
use super::header::{COPY_POSITIONS, SegmentHeader, Tip};
use super::journal::{Change, FactKind};
use super::log::{Log, LostTail};
use super::reader::Shared;
use super::recovery::{self, Case, Class, FaultyRange, RecoveryReport, Verdict};
use super::scan::{Run, Scan};
use super::segment::{Access, Segment};
use super::sync::LogSync;
use super::walk::Walk;
use crate::types::LogId;

/// Opens log `id`, recovering it as `class` asks for.
///
/// # Errors
/// What keeps the log from being opened at all. Damage does not: it is in the report, and reads
/// of the range fail.
pub(super) fn open(
    context: &Arc<Context>,
    id: LogId,
    class: Class,
) -> Result<(Log, RecoveryReport)> {
    let dir: Arc<Path> = context.log_dir(id).into();
    let files = Files::read(&*context.fs, &dir, id)?;
    if files.live.is_empty() {
        return Err(Error::UnknownLog { log: id, path: context.root.clone() });
    }
    let facts = Facts::read(context, id, class, &files);
    let mut opening = Opening {
        context: context.clone(),
        id,
        dir,
        facts,
        segments: Vec::new(),
        faulty: Vec::new(),
    };
    let kept = opening.tidy_up(files)?;
    opening.adopt(&kept)?;
    let end = opening.find_end(class)?;
    opening.finish(class, end)
}

/// What the journal says about a log.
struct Facts {
    start: Option<LogStart>,
    /// Watermark, cut back by truncations that came after it.
    watermark: Watermark,
    closed: Option<Closed>,
}

impl Facts {
    fn read(context: &Context, id: LogId, class: Class, files: &Files) -> Self {
        let get = |kind| context.journal.get(id, kind);
        let watermark = get(FactKind::Watermark).and_then(Watermark::decode);
        let live = files.live.iter().filter_map(|file| file.header.as_ref().ok());
        let watermark = watermark.unwrap_or(Watermark::UNKNOWN).cut_back(live);
        let closed = get(FactKind::Closed).and_then(Closed::decode);
        Self {
            start: get(FactKind::LogStart).and_then(LogStart::decode),
            watermark,
            closed: closed.filter(|_| class == Class::Clean),
        }
    }
}

struct Opening {
    context: Arc<Context>,
    id: LogId,
    dir: Arc<Path>,
    facts: Facts,
    segments: Vec<Arc<Segment>>,
    faulty: Vec<FaultyRange>,
}

/// How a log ends.
#[derive(Debug, Clone, Copy)]
struct End {
    case: Case,
    tip: Tip,
    watermark: u64,
    tail_cut_bytes: u64,
    lost_tail: Option<LostTail>,
    /// Frames stand behind the end that must never be taken for entries again.
    has_stale_frames: bool,
}

impl Opening {
    /// Removes what is known to be superfluous, sets aside what is not known at all, and returns
    /// the files that make up the log.
    fn tidy_up(&mut self, files: Files) -> Result<Vec<SegmentFile>> {
        let mut live = files.live;
        // A log starts at the last segment that is no later than the recorded start in any way.
        let is_at_start = |file: &SegmentFile| {
            let fits = |header: &SegmentHeader, start: LogStart| {
                header.base_index() <= start.first_index && header.base_offset() <= start.offset
            };
            self.facts.start.zip(file.header.as_ref().ok()).is_some_and(|(start, h)| fits(h, start))
        };
        let is_before = |n: usize, live: &[SegmentFile]| live.get(n + 1).is_some_and(is_at_start);
        let count = (0..live.len()).take_while(|n| is_before(*n, &live)).count();
        for file in files.void.into_iter().chain(live.drain(..count)) {
            self.context.fs.remove_file(&file.path).at("remove", &file.path)?;
            let _ = self.context.fs.remove_file(&file.path.with_extension("idx"));
        }
        for path in files.unknown {
            self.quarantine(&path)?;
        }
        let is_residue = |file: &SegmentFile| {
            file.header.is_err() && self.facts.watermark.index < file.base_index
        };
        if live.last().is_some_and(is_residue) {
            let residue = live.pop().expect("the last file was looked at");
            self.quarantine(&residue.path)?;
        }
        Ok(live)
    }

    /// Moves a file out of the way; nothing unknown is ever deleted (RELIABILITY D12).
    fn quarantine(&self, path: &Path) -> Result<()> {
        tracing::warn!(log = %self.id, path = %path.display(), "moved to quarantine");
        let dir = self.context.root.join("quarantine").join(self.id.to_string());
        self.context.fs.create_dir_all(&dir).at("create", &dir)?;
        let name = path.file_name().unwrap_or_default();
        self.context.fs.rename(path, &dir.join(name)).at("rename", path)
    }

    /// Makes segments of the files and marks the holes between them.
    fn adopt(&mut self, files: &[SegmentFile]) -> Result<()> {
        let mut expected = self.facts.start.map_or(0, |start| start.first_index);
        for (n, file) in files.iter().enumerate() {
            let header = match &file.header {
                Ok(header) => header,
                Err(damage) => {
                    let next =
                        files.get(n + 1).map_or(self.facts.watermark.index + 1, |f| f.base_index);
                    self.mark_faulty(file.base_index, next - 1, damage.clone());
                    expected = 0;
                    continue;
                }
            };
            let previous = self.segments.last().map_or(0, |segment| segment.base_index());
            let missing = match (n, header.previous_base_index) {
                (0, _) if header.base_index() > expected && expected > 0 => Some(expected),
                (0, _) => None,
                (_, base) if base > previous && expected > 0 => Some(base),
                _ => None,
            };
            if let Some(first_index) = missing {
                let what = format!("the segment of entry {first_index} is missing");
                let damage = Damage { file: self.dir.to_path_buf(), position: 0, what };
                self.mark_faulty(first_index, header.base_index() - 1, damage);
            }
            expected = header.base_index();
            self.heal_header(file, header)?;
            self.segments.push(Segment::adopt(&self.context, &self.dir, *header, file.bytes));
        }
        if self.segments.is_empty() {
            let reason = "no segment of this log can be read".to_owned();
            return Err(Error::Foreign { path: self.dir.to_path_buf(), reason });
        }
        let sealed = self.segments.len() - 1;
        self.segments[..sealed].iter().for_each(|segment| segment.seal());
        Ok(())
    }

    fn mark_faulty(&mut self, first_index: u64, last_index: u64, damage: Damage) {
        if first_index <= last_index {
            tracing::error!(log = %self.id, first_index, last_index, %damage, "damaged");
            self.faulty.push(FaultyRange { first_index, last_index, damage });
        }
    }

    /// Writes a damaged copy of a header again, from the good one.
    ///
    /// DURABILITY: synced at once, so that both copies are good before one can fail again.
    fn heal_header(&self, file: &SegmentFile, header: &SegmentHeader) -> Result<()> {
        let bytes = header.encode();
        for copy in &file.bad_copies {
            tracing::warn!(path = %file.path.display(), copy, "a header copy was damaged, healed");
            let open = self.context.fs.open(&file.path, OpenMode::Write).at("open", &file.path)?;
            let parts = [std::io::IoSlice::new(&bytes)];
            open.write_at(&parts, COPY_POSITIONS[*copy]).at("write", &file.path)?;
            open.sync().at("sync", &file.path)?;
        }
        Ok(())
    }

    /// Finds where the log ends.
    fn find_end(&mut self, class: Class) -> Result<End> {
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
        if class == Class::MachineCrash && self.segments.len() > 1 {
            let sealed = self.segments[self.segments.len() - 2].clone();
            self.check_sealed(&sealed, active.base_index() - 1)?;
        }
        self.scan_active(&active)
    }

    /// Reads a segment that was synced before its successor got its name: any damage is damage.
    fn check_sealed(&mut self, segment: &Arc<Segment>, last_index: u64) -> Result<()> {
        let (scan, _) = self.scan(segment)?;
        let verdict = recovery::judge(&scan, last_index, true);
        self.mark_verdict(segment, &scan, &verdict);
        segment.publish_index(scan.index);
        Ok(())
    }

    fn scan_active(&mut self, active: &Arc<Segment>) -> Result<End> {
        let (scan, file) = self.scan(active)?;
        let closed = self.facts.closed.map_or(0, |closed| closed.tip.index);
        let watermark = self.facts.watermark.index.max(closed).max(scan.synced_index);
        // The segment has its name, so everything before it is on disk.
        let watermark = watermark.max(active.header().previous.index);
        let verdict = recovery::judge(&scan, watermark, active.header().is_recycled);
        self.mark_verdict(active, &scan, &verdict);
        let last = &scan.runs[verdict.runs_kept - 1];
        assert!(
            last.tip.index >= active.header().previous.index,
            "log {}: a segment ends before it begins",
            self.id
        );
        assert!(
            verdict.is_tail_lost || last.tip.index >= watermark,
            "log {}: entry {watermark} was on disk, recovery kept only {}",
            self.id,
            last.tip.index
        );
        if self.facts.closed.is_none() {
            rewrite(&*file, &scan, watermark, last).at("rewrite", &active.path())?;
        }
        let lost = verdict.is_tail_lost.then(|| {
            let first_index = last.tip.index + 1;
            let last_term = self.lost_term(&scan, &verdict, watermark);
            LostTail { first_index, last_index: watermark, last_term }
        });
        let bytes_end = if active.header().is_recycled { 0 } else { scan.bytes_end };
        if bytes_end > last.end && scan.frames_end <= last.end {
            // DURABILITY: the remains of a torn write go, so that they are not found and told
            // again.
            let erased = file.write_zeros(last.end, bytes_end).and_then(|()| file.sync());
            erased.at("erase", &active.path())?;
        }
        active.publish(scan.index.clone(), last.end);
        Ok(End {
            case: verdict.case,
            tip: last.tip,
            watermark,
            tail_cut_bytes: scan.frames_end.max(bytes_end).saturating_sub(last.end),
            lost_tail: lost,
            has_stale_frames: scan.frames_end > last.end,
        })
    }

    /// Term of the last promised entry; when it is not known, that of an entry behind it, which is
    /// at least as high and so promises no less.
    fn lost_term(&self, scan: &Scan, verdict: &Verdict, watermark: u64) -> u64 {
        let mark = self.facts.watermark;
        let later = scan.runs.get(verdict.runs_kept).map(|run| run.tip.term);
        if mark.index == watermark { mark.term } else { later.unwrap_or(mark.term) }
    }

    /// Reads a whole segment from the disk.
    fn scan(&self, segment: &Arc<Segment>) -> Result<(Scan, Arc<dyn File>)> {
        let file = segment.open_fresh()?;
        let interval = segment.index_interval_bytes();
        let scan = Scan::of(&*file, segment.header(), interval, &mut |_| {});
        Ok((scan, file))
    }

    fn mark_verdict(&mut self, segment: &Segment, scan: &Scan, verdict: &Verdict) {
        for ((first, last), run) in verdict.faulty.iter().zip(&scan.runs) {
            let is_first = run.end == scan.head().end;
            let what = if is_first { scan.first_bad.1.as_str() } else { "a bad spot" };
            let what = format!("entries {first} to {last}: {what}");
            let damage = Damage { file: segment.path(), position: run.end, what };
            self.mark_faulty(*first, *last, damage);
        }
    }

    fn finish(self, class: Class, end: End) -> Result<(Log, RecoveryReport)> {
        let active = self.segments.last().expect("a log has a segment");
        let is_ordered = |pair: &[Arc<Segment>]| pair[0].base_index() < pair[1].base_index();
        assert!(self.segments.windows(2).all(is_ordered), "log {}: segments overlap", self.id);
        let last_generation = self.segments.iter().map(|s| s.header().generation).max();
        let start = self.facts.start.map_or(0, |start| start.offset);
        // The start may lie beyond the end: what was there was committed elsewhere and comes back.
        let start = start.max(self.segments[0].base_offset());
        let shared = Shared {
            start_offset: AtomicU64::new(start),
            end_offset: AtomicU64::new(end.tip.end_offset),
            last_index: AtomicU64::new(end.tip.index),
            faulty: self.faulty.clone().into(),
            segments: ArcSwap::from_pointee(self.segments.clone()),
        };
        let sync = LogSync::new(&self.context, self.id, end.tip.index, false);
        let mut log = Log {
            context: self.context.clone(),
            id: self.id,
            dir: self.dir.clone(),
            shared: Arc::new(shared),
            sync: Arc::new(sync),
            tip: end.tip,
            next_generation: last_generation.unwrap_or(0).max(active.header().generation) + 1,
            condemned: Vec::new(),
            lost_tail: end.lost_tail,
        };
        if end.has_stale_frames && end.lost_tail.is_none() {
            // DURABILITY: a frame behind the cut could link up again with what is appended there.
            // A new segment has a new salt, so nothing in the old file counts any more.
            log.cut_to(end.tip, None)?;
            log.sync()?;
        }
        // From here on the log may change, so what was said of its end no longer holds.
        if self.context.journal.get(self.id, FactKind::Closed).is_some() {
            let forget = Change { log: self.id, kind: FactKind::Closed, value: None };
            self.context.journal.record(&[forget])?;
        }
        Ok((log, self.report(class, &end)))
    }

    fn report(&self, class: Class, end: &End) -> RecoveryReport {
        RecoveryReport {
            log: self.id,
            class,
            case: end.case,
            watermark: end.watermark,
            last_index: end.lost_tail.map_or(end.tip.index, |lost| lost.last_index),
            tail_cut_bytes: end.tail_cut_bytes,
            faulty: self.faulty.clone(),
            elapsed: Duration::ZERO,
        }
    }
}

/// Publishes the active segment of a log that was closed in order, from its index, if its last
/// entries are what the journal says.
fn is_as_closed(active: &Arc<Segment>, closed: &Closed) -> bool {
    let header = active.header();
    if header.generation != closed.generation || closed.tip.index < header.previous.index {
        return false;
    }
    let Some(index) = active.read_closed_index(closed.end) else {
        return false;
    };
    let row = index.at_or_before_index(closed.tip.index);
    active.publish(index, closed.end);
    let Some(row) = row else {
        return closed.tip == header.previous;
    };
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
/// follows means what it says (RELIABILITY R7).
fn rewrite(file: &dyn File, scan: &Scan, watermark: u64, last: &Run) -> std::io::Result<()> {
    if last.tip.index <= watermark {
        return Ok(());
    }
    let row = scan.index.at_or_before_index(watermark + 1);
    let mut position = row.map_or(last.position, |row| row.position.max(last.position));
    let end = last.end;
    let mut buffer = vec![0; (end.saturating_sub(position)).min(1024 * 1024) as usize];
    while position < end {
        let len = buffer.len().min((end - position) as usize);
        super::fs::read_exact_at(file, &mut buffer[..len], position)?;
        file.write_at(&[std::io::IoSlice::new(&buffer[..len])], position)?;
        position += len as u64;
    }
    file.sync()
}
