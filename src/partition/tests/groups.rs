//! The rules about group progress, one test for each.

use super::*;
use crate::partition::{FenceGeneration, GROUPS_MAX, ResetOffsets};

/// A replica with 100 records.
fn with_records() -> Replica {
    let mut replica = Replica::new();
    replica.store(Submission { producer_id: 0, ..batch(0, 100) });
    replica
}

/// A replica with 100 records and group "g" in generation 3.
fn with_group() -> Replica {
    let mut replica = with_records();
    replica.command(&fence(3, 0)).unwrap();
    replica
}

fn fence(generation: u64, expire_after_idle_ms: u64) -> Command {
    let group = group("g");
    let start = 5;
    Command::FenceGeneration(FenceGeneration { group, generation, expire_after_idle_ms, start })
}

fn reset(offset: u64) -> Command {
    Command::ResetOffsets(ResetOffsets { group: group("g"), offset })
}

fn position(replica: &Replica) -> Option<u64> {
    let group = replica.state.progress().get(&group("g"))?;
    group.position.as_ref().map(|position| position.offset)
}

#[test]
fn a_commit_sets_the_position() {
    let mut replica = with_group();
    let committed = Reply::OffsetCommitted { offset: 40, generation: 3 };
    assert_eq!(replica.command(&commit(3, 40)), Ok(committed));
    let group = replica.state.progress().get(&group("g")).unwrap();
    let position = group.position.as_ref().unwrap();
    assert_eq!((position.offset, position.leader_epoch), (40, 1));
    assert_eq!((position.member.as_u128(), position.metadata.as_str()), (5, "m"));
}

#[test]
fn a_commit_of_an_older_generation_is_refused() {
    let mut replica = with_group();
    let illegal = Err(Refusal::IllegalGeneration { current: 3 });
    assert_eq!(replica.command(&commit(2, 40)), illegal);
    assert_eq!(position(&replica), Some(5));
    assert_eq!(replica.command(&fence(2, 0)), illegal);
}

#[test]
fn a_fence_says_where_the_group_stands_and_who_was_fenced() {
    let mut replica = with_records();
    let fenced =
        |generation, previous, offset| Ok(Reply::GenerationFenced { generation, previous, offset });
    assert_eq!(replica.command(&fence(3, 0)), fenced(3, 0, 5), "it starts where it is told");
    replica.command(&commit(3, 40)).unwrap();
    assert_eq!(replica.command(&fence(4, 0)), fenced(4, 3, 40), "and goes on where it was");
    replica.command(&reset(10)).unwrap();
    assert_eq!(replica.command(&fence(6, 0)), fenced(6, 5, 10), "a reset fences, too");
}

#[test]
fn a_group_never_starts_beyond_the_end() {
    let mut replica = Replica::new();
    let fenced = Reply::GenerationFenced { generation: 1, previous: 0, offset: 0 };
    assert_eq!(replica.command(&fence(1, 0)), Ok(fenced));
}

#[test]
fn a_commit_of_a_newer_generation_fences_the_older() {
    let mut replica = with_group();
    replica.command(&commit(5, 10)).unwrap();
    let illegal = Err(Refusal::IllegalGeneration { current: 5 });
    assert_eq!(replica.command(&commit(4, 50)), illegal);
    assert_eq!(position(&replica), Some(10));
}

#[test]
fn a_fence_stops_members_of_older_generations_before_anything_is_committed() {
    let mut replica = with_group();
    replica.command(&commit(3, 10)).unwrap();
    replica.command(&fence(4, 0)).unwrap();
    let illegal = Err(Refusal::IllegalGeneration { current: 4 });
    assert_eq!(replica.command(&commit(3, 20)), illegal);
    assert_eq!(position(&replica), Some(10));
}

#[test]
fn a_commit_never_goes_back() {
    let mut replica = with_group();
    replica.command(&commit(3, 40)).unwrap();
    let regressed = Err(Refusal::OffsetRegressed { committed: 40 });
    assert_eq!(replica.command(&commit(3, 39)), regressed);
    assert_eq!(replica.command(&commit(9, 39)), regressed, "in a newer generation either");
    assert_eq!(replica.state.progress().get(&group("g")).unwrap().generation, 3);
    assert!(replica.command(&commit(3, 40)).is_ok(), "the same again");
}

#[test]
fn a_commit_beyond_the_log_end_is_refused() {
    let mut replica = with_group();
    let beyond = Err(Refusal::OffsetBeyondEnd { log_end: 100 });
    assert_eq!(replica.command(&commit(3, 101)), beyond);
    assert_eq!(replica.command(&reset(101)), beyond);
    assert!(replica.command(&commit(3, 100)).is_ok());
}

#[test]
fn a_reset_goes_back_and_fences_all_members() {
    let mut replica = with_group();
    replica.command(&commit(3, 40)).unwrap();
    let done = Reply::OffsetsReset { offset: 5, generation: 4 };
    assert_eq!(replica.command(&reset(5)), Ok(done));
    let illegal = Err(Refusal::IllegalGeneration { current: 4 });
    assert_eq!(replica.command(&commit(3, 41)), illegal);
    assert_eq!(position(&replica), Some(5));
    assert!(replica.command(&commit(4, 6)).is_ok());
}

#[test]
fn generations_end() {
    let mut replica = with_group();
    replica.command(&fence(u64::MAX, 0)).unwrap();
    assert_eq!(replica.command(&reset(1)), Err(Refusal::GenerationExhausted));
}

#[test]
fn a_late_commit_does_not_bring_a_deleted_group_back() {
    let mut replica = with_group();
    replica.command(&commit(3, 40)).unwrap();
    let delete = Command::DeleteGroup(group("g"));
    assert_eq!(replica.command(&delete), Ok(Reply::GroupDeleted { generation: 3 }));
    assert_eq!(replica.command(&commit(3, 41)), Err(Refusal::UnknownGroup));
    assert_eq!(replica.command(&delete), Err(Refusal::UnknownGroup));
    replica.command(&fence(1, 0)).unwrap();
    assert_eq!(position(&replica), Some(5), "a new group has no old position");
}

#[test]
fn a_group_stays_for_ever_unless_it_says_otherwise() {
    let mut replica = with_group();
    replica.command(&commit(3, 40)).unwrap();
    replica.now_ms = i64::MAX;
    replica.append(Kind::NoOp, "");
    assert_eq!(position(&replica), Some(40));
}

#[test]
fn a_group_that_says_so_expires_by_the_time_of_the_log() {
    let mut replica = with_records();
    replica.command(&fence(1, 1_000)).unwrap();
    replica.now_ms += 999;
    replica.command(&commit(1, 40)).unwrap();
    replica.now_ms += 999;
    replica.append(Kind::NoOp, "");
    assert_eq!(position(&replica), Some(40), "the commit kept it");
    replica.now_ms += 1;
    replica.append(Kind::NoOp, "");
    assert_eq!(replica.state.progress().get(&group("g")), None);
}

#[test]
fn a_refused_commit_does_not_keep_a_group() {
    let mut replica = with_records();
    replica.command(&fence(5, 1_000)).unwrap();
    replica.now_ms += 999;
    replica.command(&commit(4, 40)).unwrap_err();
    replica.now_ms += 1;
    replica.append(Kind::NoOp, "");
    assert_eq!(replica.state.progress().get(&group("g")), None);
}

#[test]
fn a_group_can_be_told_to_stay() {
    let mut replica = with_records();
    replica.command(&fence(1, 1_000)).unwrap();
    replica.command(&fence(1, 0)).unwrap();
    replica.now_ms += 5_000;
    replica.append(Kind::NoOp, "");
    assert!(replica.state.progress().get(&group("g")).is_some());
}

#[test]
fn one_group_too_many_is_refused_and_none_is_pushed_out() {
    let mut replica = Replica::new();
    let named = |n: usize| {
        let group = group(&format!("group-{n}"));
        Command::ResetOffsets(ResetOffsets { group, offset: 0 })
    };
    for n in 0..GROUPS_MAX {
        replica.command(&named(n)).unwrap();
    }
    let too_many = Err(Refusal::TooManyGroups { max: GROUPS_MAX });
    assert_eq!(replica.command(&named(GROUPS_MAX)), too_many);
    assert!(replica.command(&named(0)).is_ok());
    assert_eq!(replica.state.progress().iter().count(), GROUPS_MAX);
    let bytes = replica.state.checkpoint();
    assert_eq!(State::from_checkpoint(&bytes), Ok(replica.state), "{} bytes", bytes.len());
}

#[test]
fn retention_sees_the_lowest_position() {
    let mut replica = with_records();
    assert_eq!(replica.state.progress().lowest_position(7), None);
    replica.command(&reset(40)).unwrap();
    assert_eq!(replica.state.progress().lowest_position(7), Some(40));
    let other = ResetOffsets { group: group("h"), offset: 30 };
    replica.command(&Command::ResetOffsets(other)).unwrap();
    assert_eq!(replica.state.progress().lowest_position(7), Some(30));
}
