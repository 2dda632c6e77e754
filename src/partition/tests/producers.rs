//! The rules about producers, one test for each.

use super::*;
use crate::partition::{PRODUCER_IDLE_MS, PRODUCERS_MAX, RECENT_BATCHES_MAX};

/// A replica that knows producer 7.
fn with_producer() -> Replica {
    let mut replica = Replica::new();
    assert_eq!(replica.init(7, false), Ok(0));
    replica
}

fn refusal(replica: &Replica, submission: Submission) -> Refusal {
    match replica.state.producers().check(&submission) {
        Verdict::Refused(refusal) => refusal,
        other => panic!("{submission:?} is {other:?}"),
    }
}

fn in_producer_epoch(producer_epoch: u16, submission: Submission) -> Submission {
    Submission { producer_epoch, ..submission }
}

#[test]
fn batches_in_order_are_fresh() {
    let mut replica = with_producer();
    for (sequence, offset) in [(0, 0), (3, 3), (6, 6)] {
        let stored = replica.store(batch(sequence, 3));
        assert_eq!((stored.verdict, stored.answer()), (Verdict::Fresh, Ok(offset)));
    }
}

#[test]
fn a_batch_without_producer_is_never_checked() {
    let mut replica = Replica::new();
    let anonymous = Submission { producer_id: 0, ..batch(9, 2) };
    assert_eq!(replica.store(anonymous).answer(), Ok(0));
    assert_eq!(replica.store(anonymous).answer(), Ok(2));
    assert!(replica.state.producers().is_empty());
}

#[test]
fn a_retry_is_answered_with_the_offset_where_it_stands() {
    let mut replica = with_producer();
    for n in 0..RECENT_BATCHES_MAX as u32 {
        replica.store(batch(2 * n, 2));
    }
    for n in 0..RECENT_BATCHES_MAX as u32 {
        let verdict = replica.state.producers().check(&batch(2 * n, 2));
        assert_eq!(verdict, Verdict::Duplicate { base_offset: u64::from(2 * n) });
    }
}

#[test]
fn a_retry_older_than_the_batches_remembered_is_out_of_order() {
    let mut replica = with_producer();
    for n in 0..=RECENT_BATCHES_MAX as u32 {
        replica.store(batch(n, 1));
    }
    let expected = RECENT_BATCHES_MAX as u32 + 1;
    let out_of_order = Refusal::OutOfOrderSequence { expected, found: 0 };
    assert_eq!(refusal(&replica, batch(0, 1)), out_of_order);
    let verdict = replica.state.producers().check(&batch(1, 1));
    assert_eq!(verdict, Verdict::Duplicate { base_offset: 1 });
}

#[test]
fn the_same_sequence_with_another_body_is_not_a_duplicate() {
    let mut replica = with_producer();
    replica.store(batch(0, 4));
    let reused = |base_sequence| Refusal::SequenceReused { base_sequence, base_offset: 0 };
    assert_eq!(refusal(&replica, Submission { payload_crc: 1, ..batch(0, 4) }), reused(0));
    assert_eq!(refusal(&replica, Submission { record_count: 5, ..batch(0, 4) }), reused(0));
    assert_eq!(refusal(&replica, batch(3, 1)), reused(3), "inside the stored batch");
}

#[test]
fn a_gap_is_out_of_order() {
    let mut replica = with_producer();
    let gap = |expected, found| Refusal::OutOfOrderSequence { expected, found };
    assert_eq!(refusal(&replica, batch(1, 1)), gap(0, 1));
    replica.store(batch(0, 2));
    assert_eq!(refusal(&replica, batch(3, 1)), gap(2, 3));
}

#[test]
fn an_older_producer_epoch_is_fenced() {
    let mut replica = with_producer();
    replica.store(batch(0, 1));
    assert_eq!(replica.init(7, true), Ok(1));
    let fenced = Refusal::ProducerFenced { current: 1 };
    assert_eq!(refusal(&replica, batch(1, 1)), fenced);
    assert_eq!(refusal(&replica, batch(0, 1)), fenced, "not even a retry is answered");
    assert_eq!(replica.store(in_producer_epoch(1, batch(0, 1))).answer(), Ok(1));
}

#[test]
fn a_newer_producer_epoch_starts_at_sequence_0_and_resets() {
    let mut replica = with_producer();
    replica.store(batch(0, 2));
    let out_of_order = Refusal::OutOfOrderSequence { expected: 0, found: 2 };
    assert_eq!(refusal(&replica, in_producer_epoch(3, batch(2, 1))), out_of_order);
    let first = in_producer_epoch(3, batch(0, 2));
    assert_eq!(replica.store(first).answer(), Ok(2));
    let verdict = replica.state.producers().check(&first);
    assert_eq!(verdict, Verdict::Duplicate { base_offset: 2 });
    assert_eq!(refusal(&replica, batch(2, 1)), Refusal::ProducerFenced { current: 3 });
    assert_eq!(replica.state.producers().producer_epoch(7), Some(3));
}

#[test]
fn after_the_last_sequence_number_comes_0() {
    let mut replica = with_producer();
    replica.store(batch(0, u32::MAX - 1));
    let across = batch(u32::MAX - 1, 3);
    let offset = u64::from(u32::MAX - 1);
    assert_eq!(replica.store(across).answer(), Ok(offset));
    let verdict = replica.state.producers().check(&across);
    assert_eq!(verdict, Verdict::Duplicate { base_offset: offset });
    let reused = Refusal::SequenceReused { base_sequence: 0, base_offset: offset };
    assert_eq!(refusal(&replica, batch(0, 1)), reused);
    assert_eq!(replica.store(batch(1, 1)).answer(), Ok(offset + 3));
}

#[test]
fn an_empty_batch_of_a_producer_is_refused() {
    assert_eq!(refusal(&with_producer(), batch(0, 0)), Refusal::EmptyBatch);
}

#[test]
fn a_producer_is_unknown_until_it_is_initialized() {
    let mut replica = Replica::new();
    assert_eq!(refusal(&replica, batch(0, 1)), Refusal::UnknownProducer);
    assert_eq!(replica.init(7, true), Err(Refusal::UnknownProducer));
    assert_eq!(replica.init(0, false), Err(Refusal::ReservedProducerId));
    assert_eq!(replica.init(7, false), Ok(0));
    assert_eq!(replica.init(7, false), Ok(0), "the same command twice");
    replica.store(batch(0, 1));
    assert_eq!(replica.init(7, false), Err(Refusal::ProducerIdTaken));
}

#[test]
fn producer_epochs_end() {
    let mut replica = with_producer();
    replica.store(in_producer_epoch(u16::MAX, batch(0, 1)));
    assert_eq!(replica.init(7, true), Err(Refusal::ProducerEpochExhausted));
    assert_eq!(replica.state.producers().producer_epoch(7), Some(u16::MAX));
}

#[test]
fn an_entry_that_should_not_be_in_the_log_is_flagged_and_changes_nothing() {
    let mut replica = with_producer();
    replica.store(batch(0, 1));
    let before = replica.state.producers().clone();
    let twice = replica.store(batch(0, 1));
    assert_eq!((twice.base_offset, twice.answer()), (1, Ok(0)));
    assert_eq!(twice.verdict, Verdict::Duplicate { base_offset: 0 });
    let gap = replica.store(batch(5, 1));
    let out_of_order = Refusal::OutOfOrderSequence { expected: 1, found: 5 };
    assert_eq!((gap.base_offset, gap.answer()), (2, Err(out_of_order)));
    assert_eq!(*replica.state.producers(), before);
    assert_eq!(replica.store(batch(1, 1)).answer(), Ok(3), "the right one goes on");
}

#[test]
fn an_idle_producer_is_forgotten_by_the_time_of_the_log() {
    let mut replica = with_producer();
    replica.now_ms += PRODUCER_IDLE_MS - 1;
    replica.append(Kind::NoOp, "");
    assert_eq!(replica.state.producers().len(), 1);
    replica.now_ms += 1;
    replica.append(Kind::NoOp, "");
    assert!(replica.state.producers().is_empty());
    assert_eq!(refusal(&replica, batch(0, 1)), Refusal::UnknownProducer);
}

#[test]
fn a_batch_keeps_its_producer_however_late_it_comes() {
    let mut replica = with_producer();
    replica.now_ms += 2 * PRODUCER_IDLE_MS;
    assert_eq!(replica.store(batch(0, 1)).verdict, Verdict::Fresh);
    assert_eq!(replica.state.producers().len(), 1);
}

#[test]
fn a_time_that_goes_back_is_not_followed() {
    let mut replica = with_producer();
    replica.now_ms = i64::MIN;
    replica.append(Kind::NoOp, "");
    assert_eq!(replica.state.log_time_ms(), 1_000);
    replica.now_ms = i64::MAX;
    replica.append(Kind::NoOp, "");
    assert!(replica.state.producers().is_empty());
}

#[test]
fn the_producer_idle_longest_makes_room() {
    let mut replica = Replica::new();
    for id in 1..=PRODUCERS_MAX as u64 {
        replica.now_ms += 1;
        replica.init(id, false).unwrap();
    }
    replica.now_ms += 1;
    replica.store(Submission { producer_id: 1, ..batch(0, 1) });
    replica.init(u64::MAX, false).unwrap();
    let producers = replica.state.producers();
    assert_eq!(producers.len(), PRODUCERS_MAX);
    let is_known = |id| producers.producer_epoch(id).is_some();
    assert!(is_known(1) && !is_known(2) && is_known(3) && is_known(u64::MAX));
    let bytes = replica.state.checkpoint();
    assert_eq!(State::from_checkpoint(&bytes), Ok(replica.state), "{} bytes", bytes.len());
}

#[test]
fn a_new_producer_never_makes_room_for_itself() {
    let mut replica = Replica::new();
    for id in 1..=PRODUCERS_MAX as u64 {
        replica.init(id + 1, false).unwrap();
    }
    replica.init(1, false).unwrap();
    assert_eq!(replica.state.producers().producer_epoch(1), Some(0));
    assert_eq!(replica.state.producers().producer_epoch(2), None);
}
