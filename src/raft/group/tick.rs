//! What happens as time passes: elections, heartbeats, handing over.

use ::raft::{Progress, ProgressState, SnapshotStatus};

use super::super::membership::Change;
use super::super::planted::{Bug, planted};
use super::{Group, Role, mix};
use crate::types::ReplicaId;

/// Election timeouts after which a replica that lost the end of its log says so again.
const TIMEOUTS_MAX: u64 = 40;

impl Group {
    /// Lets one tick pass.
    pub fn tick(&mut self, now_ms: i64) {
        self.ticks += 1;
        if !self.is_running() || self.is_quiescent {
            return;
        }
        let patience = TIMEOUTS_MAX * self.config.election_ticks as u64;
        if self.promise.is_some() && self.ticks.is_multiple_of(patience) {
            tracing::error!(group = %self.id, promise = ?self.promise, "nobody leads it on");
            self.incidents.promises_in_vain += 1;
        }
        let elapsed = self.node.raft.election_elapsed;
        if self.role() == Role::Leader {
            self.tick_leader(now_ms);
        } else if self.may_campaign() {
            self.draw_election_timeout();
            self.node.tick();
        } else if self.promise.is_some() || self.ticks < self.stands_back_until_tick {
            // It does not seek election. Once its leader has been silent for long, others may.
            self.node.raft.election_elapsed += 1;
        }
        if self.role() == Role::Follower && self.node.raft.election_elapsed > elapsed {
            self.look_for_leader();
        }
        if self.ticks > self.snapshot_until_tick {
            self.node.mut_store().forget_snapshot();
        }
        if self.ticks == self.last_busy_tick + 2 * self.config.election_ticks as u64 {
            // It cannot sleep: somebody is away.
            self.free_buffers();
        }
    }

    /// A replica with entries that are not on its disk does not seek election: it would have to
    /// wait for them anyway, and a sole voter would lead before it has them. Nor does one that has
    /// less than it promised, or has just made room for others.
    pub(super) fn may_campaign(&mut self) -> bool {
        let is_stored = self.persisted() == self.last_index();
        let is_whole = self.promise.is_none() || planted(Bug::VotesWithLostTail);
        let may_lead = is_whole && self.ticks >= self.stands_back_until_tick;
        self.knows_voters() && is_stored && may_lead
    }

    fn tick_leader(&mut self, now_ms: i64) {
        self.try_quiesce();
        if self.is_quiescent {
            return;
        }
        self.draw_election_timeout();
        self.node.tick();
        self.give_up_snapshots();
        if self.membership.is_joint() {
            self.end_change(now_ms);
        }
        let oldest = self.passes.front().map_or(self.ticks, |pass| pass.since_tick);
        if self.ticks - oldest >= self.config.slow_disk_ticks {
            self.incidents.slow_disk_hand_overs += u64::from(self.hand_over(0));
        }
    }

    /// Ends a change of voters, whoever began it. A leader that is to go hands over first: were it
    /// the one to leave, the others might not know that it may, and it could not tell them.
    fn end_change(&mut self, now_ms: i64) {
        let stays = self.membership.voters.contains(&self.replica);
        if stays || planted(Bug::LeavingLeaderLeaves) {
            // A refusal is tried again with the next tick.
            let _ = self.propose_step(&Change::Leave, now_ms);
        } else {
            self.incidents.leaving_hand_overs += u64::from(self.hand_over(0));
        }
    }

    /// A snapshot that got lost would leave its follower waiting for ever.
    fn give_up_snapshots(&mut self) {
        let is_sent = |progress: &Progress| progress.state == ProgressState::Snapshot;
        let progress = self.node.raft.prs().iter();
        let sending: Vec<u64> = progress.filter(|(_, p)| is_sent(p)).map(|(id, _)| *id).collect();
        self.snapshots_since.retain(|id, _| sending.contains(id));
        for id in sending {
            let since = *self.snapshots_since.entry(id).or_insert(self.ticks);
            if self.ticks > since + 2 * self.config.election_ticks as u64 {
                self.snapshots_since.remove(&id);
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// Gives leadership to the voter that is furthest, if it has the entries up to `index_min`.
    /// False if there is none, or somebody was asked already.
    pub(super) fn hand_over(&mut self, index_min: u64) -> bool {
        if self.node.raft.lead_transferee.is_some() {
            return false;
        }
        let is_candidate = |id: u64, progress: &Progress| {
            let id = ReplicaId(id);
            let is_able = progress.recent_active && progress.matched >= index_min;
            id != self.replica && is_able && self.membership.voters.contains(&id)
        };
        let others = self.node.raft.prs().iter().filter(|(id, p)| is_candidate(**id, p));
        let furthest = others.max_by_key(|(id, progress)| (progress.matched, **id));
        let furthest = furthest.map(|(id, _)| *id);
        if let Some(id) = furthest {
            self.node.transfer_leader(id);
        }
        furthest.is_some()
    }

    /// Sets the election timeout, because the library's own choice is not repeatable.
    fn draw_election_timeout(&mut self) {
        let raft = &self.node.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if now != self.drawn_for {
            self.drawn_for = now;
            self.draws += 1;
        }
        let spread = self.config.election_ticks as u64;
        let drawn = mix(self.seed ^ mix(self.replica.0 ^ mix(self.draws))) % spread;
        let timeout = self.config.election_ticks + drawn as usize;
        self.node.raft.set_randomized_election_timeout(timeout);
    }
}
