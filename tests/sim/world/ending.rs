//! The end: everything is healed, or nearly, and has to go on and agree.

use std::collections::BTreeSet;

use quipu::raft::{Group, Input, Membership};
use quipu::storage::Kind;
use quipu::types::{LogId, NodeId, ReplicaId};

use super::{Event, World};
use crate::clients::consumers_id;
use crate::node::Live;

impl World {
    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.cut.clear();
        (self.plan.lost, self.plan.doubled) = (0, 0);
        (self.plan.damaged, self.plan.hostile) = (0, 0);
        self.clients.rest();
        let is_change =
            |input: &Input<_>| matches!(input, Input::Change { .. } | Input::Transfer { .. });
        for live in self.nodes.values_mut().filter_map(|node| node.live.as_mut()) {
            live.inputs.retain(|input| !is_change(input));
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            (node.paused_until_us, node.slow_until_us, node.full_until_us) = (0, 0, 0);
            node.fs.set_capacity(None);
            if node.live.is_none() {
                self.start(id);
            }
            if let Some(live) = &mut self.nodes.get_mut(&id).expect("the node exists").live {
                live.is_step_due = false;
            }
            self.wake(id, 0);
        }
        if self.plan.damages() {
            self.scrub();
        }
        for n in 0..self.clients.all.len() {
            self.after(n as u64 * 500, Event::Client(n));
        }
    }

    /// Takes down a minority of the nodes for good, but none that a group cannot do without.
    pub(super) fn leave_some_dead(&mut self) {
        let count = self.rng.between(1, (self.plan.nodes - 1) / 2);
        let mut candidates: Vec<_> = self.nodes.keys().copied().collect();
        let mut dead = BTreeSet::new();
        while dead.len() < count as usize && !candidates.is_empty() {
            let at = self.rng.below(candidates.len() as u64) as usize;
            let candidate = candidates.swap_remove(at);
            dead.insert(candidate);
            if !self.groups.iter().all(|group| self.can_do_without(*group, &dead)) {
                dead.remove(&candidate);
            }
        }
        for id in &dead {
            let is_power_cut = self.rng.chance(500);
            self.take_down(*id, 0, is_power_cut);
        }
        self.tally.add("minority-left-dead", u64::from(!dead.is_empty()));
        self.dead = dead;
    }

    /// True if the others have a majority of the group's voters, whichever membership holds.
    fn can_do_without(&self, group: LogId, dead: &BTreeSet<NodeId>) -> bool {
        let mut homes = self.nodes.values().filter(|node| node.replicas.contains_key(&group));
        if self.plan.damages() && !homes.all(|node| self.is_whole(node.id, group)) {
            return false;
        }
        self.nodes.values().filter(|node| node.replicas.contains_key(&group)).all(|node| {
            let live = node.live.as_ref();
            let Some(found) = live.and_then(|live| live.shard.group(group)) else { return false };
            // A change that is not applied yet may still come.
            let after = found.membership().index + 1..=found.last_index();
            let mut unapplied = after.filter_map(|index| found.entry(index));
            let is_settled = !unapplied.any(|entry| entry.header.kind == Kind::Membership);
            let is_alive = |replica: ReplicaId| {
                let node = &self.nodes[&replica.node()];
                !dead.contains(&node.id) && node.replicas.get(&group) == Some(&replica)
            };
            is_settled && found.membership().is_quorum(is_alive)
        })
    }

    /// True if all that take part agree and have nothing left to do.
    pub(super) fn has_converged(&self) -> bool {
        self.groups.iter().all(|group| self.group_has_converged(*group))
    }

    fn group_has_converged(&self, group: LogId) -> bool {
        let Some(leader) = self.leader_of(group) else { return false };
        let lead = self.nodes[&leader].live.as_ref().unwrap().shard.group(group).unwrap();
        let membership = lead.membership();
        let is_alike = self.expected(group, membership).into_iter().all(|replica| {
            self.live_group(group, replica).is_some_and(|(_, found)| {
                found.committed() == lead.last_index()
                    && found.last_index() == lead.last_index()
                    && found.persisted() == lead.last_index()
                    && (!self.plan.damages() || self.is_as_whole_as_can_be(replica.node(), group))
            })
        });
        let voters: BTreeSet<_> = membership.voters.iter().copied().collect();
        let is_wanted = voters == self.wanted[&group] || self.plan.is_core;
        is_alike && is_wanted && !membership.is_joint()
    }

    /// Entries that replicas have to copy before they agree; the greatest number there is
    /// if a group has no leader.
    pub(super) fn missing(&self) -> u64 {
        let of_group = |group: &LogId| {
            let leader = self.leader_of(*group)?;
            let lead = self.nodes[&leader].live.as_ref()?.shard.group(*group)?;
            let missing = |replica| {
                let found = self.live_group(*group, replica);
                let persisted = found.map_or(0, |(_, found)| found.persisted());
                lead.last_index().saturating_sub(persisted)
            };
            Some(self.expected(*group, lead.membership()).into_iter().map(missing).sum::<u64>())
        };
        self.groups.iter().map(of_group).sum::<Option<u64>>().unwrap_or(u64::MAX)
    }

    /// Replicas that have to agree: all that are wanted, or all that are left.
    fn expected(&self, group: LogId, membership: &Membership) -> Vec<ReplicaId> {
        if !self.plan.is_core {
            return self.wanted[&group].iter().copied().collect();
        }
        let is_left = |replica: &ReplicaId| {
            let node = &self.nodes[&replica.node()];
            !self.dead.contains(&node.id) && node.replicas.get(&group) == Some(replica)
        };
        membership.all().filter(is_left).collect()
    }

    fn live_group(&self, group: LogId, replica: ReplicaId) -> Option<(&Live, &Group)> {
        let node = &self.nodes[&replica.node()];
        let live = node.live.as_ref().filter(|_| node.replicas.get(&group) == Some(&replica))?;
        Some((live, live.shard.group(group)?))
    }

    /// The last comparison, when everything is quiet.
    pub(super) fn check(&mut self) {
        self.clients.check(&self.oracle);
        for group in self.groups.clone() {
            let leader = self.leader_of(group).expect("a group that agrees has a leader");
            let live = self.nodes[&leader].live.as_ref().unwrap();
            let membership = live.shard.group(group).unwrap().membership().clone();
            let mut seen: Option<(u32, u32)> = None;
            for replica in self.expected(group, &membership) {
                let (live, _) = self.live_group(group, replica).unwrap();
                let machine = live.shard.machine(group).unwrap();
                let chain = live.disk.log(group).unwrap().tip().chain;
                let found = (machine.state().digest(), chain);
                let first = *seen.get_or_insert(found);
                assert_eq!(found, first, "{group}: replica {replica} has another state or history");
                let progress = machine.state().progress().get(&consumers_id());
                let committed = progress.and_then(|g| g.position.as_ref()).map(|p| p.offset);
                self.clients.check_progress(group, committed);
            }
            let stays = |index, leader| {
                let after = self.memberships.get(&(group, index));
                after.is_none_or(|membership| membership.voters.contains(&leader))
            };
            let left = self.oracle.joints_left_by_others(group, stays);
            self.tally.add("joint-left-by-another-leader", left);
        }
        self.tally.merge(&self.clients.tally);
        self.tally.add("election", self.oracle.elections);
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}\ndead: {:?}\n", self.plan, self.dead);
        for group in &self.groups {
            text += &format!("{group}, wanted {:?}\n", self.wanted[group]);
            for node in self.nodes.values() {
                let live = node.live.as_ref().and_then(|live| live.shard.group(*group));
                text += &format!("  node {}: {:?} {live:?}", node.id, node.replicas.get(group));
                text += &format!(" {:?}\n", live.map(Group::membership));
                let log = node.live.as_ref().and_then(|live| live.disk.log(*group));
                text += &format!("    {:?}", live.map(Group::promise));
                text += &format!(" {:?}\n", log.map(|log| (log.tip(), log.wound())));
            }
        }
        text + &format!("{:?}", self.clients.all)
    }
}
