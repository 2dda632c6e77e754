//! Nodes that come, leave, and lose their disks.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quipu::proto::client::DescribeClusterResponse;
use tokio::time::sleep;

use super::{Fault, Schedule, note};
use crate::clients::TOPIC;
use crate::cluster::{Cluster, PATIENCE};

/// A node's directory is gone: it must not vote as if it had what it had, and comes back as
/// another one.
pub(super) async fn wipe(schedule: &mut Schedule, cluster: &mut Cluster) -> Result<()> {
    let place = schedule.one(cluster);
    note(cluster, Fault::Wipe, &[place]);
    let id = cluster.node(place).id;
    let before = incarnation(&cluster.client().describe_cluster().await?, id);
    cluster.kill(place).await?;
    fs::remove_dir_all(cluster.bed.dir(place))?;
    cluster.spawn(place)?;
    wait_for(cluster, "another incarnation", async |cluster| {
        let seen = cluster.client_of(place).describe_cluster().await.ok()?;
        (incarnation(&seen, id) > before && seen.moving_partitions == 0).then_some(())
    })
    .await
}

fn incarnation(seen: &DescribeClusterResponse, id: u64) -> Option<u64> {
    seen.nodes.iter().find(|node| node.id == id).map(|node| node.incarnation)
}

/// A new node in place of an old one, which is alive and hands over, or dead.
pub(super) async fn replace(
    schedule: &mut Schedule,
    cluster: &mut Cluster,
    is_dead: bool,
) -> Result<()> {
    let (old, new) = (schedule.one(cluster), cluster.empty_place());
    note(cluster, if is_dead { Fault::ReplaceDead } else { Fault::Replace }, &[old, new]);
    let old_id = cluster.node(old).id;
    let new_id = cluster.settle(new, true);
    cluster.spawn(new)?;
    cluster.wait_until_whole().await?;
    if is_dead {
        cluster.kill(old).await?;
        wait_for(cluster, "the silence of a killed node", async |cluster| {
            let seen = cluster.client_of(new).describe_cluster().await.ok()?;
            let is_silent = |id| seen.nodes.iter().any(|node| node.id == id && !node.is_alive);
            is_silent(old_id).then_some(())
        })
        .await?;
    } else {
        move_some(schedule, cluster, old_id, new_id).await?;
    }
    let client = cluster.client_of(new);
    wait_for(cluster, "leave to take a node out", async |_| {
        client.decommission_node(old_id, is_dead).await.ok()
    })
    .await?;
    // Whoever takes part may die meanwhile.
    if !is_dead && schedule.rng.chance(400) {
        let victim = schedule.one(cluster);
        if victim != old {
            note(cluster, Fault::Kill, &[victim]);
            cluster.kill(victim).await?;
            sleep(Duration::from_millis(500)).await;
            cluster.spawn(victim)?;
        }
    }
    wait_for(cluster, "an end of the old node", async |cluster| {
        let seen = cluster.client_of(new).describe_cluster().await.ok()?;
        let is_there = seen.nodes.iter().any(|node| node.id == old_id);
        (!is_there && seen.moving_partitions == 0).then_some(())
    })
    .await?;
    cluster.kill(old).await?;
    cluster.clear_out(old)
}

/// Moves single partitions to the new node first.
async fn move_some(
    schedule: &mut Schedule,
    cluster: &mut Cluster,
    old_id: u64,
    new_id: u64,
) -> Result<()> {
    for partition in cluster.topic().await?.partitions {
        if !schedule.rng.chance(300) || !partition.replicas.contains(&old_id) {
            continue;
        }
        cluster.world.fault(format!("Move: partition {}", partition.partition));
        let swap = |id: &u64| if *id == old_id { new_id } else { *id };
        let replicas = partition.replicas.iter().map(swap).collect();
        cluster.client().move_partition(TOPIC, partition.partition, replicas).await?;
    }
    Ok(())
}

async fn wait_for<T>(
    cluster: &mut Cluster,
    what: &str,
    mut look: impl AsyncFnMut(&Cluster) -> Option<T>,
) -> Result<()> {
    let started = Instant::now();
    while look(cluster).await.is_none() {
        ensure!(started.elapsed() < PATIENCE, "{what} does not come within {PATIENCE:?}");
        for place in cluster.places() {
            cluster.reap(place);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
