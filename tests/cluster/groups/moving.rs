//! Partitions on their way from one member to another.

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::{
    AssignmentCommit, CommitOffsetsRequest, ConsumeCommit, ConsumeJoin, ConsumeLeave, ErrorReason,
    LostReason, OffsetCommit, offset_commit_outcome::Outcome,
};

use super::member::{GROUP, Member, TOPIC, a_moment, group, outcome, reason};
use super::setup::{create_topic, groups, produce};
use crate::support::Cluster;

async fn cluster_of(nodes: u64, partitions: u32) -> Cluster {
    let cluster = Cluster::start(nodes).await;
    create_topic(&cluster, TOPIC, partitions).await;
    for partition in 0..partitions {
        produce(&cluster, partition, 10).await;
    }
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_after_it_was_let_go_of_and_goes_on_where_that_one_was() {
    let cluster = cluster_of(3, 4).await;
    let mut first = Member::join(&cluster, 0).await;
    first.until_assigned(4).await;
    first.until_read(10).await;
    let mut second = Member::join(&cluster, 1).await;
    let revoked = first.until_revoked().await;
    assert_eq!(revoked.len(), 2, "only what moves is asked for");
    a_moment().await;
    assert!(second.assigned.is_empty());
    let commits: Vec<_> = revoked.iter().map(|number| (*number, 6)).collect();
    let done = first.commit(&commits).await;
    assert!(done.iter().all(|done| outcome(done) == Ok(6)), "{done:?}");
    first.release(revoked.clone()).await;
    second.until_assigned(2).await;
    assert!(second.assigned.values().all(|assigned| assigned.next_offset == 6));
    let late = first.commit(&commits).await;
    assert!(late.iter().all(|late| outcome(late) == Err(ErrorReason::NotOwner)), "{late:?}");
    let kept: Vec<_> = first.assigned.keys().map(|number| (*number, 10)).collect();
    let done = first.commit(&kept).await;
    assert!(done.iter().all(|done| outcome(done) == Ok(10)), "the others go on: {done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_just_before_letting_go_counts() {
    let cluster = cluster_of(3, 2).await;
    let mut first = Member::join(&cluster, 0).await;
    first.until_assigned(2).await;
    first.until_read(10).await;
    let mut second = Member::join(&cluster, 1).await;
    let revoked = first.until_revoked().await;
    // No answer is waited for.
    for request_id in 100..110 {
        let (assignment, next_offset) = (revoked[0], request_id - 99);
        let offset = AssignmentCommit { assignment, next_offset, ..AssignmentCommit::default() };
        first.say(Told::Commit(ConsumeCommit { request_id, offsets: vec![offset] })).await;
    }
    first.release(revoked).await;
    second.until_assigned(1).await;
    assert_eq!(second.assigned.values().next().unwrap().next_offset, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_that_was_passed_over_commits_is_refused() {
    let cluster = cluster_of(3, 1).await;
    let mut first = Member::join(&cluster, 0).await;
    first.until_assigned(1).await;
    let had = first.assigned.values().next().unwrap().clone();
    let leave = first;
    // It goes without a word, and its partition to the next one.
    let zombie = leave.joined.member_id.clone();
    drop(leave);
    let mut second = Member::join(&cluster, 1).await;
    second.until_assigned(1).await;
    let offset = OffsetCommit {
        topic: TOPIC.into(),
        partition: 0,
        next_offset: 9,
        generation: had.generation,
        ..OffsetCommit::default()
    };
    let offsets = vec![offset];
    let late = CommitOffsetsRequest { group: GROUP.into(), member_id: zombie, offsets };
    let late = groups(&cluster, 2).await.commit_offsets(late).await.unwrap().into_inner();
    let Some(Outcome::Error(error)) = &late.outcomes[0].outcome else { panic!("{late:?}") };
    assert_eq!(error.reason(), ErrorReason::IllegalGeneration);
    let number = second.number_of(0);
    assert_eq!(outcome(&second.commit(&[(number, 1)]).await[0]), Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_let_go_loses_the_partition_after_its_session() {
    let cluster = cluster_of(1, 2).await;
    let mut first = Member::join(&cluster, 0).await;
    first.until_assigned(2).await;
    let mut second = Member::join(&cluster, 0).await;
    let revoked = first.until_revoked().await;
    second.until_assigned(1).await;
    let (lost, why) = first
        .until(|_, told| match told {
            Tell::Lost(lost) => Some((lost.assignments.clone(), lost.reason())),
            _ => None,
        })
        .await;
    assert_eq!((lost, why), (revoked, LostReason::Timeout));
    assert_eq!(first.assigned.len(), 1, "it keeps the other one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_member_is_out_and_one_that_leaves_is_so_at_once() {
    let cluster = cluster_of(1, 2).await;
    let mut first = Member::join(&cluster, 0).await;
    first.until_assigned(2).await;
    first.be_silent();
    let ended = loop {
        match first.told().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it is not told why"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "UNKNOWN_MEMBER");
    let refused = Member::join_as(&cluster, 0, first.again()).await.err().unwrap();
    assert_eq!(reason(&refused), "UNKNOWN_MEMBER");

    let mut second = Member::join(&cluster, 0).await;
    second.until_assigned(2).await;
    second.say(Told::Leave(ConsumeLeave {})).await;
    while second.told().await.unwrap().is_some() {}
    let mut third = Member::join(&cluster, 0).await;
    third.until_assigned(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_goes_on_through_another_node_exactly_where_it_was() {
    let mut cluster = cluster_of(3, 2).await;
    let mut member = Member::join(&cluster, 1).await;
    member.until_assigned(2).await;
    member.until_read(10).await;
    let again = member.again();
    cluster.stop(1).await;
    let away = loop {
        match member.told().await {
            Ok(Some(Tell::GoAway(away))) => break away,
            Ok(Some(_)) => {}
            other => panic!("a node that stops says where to go: {other:?}"),
        }
    };
    assert_eq!(away.error.unwrap().reason(), ErrorReason::Draining);
    let mut member = Member::join_as(&cluster, 2, again.clone()).await.unwrap();
    member.until_assigned(2).await;
    let resumed = |m: &Member| m.assigned.values().all(|a| a.is_resumed && a.next_offset == 10);
    assert!(
        resumed(&member),
        "nothing was committed, and nothing comes twice: {:?}",
        member.assigned
    );
    // What it had before is not what it has now: another one could have had it in between.
    let mut member = Member::join_as(&cluster, 0, again).await.unwrap();
    member.until_assigned(2).await;
    assert!(member.assigned.values().all(|a| !a.is_resumed && a.next_offset == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_keeps_its_partitions_and_whoever_takes_its_name_takes_its_place() {
    let cluster = cluster_of(1, 2).await;
    let named = || ConsumeJoin { instance: "i".into(), ..ConsumeJoin::default() };
    let mut first = Member::join_as(&cluster, 0, named()).await.unwrap();
    first.until_assigned(2).await;
    let mut other = Member::join(&cluster, 0).await;
    let revoked = first.until_revoked().await;
    first.release(revoked).await;
    other.until_assigned(1).await;
    let kept = first.assigned.values().next().unwrap().partition;
    let mut second = Member::join_as(&cluster, 0, named()).await.unwrap();
    second.until_assigned(1).await;
    assert_eq!(second.assigned.values().next().unwrap().partition, kept);
    let ended = loop {
        match first.told().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it is not told why"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "FENCED_INSTANCE");
    let again = ConsumeJoin { instance: "i".into(), ..first.again() };
    let refused = Member::join_as(&cluster, 0, again).await.err().unwrap();
    assert_eq!(reason(&refused), "FENCED_INSTANCE");
}
