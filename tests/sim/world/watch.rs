//! The watch: what is looked at after each step of a node.

use quipu::raft::{Durability, Group, HardState, Incidents, Membership, Role};
use quipu::storage::{FactKind, Journal, Kind};
use quipu::types::{LogId, NodeId};

use super::World;
use crate::node::raft_config;

/// What was last seen of a replica.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sighting {
    life: u64,
    leading_in: Option<u64>,
    incidents: Incidents,
    membership_index: u64,
    applied_index: u64,
}

impl World {
    pub(super) fn watch(&mut self, id: NodeId) {
        let Some(live) = &mut self.nodes.get_mut(&id).expect("the node exists").live else {
            return;
        };
        let counted = std::mem::take(&mut live.tally);
        self.tally.merge(&counted);
        for group in self.groups.clone() {
            self.watch_group(id, group);
        }
    }

    fn watch_group(&mut self, id: NodeId, group: LogId) {
        let node = &self.nodes[&id];
        let Some(live) = &node.live else { return };
        let Some(found) = live.shard.group(group) else { return };
        let machine = live.shard.machine(group).expect("a group has a machine");
        let applied_index = machine.state().applied_index();
        check_budget(found, applied_index);
        check_standing(found);
        if self.plan.durability == Durability::Fsync && self.time_us.is_multiple_of(4) {
            check_recorded(found, live.disk.dir().journal());
        }
        let before = self.seen.get(&(id, group)).copied().unwrap_or_default();
        let before = if before.life == node.life { before } else { Sighting::default() };
        let now = Sighting {
            life: node.life,
            leading_in: (found.role() == Role::Leader).then(|| found.term()),
            incidents: found.incidents(),
            membership_index: found.membership().index,
            applied_index,
        };
        if applied_index != before.applied_index && self.plan.durability == Durability::Fsync {
            let digest = machine.state().digest();
            let key = (group, applied_index);
            let first = *self.digests.entry(key).or_insert(digest);
            assert_eq!(digest, first, "node {id}: {group} has another state at {applied_index}");
        }
        if before.leading_in == Some(found.term()) && found.role() != Role::Leader {
            let is_voter = found.membership().is_voter(found.replica());
            let what = if is_voter {
                "leader-stepped-down-without-quorum"
            } else {
                "leader-removed-itself"
            };
            self.tally.add(what, 1);
        }
        let membership = found.membership().clone();
        self.count_incidents(before.incidents, now.incidents);
        if now.membership_index != before.membership_index || before.life == 0 {
            self.watch_membership(group, membership);
        }
        self.seen.insert((id, group), now);
    }

    fn count_incidents(&mut self, before: Incidents, now: Incidents) {
        let inferred = now.inferred_commits.saturating_sub(before.inferred_commits);
        self.tally.add("commit-inferred-from-later-change", inferred);
        let slow = now.slow_disk_hand_overs.saturating_sub(before.slow_disk_hand_overs);
        self.tally.add("leader-handed-over-for-slow-disk", slow);
        let repaired = now.tails_repaired.saturating_sub(before.tails_repaired);
        self.tally.add("tail-repaired", repaired);
        let stood_back = now.stood_back.saturating_sub(before.stood_back);
        self.tally.add("leader-stood-back-for-damage", stood_back);
        let leaving = now.leaving_hand_overs.saturating_sub(before.leaving_hand_overs);
        self.tally.add("leader-handed-over-before-leaving", leaving);
    }

    /// All replicas have the same membership at the same index.
    fn watch_membership(&mut self, group: LogId, membership: Membership) {
        let key = (group, membership.index);
        if let Some(known) = self.memberships.get(&key) {
            // A joining replica knows nobody yet.
            let is_same = *known == membership || membership.index == 0;
            assert!(is_same, "{group} has two memberships: {known:?} and {membership:?}");
            return;
        }
        let earlier = self.memberships.range((group, 0)..key).last();
        if let Some((_, before)) = earlier {
            let is_promoted = membership.voters.iter().any(|id| before.learners.contains(id));
            let is_partitioned = is_promoted && !self.cut.is_empty();
            self.tally.add("learner-promoted-during-partition", u64::from(is_partitioned));
            let has_grown = before.voters.len() == 1 && membership.voters.len() > 1;
            self.tally.add("lone-voter-grew", u64::from(has_grown));
        }
        self.memberships.insert(key, membership);
    }
}

/// Who leads has a vote, and who seeks election knows all voters but for one change at most.
fn check_standing(group: &Group) {
    let membership = group.membership();
    let is_in = membership.is_voter(group.replica());
    assert!(
        group.role() != Role::Leader || is_in,
        "{group:?} leads without a vote: {membership:?}"
    );
    if group.role() == Role::Candidate {
        let unapplied = membership.index + 1..=group.last_index();
        let unapplied = unapplied.filter_map(|index| group.entry(index));
        let changes = unapplied.filter(|entry| entry.header.kind == Kind::Membership).count();
        assert!(changes <= 1, "{group:?} seeks election, {changes} changes after {membership:?}");
    }
}

/// What the journal says of a commit is about entries on this disk, or about some that were lost
/// to damage and that the replica stands for until it has them again.
fn check_recorded(group: &Group, journal: &Journal) {
    let Some(bytes) = journal.get(group.id(), FactKind::HardState) else { return };
    let recorded = HardState::decode(&bytes).expect("what was recorded can be read");
    let promised = group.promise().map_or(0, |promise| promise.index);
    assert!(
        recorded.commit <= group.persisted().max(promised) && recorded.term <= group.term(),
        "{group:?} has recorded {recorded:?}, {} are on disk",
        group.persisted()
    );
}

/// What is in memory beyond the budget is there because it is not applied. Only a leader has one:
/// it keeps some entries for others.
fn check_budget(group: &Group, applied_index: u64) {
    let settled = group.settled().min(applied_index);
    let budget = if group.role() == Role::Leader { raft_config().tail_bytes_max } else { 0 };
    if group.tail_bytes() <= budget {
        return;
    }
    let needed = (settled + 1..=group.last_index()).filter_map(|index| group.entry(index));
    let needed: usize = needed.map(|entry| entry.payload.len()).sum();
    assert!(
        group.tail_bytes() <= budget.max(needed),
        "{group:?} keeps {} bytes, {needed} are needed and {budget} are allowed",
        group.tail_bytes()
    );
}
