//! Looking at a data directory, a log or a segment file without opening it for use.
//!
//! An inspection takes no lock and changes nothing: no file is created, healed, cut or moved, so it
//! may look at a damaged directory before anyone decides what to do about it, and at one that a
//! server is using. Of the latter the picture may be incomplete, and the report says so.
//!
//! It judges by the rules of [`super::recovery`], with the same evidence: what recovery would cut
//! is a note, what it would mark faulty is damage. Beyond that it looks where recovery has no need
//! to: at sealed segments, at padding, at index files, at both copies of headers and journal.
//!
//! Read next: `report.rs` for what is found, `log.rs` for one log, `segment.rs` for one file.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dir::{LOCK, MARKER, check_marker};
use super::entry::EntryHeader;
use super::error::{Damage, Error, Result};
use super::files::Files;
use super::fs::{DirEntry, Fs, OpenMode, read_exact_at};
use super::header::{COPY_POSITIONS, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::journal::{FactKind, Journal};
use crate::types::LogId;

mod log;
mod report;
mod segment;

use self::log::{FactTable, Facts, Subject};
pub use self::report::{
    JournalReport, LogReport, Note, Place, Report, SegmentReport, State, Tally, Totals,
};

/// A journal in use may be rewritten while it is read: it is read again this often.
const JOURNAL_TRIES: usize = 20;

/// An intact entry as an inspection comes by it.
#[derive(Debug, Clone, Copy)]
pub struct EntryView<'a> {
    /// The log.
    pub log: LogId,
    /// The segment file it is in.
    pub file: &'a Path,
    /// Where its frame starts.
    pub position: u64,
    /// Its header.
    pub header: &'a EntryHeader,
    /// Its payload; the checksum was right.
    pub payload: &'a [u8],
}

/// Is shown every intact entry in order, and ends the inspection by breaking.
pub type OnEntry<'a> = dyn FnMut(&EntryView<'_>) -> ControlFlow<()> + 'a;

/// Where to start: segments that end before either are not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// First index that matters.
    pub index: u64,
    /// First offset that matters.
    pub offset: u64,
}

/// How to read: what to tell the caller meanwhile.
struct Reading<'a> {
    /// Judge the disk and not the page cache.
    from_disk: bool,
    on_bytes: &'a mut dyn FnMut(u64),
    on_entry: &'a mut OnEntry<'a>,
}

/// Looks at what is at one path.
#[derive(Debug)]
pub struct Inspector {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    place: Place,
    /// The data directory around it.
    root: Option<PathBuf>,
    logs: Vec<(LogId, PathBuf)>,
    /// The one segment file that is asked for.
    only: Option<PathBuf>,
}

impl Inspector {
    /// Finds out what is at `path`: a data directory, the directory of a log, or a segment file.
    /// `log` chooses one log of a data directory.
    ///
    /// # Errors
    /// [`Error::Io`] when nothing is there, [`Error::Foreign`] for something else,
    /// [`Error::FutureVersion`], [`Error::UnknownLog`].
    pub fn open(fs: Arc<dyn Fs>, path: &Path, log: Option<LogId>) -> Result<Self> {
        let mut inspector = match fs.list(path) {
            Ok(names) => Self::of_directory(fs, path, &names)?,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Self::of_segment(fs, path)?
            }
            Err(error) => return Err(Error::io("look at", path, error)),
        };
        if let Some(log) = log {
            inspector.logs.retain(|(id, _)| *id == log);
            if inspector.logs.is_empty() {
                return Err(Error::UnknownLog { log, path: path.to_path_buf() });
            }
        }
        Ok(inspector)
    }

    fn of_directory(fs: Arc<dyn Fs>, path: &Path, names: &[DirEntry]) -> Result<Self> {
        let holds = |name: &str| names.iter().any(|entry| entry.name == name);
        let is_segment = |entry: &DirEntry| entry.name.ends_with(".seg");
        if holds(MARKER) || (holds("logs") && holds("meta")) {
            return Self::of_data_directory(fs, path, holds(MARKER));
        }
        let id = id_of(path).or_else(|| {
            let first = names.iter().find(|entry| is_segment(entry))?;
            read_header(&*fs, &path.join(&first.name)).map(|header| header.log)
        });
        let Some(id) = id else {
            let reason = "this is neither a data directory nor the directory of a log".to_owned();
            return Err(Error::Foreign { path: path.to_path_buf(), reason });
        };
        let root = root_of(&*fs, path);
        let logs = vec![(id, path.to_path_buf())];
        Ok(Self { fs, path: path.to_path_buf(), place: Place::Log, root, logs, only: None })
    }

    fn of_data_directory(fs: Arc<dyn Fs>, path: &Path, has_marker: bool) -> Result<Self> {
        if has_marker {
            check_marker(&*fs, path)?;
        }
        let dir = path.join("logs");
        let names = match fs.list(&dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("list", &dir, error)),
        };
        let ids = names.iter().filter_map(|entry| LogId::parse(&entry.name));
        let logs = ids.map(|id| (id, dir.join(id.to_string()))).collect();
        let (path, root) = (path.to_path_buf(), Some(path.to_path_buf()));
        Ok(Self { fs, path, place: Place::DataDirectory, root, logs, only: None })
    }

    fn of_segment(fs: Arc<dyn Fs>, path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let is_named = path.extension().is_some_and(|extension| extension == "seg");
        let id = id_of(&dir).or_else(|| read_header(&*fs, path).map(|header| header.log));
        let Some(id) = id.filter(|_| is_named) else {
            let reason = "this is not a segment file of a log".to_owned();
            return Err(Error::Foreign { path: path.to_path_buf(), reason });
        };
        let root = root_of(&*fs, &dir);
        let (path, only) = (path.to_path_buf(), Some(path.to_path_buf()));
        Ok(Self { fs, path, place: Place::Segment, root, logs: vec![(id, dir)], only })
    }

    /// Bytes of all files that an inspection reads; what cannot be measured counts nothing.
    pub fn bytes(&self) -> u64 {
        let files_of = |(id, dir): &(LogId, PathBuf)| Files::read(&*self.fs, dir, *id).ok();
        let live =
            self.logs.iter().filter_map(files_of).flat_map(|mut files| files.with_unreadable());
        let asked = live.filter(|file| self.only.as_ref().is_none_or(|only| *only == file.path));
        asked.map(|file| file.bytes).sum()
    }

    /// Reads and checks everything. `on_bytes` is told how many bytes were read since it was last
    /// called. `from_disk` judges the disk and not the page cache.
    pub fn inspect(&self, from_disk: bool, on_bytes: &mut dyn FnMut(u64)) -> Report {
        let mut on_entry = |_: &EntryView<'_>| ControlFlow::Continue(());
        let reading = Reading { from_disk, on_bytes, on_entry: &mut on_entry };
        self.run(Start::default(), reading)
    }

    /// Shows every intact entry from `start` on, and reports on the segments that it read.
    pub fn walk(&self, start: Start, on_entry: &mut OnEntry<'_>) -> Report {
        let mut on_bytes = |_| {};
        let mut show = |view: &EntryView<'_>| on_entry(view);
        let reading = Reading { from_disk: false, on_bytes: &mut on_bytes, on_entry: &mut show };
        self.run(start, reading)
    }

    fn run(&self, start: Start, mut reading: Reading<'_>) -> Report {
        let mut report = Report {
            path: self.path.clone(),
            kind: self.place,
            in_use: self.is_in_use(),
            closed_cleanly: None,
            journal: None,
            logs: Vec::new(),
            totals: Totals::default(),
            damage: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        };
        // First: what it says of the entries is true of all that is read later.
        let facts = self.read_journal(&mut report);
        self.look_around(&facts, &mut report);
        let is_one = self.place == Place::DataDirectory || self.logs.len() == 1;
        assert!(is_one, "{:?} is of {} logs", self.place, self.logs.len());
        let in_use = report.in_use == Some(true);
        for (log, dir) in &self.logs {
            let (log, only) = (*log, self.only.as_deref());
            let known = facts.as_ref().map_or(Facts::NONE, |table| Facts::of(table, log));
            let facts_now = || self.facts_now(log);
            let facts_now: Option<&dyn Fn() -> Option<Facts>> = in_use.then_some(&facts_now);
            let fs = &*self.fs;
            let subject = Subject { fs, log, dir, facts: known, only, start, facts_now };
            let examined = log::examine(&subject, &mut reading);
            report.totals.add_log(&examined.report.totals);
            report.damage.extend_from_slice(&examined.report.damage);
            report.notes.extend_from_slice(&examined.report.notes);
            report.failures.extend(examined.failures);
            report.logs.push(examined.report);
            if examined.is_stopped {
                break;
            }
        }
        self.note_use(&mut report);
        report
    }

    fn is_in_use(&self) -> Option<bool> {
        let lock = self.root.as_ref()?.join(LOCK);
        self.fs.is_locked(&lock).ok()
    }

    /// Says so if somebody uses the directory, or came to use it meanwhile.
    fn note_use(&self, report: &mut Report) {
        if self.is_in_use() == Some(true) {
            report.in_use = Some(true);
        }
        if report.in_use == Some(true) {
            let file = self.root.clone().unwrap_or_default().join(LOCK);
            let what = "a process uses this data directory: what it writes meanwhile may be \
                        missing from the picture";
            report.notes.insert(0, Note { file, position: 0, what: what.to_owned() });
        }
    }

    /// What the journal says by now.
    fn facts_now(&self, log: LogId) -> Option<Facts> {
        let meta = self.root.as_ref()?.join("meta");
        let table = (0..JOURNAL_TRIES).find_map(|_| Journal::peek(&*self.fs, &meta).ok())?;
        Some(Facts::of(&table, log))
    }

    /// Reads the meta journal and checks both copies of it.
    fn read_journal(&self, report: &mut Report) -> Option<FactTable> {
        let meta = self.root.as_ref()?.join("meta");
        let mut examined = Journal::examine(&*self.fs, &meta);
        for _ in 1..JOURNAL_TRIES {
            // It may have been rewritten between two looks.
            if examined.is_err() && report.in_use == Some(true) {
                examined = Journal::examine(&*self.fs, &meta);
            }
        }
        match examined {
            Ok(Some(examined)) => {
                let (generation, sequence) = (examined.generation, examined.sequence);
                let facts = examined.facts.len() as u64;
                report.journal = Some(JournalReport { generation, sequence, facts });
                report.damage.extend(examined.damage);
                let has = |kind| examined.facts.contains_key(&(LogId::NIL, kind));
                let is_clean = has(FactKind::CleanShutdown) || !has(FactKind::Opened);
                report.closed_cleanly = Some(is_clean);
                Some(examined.facts)
            }
            Ok(None) => {
                self.miss_journal(report, meta);
                None
            }
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.miss_journal(report, meta);
                None
            }
            Err(error @ Error::Amnesia { .. }) => {
                report.damage.push(Damage { file: meta, position: 0, what: error.to_string() });
                None
            }
            Err(error) => {
                report.failures.push(failure(&error, &meta));
                None
            }
        }
    }

    /// Without a journal nobody can have made a log.
    fn miss_journal(&self, report: &mut Report, meta: PathBuf) {
        if !self.logs.is_empty() {
            let what = "the meta journal is missing: votes and log starts are unknown".to_owned();
            report.damage.push(Damage { file: meta, position: 0, what });
        }
    }

    /// Checks what belongs to no log: the marker, logs without a directory, the quarantine.
    fn look_around(&self, facts: &Option<FactTable>, report: &mut Report) {
        let Some(root) = self.root.as_ref().filter(|_| self.place == Place::DataDirectory) else {
            return;
        };
        if self.fs.open(&root.join(MARKER), OpenMode::Read).is_err() {
            let what = "the file that marks a data directory is missing".to_owned();
            report.damage.push(Damage { file: root.join(MARKER), position: 0, what });
        }
        let quarantine = root.join("quarantine");
        let aside = self.fs.list(&quarantine).unwrap_or_default();
        for entry in &aside {
            let what = "was set aside when it was found and not known; look at it and remove it";
            let file = quarantine.join(&entry.name);
            report.notes.push(Note { file, position: 0, what: what.to_owned() });
        }
        let dir = root.join("logs");
        let has_dir = |id: &LogId| {
            let name = id.to_string();
            aside.iter().any(|entry| entry.name == name) || self.fs.list(&dir.join(name)).is_ok()
        };
        let marks = facts.iter().flatten().filter(|((_, kind), _)| *kind == FactKind::Watermark);
        for ((id, _), _) in marks.filter(|((id, _), _)| !has_dir(id)) {
            let what = "the journal knows this log, its directory is missing".to_owned();
            let file = dir.join(id.to_string());
            report.damage.push(Damage { file, position: 0, what });
        }
    }
}

/// The log that a directory is named after.
fn id_of(dir: &Path) -> Option<LogId> {
    LogId::parse(dir.file_name()?.to_str()?)
}

/// The data directory that a log's directory is in.
fn root_of(fs: &dyn Fs, dir: &Path) -> Option<PathBuf> {
    let logs = dir.parent().filter(|parent| parent.ends_with("logs"))?;
    let root = logs.parent()?;
    fs.open(&root.join(MARKER), OpenMode::Read).is_ok().then(|| root.to_path_buf())
}

/// Reads the header of a segment file, from whichever copy is good.
fn read_header(fs: &dyn Fs, path: &Path) -> Option<SegmentHeader> {
    let file = fs.open(path, OpenMode::Read).ok()?;
    COPY_POSITIONS.into_iter().find_map(|position| {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        read_exact_at(&*file, &mut bytes, position).ok()?;
        SegmentHeader::decode(&bytes).ok()
    })
}

/// What kept something from being inspected.
fn failure(error: &Error, place: &Path) -> Note {
    let (file, what) = match error {
        Error::Io { operation, path, source } => (path, format!("cannot {operation}: {source}")),
        Error::Foreign { path, reason } => (path, reason.clone()),
        Error::FutureVersion { path, found, supported } => (
            path,
            format!(
                "format version {found}, this program reads up to {supported}; \
                 inspect it with the newer program"
            ),
        ),
        other => (&place.to_path_buf(), other.to_string()),
    };
    Note { file: file.clone(), position: 0, what }
}
