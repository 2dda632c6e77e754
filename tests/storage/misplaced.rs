//! Names that lead to the bytes of another segment. A file system that journals names but not
//! content may use the blocks of a removed file again before the removal is durable: after a power
//! cut the old name is back, and what it leads to belongs to another file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Case, DataDir, Error, Inspector, Log, Report, Tip};
use quipu::types::LogId;
use uuid::Uuid;

use crate::doubles::*;
use crate::support::*;

const OTHER: LogId = LogId(Uuid::from_u128(0x99));

/// A log of a hundred synced entries in many segments, beside another log.
fn two_logs(fs: &SimFs) -> (DataDir, Log) {
    let (dir, mut log) = new_log(fs);
    fill(&mut log, 100);
    let mut other = dir.create_log(OTHER, Tip::EMPTY, b"").unwrap();
    fill(&mut other, 3);
    assert!(segment_paths(fs).len() > 4);
    (dir, log)
}

/// What strange bytes a name may lead to: those of another log, and of another segment of this one.
fn strangers(fs: &SimFs) -> [Vec<u8>; 2] {
    let other = segment_paths(fs).into_iter().find(|path| !path.starts_with(log_dir())).unwrap();
    let own = own_segments(fs)[1].clone();
    [other, own].map(|path| fs.durable_bytes(&path).unwrap())
}

fn own_segments(fs: &SimFs) -> Vec<PathBuf> {
    segment_paths(fs).into_iter().filter(|path| path.starts_with(log_dir())).collect()
}

fn inspect(fs: &SimFs) -> Report {
    let inspector = Inspector::open(Arc::new(fs.clone()), Path::new(ROOT), Some(LOG)).unwrap();
    inspector.inspect(true, &mut |_| {})
}

fn is_set_aside(fs: &SimFs, path: &Path) -> bool {
    let aside = Path::new(ROOT).join("quarantine").join(LOG.to_string());
    fs.paths().contains(&aside.join(path.file_name().unwrap()))
}

/// Lets the names come back with the bytes of others, opens the log, which must have lost nothing,
/// and returns it.
#[track_caller]
fn expect_nothing_lost(before: &SimFs, removed: &[PathBuf], first: u64, last: u64) {
    for bytes in strangers(before) {
        let fs = before.fork();
        removed.iter().for_each(|path| create(&fs, path, &bytes));
        fs.power_cut(|_| true);
        let looked_at = inspect(&fs);
        assert!(looked_at.damage.is_empty(), "{:?}", looked_at.damage);
        let (_dir, mut log, report) = reopen(&fs);
        assert_eq!((report.case, report.last_index), (Case::Whole, last), "{report:?}");
        assert!(report.faulty.is_empty() && log.lost_tail().is_none(), "{report:?}");
        assert_eq!(read_all(&log).len() as u64, last + 1 - first);
        assert!(removed.iter().all(|path| is_set_aside(&fs, path)), "nothing unknown is deleted");
        fill(&mut log, 30);
        assert_eq!(read_all(&log).len() as u64, last + 31 - first);
    }
}

#[test]
fn a_name_that_retention_removed_may_come_back_with_the_bytes_of_another() {
    let fs = SimFs::new();
    let (dir, mut log) = two_logs(&fs);
    let before = own_segments(&fs);
    log.advance_log_start(60, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    log.reclaim().unwrap();
    let first = log.reader().first_index();
    drop((dir, log));
    fs.power_cut(|_| true);
    let after = own_segments(&fs);
    let removed: Vec<_> = before.into_iter().filter(|path| !after.contains(path)).collect();
    assert!(removed.len() > 1);
    expect_nothing_lost(&fs, &removed, first, 100);
}

#[test]
fn a_name_that_a_truncation_removed_may_come_back_with_the_bytes_of_another() {
    let fs = SimFs::new();
    let (dir, mut log) = two_logs(&fs);
    let before = own_segments(&fs);
    log.truncate_suffix(50, 49, None).unwrap();
    log.sync().unwrap();
    log.reclaim().unwrap();
    drop((dir, log));
    fs.power_cut(|_| true);
    let after = own_segments(&fs);
    let removed: Vec<_> = before.into_iter().filter(|path| !after.contains(path)).collect();
    assert!(removed.len() > 1);
    expect_nothing_lost(&fs, &removed, 1, 49);
}

#[test]
fn a_name_that_a_snapshot_removed_may_come_back_with_the_bytes_of_another() {
    let fs = SimFs::new();
    let (dir, mut log) = two_logs(&fs);
    let before = own_segments(&fs);
    let tip = Tip { index: 40, term: 3, end_offset: 40, append_time_ms: 1 << 20, chain: 9 };
    log.reset(tip, b"snapshot").unwrap();
    log.sync().unwrap();
    log.reclaim().unwrap();
    fill(&mut log, 30);
    drop((dir, log));
    fs.power_cut(|_| true);
    let after = own_segments(&fs);
    let removed: Vec<_> = before.into_iter().filter(|path| !after.contains(path)).collect();
    assert!(removed.len() > 4);
    expect_nothing_lost(&fs, &removed, 41, 70);
}

#[test]
fn strange_bytes_in_the_middle_of_a_log_are_a_hole_that_is_told() {
    let fs = SimFs::new();
    drop(two_logs(&fs));
    fs.power_cut(|_| true);
    for bytes in strangers(&fs) {
        for n in [0, 2] {
            let fs = fs.fork();
            let segments = own_segments(&fs);
            fs.damage(&segments[n], |file| file.clone_from(&bytes));
            let looked_at = inspect(&fs);
            assert_eq!(looked_at.damage[0].file, segments[n]);
            let (_dir, log, report) = reopen(&fs);
            assert_eq!((report.faulty.len(), report.last_index), (1, 100), "{report:?}");
            let (first, last) = (report.faulty[0].first_index, report.faulty[0].last_index);
            let bases = log.reader().segments().iter().map(|s| s.base_index()).collect::<Vec<_>>();
            assert!(!bases.contains(&first) && bases.contains(&(last + 1)), "{report:?}");
            assert!(is_set_aside(&fs, &segments[n]));
            for index in 1..=100 {
                let read = can_read(&log, index);
                assert_eq!(read, index < first || index > last, "entry {index}");
            }
        }
    }
}

fn can_read(log: &Log, index: u64) -> bool {
    let (mut out, reader) = (Vec::new(), log.reader());
    reader.read(index, index, 1, quipu::storage::Access::MayBlock, &mut out).is_ok()
}

#[test]
fn strange_bytes_at_the_end_of_a_log_are_a_lost_tail_and_no_shorter_log() {
    let fs = SimFs::new();
    drop(two_logs(&fs));
    fs.power_cut(|_| true);
    for bytes in strangers(&fs) {
        let fs = fs.fork();
        let last = own_segments(&fs).pop().unwrap();
        fs.damage(&last, |file| file.clone_from(&bytes));
        assert_eq!(inspect(&fs).damage[0].file, last);
        let (_dir, mut log, report) = reopen(&fs);
        assert_eq!(report.case, Case::LostTail);
        let lost =
            log.lost_tail().expect("a segment gets its name after its first entry is on disk");
        assert_eq!(lost.first_index, log.tip().index + 1);
        assert!(matches!(append(&mut log, 1, 100), Err(Error::TailLost { .. })));
        assert!(is_set_aside(&fs, &last));
    }
}

#[test]
fn a_log_of_strange_bytes_alone_is_refused_and_left_alone() {
    let fs = SimFs::new();
    drop(two_logs(&fs));
    fs.power_cut(|_| true);
    let bytes = strangers(&fs)[0].clone();
    for path in own_segments(&fs) {
        fs.damage(&path, |file| file.clone_from(&bytes));
    }
    let dir = open_dir(&fs).unwrap();
    let before = fs.paths();
    for _ in 0..2 {
        let refused = dir.open_log(LOG).unwrap_err();
        assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains("belongs to log"), "{refused}");
        assert!(dir.create_log(LOG, Tip::EMPTY, b"").is_err(), "no log starts anew by itself");
    }
    assert_eq!(fs.paths(), before, "nothing was touched");
}

#[test]
fn one_strange_copy_of_a_header_is_healed_from_the_other() {
    let fs = SimFs::new();
    drop(two_logs(&fs));
    fs.power_cut(|_| true);
    for bytes in strangers(&fs) {
        for copy in [0, 4096] {
            let fs = fs.fork();
            for path in own_segments(&fs) {
                let header = copy..copy + 128;
                fs.damage(&path, |file| file[header.clone()].copy_from_slice(&bytes[header]));
            }
            let (_dir, log, report) = reopen(&fs);
            assert!(report.faulty.is_empty(), "copy at {copy}: {report:?}");
            assert_eq!(read_all(&log).len(), 100);
        }
    }
}
