//! Which partition a record goes to.

use std::sync::atomic::{AtomicU32, Ordering};

/// Places records by key; those without one stay on a partition until its batch is full.
///
/// * `turn` is below `partitions`.
#[derive(Debug)]
pub(super) struct Partitioner {
    partitions: u32,
    /// Where records without a key go first.
    first: u32,
    /// The partition that records without a key go to at present.
    turn: AtomicU32,
}

impl Partitioner {
    /// # Panics
    /// If there are no partitions.
    pub(super) fn new(partitions: u32, first: u32) -> Self {
        assert!(partitions > 0, "a topic has partitions");
        let first = first % partitions;
        Self { partitions, first, turn: AtomicU32::new(first) }
    }

    pub(super) fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The same key goes to the same partition, from any client in any language.
    pub(super) fn place(&self, key: Option<&[u8]>) -> u32 {
        match key {
            Some(key) => crc32fast::hash(key) % self.partitions,
            None => self.turn.load(Ordering::Relaxed),
        }
    }

    /// The partition to make ready for records without a key that now go to `partition`: the next
    /// one, but for a producer that has filled no batch yet and may never.
    pub(super) fn ahead_of(&self, partition: u32) -> Option<u32> {
        (partition != self.first).then(|| self.after(partition))
    }

    fn after(&self, partition: u32) -> u32 {
        (partition + 1) % self.partitions
    }

    /// Moves on to the next partition when the present one's batch was closed.
    pub(super) fn on_batch_closed(&self, partition: u32) {
        let next = self.after(partition);
        // Another thread may have moved on already; then its turn counts.
        let _ = self.turn.compare_exchange(partition, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_placed_by_crc_32() {
        let partitioner = Partitioner::new(1000, 0);
        // The check value of CRC-32: 0xCBF43926.
        assert_eq!(partitioner.place(Some(b"123456789")), 0xCBF4_3926 % 1000);
        assert_eq!(partitioner.place(Some(b"")), 0);
    }

    #[test]
    fn records_without_a_key_fill_one_batch_after_another() {
        let partitioner = Partitioner::new(3, 5);
        assert_eq!(partitioner.place(None), 2);
        assert_eq!(partitioner.place(None), 2);
        partitioner.on_batch_closed(1);
        assert_eq!(partitioner.place(None), 2, "another partition's batch is no reason");
        assert_eq!(partitioner.ahead_of(2), None);
        partitioner.on_batch_closed(2);
        assert_eq!(partitioner.place(None), 0);
        assert_eq!(partitioner.ahead_of(0), Some(1));
    }
}
