//! What a host counts of things that went wrong on their way.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::error::Dropped;

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
    /// Rare, so that a lock does.
    dropped: Mutex<BTreeMap<Dropped, u64>>,
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
        Counts {
            frames_refused: of(&self.frames_refused),
            bundles_dropped: of(&self.bundles_dropped),
            frames_lost: of(&self.frames_lost),
            appends_stalled: of(&self.appends_stalled),
            cold_reads: of(&self.cold_reads),
            logs_mended: of(&self.logs_mended),
            repairs_in_vain: of(&self.repairs_in_vain),
            dropped: self.dropped.lock().expect("no holder of the counts panics").clone(),
        }
    }
}
