//! What a member makes of what it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffer::Chunk;
use super::event::Assigned;
use super::member::{Member, Notice};
use super::partitions::{Held, Phase, Slot};
use super::wire::{Data, Told};
use crate::client::{Event, Failure, Gap, LostReason};
use crate::proto::client::{
    Assignment, ConsumeAssigned, ConsumeGap, ConsumeJoined, ConsumePositions, ConsumeRevoke,
};

/// Where the records of a message belong.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) slot: Slot,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    /// Records below it were there already.
    pub(super) from: u64,
}

impl Member {
    /// Takes in a message, but for records: see [`Member::source`].
    ///
    /// # Errors
    /// The stream is of no use: join again.
    pub(super) fn on_told(&mut self, now: Instant, told: Told) -> Result<(), Failure> {
        match told {
            Told::Joined(joined) => self.on_joined(now, &joined),
            Told::Assigned(assigned) => self.on_assigned(assigned)?,
            Told::Revoke(revoke) => self.on_revoke(now, &revoke),
            Told::Lost(lost) => {
                let slots = self.slots(&lost.assignments);
                self.lose(&slots, lost.reason());
            }
            Told::Data(data) => self.owe(data.cost_bytes),
            Told::Gap(gap) => self.on_gap(gap),
            Told::Committed(committed) => {
                let unheard = self.commits.on_answer(now, committed);
                self.on_unheard(unheard);
            }
            Told::Positions(positions) => self.on_positions(positions),
            Told::GoAway(go_away) => {
                let error = go_away.error.map(Failure::from);
                return Err(error.unwrap_or_else(|| Failure::cut("the server is going away")));
            }
        }
        Ok(())
    }

    /// Notes that the server has said something.
    pub(super) fn on_heard(&mut self, now: Instant) {
        if let Some(link) = &mut self.link {
            link.on_heard(now);
        }
    }

    fn on_joined(&mut self, now: Instant, joined: &ConsumeJoined) {
        self.id.clone_from(&joined.member_id);
        if let Some(link) = &mut self.link {
            link.on_joined(now, joined);
        }
    }

    fn on_assigned(&mut self, assigned: ConsumeAssigned) -> Result<(), Failure> {
        let mut news = Vec::new();
        for assignment in assigned.assignments {
            let known = self.partitions.assigned(&assignment);
            let is_kept = known.is_some_and(|(_, held)| {
                held.assignment.is_none() && held.next_offset == assignment.next_offset
            });
            let known = known.map(|(slot, _)| slot);
            if let Some(slot) = known.filter(|_| assignment.is_resumed && is_kept) {
                self.partitions.confirm(slot, &assignment);
                continue;
            }
            self.lose(known.as_slice(), LostReason::Moved);
            if assignment.is_resumed {
                // The records before that offset were here, and are not any more.
                return Err(Failure::cut("a partition went on where this member is no more"));
            }
            let slot = self.partitions.insert(&assignment);
            news.push((slot, describe(assignment)));
        }
        self.notices.push_back(Notice::Assigned(news));
        Ok(())
    }

    fn slots(&self, assignments: &[u64]) -> Vec<Slot> {
        assignments.iter().filter_map(|assignment| self.partitions.slot(*assignment)).collect()
    }

    fn on_revoke(&mut self, now: Instant, revoke: &ConsumeRevoke) {
        // A tenth of the time is left for what is said to arrive.
        let by = now + Duration::from_millis(revoke.deadline_ms.into()).mul_f64(0.9);
        let mut slots = self.slots(&revoke.assignments);
        let is_held = |held: &Held| held.phase == Phase::Held;
        slots.retain(|slot| self.partitions.get(*slot).is_some_and(is_held));
        for slot in &slots {
            if let Some(held) = self.partitions.get_mut(*slot) {
                held.phase = Phase::Revoked(by);
            }
            let freed_bytes = self.buffer.drop_slot(*slot);
            self.owe(freed_bytes);
        }
        self.notices.push_back(Notice::Revoked(slots, by));
    }

    fn on_gap(&mut self, gap: ConsumeGap) {
        let ConsumeGap { assignment, from_offset, to_offset } = gap;
        let Some(Source { slot, topic, partition, .. }) = self.source(assignment) else {
            return;
        };
        let gap = Gap { topic, partition, from_offset, to_offset };
        let events = VecDeque::from([Event::Gap(gap)]);
        self.on_chunk(Chunk { slot, events, next_offset: to_offset, cost_bytes: 0 });
    }

    fn on_positions(&mut self, told: ConsumePositions) {
        for position in told.positions {
            let slot = self.partitions.slot(position.assignment);
            if let Some(held) = slot.and_then(|slot| self.partitions.get_mut(slot)) {
                held.high_watermark = position.high_watermark;
                held.log_start_offset = position.log_start_offset;
            }
        }
    }

    /// Returns where records belong; none if the member does not have the partition any more.
    pub(super) fn source(&self, assignment: u64) -> Option<Source> {
        let slot = self.partitions.slot(assignment)?;
        let held = self.partitions.get(slot).filter(|held| held.phase == Phase::Held)?;
        let (topic, partition, from) = (held.topic.clone(), held.partition, held.next_offset);
        Some(Source { slot, topic, partition, from })
    }

    /// Takes in the records of a message.
    pub(super) fn on_data(&mut self, source: &Source, data: &Data, events: VecDeque<Event>) {
        if let Some(held) = self.partitions.get_mut(source.slot) {
            held.high_watermark = data.high_watermark;
        }
        let (slot, cost_bytes) = (source.slot, data.cost_bytes);
        let next_offset = data.next_offset.max(source.from);
        self.on_chunk(Chunk { slot, events, next_offset, cost_bytes });
    }
}

fn describe(assignment: Assignment) -> Assigned {
    Assigned {
        topic: assignment.topic.into(),
        topic_id: assignment.topic_id.into(),
        partition: assignment.partition,
        generation: assignment.generation,
        next_offset: assignment.next_offset,
        metadata: assignment.metadata,
        log_start_offset: assignment.log_start_offset,
        high_watermark: assignment.high_watermark,
    }
}
