//! `quipu log dump`: entries, and the records in them.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::Verdict;
use super::super::output::{Format, Output, time};
use super::{Target, damage_line, note_line, print_advice, verdict};
use crate::batch::{self, Limits, Scratch};
use crate::storage::{EntryHeader, EntryView, Kind, Report, Start};
use crate::types::LogId;

/// A batch may be as large as an entry, and grow this much.
const LIMITS: Limits = Limits {
    batch_bytes_max: u32::MAX,
    uncompressed_bytes_max: 256 << 20,
    compression_ratio_max: u32::MAX,
    records_max: u32::MAX,
    record_bytes_max: u32::MAX,
    headers_max: u32::MAX,
    header_name_bytes_max: u32::MAX,
};

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Start at this index
    #[arg(long, value_name = "INDEX", default_value_t = 0, conflicts_with = "from_offset")]
    from_index: u64,
    /// Start at the entry that holds this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from_offset: u64,
    /// Stop after this many entries
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Also print the records of each batch
    #[arg(long, conflicts_with = "headers_only")]
    records: bool,
    /// Print the headers of entries only; this is the default
    #[arg(long)]
    headers_only: bool,
    /// Print at most this many bytes of a key or value
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    preview: usize,
}

const AFTER_HELP: &str = "\
Entries are printed in order, log by log. Damaged ones are left out; standard
error says where they are, and the exit code is then 1.

Examples:
  quipu log dump /var/lib/quipu --max 10
  quipu log dump /var/lib/quipu --log 0b5e1f6e-8c1c-4a53-9f0e-0d6f6d1c2a77 --from-offset 5000
  quipu log dump /var/lib/quipu --records --preview 200 | less
  quipu -o json log dump /var/lib/quipu | jq 'select(.kind == \"records\") | .base_offset'

JSON: one object per line, told apart by its field `type`.
  entry    log, file, position, index, term, base_offset, record_count,
           payload_len, payload_crc, kind, format, flags, append_time_ms,
           producer_id, producer_epoch, base_sequence, synced_index, chain; with
           --records also records: [{offset, event_time_ms, key, value, headers}],
           or records_error. A key or value is null or {bytes, text} or
           {bytes, hex}, cut to --preview.
  damage, failure, note    file, position, what

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found.";

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let inspector = args.target.open()?;
    let start = Start { index: args.from_index, offset: args.from_offset };
    let mut printer = Printer::new(args, output);
    let mut printed = Ok(());
    let report = inspector.walk(start, &mut |view| {
        if is_before(view.header, start) {
            return ControlFlow::Continue(());
        }
        printed = printer.entry(view);
        let is_done = printed.is_err() || args.max.is_some_and(|max| printer.count >= max);
        if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    printed?;
    print_found(&report, output)?;
    output.flush()?;
    print_advice(&report, output.format);
    Ok(verdict(&report))
}

fn is_before(header: &EntryHeader, start: Start) -> bool {
    header.index < start.index
        || (header.base_offset < start.offset && header.end_offset() <= start.offset)
}

/// Prints what was found behind the entries.
fn print_found(report: &Report, output: &mut Output) -> anyhow::Result<()> {
    let damage = report.damage.iter().map(|damage| (damage_line(damage), "damage", damage));
    for (line, kind, found) in damage {
        let (file, position, what) = (found.file.as_path(), found.position, &*found.what);
        print_one(output, &line, &FindingLine { kind, file, position, what })?;
    }
    let failures = report.failures.iter().map(|note| ("FAILED ", "failure", note));
    let notes = report.notes.iter().map(|note| ("note   ", "note", note));
    for (label, kind, note) in failures.chain(notes) {
        let (file, position, what) = (note.file.as_path(), note.position, &*note.what);
        print_one(output, &note_line(label, note), &FindingLine { kind, file, position, what })?;
    }
    Ok(())
}

fn print_one(output: &mut Output, line: &str, json: &FindingLine<'_>) -> anyhow::Result<()> {
    match output.format {
        Format::Table => output.line(line),
        Format::Json => output.json_line(json),
    }
}

#[derive(Serialize)]
struct FindingLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    file: &'a Path,
    position: u64,
    what: &'a str,
}

#[derive(Serialize)]
struct EntryLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    log: LogId,
    file: &'a Path,
    position: u64,
    #[serde(flatten)]
    header: &'a EntryHeader,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<RecordLine>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    records_error: Option<String>,
}

#[derive(Serialize)]
struct RecordLine {
    offset: u64,
    event_time_ms: Option<i64>,
    key: Option<Preview>,
    value: Option<Preview>,
    headers: Vec<(String, Preview)>,
}

/// The beginning of some bytes, as text if they are text.
#[derive(Serialize)]
struct Preview {
    /// How many there are.
    bytes: usize,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Shown {
    Text(String),
    Hex(String),
}

struct Printer<'a> {
    args: &'a Args,
    output: &'a mut Output,
    scratch: Scratch,
    /// Entries printed.
    count: u64,
    /// The segment of the last one.
    file: PathBuf,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args, output: &'a mut Output) -> Self {
        let (scratch, file) = (Scratch::default(), PathBuf::new());
        Self { args, output, scratch, count: 0, file }
    }

    fn entry(&mut self, view: &EntryView<'_>) -> anyhow::Result<()> {
        self.count += 1;
        let is_batch = self.args.records && view.header.kind == Kind::Records;
        let records = is_batch.then(|| self.records(view)).transpose();
        let (records, records_error) = match records {
            Ok(records) => (records, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let EntryView { log, file, position, header, .. } = *view;
        let kind = "entry";
        let line = EntryLine { kind, log, file, position, header, records, records_error };
        match self.output.format {
            Format::Json => self.output.json_line(&line),
            Format::Table => self.print(&line),
        }
    }

    fn records(&mut self, view: &EntryView<'_>) -> Result<Vec<RecordLine>, batch::Error> {
        let bytes_max = self.args.preview;
        let verified = batch::verify(view.payload, None, &LIMITS, &mut self.scratch)?;
        let records = (view.header.base_offset..).zip(verified.records());
        let line = |(offset, record): (u64, batch::RecordView<'_>)| RecordLine {
            offset,
            event_time_ms: record.event_time_ms,
            key: record.key.map(|key| preview(key, bytes_max)),
            value: record.value.map(|value| preview(value, bytes_max)),
            headers: record
                .headers()
                .map(|(name, value)| (name.to_owned(), preview(value, bytes_max)))
                .collect(),
        };
        Ok(records.map(line).collect())
    }

    fn print(&mut self, line: &EntryLine<'_>) -> anyhow::Result<()> {
        if self.file != line.file {
            self.file = line.file.to_path_buf();
            self.output.line(&format!("segment {}", line.file.display()))?;
            self.output.line(
                "       INDEX   TERM  KIND             OFFSET  RECORDS     BYTES  \
                 APPENDED                  POSITION",
            )?;
        }
        let header = line.header;
        self.output.line(&format!(
            "{:>12} {:>6}  {:<10} {:>12} {:>8} {:>9}  {} {:>9}",
            header.index,
            header.term,
            kind_word(header.kind),
            header.base_offset,
            header.record_count,
            header.payload_len,
            time(header.append_time_ms),
            line.position,
        ))?;
        for record in line.records.iter().flatten() {
            self.output.line(&record_text(record))?;
        }
        if let Some(error) = &line.records_error {
            self.output.line(&format!("             these are not records: {error}"))?;
        }
        Ok(())
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Records => "records",
        Kind::NoOp => "no-op",
        Kind::Membership => "membership",
        Kind::Control => "control",
        Kind::LogStart => "log-start",
    }
}

fn record_text(record: &RecordLine) -> String {
    let mut text = format!("             offset {}", record.offset);
    let mut add = |label: &str, shown: Option<&Preview>| {
        let shown = shown.map_or_else(|| "-".to_owned(), preview_text);
        let _ = write!(text, "  {label} {shown}");
    };
    add("key", record.key.as_ref());
    add("value", record.value.as_ref());
    for (name, value) in &record.headers {
        add(&format!("{}:", name.escape_debug()), Some(value));
    }
    if let Some(ms) = record.event_time_ms {
        let _ = write!(text, "  at {}", time(ms));
    }
    text
}

fn preview_text(preview: &Preview) -> String {
    let (text, shown_bytes) = match &preview.shown {
        Shown::Text(text) => (format!("\"{}\"", text.escape_debug()), text.len()),
        Shown::Hex(hex) => (format!("0x{hex}"), hex.len() / 2),
    };
    let is_cut = shown_bytes < preview.bytes;
    if is_cut { format!("{text}… ({} bytes)", preview.bytes) } else { text }
}

/// The first bytes of a key or value: as text if all of it is text, in hex otherwise.
fn preview(bytes: &[u8], bytes_max: usize) -> Preview {
    let is_shown = |c: char| !c.is_control() || c.is_whitespace();
    let shown = match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_shown) => {
            let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            Shown::Text(text[..end.unwrap_or(0)].to_owned())
        }
        _ => {
            let mut hex = String::new();
            for byte in &bytes[..bytes_max.min(bytes.len())] {
                let _ = write!(hex, "{byte:02x}");
            }
            Shown::Hex(hex)
        }
    };
    Preview { bytes: bytes.len(), shown }
}
