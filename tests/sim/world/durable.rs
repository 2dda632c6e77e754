//! Durability: what is acknowledged is on the disks of a majority, and the simulation knows them.

use quipu::partition::Response;
use quipu::raft::{Durability, Membership, Ticket};
use quipu::storage::{Access, Error, Log};
use quipu::types::{LogId, NodeId, ReplicaId};

use super::World;
use crate::node::survives;

/// One acknowledgment in so many is checked against what would be left after a power cut.
const TRUTH_EVERY: u64 = 50;

/// An entry that was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Promise {
    group: LogId,
    index: u64,
    chain: u32,
}

impl World {
    /// Asserts that a majority has what is acknowledged on disk.
    pub(super) fn check_durable(&mut self, id: NodeId, ticket: Ticket, response: &Response) {
        let Response::Appended { base_offset, durability, .. } = *response else { return };
        let Some((group, is_retry)) = self.clients.take_quorum_write(ticket) else { return };
        if durability == Durability::Memory {
            return;
        }
        let live = self.nodes[&id].live.as_ref().expect("who answers runs");
        let (Some(found), Some(log)) = (live.shard.group(group), live.disk.log(group)) else {
            return;
        };
        let settled = self.oracle.at_offset(group, base_offset);
        if settled.is_none() && self.plan.damages() {
            // It was damaged before anybody could look at it: others will show it.
            return self.tally.add("acknowledgment-hidden-by-damage", 1);
        }
        let settled = settled.unwrap_or_else(|| {
            panic!("node {id}: offset {base_offset} of {group} is acknowledged, not committed")
        });
        let header = settled.header;
        let promise = Promise { group, index: header.index, chain: header.chain };
        let is_later_term = header.term < found.term();
        // A retry may find its batch where retention has taken it: it was checked in its time.
        if log.reader().first_index() > header.index {
            return;
        }
        let memberships = self.memberships_at(group, found.membership());
        self.tally.add("acknowledgment-checked", 1);
        self.acks += 1;
        self.expect_majority(promise, &memberships, |world, voter| world.has(promise, voter));
        if self.acks.is_multiple_of(TRUTH_EVERY) {
            self.tally.add("acknowledgment-checked-on-disk", 1);
            self.expect_majority(promise, &memberships, |world, voter| {
                world.would_have(promise, voter)
            });
        }
        let is_told = is_retry && is_later_term;
        self.tally.add("retry-answered-after-leader-change", u64::from(is_told));
    }

    /// Memberships whose majority decided, maybe: the leader's, and the one before, because what
    /// was decided may be the very change to the leader's.
    fn memberships_at(&self, group: LogId, now: &Membership) -> Vec<Membership> {
        let earlier = self.memberships.range((group, 0)..(group, now.index));
        let before = earlier.last().map(|(_, membership)| membership.clone());
        before.into_iter().chain([now.clone()]).collect()
    }

    fn expect_majority(
        &self,
        promise: Promise,
        memberships: &[Membership],
        has: impl Fn(&Self, ReplicaId) -> bool,
    ) {
        let is_held = memberships.iter().any(|m| m.is_quorum(|voter| has(self, voter)));
        let holders = || {
            let all = memberships.iter().flat_map(Membership::all);
            all.filter(|replica| has(self, *replica)).collect::<Vec<_>>()
        };
        assert!(
            is_held,
            "{promise:?} is acknowledged, on disk it is only at {:?} of {memberships:?}",
            holders()
        );
    }

    /// True if a replica has an entry on disk, as far as it knows.
    fn has(&self, promise: Promise, replica: ReplicaId) -> bool {
        let Promise { group, index, chain } = promise;
        let node = &self.nodes[&replica.node()];
        if node.replicas.get(&group) != Some(&replica) {
            // It is gone, and counted when it was asked.
            return self.parted.get(&(group, replica)).is_some_and(|synced| *synced >= index);
        }
        match node.live.as_ref().and_then(|live| live.disk.log(group)) {
            Some(log) => {
                let live = node.live.as_ref().expect("its log was just found");
                let is_synced = log.synced_index() >= index;
                let promised = live.promised(group);
                (is_synced || promised > log.tip().index) && holds(log, promised, index, chain)
            }
            None => node.promised.get(&group).is_some_and(|synced| *synced >= index),
        }
    }

    /// True if a replica would have an entry after a power cut that keeps nothing it need not.
    fn would_have(&self, promise: Promise, replica: ReplicaId) -> bool {
        let Promise { group, index, chain } = promise;
        let node = &self.nodes[&replica.node()];
        if node.replicas.get(&group) != Some(&replica) {
            return self.has(promise, replica);
        }
        survives(&node.fs, group, |log, promised| holds(log, promised, index, chain))
    }
}

/// True if a log holds an entry, or has dropped it because it was settled; also if it has lost it
/// to damage and stands for it. Damage is survivable, so it comes back.
fn holds(log: &Log, promised: u64, index: u64, chain: u32) -> bool {
    let reader = log.reader();
    let is_dropped = reader.first_index() > index;
    let is_same = || match reader.header(index, Access::MayBlock) {
        Ok(header) => header.chain == chain,
        Err(error) => matches!(error, Error::Corrupt(_)),
    };
    let is_lost = log.tip().index < index && index <= promised;
    is_lost || (log.tip().index >= index && (is_dropped || is_same()))
}
