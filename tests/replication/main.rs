//! Partitions replicated between three nodes of one process: real files, real threads.

#![allow(unreachable_pub, reason = "the modules of a test share what they need")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::sync::Arc;

use quipu::partition::{Acks, AskError, Command, FetchError, Handle, InitProducer};
use quipu::raft::{Durability, Operation};
use quipu::storage::fs::Fs;
use quipu::storage::fs::sim::SimFs;
use quipu::storage::{Access, Policy};
use quipu::types::NodeId;

use support::{Cluster, Setup, batch, partition, read_all, wait_for};

/// Appends `values`, going to whoever leads, until each is acknowledged.
async fn append_all(cluster: &Cluster, n: usize, values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut offsets = Vec::new();
    for value in values {
        loop {
            let leader = cluster.leader(n);
            match leader.append(batch(value, 1000), Acks::Quorum).await {
                Ok(appended) => break offsets.push(appended.base_offset),
                Err(error) => assert!(error.is_retriable(), "{error}"),
            }
        }
    }
    offsets
}

/// Waits until a replica has all values up to `end`, in order. One whose append ended without
/// answer was tried again, and may be there twice.
fn wait_for_values(handle: &Handle, end: u64) {
    wait_for("the last value", || {
        let mut values = read_all(handle);
        values.dedup();
        (values.len() as u64 >= end).then(|| assert!(values.into_iter().eq(0..end)))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_read_from_every_replica() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::found(root.path(), &Setup::for_tests(3, Durability::Fsync));
    for n in 0..3 {
        let offsets = append_all(&cluster, n, 0..300).await;
        assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
    }
    for handles in &cluster.handles {
        for handle in handles {
            wait_for_values(handle, 300);
        }
    }
    assert!(cluster.leader(0).barrier().await.unwrap() >= 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_steps_down_and_follows_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::found(root.path(), &Setup::for_tests(1, Durability::Fsync));
    append_all(&cluster, 0, 0..50).await;
    let old = cluster.leader(0);
    let node = old.status().leader.unwrap().node();
    cluster.network.cut_off(node);
    let cut_off = old.append(batch(999, 100), Acks::Quorum).await;
    assert_eq!(cut_off, Err(AskError::Unknown), "whether it is stored cannot be known");
    let refused = old.append(batch(998, 100), Acks::Quorum).await;
    assert!(matches!(refused, Err(AskError::NotLeader { .. })), "{refused:?}");
    append_all(&cluster, 0, 50..100).await;
    cluster.network.heal();
    for handles in &cluster.handles {
        wait_for_values(&handles[0], 100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_all_nodes_were_stopped() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let cluster = if round == 0 {
            Cluster::found(root.path(), &Setup::for_tests(2, Durability::Fsync))
        } else {
            Cluster::start(root.path(), &Setup::for_tests(2, Durability::Fsync))
        };
        append_all(&cluster, 1, round * 100..(round + 1) * 100).await;
        wait_for_values(cluster.leader(1), (round + 1) * 100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_catches_up_from_segments_and_from_a_snapshot() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::found(root.path(), &Setup::for_tests(1, Durability::Fsync));
    append_all(&cluster, 0, 0..20).await;
    let leader = cluster.leader(0).status().leader.unwrap().node();
    let behind = NodeId(leader.0 % 3 + 1);
    cluster.network.cut_off(behind);
    append_all(&cluster, 0, 20..1500).await;
    // The leader forgets the start: the first to come back needs a snapshot.
    let host = cluster.host(cluster.leader(0).status().leader.unwrap().node());
    let policy = Policy { bytes: Some(600 * 1024), ..Policy::default() };
    wait_for("retention", || {
        host.retain(partition(0), policy).unwrap();
        (cluster.leader(0).reader().log_start_offset() > 100).then_some(())
    });
    cluster.network.heal();
    let handle = &cluster.handles[behind.0 as usize - 1][0];
    assert!(handle.wait_beyond(1499).await >= 1500);
    wait_for("the snapshot", || (handle.reader().log_start_offset() > 100).then_some(()));
    let from = handle.reader().log_start_offset();
    let fetched = handle.fetch(from, 1, Access::MayBlock).unwrap();
    assert_eq!(fetched.batches[0].header.base_offset, from);
    let gone = handle.fetch(5, 1, Access::MayBlock);
    assert!(matches!(gone, Err(FetchError::OutOfRange { requested: 5, .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_syncs_keeps_to_its_size() {
    let root = tempfile::tempdir().unwrap();
    let mut setup = Setup::for_tests(1, Durability::Memory);
    // Else as much as was dropped could be kept for another use.
    setup.storage.spares_max = 1;
    let cluster = Cluster::found(root.path(), &setup);
    let nodes = [1, 2, 3];
    for node in nodes {
        cluster.host(NodeId(node)).keep_within(partition(0), Some(600 * 1024)).unwrap();
    }
    append_all(&cluster, 0, 0..3000).await;
    for node in nodes {
        let root = root.path().join(node.to_string());
        let dirs = [root.join("spare"), root.join("logs").join(partition(0).to_string())];
        wait_for("a short log", || {
            let files = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
            let bytes: u64 = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum();
            (bytes < 1500 * 1024).then_some(())
        });
    }
    let handle = &cluster.handles[0][0];
    assert!(handle.reader().log_start_offset() > 2000, "of 3 MB more than 2 are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_answered_with_the_first_offset_and_stored_once() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::found(root.path(), &Setup::for_tests(1, Durability::Memory));
    let leader = cluster.leader(0);
    let init = InitProducer { producer_id: 7, take_over: false };
    leader.command(Command::InitProducer(init)).await.unwrap();
    let mut first = batch(1, 100);
    first.producer_id = 7;
    for _ in 0..3 {
        let appended = leader.append(first.clone(), Acks::Quorum).await.unwrap();
        assert_eq!((appended.base_offset, appended.durability), (0, Durability::Memory));
    }
    assert_eq!(leader.barrier().await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_where_it_is_sent_and_a_replica_can_be_removed() {
    let root = tempfile::tempdir().unwrap();
    let cluster = Cluster::found(root.path(), &Setup::for_tests(1, Durability::Fsync));
    let old = cluster.leader(0).status().leader.unwrap();
    let to = quipu::types::ReplicaId::new(NodeId(old.node().0 % 3 + 1), 1);
    let answer = cluster.host(old.node()).transfer(partition(0), to).unwrap();
    assert_eq!(answer.await.unwrap(), Ok(0));
    wait_for("the new leader", || (cluster.leader(0).status().leader == Some(to)).then_some(()));
    let remove = vec![Operation::Remove(old)];
    let answer = cluster.host(to.node()).change(partition(0), remove).unwrap();
    assert!(answer.await.unwrap().is_ok());
    append_all(&cluster, 0, 0..10).await;
    wait_for_values(cluster.leader(0), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_full_disk_has_nothing_to_read_beyond_what_it_wrote() {
    let disks = [SimFs::new(), SimFs::new(), SimFs::new()];
    let fs = disks.clone().map(|disk| -> Arc<dyn Fs> { Arc::new(disk) });
    let setup = Setup { fs, ..Setup::for_tests(1, Durability::Fsync) };
    let cluster = Cluster::found(Path::new("/data"), &setup);
    append_all(&cluster, 0, 0..5).await;
    let leader = cluster.leader(0);
    let disk = &disks[leader.status().leader.unwrap().node().0 as usize - 1];
    disk.set_capacity(Some(disk.used_bytes()));
    for n in 5..500 {
        let stored = leader.append(batch(n, 3000), Acks::Quorum).await;
        let (end, status) = (leader.reader().log_end_offset(), leader.status());
        if status.high_watermark > end {
            let fetched = leader.fetch(end, 1, Access::MayBlock).unwrap();
            assert_eq!((fetched.batches.len(), fetched.next_offset), (0, end), "{stored:?}");
            return;
        }
    }
    panic!("the leader's disk never fell behind the others");
}

/// Flips a bit in a record of partition 0 on a node that is down.
fn damage(root: &Path, node: u64, value: u64) {
    let dir = root.join(node.to_string()).join("logs").join(partition(0).to_string());
    let mut needle = value.to_le_bytes().to_vec();
    needle.resize(64, value as u8);
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == needle) {
            bytes[at + 32] ^= 4;
            return std::fs::write(&path, bytes).unwrap();
        }
    }
    panic!("value {value} is not on node {node}");
}

/// True if all values up to `end` can be read.
fn reads_all(handle: &Handle, end: u64) -> bool {
    let mut offset = handle.reader().log_start_offset();
    while let Ok(fetched) = handle.fetch(offset, 1 << 20, Access::MayBlock)
        && !fetched.batches.is_empty()
    {
        offset = fetched.next_offset;
    }
    offset >= end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_different_places_on_all_nodes_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let setup = Setup::for_tests(1, Durability::Fsync);
    let cluster = Cluster::found(root.path(), &setup);
    append_all(&cluster, 0, 0..600).await;
    for handles in &cluster.handles {
        wait_for_values(&handles[0], 600);
    }
    drop(cluster);
    for (node, values) in [(1, [20, 590]), (2, [120, 592]), (3, [220, 594])] {
        values.into_iter().for_each(|value| damage(root.path(), node, value));
    }
    let cluster = Cluster::start(root.path(), &setup);
    append_all(&cluster, 0, 600..620).await;
    for (n, handles) in (1..).zip(&cluster.handles) {
        wait_for("a replica that is whole", || reads_all(&handles[0], 620).then_some(()));
        wait_for_values(&handles[0], 620);
        assert!(cluster.host(NodeId(n)).counts().logs_mended > 0, "node {n} was damaged");
    }
}
