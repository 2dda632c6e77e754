//! Offset commits at work: as many as there can be.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::report::{Latencies, Report};
use crate::batch::Record;
use crate::cli::remote;
use crate::client::{Client, GroupStart, ProducerConfig};
use crate::proto::client::{CommitOffsetsRequest, CreateGroupRequest, OffsetCommit};

/// Records of a partition, so that offsets can go up.
const RECORDS: u64 = 1000;

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Partitions of the topic that is made
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) partitions: u32,
    /// Replicas of each; by default 3, or 1 in a cluster of one or two nodes
    #[arg(long, value_name = "N")]
    pub(super) replicas: Option<u32>,
    /// Groups that read the topic, each with a position in every partition
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    groups: u32,
    /// Clients of each group, with connections and one call at a time of their own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    clients: u32,
    /// Offsets in one call, each of another partition
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    offsets: u32,
    /// For how long to commit
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) seconds: u64,
}

/// What clients did.
struct Done {
    offsets: u64,
    failed: u64,
    latencies: Latencies,
}

impl Done {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { offsets: 0, failed: 0, latencies: Latencies::new()? })
    }
}

/// Commits offsets of groups that are made for it.
pub(super) async fn run(
    plan: &Plan,
    remote: &remote::Args,
    client: &Client,
    topic: &str,
) -> anyhow::Result<Report> {
    fill(client, topic, plan.partitions).await?;
    let groups: Vec<_> = (0..plan.groups).map(|n| format!("{topic}-{n}")).collect();
    for group in &groups {
        let (name, topics) = (group.clone(), vec![topic.to_owned()]);
        let start = Some(GroupStart::Earliest.into());
        let group = CreateGroupRequest { name, topics, start, ..Default::default() };
        client.create_group(group).await?;
    }
    let committed = commit_all(plan, remote, topic, &groups).await;
    for group in &groups {
        if let Err(error) = client.delete_group(group, true).await {
            eprintln!("warning: group {group} was not deleted: {error}");
        }
    }
    committed
}

async fn fill(client: &Client, topic: &str, partitions: u32) -> anyhow::Result<()> {
    let producer = client.producer(ProducerConfig::new(topic)).await?;
    let record = Record { value: Some(b"x"), ..Default::default() };
    let mut last = Vec::new();
    for partition in 0..partitions {
        for _ in 1..RECORDS {
            producer.send_to(partition, &record).await?;
        }
        last.push(producer.send_to(partition, &record).await?);
    }
    for delivery in last {
        delivery.await?;
    }
    producer.close().await;
    Ok(())
}

async fn commit_all(
    plan: &Plan,
    remote: &remote::Args,
    topic: &str,
    groups: &[String],
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let mut workers = Vec::new();
    let until = started + Duration::from_secs(plan.seconds);
    let in_group = groups.iter().flat_map(|group| (0..plan.clients).map(move |n| (group, n)));
    for (group, worker) in in_group {
        let client = Client::new(remote.config())?;
        // Each has partitions of its own, as members have.
        let own = (0..plan.partitions).filter(|n| n % plan.clients == worker % plan.partitions);
        let names = (group.clone(), topic.to_owned());
        let work = commit(client, names, own.collect(), plan.offsets, until);
        workers.push(tokio::spawn(work));
    }
    let mut all = Done::new()?;
    for worker in workers {
        let done = worker.await.context("a client ended")??;
        all.offsets += done.offsets;
        all.failed += done.failed;
        all.latencies.add(&done.latencies)?;
    }
    let report = Report::new("commit", topic, all.offsets, 0).of("offset").failed(all.failed);
    Ok(report.took(started.elapsed()).latencies(&all.latencies))
}

async fn commit(
    client: Client,
    (group, topic): (String, String),
    partitions: Vec<u32>,
    offsets: u32,
    until: Instant,
) -> anyhow::Result<Done> {
    let mut done = Done::new()?;
    let mut next_offsets = vec![0; partitions.len()];
    let mut turns = (0..partitions.len()).cycle();
    while Instant::now() < until && !partitions.is_empty() {
        let turn = turns.by_ref().take((offsets as usize).min(partitions.len()));
        let offsets: Vec<_> = turn
            .map(|n| {
                next_offsets[n] = (next_offsets[n] + 1).min(RECORDS);
                let (topic, next_offset) = (topic.clone(), next_offsets[n]);
                let partition = partitions[n];
                OffsetCommit { topic, partition, next_offset, ..Default::default() }
            })
            .collect();
        let request = CommitOffsetsRequest { group: group.clone(), offsets, ..Default::default() };
        let asked = Instant::now();
        let outcomes = client.commit_offsets(request).await?;
        done.latencies.record(asked.elapsed());
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count() as u64;
        done.failed += failed;
        done.offsets += outcomes.len() as u64 - failed;
    }
    Ok(done)
}
