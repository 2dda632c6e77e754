//! What the tests share: data directories on the real disk, and runs of the command on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use bytes::Bytes;
use quipu::batch::{BatchBuilder, Codec, Limits, Record, payload_crc};
use quipu::storage::fs::os::OsFs;
use quipu::storage::{Config, DataDir, Entry, Kind, Log, Tip};
use quipu::types::LogId;
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

/// The log that most tests use.
pub(crate) const LOG: LogId = LogId(Uuid::from_u128(0x51));
/// Append time of the first entry.
pub(crate) const TIME_MS: i64 = 1_700_000_000_000;

/// A data directory on the real disk.
pub(crate) struct Fixture {
    temporary: TempDir,
}

impl Fixture {
    /// A directory with one log of `entries` entries that was closed in order.
    pub(crate) fn closed(entries: u64) -> Self {
        let fixture = Self::empty();
        let dir = fixture.open();
        let log = new_log(&dir, LOG, entries);
        dir.close_log(log).unwrap();
        dir.close().unwrap();
        fixture
    }

    /// The same, left as a killed process leaves it: synced, with nothing said at the end.
    pub(crate) fn killed(entries: u64) -> Self {
        let fixture = Self::empty();
        let dir = fixture.open();
        let log = new_log(&dir, LOG, entries);
        log.sync().unwrap();
        drop((log, dir));
        fixture
    }

    pub(crate) fn empty() -> Self {
        Self { temporary: TempDir::new().unwrap() }
    }

    pub(crate) fn open(&self) -> DataDir {
        DataDir::open(Arc::new(OsFs::new()), &self.root(), Config::tiny()).unwrap()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.temporary.path().join("data")
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.root().join("logs").join(LOG.to_string())
    }

    /// The log's segment files, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        files_in(&self.log_dir(), "seg")
    }

    /// Every file below the temporary directory with its bytes, every directory with nothing.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        collect(self.temporary.path(), &mut found);
        found
    }
}

/// Files of a directory by extension, sorted.
pub(crate) fn files_in(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

fn collect(dir: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
            found.insert(path, None);
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
}

/// Makes a log of `entries` entries: each tenth is a no-op, the others batches of two records.
pub(crate) fn new_log(dir: &DataDir, id: LogId, entries: u64) -> Log {
    let mut log = dir.create_log(id, Tip::EMPTY, b"the beginning").unwrap();
    append(&mut log, entries);
    log.sync().unwrap();
    log
}

/// Appends entries that continue the log, one by one.
pub(crate) fn append(log: &mut Log, entries: u64) {
    for _ in 0..entries {
        let entry = next_entry(&log.tip());
        log.append(&mut [entry], &mut |tip| format!("state at {}", tip.index).into()).unwrap();
    }
}

fn next_entry(tip: &Tip) -> Entry {
    let index = tip.index + 1;
    let is_batch = !index.is_multiple_of(10);
    let payload = if is_batch { batch(index) } else { Bytes::new() };
    let crc = payload_crc(&payload);
    let kind = if is_batch { Kind::Records } else { Kind::NoOp };
    let time = TIME_MS + 1000 * index as i64;
    let entry = Entry::new(kind, index, 3, payload, crc).at_time(time);
    entry.with_records(tip.end_offset, if is_batch { 2 } else { 0 })
}

/// Two records: one of text with a header, one with a key and value that are no text.
fn batch(index: u64) -> Bytes {
    let mut builder = BatchBuilder::new(Limits::default());
    let (key, value) = (format!("key-{index}"), format!("value-{index} ä"));
    let text = Record {
        key: Some(key.as_bytes()),
        value: Some(value.as_bytes()),
        headers: &[("trace", b"abc")],
        event_time_ms: Some(TIME_MS),
    };
    builder.append(&text).unwrap();
    let binary = Record { value: Some(&[0xFF, 0, index as u8]), ..Record::default() };
    builder.append(&binary).unwrap();
    builder.build(if index.is_multiple_of(2) { Codec::Lz4 } else { Codec::None }).unwrap()
}

/// Runs the command.
pub(crate) fn quipu(args: &[&str]) -> Output {
    assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("quipu")).args(args).output().unwrap()
}

/// Runs `quipu [-o json] log VERB PATH ARGS...`.
pub(crate) fn log_tool(format: &str, verb: &str, path: &Path, args: &[&str]) -> Output {
    let path = path.to_str().unwrap();
    quipu(&[&["-o", format, "log", verb, path], args].concat())
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a tool for its JSON document, and checks its exit code.
#[track_caller]
pub(crate) fn document(verb: &str, path: &Path, code: i32) -> Value {
    let output = log_tool("json", verb, path, &[]);
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout(&output), stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs `dump` for its JSON lines.
#[track_caller]
pub(crate) fn dump_lines(path: &Path, args: &[&str], code: i32) -> Vec<Value> {
    let output = log_tool("json", "dump", path, args);
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout(&output), stderr(&output));
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Changes the bytes of a file behind everyone's back.
pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Where entry `index` stands: the segment file, and the position of its frame.
pub(crate) fn place_of(fixture: &Fixture, index: u64) -> (PathBuf, u64) {
    let lines = dump_lines(&fixture.root(), &[], 0);
    let entry = lines.iter().find(|line| line["index"] == index).unwrap();
    (PathBuf::from(entry["file"].as_str().unwrap()), entry["position"].as_u64().unwrap())
}

/// Asserts that both outputs of `verify` name the damage, and exit code and stats agree.
#[track_caller]
pub(crate) fn expect_damage(fixture: &Fixture, file: &Path, position: u64, what: &str) {
    let report = document("verify", &fixture.root(), 1);
    let is_it = |damage: &&Value| {
        damage["file"] == file.to_str().unwrap() && damage["position"] == position
    };
    let damage = report["damage"].as_array().unwrap();
    let found = damage.iter().find(is_it).unwrap_or_else(|| panic!("not found: {report:#}"));
    assert!(found["what"].as_str().unwrap().contains(what), "{found}");
    assert_eq!(report["ok"], false);
    let line = format!("DAMAGED {} at position {position}: ", file.display());
    let table = log_tool("table", "verify", &fixture.root(), &[]);
    assert_eq!(table.status.code(), Some(1));
    assert!(stdout(&table).contains(&line), "{}", stdout(&table));
    let json = log_tool("json", "verify", &fixture.root(), &[]);
    assert!(stderr(&json).contains(&line), "{}", stderr(&json));
    assert_eq!(document("stats", &fixture.root(), 1)["damage"], report["damage"]);
}
