//! Reading a segment the way recovery and scrubbing must: from the disk, believing nothing.
//!
//! Frames are read with `pread`, so that a bad sector is an error code. A frame is intact when its
//! header CRC, its index, its chain and its payload CRC are right. Behind a bad spot the scan
//! looks for frames at every multiple of eight: the salt makes sure that only frames of this
//! segment's life are found, and client data cannot imitate them.

use std::ops::ControlFlow;

use super::entry::{ALIGNMENT, EntryHeader, HEADER_BYTES};
use super::fs::File;
use super::header::{SegmentHeader, Tip};
use super::index::SparseIndex;
use super::window::Window;

/// A sector that cannot be read is skipped in steps of this.
const UNREADABLE_STEP_BYTES: u64 = 512;

/// Intact entries that follow one another.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Index of the first entry.
    pub(super) first_index: u64,
    /// Where its frame starts.
    pub(super) position: u64,
    /// Where the last frame ends.
    pub(super) end: u64,
    /// The tip after the last entry. In an empty run, what the first entry would continue.
    pub(super) tip: Tip,
}

/// An intact frame, as a scan comes by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Number of the run it belongs to.
    pub(super) run: usize,
    /// Where it starts.
    pub(super) position: u64,
    pub(super) header: &'a EntryHeader,
    pub(super) payload: &'a [u8],
    /// What follows the payload up to the next frame. No checksum covers it.
    pub(super) padding: &'a [u8],
}

/// Is shown every intact frame in order; the scan ends at the one where it breaks.
pub(super) type Visit<'a> = dyn FnMut(Frame<'_>) -> ControlFlow<()> + 'a;

/// What a segment holds.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    /// The first run continues what the segment's header says and may be empty; each later one
    /// follows a bad spot.
    pub(super) runs: Vec<Run>,
    /// What ended each run: the check that failed where it ends.
    pub(super) reasons: Vec<String>,
    /// Rows for every intact entry.
    pub(super) index: SparseIndex,
    /// Highest `synced_index` in any intact header, also where the payload is bad.
    pub(super) synced_index: u64,
    /// Highest term in any intact header.
    pub(super) term_max: u64,
    /// Where the last intact header ends, with or without its payload.
    pub(super) frames_end: u64,
    /// The first check that failed, and where. A segment's free space after its entries fails a
    /// check too.
    pub(super) first_bad: (u64, String),
    /// Where the last byte that is not zero ends, at least the end of the first run.
    pub(super) bytes_end: u64,
}

impl Scan {
    /// Reads every frame of a segment's file.
    /// `pace` is told the bytes of each read and may wait.
    pub(super) fn of(
        file: &dyn File,
        header: &SegmentHeader,
        interval_bytes: u64,
        pace: &mut dyn FnMut(u64),
    ) -> Self {
        Self::visiting(file, header, interval_bytes, pace, &mut |_| ControlFlow::Continue(()))
    }

    /// The same, showing every intact frame to `visit`. A scan that it ends early knows nothing of
    /// what follows.
    pub(super) fn visiting(
        file: &dyn File,
        header: &SegmentHeader,
        interval_bytes: u64,
        pace: &mut dyn FnMut(u64),
        visit: &mut Visit<'_>,
    ) -> Self {
        let mut scanner = Scanner::new(Window::new(file, pace), header, interval_bytes, visit);
        let mut run = scanner.run_from(header.entries_position(), header.previous);
        let first_bad = scanner.last_bad.clone();
        let bytes_end = if scanner.is_stopped { run.end } else { scanner.bytes_end(run.end) };
        let (mut runs, mut reasons) = (Vec::new(), Vec::new());
        loop {
            // The entry that comes next was just found not to continue the run.
            let bad_index = run.tip.index + 1;
            let resume = run.end;
            assert!(
                resume.is_multiple_of(ALIGNMENT),
                "frames end at multiples of eight, not at {resume}"
            );
            assert!(run.tip.index + 1 >= run.first_index, "a run goes forward: {run:?}");
            runs.push(run);
            reasons.push(scanner.last_bad.1.clone());
            if scanner.is_stopped {
                break;
            }
            scanner.run += 1;
            match scanner.find_frame(resume, bad_index) {
                Some((position, first)) => run = scanner.run_after_gap(position, &first),
                None => break,
            }
        }
        Self {
            runs,
            reasons,
            index: scanner.index,
            synced_index: scanner.synced_index,
            term_max: scanner.term_max,
            frames_end: scanner.frames_end,
            first_bad,
            bytes_end,
        }
    }

    /// The run that starts where the segment's entries do.
    pub(super) fn head(&self) -> &Run {
        self.runs.first().expect("a scan has a first run")
    }
}

struct Scanner<'a> {
    window: Window<'a>,
    visit: &'a mut Visit<'a>,
    /// The visitor has seen enough.
    is_stopped: bool,
    /// Number of the present run.
    run: usize,
    seed: u32,
    interval_bytes: u64,
    index: SparseIndex,
    synced_index: u64,
    term_max: u64,
    frames_end: u64,
    last_bad: (u64, String),
}

impl<'a> Scanner<'a> {
    fn new(
        window: Window<'a>,
        header: &SegmentHeader,
        interval_bytes: u64,
        visit: &'a mut Visit<'a>,
    ) -> Self {
        Self {
            window,
            visit,
            is_stopped: false,
            run: 0,
            seed: header.seed(),
            interval_bytes,
            index: SparseIndex::default(),
            synced_index: 0,
            term_max: 0,
            frames_end: header.entries_position(),
            last_bad: (0, String::new()),
        }
    }

    /// Reads intact, linked frames from `position` on.
    fn run_from(&mut self, position: u64, before: Tip) -> Run {
        let first_index = before.index + 1;
        self.extend(Run { first_index, position, end: position, tip: before })
    }

    /// Reads on behind a bad spot, from a frame whose chain cannot be checked.
    fn run_after_gap(&mut self, position: u64, first: &EntryHeader) -> Run {
        self.index.push(first, position);
        self.show(position, first);
        let end = position + first.frame_bytes();
        self.extend(Run { first_index: first.index, position, end, tip: first.tip() })
    }

    fn extend(&mut self, mut run: Run) -> Run {
        while !self.is_stopped {
            match self.linked_frame(run.end, &run.tip) {
                Ok(header) => {
                    self.index.note(&header, run.end, self.interval_bytes);
                    self.show(run.end, &header);
                    run.end += header.frame_bytes();
                    run.tip = header.tip();
                }
                Err(what) => {
                    self.last_bad = (run.end, what);
                    return run;
                }
            }
        }
        self.last_bad = (run.end, "the scan was ended here".to_owned());
        run
    }

    /// Shows the visitor a frame whose payload was checked just before.
    fn show(&mut self, position: u64, header: &EntryHeader) {
        let start = position + HEADER_BYTES as u64;
        let rest = header.frame_bytes() as usize - HEADER_BYTES;
        let bytes = self.window.bytes(start, rest).unwrap_or_default();
        let Some((payload, padding)) = bytes.split_at_checked(header.payload_len as usize) else {
            return;
        };
        let frame = Frame { run: self.run, position, header, payload, padding };
        self.is_stopped = (self.visit)(frame).is_break();
    }

    /// Reads the frame at `position` if it is intact and continues `before`.
    fn linked_frame(&mut self, position: u64, before: &Tip) -> Result<EntryHeader, String> {
        let header = self.header(position)?;
        before.check_continued_by(&header).map_err(|gap| gap.to_string())?;
        before.check_chain_to(&header)?;
        self.check_payload(position, &header)?;
        Ok(header)
    }

    fn header(&mut self, position: u64) -> Result<EntryHeader, String> {
        let bytes = self.window.bytes(position, HEADER_BYTES)?;
        let bytes = bytes.try_into().expect("a header's bytes were asked for");
        let header = EntryHeader::decode(bytes, self.seed).map_err(|error| error.to_string())?;
        // An entry is written before it is on disk; whatever says otherwise is no evidence.
        if header.synced_index < header.index {
            self.synced_index = self.synced_index.max(header.synced_index);
        }
        self.term_max = self.term_max.max(header.term);
        self.frames_end = self.frames_end.max(position + header.frame_bytes());
        Ok(header)
    }

    /// False if the bytes at `position`, which the window holds, are no header of any segment.
    fn may_be_header(&mut self, position: u64) -> bool {
        let bytes = self.window.bytes(position, HEADER_BYTES);
        bytes.is_ok_and(EntryHeader::is_plausible)
    }

    /// Checks the rest of a frame. A file that ends in its padding was cut short, and whoever goes
    /// on behind the frame counts on all of it.
    fn check_payload(&mut self, position: u64, header: &EntryHeader) -> Result<(), String> {
        let start = position + HEADER_BYTES as u64;
        let bytes = self.window.bytes(start, header.frame_bytes() as usize - HEADER_BYTES)?;
        let found = crc32fast::hash(&bytes[..header.payload_len as usize]);
        if found == header.payload_crc {
            return Ok(());
        }
        let expected = header.payload_crc;
        let index = header.index;
        Err(format!(
            "payload checksum of entry {index} is {found:#010x}, expected {expected:#010x}"
        ))
    }

    /// Finds the next intact frame with an index above `bad_index`.
    ///
    /// Most places are told apart from a header by a glance at a few fields: 64 MiB of free space
    /// take 30 ms and not 200.
    fn find_frame(&mut self, from: u64, bad_index: u64) -> Option<(u64, EntryHeader)> {
        let mut position = from.next_multiple_of(ALIGNMENT);
        while position + HEADER_BYTES as u64 <= self.window.file_bytes {
            if let Err(unreadable) = self.window.load(position, HEADER_BYTES) {
                debug_assert!(!unreadable.is_empty(), "a read error has words");
                position = (position + 1).next_multiple_of(UNREADABLE_STEP_BYTES);
                continue;
            }
            let found =
                if self.may_be_header(position) { self.header(position).ok() } else { None };
            if let Some(header) = found.filter(|header| header.index > bad_index)
                && self.check_payload(position, &header).is_ok()
            {
                return Some((position, header));
            }
            position += ALIGNMENT;
        }
        None
    }

    /// Where the last byte from `from` on that is not zero ends. A sector that cannot be read
    /// counts as not zero.
    fn bytes_end(&mut self, from: u64) -> u64 {
        let mut end = from;
        let mut position = from;
        while position < self.window.file_bytes {
            let len = (self.window.file_bytes - position).min(UNREADABLE_STEP_BYTES);
            let last = match self.window.bytes(position, len as usize) {
                Ok(bytes) => bytes.iter().rposition(|byte| *byte != 0),
                Err(_) => Some(len as usize - 1),
            };
            end = last.map_or(end, |at| position + at as u64 + 1);
            position += len;
        }
        end
    }
}
