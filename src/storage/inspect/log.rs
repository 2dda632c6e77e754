//! Inspecting the directory of one log: which files count, and whether they fit together.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::error::{Damage, Error, Result};
use super::super::facts::{Closed, LogStart, Watermark};
use super::super::files::{Files, SegmentFile};
use super::super::fs::{Fs, OpenMode};
use super::super::header::{Origin, SegmentHeader, Tip};
use super::super::journal::FactKind;
use super::report::{LogReport, Note, Totals};
use super::segment::{self, Role};
use super::{Reading, Start, failure};
use crate::types::LogId;

/// How often a directory is listed that loses files meanwhile.
const LIST_TRIES: usize = 20;

/// All facts of a journal.
pub(super) type FactTable = BTreeMap<(LogId, FactKind), Bytes>;

/// What the journal says about a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The journal could be read, so that what it does not say is not so.
    pub(super) is_known: bool,
    pub(super) start: Option<LogStart>,
    pub(super) watermark: Option<Watermark>,
    /// How the log ended, if the directory was closed in order.
    pub(super) closed: Option<Closed>,
}

impl Facts {
    /// Of a log without a journal.
    pub(super) const NONE: Self =
        Self { is_known: false, start: None, watermark: None, closed: None };

    pub(super) fn of(table: &FactTable, log: LogId) -> Self {
        let get = |kind| table.get(&(log, kind)).cloned();
        let is_clean = table.contains_key(&(LogId::NIL, FactKind::CleanShutdown));
        Self {
            is_known: true,
            start: get(FactKind::LogStart).and_then(LogStart::decode),
            watermark: get(FactKind::Watermark).and_then(Watermark::decode),
            closed: get(FactKind::Closed).and_then(Closed::decode).filter(|_| is_clean),
        }
    }
}

/// One log to inspect.
pub(super) struct Subject<'a> {
    pub(super) fs: &'a dyn Fs,
    pub(super) log: LogId,
    pub(super) dir: &'a Path,
    pub(super) facts: Facts,
    /// The one segment file that is asked for.
    pub(super) only: Option<&'a Path>,
    pub(super) start: Start,
    /// Reads the facts again, for a log that a process is using.
    pub(super) facts_now: Option<&'a dyn Fn() -> Option<Facts>>,
}

/// What a log's inspection gives.
pub(super) struct Examined {
    pub(super) report: LogReport,
    pub(super) failures: Vec<Note>,
    pub(super) is_stopped: bool,
}

/// Inspects one log.
///
/// Beside a running process the order matters. The watermark is older than the list of files, so
/// that what it promises is in them; the log start is younger, because it moves before a file goes.
pub(super) fn examine(subject: &Subject<'_>, reading: &mut Reading<'_>) -> Examined {
    let mut examination = Examination::new(subject);
    match list_files(subject) {
        Ok(files) => {
            let now = subject.facts_now.and_then(|read| read());
            examination.facts.start = now.map_or(subject.facts.start, |facts| facts.start);
            examination.run(files, reading);
        }
        Err(error) => examination.add_failure(&error),
    }
    examination.finish()
}

/// Lists the files, again if one goes, or is used for another, between its name and its head.
fn list_files(subject: &Subject<'_>) -> Result<Files> {
    let tries = if subject.facts_now.is_some() { LIST_TRIES } else { 1 };
    let list = || Files::read(subject.fs, subject.dir, subject.log);
    let list_whole = |_| list().ok().filter(|files| files.unreadable.is_empty());
    (1..tries).find_map(list_whole).map_or_else(list, Ok)
}

struct Examination<'a> {
    subject: &'a Subject<'a>,
    facts: Facts,
    done: Examined,
    watermark: Watermark,
    /// The tip of the segment before, and its base index.
    before: Option<(Tip, u64)>,
    /// The tip of the last segment.
    last_tip: Option<Tip>,
    first_base_offset: Option<u64>,
}

impl<'a> Examination<'a> {
    fn new(subject: &'a Subject<'a>) -> Self {
        let report = LogReport {
            log: subject.log,
            dir: subject.dir.to_path_buf(),
            first_index: None,
            last_index: None,
            log_start_offset: 0,
            log_end_offset: 0,
            watermark: 0,
            closed_cleanly: false,
            totals: Totals::default(),
            segments: Vec::new(),
            void: Vec::new(),
            unknown: Vec::new(),
            damage: Vec::new(),
            notes: Vec::new(),
        };
        let failures = Vec::new();
        let done = Examined { report, failures, is_stopped: false };
        let facts = subject.facts;
        let watermark = facts.watermark.unwrap_or(Watermark::UNKNOWN);
        let (before, last_tip, first_base_offset) = (None, None, None);
        Self { subject, facts, done, watermark, before, last_tip, first_base_offset }
    }

    fn run(&mut self, files: Files, reading: &mut Reading<'_>) {
        let headers = files.live.iter().filter_map(|file| file.header.as_ref().ok());
        self.watermark = self.watermark.cut_back(headers);
        self.done.report.watermark = self.watermark.index;
        let live = self.sort_out(files);
        let is_ordered = live.is_sorted_by(|a, b| a.base_index < b.base_index);
        assert!(is_ordered, "the live segments of log {} are in order", self.subject.log);
        if live.is_empty() {
            self.note_empty();
        }
        for (n, file) in live.iter().enumerate() {
            let next = live.get(n + 1);
            if self.is_asked_for(file, next) && !self.done.is_stopped {
                self.examine_segment(n, file, next, reading);
            }
        }
    }

    /// Names the files that do not count and returns those that do.
    fn sort_out(&mut self, mut files: Files) -> Vec<SegmentFile> {
        let mut live = files.with_unreadable();
        let first_index = self.facts.start.map_or(0, |start| start.first_index);
        let is_before =
            |n: &usize| live.get(n + 1).is_some_and(|next| next.base_index <= first_index);
        let dropped = (0..live.len()).take_while(is_before).count();
        let void = files.void.into_iter().chain(live.drain(..dropped));
        self.done.report.void = void.map(|file| file.path).collect();
        for path in files.unknown {
            self.note(&path, 0, "this file does not belong here; the next open sets it aside");
            self.done.report.unknown.push(path);
        }
        for file in files.outdated {
            let what = "the remains of a segment that was removed; the next open sets them aside";
            self.note(&file.path, 0, what);
        }
        live
    }

    fn note_empty(&mut self) {
        let watermark = self.watermark.index;
        if watermark > 0 {
            let what = format!("the journal knows entries up to {watermark}, no segment is there");
            self.add_damage(self.subject.dir.to_path_buf(), what);
        } else {
            let dir = self.subject.dir;
            self.note(dir, 0, "no segment is there: the log was never synced, or is being deleted");
        }
    }

    fn is_asked_for(&self, file: &SegmentFile, next: Option<&SegmentFile>) -> bool {
        let Start { index, offset } = self.subject.start;
        let next_offset =
            next.and_then(|next| next.header.as_ref().ok()).map(SegmentHeader::base_offset);
        let is_before = next.is_some_and(|next| next.base_index <= index)
            || next_offset.is_some_and(|next| next <= offset);
        !is_before && self.subject.only.is_none_or(|only| only == file.path)
    }

    fn examine_segment(
        &mut self,
        n: usize,
        file: &SegmentFile,
        next: Option<&SegmentFile>,
        reading: &mut Reading<'_>,
    ) {
        let header = match &file.header {
            Ok(header) => header,
            Err(damage) => {
                (reading.on_bytes)(file.bytes);
                self.before = None;
                if !self.note_if_gone(&file.path) {
                    self.done.report.damage.push(damage.clone());
                }
                return;
            }
        };
        self.check_start(n, header);
        let role = self.role_of(file, next);
        let examined = segment::examine(self.subject.fs, file, header, role, reading);
        if self.note_if_gone(&file.path) {
            self.before = None;
            return;
        }
        let examined = match examined {
            Ok(examined) => examined,
            Err(error) => return self.add_failure(&error),
        };
        self.check_continuation(role, examined.tip, next);
        self.before = Some((examined.tip, file.base_index));
        self.first_base_offset.get_or_insert(header.base_offset());
        self.last_tip = Some(examined.tip);
        self.done.is_stopped = examined.is_stopped;
        if next.is_none() {
            self.done.report.watermark = examined.watermark;
        }
        let report = &mut self.done.report;
        report.totals.add_segment(&examined.report);
        report.segments.push(examined.report);
        report.damage.extend(examined.damage);
        report.notes.extend(examined.notes);
    }

    /// True if the process that uses the log has dropped a segment since it was listed. What was
    /// read of it says nothing: it loses its name before its file is used for another.
    fn note_if_gone(&mut self, path: &Path) -> bool {
        let opened = self.subject.fs.open(path, OpenMode::Read);
        let is_gone = self.subject.facts_now.is_some()
            && opened.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_gone {
            self.note(path, 0, "this segment was removed meanwhile");
        }
        is_gone
    }

    fn role_of(&self, file: &SegmentFile, next: Option<&SegmentFile>) -> Role {
        let Some(next) = next else {
            let closed = self.facts.closed.map_or(0, |closed| closed.tip.index);
            return Role::Active { watermark: self.watermark.index.max(closed) };
        };
        let (base, next_base) = (file.base_index, next.base_index);
        assert!(base < next_base, "segments are in order: {base} comes before {next_base}");
        let last_index = next_base - 1;
        match &next.header {
            Ok(header) if header.previous_base_index > file.base_index => {
                Role::BeforeHole { last_index: header.previous_base_index - 1 }
            }
            Ok(header) => Role::Sealed { last_index, tip: Some(header.previous) },
            Err(_) => Role::Sealed { last_index, tip: None },
        }
    }

    /// Finds segments that are missing before one.
    fn check_start(&mut self, n: usize, header: &SegmentHeader) {
        let Facts { is_known, start, .. } = self.facts;
        let missing = match (self.before, start) {
            (Some((tip, base)), _) if header.previous_base_index > base => Some(tip.index + 1),
            _ if n > 0 || header.origin == Origin::Reset => None,
            (_, Some(start)) if start.first_index > 0 => Some(start.first_index),
            _ if is_known && header.previous_base_index > 0 => Some(header.previous_base_index),
            _ => None,
        };
        let last = header.previous.index;
        let base = self.before.map_or(0, |(_, base)| base);
        assert!(base <= last, "segments are in order: {base} comes before {}", last + 1);
        if let Some(first) = missing.filter(|first| *first <= last) {
            let what = format!("the segment of entries {first} to {last} is missing");
            self.add_damage(self.subject.dir.to_path_buf(), what);
        }
    }

    /// Checks that the next segment continues what this one holds.
    fn check_continuation(&mut self, role: Role, tip: Tip, next: Option<&SegmentFile>) {
        let (Role::Sealed { last_index, tip: Some(expected) }, Some(next)) = (role, next) else {
            return;
        };
        // A lost end was found before, and is not found again here.
        if tip.index == last_index && tip != expected && !self.done.is_stopped {
            let what = format!(
                "its header continues entry {last_index} with chain {:#010x} and offset {}, \
                 the segment before ends with chain {:#010x} and offset {}",
                expected.chain, expected.end_offset, tip.chain, tip.end_offset
            );
            self.add_damage(next.path.clone(), what);
        }
    }

    fn note(&mut self, file: &Path, position: u64, what: &str) {
        let what = what.to_owned();
        self.done.report.notes.push(Note { file: file.to_path_buf(), position, what });
    }

    fn add_damage(&mut self, file: PathBuf, what: String) {
        self.done.report.damage.push(Damage { file, position: 0, what });
    }

    fn add_failure(&mut self, error: &Error) {
        self.done.failures.push(failure(error, self.subject.dir));
    }

    fn finish(mut self) -> Examined {
        let facts = self.facts;
        let report = &mut self.done.report;
        report.totals.logs = 1;
        let tallies = || report.segments.iter().map(|segment| &segment.entries);
        report.first_index = tallies().find_map(|tally| tally.first_index);
        report.last_index = tallies().rev().find_map(|tally| tally.last_index);
        let (first, last) = (report.first_index, report.last_index);
        assert!(first <= last, "the log goes from {first:?} to {last:?}");
        let end_offset = self.last_tip.map_or(0, |tip| tip.end_offset);
        let start_offset = facts.start.map_or(0, |start| start.offset);
        let start_offset = start_offset.max(self.first_base_offset.unwrap_or(0));
        report.log_start_offset = start_offset.min(end_offset);
        let records = report.totals.records;
        assert!(records <= end_offset, "{records} records below offset {end_offset}");
        report.log_end_offset = end_offset;
        report.closed_cleanly = facts.closed.is_some_and(|closed| {
            let last = report.segments.last();
            let is_last = last.is_some_and(|segment| segment.generation == closed.generation);
            is_last && self.last_tip == Some(closed.tip)
        });
        self.done
    }
}
