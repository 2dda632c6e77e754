//! What retention gives up leaves the disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quipu::batch;
use quipu::client::{Client, ClientConfig, ProducerConfig, Start};
use quipu::proto::client::CreateTopicRequest;
use quipu::server::Server;

use crate::support::{free_address, settings, wait_for};

/// Long enough to tell one round from the next.
const EVERY: Duration = Duration::from_secs(6);
const TOPIC: &str = "t";
const KEPT_BYTES: u64 = 2 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_the_round_that_gives_them_up() {
    let root = tempfile::tempdir().unwrap();
    let (server, client, log) = bounded_topic(root.path(), EVERY).await;
    // Not more than the size allows, so that only a round gives it up: for its age.
    send(&client, 5).await;
    let shorter = [("retention_ms".to_owned(), "1ms".to_owned())].into();
    client.alter_topic(TOPIC, shorter, Vec::new()).await.unwrap();
    wait_for("a later beginning", async || {
        let starts = client.list_offsets(TOPIC, vec![0], Start::Earliest).await.ok()?;
        (starts[0].offset > 0).then_some(())
    })
    .await;
    let given_up = Instant::now();
    wait_for("a shorter log", async || (segments_in(&log).len() == 1).then_some(())).await;
    assert!(given_up.elapsed() < EVERY * 3 / 4, "it took {:?}", given_up.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_keeps_to_its_size_between_rounds() {
    let root = tempfile::tempdir().unwrap();
    let (server, client, log) = bounded_topic(root.path(), Duration::from_secs(3600)).await;
    send(&client, 64).await;
    wait_for("a log of two megabytes", async || {
        let lengths = segments_in(&log).into_iter().filter_map(|path| path.metadata().ok());
        (lengths.map(|file| file.len()).sum::<u64>() <= KEPT_BYTES).then_some(())
    })
    .await;
    let starts = client.list_offsets(TOPIC, vec![0], Start::Earliest).await.unwrap();
    let kept = 64 - starts[0].offset;
    assert!((4..=8).contains(&kept), "of 64 records of a quarter megabyte {kept} are left");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_bound_holds_before_the_next_round() {
    let root = tempfile::tempdir().unwrap();
    let (server, client, log) = bounded_topic(root.path(), Duration::from_secs(3600)).await;
    send(&client, 7).await;
    let smaller = [("retention_bytes".to_owned(), "1MiB".to_owned())].into();
    client.alter_topic(TOPIC, smaller, Vec::new()).await.unwrap();
    wait_for("a shorter log", async || (segments_in(&log).len() == 1).then_some(())).await;
    let starts = client.list_offsets(TOPIC, vec![0], Start::Earliest).await.unwrap();
    assert!(starts[0].offset > 0);
    server.stop().await;
}

/// A server with retention every so often, and a topic of one partition with a bound; also where
/// the log of that is.
async fn bounded_topic(root: &Path, every: Duration) -> (Server, Client, PathBuf) {
    crate::log();
    let peer = free_address();
    let mut settings = settings(root, 1, peer, &[(1, peer)]);
    settings.retention_every = every;
    let server = Server::start(settings).await.unwrap();
    server.wait_until_ready().await;
    let address = server.addresses().clients.to_string();
    let client = Client::new(ClientConfig::new([address])).unwrap();
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replicas: 1,
        config: [("retention_bytes".to_owned(), KEPT_BYTES.to_string())].into(),
        ..CreateTopicRequest::default()
    };
    let topic = client.create_topic(request).await.unwrap();
    (server, client, root.join("1/logs").join(&topic.partitions[0].log_id))
}

/// Sends so many records of a quarter megabyte, each in a batch of its own.
async fn send(client: &Client, count: usize) {
    let producer = client.producer(ProducerConfig::new(TOPIC)).await.unwrap();
    let value = vec![7; 256 << 10];
    for _ in 0..count {
        let record = batch::Record { value: Some(&value), ..Default::default() };
        producer.send_to(0, &record).await.unwrap().await.unwrap();
    }
}

fn segments_in(log: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log).unwrap().filter_map(|file| Some(file.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}
