//! Opening an existing log: which files count, and what is missing between them.
//!
//! Where the log ends is found in [`super::ending`].

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::context::Context;
use super::ending::End;
use super::error::{Damage, Error, IoContext as _, Result};
use super::facts::{Closed, LogStart, Watermark};
use super::files::{Files, SegmentFile};
use super::fs::{Fs, OpenMode};
use super::header::{COPY_POSITIONS, Origin, SegmentHeader};
use super::journal::{Change, FactKind};
use super::log::Log;
use super::reader::Shared;
use super::recovery::{Class, FaultyRange, RecoveryReport};
use super::scan::Scan;
use super::segment::{Segment, remove_if_there};
use super::sync::LogSync;
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
        // A log whose files are all strange or damaged is not taken for one that never was.
        let Some(file) = files.unreadable.first() else {
            return Err(Error::UnknownLog { log: id, path: context.root.clone() });
        };
        let reason = file.header.as_ref().err().map_or(String::new(), |damage| damage.what.clone());
        return Err(Error::Foreign { path: file.path.clone(), reason });
    }
    let facts = Facts::read(context, id, class, &files);
    let (segments, faulty) = (Vec::new(), Vec::new());
    let mut opening = Opening { context: context.clone(), id, dir, facts, segments, faulty };
    opening.make_names_durable(class)?;
    let live = opening.tidy_up(files)?;
    opening.adopt(&live)?;
    let end = opening.find_end(class)?;
    opening.finish(class, end)
}

/// What the journal says about a log.
pub(super) struct Facts {
    start: Option<LogStart>,
    /// Watermark, cut back by truncations that came after it.
    pub(super) watermark: Watermark,
    pub(super) closed: Option<Closed>,
    /// No generation up to this one is free.
    generation_max: u64,
}

impl Facts {
    fn read(context: &Context, id: LogId, class: Class, files: &Files) -> Self {
        let get = |kind| context.journal.get(id, kind);
        let recorded = get(FactKind::Watermark).and_then(Watermark::decode);
        let recorded = recorded.unwrap_or(Watermark::UNKNOWN);
        let live = files.live.iter().filter_map(|file| file.header.as_ref().ok());
        let closed = get(FactKind::Closed).and_then(Closed::decode);
        let closed_generation = closed.map_or(0, |closed| closed.generation);
        Self {
            start: get(FactKind::LogStart).and_then(LogStart::decode),
            watermark: recorded.cut_back(live),
            closed: closed.filter(|_| class == Class::Clean),
            // A segment that the journal knows of may have been lost before it got its name.
            generation_max: files.generation_max.max(recorded.generation).max(closed_generation),
        }
    }
}

pub(super) struct Opening {
    pub(super) context: Arc<Context>,
    pub(super) id: LogId,
    dir: Arc<Path>,
    pub(super) facts: Facts,
    pub(super) segments: Vec<Arc<Segment>>,
    faulty: Vec<FaultyRange>,
}

impl Opening {
    /// DURABILITY: a process that died between renaming a file and syncing the directory leaves a
    /// name that a power cut could still take away. Nothing is built on it before it is durable.
    /// After a crash the whole file system was synced when the data directory was opened.
    fn make_names_durable(&self, class: Class) -> Result<()> {
        if class == Class::Clean && self.facts.closed.is_none() {
            for dir in [&*self.dir, &self.context.logs_dir()] {
                self.context.fs.sync_dir(dir).at("sync", dir)?;
            }
        }
        Ok(())
    }

    /// Removes what is known to be superfluous, sets aside what cannot be read or is not known at
    /// all, and returns the files that make up the log.
    fn tidy_up(&mut self, files: Files) -> Result<Vec<SegmentFile>> {
        let mut live = files.live;
        // A log starts at the last segment that is no later than the recorded start in any way. One
        // without checkpoint is not what was recorded: that one was lost before it had its name.
        let is_at_start = |file: &SegmentFile| {
            let fits = |header: &SegmentHeader, start: LogStart| {
                header.has_checkpoint
                    && header.base_index() <= start.first_index
                    && header.base_offset() <= start.offset
            };
            self.facts.start.zip(file.header.as_ref().ok()).is_some_and(|(start, h)| fits(h, start))
        };
        let count = live.iter().rposition(is_at_start).unwrap_or(0);
        let superfluous: Vec<_> = files.void.into_iter().chain(live.drain(..count)).collect();
        self.keep_promise_of(&files.unreadable, &live)?;
        let is_sure = files.unreadable.is_empty() && files.outdated.is_empty();
        for file in superfluous {
            // What a file that cannot be read would have said of the others is not known.
            if is_sure {
                remove_if_there(&*self.context.fs, &file.path)?;
            } else {
                self.quarantine(&file.path)?;
            }
            remove_if_there(&*self.context.fs, &file.path.with_extension("idx"))?;
        }
        let unreadable = files.unreadable.into_iter().chain(files.outdated).map(|file| file.path);
        unreadable.chain(files.unknown).try_for_each(|path| self.quarantine(&path))?;
        Ok(live)
    }

    /// A last segment whose header is gone, or is of another, was on disk, head and first entries,
    /// before it got its name. The promise of at least one entry goes to the journal, so that the
    /// file can be set aside.
    fn keep_promise_of(&mut self, unreadable: &[SegmentFile], live: &[SegmentFile]) -> Result<()> {
        let last_base = live.last().map_or(0, |file| file.base_index);
        let lost = unreadable.iter().map(|file| file.base_index).max();
        let Some(base_index) = lost.filter(|base| *base > last_base) else { return Ok(()) };
        let mark = &mut self.facts.watermark;
        mark.generation = self.facts.generation_max;
        if base_index > mark.index {
            // Nobody knows the entry's term. The highest promises no less than the true one.
            (mark.index, mark.term) = (base_index, u64::MAX);
        }
        let value = Some(mark.encode());
        let change = Change { log: self.id, kind: FactKind::Watermark, value };
        self.context.journal.record(&[change])?;
        self.facts.closed = None;
        // DURABILITY: the promise is on disk before the file that stood for it is out of sight.
        self.context.journal.sync().map(drop)
    }

    /// Moves a file out of the way; nothing unknown is ever deleted.
    fn quarantine(&self, path: &Path) -> Result<()> {
        let fs = &*self.context.fs;
        let dir = self.context.root.join("quarantine").join(self.id.to_string());
        fs.create_dir_all(&dir).at("create", &dir)?;
        let to = free_path(fs, &dir, path)?;
        tracing::warn!(log = %self.id, path = %path.display(), to = %to.display(), "set aside");
        fs.rename(path, &to).at("rename", path)?;
        for dir in [&*dir, &*self.dir] {
            fs.sync_dir(dir).at("sync", dir)?;
        }
        Ok(())
    }

    /// Makes segments of the files and marks the holes between them.
    fn adopt(&mut self, files: &[SegmentFile]) -> Result<()> {
        for file in files {
            let header = file.header.as_ref().expect("unreadable files were set aside");
            let missing = match self.segments.last().cloned() {
                None => self.missing_start(header),
                Some(last) if header.previous_base_index > last.base_index() => {
                    Some(self.last_index_of(&last)? + 1)
                }
                Some(_) => None,
            };
            if let Some(first_index) = missing {
                let what = format!("the segment of entry {first_index} is missing");
                let damage = Damage { file: self.dir.to_path_buf(), position: 0, what };
                self.mark_faulty(first_index, header.base_index() - 1, damage);
            }
            self.heal_header(file, header)?;
            self.segments.push(Segment::adopt(&self.context, &self.dir, *header, file.bytes));
        }
        let sealed = self.segments.len() - 1;
        self.segments[..sealed].iter().for_each(|segment| segment.seal());
        Ok(())
    }

    /// The first index that is missing before the oldest segment, if retention does not explain
    /// what is not there.
    fn missing_start(&self, header: &SegmentHeader) -> Option<u64> {
        if header.previous_base_index == 0 || header.origin == Origin::Reset {
            return None;
        }
        let first_index = match self.facts.start {
            Some(start) => start.first_index,
            None => header.previous_base_index,
        };
        (first_index < header.base_index()).then_some(first_index)
    }

    /// Index of the last entry that a segment before a hole holds.
    fn last_index_of(&self, segment: &Arc<Segment>) -> Result<u64> {
        let file = segment.open_fresh()?;
        let scan = Scan::of(&*file, segment.header(), segment.index_interval_bytes(), &mut |_| {});
        Ok(scan.runs.last().map_or(0, |run| run.tip.index))
    }

    pub(super) fn mark_faulty(&mut self, first_index: u64, last_index: u64, damage: Damage) {
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

    fn finish(self, class: Class, end: End) -> Result<(Log, RecoveryReport)> {
        let is_ordered = |pair: &[Arc<Segment>]| pair[0].base_index() < pair[1].base_index();
        assert!(self.segments.windows(2).all(is_ordered), "log {}: segments overlap", self.id);
        // The start may lie beyond the end: what was there was committed elsewhere and comes back.
        let start = self.facts.start.map_or(0, |start| start.offset);
        let start = start.max(self.segments[0].base_offset());
        let shared = Shared {
            start_offset: AtomicU64::new(start),
            last_index: AtomicU64::new(end.tip.index),
            ends: (end.tip.index, end.tip.end_offset).into(),
            faulty: self.faulty.clone().into(),
            suspects: Mutex::default(),
            damage_news: self.context.damage_news.clone(),
            segments: ArcSwap::from_pointee(self.segments.clone()),
        };
        shared.note_damage_news();
        let sync = LogSync::new(&self.context, self.id, end.tip.index, false);
        let mut log = Log {
            context: self.context.clone(),
            id: self.id,
            dir: self.dir.clone(),
            shared: Arc::new(shared),
            sync,
            tip: end.tip,
            next_generation: self.facts.generation_max + 1,
            segment_bytes: self.context.config.segment_bytes,
            kept_bytes: None,
            condemned: Arc::default(),
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

/// A name in `dir` for the file `path` that no other has.
pub(super) fn free_path(fs: &dyn Fs, dir: &Path, path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let taken = fs.list(dir).at("list", dir)?;
    let is_free = |name: &String| taken.iter().all(|entry| entry.name != *name);
    let numbered = (1..).map(|n| format!("{name}.{n}"));
    let free = std::iter::once(name.clone()).chain(numbered).find(is_free);
    Ok(dir.join(free.expect("numbers do not run out")))
}
