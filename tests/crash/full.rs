//! A disk that is really full, and one that really fails.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use quipu::storage::fs::Fs;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{
    Case, Change, Config, DataDir, Error, FactKind, Log, Result, SyncRequest, Tip,
};

use crate::image::Image;
use crate::kernel::Cut;
use crate::ledger::id;
use crate::support::{append, checkpoint, next_entry, read_all};

const IMAGE_BYTES: u64 = 32 << 20;
const BLOCK_BYTES: u32 = 4096;

fn config() -> Config {
    Config {
        segment_bytes: 256 * 1024,
        allocation_bytes_max: 64 * 1024,
        sync_threads: 2,
        reserve_bytes: 1024 * 1024,
        journal_rewrite_bytes: 64 * 1024 * 1024,
        ..Config::tiny()
    }
}

fn disk() -> Option<(Image, PathBuf)> {
    let mut image = Image::make(IMAGE_BYTES, BLOCK_BYTES)?;
    image.mount("defaults").unwrap();
    let root = image.mount_point().join("data");
    Some((image, root))
}

fn open(root: &Path) -> Result<DataDir> {
    let os: Arc<dyn Fs> = Arc::new(OsFs::new());
    crate::check::open_dir_with(&os, root, &config())
}

/// Appends entries and syncs them until there is no space, and returns the error.
fn fill(log: &mut Log) -> Error {
    loop {
        if let Err(error) = append(log, 1, 10_000) {
            return error;
        }
        log.sync().unwrap();
    }
}

/// Takes all that is left of the disk.
fn take_the_rest(path: &Path) {
    let mut filler = File::create(path).unwrap();
    for block in [1 << 16, 1 << 12, 1 << 9, 1] {
        while filler.write_all(&vec![1; block]).is_ok() {}
    }
    filler.sync_all().unwrap();
}

fn record(dir: &DataDir, value: u64) -> Result<u64> {
    let value = Some(crate::ledger::fact(value));
    dir.journal().record(&[Change { log: id(1), kind: FactKind::HardState, value }])?;
    dir.journal().sync()
}

#[test]
fn a_full_disk_refuses_appends_and_loses_nothing() {
    let Some((image, root)) = disk() else { return };
    let filler = image.mount_point().join("filler");
    let dir = open(&root).unwrap();
    let mut log = dir.create_log(id(1), Tip::EMPTY, b"").unwrap();
    // As much as a few segments, so that the disk is full before the filler goes.
    File::create(&filler).unwrap().write_all(&vec![7; 4 << 20]).unwrap();
    while !root.join("reserve").exists() {
        dir.housekeep();
    }
    let error = fill(&mut log);
    assert!(matches!(error, Error::NoSpace { .. }) && error.is_retriable(), "{error}");
    let text = error.to_string();
    assert!(text.contains("no space in") && text.contains("free some space"), "{text}");
    dir.check().expect("a full disk is no failure");
    let count = log.synced_index();
    assert!(count > 1000, "{count} entries filled the disk");
    assert_eq!(read_all(&log).len() as u64, count);

    take_the_rest(&image.mount_point().join("rest"));
    for value in 0..2000 {
        record(&dir, value).expect("the reserve is there for the journal");
    }
    assert!(!root.join("reserve").exists(), "the reserve was given up");
    assert!(matches!(fill(&mut log), Error::NoSpace { .. }));

    fs::remove_file(&filler).unwrap();
    fill(&mut log);
    assert!(log.synced_index() > count + 100, "appends go on once there is space");
    assert_eq!(read_all(&log).len() as u64, log.synced_index());
}

#[test]
fn a_full_disk_opens_and_reads() {
    let Some((image, root)) = disk() else { return };
    let dir = open(&root).unwrap();
    let mut log = dir.create_log(id(1), Tip::EMPTY, b"").unwrap();
    fill(&mut log);
    let count = log.synced_index();
    take_the_rest(&image.mount_point().join("rest"));
    drop((log, dir));
    let dir = open(&root).expect("a full disk is no reason not to start");
    let (mut log, report) = dir.open_log(id(1)).unwrap();
    assert_eq!((report.case, report.last_index), (Case::Whole, count));
    assert_eq!(read_all(&log).len() as u64, count);
    record(&dir, 1).expect("a vote is recorded on a full disk");
    assert!(matches!(fill(&mut log), Error::NoSpace { .. }));
    fs::remove_file(image.mount_point().join("rest")).unwrap();
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let Some((mut image, root)) = disk() else { return };
    let dir = open(&root).unwrap();
    let mut logs = Vec::new();
    for n in 1..=3 {
        let mut log = dir.create_log(id(n), Tip::EMPTY, b"").unwrap();
        append(&mut log, 1, 500).unwrap();
        log.sync().unwrap();
        append(&mut log, 1, 500).unwrap();
        logs.push(log);
    }
    let (sender, rounds) = mpsc::sync_channel(16);
    let sender = Mutex::new(sender);
    let report = move |round: Result<&[u64]>| {
        sender.lock().unwrap().send(round.map(<[u64]>::to_vec)).unwrap();
    };
    let syncer = dir.start_syncer(Box::new(report));
    image.cut_power(Cut::Nothing).unwrap();
    for token in 0..4 {
        let log = logs.get(token as usize).map(Log::syncer_handle);
        syncer.submit(SyncRequest { log, token });
        let round = rounds.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(round.is_err(), "round {token} was acknowledged: {round:?}");
    }
    assert!(matches!(dir.check(), Err(Error::Failed { .. })));
    for log in &mut logs {
        assert_eq!(log.synced_index(), 1);
        let entry = &mut [next_entry(&log.tip(), 1, 10)];
        assert!(matches!(log.append(entry, &mut checkpoint), Err(Error::Failed { .. })));
        assert!(matches!(log.sync(), Err(Error::Failed { .. })));
    }
    drop((syncer, logs, dir));
    image.unmount().unwrap();
    image.mount("defaults").unwrap();
    let dir = open(&root).unwrap();
    for n in 1..=3 {
        let (log, report) = dir.open_log(id(n)).unwrap();
        assert!(report.faulty.is_empty() && report.last_index >= 1, "{report:?}");
        read_all(&log);
    }
}
