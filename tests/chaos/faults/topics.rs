//! Topics that are made, used, deleted and made anew under their old names.

use anyhow::{Context as _, Result, ensure};
use quipu::batch::Record;
use quipu::client::{Error, ProducerConfig, Start};
use quipu::proto::client::{CreateTopicRequest, Topic};
use quipu::proto::server::FetchRequest;
use quipu::proto::server::log_service_client::LogServiceClient;
use tonic_types::StatusExt as _;

use super::{Fault, Schedule, note};
use crate::clients::connect;
use crate::cluster::Cluster;

const RECORDS: u64 = 200;

pub(super) async fn turn_over(schedule: &mut Schedule, cluster: &mut Cluster) -> Result<()> {
    note(cluster, Fault::Topics, &[]);
    let name = format!("side-{}", schedule.rng.below(4));
    let client = cluster.client();
    if let Err(error) = client.delete_topic(&name).await {
        ensure!(matches!(error, Error::NotFound(_)), "a topic cannot be deleted: {error}");
    }
    let first = create(cluster, &name).await?;
    fill(cluster, &name).await?;
    // A leader dies while the topic goes.
    let place = schedule.one(cluster);
    cluster.kill(place).await?;
    let deleted = client.delete_topic(&name).await;
    cluster.spawn(place)?;
    deleted.context("a topic cannot be deleted")?;
    let second = create(cluster, &name).await?;
    ensure!(first.id != second.id, "two topics have the id {}", first.id);
    cluster.wait_until_whole().await?;
    let ends = client.list_offsets(&name, Vec::new(), Start::Latest).await?;
    ensure!(ends.iter().all(|end| end.offset == 0), "{name} has what it had: {ends:?}");
    for place in cluster.places() {
        let channel = connect(&cluster.bed.addresses(place)[0]).await.context("a node is away")?;
        let (topic, topic_id) = (name.clone(), first.id.clone());
        let request = FetchRequest { topic, topic_id, ..FetchRequest::default() };
        let answer = LogServiceClient::new(channel).fetch(request).await;
        let reason = answer.err().and_then(|status| status.get_details_error_info());
        let is_gone = reason.as_ref().is_some_and(|info| info.reason == "UNKNOWN_TOPIC_ID");
        ensure!(is_gone, "place {place} knows {name} of {}: {reason:?}", first.id);
    }
    fill(cluster, &name).await
}

async fn create(cluster: &Cluster, name: &str) -> Result<Topic> {
    let (name, partitions, replicas) = (name.to_owned(), 2, 3);
    let request =
        CreateTopicRequest { name, partitions, replicas, ..CreateTopicRequest::default() };
    Ok(cluster.client().create_topic(request).await?)
}

/// Stores some records, whatever it takes.
async fn fill(cluster: &Cluster, name: &str) -> Result<()> {
    let producer = cluster.client().producer(ProducerConfig::new(name)).await?;
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        let value = number.to_le_bytes();
        let record = Record { value: Some(&value), ..Record::default() };
        deliveries.push(producer.send_to((number % 2) as u32, &record).await?);
    }
    for (number, delivery) in (0..).zip(deliveries) {
        let receipt = delivery.await?;
        ensure!(receipt.offset == number / 2, "record {number} of {name} is at {receipt:?}");
    }
    Ok(())
}
