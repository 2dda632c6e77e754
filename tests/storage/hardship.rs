//! Work that goes on beside readers, repairs, retention and bad sectors.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::sim::{Pending, SimFs};
use quipu::storage::fs::{Fs, OpenMode};
use quipu::storage::{Access, Case, Config, DataDir, Error, Policy, Tip};

use crate::doubles::*;
use crate::support::*;

#[test]
fn a_file_is_not_recycled_while_a_slice_of_it_is_alive() {
    let temporary = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: 16 * 1024,
        allocation_bytes_first: 16 * 1024,
        spares_max: 4,
        open_segments_max: 1,
        ..Config::tiny()
    };
    let dir = DataDir::open(Arc::new(OsFs::new()), temporary.path(), config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    for _ in 0..60 {
        append(&mut log, 1, 1000).unwrap();
        log.sync().unwrap();
    }
    let mut held = Vec::new();
    log.reader().read(1, 5, 1 << 20, Access::MayBlock, &mut held).unwrap();
    // Other segments are read: the clock closes the first one, though slices of it are alive.
    for _ in 0..3 {
        for index in 20..60 {
            let mut out = Vec::new();
            log.reader().read(index, index, 1, Access::MayBlock, &mut out).unwrap();
        }
    }
    assert!(!log.reader().segments()[0].is_open(), "evicted");
    log.advance_log_start(50, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    log.reclaim().unwrap();
    for _ in 0..100 {
        append(&mut log, 1, 1000).unwrap();
        log.sync().unwrap();
    }
    for entry in &held {
        assert!(entry.is_intact(), "entry {} changed in the reader's hands", entry.header.index);
    }
}

#[test]
fn retention_drops_segments_that_hold_no_records() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    // A group commits for ever and nobody produces.
    for _ in 0..300 {
        append(&mut log, 0, 100).unwrap();
    }
    log.sync().unwrap();
    let before = log.reader().segments().len();
    let policy = Policy { bytes: Some(10_000), ..Policy::default() };
    let dropped = log.retain(&policy, u64::MAX, 0).unwrap();
    dir.journal().sync().unwrap();
    let after = log.reader().segments().len();
    assert!(before - after == dropped && dropped > 0, "{dropped} dropped, {before} -> {after}");
}

#[test]
fn a_bad_sector_does_not_make_a_scan_read_the_file_a_hundred_times() {
    let fs = SimFs::new();
    let config =
        Config { segment_bytes: 256 * 1024, allocation_bytes_max: 256 * 1024, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    for _ in 0..200 {
        append(&mut log, 1, 1000).unwrap();
    }
    log.sync().unwrap();
    log.roll(&mut checkpoint).unwrap();
    log.sync().unwrap();
    let path = segment_paths(&fs)[0].clone();
    fs.damage(&path, |bytes| bytes[4608 + 100] ^= 1);
    fs.make_unreadable(&path, 400);
    let mut reads = 0u64;
    let mut bytes = 0u64;
    let found = log.reader().scrub_segment(0, &mut |n| {
        reads += 1;
        bytes += n;
    });
    assert!(!found.unwrap().is_empty());
    assert!(bytes < 100 * 256 * 1024, "{reads} reads of {bytes} bytes for a file of 256 KiB");
}

#[test]
fn the_lock_is_held_while_a_log_can_write() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    drop(dir);
    let second = open_dir(&fs);
    let wrote = append(&mut log, 1, 100).and_then(|_| log.sync());
    assert!(second.is_err() || wrote.is_err(), "two writers have the directory");
}

#[test]
fn a_read_without_a_limit_does_not_overflow() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    fill(&mut log, 3);
    let mut out = Vec::new();
    log.reader().read(1, u64::MAX, usize::MAX, Access::MayBlock, &mut out).unwrap();
    assert_eq!(out.len(), 3);
}

#[test]
fn quarantine_never_replaces_what_is_there() {
    let fs = SimFs::new();
    let (dir, log) = new_log(&fs);
    drop((dir, log));
    for text in [b"first", b"other"] {
        fs.process_crash();
        create(&fs, &log_dir().join("notes.txt"), text);
        let (dir, log, _) = reopen(&fs);
        drop((dir, log));
    }
    let kept = fs
        .paths()
        .into_iter()
        .filter(|p| p.starts_with(Path::new(ROOT).join("quarantine")))
        .count();
    assert_eq!(kept, 2, "a file in quarantine was deleted by the next one");
}

#[test]
fn scrubbing_reports_a_checkpoint_that_cannot_be_read() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    fill(&mut log, 60);
    let path = segment_paths(&fs)[1].clone();
    let checkpoint_sector = 4608 / 512;
    // Make the checkpoint fill its own sector, so that no entry shares it.
    let dir2 = log.reader().segments()[1].clone();
    assert!(dir2.header().has_checkpoint);
    fs.make_unreadable(&path, checkpoint_sector);
    let found = log.reader().scrub_segment(1, &mut |_| {}).unwrap();
    let base = dir2.base_index();
    let about_head = found.iter().any(|range| range.last_index + 1 == base);
    assert!(about_head, "only entries are reported: {found:?}");
}

#[test]
fn a_hiccup_in_reclaim_does_not_stop_it_for_ever() {
    let sim = SimFs::new();
    let fs = DirFaultFs { inner: sim.clone(), ..DirFaultFs::default() };
    let config = Config { allocation_bytes_first: 8 * 1024, ..Config::tiny() };
    let dir = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 100);
    log.advance_log_start(90, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    *fs.broken.lock().unwrap() = Some(Path::new(ROOT).join("spare"));
    assert!(log.reclaim().is_err());
    *fs.broken.lock().unwrap() = None;
    if dir.check().is_err() {
        return;
    }
    log.reclaim().expect("the rest is tried again next time");
}

#[test]
fn a_stale_watermark_does_not_survive_a_second_truncation() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 20);
    log.truncate_suffix(16, 5, None).unwrap();
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (dir, mut log, _) = reopen(&fs);
    log.truncate_suffix(11, 5, None).unwrap();
    fill(&mut log, 1);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, _log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 11), "{report:?}");
}

#[test]
fn a_failed_journal_write_is_final() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 1);
    fs.fail_write(1, 0);
    assert!(log.record_watermark().is_err());
    assert!(dir.check().is_err() && dir.journal().record(&[vote(b"x")]).is_err(), "writes go on");
}

#[test]
fn a_repair_that_is_refused_leaves_no_file() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 10);
    let path = segment_paths(&fs)[0].clone();
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    fs.damage(&path, |bytes| bytes[4608 + 8 * 184..].fill(0));
    let (_dir, mut log, _) = reopen(&fs);
    let mut wrong = entries[8..10].to_vec();
    wrong[1].header.term = 9;
    let before = fs.paths().len();
    for _ in 0..3 {
        assert!(matches!(log.repair(&wrong), Err(Error::RepairRefused(_))));
    }
    assert_eq!(fs.paths().len(), before, "{:?}", fs.paths());
}

#[test]
fn scrubbed_head_damage_is_forgotten_once_repaired() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    let entries = read_all(&log);
    let segment = log.reader().segments()[1].clone();
    fs.damage(&segment_paths(&fs)[1].clone(), |bytes| bytes[4096 + 20] ^= 1);
    assert_eq!(log.reader().scrub_segment(1, &mut |_| {}).unwrap().len(), 1);
    let first = segment.base_index() as usize;
    log.repair(&entries[first - 1..first]).unwrap();
    assert!(log.reader().scrub_segment(1, &mut |_| {}).unwrap().is_empty(), "the file is good");
    assert!(log.reader().faulty().is_empty(), "{:?}", log.reader().faulty());
}

#[test]
fn an_index_written_too_early_does_not_outlive_a_torn_tail() {
    let sim = SimFs::new();
    let fs = DirFaultFs { inner: sim.clone(), ..DirFaultFs::default() };
    let config = Config { segment_bytes: 20 * 1024, ..Config::tiny() };
    let open = || DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), config.clone()).unwrap();
    let dir = open();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 300).unwrap();
    // A sync is under way; meanwhile the writer goes on and seals the segment.
    let (reached, at_sync) = std::sync::mpsc::sync_channel(1);
    let (go_on, waiting) = std::sync::mpsc::sync_channel::<()>(1);
    *fs.hook.lock().unwrap() = Some(Box::new(move || {
        reached.send(()).unwrap();
        waiting.recv().unwrap();
        false
    }));
    let handle = log.syncer_handle();
    let syncing = std::thread::spawn(move || handle.sync());
    at_sync.recv().unwrap();
    for _ in 0..20 {
        append(&mut log, 1, 300).unwrap();
    }
    log.roll(&mut checkpoint).unwrap();
    go_on.send(()).unwrap();
    syncing.join().unwrap().unwrap();
    drop((dir, log));
    // The power goes: the index reached the disk, the entries it tells of did not.
    let is_index = |path: &Path| path.extension().is_some_and(|e| e == "idx");
    sim.power_cut(|pending| match pending {
        Pending::Sector { path, .. } | Pending::Length(path) | Pending::Name(path) => {
            is_index(path)
        }
    });
    let dir = open();
    let (mut log, report) = dir.open_log(LOG).unwrap();
    assert_eq!((report.case, report.last_index), (Case::Whole, 1));
    // Other entries follow; the segment is full, the next one has its name, then the process dies.
    for _ in 0..20 {
        append(&mut log, 1, 250).unwrap();
    }
    log.roll(&mut checkpoint).unwrap();
    append(&mut log, 1, 250).unwrap();
    *fs.hook.lock().unwrap() = Some(Box::new(|| true));
    assert!(log.sync().is_err());
    drop((dir, log));
    sim.process_crash();
    let dir = open();
    let (log, report) = dir.open_log(LOG).unwrap();
    assert!(report.faulty.is_empty());
    for index in 1..=22 {
        let header = log.reader().header(index, Access::MayBlock);
        assert!(header.is_ok(), "entry {index} is good and called {header:?}");
    }
}

#[test]
fn removals_at_open_wait_until_what_replaces_them_has_its_name_for_good() {
    let sim = SimFs::new();
    let fs = DirFaultFs { inner: sim.clone(), ..DirFaultFs::default() };
    let dir = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), Config::tiny()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 10);
    let tip = Tip { index: 1000, term: 3, end_offset: 5000, append_time_ms: 1 << 40, chain: 9 };
    log.reset(tip, b"snapshot").unwrap();
    // The process dies after the rename, before the directory is synced.
    *fs.broken.lock().unwrap() = Some(log_dir());
    assert!(log.sync().is_err());
    drop((dir, log));
    sim.process_crash();
    let (dir, log, _) = reopen(&sim);
    assert_eq!(log.tip().index, 1000);
    drop((dir, log));
    // The removal of the old segment survives, the new one's name does not.
    let old = |p: &Path| p.to_str().unwrap().contains("00000000000000000001-");
    sim.power_cut(|pending| matches!(pending, Pending::Name(path) if old(path)));
    let dir = open_dir(&sim).unwrap();
    let opened = dir.open_log(LOG);
    assert!(opened.is_ok(), "neither the old log nor the snapshot is left: {:?}", opened.err());
}

#[test]
fn a_bad_header_of_a_lost_tail_does_not_swallow_what_comes_after_its_repair() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 25);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    let last = segment_paths(&fs).pop().unwrap();
    break_both_headers(&fs, &last);
    let (dir, mut log, report) = reopen(&fs);
    let lost = log.lost_tail().expect("the tail is lost");
    assert_eq!(report.last_index, 25);
    log.repair(&entries[lost.first_index as usize - 1..]).unwrap();
    assert!(log.reader().faulty().is_empty(), "repaired");
    fill(&mut log, 60);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| true);
    let (_dir, log, report) = reopen(&fs);
    assert!(report.faulty.is_empty(), "{report:?}");
    assert_eq!(read_all(&log).len(), 85);
}

#[test]
fn a_file_is_not_recycled_under_a_reader_that_is_about_to_slice_it() {
    let temporary = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: 16 * 1024,
        allocation_bytes_first: 16 * 1024,
        spares_max: 4,
        open_segments_max: 100,
        ..Config::tiny()
    };
    let pause = Arc::new(Pause::default());
    let fs = PausingFs { inner: OsFs::new(), pause: pause.clone() };
    let dir = DataDir::open(Arc::new(fs), temporary.path(), config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    for _ in 0..60 {
        append(&mut log, 1, 1000).unwrap();
    }
    log.sync().unwrap();
    let reader = log.reader();
    pause.is_armed.store(true, Ordering::SeqCst);
    let reading = std::thread::spawn(move || {
        let mut out = Vec::new();
        reader.read(1, 5, 1 << 20, Access::MayBlock, &mut out).map(|()| out)
    });
    while !pause.is_reached.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    log.advance_log_start(50, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    log.reclaim().unwrap();
    pause.is_over.store(true, Ordering::SeqCst);
    let held = reading.join().unwrap().unwrap_or_default();
    for _ in 0..100 {
        append(&mut log, 1, 1000).unwrap();
    }
    for entry in &held {
        assert!(entry.is_intact(), "entry {} changed after it was verified", entry.header.index);
    }
}

#[test]
fn a_hostile_synced_index_does_not_panic_recovery() {
    // Found behind a bad spot, one intact header with an absurd synced index decides the watermark.
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 10);
    let seed = log.reader().segments()[0].header().seed();
    let mut header = log.reader().header(10, Access::MayBlock).unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    header.synced_index = u64::MAX;
    let bytes = header.encode(seed);
    fs.damage(&segment_paths(&fs)[0].clone(), |file| {
        file[4608 + 9 * 184..][..80].copy_from_slice(&bytes);
        file[4608 + 7 * 184 + 90] ^= 1;
    });
    let (_dir, log, report) = reopen(&fs);
    let end = log.lost_tail().map_or(log.tip().index, |lost| lost.last_index);
    assert!(end <= 10, "the log promises entries up to {end}: {:?}", report.case);
}

#[test]
fn a_mapping_without_slices_is_not_borrowed() {
    let temporary = tempfile::tempdir().unwrap();
    let fs = OsFs::new();
    let file = fs.open(&temporary.path().join("file"), OpenMode::Create).unwrap();
    file.write_zeros(0, 8192).unwrap();
    let lease = Arc::new(());
    let map = file.map(8192, lease.clone()).unwrap();
    let slice = map.slice(0, 10);
    drop(map);
    assert_eq!(Arc::strong_count(&lease), 2, "the slice keeps the lease");
    drop(slice);
    assert_eq!(Arc::strong_count(&lease), 1, "and gives it back");
}

#[test]
fn the_disk_can_be_read_past_the_cache_at_any_position() {
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (fs, path) = (OsFs::new(), temporary.path().join("file"));
    let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
    let file = fs.open(&path, OpenMode::Create).unwrap();
    file.write_at(&[IoSlice::new(&bytes)], 0).unwrap();
    file.sync().unwrap();
    let disk = fs.open(&path, OpenMode::ReadDisk).unwrap();
    for (from, count) in
        [(0, 1), (0, 10_000), (4_095, 2), (4_096, 4_096), (5_000, 5_000), (1, 8_999)]
    {
        let mut found = vec![0; count];
        assert_eq!(disk.read_at(&mut found, from as u64).unwrap(), count);
        assert_eq!(found, bytes[from..from + count], "{count} bytes from {from}");
    }
    let mut found = vec![0; 100];
    assert_eq!(disk.read_at(&mut found, 9_990).unwrap(), 10, "to the end and no further");
    assert_eq!(found[..10], bytes[9_990..]);
    assert_eq!(disk.read_at(&mut found, 20_000).unwrap(), 0);
}

#[test]
fn a_repair_that_joins_two_segments_can_be_read() {
    use std::os::unix::fs::FileExt as _;
    let temporary = tempfile::tempdir().unwrap();
    let big = 33 * 1024 * 1024;
    let config =
        Config { segment_bytes: big, allocation_bytes_max: big, spares_max: 0, ..Config::tiny() };
    let open = || DataDir::open(Arc::new(OsFs::new()), temporary.path(), config.clone()).unwrap();
    let dir = open();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    for _ in 0..60 {
        append(&mut log, 1, 1 << 20).unwrap();
    }
    log.sync().unwrap();
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_from(&log.reader(), 1).unwrap();
    let last = log.reader().segments().last().unwrap().header().file_name();
    drop((dir, log));
    let path = temporary.path().join("logs").join(LOG.to_string()).join(last);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"bad", 20).unwrap();
    file.write_all_at(b"bad", 4096 + 20).unwrap();
    let dir = open();
    let (mut log, _) = dir.open_log(LOG).unwrap();
    let lost = log.lost_tail().unwrap();
    log.repair(&entries[lost.first_index as usize - 1..]).unwrap();
    let mut out = Vec::new();
    log.reader().read(60, 60, 1, Access::MayBlock, &mut out).unwrap();
    assert_eq!(out.len(), 1);
}
