//! Data directories that are lost, and two that claim to be one node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use quipu::proto::client::DescribeClusterResponse;
use tokio::time::sleep;

use super::load::Load;
use super::nodes::{Cluster, TOPIC, wait_for};

const WIPED: u64 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_directory_is_made_whole_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(3, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(200).await;
    // A node that has just begun knows of nobody.
    let incarnation_of = |seen: &DescribeClusterResponse| {
        seen.nodes.iter().find(|node| node.id == WIPED).map(|node| node.incarnation)
    };
    let incarnation = incarnation_of(&client.describe_cluster().await.unwrap());
    assert!(incarnation.is_some());
    cluster.node(WIPED).kill().await;
    fs::remove_dir_all(&cluster.node(WIPED).data_dir).unwrap();
    cluster.node(WIPED).spawn();
    let sent = load.stop().await;
    wait_for("another incarnation", async || {
        let seen = cluster.seen_by(WIPED).await?;
        (incarnation_of(&seen) > incarnation && seen.moving_partitions == 0).then_some(())
    })
    .await;
    cluster.wait_until_whole().await;
    let topic = client.describe_topic(TOPIC).await.unwrap();
    for partition in &topic.partitions {
        assert!(partition.replicas.contains(&WIPED), "{partition:?}");
        assert!(partition.target_replicas.is_empty(), "{partition:?}");
    }
    // With either of the others it is a majority. Asked itself, it reads from its own disk.
    let own = cluster.node(WIPED).client();
    for other in [1, 3] {
        cluster.node(other).kill().await;
        for partition in 0..3 {
            own.transfer_leadership(TOPIC, partition, WIPED).await.unwrap();
        }
        sent.expect_all(&own).await;
        cluster.node(other).spawn();
        cluster.wait_until_whole().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_directory_does_not_take_the_place_of_a_live_node() {
    let mut cluster = Cluster::start(3).await;
    let seen = cluster.seen_by(1).await.unwrap();
    let mut double = cluster.double(WIPED);
    double.spawn();
    wait_for("a refusal", async || double.said().contains("another directory").then_some(())).await;
    sleep(Duration::from_secs(3)).await;
    assert!(!double.said().contains(" ready"), "{}", double.said());
    cluster.wait_until_whole().await;
    let after = cluster.seen_by(1).await.unwrap();
    let known = |seen: &DescribeClusterResponse| -> Vec<_> {
        seen.nodes.iter().map(|node| (node.id, node.incarnation, node.address.clone())).collect()
    };
    assert_eq!(known(&after), known(&seen));
    double.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_and_a_damaged_one_are_brought_back() {
    let mut cluster = Cluster::start(3).await;
    let topic = cluster.create_topic(2, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(300).await;
    let sent = load.stop().await;
    cluster.node(WIPED).kill().await;
    let logs = cluster.node(WIPED).data_dir.join("logs");
    let [lost, damaged] = [0, 1].map(|n| logs.join(&topic.partitions[n].log_id));
    fs::remove_dir_all(&lost).unwrap();
    damage(&damaged, b"1:150");
    let is_good = async |cluster: &Cluster, log: &Path| {
        let verified = cluster.try_run(&["log", "verify", log.to_str().unwrap()]).await;
        verified.status.success()
    };
    assert!(!is_good(&cluster, &damaged).await, "nothing is damaged");
    cluster.node(WIPED).spawn();
    wait_for("both logs", async || {
        let are_good = is_good(&cluster, &lost).await && is_good(&cluster, &damaged).await;
        let seen = cluster.seen_by(WIPED).await?;
        (are_good && seen.moving_partitions == 0).then_some(())
    })
    .await;
    cluster.wait_until_whole().await;
    // With either of the others it is a majority.
    let own = cluster.node(WIPED).client();
    cluster.node(1).kill().await;
    for partition in 0..2 {
        own.transfer_leadership(TOPIC, partition, WIPED).await.unwrap();
    }
    sent.expect_all(&own).await;
}

/// Overwrites `bytes` where they stand in a log.
fn damage(log: &Path, bytes: &[u8]) {
    for file in fs::read_dir(log).unwrap().map(|file| file.unwrap().path()) {
        let mut content = fs::read(&file).unwrap();
        let at = content.windows(bytes.len()).position(|found| found == bytes);
        if let Some(at) = at.filter(|_| file.extension().is_some_and(|end| end == "seg")) {
            content[at..at + bytes.len()].fill(0xEE);
            fs::write(&file, content).unwrap();
            return;
        }
    }
    panic!("{bytes:?} is nowhere in {}", log.display());
}
