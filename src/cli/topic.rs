//! `quipu topic`: topics are made, looked at, changed and deleted.

use std::collections::{BTreeMap, HashMap};

use clap::Subcommand;
use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, Table, count, optional};
use super::remote::{self, about_topic};
use crate::client::Client;
use crate::proto::client::{CreateTopicRequest, Partition, Topic, TopicSummary};

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a topic
    Create {
        /// 1 to 249 of A-Z a-z 0-9 . _ -
        name: String,
        /// Number of partitions
        #[arg(long, value_name = "P", default_value_t = 1)]
        partitions: u32,
        /// Replicas of each partition; by default 3, or 1 in a cluster of one or two nodes
        #[arg(long, value_name = "R")]
        replicas: Option<u32>,
        /// Configuration, any number of times
        #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        /// Check only, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List topics
    List {
        /// Only those whose names begin so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a topic's configuration, and where its partitions are
    Describe {
        /// The topic
        name: String,
    },
    /// Change a topic's configuration
    Alter {
        /// The topic
        name: String,
        /// Set a key, any number of times
        #[arg(
            long,
            value_name = "KEY=VALUE",
            value_parser = parse_pair,
            required_unless_present = "reset"
        )]
        config: Vec<(String, String)>,
        /// Set a key back to its default, any number of times
        #[arg(long, value_name = "KEY")]
        reset: Vec<String>,
    },
    /// Give a topic more partitions; keys may then go to other ones
    AddPartitions {
        /// The topic
        name: String,
        /// How many there are to be in all
        #[arg(long, value_name = "P")]
        partitions: u32,
    },
    /// Delete a topic with all its records, for good
    Delete {
        /// The topic
        name: String,
    },
    /// Delete the records of a partition below an offset, for good
    DeleteRecords {
        /// The topic
        name: String,
        /// The partition
        #[arg(long, value_name = "N")]
        partition: u32,
        /// The first offset to keep
        #[arg(long, value_name = "OFFSET")]
        before: u64,
    },
}

const AFTER_HELP: &str = "\
Configuration keys:
  durability         fsync (default) or memory; fixed when the topic is made
  retention_ms       how long records are kept, like 7days, or unlimited (default)
  retention_bytes    how large a partition may grow, like 10GiB, or unlimited (default)
  record_bytes_max   the largest record, up to 1048576 (default)
  batch_bytes_max    the largest batch, up to 3670016 (default)

Examples:
  quipu topic create orders --partitions 6 --replicas 3 --config retention_ms=7days
  quipu topic describe orders
  quipu -o json topic describe orders | jq '.partitions[].leader'
  quipu topic alter orders --config retention_bytes=10GiB --reset retention_ms
  quipu topic delete-records orders --partition 0 --before 5000

JSON:
  list       [{name, id, partitions, replicas}]
  create, describe, alter, add-partitions
             {name, id, config, partitions: [{partition, leader, leader_epoch,
             replicas, target_replicas, log_start_offset, high_watermark,
             log_id}]}; leader is null if none is known, offsets if it did not
             answer
  delete     {name, id}
  delete-records    {name, partition, log_start_offset}";

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    remote.run(async |client| run_verb(&args.verb, &client, output).await)?;
    Ok(Verdict::Good)
}

async fn run_verb(verb: &Verb, client: &Client, output: &mut Output) -> anyhow::Result<()> {
    match verb {
        Verb::Create { name, partitions, replicas, config, dry_run } => {
            let request = CreateTopicRequest {
                name: name.clone(),
                partitions: *partitions,
                replicas: replicas.unwrap_or(0),
                config: config.iter().cloned().collect(),
                validate_only: *dry_run,
            };
            print_topic(&client.create_topic(request).await?, output)
        }
        Verb::List { prefix } => print_list(&client.list_topics(prefix).await?, output),
        Verb::Describe { name } => {
            let call = client.describe_topic(name);
            print_topic(&about_topic(client, name, call).await?, output)
        }
        Verb::Alter { name, config, reset } => {
            let set: HashMap<_, _> = config.iter().cloned().collect();
            let call = client.alter_topic(name, set, reset.clone());
            print_topic(&about_topic(client, name, call).await?, output)
        }
        Verb::AddPartitions { name, partitions } => {
            let call = client.add_partitions(name, *partitions);
            print_topic(&about_topic(client, name, call).await?, output)
        }
        Verb::Delete { name } => delete(client, name, output).await,
        Verb::DeleteRecords { name, partition, before } => {
            delete_records(client, name, *partition, *before, output).await
        }
    }
}

async fn delete(client: &Client, name: &str, output: &mut Output) -> anyhow::Result<()> {
    let id = about_topic(client, name, client.delete_topic(name)).await?;
    match output.format {
        Format::Json => output.json(&Deleted { name, id: &id }),
        Format::Table => output.line(&format!("deleted {name} ({id})")),
    }
}

async fn delete_records(
    client: &Client,
    name: &str,
    partition: u32,
    before: u64,
    output: &mut Output,
) -> anyhow::Result<()> {
    let call = client.delete_records(name, partition, before);
    let log_start_offset = about_topic(client, name, call).await?;
    match output.format {
        Format::Json => output.json(&RecordsDeleted { name, partition, log_start_offset }),
        Format::Table => {
            output.line(&format!("{name}/{partition} now begins at offset {log_start_offset}"))
        }
    }
}

#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    id: &'a str,
}

#[derive(Serialize)]
struct RecordsDeleted<'a> {
    name: &'a str,
    partition: u32,
    log_start_offset: u64,
}

#[derive(Serialize)]
struct ListedTopic<'a> {
    name: &'a str,
    id: &'a str,
    partitions: u32,
    replicas: u32,
}

#[derive(Serialize)]
struct DescribedTopic<'a> {
    name: &'a str,
    id: &'a str,
    config: BTreeMap<&'a str, &'a str>,
    partitions: Vec<DescribedPartition<'a>>,
}

#[derive(Serialize)]
struct DescribedPartition<'a> {
    partition: u32,
    leader: Option<u64>,
    leader_epoch: u64,
    replicas: &'a [u64],
    target_replicas: &'a [u64],
    log_start_offset: Option<u64>,
    high_watermark: Option<u64>,
    log_id: &'a str,
}

impl<'a> DescribedPartition<'a> {
    fn of(partition: &'a Partition) -> Self {
        Self {
            partition: partition.partition,
            leader: known(partition.leader),
            leader_epoch: partition.leader_epoch,
            replicas: &partition.replicas,
            target_replicas: &partition.target_replicas,
            log_start_offset: partition.log_start_offset,
            high_watermark: partition.high_watermark,
            log_id: &partition.log_id,
        }
    }
}

fn print_list<'a>(topics: &'a [TopicSummary], output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        let listed = |topic: &'a TopicSummary| {
            let TopicSummary { name, id, partitions, replicas } = topic;
            ListedTopic { name, id, partitions: *partitions, replicas: *replicas }
        };
        return output.json(&topics.iter().map(listed).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["TOPIC", "PARTITIONS", "REPLICAS", "ID"]);
    for topic in topics {
        let (partitions, replicas) = (topic.partitions.to_string(), topic.replicas.to_string());
        table.push(vec![topic.name.clone(), partitions, replicas, topic.id.clone()]);
    }
    table.print(output, 0)
}

fn print_topic(topic: &Topic, output: &mut Output) -> anyhow::Result<()> {
    let config: BTreeMap<_, _> =
        topic.config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if output.format == Format::Json {
        let partitions = topic.partitions.iter().map(DescribedPartition::of).collect();
        let (name, id) = (topic.name.as_str(), topic.id.as_str());
        return output.json(&DescribedTopic { name, id, config, partitions });
    }
    let partitions = count(topic.partitions.len() as u64, "partition");
    output.line(&format!("{}  {partitions}  {}", topic.name, topic.id))?;
    for (key, value) in config {
        output.line(&format!("  {key} = {value}"))?;
    }
    if topic.partitions.is_empty() {
        return Ok(());
    }
    output.line("")?;
    partition_table(&topic.partitions).print(output, 0)
}

fn partition_table(partitions: &[Partition]) -> Table {
    let headings = ["PARTITION", "LEADER", "LEADER EPOCH", "REPLICAS", "MOVING TO", "START", "END"];
    let mut table = Table::new(&headings);
    for partition in partitions {
        table.push(vec![
            partition.partition.to_string(),
            optional(known(partition.leader)),
            partition.leader_epoch.to_string(),
            node_list(&partition.replicas),
            node_list(&partition.target_replicas),
            optional(partition.log_start_offset),
            optional(partition.high_watermark),
        ]);
    }
    table
}

/// The API says 0 for a leader that is not known.
fn known(node: u64) -> Option<u64> {
    (node > 0).then_some(node)
}

fn node_list(nodes: &[u64]) -> String {
    let nodes: Vec<String> = nodes.iter().map(u64::to_string).collect();
    if nodes.is_empty() { "-".to_owned() } else { nodes.join(",") }
}

/// Reads `KEY=VALUE`.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
