//! Offsets of groups: committed, fetched, reset, kept.

use std::time::Duration;

use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::group_place::Place;
use quipu::proto::client::{
    CommitOffsetsRequest, CreateGroupRequest, ErrorReason, FetchOffsetsRequest, GroupOffset,
    GroupPlace, LostReason, OffsetCommit, ResetOffsetsRequest, TopicPartitions,
    offset_commit_outcome::Outcome,
};

use super::member::{GROUP, Groups, Member, TOPIC, group, outcome, reason};
use super::setup::{create_topic, groups, produce};
use quipu::partition::{Command, GroupId, ResetOffsets};

use crate::support::{Cluster, wait_for};

async fn fetch(client: &mut Groups) -> Vec<GroupOffset> {
    let request = FetchOffsetsRequest { group: GROUP.into(), topics: vec![] };
    client.fetch_offsets(request).await.unwrap().into_inner().offsets
}

fn of_a_stranger(partition: u32, next_offset: u64) -> CommitOffsetsRequest {
    let (topic, metadata) = (TOPIC.to_owned(), "m".to_owned());
    let offset = OffsetCommit { topic, partition, next_offset, metadata, ..Default::default() };
    CommitOffsetsRequest { group: GROUP.into(), offsets: vec![offset], ..Default::default() }
}

async fn commit(client: &mut Groups, request: CommitOffsetsRequest) -> Result<u64, ErrorReason> {
    let done = client.commit_offsets(request).await.unwrap().into_inner();
    match done.outcomes[0].outcome.clone().unwrap() {
        Outcome::NextOffset(offset) => Ok(offset),
        Outcome::Error(error) => Err(error.reason()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_and_lag_are_the_same_through_any_node_and_outlive_their_leaders() {
    let mut cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, 3).await;
    for partition in 0..3 {
        produce(&cluster, partition, 10).await;
    }
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let fresh = fetch(&mut groups(&cluster, 1).await).await;
    assert!(fresh.iter().all(|o| !o.is_committed && o.lag == 10 && o.lag_ms >= 20), "{fresh:?}");
    for partition in 0..3 {
        let mut client = groups(&cluster, partition).await;
        let offset = partition as u64 + 3;
        assert_eq!(commit(&mut client, of_a_stranger(partition as u32, offset)).await, Ok(offset));
    }
    for stopped in 0..3 {
        cluster.stop(stopped).await;
        let found = wait_for("all leaders", async || {
            let found = fetch(&mut groups(&cluster, (stopped + 1) % 3).await).await;
            found.iter().all(|offset| offset.error.is_none()).then_some(found)
        })
        .await;
        for (partition, offset) in found.iter().enumerate() {
            assert_eq!(offset.next_offset, partition as u64 + 3, "{offset:?}");
            assert!(offset.is_committed && offset.metadata == "m", "{offset:?}");
            assert_eq!(offset.lag, 10 - offset.next_offset);
        }
        cluster.restart(stopped).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_make_no_sense_are_refused_each_for_its_reason() {
    let cluster = Cluster::start(1).await;
    create_topic(&cluster, TOPIC, 2).await;
    produce(&cluster, 0, 10).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let mut client = groups(&cluster, 0).await;
    assert_eq!(commit(&mut client, of_a_stranger(0, 5)).await, Ok(5));
    assert_eq!(commit(&mut client, of_a_stranger(0, 5)).await, Ok(5), "once more is no harm");
    let refused = commit(&mut client, of_a_stranger(0, 4)).await;
    assert_eq!(refused, Err(ErrorReason::OffsetRegressed));
    let refused = commit(&mut client, of_a_stranger(0, 11)).await;
    assert_eq!(refused, Err(ErrorReason::OffsetOutOfRange));
    let refused = commit(&mut client, of_a_stranger(7, 0)).await;
    assert_eq!(refused, Err(ErrorReason::UnknownPartition));
    let mut long = of_a_stranger(0, 5);
    long.offsets[0].metadata = "x".repeat(4097);
    assert_eq!(commit(&mut client, long).await, Err(ErrorReason::InvalidField));
    let mut stale = of_a_stranger(0, 5);
    stale.offsets[0].topic_id = uuid::Uuid::new_v4().to_string();
    assert_eq!(commit(&mut client, stale).await, Err(ErrorReason::UnknownTopicId));

    let mut member = Member::join(&cluster, 0).await;
    member.until_assigned(2).await;
    assert_eq!(commit(&mut client, of_a_stranger(0, 6)).await, Err(ErrorReason::NotOwner));
    let mut future = of_a_stranger(0, 6);
    future.member_id = member.joined.member_id.clone();
    future.offsets[0].generation = u64::MAX;
    assert_eq!(commit(&mut client, future.clone()).await, Err(ErrorReason::InvalidField));
    future.offsets[0].generation = 0;
    assert_eq!(commit(&mut client, future).await, Ok(6), "its own generation is looked up");
    let mut nobody = of_a_stranger(0, 6);
    nobody.member_id = "me".into();
    let refused = client.commit_offsets(nobody).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_FIELD");
    let mut many = of_a_stranger(0, 6);
    many.offsets = vec![many.offsets[0].clone(); 1001];
    let refused = client.commit_offsets(many).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_FIELD");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_moves_positions_also_under_members_and_a_dry_run_moves_nothing() {
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, 2).await;
    produce(&cluster, 0, 10).await;
    produce(&cluster, 1, 10).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let mut member = Member::join(&cluster, 0).await;
    member.until_assigned(2).await;
    member.until_read(10).await;
    let (zero, one) = (member.number_of(0), member.number_of(1));
    for done in member.commit(&[(zero, 10), (one, 10)]).await {
        assert_eq!(outcome(&done), Ok(10));
    }
    let reset = |dry_run| ResetOffsetsRequest {
        group: GROUP.into(),
        topics: vec![TopicPartitions { topic: TOPIC.into(), partitions: vec![0] }],
        to: Some(GroupPlace { place: Some(Place::Offset(4)) }),
        dry_run,
    };
    let mut client = groups(&cluster, 2).await;
    for dry_run in [true, false] {
        let done = client.reset_offsets(reset(dry_run)).await.unwrap().into_inner();
        assert_eq!(done.resets.len(), 1);
        assert_eq!((done.resets[0].before, done.resets[0].after), (10, 4), "{done:?}");
        let now = fetch(&mut client).await;
        assert_eq!(now[0].next_offset, if dry_run { 10 } else { 4 });
    }
    let lost = member
        .until(|_, told| match told {
            Tell::Lost(lost) => Some((lost.assignments.clone(), lost.reason())),
            _ => None,
        })
        .await;
    assert_eq!(lost, (vec![zero], LostReason::Reset));
    member.until_assigned(2).await;
    let again = member.number_of(0);
    assert_eq!(member.assigned[&again].next_offset, 4);
    member.until_read(10).await;
    assert_eq!(outcome(&member.commit(&[(again, 5)]).await[0]), Ok(5));
    let beyond = ResetOffsetsRequest {
        to: Some(GroupPlace { place: Some(Place::Offset(99)) }),
        ..reset(false)
    };
    let refused = client.reset_offsets(beyond).await.unwrap().into_inner();
    let error = refused.resets[0].error.clone().unwrap();
    assert_eq!(error.reason(), ErrorReason::OffsetOutOfRange);
    assert_eq!(fetch(&mut client).await[0].next_offset, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_starts_where_it_was_told_to() {
    let cluster = Cluster::start(1).await;
    create_topic(&cluster, TOPIC, 1).await;
    produce(&cluster, 0, 10).await;
    let mut client = groups(&cluster, 0).await;
    let place = |place| Some(GroupPlace { place: Some(place) });
    let starts = [
        (Place::Earliest(true), 0),
        (Place::Latest(true), 10),
        (Place::Offset(3), 3),
        (Place::TimeMs(0), 0),
        (Place::TimeMs(i64::MAX), 10),
        (Place::Group("2".into()), 3),
    ];
    for (n, (start, expected)) in starts.into_iter().enumerate() {
        let request = CreateGroupRequest { name: n.to_string(), start: place(start), ..group() };
        client.create_group(request).await.unwrap();
        let request = FetchOffsetsRequest { group: n.to_string(), topics: vec![] };
        let found = client.fetch_offsets(request).await.unwrap().into_inner();
        assert_eq!(found.offsets[0].next_offset, expected, "group {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_ended_halfway_is_noticed_at_the_next_commit() {
    let cluster = Cluster::start(1).await;
    create_topic(&cluster, TOPIC, 1).await;
    produce(&cluster, 0, 10).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let mut member = Member::join(&cluster, 0).await;
    member.until_assigned(1).await;
    let number = member.number_of(0);
    // What a reset does first, and nothing of what it does then.
    let node = cluster.server(0).node().clone();
    let state = node.state();
    let id = state.groups().named(GROUP).unwrap().id.uuid();
    let reset = ResetOffsets { group: GroupId::try_new(id.as_bytes()).unwrap(), offset: 3 };
    let log = state.topic_named(TOPIC).unwrap().log_id(0);
    node.replica(log).unwrap().command(Command::ResetOffsets(reset)).await.unwrap();

    let refused = outcome(&member.commit(&[(number, 10)]).await[0]);
    assert_eq!(refused, Err(ErrorReason::IllegalGeneration));
    // That it is lost may have been said before the refusal.
    let has_another = |member: &Member| member.assigned.keys().any(|held| *held != number);
    if !has_another(&member) {
        member.until(|member, _| has_another(member).then_some(())).await;
    }
    let again = member.number_of(0);
    assert_eq!(member.assigned[&again].next_offset, 3);
    assert_eq!(outcome(&member.commit(&[(again, 4)]).await[0]), Ok(4));
}
