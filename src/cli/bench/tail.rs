//! Consumers at work: through a whole topic, or at the heels of producers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinHandle;

use super::Plan;
use super::load::Load;
use super::report::{Latencies, Report};
use crate::cli::remote;
use crate::client::{
    Client, Consumer, ConsumerConfig, Event, GroupConsumerConfig, GroupEvent, GroupStart, Start,
};
use crate::proto::client::CreateGroupRequest;

/// How long to wait for records that were stored and have not come.
const STRAGGLER_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a topic from its beginning to where it ends now.
pub(super) async fn read_all(client: &Client, topic: &str) -> anyhow::Result<Report> {
    let ends = client.list_offsets(topic, Vec::new(), Start::Latest).await?;
    let ends: BTreeMap<u32, u64> = ends.iter().map(|end| (end.partition, end.offset)).collect();
    let mut consumer = client.consumer(ConsumerConfig::new(topic, Start::Earliest));
    let (mut records, mut bytes) = (0, 0);
    let started = Instant::now();
    drop(consumer.start().await?);
    while !has_reached(&consumer, &ends) {
        count(&consumer.next().await?, &mut records, &mut bytes);
        while let Some(event) = consumer.next_buffered() {
            count(&event, &mut records, &mut bytes);
        }
    }
    Ok(Report::new("consume", topic, records, bytes).took(started.elapsed()))
}

/// Reads a topic as [`read_all`] does, as the one member of a group that is made for it.
pub(super) async fn read_all_as_member(client: &Client, topic: &str) -> anyhow::Result<Report> {
    let name = format!("bench-{}", uuid::Uuid::new_v4().simple());
    let (topics, start) = (vec![topic.to_owned()], Some(GroupStart::Earliest.into()));
    let group = CreateGroupRequest { name: name.clone(), topics, start, ..Default::default() };
    client.create_group(group).await?;
    let read = read_as_member(client, topic, &name).await;
    if let Err(error) = client.delete_group(&name, true).await {
        eprintln!("warning: group {name} was not deleted: {error}");
    }
    read
}

async fn read_as_member(client: &Client, topic: &str, group: &str) -> anyhow::Result<Report> {
    let ends = client.list_offsets(topic, Vec::new(), Start::Latest).await?;
    let wanted: u64 = ends.iter().map(|end| end.offset - end.log_start_offset).sum();
    let mut consumer = client.group_consumer(GroupConsumerConfig::new(group));
    let (mut records, mut bytes) = (0, 0);
    let started = Instant::now();
    while records < wanted {
        let event = match consumer.next_buffered() {
            Some(event) => event,
            None => consumer.next().await?,
        };
        if let GroupEvent::Record(record) = event {
            records += 1;
            bytes += record.value.map_or(0, |value| value.len()) as u64;
        }
    }
    let took = started.elapsed();
    consumer.mark_done();
    consumer.close().await?;
    Ok(Report::new("consume", topic, records, bytes).took(took))
}

fn has_reached(consumer: &Consumer, ends: &BTreeMap<u32, u64>) -> bool {
    ends.iter().all(|(partition, end)| consumer.position(*partition) >= Some(*end))
}

fn count(event: &Event, records: &mut u64, bytes: &mut u64) {
    if let Event::Record(record) = event {
        *records += 1;
        *bytes += record.value.as_ref().map_or(0, bytes::Bytes::len) as u64;
    }
}

/// Produces, and measures when each record reaches a consumer.
pub(super) async fn end_to_end(
    plan: &Plan,
    remote: &remote::Args,
    client: &Client,
    topic: &str,
) -> anyhow::Result<Report> {
    let mut consumer = client.consumer(ConsumerConfig::new(topic, Start::Latest));
    drop(consumer.start().await?);
    let zero = Instant::now();
    let load = Load::start(plan, remote, topic, zero).await?;
    let (stop, stopped) = tokio::sync::watch::channel(None);
    let reader: JoinHandle<_> = tokio::spawn(follow(consumer, zero, stopped));
    let sent = load.finish().await?;
    stop.send_replace(Some(sent.records));
    let (latencies, received, took) = reader.await??;
    ensure!(
        received >= sent.records,
        "{} records were stored, and only {received} reached the consumer",
        sent.records
    );
    let bytes = received * u64::from(plan.record_bytes);
    let report = Report::new("e2e", topic, received, bytes).failed(sent.failed);
    Ok(report.took(took).latencies(&latencies))
}

/// Reads until as many records have come as `wanted` says at last.
async fn follow(
    mut consumer: Consumer,
    zero: Instant,
    mut wanted: tokio::sync::watch::Receiver<Option<u64>>,
) -> anyhow::Result<(Latencies, u64, Duration)> {
    let mut latencies = Latencies::new()?;
    let mut received = 0;
    loop {
        let is_over = wanted.borrow_and_update().is_some_and(|wanted| received >= wanted);
        if is_over {
            return Ok((latencies, received, zero.elapsed()));
        }
        let is_ending = wanted.borrow().is_some();
        let event = tokio::select! {
            event = consumer.next() => event?,
            _ = wanted.changed(), if !is_ending => continue,
            () = tokio::time::sleep(STRAGGLER_TIMEOUT), if is_ending => {
                return Ok((latencies, received, zero.elapsed()));
            }
        };
        if let Event::Record(record) = event {
            received += 1;
            let intended = record.value.as_deref().and_then(<[u8]>::first_chunk::<8>);
            let intended = intended.map_or(0, |bytes| u64::from_be_bytes(*bytes));
            latencies.record(zero.elapsed().saturating_sub(Duration::from_nanos(intended)));
        }
    }
}
