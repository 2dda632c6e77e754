//! Redis Streams: a stream for each partition, its records added with `XADD`.

use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use redis::aio::MultiplexedConnection;

use super::{KEPT_BYTES, LOOK_EVERY, PATIENCE, Publisher};

/// What an entry takes beside its value, roughly.
const ENTRY_BYTES: usize = 32;

/// A connection, and the stream that it adds to.
pub(crate) struct Redis {
    connection: MultiplexedConnection,
    key: String,
    streams: usize,
}

/// Makes so many connections. Streams are made when they are added to.
pub(crate) async fn connect(
    server: &str,
    streams: usize,
    connections: usize,
) -> anyhow::Result<Vec<Redis>> {
    let client = redis::Client::open(server).context("no address of a server")?;
    let started = Instant::now();
    while client.get_multiplexed_async_connection().await.is_err() {
        anyhow::ensure!(started.elapsed() < PATIENCE, "{server} cannot be reached");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut publishers = Vec::new();
    for connection in 0..connections {
        let key = format!("bench-{}", connection % streams);
        let connection = client.get_multiplexed_async_connection().await?;
        publishers.push(Redis { connection, key, streams });
    }
    Ok(publishers)
}

impl Publisher for Redis {
    /// The client sends what waits for its connection in one write, as a pipeline would.
    async fn publish(&self, record: Bytes, end: Instant, in_flight: usize) -> anyhow::Result<u64> {
        let kept = KEPT_BYTES / self.streams / (record.len() + ENTRY_BYTES);
        let mut command = redis::cmd("XADD");
        command.arg(&self.key).arg("MAXLEN").arg("~").arg(kept).arg("*").arg("v").arg(&record[..]);
        let add = || {
            let (mut connection, command) = (self.connection.clone(), &command);
            async move { command.query_async::<String>(&mut connection).await }
        };
        let mut waiting = FuturesUnordered::new();
        let mut count = 0;
        while Instant::now() < end {
            if waiting.len() == in_flight {
                waiting.next().await.transpose().context("a record was not acknowledged")?;
            }
            waiting.push(add());
            count += 1;
        }
        while let Some(done) = waiting.next().await {
            done.context("a record was not acknowledged")?;
        }
        Ok(count)
    }
}
