//! The window's promises: order, one number for one batch, and no number anew while one is unknown.

use std::collections::HashMap;
use std::time::Duration;

use tonic::Code;

use super::*;

fn batch(record_count: u32) -> Batch {
    Batch {
        bytes: Bytes::from(record_count.to_string()),
        crc: 0,
        record_count,
        waiters: Vec::new(),
        room: 1,
        deadline: Instant::now() + Duration::from_secs(60),
    }
}

fn identity(producer_id: u64) -> ProducerStamp {
    ProducerStamp { producer_id, producer_epoch: 0, base_sequence: 0 }
}

/// A window of batches of 1, 2, 3, … records.
fn window(batches: u32) -> Window {
    let mut window = Window::new(8, true);
    (1..=batches).for_each(|records| window.push(batch(records)));
    assert!(window.set_identity(identity(1), None).is_empty());
    window
}

/// Sends what may be sent: (request id, records, producer id, sequence).
fn send(window: &mut Window) -> Vec<(u32, String, u64, u32)> {
    std::iter::from_fn(|| window.next_to_send())
        .map(|out| {
            let stamp = out.stamp.unwrap();
            let records = String::from_utf8(out.bytes.to_vec()).unwrap();
            (out.request_id, records, stamp.producer_id, stamp.base_sequence)
        })
        .collect()
}

fn refusal(reason: ErrorReason) -> Failure {
    let failure = Failure::local(Code::FailedPrecondition, reason, "no".into());
    Failure { origin: crate::client::Origin::Server, ..failure }
}

fn out_of_order(expected: u32, found: u32) -> Failure {
    let metadata = HashMap::from([
        ("expected".to_owned(), expected.to_string()),
        ("found".to_owned(), found.to_string()),
    ]);
    Failure { metadata, ..refusal(ErrorReason::OutOfOrderSequence) }
}

fn done(step: Step) -> Result<u64, Fate> {
    match step {
        Step::Done(done) => done.result,
        Step::Wait | Step::Restart(_) => panic!("not done: {step:?}"),
    }
}

fn cut() -> Failure {
    Failure::cut("cut")
}

#[test]
fn batches_are_numbered_by_their_records() {
    let mut window = window(3);
    let sent: Vec<_> = send(&mut window).into_iter().map(|(id, _, _, seq)| (id, seq)).collect();
    assert_eq!(sent, [(0, 0), (1, 1), (2, 3)]);
    assert!(send(&mut window).is_empty());
    assert_eq!(done(window.on_answer(0, Ok(70))), Ok(70));
    assert_eq!(done(window.on_answer(1, Ok(71))), Ok(71));
}

#[test]
fn after_a_break_the_same_batches_go_out_under_the_same_numbers_and_in_order() {
    let mut window = window(3);
    let first = send(&mut window);
    done(window.on_answer(0, Ok(0))).unwrap();
    assert!(window.on_cut(&cut()).is_empty());
    let again = send(&mut window);
    let strip = |sent: &[(u32, String, u64, u32)]| -> Vec<_> {
        sent.iter().map(|(_, records, id, seq)| (records.clone(), *id, *seq)).collect()
    };
    assert_eq!(strip(&again), strip(&first)[1..]);
}

#[test]
fn an_answer_out_of_order_ends_the_stream() {
    let mut window = window(2);
    send(&mut window);
    assert!(matches!(window.on_answer(1, Ok(0)), Step::Restart(_)));
    assert!(matches!(window.on_answer(9, Ok(0)), Step::Restart(_)));
}

#[test]
fn a_node_that_does_not_lead_does_not_make_the_fate_unknown() {
    let mut window = window(1);
    send(&mut window);
    assert!(matches!(window.on_answer(0, Err(refusal(ErrorReason::NotLeader))), Step::Restart(_)));
    assert!(window.on_cut(&cut()).is_empty());
    let failed = window.fail_all(&cut()).remove(0);
    assert_eq!(failed.result, Err(Fate::Refused(cut())));
}

#[test]
fn a_forgotten_producer_takes_a_new_number_only_when_nothing_is_unknown() {
    let mut window = window(2);
    send(&mut window);
    let forgotten = || Err(refusal(ErrorReason::UnknownProducer));
    assert!(matches!(window.on_answer(0, forgotten()), Step::Wait));
    assert!(!window.needs_identity(), "the second batch is still on its way");
    window.push(batch(9));
    assert!(send(&mut window).is_empty(), "nothing goes out for the first time");
    assert!(matches!(window.on_answer(1, forgotten()), Step::Wait));
    assert!(window.needs_identity());
    assert!(window.set_identity(identity(2), None).is_empty());
    let sent: Vec<_> = send(&mut window).into_iter().map(|(_, r, id, seq)| (r, id, seq)).collect();
    assert_eq!(sent, [("1".into(), 2, 0), ("2".into(), 2, 1), ("9".into(), 2, 3)]);
}

#[test]
fn a_forgotten_producer_with_an_unknown_batch_says_so() {
    let mut window = window(2);
    send(&mut window);
    window.on_cut(&cut());
    send(&mut window);
    for request_id in [2, 3] {
        let step = window.on_answer(request_id, Err(refusal(ErrorReason::UnknownProducer)));
        assert!(matches!(done(step), Err(Fate::Unknown(_))));
    }
    window.push(batch(5));
    assert!(window.needs_identity(), "the rest goes on under a new one");
}

#[test]
fn a_refused_batch_leaves_a_hole_that_those_behind_it_survive() {
    let mut window = window(3);
    send(&mut window);
    let step = window.on_answer(0, Err(refusal(ErrorReason::RecordTooLarge)));
    assert!(matches!(done(step), Err(Fate::Refused(_))));
    assert!(matches!(window.on_answer(1, Err(out_of_order(0, 1))), Step::Wait));
    // The last one's answer is lost: it has to be asked for again, under its old number.
    window.on_cut(&cut());
    assert!(!window.needs_identity());
    let again = send(&mut window);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].2, again[0].3), (1, 3));
    assert!(matches!(window.on_answer(again[0].0, Err(out_of_order(0, 3))), Step::Wait));
    assert!(window.needs_identity());
    let known = window.identity().map(|identity| identity.producer_id);
    assert_eq!(known, Some(1), "earlier attempts are to be kept out");
    let next = ProducerStamp { producer_epoch: 1, ..identity(1) };
    assert!(window.set_identity(next, Some(0)).is_empty());
    let sent: Vec<_> = send(&mut window).into_iter().map(|(_, r, _, seq)| (r, seq)).collect();
    assert_eq!(sent, [("2".into(), 0), ("3".into(), 2)]);
}

/// A window whose second batch was sent twice: it was found to be ahead of what was due, while the
/// first attempt may still be on its way.
fn ahead() -> Window {
    let mut window = window(2);
    send(&mut window);
    let step = window.on_answer(0, Err(refusal(ErrorReason::RecordTooLarge)));
    assert!(matches!(done(step), Err(Fate::Refused(_))));
    window.on_cut(&cut());
    let again = send(&mut window);
    assert!(matches!(window.on_answer(again[0].0, Err(out_of_order(0, 1))), Step::Wait));
    window
}

#[test]
fn a_batch_that_is_ahead_may_still_be_stored_until_the_repair() {
    let mut expiring = ahead();
    let later = Instant::now() + Duration::from_secs(61);
    let given_up = expiring.expire(later, &cut()).remove(0);
    assert_eq!(given_up.result, Err(Fate::Unknown(cut())));
    let next = ProducerStamp { producer_epoch: 1, ..identity(1) };
    // It was stored after it had been refused; it was not; nobody can tell.
    for (ended, may_be_stored) in [(Some(3), true), (Some(1), false), (None, true)] {
        let mut window = ahead();
        let open = window.set_identity(next, ended);
        assert_eq!(open.len(), usize::from(may_be_stored), "{ended:?}");
        assert!(open.iter().all(|done| matches!(done.result, Err(Fate::Unknown(_)))));
        assert_eq!(send(&mut window).len(), usize::from(!may_be_stored), "{ended:?}");
    }
}

#[test]
fn a_missing_batch_that_was_acknowledged_is_not_taken_for_proof() {
    let mut window = window(1);
    send(&mut window);
    window.on_cut(&cut());
    let again = send(&mut window);
    let step = window.on_answer(again[0].0, Err(out_of_order(5, 0)));
    assert!(matches!(done(step), Err(Fate::Unknown(_))));
}

#[test]
#[should_panic(expected = "would get a new sequence number")]
fn an_unknown_batch_never_gets_a_new_number() {
    let mut window = window(1);
    send(&mut window);
    window.on_cut(&cut());
    window.set_identity(identity(2), Some(0));
}

#[test]
fn what_was_never_sent_expires_as_refused_and_the_rest_as_unknown() {
    let mut window = window(1);
    send(&mut window);
    window.on_cut(&cut());
    window.push(batch(2));
    let later = Instant::now() + Duration::from_secs(61);
    let fates: Vec<_> = window.expire(later, &cut()).into_iter().map(|done| done.result).collect();
    assert_eq!(fates, [Err(Fate::Unknown(cut())), Err(Fate::Refused(cut()))]);
    assert!(window.is_empty());
    window.push(batch(3));
    assert!(window.needs_identity(), "the number of the unknown batch may be used");
}

#[test]
fn without_numbers_nothing_unknown_is_sent_again() {
    let mut window = Window::new(8, false);
    window.push(batch(1));
    assert!(!window.has_room() && !window.needs_identity());
    assert!(window.next_to_send().unwrap().stamp.is_none());
    assert!(matches!(window.on_answer(0, Err(refusal(ErrorReason::Overloaded))), Step::Restart(_)));
    assert!(window.on_cut(&cut()).is_empty());
    assert!(window.next_to_send().is_some());
    let lost = window.on_cut(&cut());
    assert!(matches!(lost[0].result, Err(Fate::Unknown(_))));
    assert!(window.is_empty());
}

#[test]
fn what_was_given_to_a_stream_that_never_began_is_not_unknown() {
    let mut window = Window::new(8, false);
    window.push(batch(1));
    assert!(window.next_to_send().is_some());
    let refused = Failure { origin: Origin::NotSent, ..cut() };
    assert!(window.on_cut(&refused).is_empty());
    assert!(window.next_to_send().is_some(), "it is sent again");
    let failed = window.fail_all(&cut()).remove(0);
    assert!(matches!(failed.result, Err(Fate::Unknown(_))), "now it may have arrived");
}

#[test]
fn sequence_numbers_wrap() {
    let mut window = Window::new(8, true);
    (1..=2).for_each(|records| window.push(batch(records)));
    window.set_identity(ProducerStamp { base_sequence: u32::MAX, ..identity(1) }, None);
    let sent: Vec<_> = send(&mut window).into_iter().map(|(_, _, _, seq)| seq).collect();
    assert_eq!(sent, [u32::MAX, 0]);
    assert!(is_ahead(&out_of_order(u32::MAX, 0)));
    assert!(!is_ahead(&out_of_order(0, u32::MAX)));
}
