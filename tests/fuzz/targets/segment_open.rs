//! Damages the segment files of a log and opens it in a data directory that is kept from run to
//! run: the inputs of `log_open`, and nearly all of its checks, at many times its speed.

use std::cell::RefCell;

use quipu::storage::fs::sim::SimFs;
use quipu::storage::{DataDir, Entry, FactKind};

use super::sample::{Sample, check_going_on, log_id, open_dir, open_log, ranges, read, scrub};

/// Bit of the first byte: nothing that recovery did not sync survives until the log is opened
/// again.
const POWER_CUT: u8 = 16;

/// An open data directory, and what its disk held before anything was done there.
struct Workbench {
    dir: DataDir,
    fs: SimFs,
    before: SimFs,
}

thread_local! {
    static SAMPLE: Sample = Sample::new();
    static WORKBENCH: RefCell<Option<Workbench>> = const { RefCell::new(None) };
}

impl Workbench {
    fn new(sample: &Sample) -> Self {
        let fs = sample.fs.fork();
        let dir = open_dir(&fs);
        let before = fs.fork();
        Self { dir, fs, before }
    }

    /// False if the journal was written to: it cannot be taken back.
    fn is_reusable(&self) -> bool {
        let kinds = [FactKind::LogStart, FactKind::Watermark, FactKind::Closed];
        kinds.into_iter().all(|kind| self.dir.journal().get(log_id(), kind).is_none())
    }
}

/// The first byte says which segment is damaged and how, the rest with what.
pub(crate) fn run(input: &[u8]) {
    let Some((how, input)) = input.split_first() else { return };
    SAMPLE.with(|sample| {
        let kept = WORKBENCH.take().filter(Workbench::is_reusable);
        let workbench = kept.unwrap_or_else(|| Workbench::new(sample));
        workbench.fs.put_back(&workbench.before);
        let known = sample.damage(&workbench.fs, *how, input);
        check(&workbench, known, *how & POWER_CUT != 0);
        workbench.dir.check().expect("no write and no sync fails");
        WORKBENCH.set(Some(workbench));
    });
}

fn check(workbench: &Workbench, known: Option<&[Entry]>, has_power_cut: bool) {
    let Some((log, report)) = open_log(&workbench.dir) else { return };
    let before = read(&log, known);
    scrub(&log, &before);
    assert_eq!(read(&log, known), before, "scrubbing changes nothing");
    drop(log);
    if has_power_cut {
        workbench.fs.power_cut(|_| false);
    }
    let (mut log, again) = workbench.dir.open_log(log_id()).expect("what opened once opens again");
    assert_eq!(ranges(&again), ranges(&report));
    assert_eq!(read(&log, known), before, "a second recovery finds what the first one left");
    check_going_on(&mut log);
}
