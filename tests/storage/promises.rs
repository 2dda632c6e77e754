//! What neither a restart nor a failure may break: votes, cuts, starts, names, promises.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quipu::storage::fs::os::OsFs;
use quipu::storage::fs::sim::{Pending, SimFs};
use quipu::storage::{Access, Case, Config, DataDir, FactKind, Journal, SyncRequest, Tip};

use crate::doubles::*;
use crate::support::*;

#[test]
fn an_unreadable_header_never_deletes_good_segments() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    // Damage in the second segment is found and repaired: its file now has the highest generation.
    let second = log.reader().segments()[1].clone();
    let base = second.base_index();
    let path = segment_paths(&fs)[1].clone();
    fs.damage(&path, |bytes| bytes[5200] ^= 1);
    let found = log.reader().scrub_segment(1, &mut |_| {}).unwrap();
    assert!(!found.is_empty());
    log.repair(&entries[base as usize - 1..]).unwrap();
    log.reclaim().unwrap();
    let before = segment_paths(&fs);
    drop((dir, log));
    fs.power_cut(|_| true);
    // Later both copies of that segment's header go bad.
    let repaired = segment_paths(&fs)[1].clone();
    break_both_headers(&fs, &repaired);
    let (_dir, _log, report) = reopen(&fs);
    let after = segment_paths(&fs);
    assert!(!report.faulty.is_empty(), "the hole is told");
    assert_eq!(
        after.len() + 1,
        before.len(),
        "segments with acknowledged entries were deleted: {report:?}"
    );
}

#[test]
fn a_name_found_after_a_process_crash_is_made_durable_before_it_is_believed() {
    let sim = SimFs::new();
    let fs = DirFaultFs { inner: sim.clone(), ..DirFaultFs::default() };
    let dir = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), Config::tiny()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 100).unwrap();
    // The process dies between the rename and the sync of the directory.
    *fs.broken.lock().unwrap() = Some(log_dir());
    assert!(log.sync().is_err());
    drop((dir, log));
    sim.process_crash();
    let (dir, mut log, _) = reopen(&sim);
    fill(&mut log, 5);
    assert_eq!(log.synced_index(), 6, "acknowledged");
    drop((dir, log));
    sim.power_cut(|_| false);
    let dir = open_dir(&sim).unwrap();
    let (log, _) = dir.open_log(LOG).expect("the log with six acknowledged entries is gone");
    assert_eq!(log.tip().index, 6);
}

#[test]
fn a_named_last_segment_with_a_bad_header_is_damage_and_not_residue() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    assert_eq!(log.synced_index(), 100);
    drop((dir, log));
    fs.power_cut(|_| false);
    let last = segment_paths(&fs).pop().unwrap();
    break_both_headers(&fs, &last);
    let (_dir, log, report) = reopen(&fs);
    assert!(
        !report.faulty.is_empty() || log.lost_tail().is_some(),
        "acknowledged entries {}..=100 vanished without a word: {report:?}",
        log.tip().index + 1
    );
}

#[test]
fn facts_of_a_quarantined_log_do_not_delete_segments_of_its_successor() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    log.advance_log_start(90, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    drop(log);
    dir.quarantine_log(LOG).unwrap();
    // The metadata catches up: the replica belongs here after all and starts anew.
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 80);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(log.reader().first_index(), 1, "acknowledged entries were deleted: {report:?}");
}

#[test]
fn facts_of_a_quarantined_log_do_not_promise_entries_of_its_successor() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop(log);
    dir.quarantine_log(LOG).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 10);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, _log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 10));
}

#[test]
fn a_deletion_is_durable_before_the_id_can_be_used_again() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    log.advance_log_start(90, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    drop(log);
    dir.delete_log(LOG).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 80);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(log.reader().first_index(), 1, "acknowledged entries were deleted: {report:?}");
}

#[test]
fn a_refused_record_never_replaces_a_later_durable_one() {
    let fs = SimFs::new();
    let open = || {
        Journal::open(
            Arc::new(fs.clone()),
            Path::new("/meta"),
            true,
            1 << 20,
            Box::new(|| false),
            Arc::default(),
        )
    };
    let journal = open().unwrap();
    // The write to the second copy fails: the caller is told that nothing was recorded.
    fs.fail_write(3, 0);
    let long = [b'x'; 500];
    let refused = journal.record(&[vote(&long), vote(&long), vote(b"refused")]);
    if refused.is_ok() {
        panic!("the fault hit something else");
    }
    let mut good = false;
    for text in [b"term 1", b"term 2", b"term 3"] {
        good = journal.record(&[vote(text)]).is_ok() && journal.sync().is_ok();
    }
    if !good {
        return; // Refusing everything from the failed write on would be right.
    }
    fs.power_cut(|_| false);
    let journal = open().unwrap();
    let found = journal.get(LOG, FactKind::HardState);
    assert_eq!(found, Some(Bytes::from_static(b"term 3")), "a durable vote was forgotten");
}

#[test]
fn a_journal_sync_after_a_failed_one_is_not_believed() {
    let fs = SimFs::new();
    let open = || {
        Journal::open(
            Arc::new(fs.clone()),
            Path::new("/meta"),
            true,
            1 << 20,
            Box::new(|| false),
            Arc::default(),
        )
    };
    let journal = open().unwrap();
    let sequence = journal.record(&[vote(b"for node 2")]).unwrap();
    fs.fail_sync(0);
    assert!(journal.sync().is_err());
    fs.fail_sync(1);
    assert!(journal.sync().is_err());
    // Both copies were marked clean without reaching the disk.
    let second = journal.sync();
    let says_durable = second.is_ok() && journal.synced_sequence() >= sequence;
    fs.fail_sync(u64::MAX);
    fs.power_cut(|_| false);
    let kept = open().unwrap().get(LOG, FactKind::HardState).is_some();
    assert!(kept || !says_durable, "a vote was reported durable and is gone");
}

#[test]
fn a_rewrite_that_fails_halfway_does_not_shadow_what_is_recorded_after_it() {
    let fs = SimFs::new();
    let open = || {
        Journal::open(
            Arc::new(fs.clone()),
            Path::new("/meta"),
            true,
            4096,
            Box::new(|| false),
            Arc::default(),
        )
    };
    let journal = open().unwrap();
    for n in 0..200u32 {
        journal.record(&[vote(&n.to_le_bytes())]).unwrap();
    }
    // Two syncs make it durable; the rewrite then syncs copy a and fails at copy b.
    fs.fail_sync(3);
    journal.sync().expect("the records are durable, whatever becomes of the rewrite");
    let sequence = journal.record(&[vote(b"the last vote")]).unwrap();
    fs.fail_sync(2);
    let _ = journal.sync();
    fs.fail_sync(u64::MAX);
    if journal.synced_sequence() < sequence {
        return;
    }
    fs.power_cut(|_| true);
    let found = open().unwrap().get(LOG, FactKind::HardState);
    assert_eq!(found, Some(Bytes::from_static(b"the last vote")));
}

#[test]
fn a_data_directory_without_its_journal_is_amnesia_and_not_a_fresh_start() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 10);
    dir.journal().record(&[vote(b"for node 2 in term 9")]).unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let journals: Vec<_> =
        fs.paths().into_iter().filter(|p| p.starts_with(Path::new(ROOT).join("meta"))).collect();
    for path in journals {
        remove(&fs, &path);
    }
    let opened = open_dir(&fs);
    assert!(opened.is_err(), "opened as {:?}, its votes forgotten", opened.unwrap().class());
}

#[test]
fn cutting_a_torn_tail_keeps_the_only_checkpoint() {
    let fs = SimFs::new();
    let dir = open_dir(&fs).unwrap();
    // A follower starts from a snapshot at entry 1000.
    let tip = Tip { index: 1000, term: 3, end_offset: 5000, append_time_ms: 7, chain: 9 };
    let mut log = dir.create_log(LOG, tip, b"the state at entry 1000").unwrap();
    log.sync().unwrap();
    append(&mut log, 1, 600).unwrap();
    append(&mut log, 1, 600).unwrap();
    append(&mut log, 1, 600).unwrap();
    drop((dir, log));
    // Nothing of the three is promised; the later ones happen to survive.
    fs.power_cut(|pending| !matches!(pending, Pending::Sector { sector: 9, .. }));
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::TornOutOfOrder, 1000));
    let checkpoint = log.reader().checkpoint_before(u64::MAX).unwrap();
    assert!(checkpoint.is_some(), "the snapshot that was durable is gone");
}

#[test]
fn repairing_a_truncating_segment_keeps_the_cut_in_force() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 15);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    log.truncate_suffix(11, 10, None).unwrap();
    fill(&mut log, 3);
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    let last = segment_paths(&fs).pop().unwrap();
    fs.damage(&last, |bytes| bytes[4608 + 90] ^= 1);
    let (dir, mut log, report) = reopen(&fs);
    assert_eq!(report.case, Case::CorruptMiddle, "{report:?}");
    log.repair(&entries[10..11]).unwrap();
    log.reclaim().unwrap();
    log.sync().unwrap();
    assert_eq!(log.tip().index, 13);
    drop((dir, log));
    fs.power_cut(|_| true);
    let (_dir, _log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 13), "{report:?}");
}

#[test]
fn dropped_segments_stay_dropped_when_their_cut_was_repaired() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    let second = log.reader().segments()[1].base_index();
    log.truncate_suffix(second, second - 1, None).unwrap();
    fill(&mut log, 3);
    // The segment that made the cut is repaired before the dropped ones were reclaimed.
    let name = format!("{second:020}");
    let is_cut = |p: &Path| p.to_str().unwrap().contains(&name);
    let cut = segment_paths(&fs).into_iter().rfind(|p| is_cut(p)).unwrap();
    let entries = read_all(&log);
    fs.damage(&cut, |bytes| bytes[4608 + 90] ^= 1);
    log.repair(&entries[second as usize - 1..]).unwrap();
    log.reclaim().unwrap();
    drop((dir, log));
    // Nothing synced the directory after the removals: some survive the power cut and some do not.
    fs.power_cut(|pending| matches!(pending, Pending::Name(path) if is_cut(path)));
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(log.tip().index, second + 2, "dropped entries are back: {report:?}");
}

#[test]
fn a_generation_is_never_used_twice() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 20);
    // The log rolls; before that is synced, the idle log's watermark is recorded.
    log.roll(&mut checkpoint).unwrap();
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (dir, mut log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 20));
    log.truncate_suffix(11, 10, None).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, _log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 10), "{report:?}");
}

#[test]
fn a_reset_log_has_no_hole_where_the_old_one_was() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    log.advance_log_start(50, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    let tip = Tip { index: 1000, term: 3, end_offset: 5000, append_time_ms: 1 << 40, chain: 9 };
    log.reset(tip, b"snapshot").unwrap();
    fill(&mut log, 3);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, _log, report) = reopen(&fs);
    assert!(report.faulty.is_empty(), "{report:?}");
}

#[test]
fn a_missing_first_segment_is_damage_and_not_retention() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 100);
    drop((dir, log));
    fs.power_cut(|_| false);
    remove(&fs, &segment_paths(&fs)[0]);
    let (_dir, log, report) = reopen(&fs);
    assert!(
        !report.faulty.is_empty(),
        "entries 1 to {} vanished without a word",
        log.reader().first_index() - 1
    );
}

#[test]
fn the_index_of_the_end_offset_belongs_to_that_offset() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    let reader = log.reader();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checker = scope.spawn(|| {
            let mut bad = Vec::new();
            while !is_over.load(Ordering::Relaxed) && bad.is_empty() {
                // One record an entry: offset n is in entry n + 1.
                let end = reader.log_end_offset();
                match reader.index_of_offset(end, Access::MayBlock) {
                    Ok(index) if index == end + 1 => {}
                    other => bad.push((end, other)),
                }
            }
            bad
        });
        let started = std::time::Instant::now();
        while started.elapsed().as_secs() < 10 && !checker.is_finished() {
            append(&mut log, 1, 0).unwrap();
            if log.tip().index.is_multiple_of(50) {
                log.sync().unwrap();
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let bad = checker.join().unwrap();
        assert!(bad.is_empty(), "offset and what was answered: {bad:?}");
    });
}

#[test]
fn deleting_a_log_with_a_sync_under_way_does_not_stop_the_node() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = DataDir::open(Arc::new(OsFs::new()), temporary.path(), Config::tiny()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 100).unwrap();
    let queued = log.syncer_handle();
    drop(log);
    dir.delete_log(LOG).unwrap();
    let _ = queued.sync();
    dir.check().expect("one deleted log ended all writing of the data directory");
}

#[test]
fn a_deleted_log_stays_deleted() {
    let fs = SimFs::new();
    let dir = open_dir(&fs).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 100).unwrap();
    let queued = log.syncer_handle();
    drop(log);
    dir.delete_log(LOG).unwrap();
    let _ = queued.sync();
    assert!(segment_paths(&fs).is_empty(), "{:?}", segment_paths(&fs));
}

#[test]
fn a_failed_directory_sync_in_a_repair_ends_all_writing() {
    let sim = SimFs::new();
    let fs = DirFaultFs { inner: sim.clone(), ..DirFaultFs::default() };
    let (dir, mut log) = new_log(&sim);
    fill(&mut log, 10);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    sim.power_cut(|_| false);
    sim.damage(&segment_paths(&sim)[0].clone(), |bytes| bytes[4608 + 3 * 184 + 90] ^= 1);
    let dir = DataDir::open(Arc::new(fs.clone()), Path::new(ROOT), Config::tiny()).unwrap();
    let (mut log, _) = dir.open_log(LOG).unwrap();
    *fs.broken.lock().unwrap() = Some(log_dir());
    assert!(log.repair(&entries[3..4]).is_err());
    *fs.broken.lock().unwrap() = None;
    if dir.check().is_err() {
        return; // Right: nobody knows which file has the name.
    }
    for _ in 0..3 {
        append(&mut log, 1, 100).unwrap();
        log.sync().unwrap();
    }
    assert_eq!(log.synced_index(), 13, "acknowledged");
    drop((dir, log));
    sim.power_cut(|_| true);
    let (_dir, log, report) = reopen(&sim);
    assert_eq!(log.tip().index, 13, "{report:?}");
}

#[test]
fn names_given_in_one_round_survive_in_order() {
    let fs = SimFs::new();
    let config = Config { sync_filesystem_from: 1, ..Config::tiny() };
    let dir = open_dir_with(&fs, config.clone()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 5);
    let syncer = dir.start_syncer(Box::new(|_| {}));
    for _ in 0..3 {
        log.roll(&mut checkpoint).unwrap();
        append(&mut log, 1, 100).unwrap();
    }
    let last = log.reader().segments().last().unwrap().base_index();
    // The first sync of the file system passes, in the second one the power goes.
    syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 1 });
    fs.fail_sync(fs.paths().len() as u64);
    syncer.run_round();
    drop((syncer, dir, log));
    let is_last = |p: &Path| p.to_str().unwrap().contains(&format!("{last:020}"));
    fs.power_cut(|pending| match pending {
        Pending::Name(path) => is_last(path),
        _ => true,
    });
    let dir = open_dir_with(&fs, config).unwrap();
    let (_log, report) = dir.open_log(LOG).unwrap();
    assert!(report.faulty.is_empty(), "entries nobody was promised are called damaged: {report:?}");
}

#[test]
fn the_term_of_a_lost_tail_is_never_understated() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..10 {
        let mut tip = log.tip();
        tip.term = 7;
        let mut entries = [next_entry(&tip, 1, 100)];
        log.append(&mut entries, &mut checkpoint).unwrap();
        log.sync().unwrap();
    }
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    // Entry 9 is destroyed and the payload of entry 10 with it; the header of 10 knows of entry 9.
    fs.damage(&segment_paths(&fs)[0].clone(), |bytes| {
        bytes[4608 + 8 * 184 + 90] ^= 1;
        bytes[4608 + 9 * 184 + 90] ^= 1;
    });
    let (_dir, mut log, report) = reopen(&fs);
    assert_eq!(report.case, Case::LostTail);
    let lost = log.lost_tail().unwrap();
    assert_eq!((lost.first_index, lost.last_index), (9, 9));
    let repaired = log.repair(&entries[8..9]);
    assert!(
        lost.last_term >= 7,
        "the promise of term 7 became {}, repair: {repaired:?}",
        lost.last_term
    );
}

#[test]
fn damage_is_still_known_after_an_orderly_restart() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    fill(&mut log, 40);
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let last = segment_paths(&fs).pop().unwrap();
    fs.damage(&last, |bytes| bytes[4608 + 16 + 90] ^= 1);
    let (dir, log, report) = reopen(&fs);
    assert_eq!(report.faulty.len(), 1, "{report:?}");
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let (_dir, log, report) = reopen(&fs);
    let bad = report.faulty.len();
    let read = read_from(&log.reader(), 1);
    assert!(read.is_err());
    assert_eq!(bad, 1, "the log counts as whole and cannot be read: {read:?}");
}

#[test]
fn a_log_opens_on_a_disk_below_the_low_water_mark() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 600).unwrap();
    append(&mut log, 1, 600).unwrap();
    drop((dir, log));
    fs.power_cut(|pending| !matches!(pending, Pending::Sector { sector: 9, .. }));
    fs.set_capacity(Some(fs.used_bytes() + 100_000));
    let config = Config { low_water_bytes: 200_000, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let opened = dir.open_log(LOG);
    assert!(opened.is_ok(), "{:?}", opened.err());
}

#[test]
fn a_follower_can_truncate_below_the_low_water_mark() {
    let fs = SimFs::new();
    let config = Config { low_water_bytes: 200_000, ..Config::tiny() };
    let dir = open_dir_with(&fs, config).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    fill(&mut log, 5);
    fs.set_capacity(Some(fs.used_bytes() + 100_000));
    let cut = log.truncate_suffix(4, 3, None);
    assert!(cut.is_ok(), "{cut:?}");
}

#[test]
fn a_directory_opens_on_a_full_disk_with_its_reserve() {
    let fs = SimFs::new();
    let config = Config { reserve_bytes: 200_000, ..Config::tiny() };
    let dir = open_dir_with(&fs, config.clone()).unwrap();
    dir.journal().record(&[vote(b"for node 2")]).unwrap();
    dir.journal().sync().unwrap();
    drop(dir);
    fs.power_cut(|_| true);
    assert!(fs.paths().iter().any(|path| path.ends_with("reserve")));
    fs.set_capacity(Some(fs.used_bytes()));
    let opened = open_dir_with(&fs, config);
    assert!(opened.is_ok(), "{:?}", opened.err());
}
