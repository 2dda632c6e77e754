//! The leader's view of entries in flight: rules, and a model of leaders that come and go.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::partition::{Admission, Answer, InFlight, PRODUCER_IDLE_MS};

/// An answer that rests on an entry in flight.
struct Waiter {
    index: u64,
    term: u64,
    submission: Submission,
    answer: Answer,
}

/// A log with its leader, whoever that is.
///
/// * `log[..applied]` is committed; the rest is in flight.
struct Cluster {
    log: Vec<Entry>,
    applied: State,
    in_flight: InFlight,
    term: u64,
    now_ms: i64,
    next_producer_id: u64,
    sent: Vec<Submission>,
    waiters: Vec<Waiter>,
    acks: Vec<(Submission, u64)>,
}

impl Cluster {
    fn new() -> Self {
        let applied = State::new();
        Self {
            log: Vec::new(),
            in_flight: InFlight::new(&applied),
            applied,
            term: 1,
            now_ms: 0,
            next_producer_id: 1,
            sent: Vec::new(),
            waiters: Vec::new(),
            acks: Vec::new(),
        }
    }

    fn entry(&self, kind: Kind, payload: Bytes) -> Entry {
        let end_offset = self.log.last().map_or(0, |entry| entry.header.end_offset());
        Entry::new(kind, self.log.len() as u64 + 1, self.term, payload, 0)
            .with_records(end_offset, 0)
            .at_time(self.now_ms)
    }

    fn append(&mut self, entry: Entry) {
        self.in_flight.append(&entry.header, &entry.payload);
        self.log.push(entry);
    }

    fn init(&mut self, producer_id: u64, take_over: bool) {
        let command = Command::InitProducer(InitProducer { producer_id, take_over });
        self.append(self.entry(Kind::Control, command.encode()));
    }

    fn check(&self, submission: &Submission) -> Admission {
        self.in_flight.check(self.applied.producers(), submission)
    }

    fn produce(&mut self, submission: Submission) -> Admission {
        self.sent.push(submission);
        let admission = self.check(&submission);
        match admission {
            Admission::Append => {
                let mut entry = self.entry(Kind::Records, Bytes::new());
                stamp(&mut entry.header, &submission);
                self.append(entry);
            }
            Admission::Answer(answer) => self.answer(submission, answer),
            Admission::AnswerAfter { index, answer } => {
                let waiter = Waiter { index, term: self.term, submission, answer };
                assert!(index > self.applied.applied_index(), "a wait for what is applied");
                self.waiters.push(waiter);
            }
        }
        admission
    }

    fn answer(&mut self, submission: Submission, answer: Answer) {
        match answer {
            Ok(offset) => self.acks.push((submission, offset)),
            Err(refusal) => self.expect_no_retry(&submission, refusal),
        }
    }

    /// A batch that is among the producer's last is not refused.
    fn expect_no_retry(&self, submission: &Submission, refusal: Refusal) {
        let known = self.applied.producers().producer_epoch(submission.producer_id);
        let batches = self.committed().iter().rev().map(|entry| &entry.header);
        let last = batches.filter(|header| {
            header.kind == Kind::Records && header.producer_id == submission.producer_id
        });
        let is_retry = last.take(5).any(|header| Submission::of(header) == *submission);
        let is_current = known == Some(submission.producer_epoch);
        assert!(!is_retry || !is_current, "the retry {submission:?} is refused: {refusal}");
    }

    fn committed(&self) -> &[Entry] {
        &self.log[..self.applied.applied_index() as usize]
    }

    fn commit(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.applied.applied_index() as usize;
            let Some(entry) = self.log.get(at).cloned() else { return };
            let applied = self.applied.apply(&entry.header, &entry.payload);
            if let Effect::Records(stored) = applied.effect {
                assert_eq!(stored.verdict, Verdict::Fresh, "entry {} was let in", applied.index);
                self.acks.push((Submission::of(&entry.header), stored.answer().unwrap()));
            }
            self.in_flight.commit(applied.index);
            self.release(&applied);
        }
    }

    fn release(&mut self, applied: &Applied) {
        let waiters = std::mem::take(&mut self.waiters);
        let (done, rest): (Vec<_>, Vec<_>) =
            waiters.into_iter().partition(|waiter| waiter.index == applied.index);
        self.waiters = rest;
        for Waiter { term, submission, answer, .. } in done {
            if term == applied.term {
                self.answer(submission, answer);
            }
        }
    }

    /// Another replica leads, whose log has `kept` of the entries in flight.
    fn change_leader(&mut self, kept: usize) {
        self.log.truncate(self.applied.applied_index() as usize + kept);
        self.term += 1;
        let no_op = self.entry(Kind::NoOp, Bytes::new());
        self.log.push(no_op);
        // The new leader takes batches once it has applied its own no-op. Its predecessor's view
        // goes with the predecessor.
        self.in_flight = InFlight::new(&self.applied);
        for entry in &self.log[self.applied.applied_index() as usize..] {
            self.in_flight.append(&entry.header, &entry.payload);
        }
        self.commit(usize::MAX);
        self.in_flight = InFlight::new(&self.applied);
    }

    /// The batch that the producer would send next, going by the log.
    fn next_of(&self, producer_id: u64, producer_epoch: u16) -> Submission {
        let of = |header: &&EntryHeader| {
            (header.kind, header.producer_id, header.producer_epoch)
                == (Kind::Records, producer_id, producer_epoch)
        };
        let last = self.log.iter().rev().map(|entry| &entry.header).find(of);
        let base_sequence = last.map_or(0, |last| last.base_sequence + last.record_count);
        let record_count = 1 + base_sequence % 3;
        let payload_crc = base_sequence.wrapping_mul(0x9E37_79B9) ^ self.term as u32;
        Submission { producer_id, producer_epoch, base_sequence, record_count, payload_crc }
    }

    fn expect_all_is_well(&self) {
        let mut stored = BTreeSet::new();
        let mut producer_epochs = BTreeMap::new();
        let batches = self.committed().iter().map(|entry| &entry.header);
        for header in batches.filter(|header| header.kind == Kind::Records) {
            let newest = producer_epochs.entry(header.producer_id).or_insert(0);
            assert!(header.producer_epoch >= *newest, "a zombie's batch at {}", header.index);
            *newest = header.producer_epoch;
            for sequence in header.base_sequence..header.base_sequence + header.record_count {
                let key = (header.producer_id, header.producer_epoch, sequence);
                assert!(stored.insert(key), "{key:?} is stored twice");
            }
        }
        for (submission, offset) in &self.acks {
            let at = |entry: &&Entry| {
                entry.header.base_offset == *offset && entry.header.record_count > 0
            };
            let entry = self.committed().iter().find(at).expect("what was acknowledged is there");
            assert_eq!(Submission::of(&entry.header), *submission, "at offset {offset}");
        }
    }
}

#[test]
fn a_retry_of_a_batch_in_flight_waits_for_that_batch() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    assert_eq!(cluster.produce(batch(0, 2)), Admission::Append);
    assert_eq!(cluster.produce(batch(2, 2)), Admission::Append);
    let wait = Admission::AnswerAfter { index: 2, answer: Ok(0) };
    assert_eq!(cluster.check(&batch(0, 2)), wait);
    assert_eq!(cluster.in_flight.len(), 2);
    cluster.commit(2);
    assert_eq!(cluster.check(&batch(0, 2)), Admission::Answer(Ok(0)));
    assert_eq!(cluster.in_flight.len(), 1);
}

#[test]
fn another_body_for_a_batch_in_flight_is_refused() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    cluster.produce(batch(0, 2));
    let answer = Err(Refusal::SequenceReused { base_sequence: 0, base_offset: 0 });
    let other = Submission { payload_crc: 1, ..batch(0, 2) };
    assert_eq!(cluster.check(&other), Admission::AnswerAfter { index: 2, answer });
}

#[test]
fn a_batch_lost_with_its_leader_is_fresh_again() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    cluster.commit(1);
    cluster.produce(batch(0, 2));
    cluster.change_leader(0);
    assert_eq!(cluster.produce(batch(0, 2)), Admission::Append);
}

#[test]
fn a_batch_that_outlived_its_leader_is_a_duplicate() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    cluster.produce(batch(0, 2));
    cluster.change_leader(2);
    assert_eq!(cluster.check(&batch(0, 2)), Admission::Answer(Ok(0)));
}

#[test]
fn a_take_over_in_flight_keeps_the_old_incarnation_out() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    cluster.commit(1);
    cluster.init(7, true);
    let answer = Err(Refusal::ProducerFenced { current: 1 });
    assert_eq!(cluster.check(&batch(0, 1)), Admission::AnswerAfter { index: 2, answer });
    cluster.commit(1);
    assert_eq!(cluster.check(&batch(0, 1)), Admission::Answer(answer));
}

#[test]
fn a_producer_that_an_entry_in_flight_makes_forgotten_is_not_let_in() {
    let mut cluster = Cluster::new();
    cluster.init(7, false);
    cluster.commit(1);
    cluster.now_ms = PRODUCER_IDLE_MS;
    cluster.init(8, false);
    let answer = Err(Refusal::UnknownProducer);
    assert_eq!(cluster.check(&batch(0, 1)), Admission::AnswerAfter { index: 2, answer });
}

#[test]
#[should_panic(expected = "batch at 1 is appended but is Refused(UnknownProducer)")]
fn a_batch_that_was_not_checked_is_a_broken_caller() {
    let mut cluster = Cluster::new();
    let mut entry = cluster.entry(Kind::Records, Bytes::new());
    stamp(&mut entry.header, &batch(0, 1));
    cluster.append(entry);
}

#[derive(Debug, Clone)]
enum Step {
    Introduce,
    TakeOver { producer: usize },
    Next { producer: usize, producer_epoch_ahead: i32, gap: u32 },
    Resend { back: usize, tampered: bool },
    Commit { count: usize },
    ChangeLeader { kept: usize },
    Wait { ms: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let ahead = prop_oneof![12 => Just(0), 1 => Just(-1), 1 => Just(1)];
    let gap = prop_oneof![9 => Just(0u32), 1 => Just(1)];
    let next = (0..3usize, ahead, gap);
    let ms = prop_oneof![5 => 0..10_000i64, 1 => Just(PRODUCER_IDLE_MS / 2)];
    let tampered = prop_oneof![4 => Just(false), 1 => Just(true)];
    prop_oneof![
        2 => Just(Step::Introduce),
        2 => (0..3usize).prop_map(|producer| Step::TakeOver { producer }),
        16 => next.prop_map(|(producer, producer_epoch_ahead, gap)| {
            Step::Next { producer, producer_epoch_ahead, gap }
        }),
        12 => (0..12usize, tampered).prop_map(|(back, tampered)| Step::Resend { back, tampered }),
        8 => (1..5usize).prop_map(|count| Step::Commit { count }),
        2 => (0..6usize).prop_map(|kept| Step::ChangeLeader { kept }),
        2 => ms.prop_map(|ms| Step::Wait { ms }),
    ]
}

impl Cluster {
    /// One of the producers introduced last.
    fn producer(&self, at: usize) -> u64 {
        self.next_producer_id.saturating_sub(1 + at as u64).max(1)
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Introduce => {
                self.init(self.next_producer_id, false);
                self.next_producer_id += 1;
            }
            Step::TakeOver { producer } => self.init(self.producer(producer), true),
            Step::Next { producer, producer_epoch_ahead, gap } => {
                let id = self.producer(producer);
                let current = self.applied.producers().producer_epoch(id).unwrap_or(0);
                let producer_epoch = i32::from(current).saturating_add(producer_epoch_ahead).max(0);
                let mut submission = self.next_of(id, u16::try_from(producer_epoch).unwrap());
                submission.base_sequence += gap;
                self.produce(submission);
            }
            Step::Resend { back, tampered } => {
                let Some(at) = self.sent.len().checked_sub(1 + back) else { return };
                let mut submission = self.sent[at];
                submission.payload_crc ^= u32::from(tampered);
                self.produce(submission);
            }
            Step::Commit { count } => self.commit(count),
            Step::ChangeLeader { kept } => self.change_leader(kept),
            Step::Wait { ms } => self.now_ms += ms,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn nothing_is_stored_twice_and_no_false_duplicate_is_acknowledged(
        steps in vec(step(), 1..150),
    ) {
        let mut cluster = Cluster::new();
        cluster.run(&Step::Introduce);
        for step in &steps {
            cluster.run(step);
        }
        cluster.commit(usize::MAX);
        cluster.expect_all_is_well();
    }
}
