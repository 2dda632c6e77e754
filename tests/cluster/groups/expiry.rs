//! What goes by itself: records that all groups have read, groups that nobody uses, and what
//! partitions know of groups that are no more.

use std::time::{Duration, Instant};

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::topic_service_client::TopicServiceClient;
use quipu::proto::client::{
    CommitOffsetsRequest, ConsumeLeave, CreateGroupRequest, CreateTopicRequest, DeleteGroupRequest,
    DescribeGroupRequest, FetchOffsetsRequest, GroupOffset, OffsetCommit,
    offset_commit_outcome::Outcome,
};

use super::member::{GROUP, Groups, Member, TOPIC, group, reason};
use super::setup::{channel, create_topic, groups, produce, produce_through, producer};
use crate::support::{Cluster, wait_for};

const OTHER: &str = "h";

fn other() -> CreateGroupRequest {
    CreateGroupRequest { name: OTHER.to_owned(), ..group() }
}

async fn commit(client: &mut Groups, group: &str, partition: u32, next_offset: u64) {
    let offset =
        OffsetCommit { topic: TOPIC.to_owned(), partition, next_offset, ..Default::default() };
    let (group, offsets) = (group.to_owned(), vec![offset]);
    let request = CommitOffsetsRequest { group, offsets, ..CommitOffsetsRequest::default() };
    let done = client.commit_offsets(request).await.unwrap().into_inner();
    assert_eq!(done.outcomes[0].outcome, Some(Outcome::NextOffset(next_offset)));
}

async fn offset(client: &mut Groups) -> GroupOffset {
    let request = FetchOffsetsRequest { group: GROUP.to_owned(), topics: Vec::new() };
    client.fetch_offsets(request).await.unwrap().into_inner().offsets.remove(0)
}

async fn delete(client: &mut Groups, group: &str) {
    let request = DeleteGroupRequest { group: group.to_owned(), force: false };
    client.delete_group(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_stay_until_every_group_has_read_them_and_go_then() {
    let cluster = Cluster::start(3).await;
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replicas: 3,
        config: [("retention".to_owned(), "consumed".to_owned())].into(),
        ..CreateTopicRequest::default()
    };
    TopicServiceClient::new(channel(&cluster, 0).await).create_topic(request).await.unwrap();
    let mut client = groups(&cluster, 1).await;
    for made in [group(), other()] {
        client.create_group(made).await.unwrap();
    }
    // Four fill a segment.
    let mut producer = producer(&cluster, 0).await;
    for _ in 0..24 {
        produce_through(&mut producer, 0, &vec![7; 256 << 10]).await;
    }
    commit(&mut client, GROUP, 0, 24).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(offset(&mut client).await.log_start_offset, 0, "one has not read them");
    commit(&mut client, OTHER, 0, 10).await;
    let start = wait_for("a later beginning", async || {
        Some(offset(&mut client).await.log_start_offset).filter(|start| *start > 0)
    })
    .await;
    assert!(start <= 10, "{start}: the other one has read 10");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(offset(&mut client).await.log_start_offset <= 10);
    delete(&mut client, OTHER).await;
    let start = wait_for("a beginning that the deleted group does not hold", async || {
        Some(offset(&mut client).await.log_start_offset).filter(|start| *start > 10)
    })
    .await;
    let now = offset(&mut client).await;
    assert!(start <= 24 && (now.missed, now.lag) == (0, 0), "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_members_expires_if_it_was_made_so() {
    const IDLE: Duration = Duration::from_millis(1_500);
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, 1).await;
    let mut client = groups(&cluster, 0).await;
    let expiring = CreateGroupRequest { expire_after_idle_ms: IDLE.as_millis() as u64, ..group() };
    client.create_group(expiring).await.unwrap();
    let mut member = Member::join(&cluster, 1).await;
    member.until_assigned(1).await;
    client.create_group(other()).await.unwrap();
    tokio::time::sleep(IDLE * 2).await;
    let describe = |group: &str| DescribeGroupRequest { group: group.to_owned() };
    let found = client.describe_group(describe(GROUP)).await.unwrap().into_inner();
    assert_eq!(found.group.unwrap().members.len(), 1, "it has a member");
    let left = Instant::now();
    member.say(Told::Leave(ConsumeLeave {})).await;
    while member.told().await.unwrap().is_some() {}
    let gone = wait_for("the end of the group", async || {
        client.describe_group(describe(GROUP)).await.err()
    })
    .await;
    assert_eq!(reason(&gone), "UNKNOWN_GROUP");
    assert!(left.elapsed() >= IDLE, "after {:?}", left.elapsed());
    client.describe_group(describe(OTHER)).await.unwrap();
}

/// How many groups each replica of a partition of the topic knows.
async fn known(cluster: &Cluster) -> Vec<usize> {
    let mut known = Vec::new();
    for server in cluster.servers.iter().flatten() {
        for handle in server.node().registry().handles() {
            known.push(handle.group_positions().await.unwrap().len());
        }
    }
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_forget_groups_that_were_deleted() {
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, 2).await;
    let mut client = groups(&cluster, 0).await;
    for made in [group(), other()] {
        client.create_group(made).await.unwrap();
    }
    for partition in 0..2 {
        produce(&cluster, partition, 3).await;
        commit(&mut client, GROUP, partition, 2).await;
        commit(&mut client, OTHER, partition, 3).await;
    }
    let is = async |count: usize| (known(&cluster).await == [count; 6]).then_some(());
    wait_for("progress in all replicas", async || is(2).await).await;
    delete(&mut client, OTHER).await;
    wait_for("the progress of the deleted group to go", async || is(1).await).await;
    assert_eq!(offset(&mut client).await.next_offset, 2, "the other one is where it was");
}
