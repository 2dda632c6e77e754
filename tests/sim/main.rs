//! Simulation: whole clusters on one thread each, from one seed.
//!
//! `QUIPU_SIM_SEED` says with which seed to begin and `QUIPU_SIM_SEEDS` how many to run; without
//! them the run is of a size for every change. What happened, and how often each rare state was
//! met, is printed and kept in the target directory.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clients;
mod node;
mod oracle;
mod plan;
#[cfg(feature = "planted-bugs")]
mod planted;
mod rng;
mod runs;
mod tally;
mod world;

use std::time::Duration;

use runs::Runs;

/// Seeds of an ordinary run, and the time that it may take at most.
const SEEDS: u64 = 2_000;
const TIME_MAX: Duration = Duration::from_secs(300);

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("the variable is a number"))
}

/// Whoever says how many seeds gets as many, unless `QUIPU_SIM_SECONDS` says how long.
fn time_max(seeds: Option<u64>) -> Duration {
    let unless_said = seeds.map_or(TIME_MAX, |_| Duration::MAX);
    env("QUIPU_SIM_SECONDS").map_or(unless_said, Duration::from_secs)
}

/// As many as there are cores, or as many as `QUIPU_SIM_THREADS` says.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    env("QUIPU_SIM_THREADS").map_or(cores, |threads| threads as usize)
}

/// Runs one seed that failed before what it showed was mended.
fn expect(seed: u64) {
    if let Err(why) = runs::run_seed(seed) {
        panic!("seed {seed} fails again: {why}");
    }
}

#[test]
fn appends_that_the_library_put_together_follow_from_one_another() {
    expect(1);
    expect(58);
}

#[test]
fn readers_of_a_follower_with_a_full_disk_see_nothing_that_is_to_go() {
    expect(454);
}

#[test]
fn a_replica_with_another_history_takes_back_what_comes_before_the_leaders_log_too() {
    expect(10_553);
}

#[test]
fn appends_that_come_with_a_snapshot_wait_until_it_is_installed() {
    expect(509_651);
}

#[test]
fn a_replica_has_time_to_copy_a_log_after_another_one_made_room_for_it() {
    expect(682_792);
}

/// The other one had dropped what was damaged, and had lost the end of its log itself.
#[test]
fn a_log_is_not_cut_for_a_replica_that_has_less_of_it() {
    expect(600_552);
}

/// One of three has lost an entry that no other has, the second one the end of its log.
#[test]
fn a_replica_that_cannot_lead_brings_back_no_end_of_a_log() {
    expect(605_556);
}

/// One of three is new, the second one lost the end of its log, and only that one knows that the
/// change which made the new one count is over.
#[test]
fn a_candidate_learns_of_a_change_from_who_refuses_its_vote() {
    expect(607_937);
}

/// It is damaged in two places, and the others keep only what is after the first one.
#[test]
fn a_log_is_mended_behind_what_nobody_keeps_any_more() {
    expect(620_012);
}

/// The one that has the entry is away while the others say that it is too old for them.
#[test]
fn what_was_passed_over_is_asked_for_again() {
    expect(603_953);
}

/// It lost the entry while it ran, and had not committed it.
#[test]
fn a_leader_without_an_entry_that_nobody_else_has_makes_room_for_another() {
    expect(613_466);
}

/// It had lost more before, and stood for that already.
#[test]
fn what_is_lost_again_is_covered_by_the_promise_for_what_was_lost_before() {
    expect(1_890);
}

/// It leads, and the others keep only what is after the first of two damages.
#[test]
fn a_leader_is_mended_behind_what_nobody_keeps_any_more() {
    expect(658_216);
}

/// A later leader had another entry in the place of the lost one's predecessor.
#[test]
fn a_promise_ends_with_the_history_that_it_was_for() {
    expect(660_055);
}

#[test]
fn clusters_agree_whatever_happens() {
    let seeds = env("QUIPU_SIM_SEEDS");
    let runs = Runs {
        first: env("QUIPU_SIM_SEED").unwrap_or(1),
        count: seeds.unwrap_or(SEEDS),
        time_max: time_max(seeds),
        threads: threads(),
        ..Runs::default()
    };
    let report = runs.run();
    let text = report.to_string();
    eprintln!("{text}");
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/simulation.txt"), &text).unwrap();
    assert!(report.failures.is_empty(), "{text}");
}
