//! `quipu group`: consumer groups are made, looked at, moved and deleted.

use std::time::Duration;

use clap::Subcommand;

use super::Verdict;
use super::output::{Format, Output};
use super::place::parse_group_start;
use super::remote::{self, about_group, about_topic};
use crate::client::{Client, GroupStart};
use crate::proto::client::{CreateGroupRequest, GroupMode, TopicPartitions};

mod print;

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a group, and say where it starts
    Create(Create),
    /// List groups
    List {
        /// Only those whose names begin so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a group's members, and who has which partition
    Describe {
        /// The group
        group: String,
    },
    /// Show how far a group is in each partition, and how far behind
    Lag {
        /// The group
        group: String,
        /// Only this topic, or these partitions of it; any number of times
        #[arg(long = "topic", value_name = "T[:P[,P…]]", value_parser = parse_partitions)]
        topics: Vec<TopicPartitions>,
    },
    /// Move a group's positions, forwards or back; members that are active go on from there
    Reset {
        /// The group
        group: String,
        /// Where to: earliest, latest, an offset, @TIME, @-AGO, or group:OTHER
        #[arg(long, value_name = "PLACE", value_parser = parse_group_start,
            allow_hyphen_values = true)]
        to: GroupStart,
        /// Only this topic, or these partitions of it; any number of times
        #[arg(long = "topic", value_name = "T[:P[,P…]]", value_parser = parse_partitions)]
        topics: Vec<TopicPartitions>,
        /// Print what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete a group with all its positions, for good
    Delete {
        /// The group
        group: String,
        /// Also if it has members
        #[arg(long)]
        force: bool,
    },
}

/// A group to be made.
#[derive(Debug, clap::Args)]
struct Create {
    /// 1 to 249 of A-Z a-z 0-9 . _ -
    group: String,
    /// A topic to read, or a pattern with * in it; any number of times
    #[arg(long = "topic", value_name = "T", required = true)]
    topics: Vec<String>,
    /// Where to start: earliest, latest, an offset, @TIME, @-AGO, or group:OTHER
    #[arg(long, value_name = "PLACE", value_parser = parse_group_start,
        allow_hyphen_values = true)]
    start: Option<GroupStart>,
    /// How the group shares out records
    #[arg(long, value_enum, default_value = "stream")]
    mode: Mode,
    /// How long a member may be silent before its partitions go to others
    #[arg(long, value_name = "DURATION", default_value = "30s",
        value_parser = humantime::parse_duration)]
    session_timeout: Duration,
    /// Delete the group after so long without a member or a commit; by default never
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expire_after_idle: Option<Duration>,
    /// Check only, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Mode {
    /// Each partition is read in order by one member at a time
    Stream,
}

const AFTER_HELP: &str = "\
A group is made once and stays until it is deleted. It keeps how far it is in
each partition; nobody moves that but its members, who commit offsets, and reset.

Examples:
  quipu group create billing --topic orders --start earliest
  quipu consume --group billing
  quipu group lag billing
  quipu -o json group lag billing | jq '[.partitions[].lag] | add'
  quipu group reset billing --to @-1h --topic orders:0,3 --dry-run
  quipu group create audit --topic 'orders-*' --start group:billing

JSON:
  list       [{name, id, mode, topics, members}]
  create, describe
             {name, id, mode, topics, session_timeout_ms, expire_after_idle_ms,
             generation, members: [{member_id, instance, client_id, rack, node,
             partitions}], partitions: [{topic, partition, member_id, generation,
             next_member_id}]}
  lag        {group, partitions: [{topic, partition, committed, next_offset, lag,
             lag_ms, missed, log_start_offset, high_watermark, metadata,
             member_id, error}]}; committed is null if nothing was committed
             yet, and all numbers are where there is an error
  reset      {group, dry_run, partitions: [{topic, partition, before, after,
             error}]}
  delete     {group, id}";

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    remote.run(async |client| run_verb(&args.verb, &client, output).await)
}

async fn run_verb(verb: &Verb, client: &Client, output: &mut Output) -> anyhow::Result<Verdict> {
    match verb {
        Verb::Create(create) => create.run(client, output).await?,
        Verb::List { prefix } => print::list(&client.list_groups(prefix).await?, output)?,
        Verb::Describe { group } => {
            let call = client.describe_group(group);
            print::described(&about_group(client, group, call).await?, output)?;
        }
        Verb::Lag { group, topics } => {
            let call = client.fetch_offsets(group, topics.clone());
            return print::lag(group, &about_group(client, group, call).await?, output);
        }
        Verb::Reset { group, to, topics, dry_run } => {
            let call = client.reset_offsets(group, topics.clone(), to.clone(), *dry_run);
            let resets = about_group(client, group, call).await?;
            return print::resets(group, *dry_run, &resets, output);
        }
        Verb::Delete { group, force } => {
            let call = client.delete_group(group, *force);
            let id = about_group(client, group, call).await?;
            print::deleted(group, &id, output)?;
        }
    }
    Ok(Verdict::Good)
}

impl Create {
    async fn run(&self, client: &Client, output: &mut Output) -> anyhow::Result<()> {
        let request = self.request();
        let topic = self.topics.first().map_or("", String::as_str);
        let group = about_topic(client, topic, client.create_group(request)).await?;
        if output.format == Format::Table {
            let verb = if self.dry_run { "could make" } else { "made" };
            return output.line(&format!("{verb} {} ({})", self.group, group.id));
        }
        print::described(&group, output)
    }

    fn request(&self) -> CreateGroupRequest {
        CreateGroupRequest {
            name: self.group.clone(),
            mode: match self.mode {
                Mode::Stream => GroupMode::Stream.into(),
            },
            topics: self.topics.clone(),
            start: Some(self.start().into()),
            session_timeout_ms: u32::try_from(self.session_timeout.as_millis()).unwrap_or(u32::MAX),
            expire_after_idle_ms: self.expire_after_idle.map_or(0, milliseconds),
            validate_only: self.dry_run,
        }
    }

    /// Where to start. Ends the process if it was not said.
    fn start(&self) -> GroupStart {
        self.start.clone().unwrap_or_else(|| {
            let message = "a group has no default start, so that none is a surprise: say \
                           --start earliest to read all records there are, --start latest for \
                           those to come only, or an offset, @TIME, @-AGO or group:OTHER";
            remote::usage_error(message)
        })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads `TOPIC` or `TOPIC:P,P`.
fn parse_partitions(text: &str) -> Result<TopicPartitions, String> {
    let (topic, partitions) = text.split_once(':').unwrap_or((text, ""));
    let partitions = partitions.split(',').filter(|number| !number.is_empty());
    let partitions: Result<Vec<u32>, _> = partitions.map(str::parse).collect();
    match partitions {
        Ok(partitions) if !topic.is_empty() => {
            Ok(TopicPartitions { topic: topic.to_owned(), partitions })
        }
        _ => Err("expected TOPIC, or TOPIC:P,P with the numbers of partitions".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_read() {
        let read = |text| parse_partitions(text).map(|read| (read.topic, read.partitions));
        assert_eq!(read("orders"), Ok(("orders".into(), vec![])));
        assert_eq!(read("orders:0,12"), Ok(("orders".into(), vec![0, 12])));
        for text in ["", ":1", "orders:x", "orders:1,-2"] {
            assert!(parse_partitions(text).is_err(), "{text}");
        }
    }
}
