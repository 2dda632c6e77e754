//! A disk that is full, fails or lies in the midst of work, and the order in which files are made.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::sim::{Pending, SimFs};
use quipu::storage::{Change, Config, DataDir, Error, FactKind, Tip};
use quipu::types::LogId;
use uuid::Uuid;

use crate::support::*;

#[test]
fn a_full_disk_refuses_appends_and_nothing_else() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    fs.set_capacity(Some(fs.used_bytes()));
    let refused = loop {
        match append(&mut log, 1, 100) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused}");
    assert!(refused.is_retriable());
    assert!(refused.to_string().contains("free some space"), "{refused}");
    let before = log.tip();
    assert!(append(&mut log, 1, 100).is_err());
    assert_eq!(log.tip(), before, "a refused append changes nothing");
    log.sync().unwrap();
    let entries = read_all(&log);
    assert_eq!(entries.len() as u64, before.index);
    log.record_watermark().unwrap();
    fs.set_capacity(None);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(essence(&read_all(&log))[..entries.len()], essence(&entries));
}

#[test]
fn appends_stop_at_the_low_water_mark_so_that_the_journal_has_room() {
    let fs = SimFs::new();
    let config = Config { low_water_bytes: 300_000, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    fs.set_capacity(Some(fs.used_bytes() + 310_000));
    let refused = loop {
        if let Err(error) = append(&mut log, 1, 500) {
            break error;
        }
    };
    match refused {
        Error::NoSpace { free, wanted, .. } => assert!(free >= 300_000 && wanted > free),
        other => panic!("{other}"),
    }
    for _ in 0..1000 {
        log.record_watermark().unwrap();
    }
    dir.journal().sync().unwrap();
}

#[test]
fn the_reserve_lets_the_journal_write_on_a_disk_without_a_byte_left() {
    let fs = SimFs::new();
    let config =
        Config { reserve_bytes: 200_000, journal_rewrite_bytes: 1 << 20, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    assert!(fs.paths().iter().any(|path| path.ends_with("reserve")));
    fs.set_capacity(Some(fs.used_bytes()));
    for _ in 0..1500 {
        log.record_watermark().unwrap();
    }
    dir.journal().sync().unwrap();
    assert!(!fs.paths().iter().any(|path| path.ends_with("reserve")), "it was given up");
    fs.set_capacity(None);
    dir.housekeep();
    assert!(fs.paths().iter().any(|path| path.ends_with("reserve")), "and taken back");
}

#[test]
fn spares_are_for_disks_with_room() {
    let fs = SimFs::new();
    let config = Config { spares_max: 3, low_water_bytes: 200_000, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    let is_spare = |path: &PathBuf| path.extension().is_some_and(|end| end == "spare");
    let spares = || fs.paths().iter().filter(|path| is_spare(path)).count();
    let room_left = Cell::new(None);
    let mut drop_most = || {
        for _ in 0..100 {
            append(&mut log, 1, 500).unwrap();
        }
        log.sync().unwrap();
        log.advance_log_start(log.reader().log_end_offset(), u64::MAX).unwrap();
        dir.journal().sync().unwrap();
        fs.set_capacity(room_left.take().map(|bytes| fs.used_bytes() + bytes));
        assert!(log.reclaim().unwrap() > 3);
        fs.set_capacity(None);
    };
    drop_most();
    assert_eq!(spares(), 3);
    fs.set_capacity(Some(fs.used_bytes()));
    dir.housekeep();
    assert_eq!(spares(), 0, "appends need the room");
    fs.set_capacity(None);
    room_left.set(Some(0));
    drop_most();
    assert_eq!(spares(), 0, "there is not room for three");
    room_left.set(Some(200_000 + 3 * 8192));
    drop_most();
    assert_eq!(spares(), 3);
    let mut other = dir.create_log(LogId(Uuid::from_u128(77)), Tip::EMPTY, b"").unwrap();
    other.sync().unwrap();
    fs.set_capacity(Some(fs.used_bytes() + 200_500));
    while append(&mut other, 1, 500).is_ok() {}
    assert_eq!(spares(), 3, "they are of no use to a log that grows");
    dir.housekeep();
    assert!(spares() < 3, "an append was refused above the low-water mark");
    append(&mut other, 1, 500).expect("there is room again");
}

#[test]
fn a_directory_can_be_opened_again_while_segments_wait_to_leave() {
    let temporary = tempfile::tempdir().unwrap();
    let config = Config { sync_threads: 1, ..Config::tiny() };
    let open = || DataDir::open(Arc::new(OsFs::new()), temporary.path(), config.clone());
    let dir = open().unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    for _ in 0..100 {
        append(&mut log, 1, 500).unwrap();
    }
    log.sync().unwrap();
    log.advance_log_start(90, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    drop(dir);
    log.reclaim_in_background().unwrap();
    drop(log);
    let dir = open().expect("nobody holds it any more");
    let (log, _) = dir.open_log(LOG).unwrap();
    assert!(read_all(&log).len() >= 10);
}

#[test]
fn every_sync_that_can_fail_ends_all_writing() {
    for failing in 0..6 {
        let fs = SimFs::new();
        let (dir, mut log) = new_log(&fs);
        for _ in 0..100 {
            append(&mut log, 1, 100).unwrap();
        }
        fs.fail_sync(failing);
        let synced = log.sync();
        assert!(synced.is_err(), "several segments are dirty, sync {failing} fails");
        assert_eq!(log.synced_index(), 0, "nothing of a failed round counts");
        assert!(matches!(log.sync(), Err(Error::Failed { .. })), "not even when asked again");
        assert!(matches!(append(&mut log, 1, 1), Err(Error::Failed { .. })));
        assert_eq!(read_all(&log).len(), 100, "reads go on");
        assert!(dir.close().is_err(), "and it is no orderly end");
    }
}

#[test]
fn a_journal_that_cannot_be_synced_ends_all_writing_too() {
    let fs = SimFs::new();
    let (dir, log) = new_log(&fs);
    let syncer = dir.start_syncer(Box::new(|_| {}));
    log.record_watermark().unwrap();
    fs.fail_sync(0);
    syncer.submit(quipu::storage::SyncRequest { log: None, token: 1 });
    assert!(syncer.run_round());
    assert!(matches!(dir.check(), Err(Error::Failed { .. })));
}

#[test]
fn a_new_segment_is_synced_before_it_has_its_name_and_its_name_before_it_counts() {
    let fs = SimFs::new();
    let dir = open_dir(&fs).unwrap();
    fs.start_trace();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"state").unwrap();
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    let name = "/data/logs/00000000-0000-0000-0000-000000000051";
    let file = "00000000000000000001-00000001.seg";
    let expected = [
        "create /data/spare/00000001.spare".to_owned(),
        "zero /data/spare/00000001.spare 0..5120".to_owned(),
        "write /data/spare/00000001.spare 0+128".to_owned(),
        "write /data/spare/00000001.spare 4096+128".to_owned(),
        "write /data/spare/00000001.spare 4608+5".to_owned(),
        "write /data/spare/00000001.spare 4616+184".to_owned(),
        "sync /data/spare/00000001.spare".to_owned(),
        format!("rename /data/spare/00000001.spare -> {name}/{file}"),
        format!("sync-dir {name}"),
        "sync-dir /data/logs".to_owned(),
    ];
    assert_eq!(fs.take_trace(), expected);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    let appended = [format!("write {name}/{file} 4800+184"), format!("sync {name}/{file}")];
    assert_eq!(fs.take_trace(), appended);
}

#[test]
fn a_rolled_log_makes_the_older_segment_durable_first() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    append(&mut log, 1, 100).unwrap();
    log.roll(&mut checkpoint).unwrap();
    append(&mut log, 1, 100).unwrap();
    fs.start_trace();
    log.sync().unwrap();
    let syncs: Vec<String> =
        fs.take_trace().into_iter().filter(|line| line.starts_with("sync ")).collect();
    assert_eq!(syncs.len(), 2);
    assert!(syncs[0].contains("00000000000000000001-"), "{syncs:?}");
    assert!(syncs[1].contains("spare"), "{syncs:?}");
}

#[test]
fn a_segment_is_removed_only_after_the_one_that_follows_has_its_name() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 5, 100).unwrap();
    log.sync().unwrap();
    log.roll(&mut checkpoint).unwrap();
    log.advance_log_start(5, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    assert_eq!(log.reclaim().unwrap(), 0, "a crash now would leave no segment at all");
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, mut log, _) = reopen(&fs);
    assert_eq!(log.tip().end_offset, 5);
    assert_eq!(log.reader().log_start_offset(), 5);
    append(&mut log, 1, 100).unwrap();
}

#[test]
fn a_recycled_file_is_not_used_before_its_old_name_is_gone_for_good() {
    let fs = SimFs::new();
    let config = Config { spares_max: 1, ..Config::tiny() };
    let dir = open_dir_with(&fs, config.clone()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    let fill = |log: &mut quipu::storage::Log| {
        let next = log.reader().segments().len() + 1;
        while log.reader().segments().len() < next {
            append(log, 1, 500).unwrap();
        }
        log.sync().unwrap();
    };
    (0..3).for_each(|_| fill(&mut log));
    let start = log.reader().segments()[1].base_offset();
    log.advance_log_start(start, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    assert_eq!(log.reclaim().unwrap(), 1);
    let pending = fs.pending();
    let names: Vec<_> = pending.iter().filter(|it| matches!(it, Pending::Name(_))).collect();
    assert!(names.is_empty(), "a power cut could bring back an old name: {names:?}");
    fill(&mut log);
    assert!(log.reader().segments().last().unwrap().header().is_recycled);
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    let dir = open_dir_with(&fs, config).unwrap();
    let (log, _) = dir.open_log(LOG).unwrap();
    assert_eq!(essence(&read_all(&log)), essence(&entries));
}

#[test]
fn a_full_disk_opens_by_means_of_the_reserve() {
    let fs = SimFs::new();
    let config = Config { reserve_bytes: 512 * 1024, ..Config::tiny() };
    drop(open_dir_with(&fs, config.clone()).unwrap());
    assert!(fs.paths().contains(&Path::new(ROOT).join("reserve")));
    fs.process_crash();
    fs.set_capacity(Some(fs.used_bytes()));
    drop(open_dir_with(&fs, config).unwrap());
    assert!(!fs.paths().contains(&Path::new(ROOT).join("reserve")), "it was given up");
}

#[test]
fn a_meta_journal_that_finds_no_room_to_be_rewritten_goes_on_as_it_is() {
    let fs = SimFs::new();
    let config = Config { journal_rewrite_bytes: 2 * 1024, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let journals = || fs.paths().into_iter().filter(|path| path.starts_with("/data/meta"));
    let record = |value: u64| {
        let value = Some(value.to_le_bytes().to_vec().into());
        dir.journal().record(&[Change { log: LOG, kind: FactKind::HardState, value }]).unwrap();
        dir.journal().sync()
    };
    record(0).unwrap();
    let before: Vec<_> = journals().collect();
    fs.set_capacity(Some(fs.used_bytes()));
    for value in 1..200 {
        record(value).unwrap();
    }
    assert!(journals().eq(before), "no half-written generation is left");
    drop(dir);
    fs.set_capacity(None);
    fs.power_cut(|_| false);
    let dir = open_dir(&fs).unwrap();
    let value = dir.journal().get(LOG, FactKind::HardState).unwrap();
    assert_eq!(value[..], 199u64.to_le_bytes());
}

#[test]
fn reads_that_return_less_than_was_asked_for_change_nothing() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..40 {
        append(&mut log, 1, 300).unwrap();
    }
    log.sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    fs.limit_reads(Some(13));
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.faulty.len(), report.last_index), (0, 40));
    assert_eq!(essence(&read_all(&log)), essence(&entries));
    assert_eq!(log.reader().scrub_segment(0, &mut |_| {}).unwrap(), []);
}
