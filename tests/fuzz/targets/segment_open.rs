//! Damages the segment files of a log, opens it, reads everything and scrubs. An entry that is
//! returned must be one that was appended, and what recovery settled it must settle for good.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu::batch::payload_crc;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{
    Access, Config, DataDir, Entry, EntryHeader, Error, HEADER_BYTES, Kind, Log, RecoveryReport,
    Result, SegmentHeader, Tip,
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

/// A good log of a sealed segment and an active one.
struct Sample {
    fs: SimFs,
    paths: Vec<PathBuf>,
    entries: Vec<Entry>,
}

thread_local! {
    static SAMPLE: Sample = sample();
}

fn config() -> Config {
    Config { segment_bytes: 5632, index_interval_bytes: 256, spares_max: 0, ..Config::tiny() }
}

fn log_id() -> LogId {
    LogId::parse(LOG).expect("the id is well formed")
}

fn open_dir(fs: &SimFs) -> DataDir {
    let opened = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), config());
    opened.expect("only segments are damaged")
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

fn sample() -> Sample {
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
    Sample { fs, paths, entries }
}

/// The first byte says what is done: which segment, whether its entries are replaced or edited here
/// and there, whether headers are edited too, and whether the checksums of entries are made right
/// afterwards.
pub(crate) fn run(input: &[u8]) {
    let Some((how, input)) = input.split_first() else { return };
    SAMPLE.with(|sample| {
        let fs = sample.fs.fork();
        let path = &sample.paths[usize::from(how & 1)];
        let are_mended = how & 2 != 0;
        fs.damage(path, |bytes| {
            let head: [u8; HEAD_BYTES] = bytes[..HEAD_BYTES].try_into().expect("long enough");
            let start = if how & 8 != 0 && !are_mended { 0 } else { ENTRIES_START };
            if how & 4 != 0 {
                let len = input.len().min(bytes.len() - start);
                bytes[start..start + len].copy_from_slice(&input[..len]);
            } else {
                edits::apply(&mut bytes[start..], input);
            }
            if are_mended {
                mend(&mut bytes[ENTRIES_START..], &head);
            }
        });
        check(&fs, (!are_mended).then_some(&sample.entries));
    });
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

fn check(fs: &SimFs, known: Option<&Vec<Entry>>) {
    let dir = open_dir(fs);
    let Ok((log, report)) = dir.open_log(log_id()) else { return };
    let before = read(&log, known);
    scrub(&log);
    assert_eq!(read(&log, known), before, "scrubbing changes nothing");
    drop((log, dir));
    fs.power_cut(|_| true);
    let fs = &edits::fresh_copy(fs);
    // Another boot, so that sealed segments are looked at again.
    fs.power_cut(|_| true);
    let dir = open_dir(fs);
    let (mut log, again) = dir.open_log(log_id()).expect("what opened once opens again");
    assert_eq!(ranges(&again), ranges(&report));
    assert_eq!(read(&log, known), before, "a second recovery finds what the first one left");
    if log.lost_tail().is_none() {
        let appended = append(&mut log);
        log.sync().expect("nothing fails");
        let mut entries = Vec::new();
        let index = appended.header.index;
        let reader = log.reader();
        reader.read(index, index, 1, Access::MayBlock, &mut entries).expect("it was appended");
        assert_eq!(entries, [appended]);
    }
}

fn ranges(report: &RecoveryReport) -> Vec<(u64, u64)> {
    report.faulty.iter().map(|range| (range.first_index, range.last_index)).collect()
}

/// Reads the log entry by entry; `None` for those that cannot be read.
fn read(log: &Log, known: Option<&Vec<Entry>>) -> Vec<Option<u32>> {
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

fn scrub(log: &Log) {
    let reader = log.reader();
    for n in 0..reader.segments().len() {
        reader.scrub_segment(n, &mut |_| {}).expect("every file can be opened");
    }
}
