//! The tail: entries that are in memory, and how long.

use ::raft::{Progress, ProgressState};

use super::{Group, Role};
use crate::storage::{Entry, Tip};

impl Group {
    /// An entry that is in memory: any after the applied ones. The payload of a record batch may
    /// be missing.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        let first_proposed = self.proposed.front().map_or(u64::MAX, |entry| entry.header.index);
        if index >= first_proposed {
            return self.proposed.get((index - first_proposed) as usize);
        }
        self.view().entry(index)
    }

    /// The tip as it was when `index` was the last entry; for what [`Self::entry`] has and the
    /// entry before.
    pub fn tip_at(&self, index: u64) -> Option<Tip> {
        self.view().tip_at(index)
    }

    /// Bytes of payloads kept in memory.
    pub fn tail_bytes(&self) -> usize {
        self.view().tail_bytes()
    }

    /// Forgets applied entries that nobody is about to ask for: those that all followers have, and
    /// those beyond what is kept in memory. `applied` is what the state machine has seen.
    ///
    /// Memory is for followers that are a little behind. Were all groups to keep what all have, a
    /// thousand busy ones would take a gigabyte, and every batch another place in it.
    pub fn trim(&mut self, applied: u64) {
        let index = applied.min(self.followed());
        // Who is sent a snapshot gets what comes after it from the log.
        let spare = index.min(self.had_by_all(|p| p.state != ProgressState::Snapshot));
        let is_idle = self.ticks > self.last_busy_tick + 2 * self.config.election_ticks as u64;
        let bytes_max = if is_idle { 0 } else { self.config.tail_bytes_max };
        self.node.mut_store().trim(spare, index, bytes_max);
    }

    /// Entries up to here all replicas have that are `counted`, as far as a leader knows. To a
    /// follower, who gives nobody any, all have everything.
    pub(super) fn had_by_all(&self, counted: impl Fn(&Progress) -> bool) -> u64 {
        if self.role() != Role::Leader {
            return u64::MAX;
        }
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.replica.0);
        let matched = others.filter(|(_, p)| counted(p)).map(|(_, p)| p.matched);
        let had = matched.min().unwrap_or(u64::MAX);
        let last_index = self.last_index();
        assert!(
            had == u64::MAX || had <= last_index,
            "{}: all have entries up to {had} of a leader that has {last_index}",
            self.id
        );
        had
    }
}
