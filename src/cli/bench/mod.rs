//! `quipu bench`: how fast a cluster takes and gives records, and how long that takes.

use std::time::{Duration, Instant};

use clap::Subcommand;

use super::Verdict;
use super::output::Output;
use super::produce::Sending;
use super::remote;
use crate::client::{Client, ProducerConfig};
use crate::proto::client::CreateTopicRequest;

mod commit;
mod load;
mod noise;
mod report;
mod tail;

use self::load::Load;
use self::report::Report;

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Subcommand)]
enum Verb {
    /// Measure how fast records are stored, and how long each waits for its acknowledgement
    Produce(Plan),
    /// Measure how fast stored records are read
    Consume(Reading),
    /// Measure how long records take from their producer to a consumer
    E2e(Plan),
    /// Measure how fast offsets of a consumer group are committed, and how long a call takes
    Commit(commit::Plan),
}

/// What to do, and as whom to read.
#[derive(Debug, Clone, clap::Args)]
struct Reading {
    #[command(flatten)]
    plan: Plan,
    /// Read as the member of a group that is made, and deleted in the end
    #[arg(long)]
    group: bool,
}

/// What to do.
#[derive(Debug, Clone, clap::Args)]
struct Plan {
    /// Use this topic and leave it; otherwise one is made, and deleted in the end
    #[arg(long)]
    topic: Option<String>,
    /// Bytes of a record's value
    #[arg(long, value_name = "N", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(8..1_000_000))]
    record_bytes: u32,
    /// Bytes at which a batch is full
    #[arg(long, value_name = "N", default_value_t = 256 << 10)]
    batch_bytes: usize,
    /// How long a batch waits for more records
    #[arg(long, value_name = "DURATION", default_value = "2ms",
        value_parser = humantime::parse_duration)]
    linger: Duration,
    /// Records of a producer that wait for their acknowledgement at once
    #[arg(long, value_name = "N", default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// Records per second of all producers; otherwise as many as they can
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// For how long to produce
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Partitions of the topic that is made
    #[arg(long, value_name = "N", default_value_t = 1)]
    partitions: u32,
    /// Replicas of each; by default 3, or 1 in a cluster of one or two nodes
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Producers, each with connections of its own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..1000))]
    producers: u32,
    #[command(flatten)]
    sending: Sending,
}

const AFTER_HELP: &str = "\
At a fixed rate a latency counts from when the record was to be sent, not from
when it could be: a cluster that stalls cannot hide it (coordinated omission).
Without --rate it counts from when the record was handed to the producer.
Latencies have a resolution of about 1 ms at a fixed rate.

Examples:
  quipu bench produce --record-bytes 1024 --in-flight 2000
  quipu bench e2e --rate 10000 --seconds 30 --partitions 6 --producers 2
  quipu -o json bench produce --acks leader | jq .latency_ms.p99
  quipu bench consume --topic big --group      what a group costs a reader
  quipu bench commit --partitions 100 --clients 10

JSON: {bench, topic, records, failed, bytes, seconds, records_per_second,
bytes_per_second, latency_ms: {mean, p50, p90, p99, p99_9, max}}; latency_ms is
null for consume. For commit, records are offsets and bytes is 0.

Exit codes: 0 done, 1 records failed, and as for all commands.";

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let (name, seconds) = match &args.verb {
        Verb::Produce(plan) => ("produce", plan.seconds),
        Verb::Consume(reading) => ("consume", reading.plan.seconds),
        Verb::E2e(plan) => ("e2e", plan.seconds),
        Verb::Commit(plan) => ("commit", plan.seconds),
    };
    let report = remote.run(async |client| {
        let topic = Topic::prepare(&args.verb, &client).await?;
        eprintln!("{name} on {} for {seconds} s", topic.name);
        let measured = tokio::select! {
            measured = measure(&args.verb, remote, &client, &topic.name) => measured,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        topic.clean_up(&client).await;
        measured
    });
    let report = report?;
    report.print(output)?;
    Ok(if report.failed == 0 { Verdict::Good } else { Verdict::Bad })
}

async fn measure(
    verb: &Verb,
    remote: &remote::Args,
    client: &Client,
    topic: &str,
) -> anyhow::Result<Report> {
    match verb {
        Verb::Produce(plan) => {
            let load = Load::start(plan, remote, topic, Instant::now()).await?;
            Ok(load.finish().await?.report("produce", topic, plan.record_bytes))
        }
        Verb::Consume(Reading { plan, group }) => {
            if plan.topic.is_none() {
                let load = Load::start(plan, remote, topic, Instant::now()).await?;
                load.finish().await?;
            }
            match group {
                true => tail::read_all_as_member(client, topic).await,
                false => tail::read_all(client, topic).await,
            }
        }
        Verb::E2e(plan) => tail::end_to_end(plan, remote, client, topic).await,
        Verb::Commit(plan) => commit::run(plan, remote, client, topic).await,
    }
}

/// The topic that is measured.
struct Topic {
    name: String,
    is_temporary: bool,
}

impl Topic {
    async fn prepare(verb: &Verb, client: &Client) -> anyhow::Result<Self> {
        let (wanted, partitions, replicas) = match verb {
            Verb::Produce(plan) | Verb::E2e(plan) | Verb::Consume(Reading { plan, .. }) => {
                (plan.topic.as_deref(), plan.partitions, plan.replicas)
            }
            Verb::Commit(plan) => (None, plan.partitions, plan.replicas),
        };
        if let Some(name) = wanted {
            remote::about_topic(client, name, client.describe_topic(name)).await?;
            return Ok(Self { name: name.to_owned(), is_temporary: false });
        }
        let name = format!("bench-{}", uuid::Uuid::new_v4().simple());
        let replicas = replicas.unwrap_or(0);
        let topic = CreateTopicRequest { name, partitions, replicas, ..Default::default() };
        let name = client.create_topic(topic).await?.name;
        Ok(Self { name, is_temporary: true })
    }

    async fn clean_up(self, client: &Client) {
        if self.is_temporary
            && let Err(error) = client.delete_topic(&self.name).await
        {
            eprintln!("warning: topic {} was not deleted: {error}", self.name);
        }
    }
}

impl Plan {
    fn producer_config(&self, topic: &str) -> ProducerConfig {
        let in_flight_bytes = (self.in_flight as usize) * (self.record_bytes as usize + 256);
        let defaults = self.sending.config(topic);
        ProducerConfig {
            batch_bytes: self.batch_bytes,
            linger: self.linger,
            buffer_bytes: defaults.buffer_bytes.max(in_flight_bytes),
            ..defaults
        }
    }
}
