//! Publishes to NATS JetStream as the benches send to Quipu: records one by one, so many of them
//! unacknowledged at a time, through the client that its users use.
//!
//! `quipu-peers RECORD_BYTES IN_FLIGHT URL,URL,…` makes a stream with a replica on each server and
//! says `ready`. For each number that it then reads from stdin it publishes so many records, and
//! says how many nanoseconds that took until the last one was acknowledged. It ends with stdin.

#[path = "../../../src/cli/bench/noise.rs"]
mod noise;

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;

const STREAM: &str = "bench";
const SUBJECT: &str = "bench.records";
/// What the stream keeps, so that a long bench does not fill the disk.
const KEPT_BYTES: i64 = 256 << 20;
/// How long the servers may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [record_bytes, in_flight, servers] = arguments.as_slice() else {
        anyhow::bail!("usage: quipu-peers RECORD_BYTES IN_FLIGHT URL,URL,…");
    };
    let (record_bytes, in_flight) = (record_bytes.parse()?, in_flight.parse()?);
    let servers: Vec<&str> = servers.split(',').collect();
    let leader = make_stream(&servers).await?;
    let record = Bytes::from(noise::noise(record_bytes));
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let count = line?.trim().parse()?;
        let took = publish(&leader, &record, count, in_flight).await?;
        println!("{}", took.as_nanos());
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Makes the stream, once the servers can, and connects to the one that leads it: what is sent to
/// another one goes there over one more hop.
async fn make_stream(servers: &[&str]) -> anyhow::Result<jetstream::Context> {
    let started = Instant::now();
    let context = loop {
        match connect(servers[0]).await {
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            Ok(context) => break context,
        }
    };
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![SUBJECT.into()],
        num_replicas: servers.len(),
        storage: StorageType::File,
        max_bytes: KEPT_BYTES,
        discard: DiscardPolicy::Old,
        ..Config::default()
    };
    let leader = loop {
        let made = context.get_or_create_stream(config.clone()).await;
        let leader = made.as_ref().ok().and_then(|stream| {
            let cluster = stream.cached_info().cluster.as_ref()?;
            let is_whole = cluster.replicas.iter().all(|replica| replica.current);
            cluster.leader.clone().filter(|_| is_whole)
        });
        if let Some(leader) = leader {
            break leader;
        }
        if started.elapsed() > PATIENCE {
            made.context("the stream cannot be made")?;
            anyhow::bail!("the stream has no leader and {} replicas", servers.len());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    // The servers are named by their place in the list, from 1.
    let place: usize = leader.parse().context("the leader's name is not one of ours")?;
    connect(servers[place - 1]).await
}

async fn connect(server: &str) -> anyhow::Result<jetstream::Context> {
    let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
    let client = options.connect(server).await.context("the server cannot be reached")?;
    Ok(jetstream::new(client))
}

/// Publishes `count` records and waits until all are acknowledged.
async fn publish(
    context: &jetstream::Context,
    record: &Bytes,
    count: usize,
    in_flight: usize,
) -> anyhow::Result<Duration> {
    let mut waiting: VecDeque<PublishAckFuture> = VecDeque::with_capacity(in_flight);
    let started = Instant::now();
    for _ in 0..count {
        if waiting.len() == in_flight {
            acknowledged(&mut waiting).await?;
        }
        waiting.push_back(context.publish(SUBJECT, record.clone()).await?);
    }
    while !waiting.is_empty() {
        acknowledged(&mut waiting).await?;
    }
    Ok(started.elapsed())
}

async fn acknowledged(waiting: &mut VecDeque<PublishAckFuture>) -> anyhow::Result<()> {
    if let Some(oldest) = waiting.pop_front() {
        oldest.into_future().await.context("a record was not acknowledged")?;
    }
    Ok(())
}
