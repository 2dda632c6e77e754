//! The consumer of a group under faults: partitions come and go, streams break, and only what was
//! finished is committed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quipu::client::{
    Commit, Error, ErrorReason, GroupConsumer, GroupConsumerConfig, GroupEvent, LostReason,
    Rebalance, Record, TopicPartition,
};
use quipu::proto::client as api;
use quipu::proto::client::consume_request::Message as Asked;
use quipu::proto::client::consume_response::Message as Told;
use tokio::time::timeout;

use crate::fake::TOPIC;
use crate::groups::{GROUP, Session, Stage, assignment, joined};

const PATIENCE: Duration = Duration::from_secs(10);

fn manual() -> GroupConsumerConfig {
    GroupConsumerConfig { commit: Commit::Manual, ..GroupConsumerConfig::new(GROUP) }
}

fn auto() -> GroupConsumerConfig {
    let commit = Commit::Auto(Duration::from_millis(20));
    GroupConsumerConfig { commit, ..GroupConsumerConfig::new(GROUP) }
}

fn partition(partition: u32) -> TopicPartition {
    TopicPartition { topic: TOPIC.into(), partition }
}

async fn next(consumer: &mut GroupConsumer) -> GroupEvent {
    timeout(PATIENCE, consumer.next()).await.expect("an event comes").unwrap()
}

async fn next_record(consumer: &mut GroupConsumer) -> Record {
    match next(consumer).await {
        GroupEvent::Record(record) => record,
        other => panic!("{other:?} came instead of a record"),
    }
}

/// Where partitions begin that are assigned.
async fn next_assigned(consumer: &mut GroupConsumer) -> Vec<(u32, u64)> {
    match next(consumer).await {
        GroupEvent::Assigned(assigned) => {
            assigned.iter().map(|assigned| (assigned.partition, assigned.next_offset)).collect()
        }
        other => panic!("{other:?} came instead of partitions"),
    }
}

async fn next_lost(consumer: &mut GroupConsumer) -> (Vec<TopicPartition>, LostReason) {
    match next(consumer).await {
        GroupEvent::Lost(lost) => (lost.partitions, lost.reason),
        other => panic!("{other:?} came instead of a loss"),
    }
}

async fn expect_nothing(consumer: &mut GroupConsumer) {
    if let Ok(event) = timeout(Duration::from_millis(300), consumer.next()).await {
        panic!("{event:?} came");
    }
}

/// A member that has partition 0 from offset 0 on.
async fn member(stage: &mut Stage, config: GroupConsumerConfig) -> (GroupConsumer, Session) {
    let mut consumer = stage.consumer(config);
    let assigned = async {
        let session = stage.session().await;
        session.join(vec![assignment(1, 0, 0)]).await;
        session
    };
    let (event, session) = tokio::join!(next_assigned(&mut consumer), assigned);
    assert_eq!(event, [(0, 0)]);
    (consumer, session)
}

/// Where the member said that it was when it joined.
fn positions(session: &Session) -> Vec<(u32, u64, u64)> {
    let position = |at: &api::ResumePosition| (at.partition, at.generation, at.next_offset);
    session.join.positions.iter().map(position).collect()
}

fn resumed(number: u64, partition: u32, next_offset: u64) -> api::Assignment {
    api::Assignment { is_resumed: true, ..assignment(number, partition, next_offset) }
}

#[tokio::test]
async fn only_what_is_finished_is_committed_automatically() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, auto()).await;
    session.send(1, 0..3).await;
    let record = next_record(&mut consumer).await;
    assert_eq!((&*record.topic, record.offset, record.leader_epoch), (TOPIC, 0, 3));
    session.hear_nothing().await;
    next_record(&mut consumer).await;
    let commit = session.hear_commit().await;
    let [offset] = commit.offsets.as_slice() else { panic!("{commit:?}") };
    assert_eq!((offset.assignment, offset.next_offset, offset.leader_epoch), (1, 1, 3));
    session.answer(&commit, &[]).await;
    session.hear_nothing().await;
    consumer.mark_done();
    assert_eq!(session.take_commit().await, (1, 2));
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_was_through_another_node() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    session.send(1, 0..10).await;
    session.send(1, 10..20).await;
    for offset in 0..3 {
        assert_eq!(next_record(&mut consumer).await.offset, offset);
    }
    let node = session.node;
    session.fail(ErrorReason::NoLeader).await;
    let session = stage.session().await;
    assert_ne!(session.node, node);
    assert_eq!((session.join.member_id.as_str(), positions(&session)), ("m1", vec![(0, 1, 20)]));
    assert!(session.join.credit_bytes < 8 << 20, "what is kept was sent already");
    session.join(vec![resumed(7, 0, 20)]).await;
    session.send(7, 20..25).await;
    for offset in 3..25 {
        assert_eq!(next_record(&mut consumer).await.offset, offset);
    }
    expect_nothing(&mut consumer).await;
}

#[tokio::test]
async fn what_is_buffered_is_dropped_if_the_partition_was_elsewhere_meanwhile() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    session.send(1, 0..20).await;
    next_record(&mut consumer).await;
    session.fail(ErrorReason::NoLeader).await;
    let session = stage.session().await;
    session.join(vec![assignment(7, 0, 5)]).await;
    session.send(7, 5..7).await;
    // Some may have been handed out before the news came.
    let lost = loop {
        match next(&mut consumer).await {
            GroupEvent::Record(record) => assert!(record.offset < 20),
            GroupEvent::Lost(lost) => break lost,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((lost.partitions, lost.reason), (vec![partition(0)], LostReason::Moved));
    assert_eq!(next_assigned(&mut consumer).await, [(0, 5)]);
    assert_eq!(next_record(&mut consumer).await.offset, 5);
    assert_eq!(next_record(&mut consumer).await.offset, 6);
}

#[tokio::test]
async fn a_partition_that_does_not_come_back_is_lost() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    session.assign(vec![assignment(2, 1, 0)]).await;
    assert_eq!(next_assigned(&mut consumer).await, [(1, 0)]);
    session.fail(ErrorReason::NoLeader).await;
    let session = stage.session().await;
    assert_eq!(positions(&session), [(0, 1, 0), (1, 2, 0)]);
    let (session_timeout_ms, heartbeat_interval_ms) = (1500, 1000);
    let times = api::ConsumeJoined { session_timeout_ms, heartbeat_interval_ms, ..joined() };
    session.tell(Told::Joined(times)).await;
    session.assign(vec![resumed(9, 1, 0)]).await;
    assert_eq!(next_lost(&mut consumer).await, (vec![partition(0)], LostReason::Moved));
    assert_eq!(consumer.assignments(), [partition(1)]);
}

#[tokio::test]
async fn commits_are_answered_before_a_revoked_partition_is_released() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, manual()).await;
    session.send(1, 0..10).await;
    for _ in 0..4 {
        next_record(&mut consumer).await;
    }
    session.revoke(1, 60_000).await;
    let event = loop {
        // The revocation may be on its way.
        match next(&mut consumer).await {
            GroupEvent::Record(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            other => break other,
        }
    };
    assert!(matches!(&event, GroupEvent::Revoked(revoked) if revoked.partitions == [partition(0)]));
    let at = partition(0);
    let committing = consumer.commit_position(&at, 4, "by hand");
    let answered = async {
        let commit = session.hear_commit().await;
        assert_eq!((commit.offsets[0].next_offset, &*commit.offsets[0].metadata), (4, "by hand"));
        session.hear_nothing().await;
        session.answer(&commit, &[]).await;
        session
    };
    let (committed, mut session) = tokio::join!(committing, answered);
    committed.unwrap();
    session.hear_nothing().await;
    expect_nothing(&mut consumer).await;
    let heard = session.hear().await;
    assert!(matches!(&heard, Some(Asked::Released(r)) if r.assignments == [1]), "{heard:?}");
    assert_eq!(consumer.assignments(), []);
}

#[tokio::test]
async fn what_is_finished_is_committed_when_a_partition_is_revoked() {
    let mut stage = Stage::start().await;
    let commit = Commit::Auto(Duration::from_secs(3600));
    let config = GroupConsumerConfig { commit, ..auto() };
    let (mut consumer, mut session) = member(&mut stage, config).await;
    session.send(1, 0..2).await;
    next_record(&mut consumer).await;
    next_record(&mut consumer).await;
    session.revoke(1, 60_000).await;
    assert!(matches!(next(&mut consumer).await, GroupEvent::Revoked(_)));
    session.hear_nothing().await;
    expect_nothing(&mut consumer).await;
    let commit = session.hear_commit().await;
    assert_eq!(commit.offsets[0].next_offset, 2);
    session.hear_nothing().await;
    session.answer(&commit, &[]).await;
    assert!(matches!(session.hear().await, Some(Asked::Released(_))));
}

#[tokio::test]
async fn a_partition_is_let_go_of_in_time_whatever_the_application_does() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, manual()).await;
    session.send(1, 0..2).await;
    next_record(&mut consumer).await;
    let revoked = Instant::now();
    session.revoke(1, 1000).await;
    assert!(matches!(session.hear().await, Some(Asked::Released(_))));
    assert!(revoked.elapsed() >= Duration::from_millis(800), "{:?}", revoked.elapsed());
    let lost = (vec![partition(0)], LostReason::Timeout);
    assert_eq!(next_lost(&mut consumer).await, lost);
    let error = consumer.commit_position(&partition(0), 1, "").await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::NotOwner);
    expect_nothing(&mut consumer).await;
}

#[tokio::test]
async fn a_lost_partition_hands_out_nothing_more() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, auto()).await;
    session.send(1, 0..10).await;
    next_record(&mut consumer).await;
    let (assignments, reason) = (vec![1], LostReason::Reset.into());
    session.tell(Told::Lost(api::ConsumeLost { assignments, reason })).await;
    session.assign(vec![assignment(2, 0, 3)]).await;
    session.send(2, 3..4).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(next_lost(&mut consumer).await, (vec![partition(0)], LostReason::Reset));
    assert_eq!(next_assigned(&mut consumer).await, [(0, 3)]);
    assert_eq!(next_record(&mut consumer).await.offset, 3);
}

#[tokio::test]
async fn gaps_are_told_in_line() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, auto()).await;
    session.send(1, 0..1).await;
    let gap = api::ConsumeGap { assignment: 1, from_offset: 1, to_offset: 50 };
    session.tell(Told::Gap(gap)).await;
    session.send(1, 50..51).await;
    assert_eq!(next_record(&mut consumer).await.offset, 0);
    let event = next(&mut consumer).await;
    assert!(matches!(&event, GroupEvent::Gap(gap) if gap.to_offset == 50), "{event:?}");
    assert_eq!(next_record(&mut consumer).await.offset, 50);
    let mut committed = 0;
    while committed < 50 {
        committed = session.take_commit().await.1;
    }
    assert_eq!(committed, 50, "what is missed is done with");
}

#[tokio::test]
async fn a_node_that_stops_is_left_at_once_as_the_same_member() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    let error = Some(crate::fake::error(ErrorReason::Draining));
    session.tell(Told::GoAway(api::ConsumeGoAway { error })).await;
    let next = stage.session().await;
    assert_ne!(next.node, session.node);
    assert_eq!(next.join.member_id, "m1");
    next.join(vec![resumed(1, 0, 0)]).await;
    next.send(1, 0..1).await;
    assert_eq!(next_record(&mut consumer).await.offset, 0);
}

#[tokio::test]
async fn whose_name_was_taken_does_not_come_back() {
    let mut stage = Stage::start().await;
    let config = GroupConsumerConfig { instance: Some("till-1".into()), ..manual() };
    let (mut consumer, session) = member(&mut stage, config).await;
    assert_eq!(session.join.instance, "till-1");
    session.fail(ErrorReason::FencedInstance).await;
    assert_eq!(next_lost(&mut consumer).await.1, LostReason::Moved);
    for _ in 0..2 {
        let error = timeout(PATIENCE, consumer.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Fenced(_)), "{error}");
    }
    stage.no_session().await;
}

#[tokio::test]
async fn an_unknown_member_joins_as_a_new_one() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    session.fail(ErrorReason::UnknownMember).await;
    assert_eq!(next_lost(&mut consumer).await, (vec![partition(0)], LostReason::Moved));
    let session = stage.session().await;
    assert_eq!((session.join.member_id.as_str(), positions(&session)), ("", vec![]));
}

#[tokio::test]
async fn an_unknown_group_is_not_waited_for() {
    let mut stage = Stage::start().await;
    let mut consumer = stage.consumer(manual());
    let refused = async { stage.session().await.fail(ErrorReason::UnknownGroup).await };
    let (event, ()) = tokio::join!(consumer.next(), refused);
    let error = event.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    stage.no_session().await;
}

#[tokio::test]
async fn credit_comes_back_when_records_were_handed_out() {
    let mut stage = Stage::start().await;
    let config = GroupConsumerConfig { credit_bytes: 64 << 10, ..manual() };
    let (mut consumer, mut session) = member(&mut stage, config).await;
    assert_eq!(session.join.credit_bytes, 64 << 10);
    let costs = [session.send(1, 0..10).await, session.send(1, 10..20).await];
    for _ in 0..9 {
        next_record(&mut consumer).await;
    }
    session.hear_nothing().await;
    assert_eq!(session.credit_bytes, 0);
    next_record(&mut consumer).await;
    session.hear_nothing().await;
    assert_eq!(session.credit_bytes, costs[0]);
    session.revoke(1, 60_000).await;
    session.hear_nothing().await;
    assert_eq!(session.credit_bytes, costs.iter().sum::<u32>(), "what is dropped is free");
}

#[tokio::test]
async fn each_partition_has_the_outcome_of_its_own_commit() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, manual()).await;
    session.assign(vec![assignment(2, 1, 0)]).await;
    next_assigned(&mut consumer).await;
    session.send(1, 0..1).await;
    session.send(2, 0..1).await;
    let records = [next_record(&mut consumer).await, next_record(&mut consumer).await];
    let mut started = Vec::new();
    for record in &records {
        started.push(consumer.commit_async(record).await.unwrap());
    }
    let mut answered = 0;
    while answered < 2 {
        let commit = session.hear_commit().await;
        answered += commit.offsets.len();
        session.answer(&commit, &[(2, ErrorReason::IllegalGeneration)]).await;
    }
    let refused = started.pop().unwrap().await.unwrap_err();
    assert!(matches!(refused, Error::Precondition(_)), "{refused}");
    started.pop().unwrap().await.unwrap();
    let beyond = consumer.commit_position(&partition(0), 2, "").await.unwrap_err();
    assert!(matches!(beyond, Error::InvalidRequest(_)), "{beyond}");
}

#[tokio::test]
async fn a_commit_that_may_succeed_is_tried_again_and_over_the_next_stream() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, manual()).await;
    session.send(1, 0..1).await;
    let record = next_record(&mut consumer).await;
    let committing = consumer.commit_async(&record).await.unwrap();
    let commit = session.hear_commit().await;
    session.answer(&commit, &[(1, ErrorReason::NoLeader)]).await;
    let again = session.hear_commit().await;
    assert_eq!(again.offsets, commit.offsets);
    session.fail(ErrorReason::NoLeader).await;
    let mut session = stage.session().await;
    session.join(vec![resumed(9, 0, 1)]).await;
    assert_eq!(session.take_commit().await, (9, 1));
    committing.await.unwrap();
}

#[tokio::test]
async fn partitions_are_confirmed_one_by_one() {
    let mut stage = Stage::start().await;
    let (mut consumer, session) = member(&mut stage, manual()).await;
    session.assign(vec![assignment(2, 1, 0)]).await;
    assert_eq!(next_assigned(&mut consumer).await, [(1, 0)]);
    session.send(2, 0..1).await;
    session.send(1, 0..1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    session.fail(ErrorReason::NoLeader).await;
    let session = stage.session().await;
    session.join(vec![resumed(8, 0, 1)]).await;
    session.send(8, 1..2).await;
    session.assign(vec![resumed(9, 1, 1)]).await;
    session.send(9, 1..2).await;
    let mut handed = Vec::new();
    for _ in 0..4 {
        let record = next_record(&mut consumer).await;
        handed.push((record.partition, record.offset));
    }
    assert_eq!(handed, [(1, 0), (0, 0), (0, 1), (1, 1)]);
}

#[tokio::test]
async fn a_member_is_heard_of_and_leaves_a_server_that_is_not() {
    let mut stage = Stage::start().await;
    let mut consumer = stage.consumer(manual());
    let waiting = tokio::spawn(async move { consumer.next().await });
    let mut session = stage.session().await;
    let heartbeat_interval_ms = 200;
    session.tell(Told::Joined(api::ConsumeJoined { heartbeat_interval_ms, ..joined() })).await;
    session.assign(vec![]).await;
    let silent = Instant::now();
    assert_eq!(session.hear().await, None, "the member ends the stream");
    assert!(silent.elapsed() >= Duration::from_millis(400), "{:?}", silent.elapsed());
    assert!(session.heartbeats >= 1, "{} heartbeats", session.heartbeats);
    assert_eq!(stage.session().await.join.member_id, "m1");
    waiting.abort();
}

#[tokio::test]
async fn a_paused_partition_waits_and_others_do_not() {
    let mut stage = Stage::start().await;
    let (mut consumer, mut session) = member(&mut stage, manual()).await;
    session.assign(vec![assignment(2, 1, 0)]).await;
    next_assigned(&mut consumer).await;
    session.send(1, 0..2).await;
    next_record(&mut consumer).await;
    consumer.pause(&partition(0)).unwrap();
    let heard = session.hear().await;
    assert!(matches!(&heard, Some(Asked::Pause(pause)) if pause.assignments == [1]), "{heard:?}");
    session.send(2, 0..1).await;
    assert_eq!(next_record(&mut consumer).await.partition, 1);
    session.fail(ErrorReason::NoLeader).await;
    let mut session = stage.session().await;
    session.join(vec![resumed(5, 0, 2), resumed(6, 1, 1)]).await;
    let heard = session.hear().await;
    assert!(matches!(&heard, Some(Asked::Pause(pause)) if pause.assignments == [5]), "{heard:?}");
    expect_nothing(&mut consumer).await;
    consumer.resume(&partition(0)).unwrap();
    assert!(matches!(session.hear().await, Some(Asked::Resume(_))));
    let record = next_record(&mut consumer).await;
    assert_eq!((record.partition, record.offset), (0, 1));
}

#[tokio::test]
async fn whoever_closes_commits_and_leaves_unless_it_has_a_name() {
    for instance in [None, Some("till-1".to_owned())] {
        let mut stage = Stage::start().await;
        let commit = Commit::Auto(Duration::from_secs(3600));
        let config = GroupConsumerConfig { instance: instance.clone(), commit, ..auto() };
        let (mut consumer, mut session) = member(&mut stage, config).await;
        session.send(1, 0..3).await;
        next_record(&mut consumer).await;
        next_record(&mut consumer).await;
        let server = async {
            assert_eq!(session.take_commit().await, (1, 1), "the second is not finished");
            let last = session.hear().await;
            drop(session);
            last
        };
        let (closed, last) = tokio::join!(consumer.close(), server);
        closed.unwrap();
        assert_eq!(matches!(last, Some(Asked::Leave(_))), instance.is_none(), "{last:?}");
        stage.no_session().await;
    }
}

#[tokio::test]
async fn a_stuck_application_is_left_behind_and_comes_back_as_a_new_member() {
    let mut stage = Stage::start().await;
    let processing_timeout = Some(Duration::from_millis(300));
    let (mut consumer, mut session) =
        member(&mut stage, GroupConsumerConfig { processing_timeout, ..auto() }).await;
    session.send(1, 0..2).await;
    next_record(&mut consumer).await;
    assert_eq!(session.hear().await, Some(Asked::Leave(api::ConsumeLeave {})));
    drop(session);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(next_lost(&mut consumer).await, (vec![partition(0)], LostReason::Timeout));
    stage.no_session().await;
    let waiting = tokio::spawn(async move { consumer.next().await });
    assert_eq!(stage.session().await.join.member_id, "");
    waiting.abort();
}

#[tokio::test]
async fn a_callback_is_told_in_place_of_the_application_and_may_commit() {
    let mut stage = Stage::start().await;
    let mut consumer = stage.consumer(manual());
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    consumer.on_rebalance(move |rebalance| match rebalance {
        Rebalance::Assigned(assigned) => log.lock().unwrap().push(format!("+{}", assigned.len())),
        Rebalance::Revoked(revoking) => {
            let [at] = revoking.partitions() else { panic!("{revoking:?}") };
            revoking.commit(at, 1, "state").unwrap();
            log.lock().unwrap().push(format!("-{at}"));
        }
        Rebalance::Lost(lost) => log.lock().unwrap().push(format!("!{:?}", lost.reason)),
    });
    let waiting = tokio::spawn(async move {
        let record = next_record(&mut consumer).await;
        (record.offset, timeout(Duration::from_secs(2), consumer.next()).await.is_err())
    });
    let mut session = stage.session().await;
    session.join(vec![assignment(1, 0, 0)]).await;
    session.send(1, 0..1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    session.revoke(1, 60_000).await;
    assert_eq!(session.take_commit().await, (1, 1));
    assert!(matches!(session.hear().await, Some(Asked::Released(_))));
    assert_eq!(waiting.await.unwrap(), (0, true));
    assert_eq!(*told.lock().unwrap(), ["+1", "-orders/0"]);
}
