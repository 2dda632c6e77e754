//! The log engine beside the raw system calls and copies it is made of.
//!
//! `cargo bench --bench storage` ends with a table of ratios. Appends run in the steady state of a
//! server: segments are recycled, so that both sides write into files that were written before.

mod contest;
mod place;

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use contest::{Contest, Lap, Scoreboard};
use criterion::Criterion;
use place::Place;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{
    Access, Config, DataDir, Entry, HEADER_BYTES, Kind, Log, LogReader, Policy, SyncRequest,
    Syncer, Tip,
};
use quipu::types::LogId;
use uuid::Uuid;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Payloads that take turns, as if each came fresh from a socket.
const PAYLOADS_BYTES: usize = MIB;
/// Files that the floor cycles through; Quipu has as many segments and spares.
const FLOOR_FILES: usize = 4;
const RECORDS: u32 = 10;
const SEGMENTS_KEPT: u64 = 2;
/// Bytes that are read, and bytes of one read.
const READ_TOTAL: usize = 128 * MIB;
const READ_STEP: usize = MIB;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(12)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .without_plots()
        .configure_from_args();
    let mut board = Scoreboard::default();
    // One place for all: the discards that follow removed files would slow the next syncs down.
    let place = Place::new();
    let mut bench = Bench { criterion: &mut criterion, board: &mut board, root: place.path() };
    bench.append_without_sync(64 * KIB, 0.85);
    bench.append_without_sync(KIB, 0.60);
    bench.append_with_sync(64 * KIB, 8, 0.90);
    bench.append_with_sync(4 * KIB, 1, 1.0 / 1.15);
    bench.read(64 * KIB, 0.70);
    criterion.final_summary();
    board.print();
}

struct Bench<'a> {
    criterion: &'a mut Criterion,
    board: &'a mut Scoreboard,
    root: &'a Path,
}

impl Bench<'_> {
    /// A lap fills one segment, so that each has its roll.
    fn append_without_sync(&mut self, size: usize, target: f64) {
        let parameters = format!("sync=none/size={}KiB", size / KIB);
        let dir = self.new_dir(&parameters);
        let payloads = payloads(size);
        let mut floor = Floor::new(&dir, &payloads);
        let mut quipu = Quipu::new(&dir, &payloads);
        let count = quipu.entries_per_segment();
        let floor_lap = &mut || {
            let elapsed = time(|| floor.append_with_crc(count));
            floor.sync();
            elapsed
        };
        let quipu_lap = &mut || {
            let elapsed = time(|| quipu.append(count));
            quipu.recycle();
            elapsed
        };
        let (operations, bytes) = (count as u64, (count * size) as u64);
        let contest = Contest { group: "append", parameters, operations, bytes, target };
        self.compare(&contest, &mut [("floor", floor_lap), ("quipu", quipu_lap)]);
    }

    /// A lap is one group: some appends and the sync that serves them all.
    fn append_with_sync(&mut self, size: usize, in_flight: usize, target: f64) {
        let parameters = format!("sync=group/in-flight={in_flight}/size={}KiB", size / KIB);
        let dir = self.new_dir(&parameters);
        let payloads = payloads(size);
        let mut floor = Floor::new(&dir, &payloads);
        let mut handing = Handing::start(Floor::new(&dir.join("handing"), &payloads));
        let mut inline = Quipu::new(&dir.join("inline"), &payloads);
        let mut threads = Quipu::new(&dir.join("threads"), &payloads);
        let rounds = Rounds::start(&threads);
        let floor_lap = &mut || {
            time(|| {
                floor.append(in_flight);
                floor.sync();
            })
        };
        let handing_lap = &mut || time(|| handing.append_and_sync(in_flight));
        let inline_lap = &mut || {
            let elapsed = time(|| {
                inline.append(in_flight);
                inline.log.sync().expect("the log syncs");
            });
            inline.recycle();
            elapsed
        };
        let threads_lap = &mut || {
            let elapsed = time(|| {
                threads.append(in_flight);
                rounds.sync(&threads.log);
            });
            threads.recycle();
            elapsed
        };
        let bytes = (in_flight * size) as u64;
        let contest = Contest { group: "append", parameters, operations: 1, bytes, target };
        let sides: &mut [(&str, Lap<'_>)] = &mut [
            ("floor", floor_lap),
            ("floor-2-threads", handing_lap),
            ("quipu-inline", inline_lap),
            ("quipu-syncer", threads_lap),
        ];
        self.compare(&contest, sides);
    }

    /// A lap reads a whole log of hot batches, one step after the other.
    fn read(&mut self, size: usize, target: f64) {
        let parameters = format!("step=1MiB/size={}KiB", size / KIB);
        let dir = self.new_dir(&parameters);
        let payloads = payloads(size);
        let mut quipu = Quipu::new(&dir, &payloads);
        quipu.append(READ_TOTAL / size);
        let reader = quipu.log.reader();
        let first = reader.last_index() + 1 - (READ_TOTAL / size) as u64;
        let source = payloads.concat().repeat(READ_TOTAL / PAYLOADS_BYTES);
        let (mut buffer, mut other) = (vec![0; READ_STEP], vec![0; READ_STEP]);
        let floor_lap = &mut || {
            time(|| {
                for step in source.chunks_exact(READ_STEP) {
                    buffer.copy_from_slice(step);
                    black_box(&buffer);
                }
            })
        };
        let copy_lap = &mut || {
            time(|| {
                read_from(&reader, first, |at, payload| {
                    other[at..at + payload.len()].copy_from_slice(payload);
                    black_box(&other);
                });
            })
        };
        let borrow_lap = &mut || time(|| read_from(&reader, first, |_, _| {}));
        let (operations, bytes) = ((READ_TOTAL / READ_STEP) as u64, READ_TOTAL as u64);
        let contest = Contest { group: "read", parameters, operations, bytes, target };
        let sides: &mut [(&str, Lap<'_>)] =
            &mut [("floor", floor_lap), ("quipu", copy_lap), ("borrowed", borrow_lap)];
        self.compare(&contest, sides);
    }

    fn compare(&mut self, contest: &Contest, sides: &mut [(&str, Lap<'_>)]) {
        self.board.compare(self.criterion, contest, sides);
    }

    /// A directory for one contest.
    fn new_dir(&self, parameters: &str) -> PathBuf {
        let dir = self.root.join(parameters.replace('/', ","));
        fs::create_dir(&dir).expect("a directory for a contest can be made");
        dir
    }
}

/// Reads a log from `first` to its last entry and shows each payload, with its place in its step.
fn read_from(reader: &LogReader, first: u64, mut show: impl FnMut(usize, &[u8])) {
    let (mut next, mut bytes) = (first, 0);
    let mut entries = Vec::new();
    while next <= reader.last_index() {
        entries.clear();
        let read = reader.read(next, u64::MAX, READ_STEP, Access::MayBlock, &mut entries);
        read.expect("the log reads back");
        let mut at = 0;
        for entry in &entries {
            show(at, &entry.payload);
            at += entry.payload.len();
        }
        bytes += at;
        next += entries.len() as u64;
    }
    assert_eq!(bytes, READ_TOTAL, "bytes read");
}

/// The raw system calls: prepared files of a segment's length, written over and over.
struct Floor {
    files: Vec<File>,
    payloads: Vec<Bytes>,
    next: usize,
    position: u64,
    current: usize,
}

impl Floor {
    fn new(dir: &Path, payloads: &[Bytes]) -> Self {
        let bytes = Config::default().segment_bytes;
        fs::create_dir_all(dir).expect("a directory for floor files can be made");
        let prepare = |n| {
            let file = File::create_new(dir.join(format!("floor-{n}")));
            let file = file.expect("a floor file can be made");
            for position in (0..bytes).step_by(64 * KIB) {
                let written = file.write_all_at(&[0; 64 * KIB], position);
                written.expect("a floor file can be filled");
            }
            file.sync_all().expect("a floor file syncs");
            file
        };
        let files = (0..FLOOR_FILES).map(prepare).collect();
        Self { files, payloads: payloads.to_vec(), next: 0, position: 0, current: 0 }
    }

    fn append_with_crc(&mut self, count: usize) {
        for _ in 0..count {
            black_box(crc32fast::hash(&self.payloads[self.next % self.payloads.len()]));
            self.append(1);
        }
    }

    fn append(&mut self, count: usize) {
        for _ in 0..count {
            let payload = &self.payloads[self.next % self.payloads.len()];
            if self.position + payload.len() as u64 > Config::default().segment_bytes {
                self.position = 0;
                self.current = (self.current + 1) % self.files.len();
            }
            let written = self.files[self.current].write_all_at(payload, self.position);
            written.expect("the floor writes");
            self.position += payload.len() as u64;
            self.next += 1;
        }
    }

    fn sync(&self) {
        self.files[self.current].sync_data().expect("the floor syncs");
    }
}

/// The floor whose syncs run on another thread: what the hand-off costs with nothing else in it.
struct Handing {
    floor: Floor,
    wanted: SyncSender<usize>,
    done: Receiver<()>,
}

impl Handing {
    fn start(floor: Floor) -> Self {
        let (wanted, orders) = sync_channel(1);
        let (sender, done) = sync_channel(1);
        let clone = |file: &File| file.try_clone().expect("a floor file has a second handle");
        let files: Vec<File> = floor.files.iter().map(clone).collect();
        let work = move || {
            for current in orders {
                let file: &File = &files[current];
                file.sync_data().expect("the floor syncs");
                sender.send(()).expect("the bench waits for each sync");
            }
        };
        thread::spawn(work);
        Self { floor, wanted, done }
    }

    fn append_and_sync(&mut self, count: usize) {
        self.floor.append(count);
        self.wanted.send(self.floor.current).expect("the thread takes orders");
        self.done.recv().expect("the thread syncs");
    }
}

/// A log in a data directory of its own, with retention by size.
struct Quipu {
    log: Log,
    dir: DataDir,
    payloads: Vec<Bytes>,
    segments: usize,
}

impl Quipu {
    /// A log that has rolled so often that its segments are recycled ones.
    fn new(dir: &Path, payloads: &[Bytes]) -> Self {
        let dir = DataDir::open(Arc::new(OsFs::new()), &dir.join("data"), Config::default());
        let dir = dir.expect("a data directory can be made");
        let log = dir.create_log(LogId(Uuid::from_u128(1)), Tip::EMPTY, b"");
        let log = log.expect("a log can be made");
        let mut quipu = Self { log, dir, payloads: payloads.to_vec(), segments: 1 };
        for _ in 0..2 * FLOOR_FILES {
            quipu.append(quipu.entries_per_segment());
            quipu.recycle();
        }
        let segments = quipu.log.reader().segments();
        let is_recycled = segments.iter().all(|segment| segment.header().is_recycled);
        assert!(is_recycled, "the steady state is one of recycled segments");
        quipu
    }

    fn entries_per_segment(&self) -> usize {
        let frame = HEADER_BYTES + self.payloads[0].len();
        Config::default().segment_bytes as usize / frame
    }

    /// Appends one batch after the other, each with its checksum computed.
    fn append(&mut self, count: usize) {
        for _ in 0..count {
            let tip = self.log.tip();
            let payload = self.payloads[tip.index as usize % self.payloads.len()].clone();
            let crc = crc32fast::hash(&payload);
            let entry = Entry::new(Kind::Records, tip.index + 1, 1, payload, crc)
                .with_records(tip.end_offset, RECORDS)
                .at_time(1_700_000_000_000 + tip.index.cast_signed());
            let appended = self.log.append(&mut [entry], &mut |_| Bytes::new());
            appended.expect("the log takes the entry");
        }
    }

    /// Syncs, and turns the segments before the last few into spares, if a new one was begun.
    fn recycle(&mut self) {
        let segments = self.log.reader().segments().len();
        if segments == self.segments {
            return;
        }
        self.log.sync().expect("the log syncs");
        let bytes = Some(SEGMENTS_KEPT * Config::default().segment_bytes);
        let policy = Policy { bytes, ..Policy::default() };
        self.log.retain(&policy, u64::MAX, 0).expect("retention works");
        self.dir.journal().sync().expect("the journal syncs");
        self.log.reclaim().expect("segments are recycled");
        self.segments = self.log.reader().segments().len();
    }
}

/// Syncs through the threads that a server would use.
struct Rounds {
    syncer: Syncer,
    done: Receiver<usize>,
}

impl Rounds {
    fn start(quipu: &Quipu) -> Self {
        let (sender, done) = sync_channel(16);
        let on_round = move |round: quipu::storage::Result<&[u64]>| {
            let tokens = round.expect("the round succeeds").len();
            sender.send(tokens).expect("the bench waits for each round");
        };
        Self { syncer: quipu.dir.start_syncer(Box::new(on_round)), done }
    }

    fn sync(&self, log: &Log) {
        self.syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 0 });
        let tokens = self.done.recv().expect("a sync thread reports");
        assert_eq!(tokens, 1, "one request was waiting");
    }
}

/// Payloads of one size that differ from one another.
fn payloads(size: usize) -> Vec<Bytes> {
    let payload = |n: usize| (0..size).map(|at| (at * 7 + n * 31) as u8).collect::<Vec<u8>>();
    (0..PAYLOADS_BYTES / size).map(|n| payload(n).into()).collect()
}

fn time(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}
