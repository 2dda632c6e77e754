//! `quipu produce`: lines become records.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::builder::NonEmptyStringValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Verdict;
use super::output::{Format, Output, bytes, count};
use super::remote::{self, about_topic};
use super::topic::parse_pair;
use crate::batch::{Codec, Limits, Record};
use crate::client::{Acks, Client, Delivery, Producer, ProducerConfig};
use crate::storage::fs::os::OsFs;
use crate::storage::fs::{File, Fs as _, OpenMode};

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The topic
    topic: String,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What stands between key and value in a line; without it lines are values
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Send everything to this partition
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// A header for each record, any number of times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = parse_pair)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    sending: Sending,
}

/// How records are sent.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Sending {
    /// Who must have a record before it counts as stored
    #[arg(long, value_enum, default_value_t = AcksChoice::Quorum)]
    acks: AcksChoice,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = CodecChoice::None)]
    codec: CodecChoice,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AcksChoice {
    /// A majority of the replicas
    Quorum,
    /// The leader; lost if the leader is
    Leader,
    /// Nobody; may be lost with the next fault
    None,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum CodecChoice {
    None,
    Lz4,
    Zstd,
}

impl Sending {
    /// Returns how a producer for `topic` is to work.
    pub(super) fn config(&self, topic: &str) -> ProducerConfig {
        let acks = match self.acks {
            AcksChoice::Quorum => Acks::Quorum,
            AcksChoice::Leader => Acks::Leader,
            AcksChoice::None => Acks::None,
        };
        let codec = match self.codec {
            CodecChoice::None => Codec::None,
            CodecChoice::Lz4 => Codec::Lz4,
            CodecChoice::Zstd => Codec::Zstd,
        };
        ProducerConfig { acks, codec, ..ProducerConfig::new(topic) }
    }
}

const AFTER_HELP: &str = "\
Each line becomes one record, byte for byte without its newline. Records of one
partition keep the order of their lines. A line that cannot be a record ends the
command with its number; the lines before it are stored.

Examples:
  quipu produce orders < orders.ndjson
  printf 'k1:v1\\nk2:v2\\n' | quipu produce orders --key-separator :
  tail -f app.log | quipu produce logs --codec lz4

JSON: {topic, records, bytes, seconds, records_per_second, bytes_per_second}";

/// Records whose fate is looked at after they were sent.
const DELIVERIES_MAX: usize = 100_000;
/// How many lines pass between two looks at the progress.
const LINES_PER_LOOK: u64 = 64;
const READ_BYTES: usize = 256 << 10;

pub(super) fn run(
    args: &Args,
    remote: &remote::Args,
    output: &mut Output,
) -> anyhow::Result<Verdict> {
    let input = args.open()?;
    let started = Instant::now();
    let config = ProducerConfig {
        delivery_timeout: remote.config().timeout,
        ..args.sending.config(&args.topic)
    };
    let sent = remote.run(async |client| produce(args, &client, config, input).await)?;
    print_summary(&Summary::of(&args.topic, sent, started.elapsed()), output)?;
    Ok(Verdict::Good)
}

impl Args {
    fn open(&self) -> anyhow::Result<Box<dyn BufRead>> {
        match &self.file {
            None => {
                if io::stdin().is_terminal() {
                    eprintln!("each line becomes a record; end with Ctrl-D");
                }
                Ok(Box::new(BufReader::with_capacity(READ_BYTES, io::stdin())))
            }
            Some(path) => Ok(Box::new(BufReader::with_capacity(READ_BYTES, Input::open(path)?))),
        }
    }
}

/// A file being read from its beginning.
struct Input {
    file: Arc<dyn File>,
    position: u64,
}

impl Input {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OsFs::new().open(path, OpenMode::Read);
        let file = file.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { file, position: 0 })
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read_at(buffer, self.position)?;
        self.position += bytes as u64;
        Ok(bytes)
    }
}

/// What was stored.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    records: u64,
    bytes: u64,
}

async fn produce(
    args: &Args,
    client: &Client,
    config: ProducerConfig,
    input: Box<dyn BufRead>,
) -> anyhow::Result<Sent> {
    let producer = about_topic(client, &args.topic, client.producer(config)).await?;
    let mut sender = Sender::new(args, producer);
    // Reading blocks this thread only: the producer works on others.
    let read = sender.send_lines(Lines::new(input)).await;
    sender.producer.flush().await;
    let stored = sender.settle(0).await;
    sender.progress.finish_and_clear();
    let done = read.and(stored);
    if done.is_err() {
        eprintln!("stored before it: {}", count(sender.stored.records, "record"));
    }
    done.map(|()| sender.stored)
}

struct Sender<'a> {
    args: &'a Args,
    producer: Producer,
    headers: Vec<(&'a str, &'a [u8])>,
    /// Records whose fate is open, with their line's number and size.
    deliveries: VecDeque<(Delivery, u64, usize)>,
    stored: Sent,
    progress: ProgressBar,
}

impl<'a> Sender<'a> {
    fn new(args: &'a Args, producer: Producer) -> Self {
        let headers = args.headers.iter();
        Self {
            args,
            producer,
            headers: headers.map(|(name, value)| (name.as_str(), value.as_bytes())).collect(),
            deliveries: VecDeque::new(),
            stored: Sent::default(),
            progress: progress_bar(),
        }
    }

    async fn send_lines(&mut self, mut lines: Lines) -> anyhow::Result<()> {
        while lines.read_next()? {
            self.send_line(&lines).await.with_context(|| format!("line {}", lines.number))?;
            if lines.number.is_multiple_of(LINES_PER_LOOK) {
                self.settle(DELIVERIES_MAX).await?;
            }
        }
        Ok(())
    }

    async fn send_line(&mut self, lines: &Lines) -> anyhow::Result<()> {
        let (key, value) = split(&lines.line, self.args.key_separator.as_deref())?;
        let record =
            Record { key, value: Some(value), headers: &self.headers, event_time_ms: None };
        let delivery = match self.args.partition {
            Some(partition) => self.producer.send_to(partition, &record).await?,
            None => self.producer.send(&record).await?,
        };
        self.deliveries.push_back((delivery, lines.number, lines.line.len()));
        Ok(())
    }

    /// Looks at the fate of records, and waits until at most so many are open.
    async fn settle(&mut self, open_max: usize) -> anyhow::Result<()> {
        loop {
            let open = self.deliveries.len();
            let Some((delivery, line, bytes)) = self.deliveries.front_mut() else {
                break;
            };
            let outcome = match delivery.try_outcome() {
                Some(outcome) => outcome,
                None if open > open_max => delivery.await,
                None => break,
            };
            let line = *line;
            outcome.with_context(|| format!("line {line}"))?;
            self.stored.records += 1;
            self.stored.bytes += *bytes as u64;
            self.deliveries.pop_front();
        }
        self.progress.set_position(self.stored.records);
        Ok(())
    }
}

/// The key and the value of a line.
fn split<'a>(
    line: &'a [u8],
    separator: Option<&str>,
) -> anyhow::Result<(Option<&'a [u8]>, &'a [u8])> {
    let Some(separator) = separator else {
        return Ok((None, line));
    };
    let mut places = line.windows(separator.len());
    let at = places.position(|window| window == separator.as_bytes());
    let at = at.with_context(|| format!("the separator `{separator}` is not in it"))?;
    Ok((Some(&line[..at]), &line[at + separator.len()..]))
}

/// The lines of an input, none of them longer than a record can be.
struct Lines {
    input: Box<dyn BufRead>,
    /// The line that was read last, without its newline.
    line: Vec<u8>,
    /// Its number, from 1.
    number: u64,
}

impl Lines {
    fn new(input: Box<dyn BufRead>) -> Self {
        Self { input, line: Vec::new(), number: 0 }
    }

    /// Reads the next line. Returns false at the end.
    fn read_next(&mut self) -> anyhow::Result<bool> {
        let bytes_max = Limits::default().record_bytes_max as usize;
        self.line.clear();
        self.number += 1;
        let mut limited = (&mut self.input).take(bytes_max as u64 + 1);
        limited.read_until(b'\n', &mut self.line).context("cannot read the input")?;
        let is_whole = self.line.pop_if(|last| *last == b'\n').is_some();
        if !is_whole && self.line.len() > bytes_max {
            bail!(
                "line {}: it has more than {bytes_max} bytes, the limit of a record",
                self.number
            );
        }
        Ok(is_whole || !self.line.is_empty())
    }
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} records stored, {per_sec}");
    let progress = ProgressBar::new_spinner();
    progress.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

#[derive(Serialize)]
struct Summary<'a> {
    topic: &'a str,
    records: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    bytes_per_second: f64,
}

impl<'a> Summary<'a> {
    fn of(topic: &'a str, sent: Sent, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        let rate = |number: u64| number as f64 / seconds;
        let Sent { records, bytes } = sent;
        let (records_per_second, bytes_per_second) = (rate(records), rate(bytes));
        Self { topic, records, bytes, seconds, records_per_second, bytes_per_second }
    }
}

fn print_summary(summary: &Summary<'_>, output: &mut Output) -> anyhow::Result<()> {
    if output.format == Format::Json {
        return output.json(summary);
    }
    let Summary { topic, records, bytes: size, seconds, .. } = summary;
    let (records, size) = (count(*records, "record"), bytes(*size));
    let per_second = bytes(summary.bytes_per_second as u64);
    output.line(&format!(
        "{records} ({size}) to {topic} in {seconds:.2} s: {:.0} records/s, {per_second}/s",
        summary.records_per_second
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &'static [u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(Box::new(text));
        let mut read = Vec::new();
        while lines.read_next().unwrap() {
            read.push(lines.line.clone());
        }
        read
    }

    #[test]
    fn lines_are_taken_byte_for_byte() {
        assert_eq!(read_all(b"a\r\n\n\xff\x00b\n"), [&b"a\r"[..], b"", b"\xff\x00b"]);
        assert_eq!(read_all(b"a\nb"), [b"a", b"b"]);
        assert!(read_all(b"").is_empty());
    }

    #[test]
    fn a_line_over_the_limit_is_named() {
        let text = [b"ok\n".to_vec(), vec![b'x'; (1 << 20) + 1]].concat();
        let mut lines = Lines::new(Box::new(io::Cursor::new(text)));
        assert!(lines.read_next().unwrap());
        assert!(lines.read_next().unwrap_err().to_string().starts_with("line 2: "));
    }

    #[test]
    fn keys_end_at_the_first_separator() {
        let split = |line| split(line, Some("::")).ok();
        assert_eq!(split(b"k::v::w"), Some((Some(&b"k"[..]), &b"v::w"[..])));
        assert_eq!(split(b"::v"), Some((Some(&b""[..]), &b"v"[..])));
        assert_eq!(split(b"kv"), None);
    }
}
