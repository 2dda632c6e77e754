//! `quipu log stats`: what is there.

use super::super::Verdict;
use super::super::output::{Format, Output, Table, bytes, count, optional, time};
use super::{Document, Target, place_words, print_advice, print_findings, verdict};
use crate::storage::{LogReport, Report, SegmentReport, State};

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
}

const AFTER_HELP: &str = "\
Prints, for each log, where it starts and ends, how far it is known to be on
disk, and its segments. Entries are counted by reading them.

Examples:
  quipu log stats /var/lib/quipu
  quipu log stats /var/lib/quipu --log 0b5e1f6e-8c1c-4a53-9f0e-0d6f6d1c2a77
  quipu -o json log stats /var/lib/quipu | jq '.logs[] | {log, totals}'

JSON: the document of `quipu log verify`. A log has log, dir, first_index,
last_index, log_start_offset, log_end_offset, watermark, closed_cleanly, totals,
segments, void, unknown, damage, notes. A segment has file, file_bytes,
base_index, base_offset, generation, origin, is_active, is_recycled,
header_copies, checkpoint, checkpoint_bytes, index, end, end_position, entries,
records, payload_bytes, first_index, last_index, end_offset,
first_append_time_ms, last_append_time_ms. Times are milliseconds since 1970.

Exit codes: 0 all is well, 1 damage or failure, 2 wrong usage, 3 not found.";

pub(super) fn run(args: &Args, output: &mut Output) -> anyhow::Result<Verdict> {
    let report = args.target.open()?.inspect(false, &mut |_| {});
    match output.format {
        Format::Json => output.json(&Document::of(&report))?,
        Format::Table => print(&report, output)?,
    }
    output.flush()?;
    print_advice(&report, output.format);
    Ok(verdict(&report))
}

fn print(report: &Report, output: &mut Output) -> anyhow::Result<()> {
    let totals = &report.totals;
    output.line(&format!(
        "{} {}: {}, {}, {}, {}, {} of payload in {} of files",
        place_words(report.kind),
        report.path.display(),
        count(totals.logs, "log"),
        count(totals.segments, "segment"),
        count(totals.entries, "entry"),
        count(totals.records, "record"),
        bytes(totals.payload_bytes),
        bytes(totals.file_bytes),
    ))?;
    if let Some(in_use) = report.in_use {
        let state = match (in_use, report.closed_cleanly) {
            (true, _) => "in use by a process",
            (false, Some(true)) => "closed in order",
            (false, Some(false)) => "not closed in order: the next open recovers",
            (false, None) => "of unknown state",
        };
        output.line(&format!("the data directory is {state}"))?;
    }
    for log in &report.logs {
        output.line("")?;
        print_log(log, output)?;
    }
    if !(report.damage.is_empty() && report.failures.is_empty() && report.notes.is_empty()) {
        output.line("")?;
    }
    print_findings(report, output)
}

fn print_log(log: &LogReport, output: &mut Output) -> anyhow::Result<()> {
    output.line(&format!(
        "log {}: offsets {} to {} (exclusive), indices {} to {}, on disk up to {}",
        log.log,
        log.log_start_offset,
        log.log_end_offset,
        optional(log.first_index),
        optional(log.last_index),
        log.watermark,
    ))?;
    let mut table = Table::new(&[
        "SEGMENT",
        "ENTRIES",
        "RECORDS",
        "FIRST",
        "LAST",
        "OFFSETS",
        "PAYLOAD",
        "FILE",
        "FROM",
        "TO",
        "CHECKPOINT",
        "INDEX",
        "END",
    ]);
    log.segments.iter().for_each(|segment| table.push(segment_row(segment)));
    table.print(output, 2)
}

fn segment_row(segment: &SegmentReport) -> Vec<String> {
    let tally = &segment.entries;
    let end_offset = tally.end_offset.unwrap_or(segment.base_offset);
    let time_of = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), time);
    let name = segment.file.file_name().unwrap_or_default();
    vec![
        name.to_string_lossy().into_owned(),
        tally.entries.to_string(),
        tally.records.to_string(),
        optional(tally.first_index),
        optional(tally.last_index),
        format!("{}..{end_offset}", segment.base_offset),
        bytes(tally.payload_bytes),
        bytes(segment.file_bytes),
        time_of(tally.first_append_time_ms),
        time_of(tally.last_append_time_ms),
        match segment.checkpoint {
            State::Valid => bytes(u64::from(segment.checkpoint_bytes)),
            state => state_word(state).to_owned(),
        },
        state_word(segment.index).to_owned(),
        if segment.is_active { "active" } else { "sealed" }.to_owned(),
    ]
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Valid => "valid",
        State::Absent => "absent",
        State::Stale => "stale",
        State::Damaged => "DAMAGED",
    }
}
