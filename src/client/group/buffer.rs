//! Records that have arrived and were not handed out, in the order in which they came.

use std::collections::{BTreeMap, VecDeque};

use super::partitions::Slot;
use crate::client::Event;

/// What one message brought.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) slot: Slot,
    pub(super) events: VecDeque<Event>,
    /// The offset after them.
    pub(super) next_offset: u64,
    /// The credit that the message used.
    pub(super) cost_bytes: u32,
}

/// Something that was taken out.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) slot: Slot,
    /// None if all that the message brought was below the offset wanted.
    pub(super) event: Option<Event>,
    /// The next offset of the partition after it.
    pub(super) next_offset: u64,
    /// Credit that may be given back.
    pub(super) freed_bytes: u32,
}

/// See the module.
///
/// * `bytes` is the sum of the costs of all chunks, aside or not.
/// * The chunks of one partition are in order, and all in the queue or all aside.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    queue: VecDeque<Chunk>,
    /// What is held back of partitions that are paused.
    aside: BTreeMap<Slot, VecDeque<Chunk>>,
    bytes: u64,
}

impl Buffer {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The partition of what comes next.
    pub(super) fn next_slot(&self) -> Option<Slot> {
        self.queue.front().map(|chunk| chunk.slot)
    }

    pub(super) fn push(&mut self, chunk: Chunk) {
        self.bytes += u64::from(chunk.cost_bytes);
        match self.aside.get_mut(&chunk.slot) {
            Some(aside) => aside.push_back(chunk),
            None => self.queue.push_back(chunk),
        }
    }

    pub(super) fn take(&mut self) -> Option<Taken> {
        let chunk = self.queue.front_mut()?;
        let event = chunk.events.pop_front();
        if chunk.events.is_empty() {
            let Chunk { slot, next_offset, cost_bytes, .. } = self.queue.pop_front()?;
            self.bytes -= u64::from(cost_bytes);
            return Some(Taken { slot, event, next_offset, freed_bytes: cost_bytes });
        }
        let next_offset = event.as_ref().map_or(chunk.next_offset, next_offset);
        Some(Taken { slot: chunk.slot, event, next_offset, freed_bytes: 0 })
    }

    /// Drops what there is of a partition. Returns the credit that may be given back.
    pub(super) fn drop_slot(&mut self, slot: Slot) -> u32 {
        let aside = self.aside.remove(&slot).unwrap_or_default();
        let dropped = aside.iter().chain(self.queue.iter().filter(|chunk| chunk.slot == slot));
        let freed_bytes = dropped.map(|chunk| chunk.cost_bytes).sum();
        self.queue.retain(|chunk| chunk.slot != slot);
        self.bytes -= u64::from(freed_bytes);
        freed_bytes
    }

    /// Holds back what there is of a partition, and what comes.
    pub(super) fn pause(&mut self, slot: Slot) {
        let (of_slot, others) = self.queue.drain(..).partition(|chunk| chunk.slot == slot);
        self.queue = others;
        self.aside.entry(slot).or_default().append(&mut { of_slot });
    }

    /// Puts what was held back of a partition in line.
    pub(super) fn resume(&mut self, slot: Slot) {
        self.queue.extend(self.aside.remove(&slot).unwrap_or_default());
    }
}

fn next_offset(event: &Event) -> u64 {
    match event {
        Event::Record(record) => record.offset + 1,
        Event::Gap(gap) => gap.to_offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Record;

    fn chunk(slot: Slot, first: u64, count: u64) -> Chunk {
        let event = |offset| Event::Record(Record { offset, ..Record::default() });
        let events = (first..first + count).map(event).collect();
        Chunk { slot, events, next_offset: first + count, cost_bytes: 100 }
    }

    fn drain(buffer: &mut Buffer) -> Vec<(Slot, u64, u32)> {
        let taken = std::iter::from_fn(|| buffer.take());
        taken.map(|taken| (taken.slot, taken.next_offset, taken.freed_bytes)).collect()
    }

    #[test]
    fn credit_is_free_when_the_last_record_of_a_message_is_taken() {
        let mut buffer = Buffer::default();
        buffer.push(chunk(1, 5, 2));
        buffer.push(chunk(2, 0, 0));
        assert_eq!(buffer.bytes(), 200);
        assert_eq!(drain(&mut buffer), [(1, 6, 0), (1, 7, 100), (2, 0, 100)]);
        assert_eq!(buffer.bytes(), 0);
    }

    #[test]
    fn a_paused_partition_waits_in_order() {
        let mut buffer = Buffer::default();
        buffer.push(chunk(1, 0, 1));
        buffer.push(chunk(2, 0, 1));
        buffer.pause(1);
        buffer.push(chunk(1, 1, 1));
        assert_eq!(drain(&mut buffer), [(2, 1, 100)]);
        buffer.resume(1);
        buffer.push(chunk(1, 2, 1));
        assert_eq!(drain(&mut buffer), [(1, 1, 100), (1, 2, 100), (1, 3, 100)]);
    }

    #[test]
    fn what_is_dropped_gives_its_credit_back() {
        let mut buffer = Buffer::default();
        (0..3).for_each(|n| buffer.push(chunk(n % 2, n, 1)));
        assert_eq!(buffer.drop_slot(0), 200);
        buffer.pause(1);
        assert_eq!(buffer.drop_slot(1), 100);
        assert_eq!((buffer.bytes(), drain(&mut buffer)), (0, Vec::new()));
    }
}
