//! Nodes that are killed or stand still under load: nothing is lost or doubled, and order is kept.

use std::time::Duration;

use quipu::client::Client;
use rustix::process::Signal;
use tokio::time::sleep;

use super::load::Load;
use super::nodes::{Cluster, TOPIC};

const PARTITIONS: u32 = 3;

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
