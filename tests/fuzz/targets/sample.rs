//! A good log of two segments, ways to damage it as a fuzzer says, and what must hold of whatever
//! opens afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu::batch::payload_crc;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{
    Access, Config, DataDir, Entry, EntryHeader, Error, FaultyRange, HEADER_BYTES, Kind, Log,
    RecoveryReport, Result, SegmentHeader, Tip,
};
use quipu::types::LogId;

use super::edits;

const ROOT: &str = "/data";
const LOG: &str = "00000000-0000-0000-0000-000000000051";
const HEAD_BYTES: usize = 128;
/// Entries in the active segment, short enough to leave room.
const ACTIVE_ENTRIES: u64 = 4;
/// Behind the copies of the header and the checkpoint.
const ENTRIES_START: usize = 4096 + 512;

/// Bits of the first byte of an input: which segment is damaged, and how.
const ACTIVE: u8 = 1;
/// The checksums of entries are made right afterwards.
const MENDED: u8 = 2;
/// The input replaces the bytes; otherwise it edits them here and there.
const REPLACED: u8 = 4;
/// Headers are damaged too.
const HEADERS_TOO: u8 = 8;
/// The file ends early.
const CUT_SHORT: u8 = 32;

/// A good log of a sealed segment and an active one.
pub(crate) struct Sample {
    pub(crate) fs: SimFs,
    paths: Vec<PathBuf>,
    entries: Vec<Entry>,
}

fn config() -> Config {
    Config { segment_bytes: 5632, index_interval_bytes: 256, spares_max: 0, ..Config::tiny() }
}

pub(crate) fn log_id() -> LogId {
    LogId::parse(LOG).expect("the id is well formed")
}

pub(crate) fn open_dir(fs: &SimFs) -> DataDir {
    let opened = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), config());
    opened.expect("only segments are damaged")
}

/// Opens the log, of which one segment is damaged. `None` if a header has the checksum and the
/// version of a later program: nothing else may keep the log from being opened.
pub(crate) fn open_log(dir: &DataDir) -> Option<(Log, RecoveryReport)> {
    match dir.open_log(log_id()) {
        Ok(opened) => Some(opened),
        Err(Error::FutureVersion { .. }) => None,
        Err(error) => panic!("one segment is damaged, the log is refused: {error}"),
    }
}

fn append(log: &mut Log) -> Entry {
    let tip = log.tip();
    let index = tip.index + 1;
    let payload: Vec<u8> = (0..index * 37 % 150).map(|n| (n * index) as u8).collect();
    let crc = payload_crc(&payload);
    let entry = Entry::new(Kind::Records, index, tip.term.max(1), payload.into(), crc);
    let entry = entry.with_records(tip.end_offset, 1).at_time(tip.append_time_ms.max(0) + 1);
    let mut entries = [entry];
    let appended = log.append(&mut entries, &mut |_| b"state".to_vec().into());
    appended.expect("there is room");
    let [entry] = entries;
    entry
}

impl Sample {
    pub(crate) fn new() -> Self {
        let fs = SimFs::new();
        let dir = open_dir(&fs);
        let mut log = dir.create_log(log_id(), Tip::EMPTY, b"").expect("there is room");
        let mut entries = Vec::new();
        let mut left = ACTIVE_ENTRIES;
        while left > 0 {
            entries.push(append(&mut log));
            log.sync().expect("nothing fails");
            left -= u64::from(log.reader().segments().len() > 1);
        }
        drop((log, dir));
        fs.power_cut(|_| true);
        let fs = edits::fresh_copy(&fs);
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|end| end == "seg");
        let paths: Vec<PathBuf> = fs.paths().into_iter().filter(is_segment).collect();
        assert_eq!(paths.len(), 2);
        Self { fs, paths, entries }
    }

    /// Damages a segment on `fs`, which holds the sample's files. Returns the entries as they were,
    /// unless the input may have made up others.
    pub(crate) fn damage(&self, fs: &SimFs, how: u8, input: &[u8]) -> Option<&[Entry]> {
        let is_mended = how & MENDED != 0;
        let mut is_forged = false;
        fs.damage(&self.paths[usize::from(how & ACTIVE)], |bytes| {
            let good = bytes.clone();
            let head: [u8; HEAD_BYTES] = bytes[..HEAD_BYTES].try_into().expect("long enough");
            let start = if how & HEADERS_TOO != 0 && !is_mended { 0 } else { ENTRIES_START };
            if how & REPLACED != 0 {
                let len = input.len().min(bytes.len() - start);
                bytes[start..start + len].copy_from_slice(&input[..len]);
            } else {
                edits::apply(&mut bytes[start..], input);
            }
            if is_mended {
                mend(&mut bytes[ENTRIES_START..], &head);
            }
            is_forged = is_mended || has_new_frames(bytes, &good);
            if how & CUT_SHORT != 0
                && let Some(len) = input.last_chunk::<2>()
            {
                bytes.truncate(usize::from(u16::from_le_bytes(*len)));
            }
        });
        (!is_forged).then_some(&self.entries)
    }
}

/// True if there is a frame in `bytes` that `good` does not have: a fuzzer that sees what is
/// compared finds the right checksum.
fn has_new_frames(bytes: &[u8], good: &[u8]) -> bool {
    let head = good.first_chunk().expect("long enough");
    let seed = SegmentHeader::decode(head).expect("the header is good").seed();
    let is_new = |at: usize| {
        let range = at..at + HEADER_BYTES;
        let frame = bytes[range.clone()].try_into().expect("a header's bytes");
        bytes[range.clone()] != good[range] && EntryHeader::decode(frame, seed).is_ok()
    };
    (ENTRIES_START..=bytes.len() - HEADER_BYTES).step_by(8).any(is_new)
}

/// Makes the header checksums right, frame after frame.
fn mend(mut bytes: &mut [u8], head: &[u8; HEAD_BYTES]) {
    let seed = SegmentHeader::decode(head).expect("the header is good").seed();
    while let Some(frame) = bytes.first_chunk_mut::<HEADER_BYTES>() {
        let crc = edits::crc_from(seed, &frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        let Ok(header) = EntryHeader::decode(frame, seed) else { return };
        let frame_bytes = usize::try_from(header.frame_bytes()).expect("a frame fits in memory");
        let Some((_, rest)) = bytes.split_at_mut_checked(frame_bytes) else { return };
        bytes = rest;
    }
}

/// Appends an entry, unless the log waits for a repair, and reads it back.
pub(crate) fn check_going_on(log: &mut Log) {
    if log.lost_tail().is_none() {
        let appended = append(log);
        log.sync().expect("nothing fails");
        let mut entries = Vec::new();
        let index = appended.header.index;
        let reader = log.reader();
        reader.read(index, index, 1, Access::MayBlock, &mut entries).expect("it was appended");
        assert_eq!(entries, [appended]);
    }
}

pub(crate) fn ranges(report: &RecoveryReport) -> Vec<(u64, u64)> {
    report.faulty.iter().map(|range| (range.first_index, range.last_index)).collect()
}

/// Reads the log entry by entry; `None` for those that cannot be read.
pub(crate) fn read(log: &Log, known: Option<&[Entry]>) -> Vec<Option<u32>> {
    let reader = log.reader();
    let read_one = |index: u64| -> Result<u32> {
        let mut entries = Vec::new();
        reader.read(index, index, usize::MAX >> 1, Access::MayBlock, &mut entries)?;
        let entry = &entries[0];
        assert!(entries.len() == 1 && entry.header.index == index, "asked for {index}");
        assert!(entry.is_intact(), "the payload of entry {index}");
        if let Some(known) = known {
            let expected = &known[index as usize - 1];
            assert_eq!(entry.payload, expected.payload, "entry {index}");
            assert_eq!(entry.header.chain, expected.header.chain, "entry {index}");
        }
        Ok(entry.header.chain)
    };
    let of = |index: u64| match read_one(index) {
        Ok(chain) => Some(chain),
        Err(Error::Corrupt(_)) => None,
        Err(error) => panic!("entry {index}: {error}"),
    };
    (reader.first_index()..=reader.last_index()).map(of).collect()
}

/// Scrubs the log, after which it must know of every entry that cannot be read.
pub(crate) fn scrub(log: &Log, read: &[Option<u32>]) {
    let reader = log.reader();
    for n in 0..reader.segments().len() {
        reader.scrub_segment(n, &mut |_| {}).expect("every file can be opened");
    }
    let faulty = reader.faulty();
    for (index, _) in (reader.first_index()..).zip(read).filter(|(_, read)| read.is_none()) {
        let holds = |range: &FaultyRange| (range.first_index..=range.last_index).contains(&index);
        assert!(faulty.iter().any(holds), "entry {index} cannot be read: {faulty:?}");
    }
}
