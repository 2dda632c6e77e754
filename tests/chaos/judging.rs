//! The checker's own tests: a history that is as it should be, and one for each way in which it can
//! be wrong.

use std::time::Duration;

use crate::checker::{Last, Mark, Rule, judge};
use crate::history::{Append, Event, Outcome, Poll, Promise, Tail};
use crate::value::Value;

const HEAL_MAX: Duration = Duration::from_secs(5);
const PARTITIONS: u32 = 2;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn unknown() -> Outcome {
    Outcome::Unknown(String::new())
}

fn value(counter: u64) -> Value {
    Value { producer: 1, counter }
}

/// Records that were sent one after the other, from `ms` on for 10 ms.
fn append(ms: u64, counters: std::ops::Range<u64>, outcome: Outcome) -> Append {
    Append {
        invoked: at(ms),
        ended: at(ms + 10),
        partition: 0,
        promise: Promise::Quorum,
        is_idempotent: true,
        values: counters.map(value).collect(),
        outcome,
    }
}

fn stored(ms: u64, counters: std::ops::Range<u64>, offset: u64) -> Append {
    let outcome = Outcome::Acknowledged(counters.clone().map(value).zip(offset..).collect());
    append(ms, counters, outcome)
}

/// Records that were read from an offset on.
fn poll(ms: u64, from: u64, counters: &[u64]) -> Poll {
    let records: Vec<_> = (from..).zip(counters.iter().map(|n| Some(value(*n)))).collect();
    let next = from + records.len() as u64;
    Poll {
        invoked: at(ms),
        ended: at(ms + 5),
        reader: 0,
        session: 0,
        place: Some(0),
        partition: 0,
        from,
        next,
        high_watermark: Some(next),
        log_start: Some(0),
        records,
    }
}

fn tail(ms: u64, end: u64) -> Event {
    Event::Tail(Tail { invoked: at(ms), ended: at(ms + 5), partition: 0, end })
}

fn mark(base_offset: u64, crc: u32) -> Mark {
    Mark { base_offset, records: 3, append_time_ms: 0, leader_epoch: 1, crc }
}

fn last(ends: [u64; 2]) -> Last {
    let replicas = [1, 2, 3]
        .into_iter()
        .flat_map(|node| [((node, 0), vec![mark(0, 7), mark(3, 8)]), ((node, 1), Vec::new())]);
    Last { ends: ends.to_vec(), replicas: replicas.collect() }
}

/// Six records in two bursts, all of them read.
fn good() -> Vec<Event> {
    vec![
        Event::Append(stored(0, 0..3, 0)),
        tail(20, 3),
        Event::Append(stored(30, 3..6, 3)),
        Event::Poll(poll(50, 0, &[0, 1, 2, 3])),
        Event::Poll(poll(60, 4, &[4, 5])),
        tail(70, 6),
    ]
}

#[track_caller]
fn expect(events: &[Event], last: &Last, rules: &[Rule]) {
    let verdict = judge(events, PARTITIONS, Some(last), HEAL_MAX);
    let broken: Vec<_> = verdict.broken().into_keys().collect();
    assert_eq!(broken, rules, "{verdict}");
}

/// Expects rules to be broken by what comes on top of a good history that goes on to `end`.
#[track_caller]
fn expect_with(more: impl IntoIterator<Item = Event>, end: u64, rules: &[Rule]) {
    let events: Vec<_> = good().into_iter().chain(more).collect();
    expect(&events, &last([end, 0]), rules);
}

/// What another reader reads.
fn second(poll: Poll) -> Event {
    Event::Poll(Poll { reader: 1, ..poll })
}

#[test]
fn nothing_is_wrong_with_a_good_history() {
    expect(&good(), &last([6, 0]), &[]);
    let sent = Event::Append(append(80, 6..8, unknown()));
    expect_with([sent.clone()], 6, &[]);
    expect_with([sent, Event::Poll(poll(99, 6, &[6, 7]))], 8, &[]);
}

#[test]
fn what_was_acknowledged_has_to_be_there() {
    expect(&good()[..4], &last([4, 0]), &[Rule::Lost]);
    let moved = Event::Append(stored(90, 6..7, 7));
    let reads = Event::Poll(poll(110, 6, &[6, 7]));
    let other = Event::Append(append(90, 7..8, unknown()));
    expect_with([moved, reads, other], 8, &[Rule::Moved]);
}

#[test]
fn a_record_is_there_once_and_in_order() {
    expect_with(
        [Event::Poll(poll(90, 6, &[5]))],
        7,
        &[Rule::Moved, Rule::Duplicate, Rule::Reordered],
    );
    let sent = Event::Append(append(80, 6..8, unknown()));
    expect_with([sent, Event::Poll(poll(99, 6, &[7, 6]))], 8, &[Rule::Reordered]);
}

#[test]
fn a_record_of_unknown_outcome_may_come_twice_if_it_has_no_number() {
    let sent = Append { is_idempotent: false, ..append(80, 6..7, unknown()) };
    expect_with([Event::Append(sent), Event::Poll(poll(99, 6, &[6, 6]))], 8, &[]);
}

#[test]
fn all_readers_see_the_same() {
    let other = second(poll(90, 0, &[0, 2]));
    let rules = [Rule::Lost, Rule::Duplicate, Rule::Inconsistent, Rule::Reordered];
    expect_with([other], 6, &rules);
}

#[test]
fn nothing_is_left_out() {
    let events = [Event::Append(stored(0, 0..3, 0)), Event::Poll(poll(50, 0, &[0, 1, 2]))];
    expect(&events, &last([5, 0]), &[Rule::Gap]);
    let skipping = second(Poll { next: 3, ..poll(90, 1, &[1]) });
    expect_with([skipping], 6, &[Rule::Skip]);
    expect_with([Event::Poll(poll(90, 5, &[5]))], 6, &[Rule::Regress]);
}

#[test]
fn what_was_refused_or_never_sent_is_not_there() {
    let refused = Event::Append(append(80, 6..7, Outcome::Refused(String::new())));
    expect_with([refused, Event::Poll(poll(99, 6, &[6]))], 7, &[Rule::Refused]);
    expect_with([Event::Poll(poll(99, 6, &[6]))], 7, &[Rule::Phantom]);
    let damaged = Poll { records: vec![(0, None)], ..poll(99, 0, &[0]) };
    expect_with([second(damaged)], 6, &[Rule::Phantom]);
    let elsewhere = Append { partition: 1, ..append(80, 6..7, unknown()) };
    let events = [Event::Append(elsewhere), Event::Poll(poll(99, 6, &[6]))];
    expect_with(events, 7, &[Rule::Phantom]);
}

#[test]
fn only_what_is_committed_is_read() {
    let beyond = Poll { high_watermark: Some(1), ..poll(90, 0, &[0, 1]) };
    expect_with([second(beyond)], 6, &[Rule::Dirty]);
    let gone = Event::Append(append(80, 6..7, unknown()));
    expect_with([gone, Event::Poll(poll(99, 6, &[6]))], 6, &[Rule::Dirty]);
}

#[test]
fn what_ended_before_comes_before() {
    let sent = Append { is_idempotent: false, ..append(80, 6..7, unknown()) };
    let early = Append { is_idempotent: false, ..stored(100, 7..8, 6) };
    let late = Append { is_idempotent: false, ..stored(80, 8..9, 7) };
    let reads = Event::Poll(poll(120, 6, &[7, 8]));
    let all = [Event::Append(sent), Event::Append(late), Event::Append(early), reads];
    expect_with(all, 8, &[Rule::RealTime]);
    expect_with([tail(90, 5)], 6, &[Rule::Stale, Rule::Regress]);
}

#[test]
fn a_reader_is_not_told_of_less_than_before() {
    let again = |from, end| Poll { high_watermark: Some(end), ..poll(90, from, &[]) };
    expect_with([Event::Poll(again(6, 5))], 6, &[Rule::Regress]);
    let of_any = Poll { place: None, ..again(6, 5) };
    expect_with([Event::Poll(of_any)], 6, &[]);
}

#[test]
fn replicas_are_alike() {
    let mut differing = last([6, 0]);
    differing.replicas.insert((2, 0), vec![mark(0, 7), mark(3, 9)]);
    expect(&good(), &differing, &[Rule::Diverged]);
    let mut short = last([6, 0]);
    short.replicas.insert((3, 0), vec![mark(0, 7)]);
    expect(&good(), &short, &[Rule::Diverged]);
}

#[test]
fn it_goes_on_soon_after_the_faults_are_over() {
    let healed = |took, stuck| Event::Healed { at: at(90), took: at(took), stuck };
    expect_with([healed(4_000, Vec::new())], 6, &[]);
    expect_with([healed(6_000, Vec::new())], 6, &[Rule::Stuck]);
    expect_with([healed(4_000, vec![1])], 6, &[Rule::Stuck]);
    let seen = Event::Breach { at: at(9), what: "a node has ended".to_owned() };
    expect_with([seen], 6, &[Rule::Other]);
}
