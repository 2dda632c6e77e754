//! Administration: what cannot be done is refused with its code and reason, and changes nothing.

use std::collections::HashMap;

use quipu::cluster::command::{
    CreateTopic, Id, Node as NodeRecord, Placement, RegisterNode, TopicConfig, Verb,
};
use quipu::proto::server::cluster_service_client::ClusterServiceClient;
use quipu::proto::server::topic_service_client::TopicServiceClient;
use quipu::proto::server::{
    AddPartitionsRequest, AlterTopicRequest, CreateTopicRequest, DecommissionNodeRequest,
    DeleteRecordsRequest, DeleteTopicRequest, DescribeTopicRequest, DrainNodeRequest, ErrorReason,
    FetchRequest, GetTopologyRequest, InitProducerRequest, ListOffsetsRequest, ListTopicsRequest,
    MovePartitionRequest, ProduceRequest, StartPosition, TransferLeadershipRequest,
    UndrainNodeRequest, start_position::Position,
};
use quipu::rpc::status::reason_of;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use crate::support::{Cluster, reason, request};

const OTHER_ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

/// A cluster of one node that runs and one that was only heard of, with a topic on the first.
struct Admin {
    cluster: Cluster,
    topics: TopicServiceClient<Channel>,
    nodes: ClusterServiceClient<Channel>,
}

/// How a call was refused.
type Refused = (Code, Option<ErrorReason>);

const BAD_NAME: Refused = (Code::InvalidArgument, Some(ErrorReason::BadName));
const BAD_FIELD: Refused = (Code::InvalidArgument, Some(ErrorReason::InvalidField));
const BAD_CONFIG: Refused = (Code::InvalidArgument, Some(ErrorReason::InvalidConfig));
const NO_TOPIC: Refused = (Code::NotFound, Some(ErrorReason::UnknownTopic));
const NO_TOPIC_ID: Refused = (Code::NotFound, Some(ErrorReason::UnknownTopicId));
const NO_PARTITION: Refused = (Code::NotFound, Some(ErrorReason::UnknownPartition));
const NO_NODE: Refused = (Code::NotFound, Some(ErrorReason::UnknownNode));
const PRECONDITION: Refused = (Code::FailedPrecondition, Some(ErrorReason::Precondition));
const TOO_FEW: Refused = (Code::FailedPrecondition, Some(ErrorReason::NotEnoughNodes));

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<Response<T>, Status>) -> Refused {
    let status = outcome.expect_err("it was done");
    (status.code(), reason_of(&status))
}

impl Admin {
    async fn start() -> Self {
        let cluster = Cluster::of_one().await;
        cluster.create("t", TopicConfig::default(), &[&[1], &[1]]).await;
        let node = NodeRecord {
            id: 2,
            directory: Uuid::from_u128(2).into(),
            address: "nowhere:1".into(),
            peer_address: "nowhere:2".into(),
            ..NodeRecord::default()
        };
        let register = RegisterNode { node, is_founder: false, replaces: None };
        cluster.propose(Verb::RegisterNode(register).into()).await;
        let channel = cluster.nodes[0].channel().await;
        let topics = TopicServiceClient::new(channel.clone());
        Self { cluster, topics, nodes: ClusterServiceClient::new(channel) }
    }

    /// What the metadata holds, but for how far it is.
    fn state(&self) -> String {
        let state = self.cluster.nodes[0].node.state();
        let topics: Vec<_> = state.topics().collect();
        let nodes: Vec<_> = state.nodes().collect();
        format!("{topics:?} {nodes:?}")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_that_cannot_be_are_refused() {
    let mut admin = Admin::start().await;
    let before = admin.state();
    let to = |topic: &str, partition, replicas: &[u64]| MovePartitionRequest {
        topic: topic.into(),
        partition,
        replicas: replicas.to_vec(),
    };
    let cases = [
        ("no name", to("", 0, &[2]), BAD_NAME),
        ("a bad name", to("../x", 0, &[2]), BAD_NAME),
        ("another topic", to("u", 0, &[2]), NO_TOPIC),
        ("another partition", to("t", 2, &[2]), NO_PARTITION),
        ("a partition far away", to("t", u32::MAX, &[2]), NO_PARTITION),
        ("another node", to("t", 0, &[1, 3]), NO_NODE),
        ("node zero", to("t", 0, &[0]), NO_NODE),
        ("a node beyond all", to("t", 0, &[u64::MAX]), NO_NODE),
        ("nowhere", to("t", 0, &[]), BAD_FIELD),
        ("a node twice", to("t", 0, &[2, 2]), BAD_FIELD),
        ("a thousand times", to("t", 0, &[1; 1_000]), BAD_FIELD),
    ];
    for (what, bad, expected) in cases {
        assert_eq!(refused(admin.nodes.move_partition(bad).await), expected, "{what}");
        assert_eq!(admin.state(), before, "{what}");
    }
    admin.nodes.move_partition(to("t", 0, &[2])).await.unwrap();
    let again = admin.nodes.move_partition(to("t", 0, &[1, 2])).await;
    assert_eq!(refused(again), PRECONDITION, "while it moves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_that_cannot_be_are_refused() {
    let mut admin = Admin::start().await;
    let before = admin.state();
    let to = |topic: &str, partition, to_node| TransferLeadershipRequest {
        topic: topic.into(),
        partition,
        to_node,
    };
    let cases = [
        ("no name", to("", 0, 1), BAD_NAME),
        ("another topic", to("u", 0, 1), NO_TOPIC),
        ("another partition", to("t", 9, 1), NO_PARTITION),
        ("a node without a replica", to("t", 0, 2), PRECONDITION),
        ("another node", to("t", 0, 3), PRECONDITION),
        ("node zero", to("t", 0, 0), PRECONDITION),
        ("a node beyond all", to("t", 0, u64::MAX), PRECONDITION),
    ];
    for (what, bad, expected) in cases {
        assert_eq!(refused(admin.nodes.transfer_leadership(bad).await), expected, "{what}");
        assert_eq!(admin.state(), before, "{what}");
    }
    let known = admin.nodes.transfer_leadership(to("t", 0, 1)).await.unwrap().into_inner();
    assert!(known.leader_epoch > 0, "who leads already is named with its epoch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_not_there_neither_drain_nor_leave() {
    let mut admin = Admin::start().await;
    let before = admin.state();
    for node in [0, 3, u64::MAX] {
        let drained = admin.nodes.drain_node(DrainNodeRequest { node }).await;
        assert_eq!(refused(drained), NO_NODE, "{node}");
        let undrained = admin.nodes.undrain_node(UndrainNodeRequest { node }).await;
        assert_eq!(refused(undrained), NO_NODE, "{node}");
        for is_dead in [false, true] {
            let leave = DecommissionNodeRequest { node, is_dead };
            assert_eq!(refused(admin.nodes.decommission_node(leave).await), NO_NODE, "{node}");
        }
        assert_eq!(admin.state(), before);
    }
    let id = Id { high: 7, low: 0 };
    let partitions = vec![Placement { nodes: vec![1, 2] }];
    let create = CreateTopic { id, name: "both".into(), config: Default::default(), partitions };
    admin.cluster.propose(Verb::CreateTopic(create).into()).await;
    let before = admin.state();
    let leave = DecommissionNodeRequest { node: 2, is_dead: false };
    assert_eq!(refused(admin.nodes.decommission_node(leave).await), TOO_FEW);
    let alive = DecommissionNodeRequest { node: 1, is_dead: true };
    assert_eq!(refused(admin.nodes.decommission_node(alive).await), BAD_FIELD);
    assert_eq!(admin.state(), before);
    let names = |count| GetTopologyRequest { topics: vec!["t".to_owned(); count] };
    assert_eq!(refused(admin.nodes.get_topology(names(1_001)).await), BAD_FIELD);
    let nothing = GetTopologyRequest { topics: vec!["u".into(), "../x".into()] };
    assert_eq!(admin.nodes.get_topology(nothing).await.unwrap().into_inner().topics, []);
}

fn config(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_cannot_be_are_not_made() {
    let mut admin = Admin::start().await;
    let before = admin.state();
    let named = |name: &str| CreateTopicRequest { name: name.into(), ..Default::default() };
    let long = "x".repeat(250);
    for name in ["", ".", "..", "../x", "/etc/x", "a\0b", "ä", "__internal", "a b", &long] {
        assert_eq!(refused(admin.topics.create_topic(named(name)).await), BAD_NAME, "{name:?}");
    }
    let with = |config| CreateTopicRequest { config, ..named("new") };
    let cases = [
        ("an unknown key", with(config("retained", "1")), BAD_CONFIG),
        ("no number", with(config("retention_ms", "long")), BAD_CONFIG),
        ("below zero", with(config("retention_bytes", "-1")), BAD_CONFIG),
        ("too large a record", with(config("record_bytes_max", "999999999999")), BAD_CONFIG),
        ("too large a batch", with(config("batch_bytes_max", "4194304")), BAD_CONFIG),
        ("no durability", with(config("durability", "none")), BAD_CONFIG),
        ("four billion", CreateTopicRequest { partitions: u32::MAX, ..named("new") }, BAD_FIELD),
        ("many replicas", CreateTopicRequest { replicas: u32::MAX, ..named("new") }, BAD_FIELD),
        ("more than nodes", CreateTopicRequest { replicas: 3, ..named("new") }, TOO_FEW),
    ];
    for (what, bad, expected) in cases {
        assert_eq!(refused(admin.topics.create_topic(bad).await), expected, "{what}");
        assert_eq!(admin.state(), before, "{what}");
    }
    let there = refused(admin.topics.create_topic(named("t")).await);
    assert_eq!(there, (Code::AlreadyExists, Some(ErrorReason::TopicExists)));
    let only = CreateTopicRequest { validate_only: true, ..named("new") };
    admin.topics.create_topic(only).await.unwrap();
    assert_eq!(admin.state(), before, "it was only checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_topics_that_cannot_be_are_refused() {
    let mut admin = Admin::start().await;
    let before = admin.state();
    let set = |name: &str, key: &str, value: &str| AlterTopicRequest {
        name: name.into(),
        set: config(key, value),
        ..Default::default()
    };
    let reset = AlterTopicRequest {
        name: "t".into(),
        reset: vec!["retained".into()],
        ..Default::default()
    };
    let alter = [
        ("another topic", set("u", "retention_ms", "1"), NO_TOPIC),
        ("an unknown key", set("t", "retained", "1"), BAD_CONFIG),
        ("another durability", set("t", "durability", "memory"), BAD_CONFIG),
        ("an unknown key to reset", reset, BAD_CONFIG),
    ];
    for (what, bad, expected) in alter {
        assert_eq!(refused(admin.topics.alter_topic(bad).await), expected, "{what}");
    }
    let grow = |name: &str, partitions| AddPartitionsRequest { name: name.into(), partitions };
    for (bad, expected) in [
        (grow("u", 3), NO_TOPIC),
        (grow("t", 0), BAD_FIELD),
        (grow("t", 2), BAD_FIELD),
        (grow("t", u32::MAX), BAD_FIELD),
    ] {
        assert_eq!(refused(admin.topics.add_partitions(bad.clone()).await), expected, "{bad:?}");
    }
    let records = |name: &str, partition, before_offset| DeleteRecordsRequest {
        name: name.into(),
        partition,
        before_offset,
    };
    for (bad, expected) in [
        (records("u", 0, 0), NO_TOPIC),
        (records("t", 2, 0), NO_PARTITION),
        (records("t", 0, 1), BAD_FIELD),
        (records("t", 0, u64::MAX), BAD_FIELD),
    ] {
        assert_eq!(refused(admin.topics.delete_records(bad.clone()).await), expected, "{bad:?}");
    }
    let delete = |name: &str, id: &str| DeleteTopicRequest { name: name.into(), id: id.into() };
    for (bad, expected) in [
        (delete("", ""), BAD_NAME),
        (delete("u", ""), NO_TOPIC),
        (delete("t", OTHER_ID), NO_TOPIC_ID),
        (delete("t", "no-uuid"), BAD_FIELD),
    ] {
        assert_eq!(refused(admin.topics.delete_topic(bad.clone()).await), expected, "{bad:?}");
    }
    assert_eq!(admin.state(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_clamped_and_what_is_not_there_is_not_described() {
    let mut admin = Admin::start().await;
    for page_size in [0, 1, u32::MAX] {
        let list = ListTopicsRequest { page_size, ..Default::default() };
        assert_eq!(admin.topics.list_topics(list).await.unwrap().into_inner().topics.len(), 1);
    }
    let noise = ListTopicsRequest { page_token: "\u{1F4A5}".into(), ..Default::default() };
    assert_eq!(admin.topics.list_topics(noise).await.unwrap().into_inner().topics, []);
    let of = |name: &str, id: &str| DescribeTopicRequest { name: name.into(), id: id.into() };
    for (bad, expected) in [
        (of("", ""), BAD_FIELD),
        (of("", OTHER_ID), NO_TOPIC_ID),
        (of("", "no-uuid"), BAD_FIELD),
        (of("u", ""), NO_TOPIC),
        (of("t", OTHER_ID), NO_TOPIC_ID),
        (of("..", ""), BAD_NAME),
    ] {
        assert_eq!(refused(admin.topics.describe_topic(bad.clone()).await), expected, "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_not_taken_for_the_one_that_was() {
    let mut admin = Admin::start().await;
    let mut client = admin.cluster.nodes[0].client().await;
    client.produce(request("t", 0, 1)).await.unwrap();
    let delete = DeleteTopicRequest { name: "t".into(), ..Default::default() };
    let old = admin.topics.delete_topic(delete).await.unwrap().into_inner().id;
    admin.cluster.create("t", TopicConfig::default(), &[&[1]]).await;
    let produce = ProduceRequest { topic_id: old.clone(), ..request("t", 0, 2) };
    assert_eq!(reason(client.produce(produce).await), ErrorReason::UnknownTopicId);
    let (topic, topic_id) = ("t".to_owned(), old.clone());
    let fetch = FetchRequest { topic, topic_id, ..Default::default() };
    assert_eq!(reason(client.fetch(fetch).await), ErrorReason::UnknownTopicId);
    let (topic, topic_id) = ("t".to_owned(), old.clone());
    let position = Some(StartPosition { position: Some(Position::Earliest(true)) });
    let list = ListOffsetsRequest { topic, topic_id, position, ..Default::default() };
    assert_eq!(reason(client.list_offsets(list).await), ErrorReason::UnknownTopicId);
    let (topic, topic_id) = ("t".to_owned(), old.clone());
    let init = InitProducerRequest { topic, topic_id, ..Default::default() };
    assert_eq!(reason(client.init_producer(init).await), ErrorReason::UnknownTopicId);
    let delete = DeleteTopicRequest { name: "t".into(), id: old };
    assert_eq!(refused(admin.topics.delete_topic(delete).await), NO_TOPIC_ID);
    let mut latest = Request::new(FetchRequest { topic: "t".into(), ..Default::default() });
    latest.set_timeout(std::time::Duration::from_secs(5));
    assert_eq!(client.fetch(latest).await.unwrap().into_inner().high_watermark, 0);
}
