//! Directories that are not ours to change, and processes that may do little.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use quipu::storage::fs::Fs;
use quipu::storage::fs::os::OsFs;
use quipu::storage::{Config, DataDir, Error, FactKind, Tip};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::check::open_dir_with;
use crate::ledger::{fact, id};
use crate::support::{append, read_all};

/// Holds the directory that another process is to open.
const VARIABLE: &str = "QUIPU_CRASH_OPEN";
/// What it prints of what it was told.
const ANSWER: &str = "answer: ";
const FILES_MAX: u64 = 48;

fn open(root: &Path) -> quipu::storage::Result<DataDir> {
    let os: Arc<dyn Fs> = Arc::new(OsFs::new());
    open_dir_with(&os, root, &Config::tiny())
}

/// Every file below a directory with its bytes and the time it was last written.
fn contents(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let of = |path: PathBuf| {
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let bytes = fs::read(&path).unwrap();
        (path, (bytes, written))
    };
    crate::power::files_in(root).into_iter().map(of).collect()
}

/// Opens `root` in a process of its own, which runs the test `name` of this module.
fn elsewhere(name: &str, root: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("guard::{name}"), "--nocapture"]).env(VARIABLE, root);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answer = text.lines().find_map(|line| line.split_once(ANSWER));
    answer.unwrap_or_else(|| panic!("no answer in {text}")).1.to_owned()
}

/// Not a test of its own: run by [`elsewhere`].
#[test]
fn opens_when_told_to() {
    if let Ok(root) = std::env::var(VARIABLE) {
        let os: Arc<dyn Fs> = Arc::new(OsFs::new());
        let opened = DataDir::open(os, Path::new(&root), Config::tiny());
        println!("\n{ANSWER}{}", opened.map_or_else(|e| e.to_string(), |_| "opened".to_owned()));
    }
}

#[test]
fn a_second_process_is_refused_and_changes_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("data");
    let dir = open(&root).unwrap();
    let mut log = dir.create_log(id(1), Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    let before = contents(&root);
    let answer = elsewhere("opens_when_told_to", &root);
    assert!(answer.contains("is in use by another process"), "{answer}");
    assert_eq!(contents(&root), before);
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
    drop((log, dir));
    assert_eq!(elsewhere("opens_when_told_to", &root), "opened");
}

#[test]
fn directories_of_others_and_of_later_versions_stay_as_they_are() {
    let foreign: &dyn Fn(&Error) -> bool = &|error| matches!(error, Error::Foreign { .. });
    let future: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::FutureVersion { found: 7, .. });
    type Strange<'a> = (&'a str, &'a [u8], &'a dyn Fn(&Error) -> bool);
    let strange: [Strange<'_>; 4] = [
        ("photo.jpg", b"\xFF\xD8\xFF\xE0", foreign),
        ("quipu.dir", b"quipu data directory, format 7\n", future),
        ("quipu.dir", b"a diary", foreign),
        ("quipu.dir", &[0xFF; 100], foreign),
    ];
    for (name, bytes, is_right) in strange {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(name), bytes).unwrap();
        fs::create_dir(temp.path().join("holidays")).unwrap();
        fs::write(temp.path().join("holidays/list"), "Lima").unwrap();
        let before = contents(temp.path());
        let error = open(temp.path()).unwrap_err();
        assert!(is_right(&error), "{name}: {error}");
        assert_eq!(contents(temp.path()), before, "{name}");
    }
}

#[test]
fn few_files_may_be_open_and_many_segments_are_used() {
    let temp = tempfile::tempdir().unwrap();
    assert_eq!(elsewhere("works_with_few_files_when_told_to", temp.path()), "done");
}

/// Not a test of its own: it lowers a limit of its process.
#[test]
fn works_with_few_files_when_told_to() {
    let Ok(root) = std::env::var(VARIABLE) else { return };
    let limit = Rlimit { current: Some(FILES_MAX), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let dir = open(&Path::new(&root).join("data")).unwrap();
    let mut logs = Vec::new();
    for n in 1..=8 {
        let mut log = dir.create_log(id(n), Tip::EMPTY, b"").unwrap();
        for _ in 0..100 {
            append(&mut log, 1, 900).unwrap();
            log.sync().unwrap();
        }
        logs.push(log);
    }
    let segments: usize = logs.iter().map(|log| log.reader().segments().len()).sum();
    assert!(segments > 2 * FILES_MAX as usize, "{segments} segments");
    for log in &logs {
        assert_eq!(read_all(log).len(), 100);
    }
    run_out_of_files(&dir);
    println!("\n{ANSWER}done");
}

/// With every descriptor taken, a log cannot be created, the error says why, and all goes on once
/// there are some again.
fn run_out_of_files(dir: &DataDir) {
    let mut taken = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        taken.push(file);
    }
    let error = dir.create_log(id(99), Tip::EMPTY, b"").unwrap_err();
    assert!(error.to_string().contains("Too many open files"), "{error}");
    let value = Some(fact(1));
    let change = quipu::storage::Change { log: id(1), kind: FactKind::HardState, value };
    dir.journal().record(&[change]).expect("the journal is open already");
    drop(taken);
    dir.check().expect("too few descriptors are no failure of the disk");
    let mut log = dir.create_log(id(100), Tip::EMPTY, b"").unwrap();
    append(&mut log, 1, 100).unwrap();
    log.sync().unwrap();
}
