//! Planted bugs: the churn has to find each, or it proves nothing about its rule.
//!
//! Nodes run on threads of their own, so that a bug is planted in a whole process: the churn test
//! runs again as a child. `QUIPU_CHURN_BUG` names one of them to look for.

use std::process::Command;
use std::time::{Duration, Instant};

use quipu::raft::planted::Bug;

/// Time spent on a bug before it counts as not found.
const TIME_MAX: Duration = Duration::from_secs(300);
const SECONDS: &str = "12";
const CHURN: &str = "groups::churn::a_group_keeps_its_promises_whoever_comes_and_goes";

/// The bugs, each with the rules one of which has to be seen broken.
const BUGS: [(Bug, &[&str]); 5] = [
    (Bug::AssignedBeforeRelease, &["Unasked"]),
    (Bug::LateCommitApplied, &["Regress"]),
    (Bug::ClaimedWithoutFence, &["Zombie", "Regress"]),
    (Bug::PositionBeforeFence, &["Regress"]),
    (Bug::ResumedUnasked, &["WrongResume", "GroupSkip"]),
];

/// Runs the churn with a bug. Returns the breaches that it tells of.
fn breaches(bug: Bug, seed: u64) -> Vec<String> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([CHURN, "--exact", "--nocapture"])
        .env("PLANTED_BUG", format!("{bug:?}"))
        .env("QUIPU_CHURN_SEED", seed.to_string())
        .env("QUIPU_CHURN_SECONDS", SECONDS)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stderr);
    let breaches = told.lines().filter(|line| line.contains(" breaks "));
    breaches.map(str::to_owned).collect()
}

/// Looks for a bug. The seed, the time it took and a breach, if it was found.
fn look_for(bug: Bug, rules: &[&str]) -> Option<(u64, Duration, String)> {
    let started = Instant::now();
    let is_it = |breach: &String| rules.iter().any(|rule| breach.contains(&format!(" {rule}:")));
    (1..).take_while(|_| started.elapsed() < TIME_MAX).find_map(|seed| {
        let found = breaches(bug, seed).into_iter().find(is_it)?;
        Some((seed, started.elapsed(), found))
    })
}

#[test]
fn every_planted_bug_of_groups_is_found() {
    let selected = std::env::var("QUIPU_CHURN_BUG").ok();
    let is_selected = |bug: &Bug| selected.as_ref().is_none_or(|name| *name == format!("{bug:?}"));
    let mut missed = Vec::new();
    for (bug, rules) in BUGS.into_iter().filter(|(bug, _)| is_selected(bug)) {
        match look_for(bug, rules) {
            Some((seeds, time, breach)) => {
                eprintln!("{seeds:>3} runs {time:>6.1?}  {bug:?}: {breach}");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
