//! The ledger: what was sent, what was acknowledged, and whether all of it came back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::client::{Receipt, Record};

/// Name of the header that numbers the records of a partition.
pub(super) const NUMBER: &str = "number";

/// What was sent to each partition.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<BTreeMap<u32, Sent>>>);

#[derive(Debug, Default)]
struct Sent {
    /// Values by number.
    values: Vec<Bytes>,
    /// Numbers by offset.
    acknowledged: BTreeMap<u64, u64>,
}

/// What is wrong with what was read back, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Verdict {
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    pub(super) read: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    pub(super) altered: u64,
}

impl Verdict {
    pub(super) fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.altered == 0
    }
}

impl Ledger {
    /// Notes that `value` is about to be sent, and returns its number.
    pub(super) fn number(&self, partition: u32, value: Bytes) -> u64 {
        let mut partitions = self.0.lock().expect("nobody panics with the lock");
        let sent = partitions.entry(partition).or_default();
        sent.values.push(value);
        sent.values.len() as u64 - 1
    }

    /// Notes where a record was stored.
    pub(super) fn acknowledge(&self, receipt: &Receipt, number: u64) {
        let mut partitions = self.0.lock().expect("nobody panics with the lock");
        let sent = partitions.entry(receipt.partition).or_default();
        sent.acknowledged.insert(receipt.offset, number);
    }

    /// Compares all that was read with all that was sent.
    pub(super) fn judge(&self, read: &[Record]) -> Verdict {
        let partitions = self.0.lock().expect("nobody panics with the lock");
        let mut verdict = Verdict { read: read.len() as u64, ..Verdict::default() };
        let mut by_partition: BTreeMap<u32, BTreeMap<u64, &Record>> = BTreeMap::new();
        for record in read {
            by_partition.entry(record.partition).or_default().insert(record.offset, record);
        }
        for (partition, sent) in partitions.iter() {
            verdict.sent += sent.values.len() as u64;
            verdict.acknowledged += sent.acknowledged.len() as u64;
            let found = by_partition.remove(partition).unwrap_or_default();
            sent.judge(&found, &mut verdict);
        }
        verdict
    }
}

impl Sent {
    fn judge(&self, found: &BTreeMap<u64, &Record>, verdict: &mut Verdict) {
        let is_there = |(offset, number): &(&u64, &u64)| {
            found.get(offset).is_some_and(|record| number_of(record) == Some(**number))
        };
        verdict.lost += self.acknowledged.iter().filter(|one| !is_there(one)).count() as u64;
        let mut last = None;
        for record in found.values() {
            let number = number_of(record);
            let value = number.and_then(|number| self.values.get(number as usize));
            verdict.altered += u64::from(value.is_none() || value != record.value.as_ref());
            verdict.duplicated += u64::from(number.is_some() && number == last);
            verdict.reordered += u64::from(number < last);
            last = number.max(last);
        }
    }
}

fn number_of(record: &Record) -> Option<u64> {
    let header = record.headers.iter().find(|header| header.name == NUMBER)?;
    Some(u64::from_le_bytes(header.value.as_ref().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::client::Header;

    fn record(offset: u64, number: u64, value: &'static str) -> Record {
        let value = Some(Bytes::from_static(value.as_bytes()));
        let number = Bytes::copy_from_slice(&number.to_le_bytes());
        let headers = vec![Header { name: NUMBER.to_owned(), value: number }];
        Record { offset, value, headers, ..Record::default() }
    }

    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        for (offset, value) in ["a", "b", "c"].into_iter().enumerate() {
            let number = ledger.number(0, Bytes::from_static(value.as_bytes()));
            let offset = offset as u64;
            let receipt = Receipt { partition: 0, offset, received: Instant::now() };
            ledger.acknowledge(&receipt, number);
        }
        ledger
    }

    #[test]
    fn what_comes_back_as_it_was_is_good() {
        let read = [record(0, 0, "a"), record(1, 1, "b"), record(2, 2, "c")];
        assert!(ledger().judge(&read).is_good());
    }

    #[test]
    fn every_anomaly_is_counted() {
        let lost = ledger().judge(&[record(0, 0, "a"), record(1, 1, "b")]);
        assert_eq!((lost.lost, lost.is_good()), (1, false));
        let altered = [record(0, 0, "a"), record(1, 1, "x"), record(2, 2, "c")];
        assert_eq!(ledger().judge(&altered).altered, 1);
        let doubled = [record(0, 0, "a"), record(1, 1, "b"), record(2, 2, "c"), record(3, 2, "c")];
        assert_eq!(ledger().judge(&doubled).duplicated, 1);
        let reordered =
            [record(0, 0, "a"), record(1, 1, "b"), record(2, 2, "c"), record(3, 0, "a")];
        assert_eq!(ledger().judge(&reordered).reordered, 1);
    }
}
