//! Repair: getting back from others what is damaged in a log.
//!
//! A replica with damage in what it has applied runs as ever and asks the others, one after the
//! other, for the entries it lacks. One that cannot follow its own history does not run until it
//! has them: to the others it is as if it were down, except that it gives what it has itself. So
//! replicas that are damaged in different places bring each other back, without a leader.
//!
//! Whoever is asked gives what it has at these indices. The chain of the log proves that it is what
//! was lost: it has to lead from the entry before to the one after. What does not fit is dropped,
//! and the next one is asked.
//!
//! A replica that does not run may have lost entries that were never committed, and nobody else
//! has them any more. The ask names an entry behind the damage, its anchor, and the last one. A
//! leader of a later term that has another entry at the anchor, or none, says so: what it does not
//! have was not committed. So does whoever begins after the damage, for what retention takes was
//! settled, and has all the rest. The replica then cuts its log at the damage, keeps the promise of
//! all it had, and follows the leader. One that runs passes over what nobody keeps who answers,
//! asks for what it lacks after that, and then for the former again.

use super::super::effects::{ColdRead, Cure, Damaged, Mend, Supply};
use super::super::envelope::{Envelope, Lane, MessageKind};
use super::super::error::Dropped;
use super::super::machine::{Machine, Now};
use super::super::outputs::Outputs;
use super::Shard;
use crate::storage::{Entry, Wound};
use crate::types::{LogId, ReplicaId};

/// Asks in vain, of each other replica, after which damage is reported as beyond repair.
const ROUNDS_MAX: u64 = 20;

/// What is known of a log's damage, and what others gave so far.
#[derive(Debug, Default)]
pub(super) struct Mender {
    /// The replica, while it does not run.
    pub(super) damaged: Option<Damaged>,
    wound: Option<Wound>,
    /// Entries that are missing, in order; the first ones of all.
    given: Vec<Entry>,
    /// Counts asks; says whose turn it is.
    asks: u64,
    /// Asks since anybody gave anything.
    asks_in_vain: u64,
    /// Asks since this wound had its turn.
    asks_of_turn: u64,
    next_ask_ms: u64,
}

impl Mender {
    /// The first index for which nobody has given an entry.
    fn next_missing(&self) -> Option<u64> {
        let mut have = self.given.len() as u64;
        for (first, last) in &self.wound.as_ref()?.missing {
            assert!(first <= last, "a range of missing entries goes from {first} to {last}");
            let count = last - first + 1;
            if have < count {
                return Some(first + have);
            }
            have -= count;
        }
        None
    }

    /// Takes those entries that come next. True if there were any.
    fn take(&mut self, entries: Vec<Entry>) -> bool {
        let before = self.given.len();
        for entry in entries {
            assert!(
                self.wound.is_some(),
                "entry {} is for a log that is whole",
                entry.header.index
            );
            if self.next_missing() == Some(entry.header.index) {
                self.given.push(entry);
            }
        }
        self.given.len() > before
    }
}

impl<M: Machine> Shard<M> {
    /// The replica of a group that does not run before what it lacks is mended.
    pub fn waiting_for_repair(&self, group: LogId) -> Option<ReplicaId> {
        Some(self.menders.get(&group)?.damaged.as_ref()?.replica)
    }

    /// How many logs are damaged, and of these how many replicas do not run because of it.
    pub fn damage(&self) -> (u64, u64) {
        let waiting = self.menders.values().filter(|mender| mender.damaged.is_some()).count();
        let damaged = self.menders.len();
        assert!(waiting <= damaged, "{waiting} replicas wait for the repair of {damaged} logs");
        (damaged as u64, waiting as u64)
    }

    pub(super) fn note_damaged(&mut self, damaged: Damaged) {
        self.node = Some(damaged.replica.node());
        let group = damaged.group;
        assert!(!self.by_id.contains_key(&group), "{group}: a damaged replica does not run");
        self.menders.entry(group).or_default().damaged = Some(damaged);
    }

    pub(super) fn note_wound(&mut self, now: Now, group: LogId, wound: Option<Wound>) {
        let is_here = self.by_id.contains_key(&group) || self.menders.contains_key(&group);
        if !is_here {
            return;
        }
        let mender = self.menders.entry(group).or_default();
        // The same again: what was given did not fit, so the next one is asked in a while.
        let is_same = mender.wound == wound && !mender.given.is_empty();
        mender.next_ask_ms = now.monotonic_ms + if is_same { self.config.tick_ms } else { 0 };
        mender.given.clear();
        mender.asks_of_turn = 0;
        mender.wound = wound;
        if mender.wound.is_none() && mender.damaged.is_none() {
            self.menders.remove(&group);
        }
    }

    /// Asks others for what is missing, where it is time.
    pub(super) fn ask_for_repairs(&mut self, now: Now, out: &mut Outputs<M>) {
        let every_ms = 2 * self.config.heartbeat_ticks as u64 * self.config.tick_ms;
        for group in self.menders.keys().copied().collect::<Vec<_>>() {
            let Some((own, others)) = self.replicas_of(group) else { continue };
            let mender = self.menders.get_mut(&group).expect("the mender was just there");
            let is_due = mender.wound.is_some() && mender.next_ask_ms <= now.monotonic_ms;
            if !is_due || mender.next_missing().is_none() {
                continue;
            }
            mender.next_ask_ms = now.monotonic_ms + every_ms;
            let rounds = ROUNDS_MAX * others.len().max(1) as u64;
            mender.asks_in_vain += 1;
            mender.asks_of_turn += 1;
            if mender.asks_in_vain.is_multiple_of(rounds) {
                out.effects.unrepaired.push(group);
            }
            if mender.asks_in_vain > others.len() as u64 {
                // Part of it may be of a history that was given up: begin again.
                mender.given.clear();
            }
            mender.asks += 1;
            if let Some(to) = others.get((mender.asks % others.len().max(1) as u64) as usize) {
                ask(mender, group, (own, *to), out);
            }
        }
    }

    /// This replica and the others of a group, also of one that does not run.
    fn replicas_of(&self, group: LogId) -> Option<(ReplicaId, Vec<ReplicaId>)> {
        let (own, all): (_, Vec<_>) = match self.slot(group) {
            Some(slot) => (slot.group.replica(), slot.group.membership().all().collect()),
            None => {
                let damaged = self.menders.get(&group)?.damaged.as_ref()?;
                (damaged.replica, damaged.peers.clone())
            }
        };
        Some((own, all.into_iter().filter(|replica| *replica != own).collect()))
    }

    pub(super) fn receive_repair(&mut self, now: Now, envelope: Envelope, out: &mut Outputs<M>) {
        let received = match self.replicas_of(envelope.group) {
            Some((own, _)) if own != envelope.to => Err(Dropped::WrongReplica),
            Some(_) if envelope.kind == MessageKind::RepairAsk => {
                self.answer_repair(&envelope, out);
                Ok(())
            }
            Some(_) => {
                self.take_repair(now, envelope, out);
                Ok(())
            }
            None => Err(Dropped::UnknownGroup),
        };
        if let Err(reason) = received {
            *out.dropped.entry(reason).or_default() += 1;
        }
    }

    /// Gives entries to a replica that lacks them, or says that there is nothing to wait for.
    fn answer_repair(&self, envelope: &Envelope, out: &mut Outputs<M>) {
        let (group, from, to) = (envelope.group, envelope.to, envelope.from);
        let (first_index, anchor) = (envelope.index, (envelope.commit, envelope.log_term));
        let last = (envelope.reject_hint, envelope.term);
        let may_be_cut =
            self.slot(group).is_some_and(|slot| slot.group.may_be_cut(first_index, anchor, last));
        match may_be_cut {
            // It may be of another history: the chain decides where it is to go.
            false if first_index <= anchor.0 => {
                let (last_index, bytes_max) = (anchor.0, self.config.append_bytes_max);
                let read = ColdRead { group, first_index, last_index, bytes_max };
                out.effects.supplies.push(Supply { read, from, to });
            }
            true if !self.may_need(group, first_index) => {
                let refusal = Envelope::new(MessageKind::RepairAnswer, group, from, to);
                let (index, (commit, log_term), reject_hint) = (first_index, anchor, last.0);
                let is_reject = true;
                let refusal =
                    Envelope { index, commit, log_term, reject_hint, is_reject, ..refusal };
                out.effects.envelopes.push((Lane::Control, refusal));
            }
            _ => {}
        }
    }

    /// True if this log is damaged where the other one may be whole: then nothing may be cut there.
    fn may_need(&self, group: LogId, first_index: u64) -> bool {
        let wound = self.menders.get(&group).and_then(|mender| mender.wound.as_ref());
        wound.is_some_and(|wound| wound.anchor.0 >= first_index)
    }

    fn take_repair(&mut self, now: Now, envelope: Envelope, out: &mut Outputs<M>) {
        let Envelope { group, from, to, .. } = envelope;
        let others = self.replicas_of(group).map_or(0, |(_, others)| others.len() as u64);
        let committed = self.slot(group).map_or(0, |slot| slot.group.committed());
        let Some(mender) = self.menders.get_mut(&group) else { return };
        if mender.wound.is_none() {
            return;
        }
        if envelope.is_reject {
            let anchor = mender.wound.as_ref().map(|wound| wound.anchor);
            let damaged = mender.damaged.clone();
            let last_index = damaged.as_ref().map_or(0, |damaged| damaged.last.0);
            // What was said to a replica that ran is not enough to cut it.
            let is_asked = mender.next_missing() == Some(envelope.index)
                && anchor == Some((envelope.commit, envelope.log_term))
                && envelope.reject_hint == last_index;
            // A replica that runs is refused what is older than another log, or what a leader will
            // replace, which is not committed here. All others had their turn.
            // DURABILITY: nothing of the log goes, and it is asked for again.
            let is_old = mender.asks_of_turn > others && envelope.commit <= committed;
            let cure = match &damaged {
                Some(_) => Some(Cure::Cut),
                None => is_old.then_some(Cure::PassOver(envelope.commit)),
            };
            if is_asked && let Some(cure) = cure {
                mender.wound = None;
                out.effects.mends.push(Mend { group, cure, damaged });
            }
            return;
        }
        if !mender.take(envelope.entries) {
            return;
        }
        mender.asks_in_vain = 0;
        assert!(!mender.given.is_empty(), "{group}: something was taken");
        if mender.next_missing().is_some() {
            let every_ms = 2 * self.config.heartbeat_ticks as u64 * self.config.tick_ms;
            mender.next_ask_ms = now.monotonic_ms + every_ms;
            return ask(mender, group, (to, from), out);
        }
        // The disk says what is missing after that, so that it is not asked for until then.
        mender.next_ask_ms = u64::MAX;
        let cure = Cure::Entries(mender.given.clone());
        out.effects.mends.push(Mend { group, cure, damaged: mender.damaged.clone() });
    }
}

/// Asks for the entries that are missing from the first one on.
fn ask<M: Machine>(
    mender: &Mender,
    group: LogId,
    between: (ReplicaId, ReplicaId),
    out: &mut Outputs<M>,
) {
    let (Some(index), Some(wound)) = (mender.next_missing(), mender.wound.as_ref()) else {
        return;
    };
    // A replica that runs is never cut, and may not have its term on disk yet: it says nothing.
    let last = mender.damaged.as_ref().map_or((0, 1), |damaged| damaged.last);
    let envelope = Envelope::repair_ask(group, between, index, wound.anchor, last);
    out.effects.envelopes.push((Lane::Control, envelope));
}

/// Sends what was read for a replica that lacks it.
pub(super) fn supplied<M: Machine>(supply: &Supply, entries: Vec<Entry>, out: &mut Outputs<M>) {
    let between = (supply.from, supply.to);
    let answer = Envelope::repair_answer(supply.read.group, between, entries);
    out.effects.envelopes.extend(answer.map(|envelope| (envelope.lane(true), envelope)));
}
