//! What must hold at every moment, whatever happens: Raft's invariants over all groups.

use std::collections::BTreeMap;

use quipu::raft::{Durability, Published, Role};
use quipu::storage::{Access, Entry, EntryHeader, Kind};
use quipu::types::{LogId, ReplicaId};

use crate::node::Node;

/// The step of a membership entry, its second byte.
const ENTER: u8 = 1;
const LEAVE: u8 = 2;

/// A committed entry, as the first replica to know of it had it.
#[derive(Debug, Clone)]
pub struct Settled {
    pub header: EntryHeader,
    /// The payload, if the replica had it in memory.
    pub payload: Option<bytes::Bytes>,
}

/// Everything that was ever committed, and who led when.
#[derive(Debug, Default)]
pub struct Oracle {
    pub settled: BTreeMap<LogId, BTreeMap<u64, Settled>>,
    /// Index of each record batch by its base offset.
    batches: BTreeMap<LogId, BTreeMap<u64, u64>>,
    leaders: BTreeMap<(LogId, u64), ReplicaId>,
    /// Committed index and high watermark that each life of a replica has shown, and the index that
    /// it knew to be committed.
    shown: BTreeMap<(LogId, ReplicaId, u64), (u64, u64, u64)>,
    pub elections: u64,
}

impl Oracle {
    /// Looks at what a node says of a group.
    pub fn observe(&mut self, node: &Node, published: &Published, durability: Durability) {
        let group = published.group;
        let live = node.live.as_ref().unwrap();
        let replica = live.shard.group(group).unwrap().replica();
        let shown = self.shown.entry((group, replica, node.life)).or_default();
        let goes_on = published.committed_index >= shown.0 && published.high_watermark >= shown.1;
        assert!(
            goes_on || durability == Durability::Memory,
            "node {}: {group} goes back from {shown:?} to {published:?}",
            node.id
        );
        let from = shown.2;
        let committed = live.shard.group(group).unwrap().committed();
        *shown = (published.committed_index, published.high_watermark, committed);
        if published.role == Role::Leader {
            self.observe_leader(node, published, replica, durability);
        }
        self.settle(node, group, from, committed, durability);
    }

    fn observe_leader(
        &mut self,
        node: &Node,
        published: &Published,
        replica: ReplicaId,
        durability: Durability,
    ) {
        let key = (published.group, published.term);
        let is_new = !self.leaders.contains_key(&key);
        let leader = *self.leaders.entry(key).or_insert(replica);
        assert_eq!(leader, replica, "two leaders of {} in term {}", key.0, key.1);
        if !is_new || durability == Durability::Memory {
            return;
        }
        self.elections += 1;
        let group = node.live.as_ref().unwrap().shard.group(published.group).unwrap();
        let settled = self.settled.get(&published.group);
        let Some((index, entry)) = settled.and_then(|settled| settled.last_key_value()) else {
            return;
        };
        // A leader of an older term may come to light after a newer one has committed more.
        if entry.header.term > published.term {
            return;
        }
        assert!(
            group.last_index() >= *index,
            "leader {replica} of {} in term {} has {} entries, {index} are committed",
            published.group,
            published.term,
            group.last_index()
        );
        if let Some(found) = group.entry(*index) {
            assert_eq!(found.header.chain, entry.header.chain, "leader {replica}: entry {index}");
        }
    }

    /// Compares what a node takes for committed with what others do.
    fn settle(&mut self, node: &Node, group: LogId, from: u64, to: u64, durability: Durability) {
        let live = node.live.as_ref().unwrap();
        let settled = self.settled.entry(group).or_default();
        let batches = self.batches.entry(group).or_default();
        for index in from + 1..=to {
            let entry = live.shard.group(group).unwrap().entry(index);
            let is_whole = |entry: &&Entry| entry.payload.len() as u32 == entry.header.payload_len;
            let entry = entry.filter(is_whole).cloned();
            let entry = entry.or_else(|| {
                let mut entries = Vec::new();
                let reader = live.disk.reader(group)?;
                let read = reader.read(index, index, 1, Access::MayBlock, &mut entries);
                read.ok().and_then(|()| entries.pop())
            });
            // Where the payload is damaged the header still says what was committed.
            let entry = entry.or_else(|| live.shard.group(group).unwrap().entry(index).cloned());
            // What a snapshot or retention took away was compared when it was committed.
            let Some(entry) = entry else { continue };
            check(node, group, settled, &entry, durability);
            if entry.header.kind == Kind::Records {
                batches.insert(entry.header.base_offset, index);
            }
        }
    }

    /// How often a change of voters was ended by another leader than the one that began it.
    ///
    /// Nobody ends one who has no part in what comes after: `stays` says who has, after an index.
    pub fn joints_left_by_others(
        &self,
        group: LogId,
        stays: impl Fn(u64, ReplicaId) -> bool,
    ) -> u64 {
        let mut entered_in = None;
        let mut count = 0;
        for settled in self.settled_of(group) {
            let term = settled.header.term;
            match settled.payload.as_deref() {
                Some([_, ENTER, ..]) if settled.header.kind == Kind::Membership => {
                    entered_in = Some(term);
                }
                Some([_, LEAVE, ..]) if settled.header.kind == Kind::Membership => {
                    let leader = |term| self.leaders.get(&(group, term));
                    let index = settled.header.index;
                    assert!(
                        leader(term).is_none_or(|leader| stays(index, *leader)),
                        "{group}: {:?} is to go and ends the change at {index}",
                        leader(term)
                    );
                    let is_other = entered_in.is_some_and(|before| leader(before) != leader(term));
                    count += u64::from(is_other);
                }
                _ => {}
            }
        }
        count
    }

    /// The record batch that begins at an offset, if it is committed.
    pub fn at_offset(&self, group: LogId, base_offset: u64) -> Option<&Settled> {
        let index = *self.batches.get(&group)?.get(&base_offset)?;
        self.settled.get(&group)?.get(&index)
    }

    pub fn settled_of(&self, group: LogId) -> impl Iterator<Item = &Settled> {
        self.settled.get(&group).into_iter().flat_map(BTreeMap::values)
    }
}

fn check(
    node: &Node,
    group: LogId,
    settled: &mut BTreeMap<u64, Settled>,
    entry: &Entry,
    durability: Durability,
) {
    let header = entry.header;
    let is_present = entry.payload.len() == header.payload_len as usize;
    let payload = is_present.then(|| entry.payload.clone());
    if let Some(payload) = &payload {
        assert_eq!(crc32fast::hash(payload), header.payload_crc, "{group}: entry {}", header.index);
    }
    let before = settled.get(&(header.index - 1)).map(|before| before.header.end_offset());
    assert!(
        before.is_none_or(|end| end == header.base_offset) || durability == Durability::Memory,
        "{group}: entry {} begins at {}, the one before ends at {before:?}",
        header.index,
        header.base_offset
    );
    let Some(known) = settled.get_mut(&header.index) else {
        settled.insert(header.index, Settled { header, payload });
        return;
    };
    let is_same = known.header.chain == header.chain && known.header.term == header.term;
    if !is_same && durability == Durability::Memory {
        // A power cut of a majority took it; what others had built on it is gone with it.
        settled.split_off(&header.index);
        settled.insert(header.index, Settled { header, payload });
        return;
    }
    assert!(
        is_same,
        "node {} has another entry {} of {group} committed: {header:?}, known as {:?}",
        node.id, header.index, known.header
    );
    known.payload = known.payload.take().or(payload);
}

/// Record batches among the entries, with their payloads.
pub fn batches<'a>(
    settled: impl Iterator<Item = &'a Settled>,
) -> impl Iterator<Item = (&'a EntryHeader, Option<&'a bytes::Bytes>)> {
    let batches = settled.filter(|settled| settled.header.kind == Kind::Records);
    batches.map(|settled| (&settled.header, settled.payload.as_ref()))
}
