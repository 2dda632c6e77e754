//! The offline tools on damaged directories: what they find, and what is no damage.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use quipu::storage::Inspector;
use quipu::storage::fs::os::OsFs;
use serde_json::Value;

use crate::support::*;

/// Header of an entry, in bytes.
const HEADER_BYTES: u64 = 80;

#[test]
fn a_flipped_bit_in_a_payload_is_named_by_file_and_position() {
    let fixture = Fixture::closed(100);
    for index in [3, 97] {
        let (file, position) = place_of(&fixture, index);
        let before = fs::read(&file).unwrap();
        change(&file, |bytes| bytes[(position + HEADER_BYTES) as usize + 5] ^= 4);
        let what = format!("entries {index} to {index} cannot be read: payload checksum of entry");
        expect_damage(&fixture, &file, position, &what);
        fs::write(&file, before).unwrap();
    }
    document("verify", &fixture.root(), 0);
}

#[test]
fn a_flipped_bit_in_a_header_is_named_by_file_and_position() {
    let fixture = Fixture::closed(100);
    let (file, position) = place_of(&fixture, 15);
    change(&file, |bytes| bytes[position as usize + 33] ^= 1);
    expect_damage(&fixture, &file, position, "entries 15 to 15 cannot be read: entry header");
    let lines = dump_lines(&fixture.root(), &[], 1);
    let entries = lines.iter().filter(|line| line["type"] == "entry");
    assert_eq!(entries.count(), 99, "all others are printed");
    let damage: Vec<_> = lines.iter().filter(|line| line["type"] == "damage").collect();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0]["position"], position);
    let table = log_tool("table", "dump", &fixture.root(), &[]);
    assert_eq!(table.status.code(), Some(1));
    assert!(stdout(&table).contains(&format!("{} at position {position}", file.display())));
}

/// Every byte that an intact segment consists of is covered by some check.
#[test]
fn no_flipped_bit_of_a_sealed_segment_goes_unnoticed() {
    let fixture = Fixture::closed(60);
    // Without a journal beside it there is less to read each time.
    let alone = fixture.root().with_file_name(LOG.to_string());
    fs::rename(fixture.log_dir(), &alone).unwrap();
    let file = files_in(&alone, "seg").remove(1);
    let good = fs::read(&file).unwrap();
    let inspect = || {
        let inspector = Inspector::open(Arc::new(OsFs::new()), &alone, None).unwrap();
        inspector.inspect(false, &mut |_| {})
    };
    let report = inspect();
    assert!(report.is_good(), "{report:?}");
    let end = report.logs[0].segments[1].end_position as usize;
    assert!(5000 < end && end < good.len(), "entries end at {end} of {}", good.len());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&file, &bad).unwrap();
        let report = inspect();
        let found = report.damage.iter().find(|damage| damage.file == file);
        if at < end {
            let found = found.unwrap_or_else(|| panic!("byte {at}: {report:?}"));
            assert!(found.position <= at as u64, "byte {at}: {found}");
        } else {
            assert_eq!(found, None, "byte {at}: free space means nothing");
            assert!(!report.notes.is_empty(), "byte {at}");
        }
    }
}

#[test]
fn a_truncated_file_is_damage_where_it_ends() {
    let fixture = Fixture::closed(100);
    let (file, position) = place_of(&fixture, 20);
    change(&file, |bytes| bytes.truncate(position as usize + 10));
    expect_damage(&fixture, &file, position, "cannot be read: the file ends at");
    change(&file, |bytes| bytes.truncate(0));
    expect_damage(&fixture, &file, 0, "neither header can be read");
}

#[test]
fn the_end_of_a_closed_log_that_is_gone_is_damage_and_not_a_torn_tail() {
    let fixture = Fixture::closed(100);
    let (file, position) = place_of(&fixture, 99);
    change(&file, |bytes| bytes[position as usize..].fill(0));
    expect_damage(&fixture, &file, position, "entries 99 to 100 cannot be read");
}

#[test]
fn a_torn_tail_is_a_note() {
    let fixture = Fixture::killed(100);
    let (file, position) = place_of(&fixture, 100);
    change(&file, |bytes| bytes[position as usize + 40..].fill(0));
    let report = document("verify", &fixture.root(), 0);
    assert_eq!(report["ok"], true);
    assert_eq!(report["closed_cleanly"], false);
    let note = &report["notes"][0];
    assert_eq!((&note["file"], &note["position"]), (&path(&file), &position.into()));
    let what = note["what"].as_str().unwrap();
    assert!(what.starts_with("torn tail:") && what.contains("entry 99"), "{what}");
    assert_eq!(report["logs"][0]["last_index"], 99);
    let segment = report["logs"][0]["segments"].as_array().unwrap().last().unwrap();
    assert_eq!(segment["end"], "torn-tail");
    let table = log_tool("table", "verify", &fixture.root(), &[]);
    assert_eq!(table.status.code(), Some(0));
    assert!(stdout(&table).contains("note    ") && stdout(&table).contains("\nok: "));
    assert_eq!(dump_lines(&fixture.root(), &["--from-index", "99"], 0)[0]["index"], 99);
}

#[test]
fn each_copy_of_a_segment_header_is_checked() {
    let fixture = Fixture::closed(40);
    for (copy, position) in [(0, 0), (1, 4096)] {
        let file = fixture.segments().remove(0);
        let good = fs::read(&file).unwrap();
        change(&file, |bytes| bytes[position as usize + 60] ^= 8);
        let what = format!("copy {copy} of the segment header is damaged, the other is good");
        expect_damage(&fixture, &file, position, &what);
        let report = document("stats", &fixture.root(), 1);
        assert_eq!(report["logs"][0]["segments"][0]["header_copies"][copy], "damaged");
        assert_eq!(report["totals"]["entries"], 40, "the good copy serves");
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_is_found() {
    let fixture = Fixture::closed(40);
    let file = fixture.segments().remove(1);
    change(&file, |bytes| bytes[4608] ^= 1);
    expect_damage(&fixture, &file, 4608, "checkpoint checksum is");
}

#[test]
fn a_damaged_index_is_told_and_one_that_lies_is_damage() {
    let fixture = Fixture::closed(60);
    let index = fixture.segments()[0].with_extension("idx");
    let good = fs::read(&index).unwrap();
    change(&index, |bytes| bytes[40] ^= 1);
    let report = document("verify", &fixture.root(), 0);
    assert_eq!(report["logs"][0]["segments"][0]["index"], "damaged");
    assert_eq!(report["notes"][0]["file"], path(&index));
    fs::remove_file(&index).unwrap();
    let report = document("verify", &fixture.root(), 0);
    assert_eq!(report["logs"][0]["segments"][0]["index"], "absent");
    // A row that leads elsewhere, under a checksum that is right.
    let mut lying = good;
    lying[32 + 24] ^= 8;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&lying[..28]);
    hasher.update(&lying[32..]);
    lying[28..32].copy_from_slice(&hasher.finalize().to_le_bytes());
    fs::write(&index, lying).unwrap();
    expect_damage(&fixture, &index, 0, "row 0 leads to entry 1 at position");
}

#[test]
fn a_missing_segment_is_damage() {
    let fixture = Fixture::closed(100);
    let segments = fixture.segments();
    let range = |n: usize| {
        let report = document("stats", &fixture.root(), 0);
        let segment = &report["logs"][0]["segments"][n];
        format!("entries {} to {} is missing", segment["first_index"], segment["last_index"])
    };
    for (n, segment) in segments.iter().enumerate().rev().skip(1) {
        let (what, good) = (range(n), fs::read(segment).unwrap());
        fs::remove_file(segment).unwrap();
        expect_damage(&fixture, &fixture.log_dir(), 0, &what);
        fs::write(segment, good).unwrap();
    }
    fs::remove_file(segments.last().unwrap()).unwrap();
    let report = document("verify", &fixture.root(), 1);
    let what = report["damage"][0]["what"].as_str().unwrap();
    assert!(what.contains("to 100 cannot be read: "), "{what}");
    for file in fixture.segments() {
        fs::remove_file(file).unwrap();
    }
    expect_damage(&fixture, &fixture.log_dir(), 0, "the journal knows entries up to 100");
    fs::remove_dir_all(fixture.log_dir()).unwrap();
    expect_damage(&fixture, &fixture.log_dir(), 0, "its directory is missing");
}

#[test]
fn segments_that_do_not_continue_one_another_are_damage() {
    let (fixture, other) = (Fixture::closed(100), Fixture::closed(0));
    // The same entries with another history before them: only the chain is different.
    let dir = other.open();
    let (mut log, _) = dir.open_log(LOG).unwrap();
    log.truncate_suffix(1, 0, None).unwrap();
    append(&mut log, 100);
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let report = document("verify", &other.root(), 0);
    assert_eq!(report["ok"], true);
    let file = fixture.segments().remove(2);
    change(&file, |bytes| {
        // The chain of the header, in both copies, under checksums that are right.
        for at in [0, 4096] {
            bytes[at + 96] ^= 1;
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&bytes[at..at + 12]);
            hasher.update(&bytes[at + 16..at + 128]);
            let crc = hasher.finalize().to_le_bytes();
            bytes[at + 12..at + 16].copy_from_slice(&crc);
        }
    });
    expect_damage(&fixture, &file, 0, "its header continues entry");
}

#[test]
fn one_damaged_copy_of_the_journal_is_damage_and_two_are_amnesia() {
    let fixture = Fixture::closed(20);
    let copies: Vec<_> =
        ["a", "b"].iter().flat_map(|e| files_in(&fixture.root().join("meta"), e)).collect();
    assert_eq!(copies.len(), 2);
    for copy in &copies {
        let good = fs::read(copy).unwrap();
        change(copy, |bytes| bytes[64 + 20] ^= 1);
        expect_damage(&fixture, copy, 64, "cannot be read, the other copy has it");
        change(copy, |bytes| bytes[20] ^= 1);
        expect_damage(&fixture, copy, 0, "the head of this copy");
        fs::remove_file(copy).unwrap();
        expect_damage(&fixture, copy, 0, "missing or cannot be read");
        fs::write(copy, good).unwrap();
    }
    for copy in &copies {
        change(copy, |bytes| bytes[64 + 20] ^= 1);
    }
    expect_damage(&fixture, &fixture.root().join("meta"), 0, "both copies are damaged");
    fs::remove_dir_all(fixture.root().join("meta")).unwrap();
    expect_damage(&fixture, &fixture.root().join("meta"), 0, "the meta journal is missing");
}

#[test]
fn files_that_do_not_belong_are_noted() {
    let fixture = Fixture::closed(20);
    let stray = fixture.log_dir().join("stray.txt");
    fs::write(&stray, "x").unwrap();
    fs::create_dir_all(fixture.root().join("quarantine").join("old")).unwrap();
    let report = document("verify", &fixture.root(), 0);
    let notes: Vec<_> = report["notes"].as_array().unwrap().iter().map(|n| &n["file"]).collect();
    assert_eq!(notes, [&path(&fixture.root().join("quarantine/old")), &path(&stray)]);
    assert_eq!(report["logs"][0]["unknown"][0], path(&stray));
}

#[test]
fn a_segment_of_another_log_is_damage_and_the_rest_is_inspected() {
    let fixture = Fixture::closed(20);
    let dir = fixture.open();
    let second = quipu::types::LogId(uuid::Uuid::from_u128(0x52));
    drop(new_log(&dir, second, 5));
    dir.close().unwrap();
    let from = fixture.segments().remove(0);
    let strange = fixture.root().join("logs").join(second.to_string());
    let strange = strange.join("00000000000000000099-00000009.seg");
    fs::copy(from, &strange).unwrap();
    let report = document("verify", &fixture.root(), 1);
    // Its name says that there was an entry 99, so what should lead up to it is missing too.
    let damage = report["damage"].as_array().unwrap();
    assert!(damage[0]["what"].as_str().unwrap().contains("entries 6 to 98"), "{damage:?}");
    assert_eq!(damage[1]["file"], path(&strange));
    assert!(damage[1]["what"].as_str().unwrap().contains("belongs to log"), "{damage:?}");
    assert_eq!(damage.len(), 2);
    assert_eq!(report["totals"]["entries"], 25);
}

#[test]
fn a_later_version_is_no_damage_but_cannot_be_judged() {
    let fixture = Fixture::closed(20);
    let file = fixture.segments().remove(0);
    change(&file, |bytes| {
        bytes[8] = 7;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..128]);
        let crc = hasher.finalize().to_le_bytes();
        bytes[12..16].copy_from_slice(&crc);
    });
    let report = document("verify", &fixture.root(), 1);
    assert_eq!(report["damage"], Value::Array(Vec::new()));
    assert_eq!(report["failures"][0]["file"], path(&file));
    let what = report["failures"][0]["what"].as_str().unwrap();
    assert!(what.starts_with("format version 7") && what.contains("newer program"), "{what}");
    fs::write(fixture.root().join("quipu.dir"), "quipu data directory, format 9\n").unwrap();
    let output = log_tool("table", "verify", &fixture.root(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("has format version 9"), "{}", stderr(&output));
}

fn path(path: &std::path::Path) -> Value {
    let path: PathBuf = path.into();
    path.to_str().unwrap().into()
}
