//! Topics that go with their files, and logs that shrink.

use std::fs;
use std::path::Path;

use quipu::batch;
use quipu::client::{ProducerConfig, Start};
use quipu::proto::client::CreateTopicRequest;

use super::load::{Load, read_all};
use super::nodes::{Cluster, TOPIC, wait_for};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_leaves_no_files_and_a_new_one_begins_empty() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.create_topic(2, 3).await;
    let client = cluster.client();
    let mut load = Load::start(&client).await;
    load.progress(50).await;
    load.stop().await;
    let mut logs = Vec::new();
    for id in cluster.ids() {
        let dir = cluster.node(id).data_dir.join("logs");
        logs.extend(old.partitions.iter().map(|partition| dir.join(&partition.log_id)));
    }
    assert!(logs.iter().all(|log| log.exists()), "{logs:?}");
    assert_eq!(client.delete_topic(TOPIC).await.unwrap(), old.id);
    wait_for("an end of the files", async || logs.iter().all(|log| !log.exists()).then_some(()))
        .await;
    let new = cluster.create_topic(2, 3).await;
    assert_ne!(new.id, old.id);
    let offsets = client.list_offsets(TOPIC, Vec::new(), Start::Latest).await.unwrap();
    assert!(offsets.iter().all(|at| at.offset == 0), "{offsets:?}");
    assert!(read_all(&client).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_by_size_shrinks_a_log_on_all_nodes() {
    let mut cluster = Cluster::start(3).await;
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replicas: 3,
        config: [("retention_bytes".to_owned(), (2 * MIB).to_string())].into(),
        ..CreateTopicRequest::default()
    };
    let client = cluster.client();
    let topic = client.create_topic(request).await.unwrap();
    let producer = client.producer(ProducerConfig::new(TOPIC)).await.unwrap();
    let value = vec![7; MIB / 4];
    for _ in 0..32 {
        let record = batch::Record { value: Some(&value), ..Default::default() };
        producer.send_to(0, &record).await.unwrap().await.unwrap();
    }
    // Eight records of a quarter are the most that fit.
    let first = wait_for("a later beginning", async || {
        let starts = client.list_offsets(TOPIC, vec![0], Start::Earliest).await.ok()?;
        Some(starts[0].offset).filter(|first| *first >= 24)
    })
    .await;
    // The files go with the next look.
    let log = &topic.partitions[0].log_id;
    for id in cluster.ids() {
        let dir = cluster.node(id).data_dir.join("logs").join(log);
        wait_for(&format!("a shorter log on node {id}"), async || {
            (bytes_in(&dir) <= 4 * MIB as u64).then_some(())
        })
        .await;
    }
    let read = &read_all(&client).await[&0];
    assert!(read[0].offset >= first && read[0].offset <= 28, "a segment may have gone meanwhile");
    assert_eq!(read.last().unwrap().offset, 31);
}

/// Bytes of the files in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).unwrap().filter_map(|file| file.ok()?.metadata().ok());
    files.map(|file| file.len()).sum()
}
