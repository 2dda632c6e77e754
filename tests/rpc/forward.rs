//! Any node answers: calls are passed on to the node that can answer them.

use quipu::cluster::command::TopicConfig;
use quipu::proto::server::start_position::Position;
use quipu::proto::server::{
    ErrorReason, FetchRequest, InitProducerRequest, ListOffsetsRequest, ProduceStreamRequest,
    StartPosition,
};
use quipu::rpc::limits::Limits;
use quipu::rpc::{FORWARD_HEADER, FORWARD_OFF, status};
use tonic::{Request, Status};

use crate::streams::{assert_in_order, exchange, numbers};
use crate::support::{Cluster, reason, request};

fn not_forwarded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARD_HEADER, FORWARD_OFF.parse().unwrap());
    request
}

fn told(status: Status) -> std::collections::HashMap<String, String> {
    status::to_in_stream(&quipu::rpc::Error::from(status)).metadata
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_is_answered_by_every_node() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 2).await;
    cluster.leader("t", 0).await;
    for (n, served) in cluster.nodes.iter().enumerate() {
        let mut client = served.client().await;
        let produced = client.produce(request("t", 0, n as u64)).await.unwrap().into_inner();
        assert_eq!(produced.base_offset, n as u64);
        let position = Some(StartPosition { position: Some(Position::Latest(true)) });
        let list = ListOffsetsRequest { topic: "t".into(), position, ..Default::default() };
        let listed = client.list_offsets(list).await.unwrap().into_inner();
        let ends: Vec<_> = listed.offsets.iter().map(|at| (at.partition, at.offset)).collect();
        assert_eq!(ends, [(0, n as u64 + 1), (1, 0)]);
        let init = InitProducerRequest { topic: "t".into(), ..Default::default() };
        let producer = client.init_producer(init).await.unwrap().into_inner();
        assert_eq!(producer.producer_epoch, 0);
        let fetch = FetchRequest { topic: "t".into(), from_leader: true, ..Default::default() };
        let fetched = client.fetch(fetch).await.unwrap().into_inner();
        assert_eq!(fetched.batches.len(), n + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_through_a_node_that_leads_nothing_keeps_its_order() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.create("t", TopicConfig::default(), &[&[1], &[2], &[1]]).await;
    let mut client = cluster.nodes[2].client().await;
    let requests = (0..3_000)
        .map(|n| ProduceStreamRequest {
            request_id: n,
            produce: Some(request("t", (n % 3) as u32, n)),
        })
        .collect();
    assert_in_order(&exchange(&mut client, requests).await, 3);
    let expected: Vec<u64> = (0..1_000).map(|n| n * 3 + 1).collect();
    assert_eq!(numbers(&mut client, "t", 1).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_to_be_passed_on_names_the_leader() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let others = cluster.others("t", 0).await;
    let leader = cluster.leader("t", 0).await.node.id().0;
    let mut client = others[0].client().await;
    let status = client.produce(not_forwarded(request("t", 0, 1))).await.unwrap_err();
    assert_eq!(status::reason_of(&status), Some(ErrorReason::NotLeader));
    let told = told(status);
    assert_eq!(told["leader_node"], leader.to_string());
    assert_eq!(told["leader_address"], format!("client-{leader}"));
    let fetch = FetchRequest { topic: "t".into(), from_leader: true, ..Default::default() };
    let refused = client.fetch(not_forwarded(fetch)).await;
    assert_eq!(reason(refused), ErrorReason::NotLeader);
    let init = InitProducerRequest { topic: "t".into(), ..Default::default() };
    assert_eq!(reason(client.init_producer(not_forwarded(init)).await), ErrorReason::NotLeader);
    assert_eq!(cluster.high_watermark("t", 0).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_answers_what_it_has_and_asks_the_leader_for_the_rest() {
    let cluster = Cluster::found(3, Limits::default()).await;
    cluster.topic("t", 1).await;
    let others = cluster.others("t", 0).await;
    let mut leader = cluster.leader("t", 0).await.client().await;
    let mut follower = others[0].client().await;
    leader.produce(request("t", 0, 1)).await.unwrap();
    let fetch = FetchRequest { topic: "t".into(), max_wait_ms: 5_000, ..Default::default() };
    let fetched = follower.fetch(not_forwarded(fetch.clone())).await.unwrap().into_inner();
    assert_eq!(fetched.batches.len(), 1);
    let beyond = FetchRequest { offset: 9, max_wait_ms: 0, ..fetch };
    let refused = follower.fetch(not_forwarded(beyond.clone())).await;
    assert_eq!(reason(refused), ErrorReason::NotLeader, "a follower may only be behind");
    assert_eq!(reason(follower.fetch(beyond).await), ErrorReason::OffsetOutOfRange);
}
