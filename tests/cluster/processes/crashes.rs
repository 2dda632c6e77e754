//! Nodes that are killed or stand still under load: nothing is lost or doubled, and order is kept.

use std::time::{Duration, Instant};

use quipu::client::Client;
use quipu::proto::client::log_service_client::LogServiceClient;
use quipu::proto::client::{
    InitProducerRequest, ProduceRequest, ProducerStamp, Record as RecordData, RecordBatch,
};
use rustix::process::Signal;
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::load::Load;
use super::nodes::{Cluster, TOPIC};

const PARTITIONS: u32 = 3;
const OTHER: &str = "others";

/// The node that leads a partition.
async fn leader(client: &Client, partition: usize) -> u64 {
    client.describe_topic(TOPIC).await.unwrap().partitions[partition].leader
}

/// Three nodes with a topic on all of them, under load.
async fn loaded() -> (Cluster, Client, Load) {
    let cluster = Cluster::start(3).await;
    cluster.create_topic(PARTITIONS, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(100).await;
    (cluster, client, load)
}

async fn expect_all(mut cluster: Cluster, client: &Client, mut load: Load) {
    load.progress(100).await;
    cluster.wait_until_whole().await;
    load.stop().await.expect_all(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing() {
    let (mut cluster, client, mut load) = loaded().await;
    for partition in [0, 1] {
        let victim = leader(&client, partition).await;
        cluster.node(victim).kill().await;
        // The others go on without it.
        load.progress(100).await;
        cluster.node(victim).spawn();
        cluster.wait_until_whole().await;
    }
    expect_all(cluster, &client, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_killed_nodes_lose_nothing() {
    let (mut cluster, client, load) = loaded().await;
    let first = leader(&client, 0).await;
    let second = cluster.ids().find(|id| *id != first).unwrap();
    cluster.node(first).kill().await;
    cluster.node(second).kill().await;
    sleep(Duration::from_secs(1)).await;
    cluster.node(first).spawn();
    cluster.node(second).spawn();
    expect_all(cluster, &client, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_killed_nodes_lose_nothing() {
    let (mut cluster, client, mut load) = loaded().await;
    for _ in 0..2 {
        for id in cluster.ids() {
            cluster.node(id).kill().await;
        }
        for id in cluster.ids() {
            cluster.node(id).spawn();
        }
        load.progress(100).await;
    }
    expect_all(cluster, &client, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_loses_nothing() {
    let (mut cluster, client, load) = loaded().await;
    let victim = leader(&client, 0).await;
    let other = cluster.ids().find(|id| *id != victim).unwrap();
    cluster.node(victim).signal(Signal::STOP);
    sleep(Duration::from_secs(5)).await;
    let new = leader(&cluster.node(other).client(), 0).await;
    assert_ne!(new, victim, "nobody has taken over");
    cluster.node(victim).signal(Signal::CONT);
    expect_all(cluster, &client, load).await;
}

/// Stores a record through one node, which has to pass it on. The node tries it for half a minute.
async fn store_through(
    client: &mut LogServiceClient<Channel>,
    producer_id: u64,
    base_sequence: u32,
) -> Result<(), Status> {
    let record = RecordData { value: Some(vec![1].into()), ..RecordData::default() };
    let batch = RecordBatch { records: vec![record], ..RecordBatch::default() };
    let stamp = ProducerStamp { producer_id, producer_epoch: 0, base_sequence };
    let mut request = Request::new(ProduceRequest {
        topic: OTHER.into(),
        batch: Some(batch),
        producer: Some(stamp),
        ..ProduceRequest::default()
    });
    request.set_timeout(Duration::from_secs(30));
    client.produce(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn others_go_on_soon_after_a_leader_stands_still() {
    let (mut cluster, client, mut load) = loaded().await;
    cluster.create(OTHER, PARTITIONS, 3).await;
    cluster.wait_until_whole().await;
    let victim = leader(&client, 0).await;
    let other = cluster.ids().find(|id| *id != victim).unwrap();
    client.transfer_leadership(OTHER, 0, victim).await.unwrap();
    let address = format!("http://{}", cluster.node(other).address());
    let mut other = LogServiceClient::new(Endpoint::from_shared(address).unwrap().connect_lazy());
    let init = InitProducerRequest { topic: OTHER.into(), ..InitProducerRequest::default() };
    let producer_id = other.init_producer(init).await.unwrap().into_inner().producer_id;
    store_through(&mut other, producer_id, 0).await.unwrap();
    cluster.node(victim).signal(Signal::STOP);
    let stopped = Instant::now();
    let passed_on = tokio::spawn(async move { store_through(&mut other, producer_id, 1).await });
    load.progress(100).await;
    // Without pings a producer would have waited for as long as it waits for any answer, 15 s.
    assert!(stopped.elapsed() < Duration::from_secs(15));
    // And the node that passes on would have waited until the call's end.
    passed_on.await.unwrap().unwrap();
    cluster.node(victim).signal(Signal::CONT);
    expect_all(cluster, &client, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing() {
    let (mut cluster, client, mut load) = loaded().await;
    for id in cluster.ids() {
        cluster.node(id).terminate().await;
        load.progress(50).await;
        cluster.node(id).spawn();
        cluster.wait_until_whole().await;
        load.progress(50).await;
    }
    expect_all(cluster, &client, load).await;
}
