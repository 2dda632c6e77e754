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

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_the_round_that_gives_them_up() {
    crate::log();
    let root = tempfile::tempdir().unwrap();
    let peer = free_address();
    let mut settings = settings(root.path(), 1, peer, &[(1, peer)]);
    settings.retention_every = EVERY;
    let server = Server::start(settings).await.unwrap();
    server.wait_until_ready().await;
    let address = server.addresses().clients.to_string();
    let client = Client::new(ClientConfig::new([address])).unwrap();
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replicas: 1,
        config: [("retention_bytes".to_owned(), (2 << 20).to_string())].into(),
        ..CreateTopicRequest::default()
    };
    let topic = client.create_topic(request).await.unwrap();
    let producer = client.producer(ProducerConfig::new(TOPIC)).await.unwrap();
    let value = vec![7; 256 << 10];
    for _ in 0..32 {
        let record = batch::Record { value: Some(&value), ..Default::default() };
        producer.send_to(0, &record).await.unwrap().await.unwrap();
    }
    let log = root.path().join("1/logs").join(&topic.partitions[0].log_id);
    wait_for("a later beginning", async || {
        let starts = client.list_offsets(TOPIC, vec![0], Start::Earliest).await.ok()?;
        (starts[0].offset > 0).then_some(())
    })
    .await;
    let given_up = Instant::now();
    wait_for("a shorter log", async || (segments_in(&log).len() <= 4).then_some(())).await;
    assert!(given_up.elapsed() < EVERY * 3 / 4, "it took {:?}", given_up.elapsed());
    server.stop().await;
}

fn segments_in(log: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(log).unwrap().filter_map(|file| Some(file.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}
