//! What a host counts of things that went wrong on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::error::Dropped;
use super::super::group::Role;
use super::super::outputs::Published;
use crate::types::LogId;

/// Counters since the host was started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    frames_refused: AtomicU64,
    bundles_dropped: AtomicU64,
    frames_lost: AtomicU64,
    appends_stalled: AtomicU64,
    cold_reads: AtomicU64,
    logs_mended: AtomicU64,
    repairs_in_vain: AtomicU64,
    elections: AtomicU64,
    leader_changes: AtomicU64,
    role_changes: AtomicU64,
    /// Rare, so that a lock does.
    dropped: Mutex<BTreeMap<Dropped, u64>>,
    /// Some group is stalled: only then is anybody to look which.
    has_stalled: AtomicBool,
    /// By shard. Written when something has changed, and read when somebody asks.
    states: Mutex<BTreeMap<usize, State>>,
}

/// How the groups of a shard are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    stalled: BTreeSet<LogId>,
    damaged: u64,
    waiting: u64,
}

/// What was counted since the host was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that were damaged, foreign or malformed.
    pub frames_refused: u64,
    /// Bundles of messages for which a shard had no room.
    pub bundles_dropped: u64,
    /// Frames that the network did not take.
    pub frames_lost: u64,
    /// Times that entries waited for space on the disk.
    pub appends_stalled: u64,
    /// Reads from disk for followers far behind.
    pub cold_reads: u64,
    /// Times that entries of other replicas were put into damaged logs, or tried.
    pub logs_mended: u64,
    /// Times that all other replicas were asked for damaged entries again and again, and none gave
    /// them.
    pub repairs_in_vain: u64,
    /// Elections that replicas here took part in as candidates or won.
    pub elections: u64,
    /// Times that a replica here learned of another leader.
    pub leader_changes: u64,
    /// Groups whose entries wait for space on the disk now.
    pub groups_stalled: u64,
    /// Logs that are damaged now.
    pub logs_damaged: u64,
    /// Of these, the ones whose replicas do not run because of it.
    pub replicas_waiting: u64,
    /// Messages that were dropped, and why.
    pub dropped: BTreeMap<Dropped, u64>,
}

impl Counters {
    pub(super) fn frame_refused(&self) {
        self.frames_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bundle_dropped(&self) {
        self.bundles_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn frame_lost(&self) {
        self.frames_lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn appends_stalled(&self, count: u64) {
        self.appends_stalled.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn cold_read(&self) {
        self.cold_reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn log_mended(&self) {
        self.logs_mended.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn repair_in_vain(&self) {
        self.repairs_in_vain.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what has become of a replica, after that was published: who finds the count as it was
    /// has missed nothing.
    pub(super) fn follow(&self, before: &Published, now: &Published) {
        let is_candidate = now.role != Role::Follower;
        if is_candidate && now.term > before.term {
            self.elections.fetch_add(1, Ordering::Relaxed);
        }
        if now.leader.is_some() && now.leader != before.leader {
            self.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
        let part = |of: &Published| (of.role, of.is_writable, of.term, of.leader);
        if part(now) != part(before) {
            self.role_changes.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn role_changes(&self) -> u64 {
        self.role_changes.load(Ordering::Acquire)
    }

    /// Notes how the groups of a shard are.
    pub(super) fn note_state(&self, shard: usize, stalled: &[LogId], damage: (u64, u64)) {
        let (damaged, waiting) = damage;
        let now = State { stalled: stalled.iter().copied().collect(), damaged, waiting };
        let mut states = self.states.lock().expect("no holder of the counts panics");
        if states.get(&shard) != Some(&now) {
            states.insert(shard, now);
            let has_stalled = states.values().any(|state| !state.stalled.is_empty());
            self.has_stalled.store(has_stalled, Ordering::Relaxed);
        }
    }

    pub(super) fn is_stalled(&self, group: LogId) -> bool {
        self.has_stalled.load(Ordering::Relaxed) && {
            let states = self.states.lock().expect("no holder of the counts panics");
            states.values().any(|state| state.stalled.contains(&group))
        }
    }

    pub(super) fn dropped(&self, counts: BTreeMap<Dropped, u64>) {
        if counts.is_empty() {
            return;
        }
        let mut dropped = self.dropped.lock().expect("no holder of the counts panics");
        for (reason, count) in counts {
            *dropped.entry(reason).or_default() += count;
        }
    }

    pub(super) fn read(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let states = self.states.lock().expect("no holder of the counts panics").clone();
        Counts {
            frames_refused: of(&self.frames_refused),
            bundles_dropped: of(&self.bundles_dropped),
            frames_lost: of(&self.frames_lost),
            appends_stalled: of(&self.appends_stalled),
            cold_reads: of(&self.cold_reads),
            logs_mended: of(&self.logs_mended),
            repairs_in_vain: of(&self.repairs_in_vain),
            elections: of(&self.elections),
            leader_changes: of(&self.leader_changes),
            groups_stalled: states.values().map(|state| state.stalled.len() as u64).sum(),
            logs_damaged: states.values().map(|state| state.damaged).sum(),
            replicas_waiting: states.values().map(|state| state.waiting).sum(),
            dropped: self.dropped.lock().expect("no holder of the counts panics").clone(),
        }
    }
}
