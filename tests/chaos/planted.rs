//! Planted bugs: servers that break one rule each. The chaos has to find them, or it proves nothing
//! about that rule.
//!
//! `QUIPU_CHAOS_BUG` names one of them to look for.

use std::time::{Duration, Instant};

use quipu::raft::planted::Bug;

use crate::checker::Breach;
use crate::env;
use crate::faults::Fault;
use crate::run::Run;

/// Time spent on a bug before it counts as not found.
const TIME_MAX: Duration = Duration::from_secs(30 * 60);
const RUN: Duration = Duration::from_secs(60);

const POWER: &[Fault] = &[Fault::PowerCut, Fault::PowerCutOfTwo, Fault::PowerCutOfAll];
/// What makes it long until something that was proposed is applied.
const SLOW: &[Fault] = &[Fault::SlowDisk, Fault::Pause, Fault::KillLeader];
const LEADERS: &[Fault] = &[Fault::KillLeader, Fault::Halves, Fault::OneWay, Fault::Pause];
const DAMAGE: &[Fault] = &[Fault::DamageWhileDown, Fault::DamageEverywhere];

/// The bugs, each with the faults that can bring it to light.
const BUGS: [(Bug, &[Fault]); 13] = [
    (Bug::AckBeforeSync, POWER),
    (Bug::SendBeforeDurable, POWER),
    (Bug::VoteBeforeDurable, &[Fault::ForgottenVotes]),
    (Bug::AckOnMinority, LEADERS),
    (Bug::EarlyHighWatermark, LEADERS),
    (Bug::FollowerReadsBeforeWritten, &[Fault::Overtaken]),
    (Bug::WrongTermAnswered, LEADERS),
    (Bug::OffsetFromCommitted, LEADERS),
    (Bug::ProducersNotRestored, &[Fault::KillAll, Fault::KillLeader]),
    (Bug::DamageForgotten, DAMAGE),
    (Bug::GenerationCheckedEarly, SLOW),
    (Bug::LateCommitApplied, SLOW),
    (Bug::ClaimedWithoutFence, LEADERS),
];

/// Looks for a bug in one run after the other. The runs and the time it took, and what was seen.
async fn look_for(bug: Bug, faults: &[Fault]) -> Option<(u64, Duration, Breach)> {
    let (started, first) = (Instant::now(), env("QUIPU_CHAOS_SEED").unwrap_or(1));
    for seed in first.. {
        if started.elapsed() > TIME_MAX {
            return None;
        }
        let (only, keep, bug) = (faults.to_vec(), None, Some(format!("{bug:?}")));
        let heal_max = Duration::from_secs(30);
        let verdict = Run { seed, time: RUN, heal_max, only, keep, bug }.run().await;
        if let Some(breach) = verdict.breaches.into_iter().next() {
            return Some((seed - first + 1, started.elapsed(), breach));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes hours"]
async fn every_planted_bug_is_found() {
    let selected = std::env::var("QUIPU_CHAOS_BUG").ok();
    let is_selected = |bug: &Bug| selected.as_ref().is_none_or(|name| *name == format!("{bug:?}"));
    let mut missed = Vec::new();
    for (bug, faults) in BUGS.into_iter().filter(|(bug, _)| is_selected(bug)) {
        match look_for(bug, faults).await {
            Some((runs, time, breach)) => {
                let why: String = breach.why.chars().take(150).collect();
                eprintln!("{runs:>3} runs {time:>6.1?}  {bug:?}: {:?}: {why}", breach.rule);
            }
            None => {
                eprintln!("  - not found  {bug:?}");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
