//! The checker, judged itself: each rule has a history that keeps it and one that breaks it.

use std::time::Duration;

use super::checker::{Rule, Rules, Verdict, judge};
use super::history::{Event, Held, Last, What};

const RULES: Rules = Rules { partitions: 1, orphan_max: Duration::from_millis(100) };

fn held(member: u64, generation: u64) -> Held {
    Held { member, partition: 0, generation }
}

fn joined(member: u64) -> What {
    What::Joined { member }
}

fn assigned(held: Held, next_offset: u64) -> What {
    What::Assigned { held, next_offset, resumed: None }
}

fn resumed(held: Held, next_offset: u64, generation: u64) -> What {
    What::Assigned { held, next_offset, resumed: Some(generation) }
}

fn delivered(held: Held, from: u64, to: u64) -> What {
    What::Delivered { held, from, to }
}

fn sent(id: u64, held: Held, offset: u64) -> What {
    What::CommitSent { id, held, offset }
}

fn taken(id: u64) -> What {
    What::CommitTaken { id }
}

fn reset() -> [What; 2] {
    [What::ResetSent { partition: 0, to: 0 }, What::ResetDone { partition: 0 }]
}

/// Judges events that are 10 ms apart.
fn judged(events: &[What], last: &[Last]) -> Verdict {
    let event =
        |(n, what): (u64, &What)| Event { at: Duration::from_millis(n * 10), what: what.clone() };
    let events: Vec<_> = (0..).zip(events).map(event).collect();
    judge(&events, last, RULES)
}

fn broken(events: &[What]) -> Vec<Rule> {
    judged(events, &[]).broken()
}

/// A member that reads 10 records and commits half of them.
fn opening() -> Vec<What> {
    let first = held(1, 1);
    vec![
        joined(1),
        joined(2),
        assigned(first, 0),
        delivered(first, 0, 4),
        delivered(first, 4, 10),
        sent(1, first, 5),
        taken(1),
    ]
}

fn after(more: impl IntoIterator<Item = What>) -> Vec<What> {
    opening().into_iter().chain(more).collect()
}

#[test]
fn a_hand_over_with_a_late_commit_that_is_refused_is_fine() {
    let (first, second) = (held(1, 1), held(2, 3));
    let events = after([
        What::Revoked(first),
        What::Released(first),
        assigned(second, 5),
        delivered(second, 4, 10),
        sent(2, first, 10),
        What::CommitRefused { id: 2 },
        sent(3, second, 10),
        taken(3),
    ]);
    let last = Last { partition: 0, committed: 10, high_watermark: 10 };
    let verdict = judged(&events, &[last]);
    assert!(verdict.breaches.is_empty(), "{verdict}");
    assert_eq!((verdict.delivered, verdict.redelivered), (16, 6));
    assert_eq!(verdict.free_max, Duration::from_millis(20));
}

#[test]
fn records_come_without_gaps_and_in_order_inside_a_generation() {
    let first = held(1, 1);
    assert_eq!(broken(&after([delivered(first, 10, 12)])), []);
    assert_eq!(broken(&after([delivered(first, 11, 12)])), [Rule::Skip]);
    assert_eq!(broken(&after([delivered(first, 6, 12)])), [Rule::Order]);
    assert_eq!(broken(&after([delivered(first, 4, 10)])), [Rule::Order]);
    let begun = |from, to| after([assigned(held(1, 2), 5), delivered(held(1, 2), from, to)]);
    assert_eq!(broken(&begun(3, 7)), [], "the first batch may begin before");
    assert_eq!(broken(&begun(6, 7)), [Rule::Skip]);
    assert_eq!(broken(&begun(3, 5)), [Rule::Order]);
}

#[test]
fn what_was_committed_stays_unless_it_is_reset() {
    let look = |offset| [What::LookSent { id: 1 }, What::Seen { id: 1, partition: 0, offset }];
    assert_eq!(broken(&after(look(5))), []);
    assert_eq!(broken(&after(look(4))), [Rule::Regress]);
    assert_eq!(broken(&after(reset().into_iter().chain(look(0)))), []);
    assert_eq!(broken(&after([assigned(held(2, 2), 4)])), [Rule::Regress]);
    let second = held(2, 2);
    assert_eq!(broken(&after(reset().into_iter().chain([assigned(second, 0)]))), []);
    let lower = after([sent(2, held(1, 1), 4), taken(2)]);
    assert_eq!(broken(&lower), [Rule::Regress]);
}

#[test]
fn a_commit_that_the_next_owner_did_not_see_is_found_also_when_its_answer_comes_later() {
    let (first, second) = (held(1, 1), held(2, 2));
    let events = after([sent(2, first, 8), assigned(second, 5), taken(2)]);
    assert_eq!(broken(&events), [Rule::Regress]);
    let events = after([sent(2, first, 8), assigned(second, 8), taken(2)]);
    assert_eq!(broken(&events), []);
}

#[test]
fn nobody_commits_after_a_later_generation_was_told() {
    let (first, second) = (held(1, 1), held(2, 2));
    let events = after([assigned(second, 5), sent(2, first, 5), taken(2)]);
    assert_eq!(broken(&events), [Rule::Zombie]);
    let events = after([sent(2, first, 5), assigned(second, 5), taken(2)]);
    assert_eq!(broken(&events), []);
}

#[test]
fn one_has_a_partition_at_a_time_and_is_asked_before_it_loses_it() {
    let (first, second) = (held(1, 1), held(2, 1));
    assert_eq!(broken(&after([assigned(second, 5)])), [Rule::TwoOwners]);
    let lost = What::Lost { held: first, is_moved: true };
    assert_eq!(broken(&after([lost.clone()])), [Rule::Unasked]);
    assert_eq!(broken(&after([What::Revoked(first), lost])), []);
    let is_reset = What::Lost { held: first, is_moved: false };
    assert_eq!(broken(&after([is_reset])), []);
}

#[test]
fn a_partition_finds_an_owner_soon_after_the_last_fault() {
    let wait = |n| (0..n).map(|id| What::CommitRefused { id });
    let waiting = |n, fault: Option<What>, m| {
        let gone = [What::Gone { member: 1 }].into_iter().chain(wait(n));
        after(gone.chain(fault).chain(wait(m)).chain([assigned(held(2, 2), 5)]))
    };
    assert_eq!(broken(&waiting(8, None, 0)), []);
    assert_eq!(broken(&waiting(12, None, 0)), [Rule::Orphan]);
    let events = waiting(6, Some(What::Fault("it stops".into())), 6);
    let verdict = judged(&events, &[]);
    assert!(verdict.breaches.is_empty(), "{verdict}");
    assert!(verdict.free_max > RULES.orphan_max && verdict.orphan_max < RULES.orphan_max);
    let gone = [What::Gone { member: 1 }].into_iter();
    assert_eq!(broken(&after(gone.chain(wait(12)))), [Rule::Orphan], "also if none ever comes");
    let all_gone = [What::Gone { member: 1 }, What::Gone { member: 2 }].into_iter();
    assert_eq!(broken(&after(all_gone.chain(wait(12)))), [], "without members there is none");
}

#[test]
fn nothing_is_committed_that_was_not_delivered_since_the_reset() {
    let first = held(1, 1);
    assert_eq!(broken(&after([sent(2, first, 10), taken(2)])), []);
    assert_eq!(broken(&after([sent(2, first, 11), taken(2)])), [Rule::GroupSkip]);
    let second = held(2, 3);
    let rest = |from| [assigned(second, from), delivered(second, from, 9), sent(2, second, 9)];
    let again = |from| after(reset().into_iter().chain(rest(from)).chain([taken(2)]));
    assert_eq!(broken(&again(0)), []);
    assert_eq!(broken(&again(5)), [Rule::GroupSkip]);
    let [call, answer] = reset();
    let between = [call, sent(2, first, 10), answer, taken(2)];
    assert_eq!(broken(&after(between)), [], "it may have been before the reset");
}

#[test]
fn a_member_goes_on_where_it_was_only_if_nobody_had_the_partition() {
    let (other, back) = (held(2, 2), held(3, 4));
    let away = || [What::Gone { member: 1 }, joined(3)];
    let events = after(away().into_iter().chain([resumed(back, 10, 1)]));
    assert_eq!(broken(&events), []);
    let events = after([assigned(other, 5), joined(3), resumed(back, 10, 1)]);
    assert_eq!(broken(&events), [Rule::WrongResume]);
    let events = after(reset().into_iter().chain(away()).chain([resumed(back, 10, 1)]));
    assert_eq!(broken(&events), [Rule::WrongResume]);
    let events = after(away().into_iter().chain(reset()).chain([resumed(back, 10, 1)]));
    assert_eq!(broken(&events), [], "the reset may have come after it");
}

#[test]
fn at_the_end_everything_was_delivered_and_committed() {
    let at = |committed, high_watermark| [Last { partition: 0, committed, high_watermark }];
    let broken = |last: [Last; 1]| judged(&opening(), &last).broken();
    assert_eq!(broken(at(10, 10)), []);
    assert_eq!(broken(at(9, 10)), [Rule::NotDrained]);
    assert_eq!(broken(at(12, 12)), [Rule::Undelivered]);
}
