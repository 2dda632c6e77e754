//! Bringing a log back after a restart.
//!
//! The one hard question is what a bad spot means. Bytes that were never synced may be missing in
//! any order after a power cut: that is a torn tail, it is cut, and nobody was promised anything.
//! Bytes that were synced must be there: if they are not, that is damage, which is never cut but
//! reported and repaired from a peer. An intact entry behind the bad spot proves neither.
//!
//! What tells them apart is the durable watermark: every entry says how far the log was known to be
//! on disk when it was written, and the meta journal repeats it when a log goes idle. [`decide`]
//! is the whole rule, pure; the rest of the file gathers its evidence and carries it out.
//!
//! | first bad spot        | intact entries behind it      | meaning            | what happens |
//! |-----------------------|-------------------------------|--------------------|--------------|
//! | at or above watermark | none                          | torn tail          | cut          |
//! | at or above watermark | none known to have been synced| torn, out of order | cut          |
//! | below the watermark   | some, right after it or below | corrupt middle     | marked, kept |
//! | below the watermark   | none                          | lost durable tail  | marked, kept |
//!
//! Only the last segment can have a torn tail: an older one was synced before its successor got its
//! name.

use std::time::Duration;

use super::error::Damage;
use super::scan::Scan;
use crate::types::LogId;

/// How the directory was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Closed in order.
    Clean,
    /// The process ended, the machine went on: what was written is there, synced or not.
    ProcessCrash,
    /// The machine went down: what was not synced may be missing.
    MachineCrash,
}

/// What recovery found at the end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Every entry is there and nothing follows.
    Whole,
    /// Bytes that were never known to be synced were cut off.
    TornTail,
    /// The same, with intact entries among them.
    TornOutOfOrder,
    /// Entries that were on disk are damaged, later ones are there.
    CorruptMiddle,
    /// The last entries that were on disk are damaged or gone.
    LostTail,
}

/// Entries that were on disk and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FaultyRange {
    /// First index that cannot be read.
    pub first_index: u64,
    /// Last one, inclusive.
    pub last_index: u64,
    /// What was found in their place.
    pub damage: Damage,
}

/// What recovery of one log found and did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RecoveryReport {
    /// The log.
    pub log: LogId,
    /// How the directory was left.
    pub class: Class,
    /// What the end of the log looked like.
    pub case: Case,
    /// Highest index known to have been on disk before.
    pub watermark: u64,
    /// Last index after recovery, promised entries included.
    pub last_index: u64,
    /// Bytes of entries that were cut off.
    pub tail_cut_bytes: u64,
    /// What has to be repaired.
    pub faulty: Vec<FaultyRange>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What is to be done about the last segment of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) case: Case,
    /// How many runs are kept; at least one, which may be empty.
    pub(super) runs_kept: usize,
    /// Index ranges to be repaired, inclusive.
    pub(super) faulty: Vec<(u64, u64)>,
    /// The last faulty range is the end of the log.
    pub(super) is_tail_lost: bool,
}

/// Decides what the bad spots of a log's last segment mean.
///
/// `runs` are the first and last index of each run of intact, linked entries; the first run starts
/// at the segment's base index and may be empty (its last index is then one below its first).
/// `watermark` is the highest index known to have been on disk.
/// `has_more_bytes` says that something that is not free space follows the runs.
pub(super) fn decide(runs: &[(u64, u64)], watermark: u64, has_more_bytes: bool) -> Verdict {
    assert!(!runs.is_empty(), "a segment has a first run, even if nothing is in it");
    for pair in runs.windows(2) {
        assert!(pair[0].1 < pair[1].0, "runs {pair:?} overlap or stand in the wrong order");
    }
    let mut faulty = Vec::new();
    let mut runs_kept = 1;
    let mut last = runs[0].1;
    // A later run counts only if the watermark reaches it: all of the gap before it was on disk.
    // Otherwise some of the gap may never have been, on any replica, and nobody could repair it.
    for (first_index, last_index) in &runs[1..] {
        if watermark.saturating_add(1) < *first_index {
            break;
        }
        faulty.push((last + 1, first_index - 1));
        last = *last_index;
        runs_kept += 1;
    }
    let is_tail_lost = watermark > last;
    if is_tail_lost {
        faulty.push((last + 1, watermark));
    }
    assert!(watermark <= last || is_tail_lost, "the watermark {watermark} is beyond {last}");
    let has_dropped = runs_kept < runs.len();
    let case = match (is_tail_lost, faulty.is_empty()) {
        (true, _) => Case::LostTail,
        (false, false) => Case::CorruptMiddle,
        (false, true) if has_dropped => Case::TornOutOfOrder,
        (false, true) if has_more_bytes => Case::TornTail,
        (false, true) => Case::Whole,
    };
    Verdict { case, runs_kept, faulty, is_tail_lost }
}

/// Applies [`decide`] to a scan. `is_recycled` says that what follows the entries is no evidence.
pub(super) fn judge(scan: &Scan, watermark: u64, is_recycled: bool) -> Verdict {
    let runs: Vec<_> = scan.runs.iter().map(|run| (run.first_index, run.tip.index)).collect();
    let end = scan.runs.last().map_or(0, |run| run.end);
    let has_more_bytes = scan.frames_end > end || (!is_recycled && scan.bytes_end > end);
    decide(&runs, watermark, has_more_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of entries in the shape that [`decide`] takes.
    fn verdict(runs: &[(u64, u64)], watermark: u64) -> Verdict {
        decide(runs, watermark, false)
    }

    #[test]
    fn the_table_of_cases_holds() {
        let whole = verdict(&[(1, 9)], 5);
        assert_eq!((whole.case, whole.runs_kept, whole.faulty), (Case::Whole, 1, vec![]));
        assert_eq!(decide(&[(1, 9)], 9, true).case, Case::TornTail);
        let torn = verdict(&[(1, 5), (8, 9)], 5);
        assert_eq!((torn.case, torn.runs_kept, torn.faulty), (Case::TornOutOfOrder, 1, vec![]));
        let corrupt = verdict(&[(1, 5), (8, 9)], 8);
        assert_eq!((corrupt.case, corrupt.runs_kept), (Case::CorruptMiddle, 2));
        assert_eq!((corrupt.faulty, corrupt.is_tail_lost), (vec![(6, 7)], false));
        let lost = verdict(&[(1, 5)], 7);
        assert_eq!(
            (lost.case, lost.faulty, lost.is_tail_lost),
            (Case::LostTail, vec![(6, 7)], true)
        );
    }

    #[test]
    fn an_intact_run_right_after_the_watermark_is_kept_and_a_later_one_is_not() {
        let right_after = verdict(&[(1, 3), (6, 7)], 5);
        assert_eq!((right_after.case, right_after.runs_kept), (Case::CorruptMiddle, 2));
        let later = verdict(&[(1, 3), (7, 8)], 5);
        assert_eq!((later.case, later.runs_kept), (Case::LostTail, 1));
        assert_eq!(later.faulty, [(4, 5)], "entry 6 may never have been on disk");
    }

    /// Every way in which `groups` entries can be intact or not, under every watermark.
    #[test]
    fn no_state_loses_a_durable_entry_or_calls_an_undurable_one_damaged() {
        const GROUPS: u64 = 10;
        for intact in 0..1u64 << GROUPS {
            let is_intact = |index: u64| intact & (1 << (index - 1)) != 0;
            let runs = runs_of(GROUPS, is_intact);
            for watermark in 0..=GROUPS {
                let verdict = verdict(&runs, watermark);
                let kept_until = runs[verdict.runs_kept - 1].1;
                let last = kept_until.max(if verdict.is_tail_lost { watermark } else { 0 });
                let is_faulty = |i| verdict.faulty.iter().any(|(a, b)| *a <= i && i <= *b);
                assert!(last >= watermark, "{runs:?} {watermark}: a promise is forgotten");
                for index in 1..=last {
                    let state = (is_intact(index), is_faulty(index));
                    let is_dropped = index > kept_until;
                    assert!(
                        state == (true, false) || state == (false, true) || is_dropped && state.1,
                        "{runs:?}, watermark {watermark}: entry {index} is {state:?}"
                    );
                    assert!(
                        !state.1 || index <= watermark,
                        "{runs:?} {watermark}: torn, not faulty"
                    );
                }
            }
        }
    }

    /// Maximal runs of intact entries, the first starting at 1 and maybe empty.
    fn runs_of(groups: u64, is_intact: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        let mut runs = vec![(1, 0)];
        for index in (1..=groups).filter(|index| is_intact(*index)) {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        runs
    }
}
