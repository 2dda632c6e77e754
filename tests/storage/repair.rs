//! Bringing damaged entries back, and scrubbing.

use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Case, Entry, Error, Log};

use crate::support::*;

/// A log of 100 entries over several segments, synced and reopened after `damage`.
fn damaged(damage: impl FnOnce(&SimFs)) -> (SimFs, quipu::storage::DataDir, Log, Vec<Entry>) {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    for _ in 0..100 {
        append(&mut log, 1, 100).unwrap();
        log.sync().unwrap();
    }
    log.record_watermark().unwrap();
    dir.journal().sync().unwrap();
    let entries = read_all(&log);
    drop((dir, log));
    fs.power_cut(|_| false);
    damage(&fs);
    let (dir, log, _) = reopen(&fs);
    (fs, dir, log, entries)
}

fn position_of(entries: &[Entry], base: u64, index: u64) -> usize {
    let before = &entries[base as usize - 1..index as usize - 1];
    let checkpoint = format!("state at {}", base - 1).len();
    let start = if base == 1 { 4608 } else { (4608 + checkpoint).next_multiple_of(8) };
    start + before.iter().map(|entry| entry.header.frame_bytes() as usize).sum::<usize>()
}

#[test]
fn scrubbing_finds_damage_in_sealed_segments_and_repair_mends_it() {
    let (fs, _dir, mut log, entries) = damaged(|_| {});
    let segments = log.reader().segments();
    let base = segments[1].base_index();
    let path = segment_paths(&fs)[1].clone();
    let at = position_of(&entries, base, base + 3) + 85;
    fs.damage(&path, |bytes| bytes[at] ^= 0x10);
    let mut bytes_read = 0;
    let reader = log.reader();
    assert!(reader.scrub_segment(0, &mut |n| bytes_read += n).unwrap().is_empty());
    assert!(bytes_read >= 2048);
    let found = reader.scrub_segment(1, &mut |_| {}).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].first_index, found[0].last_index), (base + 3, base + 3));
    assert_eq!(found[0].damage.file, path);
    assert_eq!(reader.faulty(), found, "it is known from now on");
    let wanted = &entries[base as usize + 2..=base as usize + 2];
    log.repair(wanted).unwrap();
    assert!(reader.faulty().is_empty());
    assert_eq!(essence(&read_all(&log)), essence(&entries));
    assert_eq!(log.reclaim().unwrap(), 1, "the damaged file goes");
    assert!(reader.scrub_segment(1, &mut |_| {}).unwrap().is_empty());
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((_dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!(report.case, Case::Whole);
    assert_eq!(essence(&read_all(&log))[..100], essence(&entries));
}

#[test]
fn what_a_repair_replaced_is_not_synced_any_more() {
    let fs = SimFs::new();
    let (dir, mut log) = new_log(&fs);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    append(&mut log, 1, 100).unwrap();
    let entries = read_all(&log);
    let at = position_of(&entries, 1, 1) + 90;
    fs.damage(&segment_paths(&fs)[0], |bytes| bytes[at] ^= 1);
    log.repair(&entries).unwrap();
    assert_eq!(log.reclaim().unwrap(), 1, "the damaged file goes, not synced to its end");
    assert_eq!(log.sync().unwrap(), 2);
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(essence(&read_all(&log)), essence(&entries));
}

#[test]
fn segments_stay_before_one_that_lost_its_checkpoint() {
    let (fs, dir, mut log, entries) = damaged(|_| {});
    let segments = log.reader().segments();
    let (base, start) = (segments[2].base_index(), segments[2].base_offset());
    log.advance_log_start(start, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    let at = position_of(&entries, base, base) + 90;
    fs.damage(&segment_paths(&fs)[2], |bytes| {
        bytes[4608] ^= 1;
        bytes[at] ^= 1;
    });
    log.repair(&entries[base as usize - 1..base as usize]).unwrap();
    assert!(!log.reader().segments()[0].header().has_checkpoint);
    assert_eq!(log.reclaim().unwrap(), 1, "nothing but the damaged file goes");
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, _) = reopen(&fs);
    assert_eq!(log.tip().index, entries.len() as u64);
    assert!(log.reader().segments()[0].header().has_checkpoint, "it can begin with the first");
}

#[test]
fn several_holes_of_one_segment_are_mended_at_once() {
    let (_fs, _dir, mut log, entries) = damaged(|fs| {
        let path = segment_paths(fs)[0].clone();
        fs.damage(&path, |bytes| {
            bytes[4608 + 184 + 90] ^= 1;
            bytes[4608 + 5 * 184 + 3] ^= 1;
        });
    });
    assert!(log.repair(&entries[1..2]).is_err(), "entry 6 is missing too");
    log.repair(&[entries[1].clone(), entries[5].clone()]).unwrap();
    assert_eq!(essence(&read_all(&log)), essence(&entries));
}

#[test]
fn a_missing_segment_is_put_back() {
    let (_fs, _dir, mut log, entries) = damaged(|fs| {
        let path = segment_paths(fs)[1].clone();
        remove(fs, &path);
    });
    let hole = log.reader().faulty()[0].clone();
    let wanted = &entries[hole.first_index as usize - 1..hole.last_index as usize];
    log.repair(wanted).unwrap();
    assert_eq!(essence(&read_all(&log)), essence(&entries));
    assert!(log.reader().faulty().is_empty());
}

#[test]
fn entries_of_another_history_do_not_repair_a_log() {
    let (_fs, _dir, mut log, entries) = damaged(|fs| {
        let path = segment_paths(fs)[0].clone();
        fs.damage(&path, |bytes| bytes[4608 + 2 * 184 + 90] ^= 1);
    });
    assert_eq!(log.reader().scrub_segment(0, &mut |_| {}).unwrap().len(), 1);
    let mut other = entries[2].clone();
    other.header.producer_id = 77;
    let refused = log.repair(&[other]).unwrap_err();
    assert!(matches!(&refused, Error::RepairRefused(why) if why.contains("chain")), "{refused}");
    let mut torn = entries[2].clone();
    torn.payload = payload(9, 100);
    assert!(log.repair(&[torn]).unwrap_err().to_string().contains("damaged"));
    assert!(log.repair(&[]).is_err());
    assert_eq!(log.reader().faulty().len(), 1, "nothing changed");
    log.repair(&entries[2..3]).unwrap();
    assert_eq!(essence(&read_all(&log)), essence(&entries));
}

#[test]
fn a_lost_tail_is_brought_back_and_the_log_goes_on() {
    let (fs, dir, mut log, entries) = damaged(|fs| {
        let path = segment_paths(fs).pop().unwrap();
        fs.damage(&path, |bytes| {
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            bytes[end - 200..].fill(0);
        });
    });
    let lost = log.lost_tail().unwrap();
    assert_eq!(lost.last_index, 100);
    let mut later = entries[lost.first_index as usize - 1..].to_vec();
    later.last_mut().unwrap().header.term = 9;
    assert!(log.repair(&later).is_err(), "a later term was never promised");
    log.repair(&entries[lost.first_index as usize - 1..]).unwrap();
    assert_eq!((log.lost_tail(), log.tip().index), (None, 100));
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((dir, log));
    fs.power_cut(|_| false);
    let (_dir, log, report) = reopen(&fs);
    assert_eq!((report.case, report.last_index), (Case::Whole, 101));
    assert_eq!(essence(&read_all(&log))[..100], essence(&entries));
}

#[test]
fn a_crash_in_the_midst_of_a_repair_leaves_the_log_as_it_was_or_mended() {
    let damage = |fs: &SimFs| {
        let path = segment_paths(fs)[0].clone();
        fs.damage(&path, |bytes| bytes[4608 + 2 * 184 + 90] ^= 1);
    };
    for failing in 0..4 {
        let (fs, dir, mut log, entries) = damaged(damage);
        fs.fail_sync(failing);
        let repaired = log.repair(&entries[2..3]);
        fs.fail_sync(u64::MAX);
        drop((dir, log));
        fs.power_cut(|_| failing % 2 == 0);
        let (_dir, log, report) = reopen(&fs);
        let is_mended = log.reader().scrub_segment(0, &mut |_| {}).unwrap().is_empty();
        assert!(is_mended || repaired.is_err(), "a repair that succeeded is there");
        assert_eq!(report.last_index, 100);
        let good = read_from(&log.reader(), 4).unwrap();
        assert_eq!(essence(&good), essence(&entries)[3..]);
    }
}
