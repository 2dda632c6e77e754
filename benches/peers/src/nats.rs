//! NATS JetStream: a stream for each partition.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::time::Instant;

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;

use super::{KEPT_BYTES, LOOK_EVERY, PATIENCE, Publisher};

/// A connection to the server that leads its stream: what is sent to another one goes there over
/// one more hop.
pub(crate) struct Nats {
    context: jetstream::Context,
    subject: String,
}

/// Makes the streams and so many connections.
pub(crate) async fn connect(
    servers: Vec<&str>,
    streams: usize,
    replicas: usize,
    connections: usize,
) -> anyhow::Result<Vec<Nats>> {
    let context = patiently(async || open(servers[0]).await).await?;
    let mut leaders = Vec::new();
    for stream in 0..streams {
        let made = patiently(async || make_stream(&context, stream, streams, replicas).await);
        leaders.push(made.await?);
    }
    let mut publishers = Vec::new();
    for connection in 0..connections {
        let stream = connection % streams;
        let context = open(servers[leaders[stream]]).await?;
        publishers.push(Nats { context, subject: subject(stream) });
    }
    Ok(publishers)
}

fn subject(stream: usize) -> String {
    format!("bench.{stream}")
}

/// Tries until it succeeds: servers need some time to find each other.
async fn patiently<T>(attempt: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match attempt().await {
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            done => return done,
        }
    }
}

/// Makes a stream. Returns the place of the server that leads it; they are named by it, from 1.
async fn make_stream(
    context: &jetstream::Context,
    stream: usize,
    streams: usize,
    replicas: usize,
) -> anyhow::Result<usize> {
    let config = Config {
        name: format!("bench-{stream}"),
        subjects: vec![subject(stream).into()],
        num_replicas: replicas,
        storage: StorageType::File,
        max_bytes: (KEPT_BYTES / streams) as i64,
        discard: DiscardPolicy::Old,
        ..Config::default()
    };
    let made = context.get_or_create_stream(config).await.context("the stream cannot be made")?;
    let Some(cluster) = made.cached_info().cluster.as_ref() else { return Ok(0) };
    let is_whole = cluster.replicas.iter().all(|replica| replica.current);
    let leader = cluster.leader.as_ref().filter(|_| is_whole);
    let leader = leader.context("the stream has no leader and all its replicas")?;
    let place: usize = leader.parse().context("the leader's name is not one of ours")?;
    Ok(place - 1)
}

async fn open(server: &str) -> anyhow::Result<jetstream::Context> {
    let options = async_nats::ConnectOptions::new().ignore_discovered_servers();
    let client = options.connect(server).await.context("the server cannot be reached")?;
    Ok(jetstream::new(client))
}

impl Publisher for Nats {
    async fn publish(&self, record: Bytes, end: Instant, in_flight: usize) -> anyhow::Result<u64> {
        let mut waiting: VecDeque<PublishAckFuture> = VecDeque::with_capacity(in_flight);
        let mut count = 0;
        while Instant::now() < end {
            if waiting.len() == in_flight {
                acknowledged(&mut waiting).await?;
            }
            waiting.push_back(self.context.publish(self.subject.clone(), record.clone()).await?);
            count += 1;
        }
        while !waiting.is_empty() {
            acknowledged(&mut waiting).await?;
        }
        Ok(count)
    }
}

async fn acknowledged(waiting: &mut VecDeque<PublishAckFuture>) -> anyhow::Result<()> {
    if let Some(oldest) = waiting.pop_front() {
        oldest.into_future().await.context("a record was not acknowledged")?;
    }
    Ok(())
}
