//! A shard: many groups with their machines, stepped together.
//!
//! A step takes all that has happened and says all that is to be done, for every group touched. It
//! is pure: time comes in, nothing is read or written, and the same inputs give the same outputs.
//! Batching falls out of load, because whatever came while the last step's effects were carried out
//! is one step's input.
//!
//! Groups tick in turn, in slices of a tick, so that ten thousand idle groups are never looked at
//! in one step.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use super::config::Config;
use super::envelope::{Envelope, Lane, MessageKind};
use super::error::{Dropped, NotProposed};
use super::group::{Boot, Durability, Group, Role, mix};
use super::hard_state::Checkpoint;
use super::input::Input;
use super::log_view::Base;
use super::machine::{Machine, Now, Ticket};
use super::membership::Membership;
use super::outputs::{Outputs, Published};
use super::peers::Peers;
use super::planted::{Bug, planted};
use crate::types::{LogId, NodeId};

mod repair;

use self::repair::{Mender, supplied};

/// A group with its machine.
#[derive(Debug)]
struct Slot<M> {
    group: Group,
    machine: M,
    published: Option<Published>,
    is_touched: bool,
    /// Ticks that have passed in its sleep.
    slept_ticks: u64,
}

/// Many groups, stepped together.
#[derive(Debug)]
pub struct Shard<M: Machine> {
    config: Config,
    seed: u64,
    slots: Vec<Option<Slot<M>>>,
    by_id: FxHashMap<LogId, usize>,
    free: Vec<usize>,
    touched: Vec<usize>,
    /// Number of the next pass handed out.
    tokens: u64,
    /// Whose token it is, for those not reported yet.
    waiting: FxHashMap<u64, LogId>,
    next_slice_ms: u64,
    slice: u64,
    /// The node, known from the first group on.
    node: Option<NodeId>,
    /// Tells this run of the process from others, so that nodes notice when one starts anew.
    life: u64,
    peers: Peers,
    /// Of groups whose logs are damaged.
    menders: BTreeMap<LogId, Mender>,
}

impl<M: Machine> Shard<M> {
    /// A shard without groups. `seed` decides the election timeouts of its groups; nodes have
    /// different ones.
    pub fn new(config: Config, seed: u64, now: Now) -> Self {
        let life = mix(seed ^ now.wall_ms.cast_unsigned());
        Self::one_of_many(config, seed, now, life, 1)
    }

    /// The same for one of several shards of a node. They have the same `life`, a number that no
    /// other run of the process has, and number what they hand out from `first_token` on, so that
    /// they can share the threads that sync.
    pub fn one_of_many(config: Config, seed: u64, now: Now, life: u64, first_token: u64) -> Self {
        assert!(first_token > 0, "token 0 stands for work that nobody waits for");
        Self {
            config,
            seed,
            slots: Vec::new(),
            by_id: FxHashMap::default(),
            free: Vec::new(),
            touched: Vec::new(),
            tokens: first_token,
            waiting: FxHashMap::default(),
            next_slice_ms: now.monotonic_ms,
            slice: 0,
            node: None,
            life: life | 1,
            peers: Peers::default(),
            menders: BTreeMap::new(),
        }
    }

    /// When the next step is due, if nothing happens before.
    pub fn next_tick_ms(&self) -> u64 {
        self.next_slice_ms
    }

    /// A group, if it is here.
    pub fn group(&self, id: LogId) -> Option<&Group> {
        self.slot(id).map(|slot| &slot.group)
    }

    /// A group's machine, if it is here.
    pub fn machine(&self, id: LogId) -> Option<&M> {
        self.slot(id).map(|slot| &slot.machine)
    }

    /// Ids of all groups, sorted.
    pub fn groups(&self) -> impl Iterator<Item = LogId> {
        self.by_id.keys().copied().collect::<BTreeSet<_>>().into_iter()
    }

    fn slot(&self, id: LogId) -> Option<&Slot<M>> {
        self.by_id.get(&id).and_then(|at| self.slots[*at].as_ref())
    }

    /// The checkpoint for a segment of `group` that begins after `index`.
    ///
    /// # Panics
    /// If the group is not here: its disk has work of nobody.
    pub fn checkpoint_at(&self, group: LogId, index: u64) -> Checkpoint {
        let slot = self.slot(group).expect("a group with work for the disk is here");
        let mut membership = slot.group.membership().clone();
        if planted(Bug::MembershipNotInCheckpoint) {
            membership = Membership::default();
        }
        Checkpoint { membership, state: slot.machine.checkpoint_at(index, &slot.group) }
    }

    /// Takes everything that has happened by `now` and says what is to be done.
    pub fn step(&mut self, now: Now, inputs: &mut Vec<Input<M>>, out: &mut Outputs<M>) {
        for input in inputs.drain(..) {
            self.take(now, input, out);
        }
        self.tick(now, out);
        self.ask_for_repairs(now, out);
        let mut touched = std::mem::take(&mut self.touched);
        for at in touched.drain(..) {
            self.advance(at, out);
        }
        self.touched = touched;
    }

    fn take(&mut self, now: Now, input: Input<M>, out: &mut Outputs<M>) {
        match input {
            Input::Open(boot, machine) => self.open(*boot, machine),
            Input::Close(group) => self.close(group, out),
            Input::Damaged(damaged) => self.note_damaged(damaged),
            Input::Wound { group, wound } => self.note_wound(now, group, wound),
            Input::Supplied(supply, entries) => supplied(&supply, entries, out),
            Input::Envelopes(envelopes) => {
                envelopes.into_iter().for_each(|envelope| self.receive(now, envelope, out));
            }
            Input::Ask { group, ticket, ask } => match self.touch(group) {
                Some(Slot { group, machine, .. }) => {
                    // Whoever is asked in vain finds out whether the leader it names still is.
                    group.wake();
                    machine.ask(ticket, ask, group, now, &mut out.answers);
                }
                None => out.answers.push((ticket, M::unknown_group())),
            },
            Input::Stored(token) => {
                let group = self.waiting.remove(&token);
                if let Some(slot) = group.and_then(|group| self.touch(group)) {
                    slot.group.stored(token);
                }
            }
            Input::Fetched { group, first_index, entries } => {
                if let Some(slot) = self.touch(group) {
                    slot.group.fetched(first_index, entries.as_deref());
                }
            }
            Input::Base { group, base } => {
                if let Some(slot) = self.touch(group) {
                    slot.group.base_fetched(base);
                }
            }
            Input::Lost { group, to } => {
                if let Some(slot) = self.touch(group) {
                    slot.group.lost(to);
                }
            }
            Input::StartAdvanced { group, start } => {
                if let Some(slot) = self.touch(group) {
                    slot.group.start_advanced(start);
                }
            }
            Input::Transfer { group, ticket, to } => {
                let decide = |slot: &mut Slot<M>| {
                    slot.group.wake();
                    slot.group.transfer_leader(to).map(|()| 0)
                };
                self.decide(group, ticket, out, decide);
            }
            Input::Change { group, ticket, operations } => {
                let decide = |slot: &mut Slot<M>| {
                    let entry = slot.group.propose_change(operations, now.wall_ms);
                    entry.map(|entry| entry.header.index)
                };
                self.decide(group, ticket, out, decide);
            }
        }
    }

    fn decide(
        &mut self,
        group: LogId,
        ticket: Ticket,
        out: &mut Outputs<M>,
        decide: impl FnOnce(&mut Slot<M>) -> Result<u64, NotProposed>,
    ) {
        let decision = self.touch(group).map_or(Err(NotProposed::NotLeader), decide);
        out.decisions.push((ticket, decision));
    }

    fn open(&mut self, boot: Boot, machine: M) {
        let id = boot.id;
        self.node = Some(boot.replica.node());
        if let Some(mender) = self.menders.get_mut(&id) {
            mender.damaged = None;
        }
        assert_eq!(
            machine.applied_index(),
            boot.applied.index,
            "{id}: the machine is where the group starts"
        );
        let group = Group::new(&self.config, boot, mix(self.seed ^ mix(id.0.as_u64_pair().1)));
        let slot = Slot { group, machine, published: None, is_touched: false, slept_ticks: 0 };
        let at = self.free.pop().unwrap_or(self.slots.len());
        if at == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[at] = Some(slot);
        let other = self.by_id.insert(id, at);
        assert!(other.is_none(), "{id}: a group is opened once");
        self.touch(id);
    }

    fn close(&mut self, group: LogId, out: &mut Outputs<M>) {
        self.menders.remove(&group);
        if let Some(at) = self.by_id.remove(&group) {
            let mut slot = self.slots[at].take().expect("an id leads to a group");
            slot.machine.abandon(&mut out.answers);
            self.free.push(at);
            self.touched.retain(|touched| *touched != at);
            self.waiting.retain(|_, waiting| *waiting != group);
        }
    }

    fn receive(&mut self, now: Now, envelope: Envelope, out: &mut Outputs<M>) {
        self.peers.heard(envelope.from.node(), now.monotonic_ms);
        if envelope.kind == MessageKind::Alive {
            self.peers.greeted(envelope.from.node(), envelope.index);
            return;
        }
        if matches!(envelope.kind, MessageKind::RepairAsk | MessageKind::RepairAnswer) {
            return self.receive_repair(now, envelope, out);
        }
        let received = match self.touch(envelope.group) {
            Some(slot) => slot.group.receive(envelope),
            None => Err(Dropped::UnknownGroup),
        };
        if let Err(reason) = received {
            *out.dropped.entry(reason).or_default() += 1;
        }
    }

    /// Finds a group and notes that something happens to it.
    fn touch(&mut self, id: LogId) -> Option<&mut Slot<M>> {
        let at = *self.by_id.get(&id)?;
        let slot = self.slots[at].as_mut()?;
        if slot.group.is_quiescent() {
            slot.group.has_slept(std::mem::take(&mut slot.slept_ticks));
        }
        if !slot.is_touched {
            slot.is_touched = true;
            self.touched.push(at);
        }
        Some(slot)
    }

    /// Lets the slices pass that are due. What was missed while the process stood still is not made
    /// up for: the groups would take it for a long silence of the others.
    fn tick(&mut self, now: Now, out: &mut Outputs<M>) {
        self.watch_peers(now, out);
        let slices = self.config.tick_slices;
        let slice_ms = (self.config.tick_ms / slices).max(1);
        let mut budget = slices;
        while self.next_slice_ms <= now.monotonic_ms && budget > 0 {
            budget -= 1;
            self.next_slice_ms += slice_ms;
            self.slice = (self.slice + 1) % slices;
            for at in (self.slice as usize..self.slots.len()).step_by(slices as usize) {
                let Some(slot) = self.slots[at].as_mut() else { continue };
                if slot.group.is_quiescent() {
                    slot.slept_ticks += 1;
                    continue;
                }
                slot.slept_ticks = 0;
                slot.group.tick(now.wall_ms);
                if !slot.is_touched {
                    slot.is_touched = true;
                    self.touched.push(at);
                }
            }
        }
        self.next_slice_ms = self.next_slice_ms.max(now.monotonic_ms + 1);
    }

    /// Says to other nodes that this one is alive, and wakes the groups of those that are not.
    fn watch_peers(&mut self, now: Now, out: &mut Outputs<M>) {
        let Some(node) = self.node else { return };
        let heartbeat_ms = self.config.heartbeat_ticks as u64 * self.config.tick_ms;
        let timeout_ms = self.config.election_ticks as u64 * self.config.tick_ms;
        let greeted = self.peers.due_greetings(now.monotonic_ms, heartbeat_ms).into_iter();
        // Two replicas of a group can be on one node while one of them is being replaced.
        for to in greeted.filter(|to| *to != node) {
            out.effects.envelopes.push((Lane::Control, Envelope::alive(node, to, self.life)));
        }
        for dead in self.peers.newly_dead(now.monotonic_ms, timeout_ms) {
            for at in 0..self.slots.len() {
                if let Some(slot) = self.slots[at].as_mut() {
                    slot.group.node_died(dead);
                }
            }
        }
    }

    fn advance(&mut self, at: usize, out: &mut Outputs<M>) {
        let Some(slot) = self.slots[at].as_mut() else { return };
        slot.is_touched = false;
        let first = out.effects.persists.len();
        let first_envelope = out.effects.envelopes.len();
        slot.group.advance(&mut self.tokens, &mut out.effects);
        for (_, base) in std::mem::take(&mut out.effects.restored) {
            slot.machine.abandon(&mut out.answers);
            match restore(&base) {
                Ok(machine) => slot.machine = machine,
                Err(reason) => {
                    // The log that is there is worth more than a snapshot that nobody can use.
                    out.effects.persists.truncate(first);
                    slot.group.stop(super::Fault::Machine(reason), &mut out.effects);
                }
            }
        }
        if slot.group.fault().is_none()
            && let Err(fault) = slot.machine.advance(&mut slot.group, &mut out.answers)
        {
            slot.group.stop(fault, &mut out.effects);
        }
        if slot.group.fault().is_some() {
            // Nothing that is waited for will come.
            slot.machine.abandon(&mut out.answers);
        }
        if slot.group.doze() {
            slot.group.advance(&mut self.tokens, &mut out.effects);
        }
        for (_, envelope) in &out.effects.envelopes[first_envelope..] {
            self.peers.said_to(envelope.to.node());
        }
        for persist in &out.effects.persists[first..] {
            self.waiting.insert(persist.token, persist.group);
        }
        slot.group.trim(slot.machine.applied_index());
        Self::publish(slot, out);
    }

    fn publish(slot: &mut Slot<M>, out: &mut Outputs<M>) {
        let group = &slot.group;
        let (index_before, end_before) =
            slot.published.map_or((0, 0), |before| (before.committed_index, before.high_watermark));
        let is_leader = group.role() == Role::Leader || planted(Bug::FollowerReadsBeforeWritten);
        let mut readable = if is_leader { group.committed() } else { group.applicable() };
        if planted(Bug::EarlyHighWatermark) {
            readable = group.persisted();
        }
        let committed_index = readable.max(index_before);
        let high_watermark = group.tip_at(committed_index).map_or(end_before, |tip| tip.end_offset);
        // What was acknowledged from memory can be gone with the memory of a majority.
        let may_go_back = group.durability() == Durability::Memory;
        assert!(
            high_watermark >= end_before || may_go_back,
            "{}: the high watermark goes back from {end_before} to {high_watermark}",
            group.id()
        );
        let published = Published {
            group: group.id(),
            role: group.role(),
            is_writable: group.is_writable(),
            term: group.term(),
            leader: group.leader(),
            committed_index,
            high_watermark,
            log_start: slot.machine.log_start(),
        };
        if slot.published != Some(published) {
            slot.published = Some(published);
            out.published.push(published);
        }
    }
}

/// The machine at a base, if the base holds one.
fn restore<M: Machine>(base: &Base) -> Result<M, String> {
    let machine = M::restore(&base.state)?;
    let (index, found) = (base.tip.index, machine.applied_index());
    let wrong = || format!("a snapshot at entry {index} holds the state after entry {found}");
    (index == found).then_some(machine).ok_or_else(wrong)
}
