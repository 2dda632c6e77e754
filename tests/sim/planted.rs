//! Planted bugs: each has to be found, or the simulation proves nothing about its rule.
//!
//! `QUIPU_SIM_BUG` names one of them to look for; `QUIPU_SIM_SEEDS` says how many seeds to spend on
//! each.

use std::sync::Mutex;
use std::time::Duration;

use quipu::raft::planted::{Bug, plant};

use crate::runs::Runs;
use crate::{env, threads};

/// Seeds and time spent on a bug before it counts as not found.
const SEEDS: u64 = 3_000;
const TIME_MAX: Duration = Duration::from_secs(150);

/// Not looked for: chance finds it once in thousands of seeds, a test of its own builds it, see
/// `tests/raft/refusals.rs`.
const BUILT: [Bug; 1] = [Bug::RefusedUnasked];

/// Not looked for: another rule stands in front of these, so that one alone does no harm. The data
/// directory syncs the file system when it is opened after a crash; and what comes while a snapshot
/// is being installed waits for it in the queue of what is to become durable.
const COVERED: [Bug; 2] = [Bug::OpenWithoutSync, Bug::BusyWhileRestoring];

static PRESENT: Mutex<Option<Bug>> = Mutex::new(None);

/// Not looked for: there are no members of groups here, `tests/cluster/groups/planted.rs` has them.
const OF_GROUPS: [Bug; 5] = [
    Bug::LateCommitApplied,
    Bug::AssignedBeforeRelease,
    Bug::ClaimedWithoutFence,
    Bug::PositionBeforeFence,
    Bug::ResumedUnasked,
];

/// Looks for a bug. The number of seeds it took and the failure, if it was found.
fn look_for(bug: Bug) -> Option<(u64, String)> {
    *PRESENT.lock().unwrap() = Some(bug);
    let runs = Runs {
        first: env("QUIPU_SIM_SEED").unwrap_or(1),
        count: env("QUIPU_SIM_SEEDS").unwrap_or(SEEDS),
        time_max: TIME_MAX,
        threads: threads(),
        failures_max: 1,
        prepare: || plant(*PRESENT.lock().unwrap()),
        is_quiet: true,
    };
    let report = runs.run();
    report.failures.into_iter().min().map(|(seed, why)| (seed - runs.first + 1, why))
}

#[test]
fn every_planted_bug_is_found() {
    let selected = std::env::var("QUIPU_SIM_BUG").ok();
    let is_selected = |bug: &Bug| match &selected {
        Some(name) => *name == format!("{bug:?}"),
        None => ![&BUILT[..], &COVERED, &OF_GROUPS].concat().contains(bug),
    };
    std::panic::set_hook(Box::new(|_| ()));
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(is_selected) {
        match look_for(bug) {
            Some((seeds, why)) => {
                let line = why.lines().next().unwrap_or_default();
                eprintln!(
                    "{seeds:>5} seeds  {bug:?}: {}",
                    line.chars().take(150).collect::<String>()
                );
            }
            None => {
                eprintln!("    - not found  {bug:?}");
                missed.push(bug);
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
