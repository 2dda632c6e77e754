//! Damages the segment files of a log and opens its data directory, reads everything and scrubs. An
//! entry that is returned must be one that was appended, and what recovery settled it must settle
//! for good, whatever process comes next.

use quipu::storage::Entry;
use quipu::storage::fs::sim::SimFs;

use super::edits;
use super::sample::{Sample, check_going_on, log_id, open_dir, open_log, ranges, read, scrub};

thread_local! {
    static SAMPLE: Sample = Sample::new();
}

/// The first byte says which segment is damaged and how, the rest with what.
pub(crate) fn run(input: &[u8]) {
    let Some((how, input)) = input.split_first() else { return };
    SAMPLE.with(|sample| {
        let fs = sample.fs.fork();
        let known = sample.damage(&fs, *how, input);
        check(&fs, known);
    });
}

fn check(fs: &SimFs, known: Option<&[Entry]>) {
    let dir = open_dir(fs);
    let Some((log, report)) = open_log(&dir) else { return };
    let before = read(&log, known);
    scrub(&log, &before);
    assert_eq!(read(&log, known), before, "scrubbing changes nothing");
    drop((log, dir));
    fs.power_cut(|_| true);
    let fs = &edits::fresh_copy(fs);
    // Another boot, so that sealed segments are looked at again.
    fs.power_cut(|_| true);
    let dir = open_dir(fs);
    let (mut log, again) = dir.open_log(log_id()).expect("what opened once opens again");
    assert_eq!(ranges(&again), ranges(&report));
    assert_eq!(read(&log, known), before, "a second recovery finds what the first one left");
    check_going_on(&mut log);
}
