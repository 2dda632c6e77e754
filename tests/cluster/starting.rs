//! What a node answers that is not part of its cluster yet, or has just become it.

use std::net::SocketAddr;
use std::time::Duration;

use quipu::proto::client::cluster_service_client::ClusterServiceClient;
use quipu::proto::client::log_service_client::LogServiceClient;
use quipu::proto::client::topic_service_client::TopicServiceClient;
use quipu::proto::client::{
    DescribeClusterRequest, DescribeClusterResponse, ErrorReason, FetchRequest, ListTopicsRequest,
    ProduceStreamRequest, SubscribeRequest,
};
use quipu::rpc::status::reason_of;
use quipu::server::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Cluster, free_address, settings, wait_for};

fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn health(channel: &Channel) -> ServingStatus {
    let mut client = HealthClient::new(channel.clone());
    client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status()
}

async fn describe(channel: &Channel) -> Result<DescribeClusterResponse, Status> {
    let mut client = ClusterServiceClient::new(channel.clone());
    Ok(client.describe_cluster(DescribeClusterRequest::default()).await?.into_inner())
}

#[track_caller]
fn is_starting<T: std::fmt::Debug>(outcome: Result<T, Status>) {
    let status = outcome.expect_err("the node does not run");
    assert_eq!(
        (status.code(), reason_of(&status).map(|r| r as i32)),
        (Code::Unavailable, Some(ErrorReason::Starting as i32))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_its_seeds_says_so_on_every_port() {
    crate::log();
    let root = tempfile::tempdir().unwrap();
    let seeds = [(1, free_address()), (2, free_address())];
    let settings: Vec<_> =
        seeds.iter().map(|(node, peer)| settings(root.path(), *node, *peer, &seeds)).collect();
    let mut first = settings[0].clone();
    let (clients, http) = (free_address(), free_address());
    (first.listen, first.http_listen) = (clients, Some(http));
    let first = tokio::spawn(Server::start(first));
    wait_for("the port", async || TcpStream::connect(http).await.ok()).await;

    let node = channel(clients);
    is_starting(describe(&node).await);
    let mut topics = TopicServiceClient::new(node.clone());
    is_starting(topics.list_topics(ListTopicsRequest::default()).await);
    let mut log = LogServiceClient::new(node.clone());
    is_starting(log.fetch(FetchRequest::default()).await);
    is_starting(log.subscribe(tokio_stream::iter([SubscribeRequest::default()])).await);
    is_starting(log.produce_stream(tokio_stream::iter([ProduceStreamRequest::default()])).await);
    assert_eq!(health(&node).await, ServingStatus::NotServing);
    assert!(get(http, "/healthz").await.ends_with("\r\n\r\nok\n"));
    let waits_for = format!("waiting for the seeds 2@{}", seeds[1].1);
    wait_for("what is waited for", async || {
        let answer = get(http, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        answer.contains(&waits_for).then_some(())
    })
    .await;

    let second = Server::start(settings[1].clone()).await.unwrap();
    let first = first.await.unwrap().unwrap();
    // Over the connection that was there before.
    wait_for("a node that serves", async || {
        (health(&node).await == ServingStatus::Serving).then_some(())
    })
    .await;
    assert!(get(http, "/readyz").await.ends_with("\r\n\r\nready\n"));
    wait_for("both nodes", async || (describe(&node).await.ok()?.nodes.len() == 2).then_some(()))
        .await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_just_joined_describes_the_whole_cluster_or_nothing() {
    let cluster = Cluster::start(3).await;
    let root = tempfile::tempdir().unwrap();
    let peer = free_address();
    let mut seeds: Vec<_> = cluster.settings.iter().map(|s| (s.node.0, s.peer_listen)).collect();
    seeds.push((4, peer));
    let mut fourth = settings(root.path(), 4, peer, &seeds[..3]);
    (fourth.is_joining, fourth.listen) = (true, free_address());
    let node = channel(fourth.listen);
    let starting = tokio::spawn(Server::start(fourth));
    let described = wait_for("an answer", async || match describe(&node).await {
        Ok(described) => Some(described),
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            None
        }
    });
    let ids: Vec<_> = described.await.nodes.iter().map(|node| node.id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
    tokio::time::timeout(Duration::from_secs(30), starting).await.unwrap().unwrap().unwrap();
}
