//! The operator: who brings replicas to where they are wanted.

use std::collections::BTreeSet;

use quipu::raft::{Input, Membership, Operation, Role, Ticket};
use quipu::storage::{self, FactKind};
use quipu::types::{LogId, NodeId, ReplicaId};

use super::{Event, World};
use crate::node::Node;

/// Tickets of the operator start here.
pub(super) const OPERATOR: u64 = 1 << 40;

impl World {
    /// The leader of a group, as the operator finds it.
    pub(super) fn leader_of(&self, group: LogId) -> Option<NodeId> {
        let leads = |node: &&Node| {
            let found = node.live.as_ref().and_then(|live| live.shard.group(group));
            found.is_some_and(|group| group.role() == Role::Leader && group.is_writable())
        };
        let leaders = self.nodes.values().filter(leads);
        let term = |node: &&Node| node.live.as_ref().unwrap().shard.group(group).unwrap().term();
        leaders.max_by_key(term).map(|node| node.id)
    }

    /// Brings the replicas nearer to where they are wanted.
    pub(super) fn operate(&mut self) {
        if self.is_healed && self.plan.is_core {
            // Those that are left have to go on without him.
            return;
        }
        for group in self.groups.clone() {
            self.operate_on(group);
        }
        self.after(100_000, Event::Operate);
    }

    fn operate_on(&mut self, group: LogId) {
        let Some(leader) = self.leader_of(group) else { return };
        let live = self.nodes[&leader].live.as_ref().unwrap();
        let membership = live.shard.group(group).unwrap().membership().clone();
        let wanted = self.wanted[&group].clone();
        if membership.is_joint() {
            return;
        }
        for replica in &wanted {
            self.make_replica(group, *replica);
        }
        self.remove_strays(group, &membership);
        let Some(operations) = self.next_operations(group, &membership) else { return };
        self.tally.add("membership-step", 1);
        let live = self.nodes.get_mut(&leader).unwrap().live.as_mut().unwrap();
        live.inputs.push(Input::Change { group, ticket: Ticket(OPERATOR), operations });
        self.wake(leader, 0);
    }

    /// The next change that brings a group nearer to what is wanted.
    fn next_operations(&self, group: LogId, membership: &Membership) -> Option<Vec<Operation>> {
        let wanted = &self.wanted[&group];
        let present: BTreeSet<_> = membership.all().collect();
        let voters: BTreeSet<_> = membership.voters.iter().copied().collect();
        let is_made = |id: &&ReplicaId| self.nodes[&id.node()].replicas.get(&group) == Some(*id);
        if let Some(new) = wanted.difference(&present).find(is_made) {
            return Some(vec![Operation::Learner(*new)]);
        }
        // A replica votes once it has nearly all there is.
        let ready: BTreeSet<_> = wanted
            .difference(&voters)
            .copied()
            .filter(|id| present.contains(id) && self.has_caught_up(group, *id))
            .collect();
        let is_last_step = wanted.difference(&voters).all(|id| ready.contains(id));
        let come = ready.iter().map(|id| Operation::Voter(*id));
        if is_last_step && voters != *wanted {
            let go = voters.difference(wanted).map(|id| Operation::Remove(*id));
            return Some(come.chain(go).collect());
        }
        if !ready.is_empty() {
            return Some(come.collect());
        }
        if let Some(gone) = present.difference(wanted).find(|id| !is_made(id)) {
            return Some(vec![Operation::Remove(*gone)]);
        }
        // A node has one replica of a group at a time: the old one goes first.
        let homes: BTreeSet<_> = wanted.iter().map(|id| id.node()).collect();
        let is_in_the_way = |id: &&ReplicaId| homes.contains(&id.node()) && !wanted.contains(id);
        // Not when those that stay have no majority any more, because a disk of theirs is gone.
        let has_others = |id: &&ReplicaId| {
            let rest: Vec<_> = voters.iter().filter(|voter| voter != id).collect();
            let alive = rest.iter().filter(|voter| is_made(voter)).count();
            !voters.contains(id) || 2 * alive > rest.len()
        };
        let other = present.iter().filter(is_in_the_way).find(has_others);
        let stray = membership.learners.iter().find(|id| !wanted.contains(id));
        other.or(stray).map(|id| vec![Operation::Remove(*id)])
    }

    fn has_caught_up(&self, group: LogId, replica: ReplicaId) -> bool {
        let settled = self.oracle.settled.get(&group).and_then(|settled| settled.last_key_value());
        let node = &self.nodes[&replica.node()];
        let live = node.live.as_ref().filter(|_| node.replicas.get(&group) == Some(&replica));
        let found = live.and_then(|live| live.shard.group(group));
        found.is_some_and(|found| found.persisted() + 10 >= settled.map_or(0, |(index, _)| *index))
    }

    fn make_replica(&mut self, group: LogId, replica: ReplicaId) {
        let durability = self.plan.durability;
        let node = self.nodes.get_mut(&replica.node()).expect("the node exists");
        let has_one = node.live.as_ref().is_some_and(|live| live.disk.log(group).is_some());
        let is_ready = node.full_until_us <= self.time_us;
        if node.live.is_none() || has_one || !is_ready {
            return;
        }
        match node.add_replica(group, replica, None, durability) {
            Ok(()) => self.wake(replica.node(), 0),
            // The operator comes by again.
            Err(storage::Error::NoSpace { .. }) => {}
            Err(error) => self.fail_stop(replica.node(), &error),
        }
    }

    /// True if a majority of the voters has the membership on disk. Before that, replicas that it
    /// does not know may still be needed to find out that it holds.
    fn is_on_disk(&self, group: LogId, membership: &Membership) -> bool {
        membership.is_quorum(|voter| {
            let live = self.nodes[&voter.node()].live.as_ref();
            live.is_some_and(|live| {
                let journal = live.disk.dir().journal();
                let value = journal.get(group, FactKind::Membership);
                let found = value.and_then(|value| Membership::decode(&value));
                let has_it = found.is_some_and(|found| found.index >= membership.index);
                (has_it || membership.index == 0) && !journal.owes_sync()
            })
        })
    }

    /// Removes replicas that the settled membership does not know.
    fn remove_strays(&mut self, group: LogId, membership: &Membership) {
        if !self.is_on_disk(group, membership) {
            return;
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&id).expect("the node exists");
            let Some(replica) = node.replicas.get(&group).copied() else { continue };
            let is_known = membership.contains(replica) || self.wanted[&group].contains(&replica);
            let has_group =
                node.live.as_ref().is_some_and(|live| live.shard.group(group).is_some());
            if !is_known && has_group {
                let synced = node.remove_replica(group);
                self.parted.insert((group, replica), synced);
                self.tally.add("replica-removed", 1);
                self.wake(id, 0);
            }
        }
    }

    /// True if every wanted replica has all that is committed, on disk, and nobody else counts.
    pub(super) fn is_steady(&self, group: LogId) -> bool {
        let settled = self.oracle.settled.get(&group).and_then(|s| s.last_key_value());
        let index = settled.map_or(0, |(index, _)| *index);
        self.wanted[&group].iter().all(|replica| {
            let node = &self.nodes[&replica.node()];
            let found = node.live.as_ref().and_then(|live| {
                (node.replicas.get(&group) == Some(replica)).then_some(())?;
                live.shard.group(group)
            });
            found.is_some_and(|found| {
                let voters: BTreeSet<_> = found.membership().voters.iter().copied().collect();
                let is_plain =
                    !found.membership().is_joint() && found.membership().learners.is_empty();
                found.persisted() >= index && is_plain && voters == self.wanted[&group]
            })
        })
    }
}
