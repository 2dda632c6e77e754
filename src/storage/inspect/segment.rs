//! Inspecting one segment file: header copies, checkpoint, entries, padding, index.

use std::ops::ControlFlow;

use super::super::error::{Damage, IoContext as _, Result};
use super::super::files::SegmentFile;
use super::super::fs::{File, Fs, OpenMode, read_exact_at};
use super::super::header::{
    CHECKPOINT_POSITION, COPY_POSITIONS, SEGMENT_HEADER_BYTES, SegmentHeader, Tip,
};
use super::super::index::{Row, SparseIndex};
use super::super::recovery::{self, Case, Verdict};
use super::super::scan::{Frame, Scan};
use super::report::{Note, SegmentReport, State, Tally};
use super::{EntryView, OnEntry, Reading};
use crate::types::LogId;

/// What the rest of the log says about a segment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    /// The last one: entries up to the watermark must be there, or more that its entries name.
    Active { watermark: u64 },
    /// Another one follows, whose name says what the last entry is; its header, if it can be read,
    /// says how the log was there.
    Sealed { last_index: u64, tip: Option<Tip> },
    /// One that should follow is missing: its entries end at `last_index` or before.
    BeforeHole { last_index: u64 },
}

impl Role {
    /// Entries behind this index are no part of the log.
    fn last_index_max(self) -> u64 {
        match self {
            Self::Active { .. } => u64::MAX,
            Self::Sealed { last_index, .. } | Self::BeforeHole { last_index } => last_index,
        }
    }
}

/// What one segment's inspection gives.
pub(super) struct Examined {
    pub(super) report: SegmentReport,
    /// Highest index known to have been on disk.
    pub(super) watermark: u64,
    /// What the log is continued from, as far as it can be read.
    pub(super) tip: Tip,
    pub(super) damage: Vec<Damage>,
    pub(super) notes: Vec<Note>,
    /// The caller has seen enough.
    pub(super) is_stopped: bool,
}

/// Reads a segment file and judges what is in it.
///
/// # Errors
/// What the system said when the file could not be opened. All else is in the result.
pub(super) fn examine(
    fs: &dyn Fs,
    file: &SegmentFile,
    header: &SegmentHeader,
    role: Role,
    reading: &mut Reading<'_>,
) -> Result<Examined> {
    let open = fs.open(&file.path, OpenMode::Read).at("open", &file.path)?;
    if reading.from_disk {
        open.drop_cache().at("drop the cache of", &file.path)?;
    }
    let mut findings = Findings { file, damage: Vec::new(), notes: Vec::new() };
    findings.check_head(&*open, header);
    let checkpoint = findings.check_checkpoint(&*open, header);
    let table = Table::read(fs, file, header);
    let mut watch = Watch::new(file, header, role, table.rows(), reading.on_entry);
    let scan = watch.scan(&*open, header, reading.on_bytes, file.bytes);
    let (judged, watermark) = judge(&scan, header, role, watch.is_stopped);
    let kept = judged.runs_kept;
    assert!(kept <= scan.runs.len(), "{kept} runs are kept of {}", scan.runs.len());
    findings.damage.append(&mut watch.damage);
    findings.add_verdict(&scan, &judged);
    findings.check_links(&scan, kept);
    let sums = watch.sums(kept);
    if !watch.is_stopped {
        findings.note_end(&scan, &judged, header, role, &sums);
    }
    let index = table.judge(&sums, &mut findings, role, watch.is_stopped);
    let report = SegmentReport {
        file: file.path.clone(),
        // It may have grown since its head was read.
        file_bytes: open.length().unwrap_or(0).max(file.bytes),
        base_index: header.base_index(),
        base_offset: header.base_offset(),
        generation: header.generation,
        origin: header.origin,
        is_active: matches!(role, Role::Active { .. }),
        is_recycled: header.is_recycled,
        header_copies: [0, 1].map(|copy| state_of(!file.bad_copies.contains(&copy))),
        checkpoint,
        checkpoint_bytes: header.checkpoint_len,
        index,
        end: judged.case,
        end_position: sums.end,
        entries: sums.tally,
    };
    let Findings { damage, notes, .. } = findings;
    let is_stopped = watch.is_stopped;
    Ok(Examined { report, watermark, tip: sums.tip, damage, notes, is_stopped })
}

fn state_of(is_good: bool) -> State {
    if is_good { State::Valid } else { State::Damaged }
}

/// Decides what the bad spots of a scan mean, and up to which entry they are damage.
fn judge(scan: &Scan, header: &SegmentHeader, role: Role, is_stopped: bool) -> (Verdict, u64) {
    let last = scan.runs.last().expect("a scan has a first run").tip.index;
    let watermark = match role {
        // Of what was not read nothing is known.
        _ if is_stopped => last,
        Role::Active { watermark } => watermark.max(scan.synced_index).max(header.previous.index),
        Role::Sealed { last_index, .. } => last_index,
        Role::BeforeHole { last_index } => last.min(last_index),
    };
    // What follows the entries of a sealed segment is never read again.
    let is_recycled = header.is_recycled || !matches!(role, Role::Active { .. });
    (recovery::judge(scan, watermark, is_recycled), watermark)
}

/// Counts the entries as the scan comes by them, and checks what the scan does not.
struct Watch<'a, 'b> {
    file: &'a SegmentFile,
    log: LogId,
    role: Role,
    rows: &'a [Row],
    on_entry: &'a mut OnEntry<'b>,
    /// Sums up to the end of each run.
    sums: Vec<Sums>,
    damage: Vec<Damage>,
    is_stopped: bool,
}

/// What the entries up to some place sum up to.
#[derive(Debug, Clone, Copy)]
struct Sums {
    tally: Tally,
    /// What continues the log behind them.
    tip: Tip,
    /// Where the last one ends.
    end: u64,
    /// Intact entries that a truncation made void.
    void: u64,
    /// Rows of the index file that were found to lead to their entry.
    rows_met: usize,
}

impl<'a, 'b> Watch<'a, 'b> {
    fn new(
        file: &'a SegmentFile,
        header: &SegmentHeader,
        role: Role,
        rows: &'a [Row],
        on_entry: &'a mut OnEntry<'b>,
    ) -> Self {
        let (tally, end) = (Tally::default(), header.entries_position());
        let none = Sums { tally, tip: header.previous, end, void: 0, rows_met: 0 };
        let (sums, damage) = (vec![none], Vec::new());
        Self { file, log: header.log, role, rows, on_entry, sums, damage, is_stopped: false }
    }

    /// Reads the file; `on_bytes` is told of each byte once.
    fn scan(
        &mut self,
        open: &dyn File,
        header: &SegmentHeader,
        on_bytes: &mut dyn FnMut(u64),
        file_bytes: u64,
    ) -> Scan {
        let mut done = 0;
        let mut pace = |bytes: u64| {
            let more = bytes.min(file_bytes - done);
            done += more;
            on_bytes(more);
        };
        let interval_bytes = u64::MAX / 2;
        let mut visit = |frame: Frame<'_>| self.visit(&frame);
        let scan = Scan::visiting(open, header, interval_bytes, &mut pace, &mut visit);
        pace(file_bytes);
        assert_eq!(done, file_bytes, "every byte of the file was told, and once");
        scan
    }

    fn visit(&mut self, frame: &Frame<'_>) -> ControlFlow<()> {
        let (run, runs) = (frame.run, self.sums.len());
        assert!(run + 1 >= runs, "a frame of run {run} after one of run {}", runs - 1);
        assert!(!self.is_stopped, "a frame after the one that was the last to be seen");
        let last = *self.sums.last().expect("there are sums of the first run");
        self.sums.resize(frame.run + 1, last);
        let sums = self.sums.last_mut().expect("there are sums of every run");
        if frame.header.index > self.role.last_index_max() {
            sums.void += 1;
            return ControlFlow::Continue(());
        }
        sums.add(frame);
        let row = self.rows.get(sums.rows_met);
        sums.rows_met += usize::from(row.is_some_and(|row| leads_to(row, frame)));
        self.check_padding(frame);
        let Frame { position, header, payload, .. } = *frame;
        let (len, found) = (header.payload_len as usize, payload.len());
        assert_eq!(len, found, "entry {} is shown with all of its payload", header.index);
        let view = EntryView { log: self.log, file: &self.file.path, position, header, payload };
        let flow = (self.on_entry)(&view);
        self.is_stopped = flow.is_break();
        flow
    }

    fn check_padding(&mut self, frame: &Frame<'_>) {
        if let Some(at) = frame.padding.iter().position(|byte| *byte != 0) {
            let end = frame.position + frame.header.frame_bytes();
            let position = end - (frame.padding.len() - at) as u64;
            let index = frame.header.index;
            let what = format!("the padding of entry {index} is not zero; the entry is intact");
            self.damage.push(Damage { file: self.file.path.clone(), position, what });
        }
    }

    /// The sums of the first `kept` runs.
    fn sums(&self, kept: usize) -> Sums {
        self.sums[kept.min(self.sums.len()) - 1]
    }
}

impl Sums {
    fn add(&mut self, frame: &Frame<'_>) {
        self.tally.add(frame.header);
        self.tip = frame.header.tip();
        self.end = frame.position + frame.header.frame_bytes();
    }
}

fn leads_to(row: &Row, frame: &Frame<'_>) -> bool {
    let Frame { position, header, .. } = frame;
    let (index, base_offset) = (header.index, header.base_offset);
    let there =
        Row { index, base_offset, append_time_ms: header.append_time_ms, position: *position };
    *row == there
}

/// The index file of a segment.
enum Table {
    Absent,
    Damaged,
    Whole { index: SparseIndex, end: u64 },
}

impl Table {
    fn read(fs: &dyn Fs, file: &SegmentFile, header: &SegmentHeader) -> Self {
        let Ok(open) = fs.open(&file.path.with_extension("idx"), OpenMode::Read) else {
            return Self::Absent;
        };
        match SparseIndex::read_from(&*open, header.seed()) {
            Some((index, end)) => Self::Whole { index, end },
            None => Self::Damaged,
        }
    }

    fn rows(&self) -> &[Row] {
        match self {
            Self::Absent | Self::Damaged => &[],
            Self::Whole { index, .. } => index.rows(),
        }
    }

    /// Says how the table is, now that all entries were seen.
    fn judge(
        &self,
        sums: &Sums,
        findings: &mut Findings<'_>,
        role: Role,
        is_stopped: bool,
    ) -> State {
        let path = findings.file.path.with_extension("idx");
        match self {
            Self::Absent => State::Absent,
            Self::Damaged => {
                // It is not synced, so a power cut may have torn it.
                let what = "the index is torn or damaged; it is rebuilt when it is next needed";
                findings.notes.push(Note { file: path, position: 0, what: what.to_owned() });
                State::Damaged
            }
            Self::Whole { .. } if is_stopped => State::Valid,
            // Rows behind a bad spot, or behind a truncation, lead to what is no longer there.
            Self::Whole { index, .. } if sums.rows_met < index.rows().len() => {
                let has_reason = sums.void > 0 || !findings.damage.is_empty();
                if !has_reason {
                    let row = index.rows()[sums.rows_met];
                    let what = format!(
                        "row {} leads to entry {} at position {}, which is not there",
                        sums.rows_met, row.index, row.position
                    );
                    findings.damage.push(Damage { file: path, position: 0, what });
                }
                if has_reason { State::Stale } else { State::Damaged }
            }
            Self::Whole { end, .. } => {
                let is_active = matches!(role, Role::Active { .. });
                if is_active && *end != sums.end { State::Stale } else { State::Valid }
            }
        }
    }
}

/// Collects what is found in one segment.
struct Findings<'a> {
    file: &'a SegmentFile,
    damage: Vec<Damage>,
    notes: Vec<Note>,
}

impl Findings<'_> {
    fn add_damage(&mut self, position: u64, what: String) {
        self.damage.push(Damage { file: self.file.path.clone(), position, what });
    }

    fn add_note(&mut self, position: u64, what: String) {
        self.notes.push(Note { file: self.file.path.clone(), position, what });
    }

    /// Checks both copies of the header and the room around them.
    fn check_head(&mut self, open: &dyn File, header: &SegmentHeader) {
        for copy in &self.file.bad_copies {
            let what = format!("copy {copy} of the segment header is damaged, the other is good");
            self.damage.push(Damage {
                file: self.file.path.clone(),
                position: COPY_POSITIONS[*copy],
                what,
            });
        }
        if header.is_recycled {
            // Remains of the file's former life stand there.
            return;
        }
        let header_bytes = SEGMENT_HEADER_BYTES as u64;
        let checkpoint_end = CHECKPOINT_POSITION + u64::from(header.checkpoint_len);
        for (from, to) in [
            (header_bytes, COPY_POSITIONS[1]),
            (COPY_POSITIONS[1] + header_bytes, CHECKPOINT_POSITION),
            (checkpoint_end, header.entries_position()),
        ] {
            let mut bytes = vec![0; (to - from) as usize];
            let is_read = read_exact_at(open, &mut bytes, from).is_ok();
            let bad = bytes.iter().position(|byte| *byte != 0).filter(|_| is_read);
            if let Some(at) = bad {
                let what = "a byte between the parts of the segment's head is not zero";
                self.add_damage(from + at as u64, what.to_owned());
            }
        }
    }

    fn check_checkpoint(&mut self, open: &dyn File, header: &SegmentHeader) -> State {
        if !header.has_checkpoint {
            return State::Absent;
        }
        // A length that the file cannot hold must not be allocated.
        let len = u64::from(header.checkpoint_len);
        let room = self.file.bytes.saturating_sub(CHECKPOINT_POSITION);
        let mut bytes = vec![0; len.min(room) as usize];
        let read = read_exact_at(open, &mut bytes, CHECKPOINT_POSITION);
        let (expected, found) = (header.checkpoint_crc, crc32fast::hash(&bytes));
        let what = match read {
            _ if len > room => format!("the file ends within the checkpoint of {len} bytes"),
            Err(error) => format!("the disk cannot read the checkpoint: {error}"),
            Ok(()) if found != expected => {
                format!("checkpoint checksum is {found:#010x}, expected {expected:#010x}")
            }
            Ok(()) => return State::Valid,
        };
        self.add_damage(CHECKPOINT_POSITION, what);
        State::Damaged
    }

    /// Adds the ranges of entries that should be there and are not.
    fn add_verdict(&mut self, scan: &Scan, verdict: &Verdict) {
        let spots = scan.runs.iter().zip(&scan.reasons);
        for ((first, last), (run, reason)) in verdict.faulty.iter().zip(spots) {
            if first <= last {
                let what = format!("entries {first} to {last} cannot be read: {reason}");
                self.add_damage(run.end, what);
            }
        }
    }

    /// Finds intact entries that have no gap before them and yet do not continue what is there.
    fn check_links(&mut self, scan: &Scan, kept: usize) {
        for n in 1..kept {
            let (before, run) = (&scan.runs[n - 1], &scan.runs[n]);
            let (first, last) = (run.first_index, before.tip.index);
            assert!(first > last, "a run begins with entry {first} behind entry {last}");
            if first == last + 1 {
                let reason = &scan.reasons[n - 1];
                let what = format!("entry {first} does not continue the one before: {reason}");
                self.add_damage(before.end, what);
            }
        }
    }

    /// Says what follows the entries, where that is no damage.
    fn note_end(
        &mut self,
        scan: &Scan,
        verdict: &Verdict,
        header: &SegmentHeader,
        role: Role,
        sums: &Sums,
    ) {
        let bytes_end = if header.is_recycled { 0 } else { scan.bytes_end };
        let bytes = scan.frames_end.max(bytes_end).saturating_sub(sums.end);
        // In a lost tail the bytes are those of the damaged entries.
        if bytes == 0 || verdict.case == Case::LostTail {
            return;
        }
        let index = sums.tip.index;
        let is_torn = matches!(role, Role::Active { .. }) && verdict.case != Case::CorruptMiddle;
        let what = if is_torn {
            format!(
                "torn tail: {bytes} bytes follow entry {index} that were never known to be on \
                 disk; the next open cuts them off, nothing that was promised is lost"
            )
        } else if sums.void > 0 {
            let void = sums.void;
            format!("{void} entries follow entry {index} that a truncation removed from the log")
        } else {
            format!("{bytes} bytes that no longer count follow entry {index}")
        };
        self.add_note(sums.end, what);
    }
}
