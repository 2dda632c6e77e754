//! Nodes that drain, come and go, and partitions that move between them.

use quipu::client::Client;
use quipu::proto::client::{Node, Partition};

use super::load::Load;
use super::nodes::{Cluster, TOPIC, wait_for};

/// A node as the first one sees it.
async fn described(cluster: &Cluster, id: u64) -> Option<Node> {
    cluster.seen_by(1).await?.nodes.into_iter().find(|node| node.id == id)
}

/// Three nodes, a topic on them, a load on it, and a fourth node that has joined.
async fn four_under_load() -> (Cluster, Client, Load) {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(4, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(50).await;
    assert_eq!(cluster.join().await, 4);
    (cluster, client, load)
}

/// Waits until the third node has gone, and everything that was there is on the fourth.
async fn fourth_in_place_of_third(cluster: &Cluster) {
    wait_for("an end of the third node", async || {
        let is_there = described(cluster, 3).await.is_some();
        (!is_there && described(cluster, 4).await.is_some()).then_some(())
    })
    .await;
    for partition in partitions(cluster).await {
        let mut replicas = partition.replicas.clone();
        replicas.sort_unstable();
        assert_eq!(replicas, [1, 2, 4], "{partition:?}");
    }
}

async fn partitions(cluster: &Cluster) -> Vec<Partition> {
    cluster.client().describe_topic(TOPIC).await.unwrap().partitions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_leads_nothing_until_it_may_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(6, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(50).await;
    cluster.run(&["cluster", "drain", "2"]).await;
    wait_for("a node without leaders", async || {
        let led = partitions(&cluster).await.iter().filter(|p| p.leader == 2).count();
        let seen = cluster.seen_by(1).await?;
        (led == 0 && ![0, 2].contains(&seen.metadata_leader)).then_some(())
    })
    .await;
    load.progress(50).await;
    cluster.run(&["cluster", "undrain", "2"]).await;
    wait_for("a node with leaders", async || {
        let led = partitions(&cluster).await.iter().filter(|p| p.leader == 2).count();
        (led == 2).then_some(())
    })
    .await;
    load.progress(50).await;
    cluster.wait_until_whole().await;
    load.stop().await.expect_all(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_moves_under_load() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.create_topic(1, 2).await;
    let from = topic.partitions[0].replicas.clone();
    let new = cluster.ids().find(|id| !from.contains(id)).unwrap();
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(200).await;
    let target = [new, from[1]];
    let told = format!("{},{}", target[0], target[1]);
    cluster.run(&["cluster", "move", TOPIC, "0", "--replicas", &told]).await;
    wait_for("the replicas where they are to be", async || {
        let partition = &partitions(&cluster).await[0];
        (partition.replicas == target && partition.target_replicas.is_empty()).then_some(())
    })
    .await;
    wait_for("the preferred leader", async || {
        (partitions(&cluster).await[0].leader == new).then_some(())
    })
    .await;
    load.progress(50).await;
    let log = cluster.node(from[0]).data_dir.join("logs").join(&topic.partitions[0].log_id);
    wait_for("an end of the old replica", async || (!log.exists()).then_some(())).await;
    cluster.node(from[0]).kill().await;
    load.stop().await.expect_all(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_comes_and_an_old_one_leaves() {
    let (mut cluster, client, mut load) = four_under_load().await;
    cluster.run(&["cluster", "decommission", "3"]).await;
    fourth_in_place_of_third(&cluster).await;
    load.progress(50).await;
    cluster.node(3).kill().await;
    load.progress(50).await;
    // The new node counts: with one of the old ones it is a majority.
    cluster.node(1).kill().await;
    load.progress(50).await;
    load.stop().await.expect_all(&client).await;
}

/// The one who leads the metadata has to be answered by whoever joins, and is none of those whose
/// addresses everybody is told at first.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_cluster_that_is_led_by_one_that_joined_before() {
    let mut cluster = Cluster::start(3).await;
    assert_eq!(cluster.join().await, 4);
    cluster.run(&["cluster", "decommission", "3"]).await;
    wait_for("an end of the third node", async || {
        described(&cluster, 3).await.is_none().then_some(())
    })
    .await;
    cluster.node(3).kill().await;
    // Of two that drain and one that does not, that one leads.
    for node in ["1", "2"] {
        cluster.run(&["cluster", "drain", node]).await;
    }
    wait_for("the fourth node as leader of the metadata", async || {
        (cluster.seen_by(4).await?.metadata_leader == 4).then_some(())
    })
    .await;
    assert_eq!(cluster.join().await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_and_a_live_one_is_not_taken_for_dead() {
    let (mut cluster, client, mut load) = four_under_load().await;
    let take_out = ["cluster", "decommission", "3", "--dead"];
    let refused = cluster.try_run(&take_out).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("node 3 is alive; stop it first"), "{said}");
    cluster.node(3).kill().await;
    wait_for("the silence of the killed node", async || {
        (!described(&cluster, 3).await?.is_alive).then_some(())
    })
    .await;
    cluster.run(&take_out).await;
    fourth_in_place_of_third(&cluster).await;
    load.progress(50).await;
    load.stop().await.expect_all(&client).await;
}
