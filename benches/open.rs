//! Opening a data directory: one large log, and very many empty ones. Beside it look-ups in the
//! large log, which is there anyway.
//!
//! `cargo bench --bench open` prints a table and, as its last line, the same figures as JSON. Each
//! stage runs in a process of its own: crashes are real, and memory is that of the stage alone.
//! `QUIPU_BENCH_GB` is the size of the large log, 10 unless it says otherwise.

mod place;

use std::env;
use std::fs;
use std::hint::black_box;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use bytes::Bytes;
use place::Place;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{
    Access, Config, DataDir, Entry, Kind, Log, LogReader, Result, SyncRequest, Tip,
};
use quipu::types::LogId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const PARTITIONS: u128 = 10_000;
/// Small batches: a lookup then walks over several of them behind the index's row.
const BATCH_BYTES: usize = 1024;
const RECORDS: u64 = 10;
const FIRST_TIME_MS: i64 = 1_700_000_000_000;
const LARGE: LogId = LogId(Uuid::from_u128(1));
/// Entries that are appended at once when the large log is filled.
const FILL_ENTRIES: u64 = 64;
const LOOKUPS: u64 = 100_000;
/// What a stage prints before its figures.
const MARK: &str = "figures: ";

/// One measured value.
#[derive(Serialize, Deserialize)]
struct Figure {
    what: String,
    value: f64,
    unit: String,
    /// What it must stay below.
    target: Option<f64>,
}

type Stage = fn(&Path) -> Vec<Figure>;

/// In the order they run; each finds what those before it left.
const STAGES: [(&str, Stage); 8] = [
    ("create-many", create_many),
    ("recover-many", recover_many),
    ("open-many", open_many),
    ("fill-large", fill_large),
    ("open-large-cold", open_large_cold),
    ("open-large", open_large),
    ("look-up", look_up),
    ("recover-large", recover_large),
];

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, flag, name, dir] = arguments.as_slice()
        && flag == "--stage"
    {
        let (_, stage) = STAGES.iter().find(|(n, _)| n == name).expect("a stage of this name");
        let figures = stage(Path::new(dir));
        println!("{MARK}{}", serde_json::to_string(&figures).expect("figures are plain data"));
        // Not one destructor runs: unless a stage closed what it had, this is a crash.
        process::exit(0);
    }
    let place = Place::new();
    let figures: Vec<Figure> = STAGES.iter().flat_map(|(name, _)| run(name, &place)).collect();
    println!("\n{:<58}{:>12}{:>12}", "", "measured", "target");
    figures.iter().for_each(print);
    println!("{}", serde_json::to_string(&figures).expect("figures are plain data"));
}

/// Runs a stage in a process of its own.
fn run(name: &str, place: &Place) -> Vec<Figure> {
    eprintln!("stage {name}");
    let this = env::current_exe().expect("the bench knows its own file");
    let output = Command::new(this).args(["--stage", name]).arg(place.path()).output();
    let output = output.expect("a stage can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(MARK));
    let line =
        line.unwrap_or_else(|| panic!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(line).expect("a stage prints figures")
}

fn print(figure: &Figure) {
    let Figure { what, value, unit, target } = figure;
    let target_words = target.map_or(String::new(), |target| format!("< {target} {unit}"));
    let is_missed = target.is_some_and(|target| *value >= target);
    let missed = if is_missed { "  missed" } else { "" };
    println!("{what:<58}{:>12}{target_words:>12}{missed}", format!("{value:.2} {unit}"));
}

/// Creates very many logs, each durable, and crashes.
fn create_many(dir: &Path) -> Vec<Figure> {
    let (many, before) = (dir.join("many"), memory_kib());
    let disk_before = disk_kib(&many);
    let started = Instant::now();
    let data = open(&many);
    let (sender, done) = sync_channel(16);
    let on_round = move |round: Result<&[u64]>| {
        let count = round.expect("the round succeeds").len();
        sender.send(count).expect("the stage waits for every round");
    };
    let syncer = data.start_syncer(Box::new(on_round));
    let mut logs = Vec::new();
    for n in 0..PARTITIONS {
        let log = data.create_log(many_id(n), Tip::EMPTY, b"").expect("a log can be made");
        syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 0 });
        logs.push(log);
    }
    let mut synced = 0;
    while synced < logs.len() {
        synced += done.recv().expect("sync threads report");
    }
    let elapsed = started.elapsed().as_secs_f64();
    let memory = (memory_kib() - before) / logs.len() as f64;
    let disk = (disk_kib(&many.join("logs")) - disk_before) / logs.len() as f64;
    std::mem::forget((syncer, logs));
    vec![
        figure("10,000 empty logs, created and durable", elapsed, "s", Some(10.0)),
        figure("10,000 empty logs, disk each", disk, "KiB", Some(64.0)),
        figure("10,000 empty logs, memory each after creation", memory, "KiB", Some(16.0)),
    ]
}

/// Opens very many logs after a crash of the process, and closes them in order.
fn recover_many(dir: &Path) -> Vec<Figure> {
    let many = dir.join("many");
    let (data, logs, elapsed, _) = open_each(&many);
    let started = Instant::now();
    for log in logs {
        data.close_log(log).expect("a log closes");
    }
    data.close().expect("the directory closes");
    let closing = started.elapsed().as_secs_f64();
    vec![
        figure("10,000 empty logs, opened after a crash", elapsed, "s", Some(10.0)),
        figure("10,000 empty logs, closed", closing, "s", None),
    ]
}

/// Opens very many logs after a clean end.
fn open_many(dir: &Path) -> Vec<Figure> {
    let (_data, _logs, elapsed, memory) = open_each(&dir.join("many"));
    vec![
        figure("10,000 empty logs, opened after a clean end", elapsed, "s", Some(10.0)),
        figure("10,000 empty logs, memory each after opening", memory, "KiB", Some(16.0)),
    ]
}

/// Opens every log of a directory: seconds, and KiB of memory for each.
fn open_each(dir: &Path) -> (DataDir, Vec<Log>, f64, f64) {
    let before = memory_kib();
    let started = Instant::now();
    let data = open(dir);
    let ids = data.logs().expect("the logs can be listed");
    let open = |id| data.open_log(id).expect("a log opens").0;
    let logs: Vec<Log> = ids.into_iter().map(open).collect();
    assert_eq!(logs.len() as u128, PARTITIONS, "every log is there");
    let elapsed = started.elapsed().as_secs_f64();
    let memory = (memory_kib() - before) / logs.len() as f64;
    (data, logs, elapsed, memory)
}

/// Fills one log to its full size, its last segment nearly to the end, and closes it.
fn fill_large(dir: &Path) -> Vec<Figure> {
    let segment_bytes = Config::default().segment_bytes;
    let count = (large_gb() * 1_000_000_000 / segment_bytes) as usize;
    // Without spares each byte is written twice at most.
    let config = Config { spares_max: 0, ..Config::default() };
    let data = DataDir::open(Arc::new(OsFs::new()), &dir.join("large"), config);
    let data = data.expect("the data directory opens");
    let mut log = data.create_log(LARGE, Tip::EMPTY, b"").expect("a log can be made");
    let started = Instant::now();
    let mut is_full = false;
    while !is_full {
        let before = log.reader().segments().len();
        append_large(&mut log);
        let segments = log.reader().segments();
        if segments.len() > before {
            log.sync().expect("the log syncs");
        }
        let last = segments.last().expect("a log has a segment");
        is_full = segments.len() >= count && last.end() > segment_bytes / 10 * 9;
    }
    log.sync().expect("the log syncs");
    let elapsed = started.elapsed().as_secs_f64();
    close(data, log);
    vec![figure(&large("written and synced"), elapsed, "s", None)]
}

/// Appends some batches at once.
fn append_large(log: &mut Log) {
    let payload = Bytes::from_static(&[7; BATCH_BYTES]);
    let crc = crc32fast::hash(&payload);
    let first = log.tip().index + 1;
    let entry = |index| large_entry(index, payload.clone(), crc);
    let mut entries: Vec<Entry> = (first..first + FILL_ENTRIES).map(entry).collect();
    log.append(&mut entries, &mut |_| Bytes::new()).expect("the log takes the entries");
}

fn large_entry(index: u64, payload: Bytes, crc: u32) -> Entry {
    Entry::new(Kind::Records, index, 1, payload, crc)
        .with_records((index - 1) * RECORDS, RECORDS as u32)
        .at_time(FIRST_TIME_MS + index.cast_signed())
}

/// Opens the large log after a clean end, with none of its files in memory.
fn open_large_cold(dir: &Path) -> Vec<Figure> {
    forget_files(&dir.join("large"));
    let (data, log, elapsed) = open_timed(dir);
    close(data, log);
    vec![figure(&large("opened after a clean end, cold"), elapsed, "s", Some(0.3))]
}

/// Opens the large log after a clean end, as it stands in the page cache.
fn open_large(dir: &Path) -> Vec<Figure> {
    let (data, log, elapsed) = open_timed(dir);
    close(data, log);
    vec![figure(&large("opened after a clean end"), elapsed, "s", Some(0.3))]
}

/// Looks entries up by index, offset and time, and crashes with entries that were not synced.
fn look_up(dir: &Path) -> Vec<Figure> {
    let (_data, mut log, _) = open_timed(dir);
    let reader = log.reader();
    warm_up(&reader);
    let last = reader.last_index();
    let header = |reader: &LogReader, index| reader.header(index, Access::Hot).map(|h| h.index);
    let offset = |reader: &LogReader, index| {
        reader.index_of_offset((index - 1) * RECORDS + index % RECORDS, Access::Hot)
    };
    let time = |reader: &LogReader, index: u64| {
        let found = reader.offset_for_time(FIRST_TIME_MS + index.cast_signed(), Access::Hot)?;
        Ok(found.expect("a batch is as young as that").1)
    };
    let micros = [
        median_micros(&reader, last, header),
        median_micros(&reader, last, offset),
        median_micros(&reader, last, time),
    ];
    let figures = ["index", "offset", "time"].iter().zip(micros).map(|(by, micros)| {
        figure(&large(&format!("hot look-up by {by}, median")), micros, "us", Some(2.0))
    });
    let figures = figures.collect();
    append_large(&mut log);
    std::mem::forget(log);
    figures
}

/// Reads the whole log once.
fn warm_up(reader: &LogReader) {
    let mut entries = Vec::new();
    let mut next = reader.first_index();
    while next <= reader.last_index() {
        entries.clear();
        let read = reader.read(next, u64::MAX, 1 << 20, Access::MayBlock, &mut entries);
        read.expect("the log reads back");
        next += entries.len() as u64;
    }
}

/// Median time of look-ups all over the log. What the kernel dropped meanwhile is left out.
fn median_micros(
    reader: &LogReader,
    last_index: u64,
    look_up: impl Fn(&LogReader, u64) -> Result<u64>,
) -> f64 {
    let mut micros = Vec::new();
    for n in 0..LOOKUPS {
        let index = 1 + (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16) % last_index;
        let started = Instant::now();
        let found = black_box(look_up(reader, index));
        let elapsed = started.elapsed();
        if let Ok(found) = found {
            assert_eq!(found, index, "the entry that was looked for");
            micros.push(elapsed.as_secs_f64() * 1e6);
        }
    }
    let (found, wanted) = (micros.len() as u64, LOOKUPS / 2);
    assert!(found >= wanted, "{found} of {LOOKUPS} look-ups were hot");
    micros.sort_by(f64::total_cmp);
    micros[micros.len() / 2]
}

/// Opens the large log after a crash of the process.
fn recover_large(dir: &Path) -> Vec<Figure> {
    let (_data, _log, elapsed) = open_timed(dir);
    vec![figure(&large("opened after a crash"), elapsed, "s", Some(5.0))]
}

fn open_timed(dir: &Path) -> (DataDir, Log, f64) {
    let started = Instant::now();
    let data = open(&dir.join("large"));
    let (log, _) = data.open_log(LARGE).expect("the log opens");
    (data, log, started.elapsed().as_secs_f64())
}

fn open(dir: &Path) -> DataDir {
    let opened = DataDir::open(Arc::new(OsFs::new()), dir, Config::default());
    opened.expect("the data directory opens")
}

fn close(data: DataDir, log: Log) {
    data.close_log(log).expect("the log closes");
    data.close().expect("the directory closes");
}

/// Has the kernel drop every clean page of the files below `dir`.
fn forget_files(dir: &Path) {
    for path in files(dir) {
        let file = fs::File::open(path).expect("a file opens");
        file.sync_all().expect("a file syncs");
        let forgotten = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        forgotten.expect("the kernel takes advice");
    }
}

/// Disk in use below `dir`, directories included.
fn disk_kib(dir: &Path) -> f64 {
    let blocks = |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |data| data.blocks());
    files(dir).iter().map(blocks).sum::<u64>() as f64 / 2.0
}

/// Everything below `dir`, directories included.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut files(&path));
        }
        found.push(path);
    }
    found
}

/// Resident memory of this process, shared pages of files included.
fn memory_kib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("the system tells our memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("VmRSS is a number of KiB")
}

fn many_id(n: u128) -> LogId {
    LogId(Uuid::from_u128(n + 1))
}

fn large_gb() -> u64 {
    env::var("QUIPU_BENCH_GB").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

fn large(what: &str) -> String {
    format!("{} GB, {what}", large_gb())
}

fn figure(what: &str, value: f64, unit: &str, target: Option<f64>) -> Figure {
    Figure { what: what.to_owned(), value, unit: unit.to_owned(), target }
}
