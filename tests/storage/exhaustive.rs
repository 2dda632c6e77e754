//! Every crash and every flipped bit of a small log.
//!
//! Groups of entries are synced one by one; the last few are not. A power cut then keeps every
//! possible subset of the unsynced sectors, and recovery must tell in each case what was promised
//! from what was not: nothing acknowledged is lost, and no torn tail is called corruption.

use std::collections::BTreeSet;
use std::path::Path;

use quipu::storage::fs::sim::{Pending, SECTOR_BYTES, SimFs};
use quipu::storage::{Case, Config, DataDir, Entry, Log, RecoveryReport};

use crate::support::*;

/// Payload that makes a frame exactly three sectors long.
const THREE_SECTORS: usize = 3 * SECTOR_BYTES - 80;
const ENTRIES_POSITION: usize = 4608;

/// A disk with `durable` synced groups of one entry and `torn` more that are only in memory.
fn written(durable: u64, torn: u64) -> (SimFs, Vec<Entry>) {
    let fs = SimFs::new();
    let config =
        Config { segment_bytes: 64 * 1024, allocation_bytes_first: 16 * 1024, ..Config::tiny() };
    let dir = open_dir_with(&fs, config.clone()).unwrap();
    let mut log = dir.create_log(LOG, quipu::storage::Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    for _ in 0..durable {
        append(&mut log, 1, THREE_SECTORS).unwrap();
        log.sync().unwrap();
    }
    for _ in 0..torn {
        append(&mut log, 1, THREE_SECTORS).unwrap();
    }
    let entries = read_all(&log);
    (fs, entries)
}

/// Cuts the power on a copy of `fs`, keeping the pending sectors whose bit in `kept` is set.
fn cut(fs: &SimFs, kept: u64) -> SimFs {
    let fs = fs.fork();
    let mut number = 0;
    fs.power_cut(|pending| {
        assert!(matches!(pending, Pending::Sector { .. }), "only sectors wait: {pending:?}");
        number += 1;
        kept & (1 << (number - 1)) != 0
    });
    fs
}

/// What is left after recovery: an intact prefix of `entries`, holes aside.
fn check_recovered(log: &Log, report: &RecoveryReport, entries: &[Entry], context: &str) {
    assert!(report.last_index <= entries.len() as u64, "{context}: entries from nowhere");
    let reader = log.reader();
    let is_faulty =
        |index| report.faulty.iter().any(|f| f.first_index <= index && index <= f.last_index);
    for expected in &entries[..report.last_index as usize] {
        let index = expected.header.index;
        let mut out = Vec::new();
        let access = quipu::storage::Access::MayBlock;
        let read = reader.read(index, index, 1 << 20, access, &mut out);
        match read {
            Ok(()) => {
                assert_eq!(essence(&out), essence(std::slice::from_ref(expected)), "{context}");
            }
            Err(_) => assert!(is_faulty(index), "{context}: entry {index} is gone unreported"),
        }
        assert!(read.is_err() || !is_faulty(index), "{context}: entry {index} is not faulty");
    }
}

fn recover(fs: &SimFs) -> (DataDir, Log, RecoveryReport) {
    let config = Config { segment_bytes: 64 * 1024, ..Config::tiny() };
    let dir = open_dir_with(fs, config).unwrap();
    let (log, report) = dir.open_log(LOG).unwrap();
    (dir, log, report)
}

#[test]
fn every_subset_of_unsynced_sectors_is_a_torn_tail_and_loses_nothing_synced() {
    let (mut states, mut cases) = (0, BTreeSet::new());
    for durable in 0..=3 {
        for torn in 0..=3 {
            let (fs, entries) = written(durable, torn);
            let sectors = fs.pending().len() as u32;
            assert_eq!(u64::from(sectors), 3 * torn, "each group is three sectors");
            for kept in 0..1u64 << sectors {
                let context = format!("{durable} durable, {torn} torn, kept {kept:b}");
                let fs = cut(&fs, kept);
                let (dir, log, report) = recover(&fs);
                assert!(report.faulty.is_empty(), "{context}: {report:?}");
                assert!(report.last_index >= durable, "{context}: a synced group is lost");
                assert!(!matches!(report.case, Case::LostTail | Case::CorruptMiddle), "{context}");
                check_recovered(&log, &report, &entries, &context);
                let last_index = report.last_index;
                cases.insert(format!("{:?}", report.case));
                drop((dir, log));
                fs.power_cut(|_| false);
                let (_dir, log, report) = recover(&fs);
                assert_eq!(report.last_index, last_index, "{context}: recovered twice");
                assert_eq!(report.case, Case::Whole, "{context}: recovered twice");
                check_recovered(&log, &report, &entries, &context);
                states += 1;
            }
        }
    }
    assert_eq!(states, 4 * (1 + 8 + 64 + 512));
    assert_eq!(cases.len(), 3, "whole, torn and torn out of order all occur: {cases:?}");
}

#[test]
fn what_follows_a_cut_never_brings_dropped_entries_back() {
    // The first unsynced group is torn, the second survives whole: after the cut, an entry of the
    // same length in the place of the first must not let the second link up again.
    let (fs, entries) = written(2, 2);
    let fs = cut(&fs, 0b111_000);
    let (dir, mut log, report) = recover(&fs);
    assert_eq!((report.case, report.last_index), (Case::TornOutOfOrder, 2));
    log.append(&mut [entries[2].clone()], &mut checkpoint).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, _log, report) = recover(&fs);
    assert_eq!(report.last_index, 3, "entry 4 of the former life must stay dead");
}

#[test]
fn every_damaged_synced_sector_is_noticed_unless_it_was_in_the_last_sync() {
    let (mut states, mut noticed) = (0, 0);
    for durable in 1..=4 {
        for torn in 0..=2 {
            let (fs, entries) = written(durable, torn);
            for kept in 0..1u64 << (3 * torn) {
                for sector in 0..3 * durable as usize {
                    let context =
                        format!("{durable} durable, {torn} torn, kept {kept:b}, sector {sector}");
                    let fs = cut(&fs, kept);
                    let at = ENTRIES_POSITION + sector * SECTOR_BYTES;
                    fs.damage(&segment_paths(&fs)[0], |bytes| {
                        bytes[at..at + SECTOR_BYTES].fill(0xAA);
                    });
                    let group = sector as u64 / 3 + 1;
                    let (_dir, log, report) = recover(&fs);
                    check_recovered(&log, &report, &entries, &context);
                    let is_noticed = !report.faulty.is_empty();
                    assert!(is_noticed || group == durable, "{context}: {report:?}");
                    assert!(!is_noticed || report.last_index >= durable, "{context}: {report:?}");
                    states += 1;
                    noticed += u32::from(is_noticed);
                }
            }
        }
    }
    assert!(noticed * 2 > states, "{noticed} of {states}");
}

#[test]
fn with_the_watermark_recorded_damage_to_the_last_sync_is_noticed_too() {
    for durable in 1..=4u64 {
        let (fs, entries) = written(durable, 0);
        let (dir, log, _) = recover(&{
            fs.power_cut(|_| false);
            fs.clone()
        });
        log.record_watermark().unwrap();
        dir.journal().sync().unwrap();
        drop((dir, log));
        for sector in 0..3 * durable as usize {
            let fs = fs.fork();
            fs.power_cut(|_| false);
            let at = ENTRIES_POSITION + sector * SECTOR_BYTES;
            fs.damage(&segment_paths(&fs)[0], |bytes| bytes[at..at + SECTOR_BYTES].fill(0));
            let (_dir, mut log, report) = recover(&fs);
            let context = format!("{durable} durable, sector {sector}");
            assert!(!report.faulty.is_empty(), "{context}: {report:?}");
            assert_eq!(report.last_index, durable, "{context}: the promise is kept");
            check_recovered(&log, &report, &entries, &context);
            let group = sector as u64 / 3;
            let expected = if group + 1 == durable { Case::LostTail } else { Case::CorruptMiddle };
            assert_eq!(report.case, expected, "{context}");
            log.repair(&entries[group as usize..=group as usize]).unwrap();
            assert_eq!(essence(&read_all(&log)), essence(&entries), "{context}: repaired");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_closed_log_is_healed_or_found() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for n in 0..6 {
        append(&mut log, 1, 30 + n).unwrap();
        log.sync().unwrap();
    }
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    let used: u64 = entries.iter().map(|entry| entry.header.frame_bytes()).sum();
    let segment = segment_paths(&fs)[0].clone();
    let head = (0..128).chain(4096..4096 + 128);
    let frames = ENTRIES_POSITION..ENTRIES_POSITION + used as usize;
    for byte in head.chain(frames.clone()) {
        for bit in 0..8 {
            let noticed = flip_and_recover(&fs, &segment, byte, bit, &entries);
            let is_padding = is_padding(&entries, byte);
            assert!(
                noticed || is_padding || byte < frames.start,
                "byte {byte} bit {bit} unnoticed"
            );
        }
    }
    for journal in fs.paths().into_iter().filter(|p| p.starts_with(Path::new(ROOT).join("meta"))) {
        for byte in 0..fs.durable_bytes(&journal).unwrap().len().min(600) {
            flip_and_recover(&fs, &journal, byte, byte % 8, &entries);
        }
    }
}

/// Flips one bit on a copy of the disk and recovers; true if damage was reported.
fn flip_and_recover(fs: &SimFs, file: &Path, byte: usize, bit: usize, entries: &[Entry]) -> bool {
    let fs = fs.fork();
    fs.power_cut(|_| false);
    fs.damage(file, |bytes| bytes[byte] ^= 1 << bit);
    let context = format!("{} byte {byte} bit {bit}", file.display());
    let (_dir, log, report) = recover(&fs);
    assert_eq!(report.last_index, entries.len() as u64, "{context}: {report:?}");
    check_recovered(&log, &report, entries, &context);
    !report.faulty.is_empty()
}

/// True for the zero bytes between frames, which carry nothing.
fn is_padding(entries: &[Entry], byte: usize) -> bool {
    let mut start = ENTRIES_POSITION;
    for entry in entries {
        let end = start + entry.header.frame_bytes() as usize;
        if (start + 80 + entry.payload.len()..end).contains(&byte) {
            return true;
        }
        start = end;
    }
    false
}
