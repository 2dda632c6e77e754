//! `quipu demo`: a cluster, a leader's death, and proof that nothing is lost.

mod ledger;
mod nodes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::value_parser;
use serde::Serialize;
use tokio::sync::watch;

use self::ledger::{Ledger, NUMBER};
use self::nodes::Nodes;
use super::Verdict;
use super::output::{self, Format, Output};
use crate::batch;
use crate::client::{Client, ConsumerConfig, Event, Producer, ProducerConfig, Record, Start};
use crate::proto::client::CreateTopicRequest;
use crate::storage::fs::os::read_whole;

/// Starts three nodes, loses the leader, and counts
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The lines to send; without it, lines of a made-up access log
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Partitions of the topic
    #[arg(long, value_name = "N", default_value_t = 6)]
    #[arg(value_parser = value_parser!(u32).range(1..=64))]
    partitions: u32,
    /// How often a leader is killed
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u32).range(1..=1000))]
    kills: u32,
}

const AFTER_HELP: &str = "\
Everything runs on this machine, in a temporary directory that goes at the end.

Examples:
  quipu demo
  quipu demo --file /var/log/syslog
  quipu demo --kills 20

Exit codes: 0 nothing was lost, doubled, reordered or altered, 1 something was.";

const TOPIC: &str = "demo";
/// Lines of the made-up log.
const LINES: u64 = 20_000;
/// Time between two records of a partition while leaders die.
const PACE: Duration = Duration::from_millis(5);
/// How long a partition may be without acknowledgments before this gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it came to.
#[derive(Debug, Serialize)]
struct Summary {
    verdict: ledger::Verdict,
    bytes: u64,
    produce_records_per_second: f64,
    kills: u32,
    /// From the last acknowledgment before a leader's death to the first after it.
    fail_over_ms: FailOver,
    replayed_from_offset: u64,
    replayed_from_time: u64,
}

#[derive(Debug, Default, Serialize)]
struct FailOver {
    median: u64,
    p99: u64,
    max: u64,
    /// Partitions that lost their leader, over all kills.
    count: usize,
}

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let lines = lines(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let summary = runtime.block_on(async {
        tokio::select! {
            summary = demonstrate(args, &lines) => summary,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; the nodes were stopped"),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    let summary = summary?;
    print(&summary, output)?;
    Ok(if summary.verdict.is_good() { Verdict::Good } else { Verdict::Bad })
}

/// The values to send: lines of the file, or made up.
fn lines(args: &Args) -> anyhow::Result<Vec<Bytes>> {
    let Some(path) = &args.file else {
        return Ok((0..LINES).map(|n| Bytes::from(made_up(n))).collect());
    };
    let bytes = read_whole(path);
    let bytes = Bytes::from(bytes.with_context(|| format!("cannot read {}", path.display()))?);
    let mut lines: Vec<Bytes> =
        bytes.split(|byte| *byte == b'\n').map(|line| bytes.slice_ref(line)).collect();
    // A newline ends a line, it does not begin one.
    if lines.last().is_some_and(Bytes::is_empty) {
        lines.pop();
    }
    if lines.is_empty() {
        bail!("{} has no lines", path.display());
    }
    Ok(lines)
}

fn made_up(n: u64) -> String {
    let (client, path) = (n.wrapping_mul(2_654_435_761) >> 7, n.wrapping_mul(40_503) >> 3);
    format!(
        "10.{}.{}.{} GET /orders/{} {} {} ms",
        client % 200,
        client / 7 % 250,
        client / 31 % 250,
        path % 9_973,
        if n.is_multiple_of(97) { 503 } else { 200 },
        n % 311
    )
}

/// Says what goes on.
fn say(text: &str) {
    eprintln!("  {text}");
}

async fn demonstrate(args: &Args, lines: &[Bytes]) -> anyhow::Result<Summary> {
    let root = tempfile::Builder::new().prefix("quipu-demo-").tempdir()?;
    eprintln!("quipu demo: three nodes in {}", root.path().display());
    let mut nodes = Nodes::start(root.path())?;
    let client = nodes.client()?;
    nodes.wait_until_whole(&client).await?;
    say("three nodes are one cluster");
    let topic = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: args.partitions,
        replicas: 3,
        ..CreateTopicRequest::default()
    };
    client.create_topic(topic).await?;
    say(&format!("topic {TOPIC:?}: {} partitions, 3 replicas, on disk", args.partitions));
    let ledger = Ledger::default();
    let (bytes, rate) = produce_all(&client, &ledger, lines).await?;
    say(&format!("{} records stored, {rate:.0} a second", lines.len()));
    let (gaps, killed_at_ms) = kill_leaders(args, &mut nodes, &client, &ledger, lines).await?;
    let read = read_all(&client, Start::Earliest).await?;
    let verdict = ledger.judge(&read);
    say(&format!("{} records read back and compared", read.len()));
    let middle = read.iter().filter(|record| record.partition == 0).count() as u64 / 2;
    let replayed_from_offset = replay_from_offset(&client, &read, middle).await?;
    let replayed_from_time = replay_from_time(&client, &read, killed_at_ms).await?;
    nodes.stop().await;
    let fail_over_ms = FailOver::of(gaps);
    let produce_records_per_second = rate;
    Ok(Summary {
        verdict,
        bytes,
        produce_records_per_second,
        kills: args.kills,
        fail_over_ms,
        replayed_from_offset,
        replayed_from_time,
    })
}

/// Sends every line once. Returns their bytes and how many were stored a second.
async fn produce_all(
    client: &Client,
    ledger: &Ledger,
    lines: &[Bytes],
) -> anyhow::Result<(u64, f64)> {
    let producer = client.producer(ProducerConfig::new(TOPIC)).await?;
    let started = Instant::now();
    let mut deliveries = Vec::with_capacity(lines.len());
    for (n, line) in lines.iter().enumerate() {
        let partition = n as u32 % producer.partitions();
        deliveries.push(send(&producer, ledger, partition, line).await?);
    }
    producer.flush().await;
    for (delivery, number) in deliveries {
        ledger.acknowledge(&delivery.await?, number);
    }
    producer.close().await;
    let bytes = lines.iter().map(|line| line.len() as u64).sum();
    Ok((bytes, lines.len() as f64 / started.elapsed().as_secs_f64()))
}

async fn send(
    producer: &Producer,
    ledger: &Ledger,
    partition: u32,
    line: &Bytes,
) -> anyhow::Result<(crate::client::Delivery, u64)> {
    let number = ledger.number(partition, line.clone());
    let bytes = number.to_le_bytes();
    let headers: [(&str, &[u8]); 1] = [(NUMBER, &bytes)];
    let record = batch::Record { value: Some(line), headers: &headers, ..Default::default() };
    Ok((producer.send_to(partition, &record).await?, number))
}

/// Kills leaders while producing goes on. Returns how long partitions were without
/// acknowledgments, and when the last leader was killed.
async fn kill_leaders(
    args: &Args,
    nodes: &mut Nodes,
    client: &Client,
    ledger: &Ledger,
    lines: &[Bytes],
) -> anyhow::Result<(Vec<Duration>, i64)> {
    let producer = client.producer(ProducerConfig::new(TOPIC)).await?;
    let (stop, stops) = watch::channel(false);
    let mut senders = Vec::new();
    let mut heard = Vec::new();
    for partition in 0..args.partitions {
        let (told, hears) = watch::channel(Instant::now());
        heard.push(hears);
        let (producer, ledger) = (producer.clone(), ledger.clone());
        let (lines, stops) = (lines.to_vec(), stops.clone());
        senders.push(tokio::spawn(async move {
            keep_sending(&producer, &ledger, partition, &lines, &told, &stops).await
        }));
    }
    let mut gaps = Vec::new();
    let mut killed_at_ms = 0;
    for kill in 0..args.kills {
        // Everybody has something to acknowledge first.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let topic = client.describe_topic(TOPIC).await?;
        let victim = topic.partitions[(kill % args.partitions) as usize].leader;
        let led = topic.partitions.iter().filter(|partition| partition.leader == victim);
        let led: Vec<u32> = led.map(|partition| partition.partition).collect();
        let before: Vec<_> = led.iter().map(|n| *heard[*n as usize].borrow()).collect();
        killed_at_ms = now_ms();
        nodes.kill(victim).await?;
        let killed = Instant::now();
        say(&format!("node {victim}, which led {} partitions, was killed", led.len()));
        let mut longest = Duration::ZERO;
        for (n, before) in led.iter().zip(before) {
            let gap = gap_after(&mut heard[*n as usize], before, killed).await?;
            longest = longest.max(gap);
            gaps.push(gap);
        }
        say(&format!("all of them go on: {} ms at most", longest.as_millis()));
        nodes.spawn(victim)?;
        nodes.wait_until_whole(client).await?;
        say(&format!("node {victim} is back"));
    }
    stop.send_replace(true);
    for sender in senders {
        sender.await??;
    }
    producer.close().await;
    Ok((gaps, killed_at_ms))
}

/// Sends lines to one partition at a steady pace until it is stopped, and tells of each
/// acknowledgment.
async fn keep_sending(
    producer: &Producer,
    ledger: &Ledger,
    partition: u32,
    lines: &[Bytes],
    told: &watch::Sender<Instant>,
    stops: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for line in lines.iter().cycle() {
        if *stops.borrow() {
            break;
        }
        let (delivery, number) = send(producer, ledger, partition, line).await?;
        let receipt = delivery.await?;
        told.send_replace(receipt.received);
        ledger.acknowledge(&receipt, number);
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// How long a partition was silent around the death of its leader.
async fn gap_after(
    heard: &mut watch::Receiver<Instant>,
    before: Instant,
    killed: Instant,
) -> anyhow::Result<Duration> {
    let first = heard.wait_for(|at| *at > killed);
    match tokio::time::timeout(PATIENCE, first).await {
        Ok(Ok(at)) => Ok(at.duration_since(before.min(killed))),
        Ok(Err(_)) => bail!("a record was not stored after a leader's death"),
        Err(_) => bail!("no new leader after {} s", PATIENCE.as_secs()),
    }
}

/// Reads a topic from `start` to its present end.
async fn read_all(client: &Client, start: Start) -> anyhow::Result<Vec<Record>> {
    let ends = client.list_offsets(TOPIC, Vec::new(), Start::Latest).await?;
    let mut consumer = client.consumer(ConsumerConfig::new(TOPIC, start));
    let starts: BTreeMap<u32, u64> = consumer.start().await?.collect();
    let missing: u64 =
        ends.iter().map(|end| end.offset.saturating_sub(starts[&end.partition])).sum();
    let mut records = Vec::with_capacity(missing as usize);
    while (records.len() as u64) < missing {
        match consumer.next().await? {
            Event::Record(record) => records.push(record),
            Event::Gap(gap) => bail!("records {}..{} are gone", gap.from_offset, gap.to_offset),
        }
    }
    Ok(records)
}

async fn replay_from_offset(client: &Client, all: &[Record], offset: u64) -> anyhow::Result<u64> {
    let config = ConsumerConfig {
        partitions: vec![(0, Start::Offset(offset))],
        ..ConsumerConfig::new(TOPIC, Start::Earliest)
    };
    let mut consumer = client.consumer(config);
    let mut count = 0;
    for expected in all.iter().filter(|r| r.partition == 0 && r.offset >= offset) {
        let Event::Record(record) = consumer.next().await? else { bail!("records are gone") };
        if record != *expected {
            bail!("replayed from offset {offset}: offset {} is another record", record.offset);
        }
        count += 1;
    }
    say(&format!("{count} records replayed from offset {offset} of partition 0"));
    Ok(count)
}

async fn replay_from_time(client: &Client, all: &[Record], time_ms: i64) -> anyhow::Result<u64> {
    let replayed = read_all(client, Start::TimeMs(time_ms)).await?;
    let expected = all.iter().filter(|record| record.append_time_ms >= time_ms).count();
    let too_early = replayed.iter().filter(|record| record.append_time_ms < time_ms).count();
    if replayed.len() != expected || too_early > 0 {
        bail!(
            "replayed from {}: {} records, {expected} expected, {too_early} too early",
            output::time(time_ms),
            replayed.len()
        );
    }
    say(&format!("{expected} records replayed from {}", output::time(time_ms)));
    Ok(replayed.len() as u64)
}

fn now_ms() -> i64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |elapsed| elapsed.as_millis() as i64)
}

impl FailOver {
    fn of(mut gaps: Vec<Duration>) -> Self {
        gaps.sort_unstable();
        let at = |share: f64| {
            let place = (gaps.len() as f64 * share).ceil() as usize;
            gaps.get(place.saturating_sub(1)).map_or(0, |gap| gap.as_millis() as u64)
        };
        Self { median: at(0.5), p99: at(0.99), max: at(1.0), count: gaps.len() }
    }
}

fn print(summary: &Summary, output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        return output.json(summary);
    }
    let Summary { verdict, fail_over_ms, .. } = summary;
    output.line(&format!(
        "records      {} sent, {} acknowledged, {} read back",
        verdict.sent, verdict.acknowledged, verdict.read
    ))?;
    output.line(&format!(
        "anomalies    {} lost, {} duplicated, {} reordered, {} altered",
        verdict.lost, verdict.duplicated, verdict.reordered, verdict.altered
    ))?;
    output.line(&format!(
        "fail-over    {} ms median, {} ms p99, {} ms at most ({} partitions, {} kills)",
        fail_over_ms.median, fail_over_ms.p99, fail_over_ms.max, fail_over_ms.count, summary.kills
    ))?;
    let good = "nothing that was acknowledged was lost";
    output.line(if verdict.is_good() { good } else { "SOMETHING IS WRONG: see above" })
}
