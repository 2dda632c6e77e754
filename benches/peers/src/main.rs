//! Publishes to other servers as the benches send to Quipu: records one by one, so many of them
//! unacknowledged at a time, through the clients that their users use.
//!
//! `quipu-peers nats STREAMS REPLICAS CONNECTIONS RECORD_BYTES IN_FLIGHT URL,URL,…` and
//! `quipu-peers redis STREAMS CONNECTIONS RECORD_BYTES IN_FLIGHT URL` make the streams and say
//! `ready`. For each number that they then read from stdin they publish for so many milliseconds,
//! over all connections, which are spread over the streams. Then they say how many records that
//! were, and how many nanoseconds it took until the last one was acknowledged. They end with stdin.

mod nats;
#[path = "../../../src/cli/bench/noise.rs"]
mod noise;
mod redis;

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;

/// What the streams keep, all together, so that a long bench does not fill the disk.
const KEPT_BYTES: usize = 256 << 20;
/// How long the servers may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One connection: publishes until `end`, with `in_flight` records unacknowledged, and returns how
/// many there were, all acknowledged.
trait Publisher: Send + Sync + 'static {
    fn publish(
        &self,
        record: Bytes,
        end: Instant,
        in_flight: usize,
    ) -> impl Future<Output = anyhow::Result<u64>> + Send;
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (numbers, servers) = match arguments.split_first() {
        Some((_, rest)) if !rest.is_empty() => rest.split_at(rest.len() - 1),
        _ => anyhow::bail!("usage: quipu-peers nats|redis NUMBER… URL,URL,…"),
    };
    let numbers: Result<Vec<usize>, _> = numbers.iter().map(|text| text.parse()).collect();
    let (numbers, servers) = (numbers.context("a number")?, servers[0].split(',').collect());
    match (arguments[0].as_str(), numbers.as_slice()) {
        ("nats", [streams, replicas, connections, record_bytes, in_flight]) => {
            let publishers = nats::connect(servers, *streams, *replicas, *connections).await?;
            serve(publishers, *record_bytes, *in_flight).await
        }
        ("redis", [streams, connections, record_bytes, in_flight]) => {
            let publishers = redis::connect(servers[0], *streams, *connections).await?;
            serve(publishers, *record_bytes, *in_flight).await
        }
        _ => anyhow::bail!("usage: quipu-peers nats|redis NUMBER… URL,URL,…"),
    }
}

/// Publishes for as long as each line says, and says what became of it.
async fn serve<P: Publisher>(
    publishers: Vec<P>,
    record_bytes: usize,
    in_flight: usize,
) -> anyhow::Result<()> {
    let record = Bytes::from(noise::noise(record_bytes));
    let publishers: Vec<_> = publishers.into_iter().map(std::sync::Arc::new).collect();
    let in_flight = (in_flight / publishers.len()).max(1);
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let time = Duration::from_millis(line?.trim().parse()?);
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for publisher in publishers.iter().cloned() {
            let record = record.clone();
            let end = started + time;
            tasks.spawn(async move { publisher.publish(record, end, in_flight).await });
        }
        let mut count = 0;
        while let Some(done) = tasks.join_next().await {
            count += done??;
        }
        println!("{count} {}", started.elapsed().as_nanos());
        std::io::stdout().flush()?;
    }
    Ok(())
}
