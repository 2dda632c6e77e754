//! Named cases of recovery: what each kind of end of a log is taken for.

use std::path::Path;

use quipu::storage::fs::Fs as _;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Access, Case, Class, EntryHeader, Error, Kind, SegmentHeader};

use crate::support::*;

/// A log of `count` synced entries, its last watermark in the journal, the power then cut.
fn synced_log(count: u32) -> SimFs {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..count {
        append(&mut log, 1, 100).unwrap();
        log.sync().unwrap();
    }
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    fs
}

#[test]
fn the_class_tells_an_orderly_end_from_a_crash_of_process_or_machine() {
    let fs = SimFs::new();
    let (dir, log) = new_log(&fs);
    assert_eq!(dir.class(), Class::Clean, "a new directory");
    drop((dir, log));
    fs.process_crash();
    let (dir, log, report) = reopen(&fs);
    assert_eq!(report.class, Class::ProcessCrash);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (dir, log, report) = reopen(&fs);
    assert_eq!(report.class, Class::MachineCrash);
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let (_dir, _log, report) = reopen(&fs);
    assert_eq!(report.class, Class::Clean);
}

#[test]
fn a_process_crash_loses_nothing_that_was_written_to_a_named_segment() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..20 {
        append(&mut log, 1, 50).unwrap();
    }
    drop((dir, log));
    fs.process_crash();
    let (dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 20));
    assert_eq!(log.synced_index(), 20, "what was only in the cache was written again and synced");
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(read_all(&log).len(), 20);
}

#[test]
fn pages_that_a_failed_sync_marked_clean_are_written_again() {
    // The kernel drops the dirty mark when a sync fails: the cache has the bytes, the disk not. A
    // restart that only syncs would report them durable.
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 50).unwrap();
    fs.fail_sync(0);
    assert!(matches!(log.sync(), Err(Error::Io { operation: "sync", .. })));
    assert!(matches!(append(&mut log, 1, 50), Err(Error::Failed { .. })));
    assert!(dir.check().is_err());
    drop((dir, log));
    fs.process_crash();
    let (dir, log, report) = reopen(&fs);
    let synced = log.synced_index();
    assert_eq!(synced, report.last_index);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert!(log.tip().index >= synced, "what was reported durable is gone");
}

#[test]
fn a_damaged_middle_is_marked_and_the_rest_stays_readable() {
    let fs = synced_log(10);
    let segment = segment_paths(&fs)[0].clone();
    fs.damage(&segment, |bytes| bytes[4608 + 3 * 184 + 90] ^= 1);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::CorruptMiddle, 10));
    assert_eq!(report.faulty.len(), 1);
    assert_eq!((report.faulty[0].first_index, report.faulty[0].last_index), (4, 4));
    assert_eq!(report.faulty[0].damage.position, 4608 + 3 * 184);
    assert!(report.faulty[0].damage.what.contains("payload checksum of entry 4"), "{report:?}");
    let reader = log.reader();
    let mut out = Vec::new();
    assert!(reader.read(4, 4, 1, Access::MayBlock, &mut out).is_err());
    reader.read(1, 3, 1 << 20, Access::MayBlock, &mut out).unwrap();
    reader.read(5, 10, 1 << 20, Access::MayBlock, &mut out).unwrap();
    assert_eq!(out.len(), 9);
}

#[test]
fn a_log_whose_durable_tail_is_lost_keeps_its_promise_and_takes_nothing() {
    let fs = synced_log(10);
    let segment = segment_paths(&fs)[0].clone();
    fs.damage(&segment, |bytes| bytes[4608 + 8 * 184..].fill(0));
    let (_dir, mut log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::LostTail, 10));
    let lost = log.lost_tail().unwrap();
    assert_eq!((lost.first_index, lost.last_index, lost.last_term), (9, 10, 1));
    assert_eq!(log.tip().index, 8);
    let refused = append(&mut log, 1, 100).unwrap_err();
    assert!(matches!(refused, Error::TailLost { first: 9, last: 10, .. }), "{refused}");
}

#[test]
fn damage_after_an_orderly_end_is_never_taken_for_a_torn_tail() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..5 {
        append(&mut log, 1, 100).unwrap();
    }
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    fs.damage(&segment_paths(&fs)[0].clone(), |bytes| bytes[4608 + 4 * 184 + 100] ^= 1);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.class, report.case), (Class::Clean, Case::LostTail));
    assert_eq!(log.lost_tail().unwrap().last_index, 5);
}

#[test]
fn a_missing_segment_is_a_hole_and_not_the_start_of_a_new_log() {
    let fs = synced_log(100);
    let segments = segment_paths(&fs);
    assert!(segments.len() > 3);
    remove(&fs, &segments[1]);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.last_index, 100);
    let (first, last) = (report.faulty[0].first_index, report.faulty[0].last_index);
    assert!(report.faulty[0].damage.what.contains("is missing"), "{report:?}");
    let reader = log.reader();
    let mut out = Vec::new();
    for index in 1..=100 {
        let is_hole = first <= index && index <= last;
        let read = reader.read(index, index, 1, Access::MayBlock, &mut out);
        assert_eq!(read.is_err(), is_hole, "entry {index}: {read:?}");
    }
    let refused = log.reader().read(first, last, 1, Access::MayBlock, &mut out);
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
}

#[test]
fn one_damaged_header_copy_is_healed_from_the_other() {
    for copy in [0usize, 4096] {
        let fs = synced_log(3);
        let segment = segment_paths(&fs)[0].clone();
        fs.damage(&segment, |bytes| bytes[copy + 40] ^= 0xFF);
        let (dir, log, report) = reopen(&fs);
        assert!(report.faulty.is_empty(), "copy at {copy}: {report:?}");
        assert_eq!(read_all(&log).len(), 3);
        drop((dir, log));
        fs.damage(&segment, |bytes| bytes[4096 - copy + 40] ^= 0xFF);
        fs.process_crash();
        let (_dir, log, _) = reopen(&fs);
        assert_eq!(read_all(&log).len(), 3, "copy at {copy} was healed");
    }
}

#[test]
fn an_unreadable_sector_is_damage_with_its_place_and_no_panic() {
    let fs = synced_log(10);
    let segment = segment_paths(&fs)[0].clone();
    fs.make_unreadable(&segment, (4608 + 512) / 512);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::CorruptMiddle, 10));
    assert!(report.faulty[0].damage.what.contains("cannot read"), "{report:?}");
    let mut out = Vec::new();
    let read = log.reader().read(report.faulty[0].first_index, 10, 1, Access::MayBlock, &mut out);
    assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
    assert!(log.reader().header(1, Access::MayBlock).is_ok());
}

#[test]
fn a_file_that_ends_in_the_padding_of_its_last_frame_is_damaged_and_opens() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for payload_len in [100, 100, 101] {
        append(&mut log, 1, payload_len).unwrap();
        log.sync().unwrap();
    }
    drop((dir, log));
    fs.power_cut(|_| false);
    let end = 4608 + 2 * 184 + 80 + 101;
    fs.damage(&segment_paths(&fs)[0].clone(), |bytes| bytes.truncate(end + 1));
    let (_dir, mut log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::TornTail, 2), "{report:?}");
    append(&mut log, 1, 101).unwrap();
    log.sync().unwrap();
    assert_eq!(read_all(&log).len(), 3);
}

#[test]
fn files_that_nobody_knows_are_set_aside_and_never_deleted() {
    let fs = synced_log(3);
    let stray = segment_paths(&fs)[0].with_file_name("notes.txt");
    create(&fs, &stray, b"mine");
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(read_all(&log).len(), 3);
    let kept = fs.paths().into_iter().find(|path| path.ends_with("notes.txt")).unwrap();
    assert!(kept.starts_with(Path::new(ROOT).join("quarantine")), "{}", kept.display());
}

#[test]
fn a_segment_of_another_log_or_a_later_version_is_refused_and_left_alone() {
    let fs = synced_log(3);
    let segment = segment_paths(&fs)[0].clone();
    let other = quipu::types::LogId(uuid::Uuid::from_u128(99));
    let moved = Path::new(ROOT).join("logs").join(other.to_string());
    let dir = open_dir(&fs).unwrap();
    let log = dir.create_log(other, quipu::storage::Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    drop(log);
    let bytes = fs.durable_bytes(&segment).unwrap();
    let own = segment.file_name().unwrap();
    remove(&fs, &moved.join(own));
    create(&fs, &moved.join(own), &bytes);
    let refused = dir.open_log(other).unwrap_err();
    assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    assert!(refused.to_string().contains("belongs to log"), "{refused}");
    fs.damage(&segment, |bytes| {
        for copy in [0, 4096] {
            bytes[copy + 8] = 7;
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&bytes[copy..copy + 12]);
            hasher.update(&bytes[copy + 16..copy + 128]);
            let crc = hasher.finalize().to_le_bytes();
            bytes[copy + 12..copy + 16].copy_from_slice(&crc);
        }
    });
    let before = fs.durable_bytes(&segment);
    let refused = dir.open_log(LOG).unwrap_err();
    assert!(matches!(refused, Error::FutureVersion { found: 7, supported: 1, .. }), "{refused}");
    assert_eq!(fs.durable_bytes(&segment), before);
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..100 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    drop((dir, log));
    fs.process_crash();
    let indices: Vec<_> =
        fs.paths().into_iter().filter(|p| p.extension().is_some_and(|e| e == "idx")).collect();
    assert!(indices.len() > 3, "sealed segments have their index on disk");
    remove(&fs, &indices[0]);
    for (number, byte) in [(1, 40), (2, 3)] {
        fs.sync_filesystem(Path::new(ROOT)).unwrap();
        fs.damage(&indices[number], |bytes| bytes[byte] ^= 1);
    }
    let (_dir, log, report) = reopen(&fs);
    assert!(report.faulty.is_empty());
    assert_eq!(read_all(&log).len(), 100);
}

#[test]
fn the_directory_is_locked_and_told_apart_from_others() {
    let fs = SimFs::new();
    let dir = open_dir(&fs).unwrap();
    assert!(matches!(open_dir(&fs), Err(Error::InUse { .. })));
    drop(dir);
    assert!(open_dir(&fs).is_ok(), "the lock ends with its holder");
    let fs = SimFs::new();
    create(&fs, Path::new("/data/holiday.jpg"), b"sea");
    let before = fs.paths();
    let refused = open_dir(&fs).unwrap_err();
    assert!(refused.to_string().contains("holiday.jpg"), "{refused}");
    assert_eq!(fs.paths(), before, "nothing was touched");
    let fs = SimFs::new();
    create(&fs, Path::new("/data/quipu.dir"), b"quipu data directory, format 2\n");
    assert!(matches!(open_dir(&fs), Err(Error::FutureVersion { found: 2, supported: 1, .. })));
    let fs = SimFs::new();
    create(&fs, Path::new("/data/quipu.dir"), b"\xFF\xFE");
    assert!(matches!(open_dir(&fs), Err(Error::Foreign { .. })));
}

#[test]
fn a_recovered_log_replays_its_state_from_the_latest_checkpoint() {
    let fs = synced_log(100);
    let (_dir, log, _) = reopen(&fs);
    let reader = log.reader();
    let (tip, bytes) = reader.checkpoint_before(u64::MAX).unwrap().unwrap();
    assert_eq!(bytes, checkpoint(&tip));
    assert!(tip.index > 80, "the last segment's checkpoint, at {}", tip.index);
    assert_eq!(reader.tip_at(tip.index, Access::MayBlock).unwrap(), tip);
    let rest = read_from(&reader, tip.index + 1).unwrap();
    assert_eq!(rest.len() as u64, 100 - tip.index);
    assert!(rest.iter().all(|entry| entry.header.kind == Kind::Records));
}

#[test]
fn an_entry_with_good_checksums_but_of_another_history_breaks_the_chain() {
    let fs = synced_log(5);
    let segment = segment_paths(&fs)[0].clone();
    let head: [u8; 128] = fs.durable_bytes(&segment).unwrap()[..128].try_into().unwrap();
    let seed = SegmentHeader::decode(&head).unwrap().seed();
    fs.damage(&segment, |bytes| {
        let frame = &mut bytes[4608 + 2 * 184..4608 + 2 * 184 + 80];
        let mut header = EntryHeader::decode((&*frame).try_into().unwrap(), seed).unwrap();
        header.producer_id = 666;
        frame.copy_from_slice(&header.encode(seed));
    });
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::CorruptMiddle, 5));
    let what = &report.faulty[0].damage.what;
    assert!(what.contains("chain of entry 3"), "{what}");
    let reader = log.reader();
    let mut entries = Vec::new();
    let read = reader.read(1, u64::MAX, usize::MAX, Access::MayBlock, &mut entries);
    assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
    assert_eq!(entries.len(), 2, "the good ones before it");
    assert!(read_from(&reader, 3).is_err(), "it is not served");
    assert_eq!(read_from(&reader, 4).unwrap().len(), 2);
}

#[test]
fn a_truncation_after_a_crash_cuts_back_a_watermark_from_before_it() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..10 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    // The watermark's generation is that of a segment that never gets its name.
    log.roll(&mut checkpoint).unwrap();
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (dir, mut log, _) = reopen(&fs);
    log.truncate_suffix(4, 0, None).unwrap();
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 4), "{:?}", report.faulty);
    assert_eq!(log.lost_tail(), None);
}

#[test]
fn a_log_that_starts_beyond_what_is_on_disk_has_no_watermark_to_tell() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..10 {
        append(&mut log, 1, 100).unwrap();
    }
    log.roll(&mut checkpoint).unwrap();
    log.advance_log_start(10, u64::MAX).unwrap();
    let before = dir.journal().sync().unwrap();
    assert_eq!(log.record_watermark().unwrap(), before);
    assert!(!dir.journal().is_dirty(), "nothing was recorded");
}

#[test]
fn damage_before_the_log_start_goes_with_the_file_it_is_in() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..60 {
        append(&mut log, 1, 500).unwrap();
    }
    log.sync().unwrap();
    log.advance_log_start(50, u64::MAX).unwrap();
    let first = log.reader().first_index();
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let paths = segment_paths(&fs);
    assert!(paths.len() > 4, "{paths:?}");
    fs.damage(&paths[1], |bytes| bytes.fill(7));
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.faulty, []);
    assert_eq!(log.reader().first_index(), first);
    assert_eq!(segment_paths(&fs)[0], *paths.iter().rfind(|path| starts_by(path, first)).unwrap());
}

/// The base index in a segment's file name is at most `index`.
fn starts_by(path: &Path, index: u64) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.split('-').next().unwrap().parse::<u64>().unwrap() <= index
}

#[test]
fn the_only_checkpoint_stays_when_the_segment_that_was_to_be_the_first_is_lost() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..8 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    log.roll(&mut checkpoint).unwrap();
    log.advance_log_start(8, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    drop((dir, log));
    // The new first segment never got its name; another one without checkpoint takes its place.
    fs.power_cut(|_| false);
    let (dir, mut log, _) = reopen(&fs);
    log.truncate_suffix(9, 8, None).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    let (_dir, log, _) = reopen(&fs);
    let found = log.reader().checkpoint_before(8).unwrap();
    assert!(found.is_some(), "a log without checkpoint cannot be opened by its replica");
}
