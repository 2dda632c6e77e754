//! Append, read, look up, roll, truncate, retain, close: the ordinary life of a log.

use std::path::Path;
use std::sync::Arc;

use quipu::storage::fs::Fs as _;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Access, Case, Class, Config, Error, Policy, Tip};
use quipu::types::LogId;
use uuid::Uuid;

use crate::support::*;

#[test]
fn entries_are_read_back_as_they_were_appended_across_segments() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for n in 0..200 {
        append(&mut log, n % 4, 50 + n as usize).unwrap();
    }
    let entries = read_all(&log);
    assert_eq!(entries.len(), 200);
    assert!(log.reader().segments().len() > 5, "tiny segments roll");
    let offsets: u64 = (0..200).map(|n| n % 4).sum();
    assert_eq!(log.reader().log_end_offset(), offsets);
    assert!(
        entries.windows(2).all(|pair| pair[1].header.base_offset == pair[0].header.end_offset())
    );
}

#[test]
fn every_offset_and_time_is_found_where_a_plain_search_finds_it() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for n in 0..300 {
        append(&mut log, n % 3, 60).unwrap();
    }
    let reader = log.reader();
    let entries = read_all(&log);
    for offset in 0..reader.log_end_offset() {
        let holds =
            |h: &quipu::storage::EntryHeader| h.base_offset <= offset && offset < h.end_offset();
        let expected = entries.iter().find(|e| holds(&e.header)).unwrap().header.index;
        assert_eq!(reader.index_of_offset(offset, Access::MayBlock).unwrap(), expected, "{offset}");
    }
    for time in (0..3020).step_by(5) {
        let is_later =
            |h: &quipu::storage::EntryHeader| h.append_time_ms >= time && h.record_count > 0;
        let expected = entries.iter().find(|e| is_later(&e.header));
        let expected = expected.map(|e| (e.header.base_offset, e.header.index));
        assert_eq!(
            reader.offset_for_time(time, Access::MayBlock).unwrap(),
            expected,
            "time {time}"
        );
    }
    for entry in &entries {
        let header = reader.header(entry.header.index, Access::MayBlock).unwrap();
        assert_eq!(header, entry.header);
        assert_eq!(reader.term_at(header.index, Access::MayBlock).unwrap(), header.term);
    }
}

#[test]
fn reads_outside_the_log_say_what_it_holds() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    append(&mut log, 5, 10).unwrap();
    let reader = log.reader();
    let mut out = Vec::new();
    let read = reader.read(2, 9, 100, Access::MayBlock, &mut out);
    assert!(matches!(read, Err(Error::IndexOutOfRange { requested: 2, first: 1, last: 1 })));
    let found = reader.index_of_offset(6, Access::MayBlock);
    let expected = Error::OffsetOutOfRange { requested: 6, log_start: 0, log_end: 5 };
    assert_eq!(found.unwrap_err().to_string(), expected.to_string());
    assert_eq!(
        reader.index_of_offset(5, Access::MayBlock).unwrap(),
        2,
        "the end is a place to wait"
    );
}

#[test]
fn a_read_stops_at_its_byte_limit_but_never_returns_nothing() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for _ in 0..5 {
        append(&mut log, 1, 100).unwrap();
    }
    let reader = log.reader();
    for (limit, count) in [(1, 1), (199, 1), (200, 2), (450, 4), (5000, 5)] {
        let mut out = Vec::new();
        reader.read(1, u64::MAX, limit, Access::MayBlock, &mut out).unwrap();
        assert_eq!(out.len(), count, "with {limit} bytes");
    }
    let mut out = Vec::new();
    reader.read(1, 3, 5000, Access::MayBlock, &mut out).unwrap();
    assert_eq!(out.len(), 3, "the last index is a bound");
}

#[test]
fn an_entry_that_does_not_continue_the_log_changes_nothing() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    append(&mut log, 2, 10).unwrap();
    let good = next_entry(&log.tip(), 1, 10);
    type Damage = fn(&mut quipu::storage::EntryHeader);
    let broken: [(&str, Damage); 4] = [
        ("index", |h| h.index += 1),
        ("term", |h| h.term = 0),
        ("base offset", |h| h.base_offset += 1),
        ("append time", |h| h.append_time_ms = -1),
    ];
    for (name, damage) in broken {
        let mut entry = good.clone();
        damage(&mut entry.header);
        let before = log.tip();
        match log.append(&mut [entry], &mut checkpoint) {
            Err(Error::Misordered { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(log.tip(), before);
    }
    log.append(&mut [good], &mut checkpoint).unwrap();
    assert_eq!(read_all(&log).len(), 2);
}

#[test]
fn an_entry_larger_than_a_segment_gets_one_of_its_own() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 100).unwrap();
    append(&mut log, 1, 40_000).unwrap();
    append(&mut log, 1, 100).unwrap();
    assert_eq!(log.reader().segments().len(), 3);
    assert_eq!(read_all(&log).len(), 3);
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(read_all(&log).len(), 3);
}

#[test]
fn many_entries_in_one_append_roll_where_they_must() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    let mut entries = Vec::new();
    let mut tip = log.tip();
    for _ in 0..150 {
        let entry = next_entry(&tip, 1, 100);
        tip = Tip { index: tip.index + 1, end_offset: tip.end_offset + 1, term: 1, ..tip };
        tip.append_time_ms = entry.header.append_time_ms;
        entries.push(entry);
    }
    let mut rolled_at = Vec::new();
    log.append(&mut entries, &mut |tip| {
        rolled_at.push(tip.index);
        checkpoint(tip)
    })
    .unwrap();
    assert!(rolled_at.len() > 3, "rolled at {rolled_at:?}");
    assert_eq!(read_all(&log), entries);
    for index in rolled_at {
        let (tip, bytes) = log.reader().checkpoint_before(index).unwrap().unwrap();
        assert_eq!((tip.index, bytes), (index, checkpoint(&tip)));
    }
}

#[test]
fn a_truncated_suffix_is_gone_and_slices_of_it_stay_true() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for _ in 0..100 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    let reader = log.reader();
    let mut borrowed = Vec::new();
    reader.read(70, 80, 1 << 20, Access::MayBlock, &mut borrowed).unwrap();
    let copies: Vec<Vec<u8>> = borrowed.iter().map(|entry| entry.payload.to_vec()).collect();
    log.truncate_suffix(61, 60, Some(b"cut")).unwrap();
    assert_eq!((log.tip().index, reader.last_index(), log.synced_index()), (60, 60, 60));
    for _ in 0..30 {
        append(&mut log, 2, 77).unwrap();
    }
    log.sync().unwrap();
    assert!(log.reclaim().unwrap() > 0, "dropped segments go");
    let slices: Vec<Vec<u8>> = borrowed.iter().map(|entry| entry.payload.to_vec()).collect();
    assert_eq!(slices, copies);
    let entries = read_all(&log);
    assert_eq!(entries.len(), 90);
    assert_eq!(entries[60].header.record_count, 2);
    drop(log);
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.case, Case::Whole);
    assert_eq!(read_all(&log), entries);
}

#[test]
#[should_panic(expected = "entry 5 must not be removed, 7 is committed")]
fn a_committed_entry_is_never_truncated() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for _ in 0..10 {
        append(&mut log, 1, 10).unwrap();
    }
    let _ = log.truncate_suffix(5, 7, None);
}

#[test]
fn retention_moves_the_start_and_frees_files_only_when_that_is_durable() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..300 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    let before = segment_paths(&fs).len();
    let policy = Policy { bytes: Some(3 * 8192), ..Policy::default() };
    assert!(log.retain(&policy, u64::MAX, 0).unwrap() > 0);
    assert_eq!(log.reclaim().unwrap(), 0, "the new start is not durable yet");
    assert_eq!(segment_paths(&fs).len(), before);
    dir.journal().sync().unwrap();
    assert!(log.reclaim().unwrap() > 0);
    let start = log.reader().log_start_offset();
    assert!(start > 0 && segment_paths(&fs).len() < before);
    let found = log.reader().index_of_offset(start - 1, Access::MayBlock);
    assert!(matches!(found, Err(Error::OffsetOutOfRange { .. })));
    let entries = read_all(&log);
    assert_eq!(entries[0].header.base_offset, start);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(log.reader().log_start_offset(), start);
    assert_eq!(read_all(&log), entries);
}

#[test]
fn a_log_with_a_bound_goes_through_the_same_few_files() {
    const MIB: u64 = 1 << 20;
    let fs = SimFs::new();
    let sizes = Config { segment_bytes: 64 * MIB, allocation_bytes_max: MIB, ..Config::tiny() };
    let dir = open_dir_with(&fs, Config { spares_max: 8, ..sizes }).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    log.keep_within(Some(4 * MIB));
    let mut longest = 0;
    for _ in 0..400 {
        append(&mut log, 1, 64 << 10).unwrap();
        log.sync().unwrap();
        if log.is_overgrown() {
            let policy = Policy { bytes: log.kept_bytes(), ..Policy::default() };
            log.reclaim().unwrap();
            log.retain(&policy, u64::MAX, 0).unwrap();
            dir.journal().sync().unwrap();
        }
        let segments = log.reader().segments();
        let lengths = segments.iter().map(|segment| segment.allocated_bytes());
        longest = longest.max(lengths.clone().max().unwrap());
        assert!(lengths.sum::<u64>() <= 5 * MIB, "what is kept and what is being written");
    }
    assert_eq!(longest, MIB, "segments are as long as suits the bound");
    assert!(log.reader().log_start_offset() > 300);
    let names = fs.list(Path::new(ROOT).join("spare").as_path()).unwrap();
    assert!(names.len() <= 3, "old files are used again, not kept: {names:?}");
}

#[test]
fn spares_take_as_much_room_as_full_segments_would() {
    const MIB: u64 = 1 << 20;
    let fs = SimFs::new();
    let sizes = Config { segment_bytes: 4 * MIB, allocation_bytes_max: MIB, ..Config::tiny() };
    let dir = open_dir_with(&fs, Config { spares_max: 1, ..sizes }).unwrap();
    let mut short = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    short.keep_within(Some(4 * MIB));
    let mut long = dir.create_log(LogId(Uuid::from_u128(77)), Tip::EMPTY, b"").unwrap();
    long.sync().unwrap();
    let fill_and_drop = |log: &mut quipu::storage::Log, segments: usize| {
        while log.reader().segments().len() <= segments {
            append(log, 1, 64 << 10).unwrap();
        }
        log.sync().unwrap();
        log.advance_log_start(log.reader().log_end_offset(), u64::MAX).unwrap();
        dir.journal().sync().unwrap();
        fs.start_trace();
        assert_eq!(log.reclaim().unwrap(), segments);
        fs.take_trace()
    };
    let spares = || {
        let spares =
            fs.paths().into_iter().filter(|path| path.extension() == Some("spare".as_ref()));
        spares.map(|path| fs.durable_bytes(&path).unwrap().len() as u64 / MIB).collect::<Vec<_>>()
    };
    let did = fill_and_drop(&mut short, 6);
    assert_eq!(spares(), [1; 4], "four of 1 MiB instead of one of 4");
    let synced = did.iter().filter(|line| line.starts_with("sync-dir"));
    assert_eq!(synced.count(), 2, "each directory once: {did:?}");
    fill_and_drop(&mut long, 1);
    assert_eq!(spares(), [4], "the length that is used now has their place");
}

#[test]
fn the_log_start_may_lie_inside_a_segment() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..10 {
        append(&mut log, 10, 20).unwrap();
    }
    log.sync().unwrap();
    log.advance_log_start(37, u64::MAX).unwrap();
    assert_eq!(log.reader().log_start_offset(), 37);
    assert!(log.reader().index_of_offset(36, Access::MayBlock).is_err());
    assert_eq!(log.reader().index_of_offset(37, Access::MayBlock).unwrap(), 4);
    assert_eq!(log.reader().offset_for_time(0, Access::MayBlock).unwrap(), Some((37, 4)));
    log.advance_log_start(12, u64::MAX).unwrap();
    assert_eq!(log.reader().log_start_offset(), 37, "it never goes back");
    assert!(log.advance_log_start(101, u64::MAX).is_err());
    dir.journal().sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(log.reader().log_start_offset(), 37);
}

#[test]
fn dropped_segments_become_spares_and_their_old_content_never_shows() {
    let fs = SimFs::new();
    let config = Config { spares_max: 3, ..Config::tiny() };
    let dir = open_dir_with(&fs, config.clone()).unwrap();
    let mut log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    let mut has_recycled = false;
    for n in 0..600 {
        append(&mut log, 1, 100).unwrap();
        if n % 20 == 0 {
            log.sync().unwrap();
            log.retain(&Policy { bytes: Some(4 * 8192), ..Policy::default() }, u64::MAX, 0)
                .unwrap();
            dir.journal().sync().unwrap();
            log.reclaim().unwrap();
        }
        has_recycled |= log.reader().segments().iter().any(|s| s.header().is_recycled);
    }
    assert!(has_recycled, "a file was used again");
    log.sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    let dir = open_dir_with(&fs, config).unwrap();
    let (log, report) = dir.open_log(LOG).unwrap();
    assert_eq!((report.case, report.tail_cut_bytes), (Case::Whole, 0));
    assert_eq!(read_all(&log), entries);
}

#[test]
fn a_log_closed_in_order_opens_without_being_read() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..100 {
        append(&mut log, 1, 100).unwrap();
    }
    let tip = log.tip();
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let (dir, mut log, report) = reopen(&fs);
    assert_eq!((report.class, report.case), (Class::Clean, Case::Whole));
    assert_eq!(log.tip(), tip);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.class, Class::MachineCrash);
    assert_eq!(read_all(&log).len(), 101);
}

#[test]
fn a_log_left_open_in_an_orderly_end_is_recovered_all_the_same() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 100).unwrap();
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let (dir, mut log, _) = reopen(&fs);
    for _ in 0..10 {
        append(&mut log, 1, 100).unwrap();
    }
    drop(log);
    dir.close().unwrap();
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.class, Class::Clean);
    assert_eq!(read_all(&log).len(), 11, "what was written is still in the cache");
}

#[test]
fn a_reset_log_starts_after_the_snapshot() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..50 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    let tip = Tip { index: 1000, term: 7, end_offset: 5000, append_time_ms: 99_000, chain: 42 };
    log.reset(tip, b"snapshot").unwrap();
    append(&mut log, 3, 100).unwrap();
    log.sync().unwrap();
    log.reclaim().unwrap();
    assert_eq!((log.reader().first_index(), log.reader().last_index()), (1001, 1001));
    assert_eq!(log.reader().log_start_offset(), 5000);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(log.reader().term_at(1000, Access::MayBlock).unwrap(), 7);
    assert_eq!(log.reader().checkpoint_before(u64::MAX).unwrap().unwrap().1, "snapshot");
    assert_eq!(read_all(&log).len(), 1);
    assert_eq!(segment_paths(&fs).len(), 1);
}

#[test]
fn few_files_are_open_however_many_segments_are_read() {
    let fs = SimFs::new();
    let (_dir, mut log) = new_log(&fs);
    for _ in 0..400 {
        append(&mut log, 1, 100).unwrap();
    }
    log.sync().unwrap();
    for _ in 0..3 {
        assert_eq!(read_all(&log).len(), 400);
    }
    let mapped = |s: &&Arc<quipu::storage::Segment>| s.is_open();
    let open = log.reader().segments().iter().filter(mapped).count();
    assert!(open <= Config::tiny().open_segments_max + 1, "{open} segments are open");
}

#[test]
fn deleted_and_quarantined_logs_are_no_longer_found() {
    let fs = SimFs::new();
    let (dir, log) = new_log(&fs);
    drop(log);
    assert!(dir.create_log(LOG, Tip::EMPTY, b"").is_err(), "the id is taken");
    assert_eq!(dir.logs().unwrap(), [LOG]);
    let aside = dir.quarantine_log(LOG).unwrap();
    assert!(fs.paths().iter().any(|path| path.starts_with(&aside)), "its files are kept");
    assert!(matches!(dir.open_log(LOG), Err(Error::UnknownLog { .. })));
    let log = dir.create_log(LOG, Tip::EMPTY, b"").unwrap();
    log.sync().unwrap();
    dir.delete_log(LOG).unwrap();
    assert_eq!(dir.logs().unwrap(), []);
}
