//! Faults, and what operators do at bad moments.

use std::collections::BTreeSet;

use quipu::raft::planted::{Bug, planted};
use quipu::raft::{Divergence, Durability, Fault, Input, Role, Ticket};
use quipu::storage::{Policy, Tip};
use quipu::types::{LogId, NodeId, ReplicaId};

use super::operator::OPERATOR;
use super::{Event, World};
use crate::plan::Mischief;
use crate::rng::Rng;

impl World {
    pub(super) fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let every_us = self.plan.fault_every_ms * 1000;
        let next_us = self.rng.between(1, 2 * every_us);
        self.after(next_us, Event::Fault);
        let mut rng = self.rng.clone();
        let drawn = self.plan.draw_fault(&mut rng);
        self.rng = rng;
        if let Some(fault) = drawn {
            self.inflict(fault);
        }
    }

    fn inflict(&mut self, fault: Mischief) {
        let id = NodeId(self.rng.between(1, self.plan.nodes));
        let long_us = self.rng.between(20, self.plan.fault_ms_max) * 1000;
        let time_us = self.time_us;
        match fault {
            Mischief::Crash => self.take_down(id, long_us, false),
            Mischief::PowerCut => self.take_down(id, long_us, true),
            Mischief::PowerCutOfAll => {
                self.tally.add("power-cut-of-all", 1);
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    let down_us = self.rng.between(20, self.plan.fault_ms_max.min(600)) * 1000;
                    self.take_down(id, down_us, true);
                }
            }
            Mischief::Partition => {
                self.tally.add("partition", 1);
                self.cut.clear();
                if self.rng.chance(800) {
                    self.cut_in_two();
                }
            }
            Mischief::OneWayCut => {
                self.tally.add("one-way-cut", 1);
                let other = NodeId(self.rng.between(1, self.plan.nodes));
                self.cut.insert((id, other));
            }
            Mischief::Pause => {
                self.tally.add("pause", 1);
                let pause_us = if self.rng.chance(50) { 60_000_000 } else { long_us };
                self.nodes.get_mut(&id).unwrap().paused_until_us = time_us + pause_us;
            }
            Mischief::SlowDisk => {
                self.tally.add("slow-disk", 1);
                self.nodes.get_mut(&id).unwrap().slow_until_us = time_us + long_us;
            }
            Mischief::FullDisk => self.fill_disk(id, long_us),
            Mischief::FailedSync => {
                let skip = self.rng.below(10);
                self.nodes[&id].fs.fail_sync(skip);
            }
            Mischief::Wipe => self.wipe(id),
            Mischief::Change => self.change_wanted(),
            Mischief::Transfer => self.transfer(),
            Mischief::Retention => self.retain(id),
            Mischief::Damage => self.damage(id, long_us),
            Mischief::DamageOfAll => self.damage_all(),
        }
        let skew = self.rng.between(0, 4_000).cast_signed() - 2_000;
        if self.rng.chance(100) {
            self.nodes.get_mut(&id).unwrap().skew_ms = skew * 1000;
        }
    }

    pub(super) fn take_down(&mut self, id: NodeId, down_us: u64, is_power_cut: bool) {
        let mut rng = Rng::new(self.rng.next());
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let Some(live) = &node.live else { return };
        let groups = live.shard.groups().filter_map(|group| live.shard.group(group));
        for group in groups {
            let has_tail = group.last_index() > group.committed();
            let is_lost = group.role() == Role::Leader && has_tail;
            self.tally.add("leader-lost-with-uncommitted-tail", u64::from(is_lost));
            let is_joint = is_power_cut && group.membership().is_joint();
            self.tally.add("power-cut-while-joint", u64::from(is_joint));
        }
        if is_power_cut {
            node.power_cut(&mut rng);
        } else {
            node.crash();
        }
        node.paused_until_us = 0;
        self.tally.add(if is_power_cut { "power-cut" } else { "crash" }, 1);
        self.after(down_us, Event::Start { node: id });
    }

    fn cut_in_two(&mut self) {
        let side: BTreeSet<_> =
            self.nodes.keys().copied().filter(|_| self.rng.chance(500)).collect();
        for a in self.nodes.keys() {
            for b in self.nodes.keys() {
                if side.contains(a) != side.contains(b) {
                    self.cut.insert((*a, *b));
                }
            }
        }
    }

    fn fill_disk(&mut self, id: NodeId, long_us: u64) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if let Some(live) = &node.live {
            self.tally.add("full-disk", 1);
            node.full_until_us = self.time_us + long_us;
            node.fs.set_capacity(Some(node.fs.used_bytes() + 2_000));
            let life = node.life;
            let _ = live;
            self.after(long_us, Event::Retry { node: id, life });
        }
    }

    /// Takes a disk away. Only when every group it has a part in can spare it.
    fn wipe(&mut self, id: NodeId) {
        let durability = self.plan.durability;
        let has_all_others = self.nodes.values().all(|node| node.live.is_some() || node.id == id);
        let are_whole = |group: &LogId| {
            let mut others = self.wanted[group].iter().map(|replica| replica.node());
            !self.plan.damages() || others.all(|other| other == id || self.is_whole(other, *group))
        };
        let can_spare = |group: &LogId| {
            self.is_steady(*group) && self.wanted[group].len() >= 3 && are_whole(group)
        };
        if !has_all_others || !self.nodes[&id].replicas.keys().all(can_spare) {
            return;
        }
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let lost = node.replicas.clone();
        for (group, synced) in node.wipe() {
            self.parted.insert((group, lost[&group]), synced);
        }
        node.start(self.time_us, durability).unwrap();
        self.tally.add("wipe", 1);
        for (group, replica) in lost {
            self.incarnations += 1;
            let wanted = self.wanted.get_mut(&group).expect("the group exists");
            if !planted(Bug::WipedKeepsId) && wanted.remove(&replica) {
                wanted.insert(ReplicaId::new(id, self.incarnations));
            }
        }
        self.begin(id);
    }

    /// Moves one replica of a group to another node.
    fn change_wanted(&mut self) {
        let group = *self.rng.pick(&self.groups.clone()).expect("there is a group");
        let wanted = self.wanted[&group].clone();
        // Who takes a replica away looks first whether the others are whole.
        let mut homes = wanted.iter().map(|replica| replica.node());
        if self.plan.damages() && !homes.all(|home| self.is_whole(home, group)) {
            return;
        }
        let free: Vec<_> = self
            .nodes
            .keys()
            .copied()
            .filter(|id| wanted.iter().all(|replica| replica.node() != *id))
            .collect();
        let replicas: Vec<_> = wanted.iter().copied().collect();
        let from = *self.rng.pick(&replicas).expect("a group has replicas");
        self.incarnations += 1;
        let mut wanted = wanted.clone();
        match self.rng.pick(&free) {
            Some(to) => {
                wanted.remove(&from);
                wanted.insert(ReplicaId::new(*to, self.incarnations));
            }
            None if wanted.len() > 1 => {
                wanted.remove(&from);
            }
            None => return,
        }
        if self.rng.chance(300) {
            let homes: BTreeSet<_> = wanted.iter().map(|replica| replica.node()).collect();
            let other = self.nodes.keys().find(|id| !homes.contains(id));
            if let Some(other) = other {
                self.incarnations += 1;
                wanted.insert(ReplicaId::new(*other, self.incarnations));
            }
        }
        // A lone replica cannot take the place of another one on its own node.
        let is_in_the_way = |id: &ReplicaId| {
            let found = self.nodes[&id.node()].replicas.get(&group);
            found.is_some_and(|found| found != id)
        };
        if wanted.len() > 1 || !wanted.iter().any(is_in_the_way) {
            self.wanted.insert(group, wanted);
            self.tally.add("membership-wanted", 1);
        }
    }

    /// A replica that kept what a majority lost takes it back.
    pub(super) fn rewind(&mut self, id: NodeId, group: LogId, fault: &Fault) {
        let index = match fault {
            Fault::Diverged(Divergence::Committed { index, .. }) => *index,
            _ => u64::MAX,
        };
        assert!(
            self.plan.durability == Durability::Memory && index < u64::MAX,
            "node {id}: {group} stopped: {fault}"
        );
        self.tally.add("rewound-in-memory-class", 1);
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.live.is_none() {
            // The disk failed over another one.
            return;
        }
        match node.rewind(group, index, Durability::Memory) {
            Ok(()) => self.wake(id, 0),
            Err(error) => self.fail_stop(id, &error),
        }
    }

    fn transfer(&mut self) {
        let group = *self.rng.pick(&self.groups.clone()).expect("there is a group");
        let Some(leader) = self.leader_of(group) else { return };
        let wanted: Vec<_> = self.wanted[&group].iter().copied().collect();
        let to = *self.rng.pick(&wanted).expect("a group has replicas");
        let live = self.nodes.get_mut(&leader).unwrap().live.as_mut().unwrap();
        live.inputs.push(Input::Transfer { group, ticket: Ticket(OPERATOR), to });
        self.tally.add("transfer", 1);
        self.wake(leader, 0);
    }

    fn retain(&mut self, id: NodeId) {
        let Some(bytes) = self.plan.retention_bytes else { return };
        let policy = Policy { bytes: Some(bytes), ..Policy::default() };
        let now = self.nodes[&id].now(self.time_us);
        let Some(live) = &mut self.nodes.get_mut(&id).expect("the node exists").live else {
            return;
        };
        // Inputs that wait could still move what is settled.
        match live.retain(&policy, now) {
            Ok(moved) => self.note_starts(id, "log-start-moved", moved),
            Err(error) => return self.fail_stop(id, &error),
        }
        self.wake(id, 0);
    }

    pub(super) fn note_starts(&mut self, id: NodeId, what: &'static str, moved: Vec<(LogId, Tip)>) {
        self.tally.add(what, moved.len() as u64);
        for (group, start) in moved {
            self.check_start(id, group, start);
        }
    }

    /// Retention takes nothing that is not committed.
    fn check_start(&self, id: NodeId, group: LogId, start: Tip) {
        let settled = self.oracle.settled.get(&group).and_then(|all| all.get(&start.index));
        let known = settled.map(|settled| settled.header.chain);
        assert!(
            known == Some(start.chain) || self.plan.durability == Durability::Memory,
            "node {id}: {group} starts after {start:?} now, settled is {known:?}"
        );
    }
}
