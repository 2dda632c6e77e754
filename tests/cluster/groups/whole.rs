//! Groups from their making to their end.

use quipu::proto::client::group_place::Place;
use quipu::proto::client::{
    CreateGroupRequest, DeleteGroupRequest, DescribeGroupRequest, GroupPlace, ListGroupsRequest,
};

use super::member::{GROUP, Member, TOPIC, group, outcome, reason};
use super::setup::{channel, create_topic, groups, produce};
use crate::support::{Cluster, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_made_described_listed_and_deleted_through_any_node() {
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, 2).await;
    let made = groups(&cluster, 0).await.create_group(group()).await.unwrap().into_inner();
    let made = made.group.unwrap();
    let describe = DescribeGroupRequest { group: GROUP.to_owned() };
    for n in 0..3 {
        let mut client = groups(&cluster, n).await;
        let found = client.describe_group(describe.clone()).await.unwrap().into_inner();
        assert_eq!(found.group.as_ref(), Some(&made));
        let listed = client.list_groups(ListGroupsRequest::default()).await.unwrap();
        assert_eq!(listed.into_inner().groups[0].id, made.id);
    }
    assert_eq!((made.partitions.len(), made.session_timeout_ms), (2, 3_000));
    let again = groups(&cluster, 1).await.create_group(group()).await.unwrap_err();
    assert_eq!(reason(&again), "GROUP_EXISTS");

    let _member = Member::join(&cluster, 2).await;
    let delete = |force| DeleteGroupRequest { group: GROUP.to_owned(), force };
    let refused = groups(&cluster, 1).await.delete_group(delete(false)).await.unwrap_err();
    assert_eq!(reason(&refused), "GROUP_NOT_EMPTY");
    groups(&cluster, 1).await.delete_group(delete(true)).await.unwrap();
    let gone = groups(&cluster, 0).await.describe_group(describe).await.unwrap_err();
    assert_eq!(reason(&gone), "UNKNOWN_GROUP");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_and_makes_nothing() {
    let cluster = Cluster::start(1).await;
    create_topic(&cluster, TOPIC, 1).await;
    let place = |place| Some(GroupPlace { place: Some(place) });
    let topics = |topics: &[&str]| topics.iter().map(|topic| (*topic).to_owned()).collect();
    let bad: Vec<(CreateGroupRequest, &str)> = vec![
        (CreateGroupRequest { name: "../x".into(), ..group() }, "BAD_NAME"),
        (CreateGroupRequest { name: String::new(), ..group() }, "BAD_NAME"),
        (CreateGroupRequest { topics: vec![], ..group() }, "INVALID_FIELD"),
        (CreateGroupRequest { topics: topics(&["t", "nowhere"]), ..group() }, "UNKNOWN_TOPIC"),
        (CreateGroupRequest { topics: topics(&["a/*"]), ..group() }, "BAD_NAME"),
        (CreateGroupRequest { start: None, ..group() }, "INVALID_FIELD"),
        (CreateGroupRequest { start: place(Place::Offset(1)), ..group() }, "OFFSET_OUT_OF_RANGE"),
        (CreateGroupRequest { start: place(Place::Group("h".into())), ..group() }, "UNKNOWN_GROUP"),
        (CreateGroupRequest { session_timeout_ms: 1, ..group() }, "INVALID_FIELD"),
        (CreateGroupRequest { mode: 77, ..group() }, "INVALID_FIELD"),
    ];
    let mut client = groups(&cluster, 0).await;
    for (request, expected) in bad {
        let refused = client.create_group(request.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{request:?}: {refused:?}");
    }
    let checked = CreateGroupRequest { validate_only: true, ..group() };
    client.create_group(checked).await.unwrap();
    let listed = client.list_groups(ListGroupsRequest::default()).await.unwrap().into_inner();
    assert!(listed.groups.is_empty(), "{listed:?}");
    let refused = Member::join_as(&cluster, 0, Default::default()).await.err().unwrap();
    assert_eq!(reason(&refused), "UNKNOWN_GROUP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_group_leaves_nothing_to_one_that_takes_its_name() {
    let cluster = Cluster::start(1).await;
    create_topic(&cluster, TOPIC, 1).await;
    produce(&cluster, 0, 10).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let mut member = Member::join(&cluster, 0).await;
    member.until_assigned(1).await;
    let number = member.number_of(0);
    assert_eq!(outcome(&member.commit(&[(number, 7)]).await[0]), Ok(7));
    let delete = DeleteGroupRequest { group: GROUP.to_owned(), force: true };
    groups(&cluster, 0).await.delete_group(delete).await.unwrap();
    let ended = wait_for("the end of the stream", async || member.told().await.err()).await;
    assert_eq!(reason(&ended), "UNKNOWN_GROUP");
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let mut member = Member::join(&cluster, 0).await;
    member.until_assigned(1).await;
    assert_eq!(member.assigned.values().next().unwrap().next_offset, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_takes_in_topics_that_come_later_from_their_beginning() {
    let cluster = Cluster::start(1).await;
    let patterns = CreateGroupRequest {
        topics: vec!["t*".to_owned()],
        start: Some(GroupPlace { place: Some(Place::Latest(true)) }),
        ..group()
    };
    groups(&cluster, 0).await.create_group(patterns).await.unwrap();
    let mut member = Member::join(&cluster, 0).await;
    create_topic(&cluster, "other", 1).await;
    create_topic(&cluster, TOPIC, 2).await;
    produce(&cluster, 0, 3).await;
    member.until_assigned(2).await;
    assert!(member.assigned.values().all(|assigned| assigned.topic == TOPIC));
    let number = member.number_of(0);
    member.until(|member, _| (member.next[&number] == 3).then_some(())).await;
    let delete =
        quipu::proto::client::DeleteTopicRequest { name: TOPIC.into(), ..Default::default() };
    let topics = channel(&cluster, 0).await;
    quipu::proto::client::topic_service_client::TopicServiceClient::new(topics)
        .delete_topic(delete)
        .await
        .unwrap();
    member.until_assigned(0).await;
}
