//! Damages the copies of a meta journal and opens it. With one copy whole nothing may be missing;
//! otherwise nothing may be made up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu::storage::fs::Fs;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Change, Error, FactKind, Journal, Result};
use quipu::types::LogId;

use super::edits;

const DIR: &str = "/meta";
const KINDS: [FactKind; 3] = [FactKind::HardState, FactKind::LogStart, FactKind::Watermark];
const CHANGES: u64 = 12;
/// Bits of the first byte that are all set when the journal is to go on, which takes its time.
const GOES_ON: u8 = 0b11100;

/// A good journal and what it says.
struct Sample {
    fs: SimFs,
    paths: Vec<PathBuf>,
    facts: BTreeMap<FactKind, u64>,
}

thread_local! {
    static SAMPLE: Sample = sample();
}

fn open(fs: &SimFs) -> Result<Journal> {
    let fs: Arc<dyn Fs> = Arc::new(fs.clone());
    let is_new = fs.list(Path::new(DIR)).is_err();
    Journal::open(fs, Path::new(DIR), is_new, 1 << 20, Box::new(|| false), Arc::default())
}

/// A journal of a snapshot and of changes, most of them synced one by one.
fn sample() -> Sample {
    let fs = SimFs::new();
    let mut facts = BTreeMap::new();
    let journal = open(&fs).expect("a new journal opens");
    for n in 0..CHANGES {
        let kind = KINDS[n as usize % KINDS.len()];
        let value = Some(n.to_le_bytes().to_vec().into());
        journal.record(&[Change { log: LogId::NIL, kind, value }]).expect("there is room");
        facts.insert(kind, n);
        if n != CHANGES - 2 {
            journal.sync().expect("nothing fails");
        }
    }
    drop(journal);
    fs.power_cut(|_| true);
    let fs = edits::fresh_copy(&fs);
    let paths = fs.paths();
    Sample { fs, paths, facts }
}

/// The first byte says which copies are damaged and whether the journal goes on afterwards, the
/// rest how they are damaged.
pub(crate) fn run(input: &[u8]) {
    let Some((which, input)) = input.split_first() else { return };
    SAMPLE.with(|sample| {
        let fs = sample.fs.fork();
        let both = which & 2 != 0;
        let (first, second) = if both { input.split_at(input.len() / 2) } else { (input, input) };
        for (n, edits) in [first, second].into_iter().enumerate() {
            if both || n == usize::from(which & 1) {
                let path = &sample.paths[n];
                fs.damage(path, |bytes| edits::apply(bytes, edits));
            }
        }
        check(sample, &fs, both, which & GOES_ON == GOES_ON);
    });
}

fn check(sample: &Sample, fs: &SimFs, both: bool, goes_on: bool) {
    let journal = match open(fs) {
        Ok(journal) => journal,
        Err(Error::Amnesia { .. }) if both => return,
        Err(error) => panic!("refused: {error}"),
    };
    for kind in KINDS {
        let value = journal.get(LogId::NIL, kind);
        let value = value.map(|bytes| u64::from_le_bytes(bytes[..].try_into().expect("whole")));
        if both {
            let is_own = |n: &u64| *n < CHANGES && KINDS[*n as usize % KINDS.len()] == kind;
            assert!(value.as_ref().is_none_or(is_own), "{kind:?} {value:?} was never recorded");
        } else {
            assert_eq!(value.as_ref(), sample.facts.get(&kind), "{kind:?}");
        }
    }
    if goes_on {
        check_going_on(fs, journal);
    }
}

fn check_going_on(fs: &SimFs, journal: Journal) {
    let value = Some(b"later".to_vec().into());
    let kind = FactKind::Identity;
    journal.record(&[Change { log: LogId::NIL, kind, value: value.clone() }]).expect("goes on");
    journal.sync().expect("nothing fails");
    drop(journal);
    let again = open(fs).expect("what was mended opens");
    assert_eq!(again.get(LogId::NIL, kind), value);
}
