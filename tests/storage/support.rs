//! What the storage tests share: a data directory over the modelled disk, and entries to put there.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::fs::{Fs as _, OpenMode};
use quipu::storage::{
    Access, Config, DataDir, Entry, Kind, Log, LogReader, RecoveryReport, Result, Tip,
};
use quipu::types::LogId;
use uuid::Uuid;

/// The log that most tests use.
pub const LOG: LogId = LogId(Uuid::from_u128(0x51));
/// Where the modelled disk has its data directory.
pub const ROOT: &str = "/data";

/// Opens the data directory on `fs`.
pub fn open_dir(fs: &SimFs) -> Result<DataDir> {
    open_dir_with(fs, Config::tiny())
}

/// The same with other sizes.
pub fn open_dir_with(fs: &SimFs, config: Config) -> Result<DataDir> {
    DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), config)
}

/// A data directory with one new, synced log.
pub fn new_log(fs: &SimFs) -> (DataDir, Log) {
    let dir = open_dir(fs).unwrap();
    let log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    (dir, log)
}

/// Opens the directory and its log again.
pub fn reopen(fs: &SimFs) -> (DataDir, Log, RecoveryReport) {
    let dir = open_dir(fs).unwrap();
    let (log, report) = dir.open_log(LOG).unwrap();
    (dir, log, report)
}

/// The entry that continues `tip`: `records` records in a payload that depends on the index.
pub fn next_entry(tip: &Tip, records: u32, payload_len: usize) -> Entry {
    let index = tip.index + 1;
    let payload = payload(index, payload_len);
    let kind = if records == 0 { Kind::NoOp } else { Kind::Records };
    let crc = crc32fast::hash(&payload);
    let time = tip.append_time_ms.max(0) + 10;
    Entry::new(kind, index, tip.term.max(1), payload, crc)
        .with_records(tip.end_offset, records)
        .at_time(time)
}

/// Bytes that no other index has.
pub fn payload(index: u64, len: usize) -> Bytes {
    (0..len).map(|n| (index as usize * 31 + n * 7) as u8 | 1).collect::<Vec<u8>>().into()
}

/// Appends one entry and says which.
pub fn append(log: &mut Log, records: u32, payload_len: usize) -> Result<u64> {
    let mut entries = [next_entry(&log.tip(), records, payload_len)];
    log.append(&mut entries, &mut checkpoint)?;
    Ok(entries[0].header.index)
}

/// The checkpoint of the tests: the tip it was taken at, in words.
pub fn checkpoint(tip: &Tip) -> Bytes {
    format!("state at {}", tip.index).into()
}

/// Reads everything from `first` on, segment by segment.
pub fn read_from(reader: &LogReader, first: u64) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut next = first;
    while next <= reader.last_index() {
        reader.read(next, u64::MAX, 1 << 20, Access::MayBlock, &mut entries)?;
        next = entries.last().map_or(next, |entry| entry.header.index) + 1;
    }
    Ok(entries)
}

/// Reads the whole log and checks that it is what [`next_entry`] made.
pub fn read_all(log: &Log) -> Vec<Entry> {
    let reader = log.reader();
    let entries = read_from(&reader, reader.first_index()).unwrap();
    for entry in &entries {
        let expected = payload(entry.header.index, entry.payload.len());
        assert_eq!(entry.payload, expected, "payload of entry {}", entry.header.index);
    }
    entries
}

/// What replicas agree on: index, chain and payload length of each entry. The chain stands for the
/// rest.
pub fn essence(entries: &[Entry]) -> Vec<(u64, u32, usize)> {
    let of = |entry: &Entry| {
        assert!(entry.is_intact(), "payload of entry {}", entry.header.index);
        (entry.header.index, entry.header.chain, entry.payload.len())
    };
    entries.iter().map(of).collect()
}

/// Paths of the segment files of [`LOG`], sorted by base index.
pub fn segment_paths(fs: &SimFs) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.starts_with(Path::new(ROOT).join("logs"))
            && path.extension().is_some_and(|e| e == "seg")
    };
    fs.paths().into_iter().filter(is_segment).collect()
}

/// A small, fast, seeded generator (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Creates a durable file behind the engine's back.
pub fn create(fs: &SimFs, path: &Path, bytes: &[u8]) {
    let dir = path.parent().unwrap();
    fs.create_dir_all(dir).unwrap();
    let file = fs.open(path, OpenMode::Create).unwrap();
    file.write_at(&[IoSlice::new(bytes)], 0).unwrap();
    file.sync().unwrap();
    fs.sync_dir(dir).unwrap();
}

/// Removes a file behind the engine's back, for good.
pub fn remove(fs: &SimFs, path: &Path) {
    fs.remove_file(path).unwrap();
    fs.sync_dir(path.parent().unwrap()).unwrap();
}
