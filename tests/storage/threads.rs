//! Sync threads, and readers beside a writer, on the real file system.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Access, Change, Config, DataDir, Error, FactKind, Log, SyncRequest, Tip};
use quipu::types::LogId;
use uuid::Uuid;

use crate::support::*;

const WAIT: Duration = Duration::from_secs(60);

fn real_dir(path: &Path, sync_filesystem_from: usize) -> DataDir {
    let config = Config {
        sync_threads: 2,
        sync_filesystem_from,
        segment_bytes: 64 * 1024,
        allocation_bytes_first: 8 * 1024,
        low_water_bytes: 0,
        reserve_bytes: 0,
        ..Config::default()
    };
    DataDir::open(Arc::new(OsFs::new()), path, config).unwrap()
}

fn new_logs(dir: &DataDir, count: u128) -> Vec<Log> {
    let create = |n| dir.create_log(LogId(Uuid::from_u128(n)), Tip::EMPTY, b"").unwrap();
    (1..=count).map(create).collect()
}

/// A log of so many entries of 1,000 bytes each.
fn filled_log(dir: &DataDir, entries: u64) -> Log {
    let mut log = new_logs(dir, 1).remove(0);
    for _ in 0..entries {
        append(&mut log, 1, 1000).unwrap();
    }
    log
}

#[test]
fn one_round_makes_many_logs_durable_and_reports_once() {
    for sync_filesystem_from in [3, 1000] {
        let temporary = tempfile::tempdir().unwrap();
        let dir = real_dir(temporary.path(), sync_filesystem_from);
        let (sender, rounds) = mpsc::sync_channel(1000);
        let syncer = dir.start_syncer(Box::new(move |round| {
            sender.send(round.unwrap().to_vec()).unwrap();
        }));
        let mut logs = new_logs(&dir, 20);
        let mut sent = 0;
        for _ in 0..10 {
            for log in &mut logs {
                append(log, 1, 300).unwrap();
                sent += 1;
                let request = SyncRequest { log: Some(log.syncer_handle()), token: sent };
                syncer.submit(request);
            }
        }
        let mut done = Vec::new();
        while done.len() < sent as usize {
            done.extend(rounds.recv_timeout(WAIT).unwrap());
        }
        done.sort_unstable();
        assert_eq!(done, (1..=sent).collect::<Vec<_>>(), "each token is reported once");
        assert!(logs.iter().all(|log| log.synced_index() == 10));
        drop((syncer, logs));
        drop(dir);
        let dir = real_dir(temporary.path(), sync_filesystem_from);
        for id in dir.logs().unwrap() {
            let (log, report) = dir.open_log(id).unwrap();
            assert_eq!(report.last_index, 10);
            assert_eq!(read_all(&log).len(), 10);
        }
    }
}

#[test]
fn readers_on_other_threads_see_whole_entries_only() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = real_dir(temporary.path(), 9);
    let mut log = new_logs(&dir, 1).remove(0);
    let reader = log.reader();
    let (is_over, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let last = reader.last_index();
                    let first = reader.first_index();
                    match read_from(&reader, first.max(last.saturating_sub(500))) {
                        Ok(entries) => {
                            assert!(entries.last().is_none_or(|e| e.header.index >= last));
                            for entry in entries {
                                let (index, len) = (entry.header.index, entry.payload.len());
                                assert_eq!(entry.payload, payload(index, len));
                            }
                        }
                        Err(Error::IndexOutOfRange { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                    passes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 0..6000u64 {
            append(&mut log, 1, 100 + (n % 700) as usize).unwrap();
            if n.is_multiple_of(500) {
                log.sync().unwrap();
                log.advance_log_start(n.saturating_sub(2000), u64::MAX).unwrap();
                dir.journal().sync().unwrap();
                log.reclaim().unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(passes.load(Ordering::Relaxed) > 0);
}

#[test]
fn slices_outlive_the_log_the_file_and_the_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = real_dir(temporary.path(), 9);
    let mut log = filled_log(&dir, 100);
    log.sync().unwrap();
    let mut out = Vec::new();
    log.reader().read(1, 10, 1 << 20, Access::MayBlock, &mut out).unwrap();
    log.advance_log_start(90, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    assert!(log.reclaim().unwrap() > 0);
    for _ in 0..200 {
        append(&mut log, 1, 1000).unwrap();
    }
    log.sync().unwrap();
    drop((log, dir));
    drop(temporary);
    assert_eq!(out.len(), 10);
    assert!(out.iter().all(|entry| entry.payload == payload(entry.header.index, 1000)));
}

#[test]
fn hot_reads_never_wait_and_say_so() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = real_dir(temporary.path(), 9);
    let log = filled_log(&dir, 300);
    let mut out = Vec::new();
    log.reader().read(1, 10, 1 << 20, Access::Hot, &mut out).unwrap();
    assert_eq!(out.len(), 10, "what was just written is in memory");
    out.clear();
    let id = log.id();
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let dir = real_dir(temporary.path(), 9);
    let (log, _) = dir.open_log(id).unwrap();
    let cold = log.reader().read(1, 10, 1 << 20, Access::Hot, &mut out);
    assert!(matches!(cold, Err(Error::Cold)), "the segment is not even open: {cold:?}");
    log.reader().read(1, 10, 1 << 20, Access::MayBlock, &mut out).unwrap();
    out.clear();
    log.reader().read(1, 10, 1 << 20, Access::Hot, &mut out).unwrap();
    assert_eq!(out.len(), 10, "now it is in memory");
}

#[test]
fn rounds_without_threads_run_on_the_caller() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    let seen = Arc::new(AtomicU64::new(0));
    let reported = seen.clone();
    let syncer = dir.start_syncer(Box::new(move |round| {
        reported.store(round.unwrap().iter().sum(), Ordering::Relaxed);
    }));
    assert!(!syncer.run_round(), "nothing waits");
    append(&mut log, 1, 10).unwrap();
    syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 5 });
    syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 6 });
    assert!(syncer.run_round());
    assert_eq!((seen.load(Ordering::Relaxed), log.synced_index()), (11, 1));
}

#[test]
fn the_sync_of_a_log_waits_for_what_is_recorded_and_not_for_what_is_noted() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    let syncer = dir.start_syncer(Box::new(|round| assert!(round.is_ok())));
    let vote = [Change {
        log: log.id(),
        kind: FactKind::HardState,
        value: Some(bytes::Bytes::from_static(b"a vote")),
    }];
    let mut round = |of_log: bool| {
        append(&mut log, 1, 10).unwrap();
        let log = of_log.then(|| log.syncer_handle());
        syncer.submit(SyncRequest { log, token: 1 });
        assert!(syncer.run_round());
    };
    round(false);
    dir.journal().note(&vote).unwrap();
    round(true);
    assert!(dir.journal().is_dirty(), "nobody waits for it");
    dir.journal().record(&vote).unwrap();
    round(true);
    assert!(!dir.journal().is_dirty());
    dir.journal().note(&vote).unwrap();
    round(false);
    assert!(!dir.journal().is_dirty(), "it was asked for");
}

#[test]
fn a_file_is_not_used_again_while_a_slice_of_it_is_alive() {
    let temporary = tempfile::tempdir().unwrap();
    let config = Config {
        spares_max: 4,
        open_segments_max: 1,
        segment_bytes: 16 * 1024,
        low_water_bytes: 0,
        reserve_bytes: 0,
        sync_threads: 0,
        ..Config::default()
    };
    let dir = DataDir::open(Arc::new(OsFs::new()), temporary.path(), config).unwrap();
    let mut log = filled_log(&dir, 100);
    log.sync().unwrap();
    let mut borrowed = Vec::new();
    log.reader().read(1, 10, 1 << 20, Access::MayBlock, &mut borrowed).unwrap();
    // Reading on closes the first segments, but the slices keep their mapping alive.
    let first = log.reader().segments()[0].clone();
    for _ in 0..10 {
        for index in [30, 45, 60, 75, 90] {
            log.reader().header(index, Access::MayBlock).unwrap();
        }
    }
    assert!(!first.is_open(), "others were opened in its place");
    log.advance_log_start(60, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    assert!(log.reclaim().unwrap() > 2);
    let mut recycled = 0;
    for _ in 0..200 {
        append(&mut log, 1, 1000).unwrap();
        log.sync().unwrap();
    }
    recycled += log.reader().segments().iter().filter(|s| s.header().is_recycled).count();
    assert!(recycled > 0, "files that nobody borrowed are used again");
    assert!(borrowed.iter().all(|entry| entry.payload == payload(entry.header.index, 1000)));
    assert!(first.checkpoint().is_err(), "a removed segment does not open again");
}

/// Drops segments before `start` and leaves their files to the background.
fn drop_before(dir: &DataDir, log: &mut Log, start: u64) {
    log.sync().unwrap();
    log.advance_log_start(start, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    log.reclaim_in_background().unwrap();
}

#[test]
fn dropped_segments_leave_in_the_background() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = real_dir(temporary.path(), 9);
    let mut log = filled_log(&dir, 1000);
    let files = || {
        let logs = std::fs::read_dir(temporary.path().join("logs")).unwrap();
        logs.map(|log| std::fs::read_dir(log.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    log.sync().unwrap();
    let before = files();
    drop_before(&dir, &mut log, 900);
    let kept = log.reader().segments().len();
    assert!(before > kept + 5, "{before} files, {kept} segments stay");
    let started = Instant::now();
    // An index may stand beside each segment.
    while files() > 2 * kept {
        assert!(started.elapsed() < WAIT, "{} files are still there", files());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(read_all(&log).len() >= 100, "and the rest is there");
}

#[test]
fn what_leaves_never_takes_files_of_another_life_of_its_log() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = real_dir(temporary.path(), 9);
    for life in 0..20 {
        let mut log = filled_log(&dir, 600);
        drop_before(&dir, &mut log, 500);
        drop(log);
        dir.delete_log(LogId(Uuid::from_u128(1))).unwrap();
        let log = filled_log(&dir, 600);
        log.sync().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let place = temporary.path().join("logs").join(log.id().to_string());
        for segment in log.reader().segments().iter() {
            let file = segment.header().file_name();
            assert!(place.join(&file).exists(), "{file} has gone in life {life}");
        }
        drop(log);
        dir.delete_log(LogId(Uuid::from_u128(1))).unwrap();
    }
}
