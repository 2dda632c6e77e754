//! `quipu consume`: records become lines.

use std::collections::BTreeMap;
use std::time::Duration;

use self::template::Template;
use super::Verdict;
use super::output::{Format, Output, Printing};
use super::place::parse_start;
use super::remote::{self, about_topic, advise, usage_error};
use crate::client::{Client, Consumer, ConsumerConfig, Event, Gap, Record, Start};

mod group;
mod json;
mod template;

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The topic; with --group, topics that the group has to read
    topics: Vec<String>,
    /// Read this partition only, any number of times
    #[arg(long = "partition", value_name = "N", conflicts_with = "group")]
    partitions: Vec<u32>,
    /// Where to begin: earliest, latest, an offset, or a time as @TIME or @-AGO
    #[arg(long, value_name = "PLACE", value_parser = parse_start, allow_hyphen_values = true)]
    from: Option<Start>,
    /// Stop where the topic ended when the command began, or when the partition was assigned
    #[arg(long)]
    to_end: bool,
    /// Stop after this many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Read as a member of this group, which keeps how far it is
    #[arg(long)]
    group: Option<String>,
    #[command(flatten)]
    member: group::Membership,
}

const AFTER_HELP: &str = "\
Without --from, reading begins at latest, or with --to-end at earliest. Standard
error says at which offsets that is, and which records are missed if retention
has overtaken the reader.

With --group, reading goes on where the group is, as one of its members; it lasts
until it is interrupted, which commits and leaves. What was written is committed
every second (--auto-commit) and in the end: after a crash records come again.

Output, -o:
  raw       each value and a newline; the default
  json      one object per line
  table     partition, offset, key and value; with --group the topic before them
  anything with a % in it is a template:
            %t topic  %p partition  %o offset  %k key  %v value  %h headers
            %T append time (RFC 3339)  %% a percent sign  \\n \\t \\\\ as in C

Examples:
  quipu consume orders --to-end
  quipu consume orders --from @-15m -o json | jq -r .value
  quipu consume orders --from @2026-11-20T10:00:00Z --partition 0 --max 10
  quipu consume orders -o '%p %o %k %v\\n'
  quipu consume orders --group billing --to-end -o json

JSON: {topic, partition, offset, append_time, event_time_ms, key, value,
headers: [{name, value}]}. Keys and values are null, text, or {hex} if they are
not UTF-8.";

/// How often to look whether the end was reached without a record to show for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(
    args: &Args,
    printing: &Printing,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let printer = Printer::new(printing, args.group.is_some())?;
    match &args.group {
        Some(group) => {
            let names = group::Named { group, topics: &args.topics };
            args.check_group(group);
            remote
                .run(async |client| group::consume(args, names, &client, printer, output).await)?;
        }
        None => {
            let topic = args.topic();
            remote.run(async |client| consume(args, topic, &client, printer, output).await)?;
        }
    }
    Ok(Verdict::Good)
}

async fn consume(
    args: &Args,
    topic: &str,
    client: &Client,
    printer: Printer,
    output: &mut Output,
) -> anyhow::Result<()> {
    let ends = match args.to_end {
        true => {
            let call = client.list_offsets(topic, args.partitions.clone(), Start::Latest);
            let ends = about_topic(client, topic, call).await?.into_iter();
            Some(ends.map(|end| (end.partition, end.offset)).collect())
        }
        false => None,
    };
    let mut consumer = client.consumer(args.config(topic));
    let started = match consumer.start().await {
        Ok(started) => started.collect::<Vec<_>>(),
        Err(error) => return Err(advise(client, topic, error).await),
    };
    announce(topic, &started);
    let mut reader = Reader { consumer, ends, left: args.max.unwrap_or(u64::MAX) };
    while let Some(event) = reader.next(output).await? {
        match event {
            Event::Record(record) => printer.print(&record, output)?,
            Event::Gap(gap) => announce_gap(&gap),
        }
    }
    Ok(())
}

impl Args {
    /// The topic to read without a group. Ends the process if it is not one.
    fn topic(&self) -> &str {
        match self.topics.as_slice() {
            [topic] => topic,
            [] => usage_error("name the topic to read, or --group"),
            [..] => usage_error("without --group one topic is read"),
        }
    }

    /// Ends the process if something was said that a group has its own way for.
    fn check_group(&self, group: &str) {
        if self.from.is_some() {
            usage_error(&format!(
                "--from cannot be used with --group: a group goes on where it is. Move it with \
                 `quipu group reset {group} --to PLACE`"
            ));
        }
    }

    fn config(&self, topic: &str) -> ConsumerConfig {
        let default = if self.to_end { Start::Earliest } else { Start::Latest };
        let start = self.from.unwrap_or(default);
        let partitions = self.partitions.iter().map(|partition| (*partition, start)).collect();
        ConsumerConfig { partitions, ..ConsumerConfig::new(topic, start) }
    }
}

fn announce(topic: &str, started: &[(u32, u64)]) {
    let places: Vec<_> =
        started.iter().map(|(partition, offset)| format!("{partition} at {offset}")).collect();
    eprintln!("reading {topic} from partition {}", places.join(", "));
}

fn announce_gap(gap: &Gap) {
    let Gap { topic, partition, from_offset, to_offset } = gap;
    let missed = to_offset.saturating_sub(*from_offset);
    eprintln!(
        "warning: {missed} records of {topic}/{partition} are gone: offsets {from_offset} to \
         {to_offset}, exclusive"
    );
}

/// Reads until the end or the count that was asked for.
struct Reader {
    consumer: Consumer,
    /// Where to stop, by partition; partitions that are done with are not in it.
    ends: Option<BTreeMap<u32, u64>>,
    /// Records that may still be handed out.
    left: u64,
}

impl Reader {
    /// Returns the next event to show, or `None` at the end.
    async fn next(&mut self, output: &mut Output) -> anyhow::Result<Option<Event>> {
        while !self.is_done() {
            let event = match self.consumer.next_buffered() {
                Some(event) => Some(event),
                None => {
                    self.drop_ended();
                    if self.is_done() {
                        break;
                    }
                    // Whoever reads the output is not kept waiting for the next record.
                    output.flush()?;
                    let next = tokio::time::timeout(LOOK_INTERVAL, self.consumer.next());
                    next.await.ok().transpose()?
                }
            };
            if let Some(event) = event.filter(|event| self.wants(event)) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn is_done(&self) -> bool {
        self.left == 0 || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    /// Forgets the partitions that were read to their ends. Nothing may be buffered.
    fn drop_ended(&mut self) {
        if let Some(ends) = &mut self.ends {
            let position = |partition| self.consumer.position(partition).unwrap_or(0);
            ends.retain(|partition, end| position(*partition) < *end);
        }
    }

    /// Whether an event lies before the end; counts records.
    fn wants(&mut self, event: &Event) -> bool {
        let (partition, offset) = match event {
            Event::Record(record) => (record.partition, record.offset),
            Event::Gap(gap) => (gap.partition, gap.from_offset),
        };
        let ends = self.ends.as_ref();
        let is_wanted = ends.is_none_or(|ends| ends.get(&partition).is_some_and(|e| offset < *e));
        if is_wanted && matches!(event, Event::Record(_)) {
            self.left -= 1;
        }
        is_wanted
    }
}

/// How records are printed.
#[derive(Debug)]
enum Printer {
    Raw,
    Json,
    Template(Template),
}

impl Printer {
    fn new(printing: &Printing, has_topics: bool) -> anyhow::Result<Self> {
        let template = match printing {
            Printing::Raw => return Ok(Self::Raw),
            Printing::Format(Format::Json) => return Ok(Self::Json),
            Printing::Format(Format::Table) if has_topics => "%t\\t%p\\t%o\\t%k\\t%v\\n",
            Printing::Format(Format::Table) => "%p\\t%o\\t%k\\t%v\\n",
            Printing::Template(template) => template,
        };
        Ok(Self::Template(template.parse().map_err(anyhow::Error::msg)?))
    }

    fn print(&self, record: &Record, output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Raw => {
                output.bytes(record.value.as_deref().unwrap_or_default())?;
                output.bytes(b"\n")
            }
            Self::Json => output.json_line(&json::Line::of(record)),
            Self::Template(template) => template.print(record, output),
        }
    }
}
