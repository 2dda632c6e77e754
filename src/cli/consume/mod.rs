//! `quipu consume`: records become lines.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::template::Template;
use super::Verdict;
use super::output::{Format, Output, Printing};
use super::remote::{self, about_topic, advise};
use crate::client::{Client, Consumer, ConsumerConfig, Event, Gap, Record, Start};

mod json;
mod template;

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The topic
    topic: String,
    /// Read this partition only, any number of times
    #[arg(long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// Where to begin: earliest, latest, an offset, or a time as @TIME or @-AGO
    #[arg(long, value_name = "PLACE", value_parser = parse_start, allow_hyphen_values = true)]
    from: Option<Start>,
    /// Stop where the topic ended when the command began
    #[arg(long)]
    to_end: bool,
    /// Stop after this many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
}

const AFTER_HELP: &str = "\
Without --from, reading begins at latest, or with --to-end at earliest. Standard
error says at which offsets that is, and which records are missed if retention
has overtaken the reader.

Output, -o:
  raw       each value and a newline; the default
  json      one object per line
  table     partition, offset, key and value
  anything with a % in it is a template:
            %t topic  %p partition  %o offset  %k key  %v value  %h headers
            %T append time (RFC 3339)  %% a percent sign  \\n \\t \\\\ as in C

Examples:
  quipu consume orders --to-end
  quipu consume orders --from @-15m -o json | jq -r .value
  quipu consume orders --from @2026-11-20T10:00:00Z --partition 0 --max 10
  quipu consume orders -o '%p %o %k %v\\n'

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
    let printer = Printer::new(&args.topic, printing)?;
    remote.run(async |client| consume(args, &client, printer, output).await)?;
    Ok(Verdict::Good)
}

async fn consume(
    args: &Args,
    client: &Client,
    printer: Printer<'_>,
    output: &mut Output,
) -> anyhow::Result<()> {
    let topic = &args.topic;
    let ends = match args.to_end {
        true => {
            let call = client.list_offsets(topic, args.partitions.clone(), Start::Latest);
            let ends = about_topic(client, topic, call).await?.into_iter();
            Some(ends.map(|end| (end.partition, end.offset)).collect())
        }
        false => None,
    };
    let mut consumer = client.consumer(args.config());
    let started = match consumer.start().await {
        Ok(started) => started.collect::<Vec<_>>(),
        Err(error) => return Err(advise(client, topic, error).await),
    };
    announce(topic, &started);
    let mut reader = Reader { consumer, ends, left: args.max.unwrap_or(u64::MAX) };
    while let Some(event) = reader.next(output).await? {
        match event {
            Event::Record(record) => printer.print(&record, output)?,
            Event::Gap(gap) => announce_gap(topic, gap),
        }
    }
    Ok(())
}

impl Args {
    fn config(&self) -> ConsumerConfig {
        let default = if self.to_end { Start::Earliest } else { Start::Latest };
        let start = self.from.unwrap_or(default);
        let partitions = self.partitions.iter().map(|partition| (*partition, start)).collect();
        ConsumerConfig { partitions, ..ConsumerConfig::new(&self.topic, start) }
    }
}

fn announce(topic: &str, started: &[(u32, u64)]) {
    let places: Vec<_> =
        started.iter().map(|(partition, offset)| format!("{partition} at {offset}")).collect();
    eprintln!("reading {topic} from partition {}", places.join(", "));
}

fn announce_gap(topic: &str, gap: Gap) {
    let Gap { partition, from_offset, to_offset } = gap;
    let missed = to_offset.saturating_sub(from_offset);
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
enum Printer<'a> {
    Raw,
    Json { topic: &'a str },
    Template { topic: &'a str, template: Template },
}

impl<'a> Printer<'a> {
    fn new(topic: &'a str, printing: &Printing) -> anyhow::Result<Self> {
        let template = match printing {
            Printing::Raw => return Ok(Self::Raw),
            Printing::Format(Format::Json) => return Ok(Self::Json { topic }),
            Printing::Format(Format::Table) => "%p\\t%o\\t%k\\t%v\\n",
            Printing::Template(template) => template,
        };
        Ok(Self::Template { topic, template: template.parse().map_err(anyhow::Error::msg)? })
    }

    fn print(&self, record: &Record, output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Raw => {
                output.bytes(record.value.as_deref().unwrap_or_default())?;
                output.bytes(b"\n")
            }
            Self::Json { topic } => output.json_line(&json::Line::of(topic, record)),
            Self::Template { topic, template } => template.print(topic, record, output),
        }
    }
}

/// Reads `earliest`, `latest`, `OFFSET`, `@TIME` or `@-AGO`.
fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match text.strip_prefix('@') {
            Some(time) => parse_time(time).map(Start::TimeMs),
            None => text.parse().map(Start::Offset).map_err(|_| {
                "expected earliest, latest, an offset, @TIME (RFC 3339) or @-AGO (@-15m)".to_owned()
            }),
        },
    }
}

fn parse_time(text: &str) -> Result<i64, String> {
    let time = match text.strip_prefix('-') {
        Some(ago) => {
            let ago = humantime::parse_duration(ago).map_err(|error| error.to_string())?;
            SystemTime::now().checked_sub(ago).ok_or("that is too long ago")?
        }
        None => humantime::parse_rfc3339_weak(text).map_err(|error| error.to_string())?,
    };
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "that is before 1970")?;
    i64::try_from(since.as_millis()).map_err(|_| "that is too far ahead".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(parse_start("earliest"), Ok(Start::Earliest));
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert_eq!(parse_start("42"), Ok(Start::Offset(42)));
        assert_eq!(parse_start("@1970-01-01T00:00:01.5Z"), Ok(Start::TimeMs(1500)));
        let Ok(Start::TimeMs(ago)) = parse_start("@-15m") else { panic!("no time") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        assert!((899_000..=901_000).contains(&(now - ago)), "{ago} is not 15 minutes before {now}");
        for text in ["-1", "early", "@", "@-", "@yesterday", "@-15parsecs"] {
            assert!(parse_start(text).is_err(), "{text}");
        }
    }
}
