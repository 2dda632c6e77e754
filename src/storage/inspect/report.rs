//! What an inspection finds, as plain data.
//!
//! These types are also the JSON of `quipu log stats` and `quipu log verify`: fields are only ever
//! added, never renamed or given another meaning.

use std::path::PathBuf;

use super::super::entry::{ALIGNMENT, EntryHeader};
use super::super::error::Damage;
use super::super::header::Origin;
use super::super::recovery::Case;
use crate::types::LogId;

/// What a path turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A data directory with all logs of a node.
    DataDirectory,
    /// The directory of one log.
    Log,
    /// One segment file.
    Segment,
}

/// Something worth knowing that is no damage.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// The file or directory.
    pub file: PathBuf,
    /// Byte in the file, 0 for the file as a whole.
    pub position: u64,
    /// What it is.
    pub what: String,
}

/// Everything an inspection found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// What was inspected.
    pub path: PathBuf,
    /// What it is.
    pub kind: Place,
    /// A process holds the data directory: the picture may be incomplete. Absent when there is no
    /// data directory around what was inspected.
    pub in_use: Option<bool>,
    /// The data directory was closed in order, so that its next open reads nothing.
    pub closed_cleanly: Option<bool>,
    /// The meta journal, if it can be read.
    pub journal: Option<JournalReport>,
    /// The logs that were inspected, by id.
    pub logs: Vec<LogReport>,
    /// Totals over those logs.
    pub totals: Totals,
    /// Stored bytes that are not what was written, those of all logs included.
    pub damage: Vec<Damage>,
    /// What could not be inspected, and why.
    pub failures: Vec<Note>,
    /// What is no damage, that of all logs included.
    pub notes: Vec<Note>,
}

/// The meta journal.
#[derive(Debug, Clone, serde::Serialize)]
pub struct JournalReport {
    /// Generation of its files.
    pub generation: u64,
    /// Sequence of its last change.
    pub sequence: u64,
    /// Facts that it holds.
    pub facts: u64,
}

/// Sums over what was inspected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Logs.
    pub logs: u64,
    /// Segment files that count.
    pub segments: u64,
    /// Entries that can be read.
    pub entries: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Length of the segment files.
    pub file_bytes: u64,
}

impl Report {
    /// True if everything could be inspected and nothing is damaged.
    pub fn is_good(&self) -> bool {
        self.damage.is_empty() && self.failures.is_empty()
    }
}

/// One log.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LogReport {
    /// Its id.
    pub log: LogId,
    /// Its directory.
    pub dir: PathBuf,
    /// First index that can be read, absent without entries.
    pub first_index: Option<u64>,
    /// Last index that can be read.
    pub last_index: Option<u64>,
    /// Earliest offset that can be read.
    pub log_start_offset: u64,
    /// Next offset to be assigned, exclusive.
    pub log_end_offset: u64,
    /// Highest index known to have been on disk, from the journal and from the entries.
    pub watermark: u64,
    /// It was closed in order, and its entries end as they did then.
    pub closed_cleanly: bool,
    /// Sums over its segments.
    pub totals: Totals,
    /// The files that make up the log, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Segment files that a later one has made void; the next open removes them.
    pub void: Vec<PathBuf>,
    /// Files that do not belong here; the next open sets them aside.
    pub unknown: Vec<PathBuf>,
    /// Stored bytes that are not what was written.
    pub damage: Vec<Damage>,
    /// What is no damage.
    pub notes: Vec<Note>,
}

/// One segment file whose header can be read.
#[derive(Debug, Clone, serde::Serialize)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// Its length.
    pub file_bytes: u64,
    /// Index of its first entry, there or yet to come.
    pub base_index: u64,
    /// Offset of its first record.
    pub base_offset: u64,
    /// Grows with every segment the log creates.
    pub generation: u64,
    /// How it came to be.
    pub origin: Origin,
    /// The last segment of the log, which takes the next entries.
    pub is_active: bool,
    /// The file held another segment before.
    pub is_recycled: bool,
    /// The two copies of the header.
    pub header_copies: [State; 2],
    /// The checkpoint.
    pub checkpoint: State,
    /// Length of the checkpoint.
    pub checkpoint_bytes: u32,
    /// The index file.
    pub index: State,
    /// What its end looks like.
    pub end: Case,
    /// Position after the last entry.
    pub end_position: u64,
    /// What its entries sum up to.
    #[serde(flatten)]
    pub entries: Tally,
}

/// How a part of a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it was written.
    Valid,
    /// Not there, and it need not be.
    Absent,
    /// As it was written, before the last entries were.
    Stale,
    /// Not what was written.
    Damaged,
}

/// What a number of entries sum up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Entries that can be read.
    pub entries: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Index of the first one, absent without entries.
    pub first_index: Option<u64>,
    /// Index of the last one.
    pub last_index: Option<u64>,
    /// Offset after the last record, exclusive.
    pub end_offset: Option<u64>,
    /// Append time of the first one, in milliseconds since 1970.
    pub first_append_time_ms: Option<i64>,
    /// Append time of the last one.
    pub last_append_time_ms: Option<i64>,
}

impl Tally {
    /// Adds the entry that comes next.
    ///
    /// # Panics
    /// If it does not come later than the one before.
    pub(super) fn add(&mut self, header: &EntryHeader) {
        let last = self.last_index;
        assert!(last < Some(header.index), "entry {} after entry {last:?}", header.index);
        self.entries += 1;
        self.records += u64::from(header.record_count);
        self.payload_bytes += u64::from(header.payload_len);
        self.first_index.get_or_insert(header.index);
        self.first_append_time_ms.get_or_insert(header.append_time_ms);
        self.last_index = Some(header.index);
        self.end_offset = Some(header.end_offset());
        self.last_append_time_ms = Some(header.append_time_ms);
    }
}

impl Totals {
    /// Adds one segment.
    pub(super) fn add_segment(&mut self, segment: &SegmentReport) {
        // A file that was cut short may end in the padding of its last entry.
        let (room, end) = (segment.file_bytes, segment.end_position);
        let is_inside = segment.entries.entries == 0 || end < room + ALIGNMENT;
        assert!(is_inside, "entries end at {end} of {room} bytes");
        self.segments += 1;
        self.entries += segment.entries.entries;
        self.records += segment.entries.records;
        self.payload_bytes += segment.entries.payload_bytes;
        self.file_bytes += segment.file_bytes;
    }

    /// Adds the totals of one log.
    pub(super) fn add_log(&mut self, log: &Self) {
        self.logs += 1;
        self.segments += log.segments;
        self.entries += log.entries;
        self.records += log.records;
        self.payload_bytes += log.payload_bytes;
        self.file_bytes += log.file_bytes;
    }
}
