//! `quipu consume --group`: reads as a member of a group.
//!
//! A record is done when standard output has it: what is buffered here is written out before
//! anything is committed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{LOOK_INTERVAL, Printer, announce_gap};
use crate::cli::output::Output;
use crate::cli::remote::about_group;
use crate::client::{
    Assigned, Client, Commit, Error, GroupConsumer, GroupConsumerConfig, GroupEvent, TopicPartition,
};
use crate::proto::client::{ErrorReason, GroupPartition};

/// How to be a member of a group.
#[derive(Debug, clap::Args)]
pub(super) struct Membership {
    /// A lasting name for this member: it may be away for its session without losing partitions
    #[arg(long, value_name = "NAME", requires = "group")]
    instance: Option<String>,
    /// How often to commit what was written out
    #[arg(long, value_name = "DURATION", default_value = "1s", requires = "group",
        value_parser = humantime::parse_duration)]
    auto_commit: Duration,
    /// Commit nothing: the next to read gets the same records
    #[arg(long, requires = "group", conflicts_with = "auto_commit")]
    no_commit: bool,
    /// Where this runs, to be given partitions that have a replica there
    #[arg(long, requires = "group")]
    rack: Option<String>,
}

/// What is read, by name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) group: &'a str,
    pub(super) topics: &'a [String],
}

/// Reads until the end, the count, or a signal.
pub(super) async fn consume(
    args: &super::Args,
    named: Named<'_>,
    client: &Client,
    printer: Printer,
    output: &mut Output,
) -> anyhow::Result<()> {
    check_topics(client, named).await?;
    let stop = interruptions()?;
    let config = args.member.config(named.group);
    let mut reader = Reader {
        consumer: client.group_consumer(config),
        printer,
        output,
        group: named.group,
        commit_interval: (!args.member.no_commit).then_some(args.member.auto_commit),
        committed: Instant::now(),
        ends: args.to_end.then(BTreeMap::new),
        assigned: 0,
        client,
        left: args.max.unwrap_or(u64::MAX),
    };
    let read = reader.read(stop).await;
    let committed = reader.finish().await;
    // What was read is committed and others get their turn, whatever went wrong.
    let closed = reader.consumer.close().await;
    read.and(committed).and(closed.context("leaving the group"))
}

/// Topics that are named have to be the group's.
async fn check_topics(client: &Client, named: Named<'_>) -> anyhow::Result<()> {
    let call = client.describe_group(named.group);
    let group = about_group(client, named.group, call).await?;
    for topic in named.topics {
        let is_read = group.topics.contains(topic)
            || group.partitions.iter().any(|partition| partition.topic == *topic);
        if !is_read {
            let topics = group.topics.join(", ");
            bail!("group {} does not read topic {topic}: it reads {topics}", named.group);
        }
    }
    Ok(())
}

/// Counts SIGINT and SIGTERM; the second one ends the process.
fn interruptions() -> anyhow::Result<watch::Receiver<bool>> {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (mut interrupt, mut terminate) = (signals.0?, signals.1?);
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        sender.send_replace(true);
        next().await;
        std::process::exit(crate::cli::EXIT_FAILED.into());
    });
    Ok(receiver)
}

impl Membership {
    /// What was written out is committed here, and nothing by the consumer itself: it cannot know
    /// what standard output has.
    fn config(&self, group: &str) -> GroupConsumerConfig {
        GroupConsumerConfig {
            instance: self.instance.clone(),
            client_id: "quipu-consume".to_owned(),
            rack: self.rack.clone().unwrap_or_default(),
            commit: Commit::Manual,
            ..GroupConsumerConfig::new(group)
        }
    }
}

struct Reader<'a> {
    consumer: GroupConsumer,
    printer: Printer,
    output: &'a mut Output,
    group: &'a str,
    /// None if nothing is to be committed.
    commit_interval: Option<Duration>,
    committed: Instant,
    /// Where to stop, by partition; those that are done with are not in it.
    ends: Option<BTreeMap<TopicPartition, u64>>,
    /// How many partitions the consumer has told of and not taken back.
    assigned: usize,
    client: &'a Client,
    /// Records that may still be printed.
    left: u64,
}

impl Reader<'_> {
    async fn read(&mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        while self.left > 0 && !*stop.borrow() {
            self.commit_if_due().await?;
            if let Some(event) = self.consumer.next_buffered() {
                self.take(event).await?;
                continue;
            }
            if self.is_at_end().await? {
                break;
            }
            // Whoever reads the output is not kept waiting for the next record.
            self.output.flush()?;
            let event = tokio::select! {
                event = self.consumer.next() => event?,
                () = tokio::time::sleep(LOOK_INTERVAL) => continue,
                _ = stop.changed() => break,
            };
            self.take(event).await?;
        }
        Ok(())
    }

    /// Whether all partitions were read to their ends, and no more are to come.
    async fn is_at_end(&mut self) -> anyhow::Result<bool> {
        let Some(ends) = &mut self.ends else { return Ok(false) };
        ends.retain(|at, end| self.consumer.position(at).is_some_and(|next| next < *end));
        let member_id = self.consumer.member_id();
        if !ends.is_empty() || member_id.is_empty() {
            return Ok(false);
        }
        // Partitions are assigned one after the other.
        let group = self.client.describe_group(self.group).await?;
        let own = group.members.iter().find(|member| member.member_id == member_id);
        let has_all = own.is_some_and(|member| member.partitions as usize == self.assigned);
        let is_next = |partition: &GroupPartition| partition.next_member_id == member_id;
        Ok(has_all && !group.partitions.iter().any(is_next))
    }

    async fn take(&mut self, event: GroupEvent) -> anyhow::Result<()> {
        match event {
            GroupEvent::Record(record) => {
                self.left -= 1;
                self.printer.print(&record, self.output)?;
            }
            GroupEvent::Gap(gap) => announce_gap(&gap),
            GroupEvent::Assigned(assigned) => self.on_assigned(&assigned),
            GroupEvent::Revoked(revoked) => {
                eprintln!("handing over {}", list(&revoked.partitions));
                self.forget(&revoked.partitions);
                self.commit().await?;
            }
            GroupEvent::Lost(lost) => {
                let reason = lost.reason.as_str_name().trim_start_matches("LOST_REASON_");
                eprintln!("lost {}: {}", list(&lost.partitions), reason.to_lowercase());
                self.forget(&lost.partitions);
            }
        }
        Ok(())
    }

    fn on_assigned(&mut self, assigned: &[Assigned]) {
        let place = |assigned: &Assigned| {
            format!("{}/{} at {}", assigned.topic, assigned.partition, assigned.next_offset)
        };
        let places: Vec<String> = assigned.iter().map(place).collect();
        eprintln!("reading {} as {}", places.join(", "), self.group);
        self.assigned += assigned.len();
        if let Some(ends) = &mut self.ends {
            ends.extend(assigned.iter().map(|assigned| {
                let (topic, partition) = (assigned.topic.clone(), assigned.partition);
                (TopicPartition { topic, partition }, assigned.high_watermark)
            }));
        }
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        self.assigned -= partitions.len();
        if let Some(ends) = &mut self.ends {
            ends.retain(|at, _| !partitions.contains(at));
        }
    }

    async fn commit_if_due(&mut self) -> anyhow::Result<()> {
        if self.commit_interval.is_some_and(|interval| self.committed.elapsed() >= interval) {
            self.commit().await?;
        }
        Ok(())
    }

    /// Writes out what was printed, and commits that. A partition that was lost in the meantime is
    /// read by another member, from where it was committed before.
    async fn commit(&mut self) -> anyhow::Result<()> {
        self.output.flush()?;
        if self.commit_interval.is_some() {
            match self.consumer.commit_done().await {
                Err(error) if is_of_another(&error) => eprintln!("not committed: {error}"),
                outcome => outcome.context("committing offsets")?,
            }
        }
        self.committed = Instant::now();
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        self.output.flush()?;
        self.consumer.mark_done();
        self.commit().await
    }
}

/// True if the partition, or the membership, is no longer ours.
fn is_of_another(error: &Error) -> bool {
    use ErrorReason::{IllegalGeneration, NotOwner, UnknownMember};
    matches!(error.reason(), NotOwner | IllegalGeneration | UnknownMember)
}

fn list(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(TopicPartition::to_string).collect();
    names.join(", ")
}
