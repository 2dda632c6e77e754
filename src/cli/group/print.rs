//! How groups are printed.

use std::time::Duration;

use serde::Serialize;

use crate::cli::Verdict;
use crate::cli::output::{Format, Output, Table, count, optional};
use crate::proto::client::{
    Error, Group, GroupMember, GroupMode, GroupOffset, GroupPartition, GroupSummary, OffsetReset,
};

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    id: &'a str,
    mode: &'static str,
    topics: &'a [String],
    members: u32,
}

#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    id: &'a str,
    mode: &'static str,
    topics: &'a [String],
    session_timeout_ms: u32,
    expire_after_idle_ms: Option<u64>,
    generation: u64,
    members: Vec<Member<'a>>,
    partitions: Vec<Partition<'a>>,
}

#[derive(Serialize)]
struct Member<'a> {
    member_id: &'a str,
    instance: Option<&'a str>,
    client_id: &'a str,
    rack: Option<&'a str>,
    node: u64,
    partitions: u32,
}

#[derive(Serialize)]
struct Partition<'a> {
    topic: &'a str,
    partition: u32,
    member_id: Option<&'a str>,
    generation: u64,
    next_member_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Lag<'a> {
    group: &'a str,
    partitions: Vec<Offset<'a>>,
}

#[derive(Serialize)]
struct Offset<'a> {
    topic: &'a str,
    partition: u32,
    /// Null if nothing was committed yet.
    committed: Option<u64>,
    next_offset: Option<u64>,
    lag: Option<u64>,
    lag_ms: Option<u64>,
    missed: Option<u64>,
    log_start_offset: Option<u64>,
    high_watermark: Option<u64>,
    metadata: Option<&'a str>,
    member_id: Option<&'a str>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Resets<'a> {
    group: &'a str,
    dry_run: bool,
    partitions: Vec<Reset<'a>>,
}

#[derive(Serialize)]
struct Reset<'a> {
    topic: &'a str,
    partition: u32,
    before: Option<u64>,
    after: Option<u64>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Deleted<'a> {
    group: &'a str,
    id: &'a str,
}

impl<'a> Offset<'a> {
    fn of(offset: &'a GroupOffset) -> Self {
        let is_known = offset.error.is_none();
        let known = |number: u64| is_known.then_some(number);
        Self {
            topic: &offset.topic,
            partition: offset.partition,
            committed: known(offset.next_offset).filter(|_| offset.is_committed),
            next_offset: known(offset.next_offset),
            lag: known(offset.lag),
            lag_ms: known(offset.lag_ms),
            missed: known(offset.missed),
            log_start_offset: known(offset.log_start_offset),
            high_watermark: known(offset.high_watermark),
            metadata: said(&offset.metadata),
            member_id: said(&offset.member_id),
            error: message(offset.error.as_ref()),
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.topic.to_owned(),
            self.partition.to_string(),
            optional(self.committed),
            optional(self.next_offset),
            optional(self.lag),
            self.lag_ms.map_or_else(dash, age),
            optional(self.missed),
            self.member_id.map_or_else(dash, str::to_owned),
        ]
    }
}

impl<'a> Reset<'a> {
    fn of(reset: &'a OffsetReset) -> Self {
        let is_known = reset.error.is_none();
        Self {
            topic: &reset.topic,
            partition: reset.partition,
            before: is_known.then_some(reset.before),
            after: is_known.then_some(reset.after),
            error: message(reset.error.as_ref()),
        }
    }
}

impl<'a> Described<'a> {
    fn of(group: &'a Group) -> Self {
        let member = |member: &'a GroupMember| Member {
            member_id: &member.member_id,
            instance: said(&member.instance),
            client_id: &member.client_id,
            rack: said(&member.rack),
            node: member.node,
            partitions: member.partitions,
        };
        let partition = |partition: &'a GroupPartition| Partition {
            topic: &partition.topic,
            partition: partition.partition,
            member_id: said(&partition.member_id),
            generation: partition.generation,
            next_member_id: said(&partition.next_member_id),
        };
        Self {
            name: &group.name,
            id: &group.id,
            mode: mode(group.mode()),
            topics: &group.topics,
            session_timeout_ms: group.session_timeout_ms,
            expire_after_idle_ms: Some(group.expire_after_idle_ms).filter(|ms| *ms > 0),
            generation: group.generation,
            members: group.members.iter().map(member).collect(),
            partitions: group.partitions.iter().map(partition).collect(),
        }
    }
}

pub(super) fn list<'a>(groups: &'a [GroupSummary], output: &mut Output) -> anyhow::Result<()> {
    let listed = |group: &'a GroupSummary| {
        let GroupSummary { name, id, topics, members, .. } = group;
        Listed { name, id, mode: mode(group.mode()), topics, members: *members }
    };
    let groups: Vec<Listed<'_>> = groups.iter().map(listed).collect();
    if output.format == Format::Json {
        return output.json(&groups);
    }
    let mut table = Table::new(&["GROUP", "MODE", "MEMBERS", "TOPICS", "ID"]);
    for group in groups {
        let (members, topics) = (group.members.to_string(), group.topics.join(","));
        table.push(vec![
            group.name.to_owned(),
            group.mode.to_owned(),
            members,
            topics,
            group.id.to_owned(),
        ]);
    }
    table.print(output, 0)
}

pub(super) fn described(group: &Group, output: &mut Output) -> anyhow::Result<()> {
    let group = Described::of(group);
    if output.format == Format::Json {
        return output.json(&group);
    }
    let members = count(group.members.len() as u64, "member");
    let (name, generation, id) = (group.name, group.generation, group.id);
    output.line(&format!("{name}  {members}  generation {generation}  {id}"))?;
    output.line(&format!("  topics = {}", group.topics.join(", ")))?;
    output.line(&format!("  session timeout = {}", age(group.session_timeout_ms.into())))?;
    if let Some(ms) = group.expire_after_idle_ms {
        output.line(&format!("  deleted after idling for {}", age(ms)))?;
    }
    if !group.members.is_empty() {
        output.line("")?;
        member_table(&group.members).print(output, 0)?;
    }
    if !group.partitions.is_empty() {
        output.line("")?;
        partition_table(&group.partitions).print(output, 0)?;
    }
    Ok(())
}

fn member_table(members: &[Member<'_>]) -> Table {
    let mut table = Table::new(&["MEMBER", "INSTANCE", "CLIENT", "RACK", "NODE", "PARTITIONS"]);
    for member in members {
        table.push(vec![
            member.member_id.to_owned(),
            member.instance.map_or_else(dash, str::to_owned),
            member.client_id.to_owned(),
            member.rack.map_or_else(dash, str::to_owned),
            member.node.to_string(),
            member.partitions.to_string(),
        ]);
    }
    table
}

fn partition_table(partitions: &[Partition<'_>]) -> Table {
    let mut table = Table::new(&["TOPIC", "PARTITION", "GENERATION", "MEMBER", "MOVING TO"]);
    for partition in partitions {
        table.push(vec![
            partition.topic.to_owned(),
            partition.partition.to_string(),
            partition.generation.to_string(),
            partition.member_id.map_or_else(dash, str::to_owned),
            partition.next_member_id.map_or_else(dash, str::to_owned),
        ]);
    }
    table
}

/// Prints how far a group is. It is bad if that is not known of some partitions.
pub(super) fn lag(
    group: &str,
    offsets: &[GroupOffset],
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let partitions: Vec<Offset<'_>> = offsets.iter().map(Offset::of).collect();
    let verdict = verdict(partitions.iter().map(|offset| offset.error));
    if output.format == Format::Json {
        output.json(&Lag { group, partitions })?;
        return Ok(verdict);
    }
    let headings = ["TOPIC", "PARTITION", "COMMITTED", "NEXT", "LAG", "BEHIND", "MISSED", "MEMBER"];
    let mut table = Table::new(&headings);
    partitions.iter().for_each(|offset| table.push(offset.row()));
    table.print(output, 0)?;
    for offset in &partitions {
        complain(offset.topic, offset.partition, offset.error);
    }
    Ok(verdict)
}

/// Prints what was moved. It is bad if some partitions were not.
pub(super) fn resets(
    group: &str,
    dry_run: bool,
    resets: &[OffsetReset],
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let partitions: Vec<Reset<'_>> = resets.iter().map(Reset::of).collect();
    let verdict = verdict(partitions.iter().map(|reset| reset.error));
    if output.format == Format::Json {
        output.json(&Resets { group, dry_run, partitions })?;
        return Ok(verdict);
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "BEFORE", "AFTER"]);
    for reset in &partitions {
        let (before, after) = (optional(reset.before), optional(reset.after));
        table.push(vec![reset.topic.to_owned(), reset.partition.to_string(), before, after]);
    }
    table.print(output, 0)?;
    partitions.iter().for_each(|reset| complain(reset.topic, reset.partition, reset.error));
    if dry_run {
        eprintln!("nothing was changed: this was a dry run");
    }
    Ok(verdict)
}

pub(super) fn deleted(group: &str, id: &str, output: &mut Output) -> anyhow::Result<()> {
    match output.format {
        Format::Json => output.json(&Deleted { group, id }),
        Format::Table => output.line(&format!("deleted {group} ({id})")),
    }
}

fn verdict<'a>(mut errors: impl Iterator<Item = Option<&'a str>>) -> Verdict {
    if errors.any(|error| error.is_some()) { Verdict::Bad } else { Verdict::Good }
}

fn complain(topic: &str, partition: u32, error: Option<&str>) {
    if let Some(error) = error {
        eprintln!("warning: {topic}/{partition}: {error}");
    }
}

fn mode(mode: GroupMode) -> &'static str {
    match mode {
        GroupMode::Unspecified | GroupMode::Stream => "stream",
    }
}

fn said(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn message(error: Option<&Error>) -> Option<&str> {
    error.map(|error| error.message.as_str())
}

fn dash() -> String {
    "-".to_owned()
}

/// A duration as people read it, in seconds from one second on.
fn age(ms: u64) -> String {
    let ms = if ms < 1000 { ms } else { ms / 1000 * 1000 };
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}
