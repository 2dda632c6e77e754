//! The partitions that a member has, by their place in this process and in the stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::event::TopicPartition;
use crate::proto::client::{Assignment, ResumePosition};

/// The number of a partition in this process. It outlives streams, and is never used twice.
pub(super) type Slot = u64;

/// How far a partition is from leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Held,
    /// It is to be let go of by then. The application has not finished with it.
    Revoked(Instant),
    /// The application has finished with it. Commits may wait for their answers.
    Releasing(Instant),
}

/// A partition that the member has.
///
/// * `done <= position <= next_offset`.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) topic: Arc<str>,
    pub(super) topic_id: Arc<str>,
    pub(super) partition: u32,
    pub(super) generation: u64,
    /// Its number in the open stream, once that has confirmed it.
    pub(super) assignment: Option<u64>,
    /// The offset after the last record that has arrived.
    pub(super) next_offset: u64,
    /// The offset after the last record that was handed out.
    pub(super) position: u64,
    /// The offset after the last record that the application has finished.
    pub(super) done: u64,
    pub(super) done_leader_epoch: u64,
    /// The highest offset whose commit was asked for.
    pub(super) wanted: u64,
    pub(super) high_watermark: u64,
    pub(super) log_start_offset: u64,
    pub(super) phase: Phase,
    pub(super) is_paused: bool,
    /// Whether the open stream was told that it is paused.
    pub(super) is_told_paused: bool,
}

impl Held {
    pub(super) fn name(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.partition }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    held: BTreeMap<Slot, Held>,
    /// By their numbers in the open stream.
    slots: HashMap<u64, Slot>,
    last_slot: Slot,
}

impl Partitions {
    pub(super) fn get(&self, slot: Slot) -> Option<&Held> {
        self.held.get(&slot)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Held> {
        self.held.get_mut(&slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Held)> {
        self.held.iter().map(|(slot, held)| (*slot, held))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Held)> {
        self.held.iter_mut().map(|(slot, held)| (*slot, held))
    }

    /// The partition of that number in the open stream.
    pub(super) fn slot(&self, assignment: u64) -> Option<Slot> {
        self.slots.get(&assignment).copied()
    }

    pub(super) fn named(&self, topic: &str, partition: u32) -> Option<Slot> {
        let is_it = |held: &Held| held.partition == partition && *held.topic == *topic;
        self.iter().find(|(_, held)| is_it(held)).map(|(slot, _)| slot)
    }

    /// The partition that is assigned, if the member has it already.
    pub(super) fn assigned(&self, assigned: &Assignment) -> Option<(Slot, &Held)> {
        let is_it = |held: &Held| {
            held.partition == assigned.partition && *held.topic_id == *assigned.topic_id
        };
        self.iter().find(|(_, held)| is_it(held))
    }

    pub(super) fn insert(&mut self, assigned: &Assignment) -> Slot {
        self.last_slot += 1;
        let at = assigned.next_offset;
        let held = Held {
            topic: assigned.topic.as_str().into(),
            topic_id: assigned.topic_id.as_str().into(),
            partition: assigned.partition,
            generation: assigned.generation,
            assignment: None,
            next_offset: at,
            position: at,
            done: at,
            done_leader_epoch: 0,
            wanted: at,
            high_watermark: assigned.high_watermark,
            log_start_offset: assigned.log_start_offset,
            phase: Phase::Held,
            is_paused: false,
            is_told_paused: false,
        };
        self.held.insert(self.last_slot, held);
        self.confirm(self.last_slot, assigned);
        self.last_slot
    }

    /// Notes the number that a partition has in the open stream.
    pub(super) fn confirm(&mut self, slot: Slot, assigned: &Assignment) {
        let held = self.held.get_mut(&slot).expect("a partition is there when it is confirmed");
        held.assignment = Some(assigned.assignment);
        held.generation = assigned.generation;
        held.high_watermark = assigned.high_watermark;
        held.log_start_offset = assigned.log_start_offset;
        held.is_told_paused = false;
        self.slots.insert(assigned.assignment, slot);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Held> {
        let held = self.held.remove(&slot)?;
        held.assignment.map(|assignment| self.slots.remove(&assignment));
        Some(held)
    }

    /// Notes that the stream is gone, and its numbers with it.
    pub(super) fn on_cut(&mut self) {
        self.slots.clear();
        self.held.values_mut().for_each(|held| held.assignment = None);
    }

    /// Where the member is, to go on there.
    pub(super) fn positions(&self) -> Vec<ResumePosition> {
        let position = |held: &Held| ResumePosition {
            topic_id: held.topic_id.to_string(),
            partition: held.partition,
            generation: held.generation,
            next_offset: held.next_offset,
        };
        self.held.values().map(position).collect()
    }
}
