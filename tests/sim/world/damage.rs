//! Damage: bytes on a disk change that nobody has written.
//!
//! Only what can be survived is inflicted, and only what can be noticed. Every entry that is
//! damaged is intact on the disk of another voter, or was on no other; and what is on record on the
//! same disk still says that it was there. So nothing may be lost, and everything has to come back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use quipu::raft::Durability;
use quipu::types::{LogId, NodeId};

use super::World;
use crate::node::{Kept, is_readable, kept};
use crate::rng::Rng;

const SECTOR_BYTES: usize = 512;
/// Where a segment's checkpoint begins, and where its header says how long that is.
const CHECKPOINT_AT: usize = 4096 + 512;
const CHECKPOINT_LEN_AT: usize = 100;

/// Bytes of a file that change: their place, and what they are combined with.
#[derive(Debug, Clone)]
struct Blow {
    path: PathBuf,
    at: usize,
    /// One bit is flipped; otherwise the rest of the sector is zero.
    bit: Option<u8>,
}

impl Blow {
    fn strike(&self, bytes: &mut [u8]) {
        let end = bytes.len().min((self.at / SECTOR_BYTES + 1) * SECTOR_BYTES);
        match (bytes.get_mut(self.at..end), self.bit) {
            (Some([first, ..]), Some(bit)) => *first ^= 1 << bit,
            (Some(rest), None) => rest.fill(0),
            _ => {}
        }
    }
}

impl World {
    /// Damages the disk of a node, while it runs or while it is down.
    pub(super) fn damage(&mut self, id: NodeId, down_us: u64) {
        let is_up = self.nodes[&id].live.is_some();
        if is_up && self.rng.chance(600) {
            let is_power_cut = self.rng.chance(500);
            self.take_down(id, down_us, is_power_cut);
        }
        self.damage_disk(id);
    }

    /// Damages the disks of all nodes in one moment, each where another is whole.
    pub(super) fn damage_all(&mut self) {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for id in &ids {
            let down_us = self.rng.between(20, 300) * 1000;
            let is_power_cut = self.rng.chance(500);
            self.take_down(*id, down_us, is_power_cut);
        }
        let damaged: usize = ids.iter().map(|id| usize::from(self.damage_disk(*id))).sum();
        let is_helical = damaged == ids.len();
        self.tally.add("damage-on-every-node", u64::from(is_helical));
    }

    /// True if something was damaged.
    fn damage_disk(&mut self, id: NodeId) -> bool {
        if self.plan.durability == Durability::Memory {
            return false;
        }
        let groups: Vec<_> = self.nodes[&id].replicas.keys().copied().collect();
        let Some(group) = self.rng.pick(&groups).copied() else { return false };
        for _ in 0..4 {
            let mut rng = Rng::new(self.rng.next());
            let Some(blow) = aim(&self.nodes[&id], group, &mut rng) else { return false };
            if self.is_survivable(id, group, &blow) {
                let node = &self.nodes[&id];
                node.fs.rot(&blow.path, |bytes| blow.strike(bytes));
                let is_up = node.live.is_some();
                self.tally.add("damage", 1);
                self.tally.add("damage-while-up", u64::from(is_up));
                return true;
            }
        }
        false
    }

    /// True if all that would be lost can come back, and is noticed.
    fn is_survivable(&self, id: NodeId, group: LogId, blow: &Blow) -> bool {
        let node = &self.nodes[&id];
        let damaged = node.fs.fork();
        damaged.rot(&blow.path, |bytes| blow.strike(bytes));
        let (Some(before), Some(after)) = (kept(&node.fs, group), kept(&damaged, group)) else {
            return false;
        };
        // What a log that is in use has not synced yet is in the same sectors: a blow there, before
        // anything is on record of it, could not be noticed.
        let live = node.live.as_ref().and_then(|live| live.disk.log(group));
        let last = live.map(|log| log.tip().index).or(node.promised.get(&group).copied());
        let is_noticed = after.promised >= before.promised.max(last.unwrap_or(0));
        let lost: BTreeMap<u64, u32> = before
            .chains
            .iter()
            .filter(|(index, _)| !after.chains.contains_key(index))
            .map(|(index, chain)| (*index, *chain))
            .collect();
        let is_end = !after.has_end();
        is_noticed && !lost.is_empty() && self.are_kept_elsewhere(id, group, &lost, is_end)
    }

    /// True if what is lost of a log is on other disks, or never was. `is_end` says that it is the
    /// end of the log: that comes back from a leader as far as that, and only a replica that is
    /// whole can lead. One that lacks something else does not run: it may wait for what nobody has
    /// any more, until a leader tells it to go on without. Were nobody else as far as it is, each
    /// would wait for the other: both have lost something, and of three that is a majority.
    fn are_kept_elsewhere(
        &self,
        id: NodeId,
        group: LogId,
        lost: &BTreeMap<u64, u32>,
        is_end: bool,
    ) -> bool {
        let memberships = self.memberships.range((group, 0)..=(group, u64::MAX));
        let Some((_, membership)) = memberships.last() else { return false };
        let wanted = &self.wanted[&group];
        let voters: BTreeSet<_> = membership.voters.iter().filter(|v| wanted.contains(v)).collect();
        let is_plain = !membership.is_joint() && voters.len() == membership.voters.len();
        if voters.len() < 2 {
            return false;
        }
        let others = self.nodes.values().filter(|node| node.id != id);
        let others = others.filter_map(|node| {
            let replica = node.replicas.get(&group)?;
            let is_voter = voters.contains(replica);
            Some((is_voter, kept(&node.fs, group).unwrap_or_default()))
        });
        let others: Vec<(bool, Kept)> = others.collect();
        lost.iter().all(|(index, chain)| {
            let has = |kept: &Kept| kept.chains.get(index) == Some(chain);
            let may_have =
                |kept: &Kept| kept.promised >= *index && !kept.chains.contains_key(index);
            let can_give = |kept: &Kept| has(kept) && (kept.is_whole() || !is_end);
            let is_kept = others.iter().any(|(is_voter, kept)| *is_voter && can_give(kept));
            // Nobody else ever had it, and the others can go on without this one.
            let is_alone = is_plain
                && voters.len() >= 3
                && others.iter().all(|(_, kept)| !has(kept) && !may_have(kept) && kept.is_whole());
            is_kept || (is_alone && !self.is_settled(group, *index, *chain))
        })
    }

    fn is_settled(&self, group: LogId, index: u64, chain: u32) -> bool {
        let settled = self.oracle.settled.get(&group).and_then(|all| all.get(&index));
        settled.is_some_and(|settled| settled.header.chain == chain)
    }

    /// True if every entry of a group's log on a node's disk can be read.
    pub(super) fn is_whole(&self, id: NodeId, group: LogId) -> bool {
        let found = kept(&self.nodes[&id].fs, group);
        found.is_some_and(|kept| kept.is_whole())
    }

    /// True if the damage that a running replica still has is of entries that no other replica
    /// keeps: retention has taken them there, and will take them here.
    pub(super) fn is_as_whole_as_can_be(&self, id: NodeId, group: LogId) -> bool {
        let live = self.nodes[&id].live.as_ref().expect("the node runs");
        let reader = live.disk.reader(group).expect("a replica has a log");
        let others = self.nodes.values().filter(|node| node.id != id);
        let starts = others.filter_map(|node| {
            let live = node.live.as_ref()?;
            live.shard.group(group).map(|group| group.start().index)
        });
        let start = starts.min().unwrap_or(0).max(reader.first_index() - 1);
        let is_promised = live.shard.group(group).is_none_or(|group| group.promise().is_some());
        let is_kept = |index: &u64| !is_readable(&reader, *index);
        !is_promised && (start + 1..=reader.last_index()).find(is_kept).is_none()
    }

    /// Has every segment looked into, as scrubbing does.
    pub(super) fn scrub(&mut self) {
        for live in self.nodes.values_mut().filter_map(|node| node.live.as_mut()) {
            for group in live.disk.dir().logs().expect("the logs can be listed") {
                let Some(reader) = live.disk.reader(group) else { continue };
                for segment in reader.segments().iter() {
                    reader.examine(segment.base_index()).expect("a segment can be read");
                }
            }
        }
    }
}

/// Chooses what to damage among the entries of a group on a disk.
fn aim(node: &crate::node::Node, group: LogId, rng: &mut Rng) -> Option<Blow> {
    let name = group.to_string();
    let is_segment = |path: &PathBuf| {
        let is_in = path.parent().and_then(Path::file_name).is_some_and(|dir| *dir == *name);
        is_in && path.extension().is_some_and(|extension| extension == "seg")
    };
    let paths: Vec<_> = node.fs.paths().into_iter().filter(is_segment).collect();
    // Most often the newest: where promises are young.
    let last = paths.last().filter(|_| rng.chance(600)).cloned();
    let path = last.or_else(|| rng.pick(&paths).cloned())?;
    let bytes = node.fs.durable_bytes(&path)?;
    let len = bytes.get(CHECKPOINT_LEN_AT..CHECKPOINT_LEN_AT + 4)?.try_into().ok()?;
    let start = CHECKPOINT_AT + u32::from_le_bytes(len) as usize;
    let end = bytes.iter().rposition(|byte| *byte != 0)?;
    if start >= end {
        return None;
    }
    // The end of a log is where it can be mistaken for a torn one.
    let from = if rng.chance(500) { start.max(end.saturating_sub(1000)) } else { start };
    let at = rng.between(from as u64, end as u64) as usize;
    let bit = rng.chance(700).then(|| rng.below(8) as u8);
    Some(Blow { path, at, bit })
}
