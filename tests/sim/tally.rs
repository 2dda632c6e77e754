//! Tally: what happened in a run, for the counts of many.

use std::collections::BTreeMap;
use std::fmt;

/// States that are rare and matter: a run of many seeds that never meets one proves nothing about
/// it. Everything else that is counted says how hard the runs were.
pub const RARE: &[&str] = &[
    "append-stalled-by-full-disk",
    "append-stalled-and-resumed",
    "cold-catch-up",
    "damage-cut-for-a-leader",
    "damage-mended",
    "damage-met-while-up",
    "damage-on-every-node",
    "commit-inferred-from-later-change",
    "election-by-transfer",
    "frame-of-another-group-refused",
    "frame-of-another-node-refused",
    "frame-of-foreign-cluster-refused",
    "frame-damaged-refused",
    "frame-replayed",
    "joint-left-by-another-leader",
    "leader-handed-over-before-leaving",
    "leader-handed-over-for-slow-disk",
    "leader-lost-with-uncommitted-tail",
    "leader-removed-itself",
    "leader-stepped-down-without-quorum",
    "learner-promoted-during-partition",
    "lone-voter-grew",
    "minority-left-dead",
    "power-cut-while-joint",
    "power-cut-of-all",
    "producer-zombie-fenced",
    "progress-zombie-refused",
    "read-barrier-answered",
    "read-by-follower",
    "retry-answered-after-leader-change",
    "replica-waits-for-repair",
    "rewound-in-memory-class",
    "snapshot-installed",
    "suffix-truncated",
    "sync-failed",
    "tail-lost",
    "tail-repaired",
    "tail-torn",
    "tail-torn-out-of-order",
    "term-far-ahead-dropped",
    "unsynced-suffix-truncated",
    "vote-refused-for-a-lost-tail",
    "wipe",
];

/// Of these the highest is kept instead of the sum.
const HIGHEST: &str = "slowest";

/// Counts by what was counted.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    counts: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            if what.starts_with(HIGHEST) {
                self.raise(what, *count);
            } else {
                self.add(what, *count);
            }
        }
    }

    /// Keeps the highest of what was seen.
    pub fn raise(&mut self, what: &'static str, value: u64) {
        let highest = self.counts.entry(what).or_default();
        *highest = value.max(*highest);
    }

    pub fn get(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "what happened:")?;
        for (what, count) in self.counts.iter().filter(|(what, _)| !RARE.contains(what)) {
            writeln!(f, "  {count:>12}  {what}")?;
        }
        writeln!(f, "rare states:")?;
        for what in RARE {
            writeln!(f, "  {:>12}  {what}", self.get(what))?;
        }
        Ok(())
    }
}
