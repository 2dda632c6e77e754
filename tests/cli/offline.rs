//! The offline tools on directories that are as they should be.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quipu::storage::fs::Fs as _;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{Config, DataDir, Tip};
use quipu::types::LogId;
use uuid::Uuid;

use crate::support::*;

#[test]
fn a_good_directory_verifies_in_every_shape() {
    let fixture = Fixture::closed(100);
    let segments = fixture.segments();
    assert!(segments.len() > 2, "the log has rolled: {segments:?}");
    for path in [&fixture.root(), &fixture.log_dir(), &segments[0], segments.last().unwrap()] {
        for verb in ["verify", "stats"] {
            let report = document(verb, path, 0);
            assert_eq!(report["ok"], true, "{report:#}");
            assert_eq!(report["damage"].as_array().unwrap().len(), 0);
            assert_eq!(report["notes"].as_array().unwrap().len(), 0, "{report:#}");
            let table = log_tool("table", verb, path, &[]);
            assert_eq!(table.status.code(), Some(0));
            assert_eq!(stderr(&table), "", "nothing but data where no one watches");
        }
    }
}

#[test]
fn stats_count_what_was_appended() {
    let fixture = Fixture::closed(100);
    let report = document("stats", &fixture.root(), 0);
    assert_eq!(report["kind"], "data-directory");
    assert_eq!(report["in_use"], false);
    assert_eq!(report["closed_cleanly"], true);
    assert_eq!(report["totals"]["logs"], 1);
    assert_eq!(report["totals"]["entries"], 100);
    assert_eq!(report["totals"]["records"], 180);
    let log = &report["logs"][0];
    assert_eq!(log["log"], LOG.to_string());
    assert_eq!((&log["first_index"], &log["last_index"]), (&1.into(), &100.into()));
    assert_eq!((&log["log_start_offset"], &log["log_end_offset"]), (&0.into(), &180.into()));
    assert_eq!(log["watermark"], 100);
    assert_eq!(log["closed_cleanly"], true);
    let segments = log["segments"].as_array().unwrap();
    assert_eq!(segments.len(), fixture.segments().len());
    let mut next_index = 1;
    for (n, segment) in segments.iter().enumerate() {
        assert_eq!(segment["base_index"], next_index);
        assert_eq!(segment["checkpoint"], "valid");
        assert_eq!(segment["index"], "valid", "{segment:#}");
        assert_eq!(segment["header_copies"], serde_json::json!(["valid", "valid"]));
        assert_eq!(segment["is_active"], n + 1 == segments.len());
        assert_eq!(segment["end"], "whole");
        assert_eq!(segment["file_bytes"], fixture.segments()[n].metadata().unwrap().len());
        next_index = segment["last_index"].as_u64().unwrap() + 1;
    }
    assert_eq!(segments[0]["first_append_time_ms"], TIME_MS + 1000);
    let table = stdout(&log_tool("table", "stats", &fixture.root(), &[]));
    assert!(table.contains("offsets 0 to 180 (exclusive), indices 1 to 100"), "{table}");
}

#[test]
fn the_documented_fields_are_there() {
    let fixture = Fixture::closed(5);
    let report = document("verify", &fixture.root(), 0);
    let fields = |value: &serde_json::Value| {
        value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        fields(&report),
        "closed_cleanly damage failures in_use journal kind logs notes ok path totals"
    );
    assert_eq!(
        fields(&report["logs"][0]),
        "closed_cleanly damage dir first_index last_index log log_end_offset log_start_offset \
         notes segments totals unknown void watermark"
    );
    assert_eq!(
        fields(&report["logs"][0]["segments"][0]),
        "base_index base_offset checkpoint checkpoint_bytes end end_offset end_position entries \
         file file_bytes first_append_time_ms first_index generation header_copies index \
         is_active is_recycled last_append_time_ms last_index origin payload_bytes records"
    );
    assert_eq!(fields(&report["totals"]), "entries file_bytes logs payload_bytes records segments");
    assert_eq!(fields(&report["journal"]), "facts generation sequence");
    let line = &dump_lines(&fixture.root(), &["--records", "--max", "1"], 0)[0];
    assert_eq!(
        fields(line),
        "append_time_ms base_offset base_sequence chain file flags format index kind log \
         payload_crc payload_len position producer_epoch producer_id record_count records \
         synced_index term type"
    );
    assert_eq!(fields(&line["records"][0]), "event_time_ms headers key offset value");
}

#[test]
fn dump_prints_every_entry_once_and_in_order() {
    let fixture = Fixture::closed(100);
    let lines = dump_lines(&fixture.root(), &[], 0);
    let indices: Vec<u64> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, (1..=100).collect::<Vec<_>>());
    assert!(lines.iter().all(|line| line["type"] == "entry" && line["records"].is_null()));
    let from = dump_lines(&fixture.root(), &["--from-index", "42", "--max", "3"], 0);
    assert_eq!(from, lines[41..44]);
    let offset = lines[70]["base_offset"].as_u64().unwrap() + 1;
    let from = dump_lines(&fixture.root(), &["--from-offset", &offset.to_string()], 0);
    assert_eq!(from, lines[70..], "the entry that holds the offset comes first");
    let table = stdout(&log_tool("table", "dump", &fixture.root(), &[]));
    assert_eq!(table.lines().filter(|line| line.contains("2023-11-14T22:")).count(), 100);
    let one = dump_lines(&fixture.segments()[1], &[], 0);
    assert!(one.len() < 100 && lines.windows(one.len()).any(|some| some == one));
}

#[test]
fn dump_shows_records_as_text_or_in_hex_and_no_more_than_was_asked_for() {
    let fixture = Fixture::closed(4);
    for line in &dump_lines(&fixture.root(), &["--records", "--preview", "6"], 0) {
        let (index, offset) = (&line["index"], line["base_offset"].as_u64().unwrap());
        let expected = serde_json::json!([
            {
                "offset": offset, "event_time_ms": TIME_MS,
                "key": {"bytes": 5, "text": format!("key-{index}")},
                "value": {"bytes": 10, "text": "value-"},
                "headers": [["trace", {"bytes": 3, "text": "abc"}]],
            },
            {
                "offset": offset + 1, "event_time_ms": null, "key": null,
                "value": {"bytes": 3, "hex": format!("ff000{index}")}, "headers": [],
            },
        ]);
        assert_eq!(line["records"], expected);
    }
    let table = stdout(&log_tool("table", "dump", &fixture.root(), &["--records"]));
    assert!(
        table.contains("offset 2  key \"key-2\"  value \"value-2 ä\"  trace: \"abc\""),
        "{table}"
    );
    assert!(table.contains("offset 3  key -  value 0xff0002"), "{table}");
}

#[test]
fn nothing_changes_in_any_directory_that_is_looked_at() {
    let killed = Fixture::killed(60);
    change(&killed.segments()[1], |bytes| bytes[20] ^= 1);
    let end = killed.segments().pop().unwrap();
    change(&end, |bytes| *bytes.last_mut().unwrap() = 7);
    fs::write(killed.log_dir().join("stray"), "x").unwrap();
    fs::remove_file(killed.root().join("quipu.lock")).unwrap();
    for fixture in [Fixture::closed(60), killed, Fixture::empty()] {
        let before = fixture.snapshot();
        for verb in ["dump", "verify", "stats"] {
            for path in [fixture.root(), fixture.log_dir()] {
                log_tool("table", verb, &path, &[]);
                log_tool("json", verb, &path, &[]);
            }
        }
        assert_eq!(fixture.snapshot(), before);
    }
}

#[test]
fn a_directory_in_use_is_read_and_the_report_says_so() {
    let fixture = Fixture::empty();
    let dir = fixture.open();
    let mut log = new_log(&dir, LOG, 50);
    let report = document("verify", &fixture.root(), 0);
    assert_eq!(report["in_use"], true);
    assert_eq!(report["closed_cleanly"], false);
    assert_eq!(report["totals"]["entries"], 50);
    let what = report["notes"][0]["what"].as_str().unwrap();
    assert!(what.contains("a process uses this data directory"), "{what}");
    append(&mut log, 50);
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    assert_eq!(document("verify", &fixture.root(), 0)["in_use"], false);
}

#[test]
fn a_log_that_is_written_meanwhile_never_looks_damaged() {
    let fixture = Fixture::empty();
    let dir = fixture.open();
    let mut log = new_log(&dir, LOG, 1);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..400 {
                append(&mut log, 5);
                log.sync().unwrap();
                let end = log.reader().log_end_offset();
                log.advance_log_start(end.saturating_sub(200), u64::MAX).unwrap();
                dir.journal().sync().unwrap();
                log.reclaim().unwrap();
            }
        });
        let mut looks = 0;
        while !writer.is_finished() || looks < 3 {
            document("verify", &fixture.root(), 0);
            looks += 1;
        }
    });
}

#[test]
fn asking_for_the_lock_does_not_keep_a_server_from_starting() {
    let fixture = Fixture::closed(1);
    let lock = fixture.root().join("quipu.lock");
    // Whoever asks holds the lock for an instant, here for a longer one. A slow machine may make it
    // too long; it is enough if the lock is ever waited for.
    let is_taken_in_time = || {
        let asking = fs::File::open(&lock).unwrap();
        rustix::fs::flock(&asking, rustix::fs::FlockOperation::LockShared).unwrap();
        thread::scope(|scope| {
            let taking = scope.spawn(|| OsFs::new().try_lock(&lock).unwrap().is_some());
            thread::sleep(Duration::from_millis(8));
            drop(asking);
            taking.join().unwrap()
        })
    };
    assert!((0..20).any(|_| is_taken_in_time()));
}

#[test]
fn a_log_with_a_history_verifies_truncations_retention_and_resets_included() {
    let fixture = Fixture::empty();
    let dir = fixture.open();
    let mut log = new_log(&dir, LOG, 90);
    log.truncate_suffix(70, 10, None).unwrap();
    append(&mut log, 40);
    log.sync().unwrap();
    log.advance_log_start(60, u64::MAX).unwrap();
    dir.journal().sync().unwrap();
    log.reclaim().unwrap();
    let second = LogId(Uuid::from_u128(0x52));
    let mut other = new_log(&dir, second, 30);
    other.advance_log_start(20, u64::MAX).unwrap();
    let tip = Tip { index: 500, term: 4, end_offset: 900, ..log.tip() };
    other.reset(tip, b"a snapshot").unwrap();
    other.sync().unwrap();
    dir.close_log(other).unwrap();
    dir.close_log(log).unwrap();
    dir.close().unwrap();
    let report = document("verify", &fixture.root(), 0);
    let log = &report["logs"][0];
    assert_eq!(log["log_start_offset"], 60);
    assert_eq!(log["last_index"], 109);
    let lines = dump_lines(&fixture.root(), &["--log", &LOG.to_string()], 0);
    let entries: Vec<_> = lines.iter().filter(|line| line["type"] == "entry").collect();
    let indices: Vec<u64> = entries.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    let first = log["first_index"].as_u64().unwrap();
    assert_eq!(indices, (first..=109).collect::<Vec<_>>(), "no entry that was cut off");
    assert_eq!(report["logs"][1]["log_start_offset"], 900, "{report:#}");
}

#[test]
fn one_log_can_be_chosen() {
    let fixture = Fixture::empty();
    let dir = fixture.open();
    let second = LogId(Uuid::from_u128(0x52));
    drop((new_log(&dir, LOG, 3), new_log(&dir, second, 4)));
    drop(dir);
    assert_eq!(dump_lines(&fixture.root(), &[], 0).len(), 7);
    let chosen = dump_lines(&fixture.root(), &["--log", &second.to_string()], 0);
    assert_eq!(chosen.len(), 4);
    let missing = log_tool("table", "dump", &fixture.root(), &["--log", &LOG_MISSING.to_string()]);
    assert_eq!(missing.status.code(), Some(3));
    assert!(stderr(&missing).contains("hint: without --log"), "{}", stderr(&missing));
    let wrong = log_tool("table", "dump", &fixture.root(), &["--log", "one"]);
    assert_eq!(wrong.status.code(), Some(2));
}

const LOG_MISSING: LogId = LogId(Uuid::from_u128(0x99));

#[test]
fn what_is_not_there_is_not_found() {
    let fixture = Fixture::empty();
    for verb in ["dump", "verify", "stats"] {
        let output = log_tool("table", verb, &fixture.root(), &[]);
        assert_eq!(output.status.code(), Some(3), "{verb}");
        let said = stderr(&output);
        assert!(
            said.contains(fixture.root().to_str().unwrap()) && said.contains("hint:"),
            "{said}"
        );
        assert_eq!(said.matches("No such file").count(), 1, "{said}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_foreign_directory_is_refused_with_advice() {
    let fixture = Fixture::empty();
    fs::create_dir(fixture.root()).unwrap();
    fs::write(fixture.root().join("photo.jpg"), "x").unwrap();
    for path in [fixture.root(), fixture.root().join("photo.jpg")] {
        let output = log_tool("table", "verify", &path, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("hint: point at a data directory"), "{}", stderr(&output));
    }
}

#[test]
fn help_teaches_at_every_level() {
    for args in [
        vec!["--help"],
        vec!["log", "--help"],
        vec!["log", "dump", "--help"],
        vec!["log", "verify", "--help"],
        vec!["log", "stats", "--help"],
    ] {
        let output = quipu(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let text = stdout(&output);
        assert!(text.contains("Examples:\n") && text.contains("Exit codes:"), "{args:?}: {text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
    for args in [vec![], vec!["log"], vec!["log", "verify"], vec!["lag"]] {
        assert_eq!(quipu(&args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let fixture = Fixture::empty();
    let dir = DataDir::open(Arc::new(OsFs::new()), &fixture.root(), Config::default());
    let dir = dir.unwrap();
    drop(new_log(&dir, LOG, 3000));
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
    command.args(["-o", "json", "log", "dump"]).arg(fixture.root());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
